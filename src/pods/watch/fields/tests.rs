#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test says loudly what failed")]
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;
use rolegate_lab::kube::PodBuilder;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use crate::kubernetes::filter::tests::{escaped, excerpt, kept};
use crate::kubernetes::filter::{Document, Excerpt, Filter, MAX_KEPT};
use crate::pods::watch::fields;
use crate::pods::watch::fields::Annotation;
use crate::pods::watch::objects::{self, Object, ObjectMeta, OnlyMetadata, PodObject};

const ROLE: &str = "iam.amazonaws.com/role";
const LONGEST: usize = 20;

fn annotations() -> Vec<Annotation> {
    vec![Annotation::new(ROLE, LONGEST), Annotation::new("other", 3)]
}

/// Describes an object decoded from a whole document, with its annotations as they are kept; `None` if it cannot be decoded.
fn read<T: Object + std::fmt::Debug + DeserializeOwned>(json: &[u8]) -> Option<String> {
    let mut object: T = serde_json::from_slice(json).ok()?;
    object.metadata_mut().keep_annotations(&annotations());
    Some(format!("{object:?}"))
}

#[test]
fn depth_and_size_need_no_memory() {
    let fields = objects::line::<PodObject>(&annotations());
    let deep = "[{\"metadata\":".repeat(200_000);
    let wide = "{\"uid\":\"no\"},".repeat(200_000);
    let long = "\\u003c\\\"".repeat(1_000_000);
    let mut filter = Filter::new(&fields);
    let feed = |filter: &mut Filter<'_>, json: &str| {
        filter.feed(json.as_bytes());
        assert!(filter.memory() < 16 << 10, "{}", filter.memory());
    };
    feed(&mut filter, r#"{"object":{"status":{"phase":"Failed","x":"#);
    feed(&mut filter, &deep);
    feed(&mut filter, "0");
    feed(&mut filter, &"}]".repeat(200_000));
    feed(&mut filter, r#"},"metadata":{"annotations":{"z":""#);
    feed(&mut filter, &long);
    feed(&mut filter, r#"","iam.amazonaws.com/role":""#);
    feed(&mut filter, &long);
    feed(&mut filter, r#""},"managedFields":["#);
    feed(&mut filter, &wide);
    feed(&mut filter, r#"0],"uid":"u"}},""#);
    feed(&mut filter, &"k".repeat(1_000_000));
    feed(&mut filter, r#"":1e"#);
    feed(&mut filter, &"9".repeat(1_000_000));
    feed(&mut filter, r#","type":"ADDED"}"#);
    let Document::Complete(Excerpt { json, truncated: false }) = filter.finish() else { panic!() };
    let line: Value = serde_json::from_slice(&json).unwrap();
    let role = r#"<""#.repeat(LONGEST / 2 + 1)[..=LONGEST].to_owned();
    let wanted = json!({ "type": "ADDED", "object": {
        "status": { "phase": "Failed" }, "metadata": { "annotations": { ROLE: role }, "uid": "u" },
    } });
    assert_eq!(line, wanted);
}

#[test]
fn oversized_values_are_omitted_except_identities() {
    let fields = objects::page::<PodObject>(&annotations());
    let many: Vec<_> = (0..200_000).map(|number| json!({ "ip": number.to_string() })).collect();
    let body = format!(
        r#"{{"items":[{{"status":{{"podIPs":{ips}}},"spec":{{"nodeName":"late"}},"metadata":{{"name":"fat","uid":"f"}}}},{thin}],"metadata":{{"resourceVersion":"5"}}}}"#,
        ips = serde_json::to_string(&many).unwrap(),
        thin = PodBuilder::new("shop", "thin").uid("t").ip("10.0.0.1").build(),
    );
    let mut filter = Filter::new(&fields);
    body.as_bytes().chunks(100_000).for_each(|piece| {
        filter.feed(piece);
        assert!(filter.memory() < 6 * MAX_KEPT);
    });
    let [fat, thin] = &filter.take_items()[..] else { panic!() };
    assert!(fat.truncated && !thin.truncated);
    let metadata = ObjectMeta::of_any(&fat.json).unwrap();
    assert_eq!((metadata.name.as_deref(), metadata.uid.as_deref()), (Some("fat"), Some("f")));
    assert!(!String::from_utf8_lossy(&fat.json).contains("late"));
    let thin: PodObject = serde_json::from_slice(&thin.json).unwrap();
    assert_eq!(thin.ips.len(), 1);
    assert_eq!(
        filter.finish(),
        Document::Complete(Excerpt { json: br#"{"items":[],"metadata":{"resourceVersion":"5"}}"#.to_vec(), truncated: false })
    );
    // A flood of identities does not count as one object's.
    let line = format!(r#"{{{}"type":"ADDED"}}"#, format!(r#""type":"{}","#, "x".repeat(500)).repeat(8000));
    let Document::Complete(flood) = Filter::once(&fields::identity_of_line(), line.as_bytes()) else { panic!() };
    assert!(flood.truncated && flood.json.len() < 3 * MAX_KEPT);
}

#[test]
fn all_used_fields_of_a_real_pod_are_kept() {
    let builder = || {
        let builder = PodBuilder::new("shop", "web").uid("u").ips(["10.42.0.2", "2001:db8::2"]).service_account("seller");
        builder.annotation(ROLE, "web").annotation("kubectl.kubernetes.io/last-applied-configuration", &"<".repeat(9000))
    };
    for builder in [
        builder(),
        builder().host_network(true),
        builder().terminating(),
        builder().terminating().stopped(),
        builder().without_network(),
        builder().phase("Succeeded"),
        builder().phase("Failed"),
        builder().phase("Pending"),
    ] {
        let whole = builder.build().to_string();
        let json = kept(&objects::object::<PodObject>(&annotations()), escaped(&whole).as_bytes());
        assert_eq!(read::<PodObject>(json.as_bytes()), read::<PodObject>(whole.as_bytes()));
        assert!(json.len() < 1000, "nothing else is kept: {json}");
    }
}

/// Generates a value of any kind, with used and unused names.
fn any_value() -> impl Strategy<Value = Value> {
    let text = || {
        prop_oneof![
            "[a-z0-9.:/-]{0,6}",
            ".{0,12}",
            "(<|>|\"|\\\\|\u{2028}|\u{1f600}|\u{e9}|\u{1}|x){0,30}",
            select(vec!["False", "PodReadyToStartContainers", "Failed", "10.0.0.1", "2026-01-01T00:00:00Z", "7"]).prop_map(str::to_owned),
        ]
    };
    let keys = || {
        let names = vec![
            "metadata",
            "spec",
            "status",
            "annotations",
            "name",
            "namespace",
            "uid",
            "resourceVersion",
            "deletionTimestamp",
            ROLE,
            "other",
            "nodeName",
            "hostNetwork",
            "serviceAccountName",
            "phase",
            "podIP",
            "podIPs",
            "ip",
            "conditions",
            "type",
            "state",
            "running",
            "containerStatuses",
            "x",
            "{\"",
            "\u{1f600}",
        ];
        select(names).prop_map(str::to_owned)
    };
    let leaf = prop_oneof![
        6 => text().prop_map(Value::from),
        1 => Just(Value::Null),
        1 => any::<bool>().prop_map(Value::from),
        1 => any::<f64>().prop_map(Value::from),
    ];
    leaf.prop_recursive(5, 60, 6, move |inner| {
        prop_oneof![
            vec((keys(), inner.clone()), 0..6).prop_map(|members| Value::Object(members.into_iter().collect())),
            vec(inner, 0..4).prop_map(Value::Array),
        ]
    })
}

/// Generates the used part of a pod, whose fields mostly have the correct types.
fn any_pod() -> impl Strategy<Value = Value> {
    let text = || prop_oneof![4 => "(<|\"|\\\\|\u{2028}|\u{1f600}|[a-z0-9.:]){0,9}".prop_map(Value::from), 1 => Just(Value::Null), 1 => any_value()];
    let annotations =
        (text(), text(), any_value()).prop_map(|(role, other, odd)| json!({ ROLE: role, "other": other, "odd": odd.to_string() }));
    let metadata = (text(), text(), text(), text(), annotations, any_value()).prop_map(|(name, uid, version, namespace, annotations, odd)| {
        json!({ "name": name, "uid": uid, "resourceVersion": version, "namespace": namespace, "annotations": annotations, "managedFields": odd })
    });
    let condition = (text(), any::<bool>(), any_value()).prop_map(|(kind, is_false, odd)| match is_false {
        true => json!({ "odd": odd, "type": "PodReadyToStartContainers", "status": "False" }),
        false => json!({ "type": kind, "status": "True" }),
    });
    let container = (any::<bool>(), any_value()).prop_map(|(runs, odd)| match runs {
        true => json!({ "state": { "running": odd } }),
        false => json!({ "state": { "terminated": odd } }),
    });
    let status = (text(), vec(condition, 0..3), vec(container, 0..4), vec("(10.0.0.[1-3]|::1|[a-z]{2})", 0..5)).prop_map(
        |(phase, conditions, containers, ips)| {
            let ips: Vec<_> = ips.into_iter().map(|ip| json!({ "ip": ip })).collect();
            json!({ "phase": phase, "conditions": conditions, "containerStatuses": containers, "podIPs": ips })
        },
    );
    (metadata, status, text(), any_value()).prop_map(
        |(metadata, status, node, odd)| json!({ "metadata": metadata, "status": status, "spec": { "nodeName": node, "containers": odd } }),
    )
}

/// Returns the JSON of a value, with the members of its objects reordered.
fn shuffled(value: &Value, seed: &mut u64) -> String {
    match value {
        Value::Object(members) => {
            let mut members: Vec<_> = members.iter().collect();
            for last in (1..members.len()).rev() {
                *seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                let other = usize::try_from(*seed >> 33).unwrap() % (last + 1);
                members.swap(last, other);
            }
            let members = members.into_iter().map(|(key, value)| format!("{}:{}", Value::from(key.as_str()), shuffled(value, seed)));
            format!("{{{}}}", members.collect::<Vec<_>>().join(","))
        }
        Value::Array(elements) => {
            format!("[ {} ]", elements.iter().map(|element| shuffled(element, seed)).collect::<Vec<_>>().join(" , "))
        }
        other => escaped(&other.to_string()),
    }
}

fn same<T: Object + std::fmt::Debug>(json: &str, cuts: &[prop::sample::Index], arrays_for_structs: bool) -> Result<(), TestCaseError> {
    let fields = objects::object::<T>(&annotations());
    let mut ends: Vec<_> = cuts.iter().map(|cut| cut.index(json.len() + 1)).chain([0, json.len()]).collect();
    ends.sort_unstable();
    let pieces: Vec<_> = ends.windows(2).map(|pair| &json.as_bytes()[pair[0]..pair[1]]).collect();
    let Document::Complete(excerpt) = excerpt(&fields, &pieces) else {
        return Err(TestCaseError::fail(json.to_owned()));
    };
    prop_assert!(!excerpt.truncated);
    serde_json::from_slice::<Value>(&excerpt.json).map_err(|error| TestCaseError::fail(error.to_string()))?;
    let whole: Value = serde_json::from_str(json).unwrap();
    // If unused parts of the document are malformed, the whole cannot be decoded.
    if let Some(whole) = read::<T>(json.as_bytes()) {
        // serde accepts an array for a struct.
        if !arrays_for_structs || read::<T>(&excerpt.json).is_some() {
            prop_assert_eq!(read::<T>(&excerpt.json), Some(whole));
        }
    }
    // The names are the same, however malformed the rest is.
    let text = |field: &str| whole["metadata"][field].as_str().map(str::to_owned);
    let names = ObjectMeta::of_any(&excerpt.json).map(|it| (it.name, it.namespace, it.uid, it.resource_version));
    let wanted = text("uid").filter(|uid| !uid.is_empty()).map(|uid| (text("name"), text("namespace"), Some(uid), text("resourceVersion")));
    prop_assert_eq!(names, wanted);
    Ok(())
}

proptest! {
    #[test]
    fn any_value_decodes_the_same_from_its_kept_fields(value in any_value(), seed: u64, cuts: [prop::sample::Index; 4]) {
        let json = shuffled(&value, &mut seed.clone());
        same::<PodObject>(&json, &cuts, true)?;
        same::<OnlyMetadata>(&json, &cuts, true)?;
    }

    #[test]
    fn a_pod_decodes_the_same_from_its_kept_fields(pod in any_pod(), seed: u64, cuts: [prop::sample::Index; 4]) {
        let json = shuffled(&pod, &mut seed.clone());
        same::<PodObject>(&json, &cuts, false)?;
        let line = format!(r#"{{"object":{json},"type":"MODIFIED"}}"#);
        let Document::Complete(excerpt) = Filter::once(&objects::line::<PodObject>(&annotations()), line.as_bytes()) else { panic!() };
        let object = kept(&objects::object::<PodObject>(&annotations()), json.as_bytes());
        prop_assert_eq!(String::from_utf8(excerpt.json).unwrap(), format!(r#"{{"object":{object},"type":"MODIFIED"}}"#));
    }

    #[test]
    fn the_filter_never_panics(bytes in vec(any::<u8>(), 0..200), text in "[\\[\\]{}\",:\\\\a0 metdu]{0,80}") {
        let fields = objects::line::<PodObject>(&annotations());
        for json in [&bytes[..], text.as_bytes()] {
            if let Document::Complete(excerpt) = Filter::once(&fields, json) {
                let is_valid = serde_json::from_slice::<Value>(json).is_ok();
                prop_assert!(!is_valid || serde_json::from_slice::<Value>(&excerpt.json).is_ok());
            } else {
                prop_assert!(serde_json::from_slice::<Value>(json).is_err());
            }
        }
    }
}
