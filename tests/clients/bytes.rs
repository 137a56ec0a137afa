//! Every byte that pods can get from the metadata address, whatever they request.

use rolegate_lab::imds::{Imds, NODE_IDENTITY_SECRET, NODE_ROLE_NAME, NODE_SECRET_ACCESS_KEY, NODE_SESSION_TOKEN, NODE_USER_DATA_SECRET};
use rolegate_lab::node::{Netns, Node, available_or_skip};
use rolegate_lab::player::{PlayLimits, Transcript, play};

use crate::bed::{Bed, LIST, METADATA, PATIENCE, assert_untouched, token};

/// The contents of the metadata service, and ways to request them that have got past proxies in front of it. `{NODE}`, `{OWN}`
/// and `{OTHER}` are the roles of the node, of the requesting pod and of another pod.
const TARGETS: &[&str] = &[
    "/",
    "/latest",
    "/latest/",
    "/latest/meta-data",
    "/latest/meta-data/",
    "/latest/meta-data/iam/",
    "/latest/meta-data/iam/info",
    "/latest/meta-data/iam/security-credentials",
    "/latest/meta-data/iam/security-credentials/",
    "/latest/meta-data/iam/security-credentials/{OWN}",
    "/latest/meta-data/iam/security-credentials/{NODE}",
    "/latest/meta-data/iam/security-credentials/{NODE}/",
    "/latest/meta-data/iam/security-credentials/{OTHER}",
    "/latest/meta-data/iam/security-credentials-extended/",
    "/latest/meta-data/iam/security-credentials-extended/{NODE}",
    "/latest/meta-data/identity-credentials/ec2/info",
    "/latest/meta-data/identity-credentials/ec2/security-credentials/ec2-instance",
    "/latest/meta-data/public-keys/0/openssh-key",
    "/latest/meta-data/instance-id",
    "/latest/user-data",
    "/latest/user-data/",
    "/latest/dynamic/instance-identity/document",
    "/latest/dynamic/instance-identity/pkcs7",
    "/latest/dynamic/instance-identity/signature",
    "/2021-03-23/meta-data/iam/security-credentials/{NODE}",
    "/1.0/meta-data/iam/security-credentials/{NODE}",
    "//latest/meta-data/iam/security-credentials/{NODE}",
    "/latest//meta-data//iam//security-credentials//{NODE}",
    "/latest/./meta-data/iam/security-credentials/{NODE}",
    "/latest/meta-data/x/../iam/security-credentials/{NODE}",
    "/latest/meta-data/iam/security-credentials/%2e%2e/security-credentials/{NODE}",
    "/latest/meta-data/iam/%73ecurity-credentials/{NODE}",
    "/latest/meta-data/iam%2fsecurity-credentials%2f{NODE}",
    "/LATEST/META-DATA/IAM/SECURITY-CREDENTIALS/{NODE}",
    "/latest/meta-data/iam/security-credentials/{NODE}?x=y",
    "/latest/meta-data/iam/security-credentials/{NODE}#x",
    "/latest/meta-data/iam/security-credentials/{NODE}%00",
    "/latest/meta-data/iam/security-credentials/;/{NODE}",
    "http://169.254.169.254/latest/meta-data/iam/security-credentials/{NODE}",
    "http://10.42.0.1/latest/user-data",
    "latest/user-data",
    "*",
];

/// Requests whose bytes contain a second one. `{TARGET}` and `{TOKEN}` are filled in.
const SMUGGLED: &[&str] = &[
    "GET / HTTP/1.1\r\nHost: 169.254.169.254\r\nContent-Length: 0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n{SECOND}",
    "GET / HTTP/1.1\r\nHost: 169.254.169.254\r\nContent-Length: 5\r\nContent-Length: 0\r\n\r\n{SECOND}",
    "PUT /latest/api/token HTTP/1.1\r\nHost: 169.254.169.254\r\nX-aws-ec2-metadata-token-ttl-seconds: 60\r\nContent-Length: 999\r\n\r\n{SECOND}",
    "GET / HTTP/1.1\r\nHost: 169.254.169.254\r\nX-Ignored: a\nGET {TARGET} HTTP/1.1\r\nHost: 169.254.169.254\r\n\r\n",
    "GET /latest HTTP/1.1\r\nHost: 169.254.169.254\r\nUpgrade: h2c\r\nConnection: Upgrade\r\n\r\n{SECOND}",
    "CONNECT 169.254.169.254:80 HTTP/1.1\r\nHost: 169.254.169.254:80\r\n\r\n{SECOND}",
    "GET http://169.254.169.254{TARGET} HTTP/1.0\r\n\r\n{SECOND}",
    "{SECOND}{SECOND}",
];

fn requests(token: Option<&str>, own_role: &str, other_role: &str) -> Vec<String> {
    let header = token.map(|token| format!("X-aws-ec2-metadata-token: {token}\r\n")).unwrap_or_default();
    let fill = |text: &str| text.replace("{NODE}", NODE_ROLE_NAME).replace("{OWN}", own_role).replace("{OTHER}", other_role);
    let request = |method: &str, target: &str, more: &str| {
        format!("{method} {target} HTTP/1.1\r\nHost: 169.254.169.254\r\n{header}{more}Connection: close\r\n\r\n")
    };
    let mut requests = Vec::new();
    for target in TARGETS.iter().map(|target| fill(target)) {
        requests.push(request("GET", &target, ""));
        requests.push(request("POST", &target, "Content-Length: 0\r\n"));
    }
    let node_role = fill(&format!("{LIST}{{NODE}}"));
    for forged in ["X-Forwarded-For: 10.42.0.1", "X-Original-URL: /latest/user-data", "X-Real-IP: 10.42.0.1", "Forwarded: for=10.42.0.1"] {
        for target in [&node_role, LIST] {
            requests.push(request("GET", target, &format!("{forged}\r\n")));
        }
    }
    for smuggled in SMUGGLED {
        let second = request("GET", &node_role, "");
        requests.push(smuggled.replace("{SECOND}", &second).replace("{TARGET}", &node_role));
    }
    requests
}

fn exchange(client: &Netns, request: &str) -> Transcript {
    play(client.connect(METADATA, PATIENCE).unwrap(), request.as_bytes(), PlayLimits::default()).unwrap()
}

/// Sends everything, with a token and without, and returns every byte that came back.
fn capture(client: &Netns, own_role: &str, other_role: &str) -> Vec<u8> {
    let token = token(client);
    let with_and_without = [Some(token.as_str()), None].into_iter().flat_map(|token| requests(token, own_role, other_role));
    with_and_without.flat_map(|request| exchange(client, &request).raw).collect()
}

#[test]
fn no_byte_that_a_pod_gets_is_from_the_node() {
    let Some(bed) = Bed::shared() else { return };
    let [web, worker] = &bed.pods;
    for (pod, own, other) in [(web.ns.ns(), Some(web), worker), (worker.ns.ns(), Some(worker), web), (bed.without_role.ns(), None, web)] {
        let raw = capture(pod, own.map_or("", |own| own.role), other.role);
        let text = String::from_utf8_lossy(&raw);
        bed.assert_nothing_of_the_node(pod, &raw);
        for stranger in bed.pods.iter().filter(|pod| own.is_none_or(|own| own.role != pod.role)) {
            for session in bed.issued_for(stranger) {
                for secret in [stranger.role, &session.access_key_id, &session.secret_access_key, &session.session_token] {
                    assert!(!text.contains(secret), "{pod:?}: {text}");
                }
            }
        }
        // The answers were real ones: they contain what the pod may have.
        for session in own.into_iter().flat_map(|own| bed.issued_for(own)) {
            assert!(text.contains(&session.secret_access_key), "{pod:?}: {text}");
        }
    }
    assert_untouched(&bed.imds);
}

/// The search finds what it looks for: without the daemon, the same requests return all of it.
#[test]
fn without_the_daemon_these_requests_reveal_node_secrets() {
    if !available_or_skip() {
        return;
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let _guard = runtime.enter();
    let node = Node::with_imds().unwrap();
    let _imds = Imds::start(node.imds().unwrap().tcp_listener(METADATA).unwrap()).unwrap();
    let pod = node.add_pod("web").unwrap();
    let raw = capture(&pod, "web", "worker");
    let text = String::from_utf8_lossy(&raw);
    for secret in [NODE_ROLE_NAME, NODE_SECRET_ACCESS_KEY, NODE_SESSION_TOKEN, NODE_USER_DATA_SECRET, NODE_IDENTITY_SECRET] {
        assert!(text.contains(secret), "{secret} is in no answer");
    }
}
