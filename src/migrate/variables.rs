//! The environment of a container, as far as the manifest tells it, and `$(NAME)` in its arguments.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use super::manifest::{ManifestObject, maps, string};

/// Stand-ins for what only the cluster knows. The address is one for documentation (RFC 5737).
const SAMPLE_NODE: &str = "node-1";
const SAMPLE_ADDRESS: &str = "192.0.2.1";

/// What is known of a variable.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Variable {
    /// The text that it has, or one that it could have.
    Text(String),
    /// It is defined, by something that the manifest does not hold.
    Elsewhere,
}

/// The variables of a container.
#[derive(Clone, Debug, Default)]
pub(super) struct Variables {
    known: BTreeMap<String, Variable>,
}

/// A text in which the variables are filled in.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Expanded {
    Text(String),
    /// The value of this variable is not in the manifest.
    Elsewhere(String),
}

impl Variables {
    /// Reads a list of variables in its order: a variable may use those before it.
    pub(super) fn of<'a>(env: impl IntoIterator<Item = &'a Map<String, Value>>, objects: &[ManifestObject]) -> Self {
        let mut variables = Self::default();
        for entry in env {
            let Some(name) = string(entry, "name") else { continue };
            let variable = match entry.get("valueFrom").and_then(Value::as_object) {
                Some(source) => from(source, objects),
                None => match variables.expand(string(entry, "value").unwrap_or_default()) {
                    Expanded::Text(text) => Variable::Text(text),
                    Expanded::Elsewhere(_) => Variable::Elsewhere,
                },
            };
            variables.known.insert(name.to_owned(), variable);
        }
        variables
    }

    /// The text of a variable, if it is known.
    pub(super) fn get(&self, name: &str) -> Option<String> {
        match self.known.get(name) {
            Some(Variable::Text(text)) => Some(text.clone()),
            _ => None,
        }
    }

    /// Fills in variables as the kubelet does: `$(NAME)`; `$$` is a dollar sign; what is not defined stays as it is (Kubernetes
    /// documentation, "Define Dependent Environment Variables").
    pub(super) fn expand(&self, text: &str) -> Expanded {
        let (mut out, mut rest) = (String::new(), text);
        while let Some((before, after)) = rest.split_once('$') {
            out.push_str(before);
            if let Some(after) = after.strip_prefix('$') {
                out.push('$');
                rest = after;
            } else if let Some((name, after)) = reference(after) {
                match self.known.get(name) {
                    Some(Variable::Text(text)) => out.push_str(text),
                    Some(Variable::Elsewhere) => return Expanded::Elsewhere(name.to_owned()),
                    None => out.push_str(&format!("$({name})")),
                }
                rest = after;
            } else {
                out.push('$');
                rest = after;
            }
        }
        out.push_str(rest);
        Expanded::Text(out)
    }
}

/// The variables that a text names and that are not escaped.
pub(super) fn references(text: &str) -> Vec<String> {
    let (mut found, mut rest) = (Vec::new(), text);
    while let Some((_, after)) = rest.split_once('$') {
        rest = after;
        if let Some(after) = after.strip_prefix('$') {
            rest = after;
        } else if let Some((name, after)) = reference(after) {
            found.push(name.to_owned());
            rest = after;
        }
    }
    found
}

fn reference(after_dollar: &str) -> Option<(&str, &str)> {
    let (name, after) = after_dollar.strip_prefix('(')?.split_once(')')?;
    let is_name = !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-' | b'.'));
    is_name.then_some((name, after))
}

fn from(source: &Map<String, Value>, objects: &[ManifestObject]) -> Variable {
    let of = |key: &str, field: &str| source.get(key).and_then(Value::as_object).and_then(|source| string(source, field));
    if let Some(path) = of("fieldRef", "fieldPath") {
        return match path {
            "spec.nodeName" => Variable::Text(SAMPLE_NODE.to_owned()),
            "status.hostIP" | "status.podIP" => Variable::Text(SAMPLE_ADDRESS.to_owned()),
            _ => Variable::Elsewhere,
        };
    }
    let (Some(name), Some(key)) = (of("configMapKeyRef", "name"), of("configMapKeyRef", "key")) else { return Variable::Elsewhere };
    let mut maps = objects.iter().filter(|object| object.kind() == "ConfigMap" && object.name() == name);
    let text = maps.next().and_then(|object| object.get("data")?.get(key)?.as_str());
    match text {
        // Of two, it is not known which is meant.
        Some(text) if maps.next().is_none() => Variable::Text(text.to_owned()),
        _ => Variable::Elsewhere,
    }
}

/// The variables of a container.
pub(super) fn entries(container: &Map<String, Value>) -> Vec<Map<String, Value>> {
    maps(container, "env").cloned().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variables_are_filled_in_as_the_kubelet_does() {
        let env = serde_json::json!([
            {"name": "A", "value": "a"},
            {"name": "B", "value": "$(A)b"},
            {"name": "NODE", "valueFrom": {"fieldRef": {"fieldPath": "spec.nodeName"}}},
            {"name": "SECRET", "valueFrom": {"secretKeyRef": {"name": "s", "key": "k"}}},
        ]);
        let variables = Variables::of(env.as_array().into_iter().flatten().filter_map(Value::as_object), &[]);
        for (text, wanted) in [("$(B)$(NODE)", "abnode-1"), ("$$(A)", "$(A)"), ("$(NONE)", "$(NONE)"), ("$A $", "$A $"), ("$(A", "$(A")] {
            assert_eq!(variables.expand(text), Expanded::Text(wanted.to_owned()), "{text}");
        }
        assert_eq!(variables.expand("x$(SECRET)"), Expanded::Elsewhere("SECRET".to_owned()));
        assert_eq!(references("$(A)$$(B)$(C)"), ["A", "C"]);
    }
}
