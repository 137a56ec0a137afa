//! `rolegate iam-policy`: the IAM policies that rolegate needs for the roles in use, and nothing more.
//!
//! [`RolesInUse`] collects what the decisions about pods would send to STS. Annotations alone decide nothing: what the restrictions of
//! namespaces would refuse is left out, and what nothing restricts is named for review ([`review`]). [`IamPolicies`] is made from it: the policy of the nodes'
//! role, that of the intermediate role, the trust policies of the pods' roles, the policies of roles that assume target roles, and a
//! permissions boundary for the nodes' role. All of them are sorted, so that the same cluster gives the same text.
//!
//! The limits of sizes are those of "IAM and AWS STS quotas" in the IAM User Guide. IAM does not count white space.

use std::collections::{BTreeMap, BTreeSet};

use crate::role::RoleArn;

mod document;
mod review;
mod settings;
mod trust;
mod uses;
mod warning;

use document::{ASSUME, Document, IDENTIFY, TAG, escaped, size, split};
pub(crate) use settings::IamPolicySettings;
use uses::UnresolvedPods;
pub(crate) use uses::{Counted, RolesInUse};
pub(crate) use warning::PolicyWarning;

/// The most characters of a managed policy, and of a permissions boundary.
const MANAGED: usize = 6144;
/// The most characters of all inline policies of a role together.
const INLINE: usize = 10_240;
/// The most managed policies of a role, unless the quota is raised.
const MANAGED_PER_ROLE: usize = 10;

/// All policies, in the order in which they are printed.
#[derive(Debug, serde::Serialize)]
pub(crate) struct IamPolicies {
    /// Of the nodes' role. Several, if one managed policy is too small.
    node: Vec<Document>,
    /// Of the role of `--assume-role-arn`, if there is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    intermediate: Option<Vec<Document>>,
    /// The trust policy of each role.
    trust: BTreeMap<String, Document>,
    /// Of each role that assumes target roles.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    chain: BTreeMap<String, Vec<Document>>,
    /// The permissions boundary of the nodes' role. `None` if it would be too large.
    boundary: Option<Document>,
    /// What the operator should know.
    #[serde(skip)]
    pub warnings: Vec<PolicyWarning>,
}

/// A policy that is printed alone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum OnePolicy {
    /// That of the nodes' role.
    Node,
    /// That of the role of `--assume-role-arn`.
    Intermediate,
    /// The trust policy of a role; `None` for the only one.
    Trust(Option<RoleArn>),
    /// That of a role that assumes target roles; `None` for the only one.
    Chain(Option<RoleArn>),
    /// The permissions boundary of the nodes' role.
    Boundary,
}

/// Why a policy cannot be printed alone.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum NoPolicy {
    /// Nothing needs it.
    #[error("{0}")]
    NotNeeded(&'static str),
    /// There are several such policies.
    #[error("there are {} such policies, for {}: name one with --role", .0.len(), .0.join(", "))]
    Several(Vec<String>),
    /// There is no such policy for the role.
    #[error("there is no such policy for {0}: no pod uses the role that way, or see the warnings")]
    NotOf(String),
    /// It is larger than AWS allows.
    #[error("the policy has {0} characters, and AWS allows {1}: {2}")]
    TooLarge(usize, usize, &'static str),
}

impl IamPolicies {
    /// Creates the policies for the roles in use.
    pub(crate) fn new(uses: &RolesInUse, settings: &IamPolicySettings) -> Self {
        let of_pods = |pods: &UnresolvedPods| PolicyWarning::new("pods-left-out", pods.to_string());
        let mut warnings: Vec<PolicyWarning> = uses.unresolved.iter().map(of_pods).collect();
        let actions: Vec<&'static str> =
            [ASSUME].into_iter().chain(settings.has_tags.then_some(TAG)).chain(settings.has_source_identity.then_some(IDENTIFY)).collect();
        let direct: Vec<&RoleArn> = uses.direct.values().map(|users| &users.role).collect();
        if direct.is_empty() {
            warnings.push(PolicyWarning::new("no-roles", "no pod has a role, so nothing needs to be allowed"));
        }
        let own = settings.node_role.as_ref();
        let of_pods = resources(&direct, settings.by_path, own.into_iter().chain(&settings.intermediate), &mut warnings);
        // The session of the intermediate role has neither tags nor a source identity.
        let (of_node, node_actions) = match &settings.intermediate {
            Some(role) => (BTreeSet::from([escaped(role.as_str())]), &[ASSUME][..]),
            None => (of_pods.clone(), &actions[..]),
        };
        let node = policies("the nodes' role", node_actions, &of_node, &mut warnings);
        let intermediate = settings.intermediate.as_ref().map(|_| policies("the intermediate role", &actions, &of_pods, &mut warnings));
        let chain = uses.chained.iter().map(|(source, targets)| {
            let targets: BTreeSet<_> = targets.keys().map(|target| escaped(target)).collect();
            (source.clone(), policies(source, &actions, &targets, &mut warnings))
        });
        let chain = chain.collect();
        let boundary = Document::boundary(&of_node);
        let boundary_size = size(&boundary);
        if boundary_size > MANAGED {
            warnings.push(PolicyWarning::new("boundary-too-large", format!(
                "the permissions boundary has {boundary_size} characters, and AWS allows {MANAGED}; a boundary cannot be split: use --prefix"
            )));
        }
        warnings.extend(review::unrestricted(uses));
        let trust = trust::policies(uses, settings, &actions, &mut warnings);
        warnings.extend(review::external_ids(uses, &trust));
        Self { node, intermediate, trust, chain, boundary: (boundary_size <= MANAGED).then_some(boundary), warnings }
    }

    /// Returns one policy, which the AWS CLI takes as it is.
    pub(crate) fn one(&self, wanted: &OnePolicy) -> Result<Document, NoPolicy> {
        match wanted {
            OnePolicy::Node => joined(&self.node),
            OnePolicy::Intermediate => match &self.intermediate {
                Some(policies) => joined(policies),
                None => Err(NoPolicy::NotNeeded("there is no intermediate role: it needs --assume-role-arn")),
            },
            OnePolicy::Trust(role) => of_role(&self.trust, role.as_ref()).cloned(),
            OnePolicy::Chain(role) => joined(of_role(&self.chain, role.as_ref())?),
            OnePolicy::Boundary => {
                self.boundary.clone().ok_or(NoPolicy::NotNeeded("the permissions boundary would be larger than AWS allows: use --prefix"))
            }
        }
    }
}

fn of_role<'a, T>(policies: &'a BTreeMap<String, T>, role: Option<&RoleArn>) -> Result<&'a T, NoPolicy> {
    match role {
        Some(role) => policies.get(role.as_str()).ok_or_else(|| NoPolicy::NotOf(role.to_string())),
        None if policies.is_empty() => Err(NoPolicy::NotNeeded("no role needs such a policy, or see the warnings")),
        None if policies.len() > 1 => Err(NoPolicy::Several(policies.keys().cloned().collect())),
        None => policies.values().next().ok_or(NoPolicy::NotNeeded("no role needs such a policy")),
    }
}

/// Returns parts of a policy as one inline policy.
fn joined(parts: &[Document]) -> Result<Document, NoPolicy> {
    let document = Document::joined(parts).ok_or(NoPolicy::NotNeeded("no pod has a role, so nothing needs to be allowed"))?;
    match size(&document) {
        size if size > INLINE => {
            Err(NoPolicy::TooLarge(size, INLINE, "use --prefix, or print all policies, and create a managed policy from each part"))
        }
        _ => Ok(document),
    }
}

/// Returns the policies that allow the actions on the resources, each small enough for a managed policy.
fn policies(of: &str, actions: &[&'static str], resources: &BTreeSet<String>, warnings: &mut Vec<PolicyWarning>) -> Vec<Document> {
    let parts = split(actions, resources, MANAGED);
    if parts.len() > 1 {
        let most = if parts.len() > MANAGED_PER_ROLE {
            format!("; a role has at most {MANAGED_PER_ROLE} managed policies, unless the quota is raised")
        } else {
            String::new()
        };
        warnings.push(PolicyWarning::new(
            "several-policies",
            format!(
                "the policy of {of} needs {} managed policies of at most {MANAGED} characters{most}: attach each, or use --prefix",
                parts.len()
            ),
        ));
    }
    parts
}

/// Returns the patterns that allow these roles. `own` are roles that no pattern of a path may match.
fn resources<'a>(
    roles: &[&RoleArn],
    by_path: bool,
    own: impl Iterator<Item = &'a RoleArn> + Clone,
    warnings: &mut Vec<PolicyWarning>,
) -> BTreeSet<String> {
    let mut patterns = BTreeSet::new();
    for role in roles {
        let path = &role.as_str()[..role.as_str().len() - role.name().len()];
        let has_path = role.path_and_name() != role.name();
        match own.clone().find(|own| own.as_str().starts_with(path)) {
            _ if !by_path || !has_path => {
                patterns.insert(escaped(role.as_str()));
            }
            Some(own) => {
                patterns.insert(escaped(role.as_str()));
                warnings.push(PolicyWarning::new("own-role-in-path", format!("{path}* would also match {own}: allowing {role} alone")));
            }
            None => {
                patterns.insert(format!("{}*", escaped(path)));
            }
        }
    }
    let is_covered = |pattern: &String| {
        patterns.iter().any(|other| other != pattern && other.ends_with("/*") && pattern.starts_with(&other[..other.len() - 1]))
    };
    patterns.iter().filter(|pattern| !is_covered(pattern)).cloned().collect()
}

#[cfg(test)]
mod tests;
