//! The trust policies of roles: who may assume them, and on which conditions that rolegate can fulfil.

use std::collections::BTreeMap;

use super::document::{ASSUME, Conditions, Document, OneOrMore, Statement, is_principal, size};
use super::settings::IamPolicySettings;
use super::uses::{GroupUsers, RoleUsers, RolesInUse, UserGroup};
use super::warning::PolicyWarning;
use crate::config::session::SessionTag;
use crate::role::RoleArn;

/// The most characters of a trust policy, unless the quota is raised.
const TRUST: usize = 2048;
/// The most characters of a trust policy with the highest quota.
const TRUST_AT_MOST: usize = 4096;

/// Returns the trust policy of each role, by ARN.
pub(super) fn policies(
    uses: &RolesInUse,
    settings: &IamPolicySettings,
    actions: &[&'static str],
    warnings: &mut Vec<PolicyWarning>,
) -> BTreeMap<String, Document> {
    let mut trusts = Trusts { statements: BTreeMap::new(), more: &actions[1..] };
    let caller = settings.intermediate.as_ref().or(settings.node_role.as_ref());
    if settings.node_role.is_none() {
        let of = if settings.intermediate.is_some() { "the trust policy of the intermediate role is" } else { "trust policies are" };
        let text = format!(
            "{of} left out, and pods that name the role of the nodes are not: give --node-role, the role that the nodes have, which the \
             daemon refuses to pods"
        );
        warnings.push(PolicyWarning::new("no-node-role", text));
    }
    if let (Some(intermediate), Some(node)) = (&settings.intermediate, &settings.node_role) {
        trusts.allow(intermediate.as_str(), node, "Nodes", &Conditions::new());
    }
    for (arn, users) in &uses.direct {
        if let Some(caller) = caller {
            trusts.add(arn, users, caller, if settings.intermediate.is_some() { "Intermediate" } else { "Nodes" }, warnings);
        }
    }
    for (source, targets) in &uses.chained {
        let Some(source) = uses.direct.get(source).map(|users| &users.role) else { continue };
        for (arn, users) in targets {
            trusts.add(arn, users, source, "Chain", warnings);
        }
    }
    let documents = trusts.statements.into_iter().map(|(arn, mut statements)| {
        for (at, statement) in statements.iter_mut().enumerate() {
            statement.sid = format!("{}{}", statement.sid, at + 1);
        }
        (arn, Document::new(statements))
    });
    let documents: BTreeMap<_, _> = documents.collect();
    for (arn, document) in &documents {
        match size(document) {
            size if size > TRUST_AT_MOST => warnings.push(PolicyWarning::new("trust-policy-too-large", format!(
                "the trust policy of {arn} has {size} characters, and AWS allows {TRUST_AT_MOST} at most: give pods of fewer namespaces \
                 and service accounts this role"
            ))),
            size if size > TRUST => warnings.push(PolicyWarning::new("trust-policy-large", format!(
                "the trust policy of {arn} has {size} characters, and AWS allows {TRUST}, unless the quota for role trust policies is raised"
            ))),
            _ => {}
        }
    }
    documents
}

struct Trusts<'a> {
    statements: BTreeMap<String, Vec<Statement>>,
    /// The actions besides AssumeRole.
    more: &'a [&'static str],
}

impl Trusts<'_> {
    fn add(&mut self, arn: &str, users: &RoleUsers, caller: &RoleArn, sid: &str, warnings: &mut Vec<PolicyWarning>) {
        if !is_principal(caller) {
            warnings.push(PolicyWarning::new(
                "principal",
                format!("the trust policy of {arn} lacks {caller}: IAM does not allow the characters * ? $ in the ARN of a principal"),
            ));
            return;
        }
        for (group, users) in &users.groups {
            self.allow(arn, caller, sid, &conditions(group, users));
        }
        // These actions allow nothing without AssumeRole. They have no condition, because the condition keys of AssumeRole are not
        // defined for all of them.
        if !self.more.is_empty() {
            self.statement(arn, caller, sid, self.more, &Conditions::new());
        }
    }

    fn allow(&mut self, arn: &str, caller: &RoleArn, sid: &str, conditions: &Conditions) {
        self.statement(arn, caller, sid, &[ASSUME], conditions);
    }

    fn statement(&mut self, arn: &str, caller: &RoleArn, sid: &str, actions: &[&'static str], conditions: &Conditions) {
        self.statements.entry(arn.to_owned()).or_default().push(Statement {
            sid: sid.to_owned(),
            effect: "Allow",
            principal: Some(BTreeMap::from([("AWS", caller.to_string())])),
            action: actions.iter().copied().collect(),
            condition: conditions.clone(),
            ..Statement::default()
        });
    }
}

/// Returns the conditions that all requests of a group fulfil.
fn conditions(group: &UserGroup, users: &GroupUsers) -> Conditions {
    let tag = |key: &str| format!("aws:RequestTag/{key}");
    let mut equals: BTreeMap<String, OneOrMore> = group.iter().map(|(key, value)| (tag(key), OneOrMore::One(value.clone()))).collect();
    if !users.service_accounts.is_empty() {
        equals.insert(tag(SessionTag::ServiceAccount.key()), users.service_accounts.iter().cloned().collect());
    }
    if !users.external_ids.contains(&None) {
        equals.insert("sts:ExternalId".to_owned(), users.external_ids.iter().flatten().cloned().collect());
    }
    if equals.is_empty() { Conditions::new() } else { Conditions::from([("StringEquals", equals)]) }
}
