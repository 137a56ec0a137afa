use std::time::Duration;

use serde_json::json;

use super::client::{PARTIAL, soon};
use super::{apply_pod, start, version};
use crate::kube::{PodBuilder, Resource, namespace};

#[tokio::test]
async fn a_watch_sends_existing_objects_and_then_changes() {
    let (api, client) = start();
    apply_pod(&api, "a", "node-a");
    let mut watch = client.watch("/api/v1/pods?watch=true").await;
    watch.expect(&[("ADDED", "a")]).await;
    let added = apply_pod(&api, "b", "node-a");
    let (kind, object) = watch.event().await;
    assert_eq!((kind.as_str(), version(&object)), ("ADDED", added));
    assert_eq!((&object["kind"], &object["apiVersion"]), (&json!("Pod"), &json!("v1")));
    let modified = apply_pod(&api, "b", "node-b");
    let (kind, object) = watch.event().await;
    assert_eq!((kind.as_str(), version(&object)), ("MODIFIED", modified));
    assert!(api.delete(Resource::Pods, Some("team"), "b"));
    let (kind, object) = watch.event().await;
    assert_eq!((kind.as_str(), version(&object)), ("DELETED", modified + 1));
    assert_eq!(object["spec"]["nodeName"], "node-b");
    assert!(!api.delete(Resource::Pods, Some("team"), "b"));
    // Changes of other resources go to other watches.
    api.apply(Resource::Namespaces, namespace("team", &[]));
    apply_pod(&api, "c", "node-a");
    watch.expect(&[("ADDED", "c")]).await;
}

#[tokio::test]
async fn a_watch_resumes_after_its_version() {
    let (api, client) = start();
    let seen = apply_pod(&api, "a", "node-a");
    apply_pod(&api, "b", "node-a");
    api.delete(Resource::Pods, Some("team"), "a");
    let path = format!("/api/v1/pods?watch=1&resourceVersion={seen}");
    let mut watch = client.watch(&path).await;
    watch.expect(&[("ADDED", "b"), ("DELETED", "a")]).await;
    watch.expect_silence().await;
}

#[tokio::test]
async fn a_selector_turns_changes_into_additions_and_deletions() {
    let (api, client) = start();
    let before = apply_pod(&api, "a", "node-b");
    let path = format!("/api/v1/pods?watch=true&fieldSelector=spec.nodeName%3Dnode-a&resourceVersion={before}");
    let mut live = client.watch(&path).await;
    apply_pod(&api, "a", "node-a");
    apply_pod(&api, "other", "node-b");
    apply_pod(&api, "a", "node-a");
    let left = apply_pod(&api, "a", "node-c");
    api.delete(Resource::Pods, Some("team"), "a");
    // A live watch and one that catches up receive the same events.
    let mut late = client.watch(&path).await;
    for watch in [&mut live, &mut late] {
        watch.expect(&[("ADDED", "a"), ("MODIFIED", "a")]).await;
        let (kind, object) = watch.event().await;
        assert_eq!((kind.as_str(), version(&object)), ("DELETED", left));
        // The state that the client knew, not the one that it may not see.
        assert_eq!(object["spec"]["nodeName"], "node-a");
    }
    live.expect_silence().await;
}

#[tokio::test]
async fn a_namespaced_watch_sees_its_namespace() {
    let (api, client) = start();
    let mut watch = client.watch("/api/v1/namespaces/team/pods?watch=true").await;
    api.apply(Resource::Pods, PodBuilder::new("other", "x").build());
    apply_pod(&api, "a", "node-a");
    watch.expect(&[("ADDED", "a")]).await;
}

#[tokio::test]
async fn a_new_pod_of_the_same_name_is_another_pod() {
    let (api, client) = start();
    let first = api.apply(Resource::Pods, PodBuilder::new("team", "web-0").uid("u1").build());
    let kept = api.apply(Resource::Pods, PodBuilder::new("team", "web-0").build());
    assert_eq!(kept["metadata"]["uid"], "u1");
    assert_eq!(kept["metadata"]["creationTimestamp"], first["metadata"]["creationTimestamp"]);
    let path = format!("/api/v1/pods?watch=true&resourceVersion={}", version(&kept));
    let mut watch = client.watch(&path).await;
    api.apply(Resource::Pods, PodBuilder::new("team", "web-0").uid("u2").build());
    for (expected, uid) in [("DELETED", "u1"), ("ADDED", "u2")] {
        let (kind, object) = watch.event().await;
        assert_eq!((kind.as_str(), &object["metadata"]["uid"]), (expected, &json!(uid)));
    }
}

#[tokio::test]
async fn a_watch_from_forgotten_history_gets_410() {
    let (api, client) = start();
    let old = apply_pod(&api, "a", "node-a");
    let latest = apply_pod(&api, "b", "node-a");
    api.compact();
    let path = |version| format!("/api/v1/pods?watch=true&resourceVersion={version}");
    let mut watch = client.watch(&path(old)).await;
    let (kind, status) = watch.event().await;
    assert_eq!((kind.as_str(), &status["kind"]), ("ERROR", &json!("Status")));
    assert_eq!((&status["code"], &status["reason"]), (&json!(410), &json!("Expired")));
    assert_eq!(watch.line().await.unwrap(), None);
    // A watch can start from the version of the compaction itself.
    let mut watch = client.watch(&path(latest)).await;
    apply_pod(&api, "c", "node-a");
    watch.expect(&[("ADDED", "c")]).await;
}

#[tokio::test]
async fn bookmarks_are_sent_only_to_watches_that_asked() {
    let (api, client) = start();
    let mut plain = client.watch("/api/v1/pods?watch=true").await;
    let mut marked = client.watch("/api/v1/pods?watch=true&allowWatchBookmarks=true").await;
    api.apply(Resource::Namespaces, namespace("team", &[]));
    api.send_bookmark(Resource::Pods);
    let (kind, object) = marked.event().await;
    assert_eq!(kind, "BOOKMARK");
    assert_eq!(version(&object), api.resource_version());
    assert_eq!(object["kind"], "Pod");
    // As a real server writes it, which not every decoder of a pod expects.
    assert_eq!(object["spec"], json!({ "containers": null }));
    assert!(object["metadata"].get("annotations").is_none());
    apply_pod(&api, "a", "node-a");
    plain.expect(&[("ADDED", "a")]).await;
}

#[tokio::test]
async fn bookmarks_are_sent_periodically() {
    let (api, client) = start();
    api.set_bookmark_interval(Duration::from_millis(10));
    let mut watch = client.watch("/api/v1/namespaces?watch=true&allowWatchBookmarks=true").await;
    for _ in 0..3 {
        assert_eq!(watch.event().await.0, "BOOKMARK");
    }
}

#[tokio::test]
async fn a_streaming_list_ends_with_a_bookmark() {
    let (api, client) = start();
    apply_pod(&api, "a", "node-a");
    let latest = apply_pod(&api, "b", "node-a");
    let path = "/api/v1/pods?watch=true&allowWatchBookmarks=true&sendInitialEvents=true\
        &resourceVersionMatch=NotOlderThan&resourceVersion=";
    let mut watch = client.watch(path).await;
    watch.expect(&[("ADDED", "a"), ("ADDED", "b")]).await;
    let (kind, object) = watch.event().await;
    assert_eq!((kind.as_str(), version(&object)), ("BOOKMARK", latest));
    assert_eq!(object["metadata"]["annotations"]["k8s.io/initial-events-end"], "true");
    apply_pod(&api, "c", "node-a");
    watch.expect(&[("ADDED", "c")]).await;

    let (code, _) = client.get("/api/v1/pods?watch=true&sendInitialEvents=true").await;
    assert_eq!(code, 422);
    api.without_streaming_lists(true);
    let (code, status) = client.get(path).await;
    assert_eq!((code, &status["reason"]), (422, &json!("Invalid")));
    assert!(status["message"].as_str().unwrap().contains("sendInitialEvents is forbidden"));
    api.without_streaming_lists(false);
    client.watch(path).await.expect(&[("ADDED", "a")]).await;
}

#[tokio::test]
async fn a_watch_ends_cleanly_at_its_timeout() {
    let (api, client) = start();
    let mut watch = client.watch("/api/v1/pods?watch=true&timeoutSeconds=1").await;
    assert_eq!(api.watchers(Resource::Pods), 1);
    assert_eq!(watch.line().await.unwrap(), None);
    soon(api.wait_for_no_watchers(Resource::Pods)).await;
}

#[tokio::test]
async fn a_watch_of_partial_metadata() {
    let (api, client) = start();
    let client = client.accept(PARTIAL);
    let mut watch = client.watch("/api/v1/pods?watch=true&allowWatchBookmarks=1").await;
    apply_pod(&api, "a", "node-a");
    let (kind, object) = watch.event().await;
    assert_eq!(kind, "ADDED");
    assert_eq!(object["kind"], "PartialObjectMetadata");
    assert_eq!(object["metadata"]["name"], "a");
    assert!(object.get("spec").is_none());
    api.send_bookmark(Resource::Pods);
    let (kind, object) = watch.event().await;
    assert_eq!((kind.as_str(), &object["kind"]), ("BOOKMARK", &json!("PartialObjectMetadata")));
}

#[tokio::test]
async fn watchers_are_counted_until_the_client_disconnects() {
    let (api, client) = start();
    let waiting = tokio::spawn({
        let api = api.clone();
        async move { api.wait_for_watchers(Resource::Pods, 2).await }
    });
    let first = client.watch("/api/v1/pods?watch=true").await;
    let second = client.watch("/api/v1/pods?watch=true").await;
    soon(waiting).await.unwrap();
    assert_eq!(api.watchers(Resource::Pods), 2);
    assert_eq!(api.watchers(Resource::Namespaces), 0);
    drop((first, second));
    soon(api.wait_for_no_watchers(Resource::Pods)).await;
}
