//! The workloads of a cluster: objects that create pods, and pods without an owner.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Value};

use crate::migrate::manifest::{ManifestObject, maps, string};
use crate::role::MAX_ARN_LENGTH;
use crate::text::{is_object_name, quoted};

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

/// The longest chain of owners that is followed: pod, ReplicaSet, Deployment, and one more.
const MAX_OWNERS: usize = 4;

/// Returns the workloads, and one for all pods of an owner that is not in the input. `role_key` is the key of role annotations.
pub(super) fn of<'a>(objects: &'a [ManifestObject], role_key: &str, warnings: &mut Vec<String>) -> Vec<Workload<'a>> {
    let owners = Owners::of(objects);
    let of_templates = owners.templates(role_key);
    let (mut seen, mut found, mut unknown) = (BTreeSet::new(), Vec::new(), 0_usize);
    for object in objects {
        let Some(change) = change(object.kind()) else { continue };
        let Some(PodOf { annotations, spec, account, role }) = PodOf::of(object, role_key) else { continue };
        let (kind, name, change) = match owners.root(object) {
            Root::Itself => (object.kind(), object.name(), change),
            Root::Known(owner) => {
                // An old ReplicaSet keeps the template of its time. Pods count, whatever their owner says now.
                let is_live = object.kind() == "Pod" && !is_finished(object);
                if !is_live || of_templates.get(&owner).is_none_or(|template| *template == (account, role.ok().flatten())) {
                    continue;
                }
                warnings.push(format!(
                    "pods of {} do not have the service account and the role of its pod template: both are listed",
                    quoted(&format!("{} {}/{}", owner.0, owner.1, owner.2))
                ));
                (owner.0, owner.2, Change::Owner)
            }
            Root::Missing((kind, name)) => {
                unknown += usize::from(kind == "ReplicaSet");
                (kind, name, Change::Owner)
            }
        };
        let is_static = annotations.is_some_and(|annotations| annotations.contains_key(MIRROR));
        let title = || quoted(&format!("{kind} {}/{name}", namespace(object)));
        if is_static {
            if role != Ok(None) {
                warnings.push(format!("{} is a static pod, which has no service account: it is skipped", title()));
            }
            continue;
        }
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
    if unknown > 0 {
        warnings.push(format!(
            "{unknown} pods belong to ReplicaSets that are not in the input, so their Deployments are not known; add \"rs\" to the kubectl \
             command"
        ));
    }
    // One warning for all pods of a workload.
    let mut told = BTreeSet::new();
    warnings.retain(|warning| told.insert(warning.clone()));
    found
}

/// What an object says about its pods.
struct PodOf<'a> {
    annotations: Option<&'a Map<String, Value>>,
    spec: &'a Map<String, Value>,
    account: &'a str,
    role: Result<Option<&'a str>, ()>,
}

impl<'a> PodOf<'a> {
    fn of(object: &'a ManifestObject, role_key: &str) -> Option<Self> {
        let (metadata, spec) = pod(object);
        let annotations = metadata.and_then(|metadata| metadata.get("annotations")).and_then(Value::as_object);
        let spec = spec?;
        let account = string(spec, "serviceAccountName").or_else(|| string(spec, "serviceAccount")).filter(|name| !name.is_empty());
        let role = role(annotations.and_then(|annotations| annotations.get(role_key)));
        Some(Self { annotations, spec, account: account.unwrap_or(DEFAULT), role })
    }
}

/// Whether all containers of a pod have ended. It requests no credentials any more.
fn is_finished(pod: &ManifestObject) -> bool {
    let phase = pod.get("status").and_then(|status| status.get("phase")).and_then(Value::as_str);
    matches!(phase, Some("Succeeded" | "Failed"))
}

/// The kind, namespace and name of an object.
type Key<'a> = (&'a str, &'a str, &'a str);

/// The object at the end of a chain of owners.
enum Root<'a> {
    /// The object has no owner.
    Itself,
    /// A workload in the input.
    Known(Key<'a>),
    /// The kind and name of an owner that is not in the input, or is no workload that this command knows.
    Missing((&'a str, &'a str)),
}

/// The objects of the input that create pods.
struct Owners<'a>(BTreeMap<Key<'a>, &'a ManifestObject>);

impl<'a> Owners<'a> {
    fn of(objects: &'a [ManifestObject]) -> Self {
        let creators = objects.iter().filter(|object| change(object.kind()).is_some() && object.kind() != "Pod");
        Self(creators.map(|object| ((object.kind(), namespace(object), object.name()), object)).collect())
    }

    /// The service account and the role of the pods that each object creates.
    fn templates(&self, role_key: &str) -> BTreeMap<Key<'a>, (&'a str, Option<&'a str>)> {
        let of = |object| PodOf::of(object, role_key).map(|pod| (pod.account, pod.role.ok().flatten()));
        self.0.iter().filter_map(|(key, object)| Some((*key, of(object)?))).collect()
    }

    /// Follows the owners of an object, by the references that each object has. Names tell nothing: a ReplicaSet `web-x` may belong to a
    /// Deployment, to something else, or to nobody.
    fn root(&self, object: &'a ManifestObject) -> Root<'a> {
        let mut root = Root::Itself;
        let mut object = object;
        for _ in 0..MAX_OWNERS {
            let Some(Owner { group, kind, name }) = owner(object) else { break };
            let key = (kind, namespace(object), name);
            // Another API group may have a kind of the same name.
            match self.0.get(&key).filter(|known| group.is_none_or(|group| self::group(known).is_none_or(|own| own == group))) {
                Some(known) => (root, object) = (Root::Known(key), known),
                None => return Root::Missing((kind, name)),
            }
        }
        root
    }
}

/// The object that controls another one.
struct Owner<'a> {
    /// The API group, if the reference names one.
    group: Option<&'a str>,
    kind: &'a str,
    name: &'a str,
}

fn group(object: &ManifestObject) -> Option<&str> {
    object.get("apiVersion").and_then(Value::as_str).map(group_of)
}

fn group_of(version: &str) -> &str {
    version.split_once('/').map_or("", |(group, _)| group)
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

/// The object that controls another one. A node owns its static pods, but creates no others.
fn owner(object: &ManifestObject) -> Option<Owner<'_>> {
    let owners = object.get("metadata")?.as_object()?;
    let controller = maps(owners, "ownerReferences").find(|owner| owner.get("controller").and_then(Value::as_bool) == Some(true))?;
    let (kind, name) = (string(controller, "kind")?, string(controller, "name")?);
    (kind != "Node").then(|| Owner { group: string(controller, "apiVersion").map(group_of), kind, name })
}
