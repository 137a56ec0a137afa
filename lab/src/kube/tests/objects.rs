use http::Method;
use serde_json::{Value, json};

use super::client::{document, soon};
use super::{apply_pod, start, version};
use crate::kube::{PodBuilder, Resource, Verb, namespace, node};

/// Returns an event of the newer group that a real server would accept.
fn event(name: &str) -> Value {
    json!({
        "apiVersion": "events.k8s.io/v1", "kind": "Event",
        "metadata": { "name": name, "namespace": "team" },
        "eventTime": "2025-06-02T08:15:30.000000Z", "type": "Warning", "reason": "RoleDenied",
        "action": "Deny", "note": "role not allowed", "reportingController": "rolegate.dev/rolegate",
        "reportingInstance": "node-a",
        "regarding": { "kind": "Pod", "namespace": "team", "name": "a" },
    })
}

#[tokio::test]
async fn json_is_escaped_as_in_go() {
    use http_body_util::BodyExt as _;
    let (api, client) = start();
    let odd = "<>&\u{2028}\u{2029}\"\\\u{1}\u{e9}";
    api.apply(Resource::Pods, PodBuilder::new("team", "odd").annotation("odd", odd).build());
    let escaped = r#""odd":"\u003c\u003e\u0026\u2028\u2029\"\\\u0001"#.to_owned() + "\u{e9}\"";
    for path in ["/api/v1/pods", "/api/v1/namespaces/team/pods/odd", "/api/v1/pods?watch=true&timeoutSeconds=1"] {
        let response = soon(client.send(client.request(Method::GET, path, None))).await.unwrap();
        let body = soon(response.into_body().collect()).await.unwrap().to_bytes();
        let text = String::from_utf8(body.to_vec()).unwrap();
        assert!(text.contains(&escaped), "{path}: {text}");
    }
    let read = client.get_ok("/api/v1/namespaces/team/pods/odd").await;
    assert_eq!(read["metadata"]["annotations"]["odd"], odd);
}

#[tokio::test]
async fn events_of_both_groups_are_stored() {
    let (api, client) = start();
    let path = "/apis/events.k8s.io/v1/namespaces/team/events";
    let (code, created) = client.post(path, &event("a.1")).await;
    assert_eq!((code, &created["reason"]), (201, &json!("RoleDenied")));
    assert!(created["metadata"]["uid"].is_string());
    version(&created);
    let old = json!({
        "apiVersion": "v1", "kind": "Event", "metadata": { "generateName": "a." },
        "involvedObject": { "kind": "Pod", "namespace": "team", "name": "a" },
        "reason": "Old", "message": "m", "type": "Normal",
    });
    let (code, _) = client.post("/api/v1/namespaces/team/events", &old).await;
    assert_eq!(code, 201);
    soon(api.wait_for_events(2)).await;
    let series = json!({ "series": { "count": 2, "lastObservedTime": "2025-06-02T08:16:30.000000Z" } });
    let (code, _) = client.patch(&format!("{path}/a.1"), &series).await;
    assert_eq!(code, 200);
    let events = api.events();
    assert_eq!(events.len(), 2);
    assert_eq!(events[0]["series"]["count"], 2);
    assert_eq!(events[1]["reason"], "Old");
    let (code, status) = client.patch(&format!("{path}/none"), &series).await;
    assert_eq!((code, &status["reason"]), (404, &json!("NotFound")));
    let (code, _) = client.post(path, &event("a.1")).await;
    assert_eq!(code, 409);
}

#[tokio::test]
async fn events_that_a_real_server_rejects() {
    let (api, client) = start();
    let path = "/apis/events.k8s.io/v1/namespaces/team/events";
    for (field, value, code) in [
        ("action", Value::Null, 422),
        ("reason", json!(""), 422),
        ("reportingController", Value::Null, 422),
        ("reportingInstance", json!("x".repeat(129)), 422),
        ("note", json!("x".repeat(1025)), 422),
        ("type", json!("Error"), 422),
        ("eventTime", Value::Null, 422),
        ("regarding", json!({ "namespace": "other" }), 422),
        ("apiVersion", json!("v1"), 400),
        ("eventTime", json!("2025-06-02T08:15:30Z"), 400),
        ("reportingController", json!("role gate"), 422),
        ("deprecatedCount", json!(3), 422),
        ("series", json!({ "count": 1, "lastObservedTime": "2025-06-02T08:15:30.000000Z" }), 422),
        ("series", json!({ "count": 2 }), 422),
        ("series", json!({ "count": 2, "lastObservedTime": "2025-06-02T08:15:30.000Z" }), 400),
        ("metadata", json!({ "name": "Web.1" }), 422),
        ("metadata", json!({ "name": "a".repeat(254) }), 422),
        ("metadata", json!({ "name": "e", "namespace": "other" }), 400),
        ("metadata", json!("text"), 400),
    ] {
        let mut event = event("e");
        event[field] = value;
        let (got, status) = client.post(path, &event).await;
        assert_eq!(got, code, "{field}: {status}");
    }
    assert_eq!(client.post(path, &json!([1])).await.0, 400);
    assert!(api.events().is_empty());
}

#[tokio::test]
async fn an_event_is_immutable() {
    let (api, client) = start();
    let path = "/apis/events.k8s.io/v1/namespaces/team/events";
    assert_eq!(client.post(path, &event("a.1")).await.0, 201);
    let time = "2025-06-02T08:16:30.000000Z";
    for (patch, code) in [
        (json!({ "note": "another" }), 422),
        (json!({ "series": { "count": 1, "lastObservedTime": time } }), 422),
        (json!({ "series": { "count": 3 } }), 422),
        (json!({ "series": { "count": 3, "lastObservedTime": time } }), 200),
    ] {
        let (got, status) = client.patch(&format!("{path}/a.1"), &patch).await;
        assert_eq!(got, code, "{patch}: {status}");
    }
    assert_eq!(api.events()[0]["series"]["count"], 3);
    let strategic = ("application/json", &json!({}));
    let request = client.request(Method::PATCH, &format!("{path}/a.1"), Some(strategic));
    assert_eq!(document(soon(client.send(request)).await.unwrap()).await.0, 415);
}

#[tokio::test]
async fn only_writes_of_events_are_held() {
    let (api, client) = start();
    api.hold_event_writes(true);
    let path = "/apis/events.k8s.io/v1/namespaces/team/events";
    let posting = tokio::spawn({
        let client = client.clone();
        async move { client.post(path, &event("a.1")).await.0 }
    });
    soon(api.wait_for_request(|request| request.verb == Some(Verb::Create))).await;
    assert_eq!(client.get("/api/v1/pods").await.0, 200);
    assert!(api.events().is_empty());
    api.hold_event_writes(false);
    assert_eq!(soon(posting).await.unwrap(), 201);
}

#[tokio::test]
async fn nothing_is_created_in_a_terminating_namespace() {
    let (api, client) = start();
    let mut ending = namespace("team", &[]);
    ending["status"]["phase"] = "Terminating".into();
    api.apply(Resource::Namespaces, ending);
    let (code, status) = client.post("/apis/events.k8s.io/v1/namespaces/team/events", &event("a.1")).await;
    assert_eq!((code, &status["details"]["causes"][0]["reason"]), (403, &json!("NamespaceTerminating")));
}

#[tokio::test]
async fn a_node_is_patched() {
    let (api, client) = start();
    let stored = api.apply(Resource::Nodes, node("node-a", &["10.0.0.10", "fd00::10"]));
    assert_eq!(stored["status"]["addresses"][1]["address"], "fd00::10");
    let mut watch = client.watch("/api/v1/nodes?watch=true").await;
    watch.expect(&[("ADDED", "node-a")]).await;
    let taints = json!({ "spec": { "taints": [{ "key": "k", "effect": "NoSchedule" }] } });
    let (code, patched) = client.patch("/api/v1/nodes/node-a", &taints).await;
    assert_eq!((code, &patched["spec"]["taints"][0]["key"]), (200, &json!("k")));
    assert_eq!(patched["spec"]["podCIDR"], "10.42.0.0/24");
    watch.expect(&[("MODIFIED", "node-a")]).await;
    // The patch changes nothing, so the version stays.
    let (_, same) = client.patch("/api/v1/nodes/node-a", &taints).await;
    assert_eq!(version(&same), version(&patched));
    let stale = json!({ "metadata": { "resourceVersion": "1" }, "spec": { "taints": null } });
    let (code, status) = client.patch("/api/v1/nodes/node-a", &stale).await;
    assert_eq!((code, &status["reason"]), (409, &json!("Conflict")));
    let fresh = json!({
        "metadata": { "resourceVersion": patched["metadata"]["resourceVersion"] }, "spec": { "taints": null },
    });
    let (code, patched) = client.patch("/api/v1/nodes/node-a", &fresh).await;
    assert_eq!(code, 200);
    assert!(patched["spec"].get("taints").is_none());
    watch.expect(&[("MODIFIED", "node-a")]).await;
    assert_eq!(client.patch("/api/v1/nodes/none", &taints).await.0, 404);
    let strategic = ("application/strategic-merge-patch+json", &taints);
    let request = client.request(Method::PATCH, "/api/v1/nodes/node-a", Some(strategic));
    assert_eq!(document(soon(client.send(request)).await.unwrap()).await.0, 415);
}

#[tokio::test]
async fn held_patches_of_nodes_apply_to_the_changed_node() {
    let (api, client) = start();
    let stored = api.apply(Resource::Nodes, node("node-a", &[]));
    api.hold_node_patches(true);
    let patch = json!({ "metadata": { "resourceVersion": version(&stored).to_string() }, "spec": { "unschedulable": true } });
    let patching = tokio::spawn({
        let client = client.clone();
        async move { client.patch("/api/v1/nodes/node-a", &patch).await.0 }
    });
    soon(api.wait_for_request(|request| request.verb == Some(Verb::Patch))).await;
    assert_eq!(client.get("/api/v1/nodes/node-a").await.1, stored);
    let mut changed = stored.clone();
    changed["spec"]["podCIDR"] = "10.42.1.0/24".into();
    let changed = api.apply(Resource::Nodes, changed);
    api.hold_node_patches(false);
    assert_eq!(soon(patching).await.unwrap(), 409);
    assert_eq!(client.get("/api/v1/nodes/node-a").await.1, changed);
}

#[tokio::test]
async fn discovery_documents() {
    let (_api, client) = start();
    assert_eq!(client.get("/healthz").await, (200, json!("ok")));
    assert_eq!(client.get("/readyz").await, (200, json!("ok")));
    assert_eq!(client.get_ok("/version").await["major"], "1");
    assert_eq!(client.get_ok("/api").await["versions"], json!(["v1"]));
    let core = client.get_ok("/api/v1").await;
    assert_eq!(core["resources"][0]["name"], "pods");
    for group in client.get_ok("/apis").await["groups"].as_array().unwrap() {
        let version = group["preferredVersion"]["groupVersion"].as_str().unwrap();
        client.get_ok(&format!("/apis/{version}")).await;
    }
    for path in [
        "/",
        "/api/v2",
        "/api/v1/widgets",
        "/api/v1/pods/a",
        "/api/v1/namespaces/a/nodes",
        "/apis/apps/v1",
        "/api/v1/namespaces/a/pods/b/log",
    ] {
        let (code, status) = client.get(path).await;
        assert_eq!((code, &status["reason"]), (404, &json!("NotFound")), "{path}");
        assert_eq!((&status["kind"], &status["status"]), (&json!("Status"), &json!("Failure")));
    }
    let (code, status) = client.post("/api/v1/namespaces/a/pods", &json!({})).await;
    assert_eq!((code, &status["reason"]), (405, &json!("MethodNotAllowed")));
}

#[tokio::test]
async fn requests_are_recorded() {
    let (api, client) = start();
    client.get("/api/v1/pods?limit=50&fieldSelector=spec.nodeName%3Dnode-a").await;
    client.clone().accept("application/json").get("/version").await;
    let requests = api.requests();
    assert_eq!((&requests[0].method, &*requests[0].path), (&Method::GET, "/api/v1/pods"));
    assert_eq!(requests[0].query("fieldSelector"), Some("spec.nodeName=node-a"));
    assert_eq!(requests[0].verb, Some(Verb::List));
    assert_eq!((requests[1].verb, requests[1].accept.as_deref()), (None, Some("application/json")));
    assert!(requests[1].at >= requests[0].at);
    api.clear_requests();
    assert!(api.requests().is_empty());
}

#[tokio::test]
async fn built_pods_look_like_real_ones() {
    let (api, _client) = start();
    let pod = PodBuilder::new("team", "web-0")
        .ips(["10.42.0.2", "fd00:42::2"])
        .node("node-b")
        .host_ip("10.0.0.11")
        .annotation("iam.amazonaws.com/role", "reader")
        .service_account("robot")
        .terminating();
    let pod = api.apply(Resource::Pods, pod.build());
    assert_eq!(pod["status"]["podIP"], "10.42.0.2");
    assert_eq!(pod["status"]["podIPs"][1]["ip"], "fd00:42::2");
    assert_eq!(pod["status"]["hostIP"], "10.0.0.11");
    assert_eq!(pod["spec"]["serviceAccountName"], "robot");
    assert_eq!(pod["metadata"]["annotations"]["iam.amazonaws.com/role"], "reader");
    assert!(pod["metadata"]["deletionTimestamp"].is_string());
    assert!(pod["metadata"]["uid"].is_string());
    assert!(pod["metadata"]["managedFields"][0]["fieldsV1"].is_object());
    assert_eq!(pod["spec"]["containers"].as_array().unwrap().len(), 2);
    assert!(pod.to_string().len() > 4000, "{}", pod.to_string().len());

    let host = PodBuilder::new("team", "agent").host_network(true).build();
    assert_eq!((&host["spec"]["hostNetwork"], &host["status"]["podIP"]), (&json!(true), &json!("10.0.0.10")));
    let pending = PodBuilder::new("team", "new").node("").phase("Pending").build();
    assert!(pending["spec"].get("nodeName").is_none());
    assert!(pending["status"].get("podIP").is_none());
    assert!(pending["metadata"].get("annotations").is_none());
    apply_pod(&api, "web-0", "node-b");
}
