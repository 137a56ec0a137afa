//! Clients that are rare, and what they send.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::TcpStream;

use rolegate_lab::daemon::Setup;
use rolegate_lab::kube::Resource;
use rolegate_lab::sts::Role;

use crate::connections::status_on;
use crate::world::{Fakes, PATIENCE, ROLES, World, arn, ip, pod};

const CHUNKED: &str = "PUT /latest/api/token HTTP/1.1\r\nHost: 169.254.169.254\r\nX-aws-ec2-metadata-token-ttl-seconds: 60\r\n\
                       Transfer-Encoding: chunked\r\n\r\n";

/// Reads until the daemon closes the connection.
fn rest(mut stream: &TcpStream) -> String {
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).unwrap();
    String::from_utf8(bytes).unwrap()
}

#[test]
fn an_empty_chunked_request_for_a_token_ends_its_connection() {
    let world = World::start();
    for pieces in [&["0\r\n\r\n"][..], &["0", "\r\n\r", "\n"], &["0\r\n", "\r\n"]] {
        let mut stream = world.connect(ip(2));
        stream.set_nodelay(true).unwrap();
        for piece in [CHUNKED].iter().chain(pieces) {
            stream.write_all(piece.as_bytes()).unwrap();
        }
        let answer = rest(&stream);
        assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
        let (head, token) = answer.split_once("\r\n\r\n").unwrap();
        assert!(head.to_ascii_lowercase().contains("connection: close"), "{head}");
        let document = world.request(ip(2), "GET", &format!("{ROLES}web-role"), &[("X-aws-ec2-metadata-token", token)]);
        assert_eq!(document.status, 200);
    }
}

#[test]
fn a_chunked_body_that_does_not_arrive_ends_with_the_head_timeout() {
    let world = World::start_with(|setup| setup.argument("--limits-head-timeout=200ms"));
    for sent in ["", "0\r\n", "1\r\nx\r\n", "0\r\nX: y\r\n"] {
        let mut stream = world.connect(ip(2));
        stream.write_all(CHUNKED.as_bytes()).unwrap();
        stream.write_all(sent.as_bytes()).unwrap();
        let answer = rest(&stream);
        assert!(answer.starts_with("HTTP/1.1 400 "), "{sent:?}: {answer}");
    }
}

/// Whether the daemon has closed a connection, on which it answers nothing more.
fn has_ended(stream: &TcpStream) -> bool {
    stream.set_nonblocking(true).unwrap();
    !stream.peek(&mut [0; 1]).is_err_and(|error| error.kind() == ErrorKind::WouldBlock)
}

/// Neither a new connection nor one that was answered before keeps its place by a body that it holds back.
#[test]
fn connections_that_hold_back_a_body_make_room() {
    let change = |setup: Setup| setup.argument("--limits-head-timeout=1m").argument("--limits-connections-per-pod=4");
    let world = World::start_with(change);
    for (pod, was_answered) in [(ip(2), false), (ip(3), true)] {
        let token = world.new_token(pod).text();
        let held: Vec<_> = (0..4).map(|_| world.connect(pod)).collect();
        for mut stream in &held {
            if was_answered {
                assert_eq!(status_on(stream, &token), "200");
            }
            stream.write_all(CHUNKED.as_bytes()).unwrap();
        }
        assert_eq!(status_on(&world.connect(pod), &token), "200");
        world.eventually(|_| held.iter().any(has_ended), |has_ended| *has_ended);
    }
}

#[test]
fn the_arn_of_another_role_is_refused_with_the_pod_in_the_log() {
    let world = World::start();
    assert_eq!(world.get(ip(2), &format!("{ROLES}{}/", arn("web-role"))).status, 200);
    let other = world.get(ip(2), &format!("{ROLES}{}", arn("db-role")));
    assert_eq!((other.status, other.body.len()), (404, 0));
    assert_eq!(world.metric(r#"rolegate_denials_total{reason="other-role"}"#), 1.0);
    let is_told = |line: &str| line.contains(r#""reason":"other-role""#) && line.contains(r#""pod":"web""#);
    world.eventually(|world| world.daemon.log().lines().any(is_told), |is_told| *is_told);
}

/// Templates of manifests leave empty annotations behind, and kiam takes any session name.
#[test]
fn empty_annotations_count_as_absent_and_odd_names_are_made_fit() {
    let fakes = Fakes::new();
    fakes.sts.add_role(Role::new(arn("web-role")));
    let annotated = |name: &str, last, id: &str, session: &str| {
        let pod = pod(name, ip(last), Some("web-role")).annotation("iam.amazonaws.com/external-id", id);
        pod.annotation("iam.amazonaws.com/session-name", session).build()
    };
    fakes.api.apply(Resource::Pods, annotated("empty", 2, "", ""));
    fakes.api.apply(Resource::Pods, annotated("odd", 3, "", "team a/night: \u{e9}"));
    let setup = fakes.setup();
    let world = fakes.into_world(&setup);
    world.document(ip(2), "web-role");
    world.document(ip(3), "web-role");
    let calls = world.fakes.sts.calls();
    let told: Vec<_> = calls
        .iter()
        .filter(|call| call.role_arn.as_deref() == Some(&arn("web-role")))
        .map(|call| (call.session_name.as_deref(), call.external_id.as_deref()))
        .collect();
    assert_eq!(told, [(Some("empty"), None), (Some("team-a-night---"), None)]);
}
