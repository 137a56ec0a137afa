use serde_json::json;

use super::client::{PARTIAL, PARTIAL_LIST};
use super::{apply_pod, names, start, version};
use crate::kube::{PodBuilder, Resource, namespace, service_account};

#[tokio::test]
async fn a_list_shows_items_without_their_kind_and_the_latest_version() {
    let (api, client) = start();
    let empty = client.get_ok("/api/v1/pods").await;
    assert_eq!((empty["kind"].as_str(), names(&empty)), (Some("PodList"), vec![]));
    apply_pod(&api, "b", "node-a");
    let latest = apply_pod(&api, "a", "node-a");
    let list = client.get_ok("/api/v1/pods").await;
    assert_eq!(names(&list), ["a", "b"]);
    assert_eq!(version(&list), latest);
    assert_eq!(latest, api.resource_version());
    assert!(list["items"][0].get("kind").is_none());
    assert_eq!(list["items"][0]["spec"]["nodeName"], "node-a");
}

#[tokio::test]
async fn pages_show_the_state_of_the_first_page() {
    let (api, client) = start();
    for name in ["a", "b", "c", "d", "e"] {
        apply_pod(&api, name, "node-a");
    }
    let first = client.get_ok("/api/v1/pods?limit=2").await;
    assert_eq!(names(&first), ["a", "b"]);
    assert_eq!(first["metadata"]["remainingItemCount"], 3);
    // Changes between two pages do not affect the second one.
    apply_pod(&api, "bb", "node-a");
    apply_pod(&api, "d", "node-z");
    assert!(api.delete(Resource::Pods, Some("team"), "c"));

    let token = first["metadata"]["continue"].as_str().unwrap();
    let second = client.get_ok(&format!("/api/v1/pods?limit=2&continue={token}")).await;
    assert_eq!(names(&second), ["c", "d"]);
    assert_eq!(second["items"][1]["spec"]["nodeName"], "node-a");
    assert_eq!(version(&second), version(&first));
    let token = second["metadata"]["continue"].as_str().unwrap();
    let third = client.get_ok(&format!("/api/v1/pods?limit=2&continue={token}")).await;
    assert_eq!(names(&third), ["e"]);
    assert!(third["metadata"].get("continue").is_none());
    assert_eq!(names(&client.get_ok("/api/v1/pods").await), ["a", "b", "bb", "d", "e"]);
}

#[tokio::test]
async fn a_page_of_a_selection_does_not_count_what_remains() {
    let (api, client) = start();
    for (name, node) in [("a", "node-a"), ("b", "node-b"), ("c", "node-a"), ("d", "node-b")] {
        apply_pod(&api, name, node);
    }
    let path = "/api/v1/pods?fieldSelector=spec.nodeName%3Dnode-a&limit=1";
    let first = client.get_ok(path).await;
    assert_eq!(names(&first), ["a"]);
    assert!(first["metadata"].get("remainingItemCount").is_none());
    let token = first["metadata"]["continue"].as_str().unwrap();
    let second = client.get_ok(&format!("{path}&continue={token}")).await;
    assert_eq!(names(&second), ["c"]);
    assert!(second["metadata"].get("continue").is_none());
}

#[tokio::test]
async fn a_page_after_a_compaction_is_gone() {
    let (api, client) = start();
    for name in ["a", "b", "c"] {
        apply_pod(&api, name, "node-a");
    }
    let first = client.get_ok("/api/v1/pods?limit=1").await;
    let token = first["metadata"]["continue"].as_str().unwrap();
    apply_pod(&api, "d", "node-a");
    api.compact();
    let (code, status) = client.get(&format!("/api/v1/pods?limit=1&continue={token}")).await;
    assert_eq!((code, &status["reason"]), (410, &json!("Expired")));
    // The error has a token for the rest of the current state.
    let token = status["metadata"]["continue"].as_str().unwrap();
    let rest = client.get_ok(&format!("/api/v1/pods?continue={token}")).await;
    assert_eq!(names(&rest), ["b", "c", "d"]);
}

#[tokio::test]
async fn resource_versions_of_lists() {
    let (api, client) = start();
    let before = apply_pod(&api, "a", "node-a");
    let after = apply_pod(&api, "b", "node-a");
    // The watch cache answers, and ignores the limit.
    let cached = client.get_ok("/api/v1/pods?resourceVersion=0&limit=1").await;
    assert_eq!(names(&cached), ["a", "b"]);
    let exact = format!("/api/v1/pods?resourceVersion={before}&resourceVersionMatch=Exact");
    let list = client.get_ok(&exact).await;
    assert_eq!((names(&list), version(&list)), (vec!["a"], before));
    let not_older = format!("/api/v1/pods?resourceVersion={before}&resourceVersionMatch=NotOlderThan");
    assert_eq!(version(&client.get_ok(&not_older).await), after);

    let (code, status) = client.get("/api/v1/pods?resourceVersion=999999").await;
    assert_eq!((code, &status["reason"]), (504, &json!("Timeout")));
    assert_eq!(status["details"]["causes"][0]["reason"], "ResourceVersionTooLarge");
    let (code, _) = client.get("/api/v1/pods?resourceVersionMatch=Exact").await;
    assert_eq!(code, 422);
    let (code, _) = client.get("/api/v1/pods?resourceVersion=x").await;
    assert_eq!(code, 400);
    let (code, _) = client.get("/api/v1/pods?continue=nonsense").await;
    assert_eq!(code, 400);
    api.compact();
    let (code, _) = client.get(&exact).await;
    assert_eq!(code, 410);
}

#[tokio::test]
async fn namespaces_bound_lists_and_gets() {
    let (api, client) = start();
    api.apply(Resource::Pods, PodBuilder::new("a", "web").build());
    api.apply(Resource::Pods, PodBuilder::new("b", "web").build());
    api.apply(Resource::Namespaces, namespace("a", &[("iam.amazonaws.com/permitted", ".*")]));
    api.apply(Resource::ServiceAccounts, service_account("a", "robot", &[("k", "v")]));
    assert_eq!(names(&client.get_ok("/api/v1/pods").await), ["web", "web"]);
    let list = client.get_ok("/api/v1/namespaces/b/pods").await;
    assert_eq!(names(&list), ["web"]);
    assert_eq!(list["items"][0]["metadata"]["namespace"], "b");
    let pod = client.get_ok("/api/v1/namespaces/a/pods/web").await;
    assert_eq!((&pod["kind"], &pod["metadata"]["namespace"]), (&json!("Pod"), &json!("a")));
    let found = client.get_ok("/api/v1/namespaces/a").await;
    assert_eq!(found["metadata"]["annotations"]["iam.amazonaws.com/permitted"], ".*");
    let accounts = client.get_ok("/api/v1/namespaces/a/serviceaccounts").await;
    assert_eq!(names(&accounts), ["robot"]);
    assert_eq!(names(&client.get_ok("/api/v1/serviceaccounts").await), ["robot"]);
    assert_eq!(names(&client.get_ok("/api/v1/namespaces").await), ["a"]);

    let (code, status) = client.get("/api/v1/namespaces/a/pods/none").await;
    assert_eq!((code, &status["reason"]), (404, &json!("NotFound")));
    assert_eq!(status["message"], "pods \"none\" not found");
    assert_eq!(status["details"], json!({ "name": "none", "kind": "pods" }));
}

#[tokio::test]
async fn field_selectors() {
    let (api, client) = start();
    apply_pod(&api, "a", "node-a");
    apply_pod(&api, "b", "node-b");
    let pod = PodBuilder::new("other", "c").node("").phase("Pending").build();
    api.apply(Resource::Pods, pod);
    for (selector, expected) in [
        ("spec.nodeName=node-a", vec!["a"]),
        ("spec.nodeName==node-b", vec!["b"]),
        ("spec.nodeName!=node-a", vec!["b", "c"]),
        ("spec.nodeName=", vec!["c"]),
        ("metadata.name=b,metadata.namespace=team", vec!["b"]),
        ("metadata.namespace=other", vec!["c"]),
        ("status.phase=Running,spec.nodeName!=node-b", vec!["a"]),
        ("spec.hostNetwork=true", vec![]),
        ("spec.hostNetwork=false", vec!["a", "b", "c"]),
    ] {
        let mut query = form_urlencoded::Serializer::new(String::new());
        query.append_pair("fieldSelector", selector);
        let list = client.get_ok(&format!("/api/v1/pods?{}", query.finish())).await;
        let mut found = names(&list);
        found.sort_unstable();
        assert_eq!(found, expected, "{selector}");
    }
    let (code, status) = client.get("/api/v1/pods?fieldSelector=spec.color%3Dred").await;
    assert_eq!((code, &status["reason"]), (400, &json!("BadRequest")));
    let message = status["message"].as_str().unwrap();
    assert!(message.ends_with("field label not supported: spec.color"), "{message}");
    let (code, _) = client.get("/api/v1/namespaces?fieldSelector=spec.nodeName%3Da").await;
    assert_eq!(code, 400);
}

#[tokio::test]
async fn label_selectors() {
    let (api, client) = start();
    for (name, tier) in [("a", Some("web")), ("b", Some("db")), ("c", None)] {
        let mut pod = PodBuilder::new("team", name);
        if let Some(tier) = tier {
            pod = pod.label("tier", tier);
        }
        api.apply(Resource::Pods, pod.build());
    }
    for (selector, expected) in [
        ("tier=web", vec!["a"]),
        ("tier!=web", vec!["b", "c"]),
        ("tier in (web, db)", vec!["a", "b"]),
        ("tier notin (web)", vec!["b", "c"]),
        ("tier", vec!["a", "b"]),
        ("!tier", vec!["c"]),
        ("tier in (web,db),app==b", vec!["b"]),
    ] {
        let mut query = form_urlencoded::Serializer::new(String::new());
        query.append_pair("labelSelector", selector);
        let list = client.get_ok(&format!("/api/v1/pods?{}", query.finish())).await;
        assert_eq!(names(&list), expected, "{selector}");
    }
    let (code, _) = client.get("/api/v1/pods?labelSelector=tier+of+(a)").await;
    assert_eq!(code, 400);
}

#[tokio::test]
async fn partial_metadata() {
    let (api, client) = start();
    let pod = api.apply(Resource::Pods, PodBuilder::new("team", "a").ip("10.42.0.2").build());
    let list = client.clone().accept(PARTIAL_LIST).get_ok("/api/v1/pods").await;
    assert_eq!(list["kind"], "PartialObjectMetadataList");
    assert_eq!(list["apiVersion"], "meta.k8s.io/v1");
    assert_eq!(list["items"][0], json!({ "kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": pod["metadata"] }));
    let partial = client.clone().accept(PARTIAL);
    let object = partial.get_ok("/api/v1/namespaces/team/pods/a").await;
    assert_eq!(object["kind"], "PartialObjectMetadata");
    assert!(object.get("spec").is_none());
    // A list cannot be sent as a single object.
    assert_eq!(partial.get("/api/v1/pods").await.0, 406);
    let fallback = client.clone().accept("application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1,application/json");
    assert_eq!(fallback.get_ok("/api/v1/pods").await["kind"], "PodList");
    let protobuf = client.accept("application/vnd.kubernetes.protobuf");
    assert_eq!(protobuf.get("/api/v1/pods").await.0, 406);
}
