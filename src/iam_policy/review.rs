//! What an operator should review before a policy is applied, because authors of pods chose it: a role that no restriction allows to their
//! namespace, and a request for another team's role with another external ID, or with none.

use std::collections::{BTreeMap, BTreeSet};

use super::document::Document;
use super::uses::RolesInUse;
use super::warning::PolicyWarning;

/// The namespaces of a role's users, by external ID.
type Namespaces<'a> = BTreeMap<&'a Option<String>, BTreeSet<&'a String>>;

/// Names the roles that no restriction allows to the namespaces whose pods name them. No namespace is omitted: the last one may be the one
/// that matters.
pub(super) fn unrestricted(uses: &RolesInUse) -> Vec<PolicyWarning> {
    let mut roles: BTreeMap<&str, BTreeSet<&String>> = BTreeMap::new();
    for users in uses.users().filter(|users| !users.unrestricted.is_empty()) {
        roles.entry(users.role.as_str()).or_default().extend(&users.unrestricted);
    }
    let warning = |(role, namespaces): (&str, BTreeSet<&String>)| {
        let text = format!(
            "pods of {} name the role {role}, and no enforced restriction allows it to them: whoever may create pods there can add any role \
             to these policies; check that these namespaces are to have the role, or set --namespace-restrictions",
            listed(&namespaces)
        );
        PolicyWarning::new("unrestricted-role", text)
    };
    roles.into_iter().map(warning).collect()
}

/// Names the roles whose pods do not all have one external ID, of those that have a trust policy.
pub(super) fn external_ids(uses: &RolesInUse, trust: &BTreeMap<String, Document>) -> Vec<PolicyWarning> {
    let mut roles: BTreeMap<&str, Namespaces<'_>> = BTreeMap::new();
    for users in uses.users().filter(|users| trust.contains_key(users.role.as_str())) {
        let role = roles.entry(users.role.as_str()).or_default();
        for (id, namespaces) in &users.namespaces {
            role.entry(id).or_default().extend(namespaces);
        }
    }
    roles.into_iter().flat_map(|(role, ids)| of_role(role, &ids)).collect()
}

fn of_role(role: &str, ids: &Namespaces<'_>) -> Vec<PolicyWarning> {
    let (without, with): (Vec<_>, Vec<_>) = ids.iter().partition(|(id, _)| id.is_none());
    let mut warnings = Vec::new();
    if let [(_, namespaces)] = &without[..]
        && !with.is_empty()
    {
        let text = format!(
            "some pods with the role {role} have an external ID, and pods of {} have none: the trust policy allows requests without one",
            listed(namespaces)
        );
        warnings.push(PolicyWarning::new("external-ids-differ", text));
    }
    if with.len() > 1 {
        // The IDs themselves are in the trust policy, and nowhere else.
        let of_ids = with.iter().map(|(_, namespaces)| listed(namespaces)).collect::<Vec<_>>().join("; another in ");
        let text = format!(
            "pods with the role {role} have {} external IDs, one in {of_ids}: the trust policy allows each of them; remove those that the \
             owner of the role does not know",
            with.len()
        );
        warnings.push(PolicyWarning::new("several-external-ids", text));
    }
    warnings
}

fn listed(namespaces: &BTreeSet<&String>) -> String {
    let names = namespaces.iter().map(|name| name.as_str()).collect::<Vec<_>>().join(", ");
    if namespaces.len() == 1 { format!("namespace {names}") } else { format!("the namespaces {names}") }
}
