//! The new DaemonSet: what the operator chose for the old one stays, what rolegate needs comes, and what differs has a comment.

use serde_json::{Map, Value, json};

use super::container;
use super::daemon::OldDaemon;
use super::error::{MigrateError, Project};
use super::manifest::{filled, string};
use super::translation::Translation;
use super::volumes;
use super::yaml::{MapBuilder, Noted, NotedDocument, YamlNode};
use crate::config::Config;
use crate::text;

/// Fields of a pod that stay as they are.
const KEPT: &[&str] = &[
    "imagePullSecrets",
    "affinity",
    "dnsConfig",
    "hostAliases",
    "schedulerName",
    "runtimeClassName",
    "topologySpreadConstraints",
    "overhead",
];
/// Fields of a pod that are written anew.
const WRITTEN: &[&str] = &[
    "serviceAccountName",
    "serviceAccount",
    "automountServiceAccountToken",
    "enableServiceLinks",
    "hostNetwork",
    "dnsPolicy",
    "priorityClassName",
    "tolerations",
    "nodeSelector",
    "terminationGracePeriodSeconds",
    "containers",
    "volumes",
    // These have the values that they would have anyway.
    "restartPolicy",
    "priority",
    "preemptionPolicy",
];
/// Annotations that tools write for themselves.
const OF_TOOLS: &[&str] = &["kubectl.kubernetes.io/last-applied-configuration", "deprecated.daemonset.template.generation"];
/// Requests in flight end within this time.
const DRAIN_SECONDS: u64 = 10;

/// What the new objects are called.
#[derive(Clone, Debug)]
pub(super) struct NewNames {
    pub namespace: String,
    pub namespace_notes: Vec<String>,
    pub service_account: String,
    pub service_account_notes: Vec<String>,
}

/// Returns the DaemonSet.
pub(super) fn daemon_set(
    project: Project,
    old: &OldDaemon<'_>,
    names: &NewNames,
    new: &mut Translation,
    config: &Config,
) -> Result<NotedDocument, MigrateError> {
    let template_labels = labels(old.object.template("labels"));
    let selector = selector(old, &template_labels);
    let Some(labels) = covering(&selector, template_labels) else { return Err(MigrateError::Selector(old.object.title())) };
    let mut pod_metadata = MapBuilder::default();
    pod_metadata.put("labels", labels);
    if let Some(annotations) = pod_annotations(old, config) {
        pod_metadata.put("annotations", annotations);
    }
    let mut template = MapBuilder::default();
    template.put("metadata", pod_metadata);
    template.put("spec", pod(old, names, new, config));
    let mut spec = MapBuilder::default();
    spec.noted("selector", selector, vec!["unchanged, so that the DaemonSet can be updated in place: a selector cannot change".to_owned()]);
    let (strategy, notes) = update_strategy(old);
    spec.noted("updateStrategy", strategy, notes);
    spec.put_some("minReadySeconds", old.object.spec("minReadySeconds").cloned());
    spec.put_some("revisionHistoryLimit", old.object.spec("revisionHistoryLimit").cloned());
    spec.put("template", template);
    let mut root = MapBuilder::default();
    root.put("apiVersion", "apps/v1");
    root.put("kind", "DaemonSet");
    root.put("metadata", metadata(project, old, names));
    root.put("spec", spec);
    Ok(NotedDocument { notes: Vec::new(), root: root.build() })
}

fn metadata(project: Project, old: &OldDaemon<'_>, names: &NewNames) -> MapBuilder {
    let mut metadata = MapBuilder::default();
    metadata.noted("name", old.object.name(), vec![format!("{}'s name, so that rolegate takes its place on every node", project.name())]);
    metadata.noted("namespace", names.namespace.as_str(), names.namespace_notes.clone());
    if let Some(labels) = filled(old.object.metadata("labels")) {
        let is_helm =
            labels.get("app.kubernetes.io/managed-by").or_else(|| labels.get("heritage")).is_some_and(|by| by == "Helm" || by == "Tiller");
        let notes = if is_helm {
            vec![
                "Helm installed this object: the next \"helm upgrade\" of that release would bring the old daemon back, and \"helm uninstall\" \
                 would delete this one"
                    .to_owned(),
            ]
        } else {
            Vec::new()
        };
        metadata.noted("labels", labels, notes);
    }
    if let Some(annotations) = annotations(old.object.metadata("annotations")) {
        metadata.put("annotations", annotations);
    }
    metadata
}

/// The annotations that are an operator's.
pub(super) fn annotations(value: Option<&Value>) -> Option<Map<String, Value>> {
    let mut annotations = value?.as_object()?.clone();
    annotations.retain(|key, _| !OF_TOOLS.contains(&key.as_str()));
    (!annotations.is_empty()).then_some(annotations)
}

/// The annotations of the pods: Prometheus is told the port that the metrics are on now.
fn pod_annotations(old: &OldDaemon<'_>, config: &Config) -> Option<YamlNode> {
    const PORT: &str = "prometheus.io/port";
    let annotations = annotations(old.object.template("annotations"))?;
    let mut new = MapBuilder::default();
    for (key, value) in annotations {
        let port = config.admin.port.to_string();
        if key == PORT && value != port.as_str() {
            new.noted(PORT, port.as_str(), vec!["changed: the metrics port".to_owned()]);
        } else {
            new.put(&key, value);
        }
    }
    Some(new.build())
}

fn labels(value: Option<&Value>) -> Map<String, Value> {
    value.and_then(Value::as_object).cloned().unwrap_or_default()
}

/// The selector; of a DaemonSet without one, as `extensions/v1beta1` allowed, what the API server made of it.
fn selector(old: &OldDaemon<'_>, template_labels: &Map<String, Value>) -> Value {
    filled(old.object.spec("selector")).unwrap_or_else(|| json!({"matchLabels": template_labels}))
}

/// The labels of the pods, if the selector selects them.
fn covering(selector: &Value, labels: Map<String, Value>) -> Option<Map<String, Value>> {
    let wanted = selector.get("matchLabels").and_then(Value::as_object);
    let is_covered = wanted.is_none_or(|wanted| wanted.iter().all(|(key, value)| labels.get(key) == Some(value)));
    (is_covered && !labels.is_empty()).then_some(labels)
}

fn update_strategy(old: &OldDaemon<'_>) -> (Value, Vec<String>) {
    let given = if old.object.kind() == "DaemonSet" { filled(old.object.spec("updateStrategy")) } else { None };
    let Some(mut strategy) = given else {
        let notes = vec!["added: Kubernetes' default; OnDelete swaps a node when you delete its pod".to_owned()];
        return (json!({"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": 1}}), notes);
    };
    let rolling = strategy.get_mut("rollingUpdate").and_then(Value::as_object_mut);
    let surge = rolling.and_then(|rolling| rolling.remove("maxSurge")).filter(|surge| *surge != json!(0) && *surge != json!("0%"));
    if surge.is_none() {
        return (strategy, Vec::new());
    }
    if let Some(rolling) = strategy.get_mut("rollingUpdate").and_then(Value::as_object_mut) {
        rolling.insert("maxUnavailable".to_owned(), json!(1));
    }
    (
        strategy,
        vec![
            "maxSurge dropped: two daemons on a node need the arguments and probes of daemonset/daemonset.yaml (docs/install.md, \"Rolling updates\")"
                .to_owned(),
        ],
    )
}

fn pod(old: &OldDaemon<'_>, names: &NewNames, new: &mut Translation, config: &Config) -> MapBuilder {
    let mut pod = MapBuilder::default();
    pod.noted("serviceAccountName", names.service_account.as_str(), names.service_account_notes.clone());
    pod.noted(
        "enableServiceLinks",
        json!(false),
        vec!["a Service named rolegate-... would set variables that look like rolegate's flags".to_owned()],
    );
    let is_host = old.pod.get("hostNetwork") == Some(&json!(true));
    let missing =
        || vec!["changed: it was missing. The packet rules, the ports and the way to the metadata service are the node's".to_owned()];
    if !is_host {
        new.warnings.push(format!("{} did not have hostNetwork: true, which rolegate needs; it is added", old.object.title()));
    }
    pod.noted("hostNetwork", json!(true), if is_host { Vec::new() } else { missing() });
    let was = string(old.pod, "dnsPolicy").filter(|policy| *policy != "Default").map(text::bounded);
    let was = was.map(|policy| format!("changed: it was {policy}. STS must be found also while the cluster's DNS is down"));
    pod.noted("dnsPolicy", "Default", was.into_iter().collect());
    placement(&mut pod, old);
    grace(&mut pod, old);
    for key in KEPT {
        pod.put_some(key, filled(old.pod.get(*key)));
    }
    for (key, value) in old.pod {
        let is_nothing = matches!(value, Value::Null | Value::Bool(false)) || filled(Some(value)).is_none();
        if KEPT.contains(&key.as_str()) || WRITTEN.contains(&key.as_str()) || is_nothing {
            continue;
        }
        let why = match key.as_str() {
            "initContainers" => "what they prepared for the old daemon, rolegate does not need. Read them; some set packet rules",
            "hostPID" | "hostIPC" => "rolegate needs no namespace of the node but its network",
            "securityContext" => "the container's own is below",
            "shareProcessNamespace" => "there is one container",
            _ => "check whether you need it",
        };
        let note = format!("dropped: {} of the pod: {why}", text::quoted(key));
        if !matches!(key.as_str(), "hostPID" | "hostIPC" | "shareProcessNamespace") {
            new.warnings.push(note.clone());
        }
        pod.comment(note);
    }
    let (volumes, mounts) = volumes::translate(old, new);
    let container = container::translate(old, new, config, mounts);
    let others = super::manifest::maps(old.pod, "containers").filter(|container| !std::ptr::eq(*container, old.container));
    let mut notes = Vec::new();
    for other in others {
        let note =
            format!("dropped: the container {}. Add it again, if you need it", text::quoted(string(other, "name").unwrap_or_default()));
        new.warnings.push(note.clone());
        notes.push(note);
    }
    pod.noted("containers", vec![Noted { notes: Vec::new(), node: container.build() }], notes);
    pod.put("volumes", volumes);
    pod
}

fn placement(pod: &mut MapBuilder, old: &OldDaemon<'_>) {
    match filled(old.pod.get("priorityClassName")) {
        Some(class) => pod.put("priorityClassName", class),
        None => {
            pod.noted("priorityClassName", "system-node-critical", vec!["added: the node's pods have no credentials without it".to_owned()])
        }
    };
    let tolerates_all = |tolerations: &Value| {
        let mut all = tolerations.as_array().into_iter().flatten();
        all.any(|one| one.get("operator") == Some(&json!("Exists")) && one.get("key").is_none() && one.get("effect").is_none())
    };
    let hint = "Nodes with other taints run no daemon, as before: their pods reach the real metadata service. \"operator: Exists\" alone \
                tolerates every taint";
    match filled(old.pod.get("tolerations")) {
        Some(tolerations) if tolerates_all(&tolerations) => pod.put("tolerations", tolerations),
        Some(tolerations) => pod.noted("tolerations", tolerations, vec![hint.to_owned()]),
        None => pod.comment(format!("There were no tolerations. {hint}")),
    };
    match filled(old.pod.get("nodeSelector")) {
        Some(selector) => pod.put("nodeSelector", selector),
        None => pod.noted("nodeSelector", json!({"kubernetes.io/os": "linux"}), vec!["added".to_owned()]),
    };
}

fn grace(pod: &mut MapBuilder, old: &OldDaemon<'_>) {
    let given = old.pod.get("terminationGracePeriodSeconds").and_then(Value::as_u64);
    match given {
        Some(seconds) if seconds > DRAIN_SECONDS => pod.put("terminationGracePeriodSeconds", json!(seconds)),
        Some(seconds) => pod.noted(
            "terminationGracePeriodSeconds",
            json!(30),
            vec![format!("changed: it was {seconds}; requests in flight take up to {DRAIN_SECONDS} seconds to end")],
        ),
        None => pod.put("terminationGracePeriodSeconds", json!(30)),
    };
}
