//! Pods, namespaces and service accounts, with only the fields that are used: whole objects would take most of the memory of a
//! watch. Fields that an object may lack are optional here.

use std::collections::HashSet;
use std::fmt;
use std::net::IpAddr;

use jiff::{SignedDuration, Timestamp};
use serde::Deserialize;
use serde::de::{DeserializeOwned, Deserializer, MapAccess, Visitor};

use crate::pods::{PodOwner, Sandbox};

mod net_raw;
mod token_audience;

use net_raw::AnyNetRaw;
use token_audience::TokenAudiences;

use super::fields::{self, Annotation};
use crate::kubernetes::fields::{Field, JsonMember, members};
use crate::kubernetes::filter::{Document, Filter};

/// How long a pod may take to end beyond its grace period. The kubelet gives a container at least two seconds more, and a
/// container cannot delay the steps that follow.
const BEYOND_GRACE: SignedDuration = SignedDuration::from_secs(30);

/// The parts that every object has.
pub(super) trait Object: DeserializeOwned {
    /// Returns the object's name and version.
    fn metadata(&self) -> &ObjectMeta;
    /// Returns the object's name and version for moving them out.
    fn metadata_mut(&mut self) -> &mut ObjectMeta;
    /// Returns the fields of the object that are used, with these annotations. Decoding sees no others.
    fn members(annotations: &[Annotation]) -> Vec<JsonMember>;
}

/// Truncates a text that is too long to the shortest length that is still too long.
fn cut(text: &mut String, longest: usize) {
    if let Some(end) = (longest + 1..text.len()).find(|end| text.is_char_boundary(*end)) {
        text.truncate(end);
        text.shrink_to_fit();
    }
}

/// Returns the fields of an object that are used.
pub(super) fn object<T: Object>(annotations: &[Annotation]) -> Field {
    Field::Object(T::members(annotations))
}

/// Returns the fields of a line of a watch that are used.
pub(super) fn line<T: Object>(annotations: &[Annotation]) -> Field {
    fields::line(T::members(annotations))
}

/// Returns the fields of a page of a list that are used.
pub(super) fn page<T: Object>(annotations: &[Annotation]) -> Field {
    fields::page(T::members(annotations))
}

/// `metadata`, without managed fields and labels.
#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(super) struct ObjectMeta {
    pub(super) name: Option<String>,
    pub(super) namespace: Option<String>,
    pub(super) uid: Option<String>,
    pub(super) resource_version: Option<String>,
    /// When the claims of a pod whose deletion has begun end.
    #[serde(rename = "deletionTimestamp", deserialize_with = "claims_until")]
    pub(super) claims_until: Option<Timestamp>,
    annotations: Option<Annotations>,
    /// The object that manages this one.
    #[serde(rename = "ownerReferences", deserialize_with = "controller")]
    pub(super) owner: Option<Box<PodOwner>>,
}

/// Finds the only owner that manages the object (Kubernetes documentation, "Owners and Dependents"). One of an odd form counts as
/// none.
fn controller<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Box<PodOwner>>, D::Error> {
    let owners = serde_json::Value::deserialize(deserializer)?;
    let owner = owners.as_array().into_iter().flatten().find(|owner| owner["controller"] == true);
    let text = |field: &str| owner?[field].as_str().map(Box::from);
    Ok(text("kind").zip(text("name")).map(|(kind, name)| Box::new(PodOwner { kind, name })))
}

/// Computes the end from `metadata.deletionTimestamp`, which is the end of the grace period. An invalid time counts as long
/// past.
fn claims_until<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Timestamp>, D::Error> {
    let end = |given: serde_json::Value| given.as_str()?.parse::<Timestamp>().ok()?.checked_add(BEYOND_GRACE).ok();
    let given = Option::<serde_json::Value>::deserialize(deserializer)?;
    Ok(given.map(|given| end(given).unwrap_or(Timestamp::MIN)))
}

/// A list instead of a map: each object keeps one or two, and such a small map takes ten times the memory.
#[derive(Debug, Default)]
struct Annotations(Vec<(String, String)>);

impl<'de> Deserialize<'de> for Annotations {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct All;
        impl<'de> Visitor<'de> for All {
            type Value = Annotations;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("annotations")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Annotations, A::Error> {
                let mut all = Vec::new();
                while let Some(annotation) = map.next_entry()? {
                    all.push(annotation);
                }
                Ok(Annotations(all))
            }
        }
        deserializer.deserialize_map(All)
    }
}

impl ObjectMeta {
    /// Returns the names and version of an object that cannot be decoded; `None` if it has no UID. The rest of the object does
    /// not matter.
    pub(super) fn of_any(object: &[u8]) -> Option<Self> {
        let Document::Complete(identity) = Filter::once(&fields::identity_of_object(), object) else { return None };
        let object: serde_json::Value = serde_json::from_str(&String::from_utf8_lossy(&identity.json)).ok()?;
        let text = |field: &str| object["metadata"][field].as_str().map(str::to_owned);
        let uid = Some(text("uid").filter(|uid| !uid.is_empty())?);
        let (name, namespace, resource_version) = (text("name"), text("namespace"), text("resourceVersion"));
        Some(Self { name, namespace, uid, resource_version, ..Self::default() })
    }

    /// Drops all annotations but these. Those of kubectl and controllers make up most of an object's size here, and a list
    /// holds thousands of objects until it is complete.
    pub(super) fn keep_annotations(&mut self, read: &[Annotation]) {
        if let Some(Annotations(all)) = &mut self.annotations {
            all.retain_mut(|(key, value)| {
                let read = read.iter().find(|annotation| annotation.key == *key);
                read.inspect(|annotation| cut(value, annotation.longest)).is_some()
            });
            all.shrink_to_fit();
        }
    }

    /// Returns the resource version if it is a number, which grows with every change.
    pub(super) fn version(&self) -> Option<u64> {
        self.resource_version.as_deref()?.parse().ok()
    }

    pub(super) fn annotation(&self, key: &str) -> Option<&str> {
        let all = &self.annotations.as_ref()?.0;
        all.iter().rfind(|(other, _)| other == key).map(|(_, value)| value.as_str())
    }

    /// Removes an annotation and returns its value. A value that is too long is truncated but still too long.
    pub(super) fn take_annotation(&mut self, key: &str, longest: usize) -> Option<String> {
        let all = &mut self.annotations.as_mut()?.0;
        let at = all.iter().rposition(|(other, _)| other == key)?;
        let mut value = all.swap_remove(at).1;
        cut(&mut value, longest);
        Some(value)
    }
}

/// An object of which only the metadata matters: a namespace, a service account, or a deleted object.
#[derive(Debug, Deserialize)]
pub(super) struct OnlyMetadata {
    #[serde(default)]
    pub(super) metadata: ObjectMeta,
}

/// A pod.
#[derive(Debug, Deserialize)]
#[serde(from = "RawPod")]
pub(super) struct PodObject {
    pub(super) metadata: ObjectMeta,
    pub(super) node_name: Option<String>,
    pub(super) service_account: Option<String>,
    pub(super) host_network: bool,
    /// Whether one of its containers may send forged packets (`NET_RAW`).
    pub(super) may_have_net_raw: bool,
    /// The audiences of its service account tokens that name one.
    pub(super) token_audiences: Vec<String>,
    /// Whether the phase is Succeeded or Failed.
    pub(super) finished: bool,
    /// Empty while the pod does not have the network that its addresses belong to.
    pub(super) ips: Vec<IpAddr>,
    pub(super) host_ips: Vec<IpAddr>,
    pub(super) sandbox: Sandbox,
}

impl Object for OnlyMetadata {
    fn metadata(&self) -> &ObjectMeta {
        &self.metadata
    }

    fn metadata_mut(&mut self) -> &mut ObjectMeta {
        &mut self.metadata
    }

    fn members(annotations: &[Annotation]) -> Vec<JsonMember> {
        vec![fields::metadata(annotations)]
    }
}

impl Object for PodObject {
    fn metadata(&self) -> &ObjectMeta {
        &self.metadata
    }

    fn metadata_mut(&mut self) -> &mut ObjectMeta {
        &mut self.metadata
    }

    /// Returns every field of [`RawPod`] and its parts.
    fn members(annotations: &[Annotation]) -> Vec<JsonMember> {
        let condition = || {
            let status = Field::OneOf(&["False", "True"]);
            Field::object([("type", Field::OneOf(&[READY_TO_START])), ("status", status), ("lastTransitionTime", Field::text())])
        };
        let state = || Field::object([("running", Field::object([("startedAt", Field::text())]))]);
        let containers = || Field::array(Field::object([("state", state())]));
        let addresses = || Field::array(Field::object([("ip", Field::text())]));
        let spec = [
            ("nodeName", Field::text()),
            ("serviceAccountName", Field::text()),
            ("hostNetwork", Field::text()),
            ("containers", net_raw::containers()),
            ("initContainers", net_raw::containers()),
            ("ephemeralContainers", net_raw::containers()),
            ("volumes", token_audience::volumes()),
        ];
        let status = [
            ("phase", Field::OneOf(&FINISHED)),
            ("startTime", Field::text()),
            ("conditions", Field::array(condition())),
            ("containerStatuses", containers()),
            ("initContainerStatuses", containers()),
            ("ephemeralContainerStatuses", containers()),
            ("podIP", Field::text()),
            ("podIPs", addresses()),
            ("hostIP", Field::text()),
            ("hostIPs", addresses()),
        ];
        let rest = members([("spec", Field::object(spec)), ("status", Field::object(status))]);
        std::iter::once(fields::metadata(annotations)).chain(rest).collect()
    }
}

/// The phases of a pod that no longer has a claim.
const FINISHED: [&str; 2] = ["Succeeded", "Failed"];
/// The condition that says whether a pod has a network.
const READY_TO_START: &str = "PodReadyToStartContainers";

#[derive(Default, Deserialize)]
#[serde(default)]
struct RawPod {
    metadata: ObjectMeta,
    spec: Option<RawPodSpec>,
    status: Option<RawPodStatus>,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct RawPodSpec {
    node_name: Option<String>,
    service_account_name: Option<String>,
    host_network: Option<bool>,
    containers: Option<AnyNetRaw>,
    init_containers: Option<AnyNetRaw>,
    ephemeral_containers: Option<AnyNetRaw>,
    volumes: Option<TokenAudiences>,
}

impl RawPodSpec {
    fn may_have_net_raw(&self) -> bool {
        [&self.containers, &self.init_containers, &self.ephemeral_containers].into_iter().flatten().any(|kind| kind.0)
    }
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct RawPodStatus {
    phase: Option<String>,
    conditions: Option<Vec<RawCondition>>,
    start_time: Option<Time>,
    container_statuses: Option<Vec<RawContainerStatus>>,
    init_container_statuses: Option<Vec<RawContainerStatus>>,
    ephemeral_container_statuses: Option<Vec<RawContainerStatus>>,
    #[serde(rename = "podIP")]
    pod_ip: Option<String>,
    #[serde(rename = "podIPs")]
    pod_ips: Option<Vec<RawIp>>,
    #[serde(rename = "hostIP")]
    host_ip: Option<String>,
    #[serde(rename = "hostIPs")]
    host_ips: Option<Vec<RawIp>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawCondition {
    r#type: Option<String>,
    status: Option<String>,
    last_transition_time: Option<Time>,
}

impl RawCondition {
    /// Returns whether this is the condition that the pod has a network, with this status.
    fn is_network(&self, status: &str) -> bool {
        self.r#type.as_deref() == Some(READY_TO_START) && self.status.as_deref() == Some(status)
    }
}

/// A time; `None` if the value is invalid.
struct Time(Option<Timestamp>);

impl<'de> Deserialize<'de> for Time {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Ok(Self(serde_json::Value::deserialize(deserializer)?.as_str().and_then(|time| time.parse().ok())))
    }
}

#[derive(Deserialize)]
struct RawContainerStatus {
    state: Option<RawContainerState>,
}

#[derive(Deserialize)]
struct RawContainerState {
    running: Option<RawRunning>,
}

/// The state of a running container, with its start if that is a valid time.
struct RawRunning {
    started_at: Option<Timestamp>,
}

impl<'de> Deserialize<'de> for RawRunning {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let running = serde_json::Value::deserialize(deserializer)?;
        Ok(Self { started_at: running["startedAt"].as_str().and_then(|time| time.parse().ok()) })
    }
}

impl RawPodStatus {
    /// Returns whether the pod's network is gone or not created yet: the kubelet then keeps the last addresses in the status,
    /// although the CNI may have given them to another pod. The condition exists in Kubernetes 1.29 and later, and comes from
    /// the same check of the sandbox as the addresses (<https://kubernetes.io/docs/concepts/workloads/pods/pod-condition/>).
    fn has_no_network(&self) -> bool {
        self.conditions.iter().flatten().any(|condition| condition.is_network("False"))
    }

    fn containers(&self) -> impl Iterator<Item = &RawContainerStatus> {
        [&self.container_statuses, &self.init_container_statuses, &self.ephemeral_container_statuses].into_iter().flatten().flatten()
    }

    /// Returns what the status says about the pod's network namespace. The condition changes together with it, and has the time
    /// of the change (Kubernetes 1.29 and later). Without it, a new network namespace cannot be distinguished from a restarted
    /// container. If no container of a pod runs, the latest known start is when the kubelet accepted the pod.
    fn sandbox(&self) -> Sandbox {
        let time = |time: &Option<Time>| time.as_ref().and_then(|time| time.0);
        let network = self.conditions.iter().flatten().find(|condition| condition.is_network("True"));
        let network = network.and_then(|condition| time(&condition.last_transition_time));
        let running = self.containers().filter_map(|container| container.state.as_ref()?.running.as_ref());
        let last = running.filter_map(|running| running.started_at).max();
        Sandbox { since: network, started: last.max(network).or_else(|| time(&self.start_time)) }
    }

    /// Returns whether there are containers, and none of any kind runs.
    fn has_stopped(&self) -> bool {
        let mut containers = self.containers().peekable();
        let is_running = |container: &RawContainerStatus| container.state.as_ref().is_some_and(|state| state.running.is_some());
        containers.peek().is_some() && !containers.any(is_running)
    }
}

#[derive(Deserialize)]
struct RawIp {
    ip: Option<String>,
}

/// Returns all addresses, without duplicates. The single address is used if there is no list; otherwise it is the first of the
/// list. Invalid addresses are ignored, so that no pod is found by them.
fn addresses(all: Option<Vec<RawIp>>, first: Option<String>) -> Vec<IpAddr> {
    let mut texts: Vec<String> = all.unwrap_or_default().into_iter().filter_map(|ip| ip.ip).collect();
    if texts.is_empty() {
        texts.extend(first);
    }
    let ips = texts.iter().filter_map(|text| text.parse::<IpAddr>().ok()).map(|ip| ip.to_canonical());
    let mut seen = HashSet::new();
    // The capacity equals the number of addresses, because thousands of pods are kept.
    Vec::from(ips.filter(|ip| seen.insert(*ip)).collect::<Box<[_]>>())
}

impl From<RawPod> for PodObject {
    fn from(raw: RawPod) -> Self {
        let spec = raw.spec.unwrap_or_default();
        let status = raw.status.unwrap_or_default();
        // No container is started after the deletion has begun.
        let sandbox = status.sandbox();
        let has_none = status.has_no_network() || raw.metadata.claims_until.is_some() && status.has_stopped();
        Self {
            metadata: raw.metadata,
            may_have_net_raw: spec.may_have_net_raw(),
            token_audiences: spec.volumes.unwrap_or_default().0,
            node_name: spec.node_name,
            service_account: spec.service_account_name,
            host_network: spec.host_network.unwrap_or(false),
            finished: status.phase.is_some_and(|phase| FINISHED.contains(&&*phase)),
            ips: if has_none { Vec::new() } else { addresses(status.pod_ips, status.pod_ip) },
            host_ips: addresses(status.host_ips, status.host_ip),
            sandbox,
        }
    }
}

#[cfg(test)]
mod tests;
