//! The discovery documents of the server.

use serde_json::{Value, json};

use super::objects::Resource;

pub(super) fn version() -> Value {
    json!({
        "major": "1",
        "minor": "33",
        "emulationMajor": "1",
        "emulationMinor": "33",
        "minCompatibilityMajor": "1",
        "minCompatibilityMinor": "32",
        "gitVersion": "v1.33.4",
        "gitCommit": "74cdb4273e7a0b4d6ab1a9e4dbcbf1c4d0f1f1b5",
        "gitTreeState": "clean",
        "buildDate": "2025-08-13T14:34:20Z",
        "goVersion": "go1.24.5",
        "compiler": "gc",
        "platform": "linux/amd64",
    })
}

/// Returns the discovery document at a path, given in parts.
pub(super) fn document(path: &[&str]) -> Option<Value> {
    Some(match path {
        ["api"] => json!({
            "kind": "APIVersions",
            "versions": ["v1"],
            "serverAddressByClientCIDRs": [{ "clientCIDR": "0.0.0.0/0", "serverAddress": "10.0.0.1:6443" }],
        }),
        ["apis"] => json!({
            "kind": "APIGroupList",
            "apiVersion": "v1",
            "groups": [group("events.k8s.io"), group("authorization.k8s.io")],
        }),
        ["apis", name @ ("events.k8s.io" | "authorization.k8s.io")] => {
            let mut group = group(name);
            group["kind"] = "APIGroup".into();
            group["apiVersion"] = "v1".into();
            group
        }
        ["api", "v1"] => {
            let mut resources: Vec<Value> = Resource::ALL
                .into_iter()
                .map(|it| {
                    let verbs = ["get", "list", "patch", "watch"];
                    resource(it.plural(), it.kind(), it.is_namespaced(), &verbs)
                })
                .collect();
            resources.push(resource("events", "Event", true, &["create", "patch"]));
            resource_list("v1", resources)
        }
        ["apis", "events.k8s.io", "v1"] => resource_list("events.k8s.io/v1", vec![resource("events", "Event", true, &["create", "patch"])]),
        ["apis", "authorization.k8s.io", "v1"] => resource_list(
            "authorization.k8s.io/v1",
            vec![resource("selfsubjectaccessreviews", "SelfSubjectAccessReview", false, &["create"])],
        ),
        _ => return None,
    })
}

fn group(name: &str) -> Value {
    let version = json!({ "groupVersion": format!("{name}/v1"), "version": "v1" });
    json!({ "name": name, "versions": [version.clone()], "preferredVersion": version })
}

fn resource_list(group_version: &str, resources: Vec<Value>) -> Value {
    json!({
        "kind": "APIResourceList",
        "apiVersion": "v1",
        "groupVersion": group_version,
        "resources": resources,
    })
}

fn resource(plural: &str, kind: &str, namespaced: bool, verbs: &[&str]) -> Value {
    json!({
        "name": plural,
        "singularName": kind.to_lowercase(),
        "namespaced": namespaced,
        "kind": kind,
        "verbs": verbs,
    })
}
