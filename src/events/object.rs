//! An Event as the API accepts it: `events.k8s.io/v1`
//! (<https://kubernetes.io/docs/reference/kubernetes-api/cluster-resources/event-v1/>), limited to the fields that rolegate
//! writes. The limits are those of `pkg/apis/core/validation/events.go`.

use jiff::Timestamp;
use serde::Serialize;

use super::{EventCause, MAX_NOTE};
use crate::pods::Pod;

/// The reporting controller.
const CONTROLLER: &str = "rolegate";
/// The longest `reportingInstance`, in bytes.
const MAX_INSTANCE: usize = 128;
/// The longest object name, in bytes.
const MAX_NAME: usize = 253;

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct EventObject<'a> {
    api_version: &'static str,
    kind: &'static str,
    metadata: EventMetadata<'a>,
    event_time: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    series: Option<SeriesObject>,
    reporting_controller: &'static str,
    reporting_instance: &'a str,
    action: &'static str,
    reason: &'static str,
    regarding: Regarding<'a>,
    note: &'a str,
    r#type: &'static str,
}

#[derive(Debug, Serialize)]
struct EventMetadata<'a> {
    name: &'a str,
    namespace: &'a str,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Regarding<'a> {
    api_version: &'static str,
    kind: &'static str,
    namespace: &'a str,
    name: &'a str,
    uid: &'a str,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct SeriesObject {
    count: u32,
    last_observed_time: String,
}

#[derive(Debug, Serialize)]
struct Patch {
    series: SeriesObject,
}

/// The number of occurrences, and the time of the last one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Series {
    /// At least 2.
    pub(super) count: u32,
    pub(super) last: Timestamp,
}

impl From<Series> for SeriesObject {
    fn from(series: Series) -> Self {
        Self { count: series.count, last_observed_time: micro_time(series.last) }
    }
}

/// Returns the name of an Event on a pod, in client-go's form: the pod's name and a unique number.
pub(super) fn name(pod: &str, number: u64) -> String {
    let number = format!("{number:x}");
    let end = pod.floor_char_boundary(MAX_NAME - number.len() - 1);
    let pod = pod[..end].trim_end_matches(['-', '.']);
    format!("{pod}.{number}")
}

/// Returns the body that creates an Event.
pub(super) fn create(
    name: &str,
    pod: &Pod,
    node: &str,
    cause: EventCause,
    at: Timestamp,
    series: Option<Series>,
) -> Result<Vec<u8>, serde_json::Error> {
    let note = cause.note();
    serde_json::to_vec(&EventObject {
        api_version: "events.k8s.io/v1",
        kind: "Event",
        metadata: EventMetadata { name, namespace: &pod.namespace },
        event_time: micro_time(at),
        series: series.map(SeriesObject::from),
        reporting_controller: CONTROLLER,
        reporting_instance: &node[..node.floor_char_boundary(MAX_INSTANCE)],
        action: cause.action(),
        reason: cause.reason(),
        regarding: Regarding { api_version: "v1", kind: "Pod", namespace: &pod.namespace, name: &pod.name, uid: &pod.uid.0 },
        note: &note[..note.floor_char_boundary(MAX_NOTE)],
        r#type: "Warning",
    })
}

/// Returns the merge patch that records further occurrences.
pub(super) fn amend(series: Series) -> Result<Vec<u8>, serde_json::Error> {
    serde_json::to_vec(&Patch { series: series.into() })
}

/// Formats a `MicroTime`: exactly six fractional digits of a second.
fn micro_time(at: Timestamp) -> String {
    at.strftime("%Y-%m-%dT%H:%M:%S%.6fZ").to_string()
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test says loudly what failed")]
mod tests {
    use super::*;
    use crate::events::tests::pod;

    #[test]
    fn an_event_has_the_apis_format() {
        let at = "2026-01-01T00:00:00.1Z".parse().unwrap();
        let event = create("web.1f", &pod("web"), &"n".repeat(200), EventCause::AddressAmbiguous, at, Some(Series { count: 2, last: at }));
        let event: serde_json::Value = serde_json::from_slice(&event.unwrap()).unwrap();
        let expected = serde_json::json!({
            "apiVersion": "events.k8s.io/v1",
            "kind": "Event",
            "metadata": { "name": "web.1f", "namespace": "shop" },
            "eventTime": "2026-01-01T00:00:00.100000Z",
            "series": { "count": 2, "lastObservedTime": "2026-01-01T00:00:00.100000Z" },
            "reportingController": "rolegate",
            "reportingInstance": "n".repeat(128),
            "action": "RefuseCredentials",
            "reason": "AddressAmbiguous",
            "regarding": { "apiVersion": "v1", "kind": "Pod", "namespace": "shop", "name": "web", "uid": "uid-of-web" },
            "note": EventCause::AddressAmbiguous.note(),
            "type": "Warning",
        });
        assert_eq!(event, expected);
    }

    #[test]
    fn names_are_valid_even_for_long_pod_names() {
        assert_eq!(name("web-0", 0x17f), "web-0.17f");
        let long = name(&format!("{}.b", "a".repeat(235)), u64::MAX);
        assert_eq!(long, format!("{}.ffffffffffffffff", "a".repeat(235)), "the shortened name does not end with a dot");
        assert!(name(&"a".repeat(253), u64::MAX).len() == 253);
    }
}
