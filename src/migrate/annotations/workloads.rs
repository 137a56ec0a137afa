//! The workloads of a cluster: objects that create pods, and pods without an owner.

use std::collections::BTreeSet;

use serde_json::{Map, Value};

use crate::migrate::manifest::{ManifestObject, maps, string};
use crate::role::MAX_ARN_LENGTH;
use crate::text::{is_object_name, quoted};

/// The annotation that names a role, of pods and service accounts.
pub(super) const ROLE: &str = "iam.amazonaws.com/role";
/// The name of the account of pods that name none.
pub(super) const DEFAULT: &str = "default";
/// Annotations of pods that service accounts do not have.
const STAYING: &[&str] = &["iam.amazonaws.com/external-id", "iam.amazonaws.com/session-name"];
/// The annotation of the API's copy of a static pod.
const MIRROR: &str = "kubernetes.io/config.mirror";

/// How the service account of a workload can be changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Change {
    /// By `kubectl patch` with this word for its kind.
    Patch(&'static str),
    /// It cannot: the object must be created again.
    Recreate,
    /// In an object that is not in the input.
    Owner,
}

/// A workload, described by its pods.
#[derive(Debug)]
pub(super) struct Workload<'a> {
    pub kind: &'a str,
    pub namespace: &'a str,
    pub name: &'a str,
    pub account: &'a str,
    /// The annotation of its pods.
    pub role: Option<&'a str>,
    pub host_network: bool,
    pub change: Change,
    annotations: Option<&'a Map<String, Value>>,
}

impl Workload<'_> {
    pub(super) fn title(&self) -> String {
        format!("{} {}/{}", self.kind, self.namespace, self.name)
    }

    /// Annotations of its pods that have no place on a service account.
    pub(super) fn staying(&self) -> impl Iterator<Item = &'static str> {
        STAYING.iter().copied().filter(|key| self.annotations.is_some_and(|annotations| annotations.contains_key(*key)))
    }

    /// The command that sets the account. Every name in it is an object's name, which needs no quotes.
    pub(super) fn command(&self, account: &str) -> String {
        let Change::Patch(word) = self.change else { return String::new() };
        let spec = format!(r#"{{"template":{{"spec":{{"serviceAccountName":"{account}"}}}}}}"#);
        let spec = if word == "cronjob" { format!(r#"{{"jobTemplate":{{"spec":{spec}}}}}"#) } else { spec };
        format!("kubectl patch {word} {} --namespace={} --type=merge --patch='{{\"spec\":{spec}}}'", self.name, self.namespace)
    }
}

/// Returns the text of a role annotation, if it can be a role.
pub(super) fn role(value: Option<&Value>) -> Result<Option<&str>, ()> {
    match value {
        None => Ok(None),
        Some(Value::String(text)) if is_role(text) => Ok(Some(text)),
        Some(_) => Err(()),
    }
}

fn is_role(text: &str) -> bool {
    !text.is_empty() && text.len() <= MAX_ARN_LENGTH && !text.contains(|c: char| c.is_control() || c.is_whitespace())
}

/// Returns the namespace of an object. In the output of kubectl, only objects of the default namespace may lack it.
pub(super) fn namespace(object: &ManifestObject) -> &str {
    object.namespace().unwrap_or(DEFAULT)
}

/// Returns the workloads, and one for all pods of an owner that is not in the input.
pub(super) fn of<'a>(objects: &'a [ManifestObject], warnings: &mut Vec<String>) -> Vec<Workload<'a>> {
    let known: BTreeSet<_> = objects.iter().map(|object| (object.kind(), namespace(object), object.name())).collect();
    let mut seen = BTreeSet::new();
    let mut found = Vec::new();
    for object in objects {
        let Some(change) = change(object.kind()) else { continue };
        let (metadata, spec) = pod(object);
        let annotations = metadata.and_then(|metadata| metadata.get("annotations")).and_then(Value::as_object);
        let Some(spec) = spec else { continue };
        let owner = owner(object);
        let (kind, name, change) = match owner {
            Some(owner) if is_known(&known, namespace(object), owner) => continue,
            Some((kind, name)) => (kind, name, Change::Owner),
            None => (object.kind(), object.name(), change),
        };
        let is_static = annotations.is_some_and(|annotations| annotations.contains_key(MIRROR));
        let role = role(annotations.and_then(|annotations| annotations.get(ROLE)));
        let title = || quoted(&format!("{kind} {}/{name}", namespace(object)));
        if is_static {
            if role != Ok(None) {
                warnings.push(format!("{} is a static pod, which has no service account: it is skipped", title()));
            }
            continue;
        }
        let account = string(spec, "serviceAccountName").or_else(|| string(spec, "serviceAccount")).filter(|name| !name.is_empty());
        let account = account.unwrap_or(DEFAULT);
        if ![name, namespace(object), account].into_iter().all(is_object_name) || !kind.chars().all(|c| c.is_ascii_alphanumeric()) {
            warnings.push(format!("{} has a name that Kubernetes does not allow: it is skipped", title()));
            continue;
        }
        // A pod with a malformed annotation is refused, and must not get a role from its account.
        let role = role.unwrap_or_else(|()| {
            warnings.push(format!("{} has a malformed role annotation; it counts as a workload without a role", title()));
            None
        });
        if !seen.insert((kind, namespace(object), name, account, role)) {
            continue;
        }
        found.push(Workload {
            kind,
            namespace: namespace(object),
            name,
            account,
            role,
            host_network: spec.get("hostNetwork").and_then(Value::as_bool).unwrap_or(false),
            change,
            annotations,
        });
    }
    found
}

/// How objects of a kind can be changed; `None` for those that are no workloads.
fn change(kind: &str) -> Option<Change> {
    Some(match kind {
        "Deployment" => Change::Patch("deployment"),
        "StatefulSet" => Change::Patch("statefulset"),
        "DaemonSet" => Change::Patch("daemonset"),
        "ReplicaSet" => Change::Patch("replicaset"),
        "ReplicationController" => Change::Patch("replicationcontroller"),
        "CronJob" => Change::Patch("cronjob"),
        "Job" | "Pod" => Change::Recreate,
        _ => return None,
    })
}

/// The metadata and the spec of an object's pods.
fn pod(object: &ManifestObject) -> (Option<&Value>, Option<&Map<String, Value>>) {
    let template = match object.kind() {
        "Pod" => return (object.get("metadata"), object.get("spec").and_then(Value::as_object)),
        "CronJob" => object.spec("jobTemplate").and_then(|job| job.get("spec")).and_then(|spec| spec.get("template")),
        _ => object.spec("template"),
    };
    let field = |key| template.and_then(|template| template.get(key));
    (field("metadata"), field("spec").and_then(Value::as_object))
}

/// The kind and name of the object that controls another one. A node owns its static pods, but creates no others.
fn owner(object: &ManifestObject) -> Option<(&str, &str)> {
    let owners = object.get("metadata")?.as_object()?;
    let controller = maps(owners, "ownerReferences").find(|owner| owner.get("controller").and_then(Value::as_bool) == Some(true))?;
    let (kind, name) = (string(controller, "kind")?, string(controller, "name")?);
    (kind != "Node").then_some((kind, name))
}

/// Whether the owner, or the Deployment of a ReplicaSet, is in the input.
fn is_known(known: &BTreeSet<(&str, &str, &str)>, namespace: &str, (kind, name): (&str, &str)) -> bool {
    let deployment = || name.rsplit_once('-').is_some_and(|(deployment, _)| known.contains(&("Deployment", namespace, deployment)));
    (change(kind).is_some() && known.contains(&(kind, namespace, name))) || (kind == "ReplicaSet" && deployment())
}
