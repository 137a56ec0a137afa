//! Validates the objects of `daemonset/` and of the chart against the schemas of Kubernetes and of the projects that define them.
//!
//! `scripts/kubernetes-schemas` writes the schemas. Like an API server with strict field validation, the check refuses unknown fields.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use rolegate_lab::node::programs_or_skip;
use serde_json::Value;

use super::chart::goldens;
use super::manifests::{components, render};

/// The schemas of one Kubernetes minor, or of other projects.
struct Schemas {
    name: String,
    document: Value,
}

impl Schemas {
    fn read(path: &Path) -> Self {
        let document = serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap();
        Self { name: path.file_stem().unwrap().to_str().unwrap().to_owned(), document }
    }

    fn of_kind(&self, object: &Value) -> Option<&Value> {
        let kind = format!("{}/{}", object["apiVersion"].as_str().unwrap(), object["kind"].as_str().unwrap());
        self.document["objects"].get(&kind)
    }

    /// Returns what is wrong with a value, each time with the path of the field.
    fn errors(&self, schema: &Value, value: &Value, path: &str) -> Vec<String> {
        if let Some(reference) = schema["$ref"].as_str() {
            // A quantity may be written as a number.
            let is_quantity = reference.ends_with(".Quantity") && value.is_number();
            let referred = self.document["definitions"].get(reference).unwrap_or_else(|| panic!("{reference} is missing"));
            return if is_quantity { Vec::new() } else { self.errors(referred, value, path) };
        }
        let is_number_or_text = schema["format"] == "int-or-string" || schema["x-kubernetes-int-or-string"] == true;
        if is_number_or_text && (value.is_number() || value.is_string()) {
            return Vec::new();
        }
        let mut errors = Vec::new();
        let has_type = match schema["type"].as_str() {
            Some("object") => value.is_object(),
            Some("array") => value.is_array(),
            Some("string") => value.is_string(),
            Some("boolean") => value.is_boolean(),
            Some("integer") => value.is_i64() || value.is_u64(),
            Some("number") => value.is_number(),
            Some(other) => panic!("{path}: the schema has the type {other}"),
            None => true,
        };
        if !has_type {
            errors.push(format!("{path}: not of type {}: {value}", schema["type"]));
        }
        if let Some(allowed) = schema["enum"].as_array()
            && !allowed.contains(value)
        {
            errors.push(format!("{path}: {value} is not one of {allowed:?}"));
        }
        if let (Some(pattern), Some(text)) = (schema["pattern"].as_str(), value.as_str())
            && !regex::Regex::new(pattern).unwrap().is_match(text)
        {
            errors.push(format!("{path}: {text} does not match {pattern}"));
        }
        for item in value.as_array().into_iter().flatten() {
            errors.extend(self.errors(&schema["items"], item, &format!("{path}[]")));
        }
        if let Some(fields) = value.as_object() {
            errors.extend(self.errors_of_fields(schema, fields, path));
        }
        errors
    }

    fn errors_of_fields(&self, schema: &Value, fields: &serde_json::Map<String, Value>, path: &str) -> Vec<String> {
        let missing = schema["required"].as_array().into_iter().flatten().filter(|name| !fields.contains_key(name.as_str().unwrap()));
        let mut errors: Vec<_> = missing.map(|name| format!("{path}: {name} is missing")).collect();
        // A schema that describes no fields allows all of them.
        let is_open = schema["x-kubernetes-preserve-unknown-fields"] == true
            || (schema.get("properties").is_none() && schema.get("additionalProperties").is_none());
        for (name, value) in fields {
            let path = format!("{path}.{name}");
            match schema["properties"].get(name).or_else(|| schema.get("additionalProperties").filter(|other| other.is_object())) {
                Some(of_field) => errors.extend(self.errors(of_field, value, &path)),
                None if is_open => {}
                None => errors.push(format!("{path}: no such field")),
            }
        }
        errors
    }
}

fn all_schemas() -> Vec<Schemas> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/schemas");
    let mut paths: Vec<PathBuf> = fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    paths.iter().map(|path| Schemas::read(path)).collect()
}

/// Checks objects against every Kubernetes minor that has their kind, and those of other projects.
fn assert_valid(what: &str, objects: &[Value], schemas: &[Schemas]) {
    assert!(!objects.is_empty(), "{what}: no objects");
    for object in objects {
        let known: Vec<_> = schemas.iter().filter_map(|of| Some((of, of.of_kind(object)?))).collect();
        assert!(!known.is_empty(), "{what}: no schema of {} {}: see scripts/kubernetes-schemas", object["apiVersion"], object["kind"]);
        // Kubernetes serves mutating admission policies as v1 since 1.36.
        let kind = object["kind"].as_str().unwrap();
        let is_of_kubernetes = known.iter().any(|(of, _)| of.name.starts_with("kubernetes-"));
        let expected = if !is_of_kubernetes {
            1
        } else if kind.starts_with("MutatingAdmission") {
            2
        } else {
            4
        };
        assert_eq!(known.len(), expected, "{what}: {kind}");
        for (of, schema) in known {
            let errors = of.errors(schema, object, kind);
            assert!(errors.is_empty(), "{what}, {}: {errors:#?}", of.name);
        }
    }
}

#[test]
fn the_schemas_are_those_of_four_minors() {
    let names: BTreeSet<String> = all_schemas().into_iter().map(|of| of.name).collect();
    let expected = ["kubernetes-1.34", "kubernetes-1.35", "kubernetes-1.36", "kubernetes-1.37", "others"];
    assert_eq!(names, expected.map(str::to_owned).into());
}

#[test]
fn the_objects_of_the_chart_are_valid() {
    let schemas = all_schemas();
    for (name, objects) in goldens() {
        assert_valid(&name, &objects, &schemas);
    }
}

#[test]
fn the_objects_of_the_manifests_are_valid() {
    if !programs_or_skip(&["kubectl"]) {
        return;
    }
    let schemas = all_schemas();
    assert_valid("base", &render(&[]), &schemas);
    for component in components() {
        assert_valid(&component, &render(&[&component]), &schemas);
    }
}

#[test]
fn the_check_finds_unknown_missing_and_wrong_fields() {
    let schemas = all_schemas();
    let newest = schemas.iter().find(|of| of.name == "kubernetes-1.37").unwrap();
    let (_, objects) = goldens().into_iter().find(|(name, _)| name == "default").unwrap();
    let daemon = objects.into_iter().find(|object| object["kind"] == "DaemonSet").unwrap();
    let errors = |change: &dyn Fn(&mut Value)| {
        let mut changed = daemon.clone();
        change(&mut changed);
        newest.errors(newest.of_kind(&changed).unwrap(), &changed, "DaemonSet")
    };
    assert_eq!(errors(&|_| {}), Vec::<String>::new());
    let unknown = errors(&|object| object["spec"]["template"]["spec"]["hostNetworks"] = true.into());
    assert_eq!(unknown, ["DaemonSet.spec.template.spec.hostNetworks: no such field"]);
    let missing = errors(&|object| drop(object["spec"].as_object_mut().unwrap().remove("selector")));
    assert_eq!(missing, ["DaemonSet.spec: \"selector\" is missing"]);
    let wrong = errors(&|object| object["spec"]["template"]["spec"]["hostNetwork"] = "true".into());
    assert_eq!(wrong, ["DaemonSet.spec.template.spec.hostNetwork: not of type \"boolean\": \"true\""]);
}
