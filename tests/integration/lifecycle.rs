//! Tests of the start and the end of the process.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use rolegate_lab::daemon::Setup;
use socket2::SockRef;

use crate::world::{Fakes, ROLES, TOKEN, World, connect, ip};

/// Sends one request on an open connection. `None` means that the connection ended before the first byte of an answer.
fn ask(stream: &mut TcpStream, request: &str) -> Option<String> {
    stream.write_all(request.as_bytes()).ok()?;
    let (mut answer, mut chunk) = (Vec::new(), [0; 4096]);
    loop {
        match stream.read(&mut chunk) {
            Ok(0) | Err(_) if answer.is_empty() => return None,
            Ok(0) | Err(_) => panic!("a broken answer: {}", String::from_utf8_lossy(&answer)),
            Ok(count) => answer.extend_from_slice(&chunk[..count]),
        }
        let text = String::from_utf8_lossy(&answer);
        if let Some((head, body)) = text.split_once("\r\n\r\n") {
            let length = head.lines().find_map(|line| line.to_ascii_lowercase().strip_prefix("content-length: ")?.parse::<usize>().ok());
            if length.is_some_and(|length| body.len() >= length) {
                return Some(text.into_owned());
            }
        }
    }
}

#[test]
fn sigterm_under_load_breaks_no_answer() {
    let mut world = World::start();
    world.document(ip(2), "web-role");
    let token = world.new_token(ip(2)).text();
    let request = format!("GET {ROLES}web-role HTTP/1.1\r\nHost: 169.254.169.254\r\n{TOKEN}: {token}\r\n\r\n");
    let address = world.daemon.metadata_address();
    let (answers, over) = (AtomicUsize::new(0), AtomicBool::new(false));
    let (status, took) = std::thread::scope(|scope| {
        // Two clients keep their connection, six reconnect for each request.
        for keep_alive in [true, true, false, false, false, false, false, false] {
            let (answers, over, request) = (&answers, &over, &request);
            scope.spawn(move || {
                // Runs until the port is closed.
                while let Ok(mut stream) = connect(ip(2), address) {
                    if over.load(Ordering::Relaxed) {
                        break;
                    }
                    // Thousands of closed connections would use up the ports, so they end with a reset.
                    SockRef::from(&stream).set_linger(Some(Duration::ZERO)).unwrap();
                    while let Some(answer) = ask(&mut stream, request) {
                        assert!(answer.starts_with("HTTP/1.1 200") && answer.ends_with('}'), "{answer}");
                        answers.fetch_add(1, Ordering::Relaxed);
                        if !keep_alive || answer.to_ascii_lowercase().contains("connection: close") {
                            break;
                        }
                    }
                }
            });
        }
        while answers.load(Ordering::Relaxed) < 500 {
            std::thread::yield_now();
        }
        let began = Instant::now();
        world.daemon.terminate().unwrap();
        let status = world.daemon.wait();
        over.store(true, Ordering::Relaxed);
        (status, began.elapsed())
    });
    let status = status.unwrap();
    assert!(took < Duration::from_secs(15), "new connections delay the end: {took:?}");
    assert!(status.success(), "{status}\n{}", world.daemon.log());
    assert_eq!(world.daemon.events("drained").len(), 1);
    assert!(world.daemon.events("drain-deadline").is_empty());
}

#[test]
fn a_request_that_waits_for_sts_is_answered_before_the_end() {
    let mut world = World::start();
    world.fakes.sts.set_behaviour(rolegate_lab::sts::Behaviour::Slow(Duration::from_millis(1500)));
    let token = world.new_token(ip(2)).text();
    let mut stream = world.connect(ip(2));
    write!(stream, "GET {ROLES}web-role HTTP/1.1\r\nHost: 169.254.169.254\r\n{TOKEN}: {token}\r\n\r\n").unwrap();
    world.fakes.runtime.block_on(world.fakes.sts.wait_until(|calls| calls.iter().any(|call| call.action == "AssumeRole")));
    world.daemon.terminate().unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 200") && answer.ends_with('}'), "{answer}");
    assert!(world.daemon.wait().unwrap().success());
}

#[test]
fn readiness_ends_when_the_end_begins() {
    let mut world = World::start();
    // An open connection keeps the drain going for a moment.
    let _open = world.connect(ip(2));
    world.daemon.terminate().unwrap();
    world.daemon.wait_for_log(|line| line["event"] == "stopping" && line["signal"] == "SIGTERM").unwrap();
    let answer = world.eventually(|world| world.daemon.get(None, "/readyz").unwrap(), |answer| answer.status == 503);
    assert!(answer.text().contains("the daemon to shut down"), "{}", answer.text());
    assert!(world.daemon.wait().unwrap().success());
}

#[test]
fn the_operators_port_serves_debug_pages_only_on_request() {
    let world = World::start();
    assert_eq!(world.daemon.get(None, "/debug/store").unwrap().status, 404);
    assert_eq!(world.daemon.get(None, ROLES).unwrap().status, 404);
    let metrics = world.daemon.get(None, "/metrics").unwrap();
    assert_eq!(metrics.header("content-type"), Some("text/plain; version=0.0.4"));
    assert!(metrics.text().contains("rolegate_build_info"));
    for path in ["/metrics", "/healthz", "/readyz", "/debug/store"] {
        assert_ne!(world.get(ip(2), path).status, 200, "{path} on the pods' port");
    }
}

#[test]
fn session_tokens_outlive_a_daemon_whose_keys_are_kept() {
    let directory = tempfile::tempdir().unwrap();
    let kept = format!("--token-key-file={}", directory.path().join("state/keys").display());
    for (arguments, status) in [(vec![kept], 200), (vec![], 401)] {
        let with = |setup: Setup| arguments.iter().fold(setup, Setup::argument);
        let world = World::start_with(with);
        let token = world.new_token(ip(2)).text();
        let World { mut daemon, fakes } = world;
        daemon.terminate().unwrap();
        daemon.wait().unwrap();
        let setup = with(fakes.setup());
        let world = fakes.into_world(&setup);
        assert_eq!(world.request(ip(2), "GET", ROLES, &[(TOKEN, &token)]).status, status, "{arguments:?}");
        assert_eq!(world.request(ip(3), "GET", ROLES, &[(TOKEN, &token)]).status, 401, "another pod's");
    }
}

#[test]
fn two_daemons_share_the_port_and_tokens_during_a_handover() {
    let directory = tempfile::tempdir().unwrap();
    let kept = format!("--token-key-file={}", directory.path().join("keys").display());
    // Only daemons that hand the port over share it. Each has a socket of its own here.
    let socket = |name: &str| format!("--handover-socket={}", directory.path().join(name).display());
    let mut world = World::start_with(|setup| setup.argument(&kept).argument(socket("first")));
    let token = world.new_token(ip(2)).text();
    let port = world.daemon.metadata_address().port();
    let next = world.fakes.setup().argument(&kept).argument(socket("next")).argument(format!("--app-port={port}")).start().unwrap();
    next.wait_ready(None).unwrap();
    let served = |world: &World| {
        let stream = connect(ip(2), next.metadata_address()).unwrap();
        let answer = rolegate_lab::player::request(stream, "GET", ROLES, &[(TOKEN, &token), ("Connection", "close")]);
        assert_eq!(answer.unwrap().text(), "web-role", "{}", world.daemon.log());
    };
    (0..50).for_each(|_| served(&world));
    assert!(world.metric(r#"rolegate_http_requests_total{code="200",route="role-list"}"#) > 0.0, "both daemons get requests");
    world.daemon.terminate().unwrap();
    assert!(world.daemon.wait().unwrap().success());
    (0..50).for_each(|_| served(&world));
}

#[test]
fn a_daemon_whose_keys_cannot_be_kept_warns_and_serves() {
    let world = World::start_with(|setup| setup.argument("--token-key-file=/proc/rolegate/keys"));
    world.document(ip(2), "web-role");
    assert_eq!(world.daemon.events("token-key-file-unavailable").len(), 1, "{}", world.daemon.log());
}

/// The thread that waits for the plugin cannot be ended, and the process must not wait for it.
#[test]
fn an_exec_plugin_that_hangs_does_not_keep_the_process_from_ending() {
    let fakes = Fakes::new();
    fakes.api.require_token(Some("first"));
    let credential = |token: &str| {
        format!(r#"{{"apiVersion":"client.authentication.k8s.io/v1","kind":"ExecCredential","status":{{"token":"{token}"}}}}"#)
    };
    let pipe = fakes.file("pipe", &credential("first"));
    let runs = fakes.file("runs", "");
    let mut kubeconfig: serde_json::Value = serde_json::from_str(&fakes.api.kubeconfig()).unwrap();
    kubeconfig["users"][0]["user"] = serde_json::json!({ "exec": {
        "apiVersion": "client.authentication.k8s.io/v1", "command": "sh", "interactiveMode": "Never",
        "args": ["-c", "echo run >> \"$0\"; timeout 60 cat \"$1\"", runs, pipe],
    } });
    let kubeconfig = format!("--kubeconfig={}", fakes.file("with-plugin", &kubeconfig.to_string()));
    let setup = fakes.setup().argument(kubeconfig);
    let mut world = fakes.into_world(&setup);
    let run = || std::fs::read_to_string(&runs).unwrap().lines().count();
    let before = run();
    // From now on, the plugin waits for a writer.
    std::fs::remove_file(&pipe).unwrap();
    assert!(std::process::Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    world.fakes.api.require_token(Some("second"));
    world.fakes.api.cut_connections();
    world.eventually(|_| run(), |count| *count > before);
    world.daemon.terminate().unwrap();
    let ended = world.daemon.wait();
    assert!(ended.unwrap().success(), "{}", world.daemon.log());
}
