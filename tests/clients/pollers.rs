//! HTTP clients that keep their connections: pollers of interruption notices, for which AWS recommends an interval of 5 seconds,
//! and clients whose request for a token has an empty chunked body.

use std::process::Child;

use rolegate_lab::node::skip;
use serde_json::{Value, json};

use crate::bed::{LIST, assert_untouched};
use crate::kit;
use crate::small::Small;

/// The HTTP clients of run.sh, each with its kit.
const CLIENTS: [(&str, &str); 4] = [("requests", "python"), ("go-http", "go"), ("node-http", "node"), ("undici", "node")];

/// Runs every client at the same time, because most of what they do is waiting. Returns the answer of each.
fn run(small: &Small, arguments: &[&str]) -> Vec<(&'static str, Value)> {
    let installed = CLIENTS.iter().filter(|(_, kit)| kit::missing(kit).map(skip).is_none());
    let running: Vec<(&str, Child)> = installed.map(|(client, _)| (*client, small.spawn(&[&[*client], arguments].concat()))).collect();
    let answers = running.into_iter().map(|(client, process)| {
        let output = process.wait_with_output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        (client, serde_json::from_str(&text).unwrap_or_else(|error| panic!("{client}: {error}: {text}")))
    });
    answers.collect()
}

/// With an idle timeout of 5 s, as before, each of these requests would meet the end of its connection.
#[test]
fn pollers_keep_their_connection_for_longer_than_their_interval() {
    let Some(small) = Small::new(&[]) else { return };
    let daemon = small.start(&["--metadata-profile=node-info"]);
    let notice = "/latest/meta-data/spot/instance-action";
    for (client, answer) in run(&small, &["poll", notice, "tokens", "5100", "5100"]) {
        let expected = json!({ "statuses": [200, 200, 200], "errors": [], "connections": 1 });
        assert_eq!(answer, expected, "{client}: {}", daemon.log());
    }
}

/// The last pause is longer than the idle timeout: clients notice the end of the connection, and open another one.
#[test]
fn pollers_without_tokens_see_no_reset_before_or_after_the_idle_timeout() {
    let Some(small) = Small::new(&[]) else { return };
    let daemon = small.start(&["--imds-tokens=optional", "--limits-idle-timeout=4s"]);
    for (client, answer) in run(&small, &["poll", LIST, "none", "1500", "1500", "5500"]) {
        let expected = json!({ "statuses": [200, 200, 200, 200], "errors": [], "connections": 2 });
        assert_eq!(answer, expected, "{client}: {}", daemon.log());
    }
    assert_untouched(&small.imds);
}

#[test]
fn an_empty_chunked_request_gets_a_token_from_every_http_client() {
    let Some(small) = Small::new(&["curl"]) else { return };
    for tokens in ["required", "optional"] {
        let daemon = small.start(&[&format!("--imds-tokens={tokens}")]);
        for (client, answer) in run(&small, &["chunked", LIST]) {
            assert_eq!(answer["statuses"], json!([200, 200]), "{client}: {answer} {}", daemon.log());
        }
        let ttl = "X-aws-ec2-metadata-token-ttl-seconds: 60";
        let (status, token) = small.curl(&["--upload-file", "-", "--header", ttl, "http://169.254.169.254/latest/api/token"]);
        assert_eq!(status, "200", "curl: {token} {}", daemon.log());
        let token = format!("X-aws-ec2-metadata-token: {token}");
        let role = small.curl(&["--header", &token, &format!("http://169.254.169.254{LIST}")]);
        assert_eq!(role, ("200".to_owned(), "web-role".to_owned()));
    }
    assert_untouched(&small.imds);
}
