//! IAM policy documents (IAM User Guide, "IAM JSON policy element reference").

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;

use crate::role::RoleArn;

/// The actions of the calls that rolegate sends.
pub(super) const ASSUME: &str = "sts:AssumeRole";
pub(super) const TAG: &str = "sts:TagSession";
pub(super) const IDENTIFY: &str = "sts:SetSourceIdentity";

/// The version of the policy language. The older one has no variables, which escape wildcards.
const VERSION: &str = "2012-10-17";

/// The values of condition keys, by operator.
pub(super) type Conditions = BTreeMap<&'static str, BTreeMap<String, OneOrMore>>;

/// A policy.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct Document {
    version: &'static str,
    statement: Vec<Statement>,
}

/// A statement of a policy.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Statement {
    pub(super) sid: String,
    pub(super) effect: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) principal: Option<BTreeMap<&'static str, String>>,
    pub(super) action: OneOrMore,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) resource: Option<OneOrMore>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) not_resource: Option<OneOrMore>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub(super) condition: Conditions,
}

/// A value, or a list if there are several.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(untagged)]
pub(super) enum OneOrMore {
    One(String),
    More(Vec<String>),
}

impl Default for OneOrMore {
    fn default() -> Self {
        Self::More(Vec::new())
    }
}

impl<T: Into<String>> FromIterator<T> for OneOrMore {
    fn from_iter<I: IntoIterator<Item = T>>(values: I) -> Self {
        let mut values: Vec<String> = values.into_iter().map(Into::into).collect();
        match values.pop() {
            Some(value) if values.is_empty() => Self::One(value),
            last => Self::More(values.into_iter().chain(last).collect()),
        }
    }
}

impl OneOrMore {
    fn values(&self) -> impl Iterator<Item = &String> {
        match self {
            Self::One(value) => std::slice::from_ref(value),
            Self::More(values) => values,
        }
        .iter()
    }
}

impl Document {
    pub(super) fn new(statement: Vec<Statement>) -> Self {
        Self { version: VERSION, statement }
    }

    fn allow<'a>(actions: &[&'static str], resources: impl Iterator<Item = &'a String>) -> Self {
        Self::new(vec![Statement {
            sid: "AssumeRolesInUse".to_owned(),
            effect: "Allow",
            action: actions.iter().copied().collect(),
            resource: Some(resources.cloned().collect()),
            ..Statement::default()
        }])
    }

    /// Returns the parts of a policy as one; `None` without parts. They differ in their resources alone.
    pub(super) fn joined(parts: &[Self]) -> Option<Self> {
        let mut joined = parts.first()?.clone();
        let resources = parts.iter().flat_map(|part| &part.statement).filter_map(|statement| statement.resource.as_ref());
        let resources: OneOrMore = resources.flat_map(OneOrMore::values).cloned().collect();
        joined.statement.first_mut()?.resource = Some(resources);
        Some(joined)
    }

    /// Returns a permissions boundary that allows no role to be assumed but these, and limits nothing else. A boundary gives no
    /// permission: its `Allow` keeps those that other policies give.
    pub(super) fn boundary(resources: &BTreeSet<String>) -> Self {
        let rest = Statement {
            sid: "LimitNothingElse".to_owned(),
            effect: "Allow",
            action: OneOrMore::One("*".to_owned()),
            resource: Some(OneOrMore::One("*".to_owned())),
            ..Statement::default()
        };
        let deny = Statement {
            sid: "DenyOtherRoles".to_owned(),
            effect: "Deny",
            action: OneOrMore::One(ASSUME.to_owned()),
            resource: resources.is_empty().then(|| OneOrMore::One("*".to_owned())),
            not_resource: (!resources.is_empty()).then(|| resources.iter().cloned().collect()),
            ..Statement::default()
        };
        Self::new(vec![rest, deny])
    }
}

/// Returns the number of characters that IAM counts. It counts no white space, and the compact form has none: neither ARNs nor the other
/// values contain any.
pub(super) fn size(document: &Document) -> usize {
    serde_json::to_string(document).map_or(usize::MAX, |text| text.chars().filter(|c| !c.is_whitespace()).count())
}

/// Returns policies of at most `most` characters that together allow the actions on the resources.
pub(super) fn split(actions: &[&'static str], resources: &BTreeSet<String>, most: usize) -> Vec<Document> {
    let mut parts: Vec<Document> = Vec::new();
    let mut current: Vec<&String> = Vec::new();
    // Two resources, so that brackets are counted.
    let empty = size(&Document::allow(actions, [String::new(), String::new()].iter())) - "\"\",\"\"".len();
    let mut length = empty;
    for resource in resources {
        // Quotes and a comma. No character of an ARN is escaped in JSON but these two.
        let more = resource.len() + 3 + resource.bytes().filter(|byte| matches!(byte, b'"' | b'\\')).count();
        if !current.is_empty() && length + more > most {
            parts.push(Document::allow(actions, current.drain(..)));
            length = empty;
        }
        current.push(resource);
        length += more;
    }
    if !current.is_empty() {
        parts.push(Document::allow(actions, current.into_iter()));
    }
    parts
}

/// Escapes an ARN for `Resource`, where `*` and `?` match any text, and `${` begins a variable. IAM allows these characters in paths of
/// roles.
pub(super) fn escaped(arn: &str) -> String {
    let mut escaped = String::with_capacity(arn.len());
    for c in arn.chars() {
        match c {
            '*' | '?' | '$' => escaped.extend(["${", c.encode_utf8(&mut [0; 4]), "}"]),
            c => escaped.push(c),
        }
    }
    escaped
}

/// Whether a role can be named in `Principal`, which has no wildcards and no way to escape their characters.
pub(super) fn is_principal(role: &RoleArn) -> bool {
    !role.as_str().contains(['*', '?', '$'])
}
