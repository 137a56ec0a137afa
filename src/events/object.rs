//! An Event as the API takes it: `events.k8s.io/v1`
//! (<https://kubernetes.io/docs/reference/kubernetes-api/cluster-resources/event-v1/>), the fields that are written and no
//! others. The limits are those of `pkg/apis/core/validation/events.go`.

use jiff::Timestamp;
use serde::Serialize;

use super::{EventCause, MAX_NOTE};
use crate::pods::Pod;

/// Who reports.
const CONTROLLER: &str = "rolegate";
/// The longest `reportingInstance`, in bytes.
const MAX_INSTANCE: usize = 128;
/// The longest name of an object, in bytes.
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

/// How often it was, and when for the last time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Series {
    /// 2 at least.
    pub(super) count: u32,
    pub(super) last: Timestamp,
}

impl From<Series> for SeriesObject {
    fn from(series: Series) -> Self {
        Self { count: series.count, last_observed_time: micro_time(series.last) }
    }
}

/// The name of an Event on a pod, in the form of client-go's: the pod's, and a number that no other has.
pub(super) fn name(pod: &str, number: u64) -> String {
    let number = format!("{number:x}");
    let end = pod.floor_char_boundary(MAX_NAME - number.len() - 1);
    let pod = pod[..end].trim_end_matches(['-', '.']);
    format!("{pod}.{number}")
}

/// The body that creates an Event.
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

/// The merge patch that says that it was again.
pub(super) fn amend(series: Series) -> Result<Vec<u8>, serde_json::Error> {
    serde_json::to_vec(&Patch { series: series.into() })
}

/// `MicroTime`: exactly six digits of a second's fraction.
fn micro_time(at: Timestamp) -> String {
    at.strftime("%Y-%m-%dT%H:%M:%S%.6fZ").to_string()
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test says loudly what failed")]
mod tests {
    use super::*;
    use crate::events::tests::pod;

    #[test]
    fn an_event_has_the_form_that_the_api_takes() {
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
    fn names_are_those_of_objects_however_long_the_pods_is() {
        assert_eq!(name("web-0", 0x17f), "web-0.17f");
        let long = name(&format!("{}.b", "a".repeat(235)), u64::MAX);
        assert_eq!(long, format!("{}.ffffffffffffffff", "a".repeat(235)), "it does not end with a dot before the next");
        assert!(name(&"a".repeat(253), u64::MAX).len() == 253);
    }
}
