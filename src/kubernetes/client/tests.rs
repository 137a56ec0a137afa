#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test says loudly what failed")]
use std::net::{Ipv4Addr, TcpListener};
use std::path::PathBuf;

use rolegate_lab::kube::{Fault, KubeApi, Resource, Verb};

use super::*;
use crate::kubernetes::setup::SETUP_TIMEOUT;

fn lab() -> KubeApi {
    let _ = rustls::crypto::ring::default_provider().install_default();
    KubeApi::start(TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap()).unwrap()
}

/// A kubeconfig file for this server that names a client certificate and a key beside it.
fn with_certificate(api: &KubeApi, directory: &Path) -> PathBuf {
    let mut kubeconfig: serde_json::Value = serde_json::from_str(&api.kubeconfig()).unwrap();
    kubeconfig["users"][0]["user"]["client-certificate"] = "current.pem".into();
    kubeconfig["users"][0]["user"]["client-key"] = "current.pem".into();
    let path = directory.join("kubeconfig");
    std::fs::write(&path, kubeconfig.to_string()).unwrap();
    path
}

#[tokio::test]
async fn an_identity_that_changes_on_disk_is_used_from_the_next_connection_on() {
    let (api, files) = (lab(), tempfile::tempdir().unwrap());
    api.require_token(Some("first"));
    let path = files.path().join("kubeconfig");
    std::fs::write(&path, api.kubeconfig()).unwrap();
    let client = connect(&ApiConfig { kubeconfig: Some(path.clone()), ..ApiConfig::default() }).await.unwrap();
    client.ask_whole("/api/v1/pods").await.unwrap();
    api.require_token(Some("second"));
    assert_eq!(client.ask_whole("/api/v1/pods").await.unwrap_err().code(), Some(401));
    std::fs::write(&path, "half writ").unwrap();
    assert_eq!(client.ask_whole("/api/v1/pods").await.unwrap_err().code(), Some(401), "what it was is used on");
    std::fs::write(&path, api.kubeconfig()).unwrap();
    client.ask_whole("/api/v1/pods").await.unwrap();
}

#[test]
fn a_certificate_that_is_replaced_by_another_link_counts_as_changed() {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let _inside = runtime.enter();
    let (api, files) = (lab(), tempfile::tempdir().unwrap());
    let current = files.path().join("current.pem");
    for name in ["1.pem", "2.pem"] {
        std::fs::write(files.path().join(name), name).unwrap();
    }
    std::os::unix::fs::symlink("1.pem", &current).unwrap();
    let config = ApiConfig { kubeconfig: Some(with_certificate(&api, files.path())), ..ApiConfig::default() };
    let first = fingerprint(&config, Path::new("/nonexistent"));
    assert_eq!(fingerprint(&config, Path::new("/nonexistent")), first);
    // As the kubelet does it: a new link is renamed over the old one.
    std::os::unix::fs::symlink("2.pem", files.path().join("next")).unwrap();
    std::fs::rename(files.path().join("next"), &current).unwrap();
    assert_ne!(fingerprint(&config, Path::new("/nonexistent")), first);
}

#[test]
fn the_fingerprint_has_the_token_and_ca_of_the_pod_where_they_are_used() {
    let files = tempfile::tempdir().unwrap();
    let now = |api: &ApiConfig| fingerprint(api, files.path());
    let in_pod = ApiConfig::default();
    let by_server = ApiConfig { server: Some("https://127.0.0.1:6443".to_owned()), ..ApiConfig::default() };
    let (mut last, elsewhere) = (now(&in_pod), now(&by_server));
    for (name, text) in [("ca.crt", "first"), ("token", "first"), ("ca.crt", "second"), ("token", "second")] {
        std::fs::write(files.path().join(name), text).unwrap();
        assert_ne!(now(&in_pod), last, "{name}: {text}");
        last = now(&in_pod);
    }
    assert_eq!(now(&by_server), elsewhere, "the service account is not read then");
}

/// What a plugin gives without an end is kept until the API refuses it.
#[tokio::test]
async fn a_token_of_a_plugin_that_is_refused_is_asked_for_anew() {
    let (api, files) = (lab(), tempfile::tempdir().unwrap());
    let token = files.path().join("token");
    let credential = |token: &str| {
        format!(r#"{{"apiVersion":"client.authentication.k8s.io/v1","kind":"ExecCredential","status":{{"token":"{token}"}}}}"#)
    };
    std::fs::write(&token, credential("first")).unwrap();
    let mut kubeconfig: serde_json::Value = serde_json::from_str(&api.kubeconfig()).unwrap();
    kubeconfig["users"][0]["user"] = serde_json::json!({ "exec": {
        "apiVersion": "client.authentication.k8s.io/v1", "command": "cat", "args": [token], "interactiveMode": "Never",
    } });
    let path = files.path().join("kubeconfig");
    std::fs::write(&path, kubeconfig.to_string()).unwrap();
    api.require_token(Some("first"));
    let client = connect(&ApiConfig { kubeconfig: Some(path), ..ApiConfig::default() }).await.unwrap();
    client.ask_whole("/api/v1/pods").await.unwrap();
    api.require_token(Some("second"));
    std::fs::write(&token, credential("second")).unwrap();
    assert_eq!(client.ask_whole("/api/v1/pods").await.unwrap_err().code(), Some(401));
    client.ask_whole("/api/v1/pods").await.unwrap();
    // One that fails is said without what it wrote.
    std::fs::write(&token, "not a credential but s3cr3t").unwrap();
    let error = connect(&client.0.api).await.unwrap_err().to_string();
    assert!(error.contains("exec plugin") && !error.contains("s3cr3t"), "{error}");
    // Nor where it fails while its token is renewed.
    let ended = credential("second").replace(r#""token""#, r#""expirationTimestamp":"2026-01-01T00:00:00Z","token""#);
    std::fs::write(&token, ended).unwrap();
    let client = connect(&client.0.api).await.unwrap();
    std::fs::write(&token, "not a credential but s3cr3t").unwrap();
    let error = client.ask_whole("/api/v1/pods").await.unwrap_err().to_string();
    assert!(error.contains("exec plugin") && !error.contains("s3cr3t"), "{error}");
}

/// Its arguments and its environment may hold a secret, and what it writes too.
#[tokio::test]
async fn of_a_plugin_that_fails_nothing_is_told_but_that_it_did() {
    let (api, files) = (lab(), tempfile::tempdir().unwrap());
    let mut kubeconfig: serde_json::Value = serde_json::from_str(&api.kubeconfig()).unwrap();
    kubeconfig["users"][0]["user"] = serde_json::json!({ "exec": {
        "apiVersion": "client.authentication.k8s.io/v1", "command": "sh", "interactiveMode": "Never",
        "args": ["-c", "echo s3cr3t; echo s3cr3t >&2; exit 3", "--client-secret=s3cr3t"],
        "env": [{ "name": "CLIENT_SECRET", "value": "s3cr3t" }],
    } });
    let path = files.path().join("kubeconfig");
    std::fs::write(&path, kubeconfig.to_string()).unwrap();
    let error = connect(&ApiConfig { kubeconfig: Some(path), ..ApiConfig::default() }).await.unwrap_err();
    let told = format!("{error} {error:?}");
    assert!(told.contains("exec plugin") && told.contains("exit status: 3") && !told.contains("s3cr3t"), "{told}");
}

/// A plugin that hangs is one process and one thread, however often and by however many its outcome is wanted.
#[tokio::test]
async fn a_plugin_that_hangs_is_run_once_and_its_outcome_is_used_when_it_comes() {
    let (api, files) = (lab(), tempfile::tempdir().unwrap());
    let [runs, hold, answer] = ["runs", "hold", "answer"].map(|name| files.path().join(name));
    let credential = r#"{"apiVersion":"client.authentication.k8s.io/v1","kind":"ExecCredential","status":{"token":"first"}}"#;
    std::fs::write(&answer, credential).unwrap();
    let mut kubeconfig: serde_json::Value = serde_json::from_str(&api.kubeconfig()).unwrap();
    kubeconfig["users"][0]["user"] = serde_json::json!({ "exec": {
        "apiVersion": "client.authentication.k8s.io/v1", "command": "sh", "interactiveMode": "Never",
        // It waits for as long as there is a file, and not for ever.
        "args": ["-c", "echo run >> \"$0\"; n=0; while [ -e \"$1\" ] && [ $n -lt 1000 ]; do n=$((n+1)); sleep 0.02; done; cat \"$2\"",
            runs, hold, answer],
    } });
    let path = files.path().join("kubeconfig");
    std::fs::write(&path, kubeconfig.to_string()).unwrap();
    let client = connect(&ApiConfig { kubeconfig: Some(path), ..ApiConfig::default() }).await.unwrap();
    // From now on it waits. A set-up runs it more than once.
    std::fs::write(&hold, "").unwrap();
    let run = || std::fs::read_to_string(&runs).unwrap().lines().count();
    let before = run();
    client.connected().refused = true;
    tokio::time::pause();
    let began = Instant::now();
    let asked = async {
        tokio::join!(client.current(), client.current(), client.current());
    };
    let passes = async {
        while run() == before {
            tokio::task::yield_now().await;
        }
        tokio::time::advance(SETUP_TIMEOUT + Duration::from_secs(1)).await;
    };
    tokio::join!(asked, passes);
    client.current().await;
    assert!(began.elapsed() < SETUP_TIMEOUT * 2, "nobody waits for it twice");
    assert!(client.connected().refused && run() == before + 1, "what was known is used on, and it is not run again");
    tokio::time::resume();
    std::fs::remove_file(&hold).unwrap();
    let deadline = Instant::now() + Duration::from_secs(20);
    while client.connected().refused {
        client.current().await;
        assert!(Instant::now() < deadline, "its outcome is used");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[test]
fn values_stand_in_a_query_as_they_are_meant() {
    assert_eq!(encode("spec.nodeName=node-a"), "spec.nodeName%3Dnode-a");
    assert_eq!(encode("a b&c/ü"), "a%20b%26c%2F%C3%BC");
}

#[tokio::test]
async fn objects_are_created_and_changed_and_refusals_are_told_apart() {
    let api = lab();
    let files = tempfile::tempdir().unwrap();
    let path = files.path().join("kubeconfig");
    std::fs::write(&path, api.kubeconfig()).unwrap();
    let client = connect(&ApiConfig { kubeconfig: Some(path), ..ApiConfig::default() }).await.unwrap();
    let event = |name: &str| {
        let event = serde_json::json!({
            "apiVersion": "events.k8s.io/v1", "kind": "Event", "metadata": { "name": name }, "type": "Warning",
            "eventTime": "2026-01-01T00:00:00.000000Z", "action": "A", "reason": "R", "note": "text",
            "reportingController": "rolegate", "reportingInstance": "node-a", "regarding": { "namespace": "shop" },
        });
        event.to_string().into_bytes()
    };
    let events = "/apis/events.k8s.io/v1/namespaces/shop/events";
    client.post(events, event("web.1")).await.unwrap();
    let series = br#"{"series":{"count":2,"lastObservedTime":"2026-01-01T00:00:01.000000Z"}}"#.to_vec();
    client.merge_patch(&format!("{events}/web.1"), series.clone()).await.unwrap();
    assert_eq!((&api.events()[0]["reason"], &api.events()[0]["series"]["count"]), (&"R".into(), &2.into()));
    assert_eq!(client.post(events, event("web.1")).await.unwrap_err().code(), Some(409));
    assert_eq!(client.merge_patch(&format!("{events}/none"), series).await.unwrap_err().code(), Some(404));
    api.deny(Verb::Create, "events");
    let forbidden = client.post(events, event("web.2")).await.unwrap_err();
    assert_eq!((forbidden.code(), forbidden.is_of_ending_namespace()), (Some(403), false));
    api.allow(Verb::Create, "events");
    api.fail_next(Fault { status: 429, retry_after: Some(7), ..Fault::default() });
    assert_eq!(client.post(events, event("web.2")).await.unwrap_err().retry_after(), Duration::from_secs(7));
    let mut ending = rolegate_lab::kube::namespace("shop", &[]);
    ending["status"]["phase"] = "Terminating".into();
    api.apply(Resource::Namespaces, ending);
    let ending = client.post(events, event("web.2")).await.unwrap_err();
    assert_eq!((ending.code(), ending.is_of_ending_namespace()), (Some(403), true));
    api.shutdown();
    assert_eq!(client.post(events, event("web.2")).await.unwrap_err().code(), None);
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_comes_without_end_is_not_waited_for() {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let _ = rustls::crypto::ring::default_provider().install_default();
    let server = tokio::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let api = ApiConfig { server: Some(format!("http://{}", server.local_addr().unwrap())), ..ApiConfig::default() };
    let trickling = tokio::spawn(async move {
        let (mut stream, _) = server.accept().await.unwrap();
        let _ = stream.read(&mut [0; 4096]).await;
        let mut piece = &b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n"[..];
        while stream.write_all(piece).await.is_ok() {
            tokio::time::sleep(Duration::from_secs(20)).await;
            piece = b" ";
        }
    });
    let client = connect(&api).await.unwrap();
    let began = Instant::now();
    let failure = tokio::time::timeout(Duration::from_secs(600), client.ask_whole("/api/v1/pods")).await.expect("an end").unwrap_err();
    assert!(matches!(failure, RequestFailure::Slow), "{failure}");
    assert!(began.elapsed() >= WHOLE_TIMEOUT && began.elapsed() < WHOLE_TIMEOUT * 2);
    trickling.abort();
}
