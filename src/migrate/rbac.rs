//! The service account, and what it may read.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use super::daemon::OldDaemon;
use super::error::Project;
use super::manifest::{ManifestObject, filled, maps, string};
use super::workload::{NewNames, annotations};
use super::yaml::{MapBuilder, Noted, NotedDocument, YamlNode};
use crate::config::{Config, ServiceAccountRoles};
use crate::text;

/// Permissions of the old role that are named one by one in a comment.
const MAX_LISTED: usize = 12;

/// One permission.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Permission {
    group: String,
    resource: String,
    verb: String,
}

/// A rule of the new role.
struct NewRule {
    group: &'static str,
    resource: &'static str,
    verbs: &'static [&'static str],
    note: &'static str,
}

/// Returns what the new objects of a daemon are called. Where the manifest does not tell the namespace, the binding of the
/// service account may.
pub(super) fn names(old: &OldDaemon<'_>, objects: &[ManifestObject], warnings: &mut Vec<String>) -> NewNames {
    let (service_account, service_account_notes) = match old.service_account() {
        Some(name) => (name.to_owned(), Vec::new()),
        None => (
            old.object.name().to_owned(),
            vec!["changed: it was the namespace's default account, which every other pod there may have as well".to_owned()],
        ),
    };
    let bound = || {
        let subjects = objects.iter().filter(|object| object.kind() == "ClusterRoleBinding").flat_map(subjects);
        subjects.filter(|(name, _)| old.service_account() == Some(*name)).find_map(|(_, namespace)| namespace)
    };
    let (namespace, namespace_notes) = match old.object.namespace().or_else(bound) {
        Some(namespace) => (namespace.to_owned(), Vec::new()),
        None => {
            let note =
                format!("{} names no namespace; kube-system is assumed. Change it in every object if yours is another", old.object.title());
            warnings.push(note.clone());
            ("kube-system".to_owned(), vec![note])
        }
    };
    NewNames { namespace, namespace_notes, service_account, service_account_notes }
}

/// Returns the service account, the role and its binding.
pub(super) fn documents(
    project: Project,
    old: &OldDaemon<'_>,
    names: &NewNames,
    objects: &[ManifestObject],
    config: &Config,
    warnings: &mut Vec<String>,
) -> Vec<NotedDocument> {
    let reused = reused(names, objects);
    let fresh = || {
        let is_taken = |name: &str| {
            objects.iter().any(|object| matches!(object.kind(), "ClusterRole" | "ClusterRoleBinding") && object.name() == name)
        };
        let name = old.object.name().to_owned();
        if is_taken(&name) { format!("{name}-rolegate") } else { name }
    };
    let (role, binding) = reused.map_or_else(|| (fresh(), fresh()), |(role, binding)| (role.name().to_owned(), binding.name().to_owned()));
    let old_role = reused.map(|(role, _)| role);
    for other in objects.iter().filter(|object| matches!(object.kind(), "ClusterRoleBinding" | "RoleBinding")) {
        let is_kept = reused.is_some_and(|(_, kept)| std::ptr::eq(kept, other));
        if !is_kept && subjects(other).any(|(name, _)| name == names.service_account) {
            warnings.push(format!(
                "{} still gives rights to the service account, which rolegate does not need: delete it after the swap",
                other.title()
            ));
        }
    }
    vec![
        account(old, names, objects),
        cluster_role(project, &role, old_role, config),
        cluster_role_binding(&role, &binding, old_role.is_some(), names),
    ]
}

fn document(api_version: &str, kind: &str, metadata: MapBuilder) -> MapBuilder {
    let mut root = MapBuilder::default();
    root.put("apiVersion", api_version);
    root.put("kind", kind);
    root.put("metadata", metadata);
    root
}

fn account(old: &OldDaemon<'_>, names: &NewNames, objects: &[ManifestObject]) -> NotedDocument {
    let given = old.service_account().and_then(|account| {
        let is_its = |object: &&ManifestObject| {
            object.kind() == "ServiceAccount"
                && object.name() == account
                && object.namespace().is_none_or(|namespace| namespace == names.namespace)
        };
        objects.iter().find(is_its)
    });
    let mut metadata = MapBuilder::default();
    metadata.put("name", names.service_account.as_str());
    metadata.put("namespace", names.namespace.as_str());
    if let Some(given) = given {
        metadata.put_some("labels", filled(given.metadata("labels")));
        if let Some(annotations) = annotations(given.metadata("annotations")) {
            metadata.put("annotations", annotations);
        }
    }
    let mut root = document("v1", "ServiceAccount", metadata);
    if let Some(given) = given {
        root.put_some("imagePullSecrets", filled(given.get("imagePullSecrets")));
    }
    NotedDocument { notes: Vec::new(), root: root.build() }
}

fn rules(config: &Config) -> Vec<NewRule> {
    let rule = |group, resource, verbs, note| NewRule { group, resource, verbs, note };
    let mut rules = vec![
        rule("", "pods", &["list", "watch"], "the pods of its node, by a field selector"),
        rule("", "namespaces", &["list", "watch"], "the namespaces that those pods are in, with --namespace-restrictions"),
    ];
    if config.roles.service_accounts != ServiceAccountRoles::Off {
        rules.push(rule("", "serviceaccounts", &["list", "watch"], "--service-account-roles"));
    }
    if config.pods.startup_taint.is_some() {
        rules.push(rule("", "nodes", &["get", "patch"], "--startup-taint"));
    } else {
        rules.push(rule("", "nodes", &["get"], "its own node, once, where --host-ip does not give an IPv4 address"));
    }
    if config.pods.events {
        rules.push(rule("events.k8s.io", "events", &["create", "patch"], "Events on pods that get no credentials, for their owners"));
    }
    rules
}

fn cluster_role(project: Project, name: &str, old: Option<&ManifestObject>, config: &Config) -> NotedDocument {
    let rules = rules(config);
    let had = old.map(permissions).unwrap_or_default();
    let mut wanted = BTreeSet::new();
    let mut items = Vec::new();
    for rule in &rules {
        let of_rule = rule.verbs.iter().map(|verb| Permission {
            group: rule.group.to_owned(),
            resource: rule.resource.to_owned(),
            verb: (*verb).to_owned(),
        });
        let of_rule: Vec<Permission> = of_rule.collect();
        let is_new = !of_rule.iter().all(|permission| had.contains(permission));
        wanted.extend(of_rule);
        let mut verbs = rule.verbs.to_vec();
        let mut note = if is_new && old.is_some() { format!("added: {}", rule.note) } else { rule.note.to_owned() };
        let get = Permission { group: rule.group.to_owned(), resource: rule.resource.to_owned(), verb: "get".to_owned() };
        if had.contains(&get) && !verbs.contains(&"get") {
            verbs.insert(0, "get");
            note.push_str(&format!(". get: for {} on nodes that are not swapped yet; remove it afterwards", project.name()));
            wanted.insert(get);
        }
        let mut entry = MapBuilder::default();
        entry.put("apiGroups", json!([rule.group]));
        entry.put("resources", json!([rule.resource]));
        entry.put("verbs", json!(verbs));
        items.push(Noted { notes: vec![note], node: entry.build() });
    }
    let removed: Vec<String> = had
        .difference(&wanted)
        .map(|permission| format!("{} of {}", text::bounded(&permission.verb), text::bounded(&permission.resource)))
        .collect();
    let mut notes = Vec::new();
    if !removed.is_empty() {
        let more = removed.len().saturating_sub(MAX_LISTED);
        let listed = removed.into_iter().take(MAX_LISTED).collect::<Vec<_>>().join(", ");
        let more = if more > 0 { format!(" and {more} more") } else { String::new() };
        notes.push(format!(
            "removed, because rolegate does not use it: {listed}{more}. Going back to {} takes its own role again",
            project.name()
        ));
    }
    let mut metadata = MapBuilder::default();
    metadata.put("name", name);
    if let Some(labels) = old.and_then(|old| filled(old.metadata("labels"))) {
        metadata.put("labels", labels);
    }
    let mut root = document("rbac.authorization.k8s.io/v1", "ClusterRole", metadata);
    root.noted("rules", YamlNode::from(items), notes);
    NotedDocument { notes: Vec::new(), root: root.build() }
}

fn cluster_role_binding(role: &str, binding: &str, is_reused: bool, names: &NewNames) -> NotedDocument {
    let mut metadata = MapBuilder::default();
    metadata.put("name", binding);
    let mut root = document("rbac.authorization.k8s.io/v1", "ClusterRoleBinding", metadata);
    let notes = is_reused.then(|| "unchanged: the role of a binding cannot change".to_owned());
    root.noted(
        "roleRef",
        json!({"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": role}),
        notes.into_iter().collect(),
    );
    root.put("subjects", json!([{"kind": "ServiceAccount", "name": names.service_account, "namespace": names.namespace}]));
    NotedDocument { notes: Vec::new(), root: root.build() }
}

/// The role and the binding that can be written over: they are in the manifest, belong to this service account alone, and are
/// none of the cluster's own.
fn reused<'a>(names: &NewNames, objects: &'a [ManifestObject]) -> Option<(&'a ManifestObject, &'a ManifestObject)> {
    let is_its = |binding: &&ManifestObject| {
        let mut all = subjects(binding);
        let only = all.next();
        all.next().is_none()
            && only.is_some_and(|(name, namespace)| {
                name == names.service_account && namespace.is_none_or(|namespace| namespace == names.namespace)
            })
    };
    let binding = objects.iter().filter(|object| object.kind() == "ClusterRoleBinding").find(is_its)?;
    let role_of = |binding: &'a ManifestObject| binding.get("roleRef").and_then(Value::as_object).and_then(|role| string(role, "name"));
    let name = role_of(binding)?;
    let is_of_cluster =
        matches!(name, "cluster-admin" | "admin" | "edit" | "view") || name.starts_with("system:") || binding.name().starts_with("system:");
    let is_shared = objects
        .iter()
        .filter(|object| matches!(object.kind(), "ClusterRoleBinding" | "RoleBinding"))
        .any(|other| !std::ptr::eq(other, binding) && role_of(other) == Some(name));
    let role = objects.iter().find(|object| object.kind() == "ClusterRole" && object.name() == name)?;
    (!is_of_cluster && !is_shared).then_some((role, binding))
}

/// Names and namespaces of a binding's subjects. One that is no service account has an empty name.
fn subjects(binding: &ManifestObject) -> impl Iterator<Item = (&str, Option<&str>)> {
    let subjects = binding.get("subjects").and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_object);
    subjects.map(|subject| {
        let is_account = string(subject, "kind") == Some("ServiceAccount");
        (
            if is_account { string(subject, "name").unwrap_or_default() } else { "" },
            string(subject, "namespace").filter(|name| !name.is_empty()),
        )
    })
}

fn permissions(role: &ManifestObject) -> BTreeSet<Permission> {
    let texts = |rule: &serde_json::Map<String, Value>, key: &str| -> Vec<String> {
        rule.get(key).and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str).map(str::to_owned).collect()
    };
    let mut found = BTreeSet::new();
    let Some(rules) = role.get("rules") else { return found };
    let holder = serde_json::Map::from_iter([("rules".to_owned(), rules.clone())]);
    for rule in maps(&holder, "rules") {
        for group in texts(rule, "apiGroups") {
            for resource in texts(rule, "resources") {
                for verb in texts(rule, "verbs") {
                    found.insert(Permission { group: group.clone(), resource: resource.clone(), verb });
                }
            }
        }
    }
    found
}
