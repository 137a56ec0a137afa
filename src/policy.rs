//! The policy that decides which role a pod may have: a pure function of the pod, its namespace and service account, and the
//! operator's settings.
//!
//! The role comes from the pod's annotation, its service account's annotation, or `--default-role`, in this order. A malformed
//! one denies and never falls back to the next. The node's limits apply next (its partition, its own role, `--allowed-roles`),
//! then the namespace's. If the pod has a target role, all limits apply to both roles, and if either is refused, the pod gets
//! neither. Only this module creates a [`RoleRequest`], and only a [`RoleRequest`] opens the credential cache: a
//! role that was not allowed cannot be requested.
//!
//! The daemon's AWS identities, its own and that of an intermediate role, may become known after the first decision. Until
//! then, roles are not compared with them, and decisions must be made again before credentials are served
//! ([`Policy::knows_node`]). An identity may also change later, when keys change. Decisions must then be made again as well
//! ([`Policy::node_version`]).

use crate::config::{PatternFormat, Restrictions};
use crate::pods::{Namespace, Pod, PodContext};
use crate::role::{BaseArn, ExternalId, RoleArn};
use crate::text::quoted;

mod annotations;
mod decision;
pub(crate) mod denial;
pub(crate) mod discovered;
mod namespace;
pub mod node;
pub mod patterns;
mod rules;
pub(crate) mod session;
pub(crate) mod trace;

pub use decision::{Decision, Explanation, RoleRequest};
pub use denial::Denial;
use namespace::Namespaces;
use node::{INTERMEDIATE, NodeChanges, NodeIdentity, OWN};
use patterns::{Mistake, Patterns};
pub use rules::{Discovered, Rules};
use trace::{OfTarget, Silent, StepVerdict, Trace, TraceStep, What};

/// The policy: the operator's settings and the daemon's identity.
#[derive(Debug)]
pub struct Policy {
    rules: Rules,
    node: NodeIdentity,
    allowed_roles: Option<Patterns>,
    namespaces: Namespaces,
}

impl Policy {
    /// Creates a policy. `node` may be filled in later. Fails if `allowed_roles` is malformed.
    pub fn new(rules: Rules, node: NodeIdentity) -> Result<Self, Mistake> {
        let base = rules.base.as_ref().map(BaseArn::as_str);
        let allowed_roles = rules.allowed_roles.clone().map(|list| Patterns::new(PatternFormat::Glob, base, list)).transpose()?;
        let namespaces = Namespaces::new(rules.patterns, rules.base.clone());
        Ok(Self { rules, node, allowed_roles, namespaces })
    }

    /// Decides what `pod` may have in this context.
    pub fn decide(&self, pod: &Pod, context: &PodContext) -> Decision {
        self.follow(pod, context, &mut Silent)
    }

    /// Decides, and returns the steps of the decision as well.
    pub fn explain(&self, pod: &Pod, context: &PodContext) -> Explanation {
        let mut steps = Vec::new();
        let decision = self.follow(pod, context, &mut steps);
        Explanation { steps, decision }
    }

    /// Whether enough is known to decide. If not, a denial would only say what is not known yet.
    pub fn can_decide(&self, pod: &Pod, context: &PodContext) -> bool {
        let namespace = self.rules.restrictions != Restrictions::Enforce || context.namespace.is_some();
        namespace && (pod.role.is_some() || self.service_account(pod, context) != Err(Denial::ServiceAccountUnknown))
    }

    /// Whether the daemon's AWS identities are known, including that of the intermediate role, if there is one. Earlier
    /// decisions may have allowed another partition or the node's own role, so they must be made again before credentials are
    /// served.
    pub fn knows_node(&self) -> bool {
        self.node.known().has_all_callers()
    }

    /// Returns a number that changes with what is known about the node. Decisions made at an earlier number must be made again.
    pub fn node_version(&self) -> u64 {
        self.node.generation()
    }

    /// Subscribes to changes of what is known about the node.
    pub fn node_changes(&self) -> NodeChanges {
        self.node.changes()
    }

    /// Returns the role that the pod asks for, whether or not it may have it: its target role, if it names one.
    pub fn named_role(&self, pod: &Pod, context: &PodContext) -> Option<RoleArn> {
        let (role, target) = self.roles(pod, context, &mut Silent).ok()?;
        Some(target.unwrap_or(role))
    }

    /// Checks whether a namespace allows a role, as enforced restrictions would.
    pub fn check_namespace(&self, role: &RoleArn, namespace: Option<&Namespace>) -> Result<(), Denial> {
        self.restrict(role, namespace, &mut Silent)
    }

    /// Whether `--allowed-roles` allows the default role, if there is one.
    pub fn allows_default_role(&self) -> bool {
        match (&self.rules.default_role, &self.allowed_roles) {
            (Some(role), Some(patterns)) => patterns.find(role.as_str()).is_some(),
            _ => true,
        }
    }

    /// Whether a text names this role: by its name, by its path and name, by its ARN, or in the short form of annotations, which the
    /// base role ARN completes. kube2iam serves all of these. The comparison is exact.
    pub fn is_name_of(&self, text: &str, role: &RoleArn) -> bool {
        let short = || self.rules.base.as_ref().and_then(|base| base.complete(text).ok());
        [role.name(), role.path_and_name(), role.as_str()].contains(&text) || short().as_ref() == Some(role)
    }

    fn follow(&self, pod: &Pod, context: &PodContext, trace: &mut impl Trace) -> Decision {
        let request = match self.request(pod, context, trace) {
            Ok(request) => request,
            Err(denial) => return Decision::Deny(denial),
        };
        let namespace = context.namespace.as_deref();
        let checked = match (self.rules.restrictions, request.source_role()) {
            (Restrictions::Off, _) => {
                trace.skip(What::Namespace, || "--namespace-restrictions".to_owned(), || "off".to_owned());
                Ok(())
            }
            (_, None) => self.restrict(request.role(), namespace, trace),
            (_, Some(source)) => self.restrict(source, namespace, trace).and_then(|()| {
                let checked = self.restrict(request.role(), namespace, &mut OfTarget(trace));
                checked.map_err(Denial::of_target)
            }),
        };
        match checked {
            Ok(()) => Decision::Allow { request, audit: None },
            Err(denial) if self.rules.restrictions == Restrictions::Audit => {
                trace.skip(What::Namespace, || "--namespace-restrictions".to_owned(), || "audit: served anyway".to_owned());
                Decision::Allow { request, audit: Some(denial) }
            }
            Err(denial) => Decision::Deny(denial),
        }
    }

    /// Applies the namespace's limits to a role.
    fn restrict(&self, role: &RoleArn, namespace: Option<&Namespace>, trace: &mut impl Trace) -> Result<(), Denial> {
        // The operator's own default role needs no list, as in kube2iam.
        if self.rules.default_role.as_ref() == Some(role) {
            trace.skip(What::Namespace, || "--default-role".to_owned(), || "allowed in every namespace".to_owned());
            return Ok(());
        }
        self.namespaces.check(role, namespace, trace)
    }

    fn request(&self, pod: &Pod, context: &PodContext, trace: &mut impl Trace) -> Result<RoleRequest, Denial> {
        let (role, target) = self.roles(pod, context, trace)?;
        self.check_node(&role, trace)?;
        if let Some(target) = &target {
            self.check_node(target, &mut OfTarget(trace)).map_err(Denial::of_target)?;
        }
        let (role, source_role) = match target {
            Some(target) => (target, Some(role)),
            None => (role, None),
        };
        // As in kube2iam, an empty one counts as absent. Templates of manifests leave such ones behind.
        let external_id = pod.external_id.as_deref().filter(|id| !id.is_empty());
        let external_id = external_id.map(str::parse::<ExternalId>).transpose().map_err(Denial::BadExternalId);
        let external_id = match external_id {
            Ok(None) => None,
            given => {
                let source = || format!("the external-id annotation of pod {}/{}", pod.namespace, pod.name);
                let detail = if source_role.is_some() { "set, for the target role" } else { "set" };
                trace.check(What::ExternalId, source, given, |_| detail.to_owned())?
            }
        };
        let session_name = self.rules.sessions.name(pod, &role, trace);
        let source_identity = self.rules.sessions.source_identity(pod, &role, trace);
        let tags = self.rules.sessions.tags(pod, trace);
        let has_transitive_tags = self.rules.sessions.transitive_tags && !tags.is_empty();
        let holder = self.rules.sessions.holder(pod);
        let duration = self.rules.session_duration;
        let request =
            RoleRequest { role, source_role, session_name, source_identity, external_id, tags, has_transitive_tags, duration, holder };
        if request.duration() < duration {
            trace.note(|| TraceStep {
                what: What::SessionDuration,
                source: "--session-duration".to_owned(),
                detail: format!(
                    "{}, not {}: AWS limits the session of a target role",
                    humantime::format_duration(request.duration()),
                    humantime::format_duration(duration)
                ),
                verdict: StepVerdict::Passed,
            });
        }
        Ok(request)
    }

    /// Applies the limits of the node to a role, which are the same for all pods.
    fn check_node(&self, role: &RoleArn, trace: &mut impl Trace) -> Result<(), Denial> {
        let node = self.node.known();
        if node.contradiction().is_some() {
            trace.check(What::Account, || OWN.to_owned(), Err(Denial::ContradictedAccount), |()| String::new())?;
        }
        self.check_account(role, &node, trace)?;
        // An intermediate role is in the same partition: no other role could be assumed.
        let caller = node.callers().next().map(|(source, caller)| (source, caller.partition()));
        match caller.or_else(|| self.rules.base.as_ref().map(|base| ("the base role ARN", base.partition()))) {
            None => trace.skip(What::Partition, || OWN.to_owned(), || "not known yet".to_owned()),
            Some((source, partition)) => {
                let same = if role.partition() == partition { Ok(()) } else { Err(Denial::OtherPartition) };
                trace.check(What::Partition, || source.to_owned(), same, |()| partition.name().to_owned())?;
            }
        }
        match () {
            _ if self.rules.allow_node_role => trace.skip(What::NodeRole, || "--allow-node-role".to_owned(), || "on".to_owned()),
            _ if node.instance_role.as_ref().is_some_and(|own| own.has_name_of(role)) => {
                trace.check(What::NodeRole, || "the node's instance profile".to_owned(), Err(Denial::NodeRole), |()| String::new())?;
            }
            () => {
                for (source, caller) in node.callers() {
                    let other = if caller.is_session_of(role) { Err(Denial::NodeRole) } else { Ok(()) };
                    trace.check(What::NodeRole, || source.to_owned(), other, |()| format!("{} is another role", caller.as_str()))?;
                }
                if !node.has_all_callers() {
                    let missing = || if node.caller.is_none() { OWN } else { INTERMEDIATE }.to_owned();
                    trace.skip(What::NodeRole, missing, || "not known yet".to_owned());
                }
            }
        }
        match &self.allowed_roles {
            None => trace.skip(What::AllowedRoles, || "--allowed-roles".to_owned(), || "not set: every role is allowed".to_owned()),
            Some(patterns) => {
                let found = patterns.find(role.as_str()).ok_or(Denial::NotAllowedOnNode);
                trace.check(
                    What::AllowedRoles,
                    || "--allowed-roles".to_owned(),
                    found,
                    |pattern| format!("{} matches", quoted(pattern)),
                )?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
