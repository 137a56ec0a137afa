#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test says loudly what failed")]
use std::net::{Ipv4Addr, TcpListener};
use std::sync::{Arc, Mutex};

use rolegate_lab::kube::{Fault, KubeApi, PodBuilder, RecordedRequest, Resource, Verb};
use serde_json::Value;
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::sync::mpsc;

use super::*;
use crate::config::ApiConfig;
use crate::kubernetes::client;
use crate::kubernetes::response::ANSWER_TIMEOUT;
use crate::pods::watch::objects::PodObject;

/// What came out, in words.
type Told = mpsc::UnboundedReceiver<String>;

struct Following {
    api: KubeApi,
    metrics: Metrics,
    told: Told,
    running: tokio::task::JoinHandle<()>,
}

impl Drop for Following {
    fn drop(&mut self) {
        self.running.abort();
    }
}

fn lab() -> KubeApi {
    let _ = rustls::crypto::ring::default_provider().install_default();
    KubeApi::start(TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap()).unwrap()
}

/// Time passes at once for whatever waits, and no answer is missed that is on its way.
async fn pass(time: Duration) {
    tokio::time::pause();
    tokio::time::advance(time).await;
    tokio::time::resume();
}

/// When each request was had.
type Asked = Arc<Mutex<Vec<Instant>>>;

/// Follows a server that answers as it is told, and ends every answer at once.
async fn following_canned(answer: impl Fn(&str) -> String + Send + 'static) -> (Following, Asked) {
    following_canned_for(Duration::ZERO, answer).await
}

/// Follows a server that answers as it is told, and ends every answer after a while.
async fn following_canned_for(open: Duration, answer: impl Fn(&str) -> String + Send + 'static) -> (Following, Asked) {
    let server = tokio::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let (url, asked) = (format!("http://{}", server.local_addr().unwrap()), Asked::default());
    tokio::spawn({
        let asked = asked.clone();
        async move {
            while let Ok((stream, _)) = server.accept().await {
                let mut stream = BufReader::new(stream);
                let mut target = String::new();
                stream.read_line(&mut target).await.unwrap();
                asked.lock().unwrap().push(Instant::now());
                let mut header = String::new();
                while stream.read_line(&mut header).await.unwrap() > 2 {
                    header.clear();
                }
                let answer = "HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n".to_owned() + &answer(&target);
                // Who has read enough goes.
                let _ = stream.write_all(answer.as_bytes()).await;
                let _ = stream.flush().await;
                tokio::time::sleep(open).await;
            }
        }
    });
    (following_at(lab(), url).await, asked)
}

async fn following(api: KubeApi) -> Following {
    let url = api.url();
    following_at(api, url).await
}

async fn following_at(api: KubeApi, url: String) -> Following {
    let client = client::connect(&ApiConfig { server: Some(url), ..ApiConfig::default() }).await.unwrap();
    let (path, fields, annotations) = ("/api/v1/pods".to_owned(), "spec.nodeName=node-a".to_owned(), vec![Annotation::new("role", 2048)]);
    let selection = Selection { resource: "pods", path, fields, annotations, owners: false };
    let (metrics, (tell, told)) = (Metrics::new(), mpsc::unbounded_channel());
    let running = tokio::spawn({
        let metrics = metrics.clone();
        async move {
            let take = |event: WatchEvent<'_, PodObject>| {
                let name = |metadata: &ObjectMeta| metadata.name.clone().unwrap_or_default();
                let words = match event {
                    WatchEvent::Alive | WatchEvent::UpToDate => return ControlFlow::Continue(()),
                    WatchEvent::Listed { objects, new_history, incomplete, .. } => {
                        let mut names: Vec<_> = objects.iter().map(|object| name(&object.metadata)).collect();
                        names.sort();
                        let kind = if new_history { "new history" } else { "list" };
                        format!("{}{kind} {}", if incomplete { "incomplete " } else { "" }, names.join(" "))
                    }
                    WatchEvent::Applied(object) => format!("applied {}", name(&object.metadata)),
                    WatchEvent::Deleted(metadata) => format!("deleted {}", name(&metadata)),
                    WatchEvent::Unreadable(metadata) => format!("unreadable {}", name(&metadata)),
                    WatchEvent::Failed(failure) => format!("failed: {}", name_of(failure)),
                };
                let _ = tell.send(words);
                ControlFlow::Continue(())
            };
            follow(&client, &metrics, &selection, take).await;
        }
    });
    Following { api, metrics, told, running }
}

/// The variant of a failure, with the code of an answer.
fn name_of(failure: &RequestFailure) -> String {
    let debug = format!("{failure:?}");
    let variant = debug.split(|c: char| !c.is_alphanumeric()).next().unwrap_or_default();
    failure.code().map_or_else(|| variant.to_owned(), |code| format!("{variant} {code}"))
}

impl Following {
    async fn next(&mut self) -> String {
        tokio::time::timeout(Duration::from_secs(20), self.told.recv()).await.expect("something is told").unwrap()
    }

    async fn expect(&mut self, words: &[&str]) {
        for words in words {
            assert_eq!(self.next().await, *words);
        }
    }

    /// Waits until so many watches have begun.
    async fn watches(&self, number: usize) {
        while self.requests(Verb::Watch).len() < number {
            self.api.wait_for_watchers(Resource::Pods, 1).await;
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    fn count(&self, metric: &str) -> u32 {
        let text = String::from_utf8(self.metrics.render()).unwrap();
        let value = text.lines().find_map(|line| line.strip_prefix(metric)?.strip_prefix(' '));
        value.map_or(0, |value| value.parse().unwrap())
    }

    fn requests(&self, verb: Verb) -> Vec<RecordedRequest> {
        self.api.requests().into_iter().filter(|request| request.verb == Some(verb)).collect()
    }
}

fn put(api: &KubeApi, name: &str) -> Value {
    api.apply(Resource::Pods, PodBuilder::new("shop", name).node("node-a").build())
}

fn event(kind: &str, object: &Value) -> String {
    serde_json::json!({ "type": kind, "object": object }).to_string()
}

const UNDECODABLE: &str = r#"rolegate_watch_undecodable_total{resource="pods"}"#;

#[tokio::test]
async fn a_list_comes_as_the_beginning_of_a_watch_and_what_changes_after_it() {
    let api = lab();
    put(&api, "a");
    put(&api, "b");
    let mut following = following(api).await;
    following.expect(&["list a b"]).await;
    put(&following.api, "c");
    following.api.delete(Resource::Pods, Some("shop"), "a");
    following.expect(&["applied c", "deleted a"]).await;
    assert_eq!((following.requests(Verb::List).len(), following.requests(Verb::Watch).len()), (0, 1));
}

#[tokio::test]
async fn lists_that_are_not_streamed_come_in_pages_and_that_is_remembered() {
    let api = lab();
    api.without_streaming_lists(true);
    let names: Vec<_> = (100..220).map(|number| format!("pod-{number}")).collect();
    names.iter().for_each(|name| drop(put(&api, name)));
    let mut following = following(api).await;
    following.expect(&[&format!("list {}", names.join(" "))]).await;
    assert_eq!(following.requests(Verb::List).len(), 6);
    following.api.wait_for_watchers(Resource::Pods, 1).await;
    following.api.compact();
    following.api.cut_connections();
    following.next().await;
    put(&following.api, "pod-220");
    following.api.compact();
    // From a version that is not kept any more, a list is read again; it is not asked for as a watch again.
    loop {
        if following.next().await.starts_with("list pod-100") {
            break;
        }
    }
    let streamed = following.requests(Verb::Watch).into_iter().filter(|request| request.query("sendInitialEvents").is_some());
    assert_eq!(streamed.count(), 1);
    assert_eq!(following.count(r#"rolegate_watch_errors_total{resource="pods"}"#), 1, "the cut alone");
}

#[tokio::test]
async fn an_object_that_cannot_be_read_does_not_stop_the_others_of_a_list() {
    for streaming in [true, false] {
        let api = lab();
        api.without_streaming_lists(!streaming);
        put(&api, "a");
        let mut odd = put(&api, "b");
        odd["status"]["phase"] = serde_json::json!({ "secret": 1 });
        api.apply(Resource::Pods, odd);
        put(&api, "c");
        let mut following = following(api).await;
        following.expect(&["list a c"]).await;
        assert_eq!(following.count(UNDECODABLE), 1, "streaming: {streaming}");
    }
}

#[tokio::test]
async fn an_unreadable_object_is_forgotten_and_does_not_stop_the_watch() {
    let mut following = following(lab()).await;
    following.expect(&["list "]).await;
    let mut odd = put(&following.api, "b");
    odd["spec"]["hostNetwork"] = "perhaps".into();
    let mut odder = odd.clone();
    odder["metadata"]["annotations"] = "none".into();
    // What is gone need not be read.
    for line in [event("MODIFIED", &odd), event("SOMETHING", &odd), event("ADDED", &odder), event("DELETED", &odder)] {
        following.api.inject_raw_event(Resource::Pods, &line);
    }
    put(&following.api, "c");
    following.expect(&["applied b", "unreadable b", "unreadable b", "unreadable b", "deleted b", "applied c"]).await;
    assert_eq!(following.count(UNDECODABLE), 4);
    assert_eq!(following.requests(Verb::Watch).len(), 1, "the watch is the same");
}

/// A line of a watch with members in this order.
fn line(members: &[(&str, &str)]) -> String {
    format!("{{{}}}", members.iter().map(|(key, value)| format!("\"{key}\":{value}")).collect::<Vec<_>>().join(","))
}

#[tokio::test]
async fn neither_the_size_nor_the_depth_nor_the_order_of_an_object_matters() {
    let mut following = following(lab()).await;
    following.expect(&["list "]).await;
    let deep = "[".repeat(100_000) + &"]".repeat(100_000);
    let long = format!("\"{}\"", "\\u003c".repeat(1_500_000));
    let spec = r#"{"nodeName":"node-a"}"#;
    for (number, kind) in ["ADDED", "MODIFIED", "DELETED"].into_iter().enumerate() {
        let kind_of = format!("\"{kind}\"");
        let names = [("uid", "\"u\""), ("name", "\"fat\""), ("namespace", "\"shop\""), ("resourceVersion", "\"900\"")];
        let annotations = line(&[("notes", &long), ("role", "\"web\"")]);
        let before = line(&[&[("managedFields", &*deep), ("annotations", &annotations)], &names[..]].concat());
        let after = line(&[&names[..], &[("annotations", &annotations), ("managedFields", &deep)]].concat());
        for (metadata, object_first) in [(&before, true), (&after, false)] {
            let object = line(&[("status", r#"{"x":[{"metadata":{"uid":"another"}}]}"#), ("spec", spec), ("metadata", metadata)]);
            let members = [("type", &*kind_of), ("object", &*object)];
            let sent = if object_first { line(&[members[1], members[0]]) } else { line(&members) };
            following.api.inject_raw_event(Resource::Pods, &sent);
            following.expect(&[&format!("{} fat", if number == 2 { "deleted" } else { "applied" })]).await;
        }
    }
    put(&following.api, "next");
    following.expect(&["applied next"]).await;
    assert_eq!((following.requests(Verb::Watch).len(), following.count(UNDECODABLE)), (1, 0));
}

#[tokio::test]
async fn whatever_is_wrong_with_an_object_costs_that_object_alone() {
    let mut following = following(lab()).await;
    following.expect(&["list "]).await;
    let many = (0..100_000).map(|number| format!(r#"{{"ip":"{number}"}}"#)).collect::<Vec<_>>().join(",");
    let crowded = format!(r#"{{"podIPs":[{many}]}}"#);
    let metadata = |annotations: &str| format!(r#"{{"annotations":{annotations},"name":"odd","uid":"u","resourceVersion":"900"}}"#);
    let sound = metadata("{}");
    let mut lines = Vec::new();
    for kind in ["\"ADDED\"", "\"MODIFIED\""] {
        for (spec, status, metadata) in [
            ("{}", &*crowded, &sound),
            ("[]", "{}", &sound),
            ("{}", "7", &sound),
            ("{}", r#"{"podIPs":{}}"#, &sound),
            (r#"{"nodeName":7}"#, "{}", &sound),
            (r#"{"nodeName":"a","nodeName":"b"}"#, "{}", &sound),
            (r#"{"nodeName":tru}"#, "{}", &sound),
            ("{}", "{}", &metadata(r#"{"role":"\ud800"}"#)),
            ("{}", "{}", &metadata(r#"{"role":"\q"}"#)),
            ("{}", "{}", &metadata(r#"{"role":7}"#)),
            ("{}", "{}", &metadata("[[[]]]")),
        ] {
            lines.push(line(&[("object", &line(&[("status", status), ("spec", spec), ("metadata", metadata)])), ("type", kind)]));
        }
    }
    for line in &lines {
        following.api.inject_raw_event(Resource::Pods, line);
        assert_eq!(following.next().await, "unreadable odd", "{}", &line[..line.len().min(300)]);
    }
    // What is gone need not be read.
    let gone = lines[0].replace("ADDED", "DELETED");
    following.api.inject_raw_event(Resource::Pods, &gone);
    following.expect(&["deleted odd"]).await;
    put(&following.api, "next");
    following.expect(&["applied next"]).await;
    assert_eq!(following.requests(Verb::Watch).len(), 1);
    assert_eq!(usize::try_from(following.count(UNDECODABLE)).unwrap(), lines.len());
}

#[tokio::test(start_paused = true)]
async fn a_line_that_does_not_end_is_given_up() {
    for listed in [true, false] {
        let server = tokio::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let url = format!("http://{}", server.local_addr().unwrap());
        let end = serde_json::json!({ "metadata": { "resourceVersion": "5", "annotations": { "k8s.io/initial-events-end": "true" } } });
        let begin = if listed { event("BOOKMARK", &end) + "\n{" } else { "{".to_owned() };
        let serving = tokio::spawn(async move {
            while let Ok((mut stream, _)) = server.accept().await {
                // What is sent comes at once, by the clock that stands still.
                stream.set_nodelay(true).unwrap();
                let begin = "HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n".to_owned() + &begin;
                tokio::spawn(async move {
                    let mut piece = begin.as_str();
                    while stream.write_all(piece.as_bytes()).await.is_ok() {
                        tokio::time::sleep(Duration::from_secs(20)).await;
                        piece = "[";
                    }
                });
            }
        });
        let mut following = following_at(lab(), url).await;
        if listed {
            assert_eq!(following.told.recv().await.unwrap(), "list ");
        }
        let told = following.told.recv().await.unwrap();
        assert_eq!(told, "failed: Slow", "listed: {listed}");
        serving.abort();
    }
}

#[tokio::test]
async fn a_change_of_which_not_even_the_uid_can_be_read_is_made_up_by_a_list() {
    let without_uid = serde_json::json!({ "metadata": { "namespace": "shop", "name": "a" } });
    for line in [
        "not json".to_owned(),
        "{}".to_owned(),
        r#"{"type":"MODIFIED","object":{"metadata":{"uid":"a","name":"#.to_owned(),
        event("ADDED", &serde_json::json!(17)),
        event("MODIFIED", &without_uid),
        event("DELETED", &without_uid),
        event("SOMETHING", &without_uid),
    ] {
        let api = lab();
        put(&api, "a");
        let mut following = following(api).await;
        following.expect(&["list a"]).await;
        // The watch is not told of this end.
        following.api.hold_events(Resource::Pods, "a");
        following.api.delete(Resource::Pods, Some("shop"), "a");
        following.api.inject_raw_event(Resource::Pods, &line);
        following.expect(&["failed: Lost", "list "]).await;
        assert_eq!(following.count(UNDECODABLE), 1);
    }
}

#[tokio::test]
async fn an_unreadable_line_of_a_list_does_not_stop_the_list() {
    let streamed = format!("not json\n{}\n", event("BOOKMARK", &serde_json::json!({ "metadata": { "resourceVersion": "5" } })));
    let page = r#"{"kind":"PodList","metadata":{"resourceVersion":"5"},"items":[17,{"metadata":{"name":"a","uid":"a"}}]}"#;
    let (mut following, _) =
        following_canned(move |target| if target.contains("watch=true") { streamed.clone() } else { page.to_owned() }).await;
    let lost = "failed: Lost";
    // Nor does an object in it that is nobody's by what can be read of it, but not before it was asked for again.
    following.expect(&[lost, lost, lost, "incomplete list a"]).await;
}

#[tokio::test]
async fn a_version_that_the_server_does_not_take_is_not_asked_for_again() {
    for status in [400, 422, 504] {
        let api = lab();
        put(&api, "a");
        let mut following = following(api).await;
        following.expect(&["list a"]).await;
        following.api.fail_next(Fault { resource: Some(Resource::Pods), verb: Some(Verb::Watch), status, ..Fault::default() });
        following.api.cut_connections();
        assert_eq!(following.next().await, "failed: Unreachable");
        assert_eq!(following.next().await, format!("failed: Status {status}"));
        following.expect(&["list a"]).await;
    }
    // The same, said within a watch.
    let mut following = following(lab()).await;
    following.expect(&["list "]).await;
    let too_large = r#"{"type":"ERROR","object":{"kind":"Status","code":504,"reason":"Timeout","message":"Too large resource version"}}"#;
    following.api.inject_raw_event(Resource::Pods, too_large);
    assert!(following.next().await.contains("504"));
    following.expect(&["list "]).await;
}

#[tokio::test]
async fn a_version_at_which_nothing_comes_is_given_up_for_a_list() {
    let api = lab();
    api.set_bookmark_interval(Duration::from_secs(36000));
    put(&api, "a");
    let mut following = following(api).await;
    following.expect(&["list a"]).await;
    following.api.send_bookmark(Resource::Pods);
    // A version of the time before the API's data was restored.
    let mut far = put(&following.api, "b");
    far["metadata"]["resourceVersion"] = "1000000".into();
    following.api.inject_raw_event(Resource::Pods, &event("MODIFIED", &far));
    following.expect(&["applied b", "applied b"]).await;
    following.api.cut_connections();
    assert_eq!(following.next().await, "failed: Unreachable");
    for watch in 2..2 + usize::from(FRUITLESS_WATCHES) {
        following.watches(watch).await;
        assert_eq!(following.requests(Verb::Watch).pop().unwrap().query("resourceVersion"), Some("1000000"));
        put(&following.api, "c");
        pass(WATCH_SILENCE).await;
        assert_eq!(following.next().await, "failed: Silent");
    }
    for _ in 0..EARLIER_LISTS {
        assert_eq!(following.next().await, "failed: Earlier");
    }
    following.expect(&["new history a b c"]).await;
}

#[tokio::test]
async fn silence_without_bookmarks_is_no_failure_and_leads_to_a_list_later() {
    let api = lab();
    api.set_bookmark_interval(Duration::from_secs(36000));
    put(&api, "a");
    let mut following = following(api).await;
    following.expect(&["list a"]).await;
    for watch in 2..=2 + usize::from(FRUITLESS_WATCHES) {
        pass(WATCH_SILENCE).await;
        following.watches(watch).await;
    }
    following.expect(&["list a"]).await;
    assert_eq!(following.count(r#"rolegate_watch_errors_total{resource="pods"}"#), 0);
}

#[tokio::test]
async fn a_watch_that_ends_at_once_is_a_failure_whatever_it_sent() {
    let pod = serde_json::json!({ "metadata": { "namespace": "shop", "name": "a", "uid": "a", "resourceVersion": "5" } });
    let end = serde_json::json!({ "metadata": { "resourceVersion": "5", "annotations": { "k8s.io/initial-events-end": "true" } } });
    let lines = format!("{}\n{}\n{}\n", event("ADDED", &pod), event("BOOKMARK", &end), event("MODIFIED", &pod));
    let (mut following, asked) = following_canned(move |_| lines.clone()).await;
    following.expect(&["list a", "applied a"]).await;
    for _ in 0..2 {
        following.expect(&["failed: Ended", "applied a", "applied a"]).await;
    }
    let asked = asked.lock().unwrap().clone();
    let pauses: Vec<_> = asked.windows(2).map(|pair| pair[1] - pair[0]).collect();
    assert!(pauses[0] >= Duration::from_millis(600) && pauses[1] >= Duration::from_millis(1200), "{pauses:?}");
}

#[tokio::test(start_paused = true)]
async fn a_watch_that_ends_soon_after_its_begin_is_a_failure_too() {
    let pod = serde_json::json!({ "metadata": { "namespace": "shop", "name": "a", "uid": "a", "resourceVersion": "5" } });
    let end = serde_json::json!({ "metadata": { "resourceVersion": "5", "annotations": { "k8s.io/initial-events-end": "true" } } });
    let lines = format!("{}\n{}\n{}\n", event("ADDED", &pod), event("BOOKMARK", &end), event("MODIFIED", &pod));
    for (seconds, next) in [(4, "failed: Ended"), (6, "applied a")] {
        let lines = lines.clone();
        let (mut following, _) = following_canned_for(Duration::from_secs(seconds), move |_| lines.clone()).await;
        following.expect(&["list a", "applied a", next]).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_list_whose_pages_take_too_long_is_read_in_smaller_ones() {
    let server = tokio::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let url = format!("http://{}", server.local_addr().unwrap());
    let (limits, mut asked) = mpsc::unbounded_channel();
    tokio::spawn(async move {
        while let Ok((stream, _)) = server.accept().await {
            stream.set_nodelay(true).unwrap();
            let mut stream = BufReader::new(stream);
            let mut target = String::new();
            stream.read_line(&mut target).await.unwrap();
            let limit = target.split_once("limit=").and_then(|(_, rest)| rest.split_once('&')).map(|(limit, _)| limit.to_owned());
            let answer = match limit.as_deref() {
                None => "HTTP/1.1 422 Unprocessable Entity\r\nConnection: close\r\n\r\n",
                Some("1") => {
                    "HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n{\"metadata\":{\"resourceVersion\":\"5\"},\"items\":[{\"metadata\":{\"name\":\"a\",\"uid\":\"a\"}}]}"
                }
                Some(_) => "HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n{\"items\":[",
            };
            let trickles = limit.as_deref().is_some_and(|limit| limit != "1");
            limits.send(limit).unwrap();
            tokio::spawn(async move {
                let mut piece = answer;
                while stream.write_all(piece.as_bytes()).await.is_ok() && trickles {
                    tokio::time::sleep(Duration::from_secs(20)).await;
                    piece = " ";
                }
            });
        }
    });
    let mut following = following_at(lab(), url).await;
    let mut told = String::new();
    while told != "list a" {
        // Time goes by of itself, and the pages take minutes of it.
        told = following.told.recv().await.unwrap();
    }
    let mut all = Vec::new();
    while let Ok(limit) = asked.try_recv() {
        all.extend(limit);
    }
    assert_eq!(all, ["20", "5", "1"]);
}

#[tokio::test]
async fn a_watch_goes_on_where_it_was_cut() {
    let mut following = following(lab()).await;
    following.expect(&["list "]).await;
    let seen = put(&following.api, "a");
    following.expect(&["applied a"]).await;
    // A repeated event of long ago does not take it back.
    let mut old = seen.clone();
    old["metadata"]["resourceVersion"] = "1".into();
    following.api.inject_raw_event(Resource::Pods, &event("ADDED", &old));
    following.expect(&["applied a"]).await;
    following.api.cut_connections();
    put(&following.api, "b");
    assert!(following.next().await.starts_with("failed: "));
    following.expect(&["applied b"]).await;
    let last = following.requests(Verb::Watch).pop().unwrap();
    assert_eq!(last.query("resourceVersion"), seen["metadata"]["resourceVersion"].as_str());
}

#[tokio::test]
async fn history_that_is_not_kept_is_made_up_by_a_list() {
    let mut following = following(lab()).await;
    following.expect(&["list "]).await;
    following.api.inject_raw_event(
        Resource::Pods,
        r#"{"type":"ERROR","object":{"kind":"Status","code":410,"reason":"Expired","message":"too old resource version"}}"#,
    );
    let began = std::time::Instant::now();
    assert!(following.next().await.starts_with("failed: "));
    following.expect(&["list "]).await;
    assert!(began.elapsed() < Duration::from_millis(800), "at once");
    assert_eq!(following.count(r#"rolegate_watch_errors_total{resource="pods"}"#), 0, "it is no error");
}

#[tokio::test]
async fn an_older_bookmark_leads_to_a_list_that_is_taken_if_it_stays_so() {
    let api = lab();
    put(&api, "a");
    let mut following = following(api).await;
    following.expect(&["list a"]).await;
    let mut far = put(&following.api, "b");
    far["metadata"]["resourceVersion"] = "1000000".into();
    following.api.inject_raw_event(Resource::Pods, &event("MODIFIED", &far));
    following.api.send_bookmark(Resource::Pods);
    following.expect(&["applied b", "applied b"]).await;
    assert_eq!(following.next().await, "failed: Expired");
    for _ in 0..EARLIER_LISTS {
        assert_eq!(following.next().await, "failed: Earlier");
    }
    following.expect(&["new history a b"]).await;
}

#[tokio::test]
async fn failures_are_counted_and_tried_again() {
    let api = lab();
    put(&api, "a");
    api.fail_next(Fault { resource: Some(Resource::Pods), status: 503, times: 1, ..Fault::default() });
    let mut following = following(api).await;
    assert_eq!(following.next().await, "failed: Status 503");
    following.expect(&["list a"]).await;
    assert_eq!(following.requests(Verb::Watch).len(), 2, "nobody else tries again beneath");
}

#[tokio::test]
async fn a_list_that_stalls_is_given_up_and_read_in_pages() {
    let api = lab();
    put(&api, "a");
    api.stall(true);
    let mut following = following(api).await;
    following.api.wait_for_request(|request| request.path == "/api/v1/pods").await;
    tokio::time::pause();
    tokio::time::advance(ANSWER_TIMEOUT).await;
    tokio::time::resume();
    assert_eq!(following.next().await, "failed: Silent");
    following.api.stall(false);
    following.expect(&["list a"]).await;
}

#[tokio::test]
async fn a_watch_that_falls_silent_is_begun_anew() {
    let api = lab();
    api.set_bookmark_interval(Duration::from_secs(3600));
    let mut following = following(api).await;
    following.expect(&["list "]).await;
    // What comes after the bookmark says that it has been read.
    following.api.send_bookmark(Resource::Pods);
    put(&following.api, "a");
    following.expect(&["applied a"]).await;
    tokio::time::pause();
    tokio::time::advance(WATCH_SILENCE - Duration::from_secs(1)).await;
    assert!(following.told.try_recv().is_err(), "a bookmark may be late");
    tokio::time::advance(Duration::from_secs(1)).await;
    tokio::time::resume();
    assert_eq!(following.next().await, "failed: Silent");
    put(&following.api, "b");
    following.expect(&["applied b"]).await;
}
