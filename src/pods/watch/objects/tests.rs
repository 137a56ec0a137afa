#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test says loudly what failed")]
use std::net::IpAddr;

use rolegate_lab::kube::{PodBuilder, namespace};
use serde_json::{Value, json};

use super::*;
use crate::config::{AnnotationKeys, ApiConfig};
use crate::kubernetes::client;
use crate::metrics::Metrics;
use crate::pods::watch::{MAX_EXTERNAL_ID, MAX_LIST, MAX_ROLE, MAX_SESSION_NAME, PodWatch, SESSION_NAME_KEY};
use crate::pods::{Needs, NodeAddresses, Pod, PodUid, pods};

fn decode(object: Value) -> PodObject {
    serde_json::from_value(object.clone()).unwrap_or_else(|error| panic!("{error}: {object}"))
}

/// Returns the watch of `node-a`. Its client has no server and sends no request.
async fn watch() -> PodWatch {
    // Another test may have installed it already.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let api = ApiConfig { server: Some("http://127.0.0.1:1".to_owned()), ..ApiConfig::default() };
    let (writer, pods) = pods();
    PodWatch {
        client: client::connect(&api).await.unwrap(),
        node: "node-a".to_owned(),
        node_addresses: Box::new(NodeAddresses::default),
        now: Box::new(|| "2026-01-01T00:00:00Z".parse().unwrap()),
        annotations: AnnotationKeys {
            role: "iam.amazonaws.com/role".to_owned(),
            target_role: "iam.amazonaws.com/target-role".to_owned(),
            external_id: "iam.amazonaws.com/external-id".to_owned(),
            allowed_roles: "iam.amazonaws.com/allowed-roles".to_owned(),
        },
        writer,
        pods,
        needs: Needs::default(),
        token_audience: Some("pods.eks.amazonaws.com".to_owned()),
        metrics: Metrics::new(),
    }
}

fn ips(texts: &[&str]) -> Vec<IpAddr> {
    texts.iter().map(|text| text.parse().unwrap()).collect()
}

#[test]
fn only_the_used_fields_of_a_pod_are_kept() {
    let mut object = PodBuilder::new("default", "web-1")
        .uid("uid-1")
        .ips(["10.42.0.2", "2001:db8::2"])
        .annotation("iam.amazonaws.com/role", "web")
        .terminating()
        .build();
    object["metadata"]["resourceVersion"] = "17".into();
    assert!(object["metadata"]["managedFields"].is_array(), "the pod is as a real API sends it");
    let pod = decode(object);
    assert_eq!(pod.metadata.uid.as_deref(), Some("uid-1"));
    assert_eq!(pod.metadata.name.as_deref(), Some("web-1"));
    assert_eq!(pod.metadata.namespace.as_deref(), Some("default"));
    assert_eq!(pod.metadata.resource_version.as_deref(), Some("17"));
    assert_eq!(pod.metadata.version(), Some(17));
    assert!(pod.metadata.claims_until.is_some());
    assert_eq!(pod.metadata.annotation("iam.amazonaws.com/role"), Some("web"));
    assert_eq!(pod.node_name.as_deref(), Some("node-a"));
    assert!(!pod.finished);
    assert!(!pod.host_network);
    assert_eq!(pod.ips, ips(&["10.42.0.2", "2001:db8::2"]));
    assert_eq!(pod.host_ips, ips(&["10.0.0.10"]));
}

#[test]
fn a_pod_with_many_missing_fields_is_still_decoded() {
    let metadata = json!({ "name": "a", "uid": "u" });
    for object in [
        json!({ "metadata": metadata }),
        json!({ "metadata": metadata, "spec": null, "status": null }),
        json!({ "metadata": metadata, "spec": {}, "status": {} }),
        json!({ "metadata": metadata, "spec": { "nodeName": null, "hostNetwork": null } }),
        json!({ "metadata": metadata, "status": { "phase": null, "podIP": null, "podIPs": null } }),
        json!({ "metadata": metadata, "status": { "podIPs": [] } }),
        json!({ "metadata": metadata, "status": { "podIPs": [{}, { "ip": null }] } }),
    ] {
        let pod = decode(object.clone());
        assert_eq!(pod.metadata.uid.as_deref(), Some("u"), "{object}");
        assert!(pod.ips.is_empty() && !pod.host_network && pod.node_name.is_none() && !pod.finished, "{object}");
    }
    for empty in [json!({}), json!({ "metadata": {} }), json!({ "metadata": { "annotations": null, "uid": null } })] {
        assert!(decode(empty).metadata.uid.is_none());
    }
}

#[test]
fn the_single_address_is_used_without_a_list() {
    let with_status = |status: Value| decode(json!({ "metadata": {}, "status": status })).ips;
    assert_eq!(with_status(json!({ "podIP": "10.0.0.1" })), ips(&["10.0.0.1"]));
    assert_eq!(with_status(json!({ "podIP": "10.0.0.1", "podIPs": [] })), ips(&["10.0.0.1"]));
    assert_eq!(with_status(json!({ "podIP": "10.0.0.1", "podIPs": [{ "ip": "10.0.0.1" }] })), ips(&["10.0.0.1"]));
    let both = json!({ "podIP": "10.0.0.1", "podIPs": [{ "ip": "10.0.0.1" }, { "ip": "::1" }] });
    assert_eq!(with_status(both), ips(&["10.0.0.1", "::1"]));
}

#[test]
fn a_non_numeric_version_is_none() {
    let version = |text: &str| decode(json!({ "metadata": { "resourceVersion": text } })).metadata.version();
    assert_eq!(version("18446744073709551615"), Some(u64::MAX));
    for odd in ["", "-1", "1.5", "abc", "18446744073709551616"] {
        assert_eq!(version(odd), None, "{odd:?}");
    }
}

#[test]
fn a_namespace_keeps_its_name_and_annotations() {
    let object = namespace("team", &[("iam.amazonaws.com/allowed-roles", "[]")]);
    let mut namespace: OnlyMetadata = serde_json::from_value(object).unwrap();
    assert_eq!(namespace.metadata.name.as_deref(), Some("team"));
    assert_eq!(namespace.metadata.take_annotation("iam.amazonaws.com/allowed-roles", 64).as_deref(), Some("[]"));
    assert!(serde_json::from_value::<OnlyMetadata>(json!({ "metadata": { "annotations": null } })).is_ok());
}

#[tokio::test]
async fn a_pod_is_converted_for_the_index() {
    let watch = watch().await;
    let builder = PodBuilder::new("team", "web-1").uid("uid-1").ips(["10.42.0.2", "2001:db8::2"]).started_at("2026-01-01T00:00:00Z");
    let started = Some("2026-01-01T00:00:00Z".parse().unwrap());
    let plain = Pod {
        uid: PodUid("uid-1".into()),
        ips: ips(&["10.42.0.2", "2001:db8::2"]),
        sandbox: Sandbox { since: started, started },
        may_have_net_raw: true,
        ..Pod::for_test("team", "web-1")
    };
    let told = |builder: PodBuilder| watch.pod(decode(builder.build())).unwrap().0;
    assert_eq!(told(builder.clone()), plain);
    assert_eq!(told(builder.clone().phase("Pending")), plain);
    let of_finished = Sandbox { since: None, started };
    let finished = Pod { finished: true, ips: ips(&[]), sandbox: of_finished, ..plain.clone() };
    assert_eq!(told(builder.clone().phase("Succeeded")), finished);
    assert_eq!(told(builder.clone().phase("Failed")), finished);
    let ending = |until: Timestamp| Pod { terminating: true, claims_until: Some(until), ..plain.clone() };
    let beyond = "2026-01-01T00:01:00Z".parse().unwrap();
    assert_eq!(told(builder.clone().terminating_at("2026-01-01T00:00:30Z")), ending(beyond), "the grace period, and half a minute");
    for odd in ["", "soon", "2026-01-01", "9999-12-30T22:00:00Z"] {
        assert_eq!(told(builder.clone().terminating_at(odd)), ending(Timestamp::MIN), "{odd:?}");
    }
    assert_eq!(told(builder.clone().without_net_raw()), Pod { may_have_net_raw: false, ..plain.clone() });
    assert_eq!(told(builder.clone().host_network(true)), Pod { host_network: true, ..plain.clone() });
    let (mirror, hash) = ("kubernetes.io/config.mirror", "0123456789abcdef0123456789abcdef");
    let of_node = |node: &str| builder.clone().owner("Node", node);
    assert_eq!(told(of_node("node-a").annotation(mirror, hash)), Pod { static_uid: Some(hash.into()), ..plain.clone() });
    for ordinary in [builder.clone(), of_node("node-b"), builder.clone().owner("ReplicaSet", "node-a")] {
        let ordinary = told(ordinary.annotation(mirror, hash));
        assert_eq!(ordinary, plain, "everybody may write the annotation");
        assert_eq!(ordinary.uid_of_kubelet(), "uid-1");
    }
    for odd in ["", &hash[1..], &format!("{hash}0"), &hash.to_uppercase(), "0b7d2c1e-4c1a-4a57-9f0e-1234567890ab"] {
        assert_eq!(told(of_node("node-a").annotation(mirror, odd)), plain, "{odd:?}: no static pod has such a UID");
    }
    let annotated = builder
        .annotation("iam.amazonaws.com/role", "web")
        .annotation("iam.amazonaws.com/external-id", "id")
        .annotation("iam.amazonaws.com/session-name", "");
    let expected = Pod { role: Some("web".to_owned()), external_id: Some("id".to_owned()), session_name: Some(String::new()), ..plain };
    assert_eq!(told(annotated), expected);
}

#[tokio::test]
async fn the_operator_chooses_the_annotations() {
    let mut watch = watch().await;
    watch.annotations.role = "example.com/role".to_owned();
    let builder = PodBuilder::new("team", "web-1").uid("uid-1").annotation("iam.amazonaws.com/role", "other");
    let told = |builder: PodBuilder| watch.pod(decode(builder.build())).unwrap().0.role;
    assert_eq!(told(builder.clone()), None);
    assert_eq!(told(builder.annotation("example.com/role", "web")).as_deref(), Some("web"));
}

#[tokio::test]
async fn the_controller_of_a_pod_is_kept_only_if_it_is_needed() {
    let mut watch = watch().await;
    let object = |owners: Value| {
        let mut object = PodBuilder::new("team", "web-1").uid("uid-1").build();
        object["metadata"]["ownerReferences"] = owners;
        object
    };
    let controller = json!({ "kind": "StatefulSet", "name": "web", "controller": true });
    let both = json!([{ "kind": "Other", "name": "x" }, controller]);
    assert_eq!(watch.pod(decode(object(both.clone()))).unwrap().0.owner, None);
    watch.needs.owners = true;
    let owner_of = |owners: Value| watch.pod(decode(object(owners))).unwrap().0.owner;
    let wanted = PodOwner { kind: "StatefulSet".into(), name: "web".into() };
    assert_eq!(owner_of(both), Some(Box::new(wanted)));
    let odd =
        [json!(null), json!([]), json!("x"), json!([7]), json!([{ "kind": "Set", "controller": true }]), json!([{ "controller": "true" }])];
    for odd in odd {
        assert_eq!(owner_of(odd.clone()), None, "{odd}");
    }
}

#[tokio::test]
async fn an_invalid_address_is_omitted() {
    let watch = watch().await;
    let told = |given: &[&str]| {
        let builder = PodBuilder::new("team", "web-1").uid("uid-1").ips(given.iter().copied());
        watch.pod(decode(builder.build())).unwrap().0.ips
    };
    for odd in ["", "none", "10.0.0.1/32", "10.0.0", "010.0.0.1", "10.0.0.256", " 10.0.0.1", "[::1]", "fe80::1%eth0", "10.0.0.1:80"] {
        assert_eq!(told(&[odd]), ips(&[]), "{odd:?}");
        assert_eq!(told(&[odd, "10.0.0.2"]), ips(&["10.0.0.2"]), "{odd:?}");
    }
    assert_eq!(told(&["::ffff:10.0.0.1"]), ips(&["10.0.0.1"]), "in the form of a connection's peer");
}

#[tokio::test]
async fn a_pod_of_another_node_or_without_a_node_is_ignored() {
    let watch = watch().await;
    let builder = PodBuilder::new("team", "web-1").uid("uid-1").ip("10.42.0.2");
    assert!(watch.pod(decode(builder.clone().node("node-a").build())).is_some());
    assert!(watch.pod(decode(builder.clone().node("node-b").build())).is_none());
    assert!(watch.pod(decode(builder.node("").build())).is_none());
}

#[tokio::test]
async fn only_a_token_for_the_audience_of_the_settings_counts() {
    let with_token = |watch: &PodWatch, audience: &str| {
        let mut object = PodBuilder::new("team", "web-1").uid("uid-1").node("node-a").build();
        let token = json!({ "serviceAccountToken": { "audience": audience, "path": "token" } });
        object["spec"]["volumes"] = json!([{ "name": "token", "projected": { "sources": [token] } }]);
        watch.pod(decode(object)).unwrap().0.has_token_audience
    };
    let watch = watch().await;
    assert!(with_token(&watch, "pods.eks.amazonaws.com"));
    assert!(!with_token(&watch, "vault"));
    let without = PodWatch { token_audience: None, ..watch };
    assert!(!with_token(&without, "pods.eks.amazonaws.com"));
}

#[tokio::test]
async fn a_pod_without_a_uid_or_a_name_is_ignored() {
    let watch = watch().await;
    for field in ["uid", "name"] {
        let mut object = PodBuilder::new("team", "web-1").uid("uid-1").ip("10.42.0.2").build();
        object["metadata"][field] = Value::Null;
        assert!(watch.pod(decode(object)).is_none(), "{field}");
    }
}

#[test]
fn unused_annotations_are_dropped() {
    let builder = PodBuilder::new("team", "web-1").annotation("kubectl.kubernetes.io/last-applied-configuration", &"x".repeat(10_000));
    let mut pod = decode(builder.annotation("iam.amazonaws.com/role", "web").annotation("other", "y").build());
    pod.metadata.keep_annotations(&[Annotation::new("iam.amazonaws.com/role", 64), Annotation::new("not/there", 64)]);
    let Some(Annotations(kept)) = &pod.metadata.annotations else { panic!("there are some") };
    assert_eq!((kept.len(), kept.capacity()), (1, 1));
    assert_eq!(pod.metadata.annotation("other"), None);
    assert_eq!(pod.metadata.take_annotation("iam.amazonaws.com/role", 64).as_deref(), Some("web"));
    assert_eq!(pod.metadata.take_annotation("iam.amazonaws.com/role", 64), None);
}

#[test]
fn addresses_without_a_network_are_omitted() {
    let builder = || PodBuilder::new("team", "web-1").uid("uid-1").ip("10.42.0.2");
    let ips_of = |builder: PodBuilder| decode(builder.build()).ips;
    assert_eq!(ips_of(builder().without_network()), ips(&[]), "the condition says so");
    assert_eq!(ips_of(builder().stopped()), ips(&["10.42.0.2"]), "its containers may be started again");
    assert_eq!(ips_of(builder().terminating()), ips(&["10.42.0.2"]), "they still run");
    assert_eq!(ips_of(builder().terminating().stopped()), ips(&[]), "they are not started again");
    for kind in ["containerStatuses", "initContainerStatuses", "ephemeralContainerStatuses"] {
        let mut object = builder().terminating().stopped().build();
        object["status"][kind] = json!([{ "state": { "terminated": {} } }, { "state": { "running": {} } }]);
        assert_eq!(decode(object).ips, ips(&["10.42.0.2"]), "one of {kind} runs");
    }
    for nothing in [Value::Null, json!([])] {
        let mut object = builder().terminating().build();
        object["status"]["containerStatuses"] = nothing;
        // As in versions before Kubernetes 1.29.
        object["status"]["conditions"] = Value::Null;
        assert_eq!(decode(object).ips, ips(&["10.42.0.2"]), "the containers are not known");
    }
    let mut object = builder().build();
    object["status"]["conditions"] =
        json!([{ "type": "PodReadyToStartContainers", "status": "Unknown" }, { "type": "Ready", "status": "False" }]);
    assert_eq!(decode(object).ips, ips(&["10.42.0.2"]));
}

#[tokio::test]
async fn annotations_that_are_too_long_are_truncated_and_decided_so() {
    use crate::config::Restrictions;
    use crate::pods::{Namespace, PodContext};
    use crate::policy::{Decision, Policy, Rules};
    let watch = watch().await;
    let base = Some("arn:aws:iam::111122223333:role/".parse().unwrap());
    let policy = |restrictions| {
        let rules = Rules { base: base.clone(), restrictions, ..Rules::default() };
        Policy::new(rules, "arn:aws:sts::111122223333:assumed-role/nodes/i-0".parse::<crate::role::CallerIdentity>().unwrap().into())
            .unwrap()
    };
    let denied = |pod: &Pod, context: &PodContext, restrictions| match policy(restrictions).decide(pod, context) {
        Decision::Deny(denial) => denial.name(),
        Decision::Allow { .. } => "allowed",
    };
    let builder = || PodBuilder::new("team", "web-1").uid("uid-1").annotation("iam.amazonaws.com/role", "web");
    let with = |key: &str, value: &str| watch.pod(decode(builder().annotation(key, value).build())).unwrap().0;
    type Field = fn(&Pod) -> &Option<String>;
    let annotations: [(&str, usize, &str, Field); 3] = [
        ("iam.amazonaws.com/role", MAX_ROLE, "role-too-long", |pod| &pod.role),
        ("iam.amazonaws.com/external-id", MAX_EXTERNAL_ID, "bad-external-id", |pod| &pod.external_id),
        (SESSION_NAME_KEY, MAX_SESSION_NAME, "allowed", |pod| &pod.session_name),
    ];
    for (key, longest, reason, field) in annotations {
        let kept = |value: &str| field(&with(key, value)).clone().unwrap();
        assert_eq!(kept(&"w".repeat(longest)).len(), longest);
        for (value, left) in
            [("w".repeat(longest + 1), 1), ("w".repeat(200_000), 1), ("w".repeat(longest - 1) + &"\u{1f600}".repeat(1000), 3)]
        {
            let cut = kept(&value);
            assert!(cut.len() == longest + left && cut.capacity() <= cut.len() + 8, "{key}: {}", cut.len());
            assert_eq!(denied(&with(key, &value), &PodContext::default(), Restrictions::Off), reason);
        }
        // In a list, the value is truncated before the list is complete.
        let mut listed = decode(builder().annotation(key, &"w".repeat(200_000)).build());
        listed.metadata.keep_annotations(&[Annotation::new(key, longest)]);
        assert_eq!(listed.metadata.annotation(key).unwrap().len(), longest + 1);
    }
    let list = |value: String, key: &str| {
        let mut object: OnlyMetadata = serde_json::from_value(namespace("team", &[(key, &value)])).unwrap();
        object.metadata.take_annotation(key, MAX_LIST)
    };
    let good = format!("[\"web\"{}]", " ".repeat(MAX_LIST - 7));
    for (text, permitted, reason) in [
        (good.clone(), false, "allowed"),
        (good + " ", false, "namespace-list-too-large"),
        (format!("[\"web\"{}]", " ".repeat(200_000)), false, "namespace-list-too-large"),
        ("x".repeat(200_000), true, "namespace-list-too-large"),
    ] {
        let text = list(text, "key");
        let (allowed_roles, permitted) = if permitted { (None, text) } else { (text, None) };
        let context =
            PodContext { namespace: Some(Namespace { name: "team".to_owned(), allowed_roles, permitted }.into()), ..PodContext::default() };
        assert_eq!(denied(&with("other", ""), &context, Restrictions::Enforce), reason);
    }
}

#[test]
fn the_age_of_a_pods_network_comes_only_from_its_condition() {
    let at = |second: u32| format!("2026-01-01T00:00:{second:02}Z");
    let running = |second: u32| json!({ "state": { "running": { "startedAt": at(second) } } });
    let network =
        |status: &str, second: u32| json!([{ "type": "PodReadyToStartContainers", "status": status, "lastTransitionTime": at(second) }]);
    let sandbox = |status: Value| {
        let object = json!({ "metadata": { "uid": "1" }, "status": status });
        let Sandbox { since, started } = serde_json::from_value::<PodObject>(object).unwrap().sandbox;
        [since, started].map(|time| time.map(|time| time.to_string()))
    };
    let known = |since: Option<u32>, started: u32| [since.map(at), Some(at(started))];
    assert_eq!(sandbox(json!({})), [None, None]);
    assert_eq!(sandbox(json!({ "conditions": network("True", 5) })), known(Some(5), 5));
    assert_eq!(sandbox(json!({ "conditions": network("False", 5) })), [None, None]);
    let containers = json!([running(7), running(9), { "state": { "waiting": {} } }, { "state": null }, {}]);
    assert_eq!(sandbox(json!({ "containerStatuses": containers })), known(None, 9), "a restarted container is no evidence");
    assert_eq!(sandbox(json!({ "containerStatuses": containers, "initContainerStatuses": [running(6)] })), known(None, 9));
    assert_eq!(sandbox(json!({ "containerStatuses": containers, "conditions": network("True", 5) })), known(Some(5), 9));
    assert_eq!(sandbox(json!({ "startTime": at(3) })), known(None, 3));
    assert_eq!(sandbox(json!({ "startTime": at(3), "containerStatuses": [running(7)] })), known(None, 7));
    for odd in [json!(null), json!(7), json!("soon"), json!({})] {
        let status = json!({ "startTime": odd, "containerStatuses": [{ "state": { "running": { "startedAt": odd } } }] });
        assert_eq!(sandbox(status), [None, None], "{odd}");
    }
}
