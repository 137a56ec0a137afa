//! Field and label selectors.
//!
//! <https://kubernetes.io/docs/concepts/overview/working-with-objects/field-selectors/>,
//! <https://kubernetes.io/docs/concepts/overview/working-with-objects/labels/#api>

use serde_json::Value;

use super::objects::Resource;
use super::status::ApiError;

/// Which objects a list or a watch selects.
#[derive(Debug, Clone, Default)]
pub(super) struct Selector {
    pub(super) namespace: Option<String>,
    fields: Vec<FieldTerm>,
    labels: Vec<LabelTerm>,
}

#[derive(Debug, Clone)]
struct FieldTerm {
    field: String,
    equal: bool,
    value: String,
}

#[derive(Debug, Clone)]
enum LabelTerm {
    In(String, Vec<String>),
    NotIn(String, Vec<String>),
    Exists(String),
    Absent(String),
}

impl Selector {
    /// Parses the selectors of a request. A field by which this resource cannot be selected is an error.
    pub(super) fn parse(
        resource: Resource,
        namespace: Option<&str>,
        fields: Option<&str>,
        labels: Option<&str>,
    ) -> Result<Selector, ApiError> {
        let (fields, labels) = (fields.unwrap_or_default(), labels.unwrap_or_default());
        let selector = Selector { namespace: namespace.map(str::to_owned), fields: parse_fields(fields)?, labels: parse_labels(labels)? };
        for term in &selector.fields {
            if !resource.selectable_fields().contains(&term.field.as_str()) {
                return Err(ApiError::bad_request(format!(
                    "Unable to find \"/v1, Resource={}\" that match label selector \"{labels}\", \
                     field selector \"{fields}\": field label not supported: {}",
                    resource.plural(),
                    term.field
                )));
            }
        }
        Ok(selector)
    }

    /// Returns whether it selects by fields or labels, and not only by namespace.
    pub(super) fn selects(&self) -> bool {
        !self.fields.is_empty() || !self.labels.is_empty()
    }

    pub(super) fn matches(&self, object: &Value) -> bool {
        let namespace = object["metadata"]["namespace"].as_str();
        if self.namespace.is_some() && self.namespace.as_deref() != namespace {
            return false;
        }
        self.fields.iter().all(|term| (field(object, &term.field) == term.value) == term.equal)
            && self.labels.iter().all(|term| term.matches(object))
    }
}

impl LabelTerm {
    fn matches(&self, object: &Value) -> bool {
        let label = |key: &str| object["metadata"]["labels"][key].as_str();
        match self {
            LabelTerm::In(key, values) => label(key).is_some_and(|label| values.iter().any(|value| value == label)),
            LabelTerm::NotIn(key, values) => label(key).is_none_or(|label| values.iter().all(|value| value != label)),
            LabelTerm::Exists(key) => label(key).is_some(),
            LabelTerm::Absent(key) => label(key).is_none(),
        }
    }
}

/// Returns the value of a field as selectors compare it: text, empty if the field is missing.
fn field(object: &Value, path: &str) -> String {
    let value = path.split('.').fold(object, |value, key| &value[key]);
    match value {
        Value::String(text) => text.clone(),
        Value::Null if matches!(path, "spec.hostNetwork" | "spec.unschedulable") => "false".to_owned(),
        Value::Null => String::new(),
        other => other.to_string(),
    }
}

fn parse_fields(text: &str) -> Result<Vec<FieldTerm>, ApiError> {
    let terms = text.split(',').filter(|term| !term.is_empty());
    terms
        .map(|term| {
            let (field, equal, value) = operator(term).ok_or_else(|| {
                ApiError::bad_request(format!("invalid field selector: invalid selector: '{text}'; can't understand '{term}'"))
            })?;
            Ok(FieldTerm { field: field.to_owned(), equal, value: value.to_owned() })
        })
        .collect()
}

fn parse_labels(text: &str) -> Result<Vec<LabelTerm>, ApiError> {
    let terms = split_outside_parentheses(text);
    let terms = terms.into_iter().map(str::trim).filter(|t| !t.is_empty());
    terms
        .map(|term| parse_label_term(term).ok_or_else(|| ApiError::bad_request(format!("unable to parse requirement: '{term}'"))))
        .collect()
}

fn parse_label_term(term: &str) -> Option<LabelTerm> {
    if let Some(values) = term.strip_suffix(')') {
        let (head, values) = values.split_once('(')?;
        let values = values.split(',').map(|v| v.trim().to_owned()).collect();
        let (key, word) = head.trim().rsplit_once(char::is_whitespace)?;
        let key = key.trim().to_owned();
        return match word {
            "in" => Some(LabelTerm::In(key, values)),
            "notin" => Some(LabelTerm::NotIn(key, values)),
            _ => None,
        };
    }
    if let Some((key, equal, value)) = operator(term) {
        let (key, values) = (key.trim().to_owned(), vec![value.trim().to_owned()]);
        return Some(match equal {
            true => LabelTerm::In(key, values),
            false => LabelTerm::NotIn(key, values),
        });
    }
    if term.contains(char::is_whitespace) {
        return None;
    }
    Some(match term.strip_prefix('!') {
        Some(key) => LabelTerm::Absent(key.to_owned()),
        None => LabelTerm::Exists(term.to_owned()),
    })
}

/// Splits a term at its operator: `a=b`, `a==b` (equal) or `a!=b` (not equal).
fn operator(term: &str) -> Option<(&str, bool, &str)> {
    let (left, right) = term.split_once('=')?;
    if let Some(left) = left.strip_suffix('!') {
        return Some((left, false, right));
    }
    Some((left, true, right.strip_prefix('=').unwrap_or(right)))
}

fn split_outside_parentheses(text: &str) -> Vec<&str> {
    let mut parts = Vec::new();
    let (mut start, mut depth) = (0, 0usize);
    for (at, character) in text.char_indices() {
        match character {
            '(' => depth += 1,
            ')' => depth = depth.saturating_sub(1),
            ',' if depth == 0 => {
                parts.push(&text[start..at]);
                start = at + 1;
            }
            _ => {}
        }
    }
    parts.push(&text[start..]);
    parts
}
