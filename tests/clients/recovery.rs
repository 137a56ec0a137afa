//! SDKs where tokens are optional, whose first requests were refused, and whose token became invalid: the same process must get
//! credentials later. Many SDKs stop using tokens after a refused request for one, some for as long as they live.

use std::time::{Duration, Instant};

use rolegate_lab::daemon::Daemon;
use rolegate_lab::node::skip;
use serde_json::Value;

use crate::bed::{PATIENCE, assert_untouched, try_token};
use crate::kit;
use crate::small::{Asking, ROLE_ARN, Small};

/// The SDKs of run.sh that have the mode `ask`, each with its kit.
const SDKS: [(&str, &str); 8] = [
    ("boto3", "python"),
    ("pyarrow", "native"),
    ("crt", "native"),
    ("crt-old", "native"),
    ("node", "node"),
    ("go", "go"),
    ("go-v1", "go"),
    ("java", "java"),
];

/// The interval at which a test checks whether the daemon knows the pod.
const POLL_INTERVAL: Duration = Duration::from_millis(20);

/// Those of run.sh that identify themselves to STS, each with its kit.
const IDENTIFYING: [(&str, &str); 6] =
    [("boto3", "python"), ("awscli", "python"), ("node", "node"), ("go", "go"), ("go-v1", "go"), ("java", "java")];

/// Reports each missing kit of these SDKs. A test goes on with the others.
fn installed<'a>(sdks: &[(&'a str, &str)]) -> Vec<&'a str> {
    let is_installed = |(_, kit): &&(&str, &str)| kit::missing(kit).map(skip).is_none();
    sdks.iter().filter(is_installed).map(|(client, _)| *client).collect()
}

/// Waits until the daemon knows the pod.
fn wait_until_known(small: &Small, daemon: &Daemon) {
    let deadline = Instant::now() + PATIENCE;
    while try_token(small.pod.ns()).is_none() {
        assert!(Instant::now() < deadline, "{}", daemon.log());
        std::thread::sleep(POLL_INTERVAL);
    }
}

/// Starts every SDK before the daemon knows their pod, and asks again afterwards.
fn over_a_late_pod(tokens: &str) {
    let sdks = installed(&SDKS);
    let Some(small) = Small::with_unknown_pod(&[]) else { return };
    let daemon = small.start(&[&format!("--imds-tokens={tokens}")]);
    let mut clients: Vec<_> = sdks.iter().map(|client| (*client, Asking::sdk(&small, client))).collect();
    clients.iter_mut().for_each(|(_, asking)| asking.send());
    for (client, asking) in &mut clients {
        let before = asking.receive();
        assert!(before["error"].is_string(), "{client}: {before}\n{}", daemon.log());
    }
    small.create_pod(ROLE_ARN);
    wait_until_known(&small, &daemon);
    for (client, asking) in &mut clients {
        let after = asking.ask();
        assert!(small.issued(&after["access_key_id"]), "{client}: {after}\n{}", daemon.log());
    }
    assert_untouched(&small.imds);
}

/// The SDK for C++ in pyarrow uses tokens again only because the 401 that it gets without one has a body.
#[test]
fn sdks_recover_from_refused_token_requests() {
    over_a_late_pod("required");
}

#[test]
fn sdks_recover_from_refusals_where_tokens_are_optional() {
    over_a_late_pod("optional");
}

#[test]
fn sdks_use_tokens_where_tokens_are_optional() {
    let sdks = installed(&IDENTIFYING);
    let Some(small) = Small::new(&[]) else { return };
    let daemon = small.start(&["--imds-tokens=optional"]);
    for client in sdks {
        let output = kit::run(small.pod.ns(), small.directory(), &small.sts.url(), &kit::run_script(), &[client]);
        let text = String::from_utf8_lossy(&output.stdout);
        let answer: Value = serde_json::from_str(&text).unwrap_or_else(|error| panic!("{client}: {error}: {text}"));
        assert_eq!(answer["arn"], "arn:aws:sts::111122223333:assumed-role/web-role/web", "{client}: {answer}");
        assert!(small.issued(&answer["access_key_id"]), "{client}: {answer}");
    }
    let without_token = small.imdsv1(&daemon, "served");
    assert_eq!(without_token, 0.0, "{}", daemon.log());
}

/// What one SDK said to two requests after a restart.
type Answers = (&'static str, [Value; 2]);

/// Gets credentials with each SDK for Go, restarts the daemon, and gets credentials twice more. Returns those answers.
fn over_a_restart(arguments: impl Fn(&Small) -> Vec<String>) -> Option<(Small, Vec<Answers>)> {
    let sdks = installed(&[("go", "go"), ("go-v1", "go")]);
    let small = Small::new(&[])?;
    let arguments = arguments(&small);
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let mut daemon = small.start(&arguments);
    let mut clients: Vec<_> = sdks.iter().map(|client| (*client, Asking::sdk(&small, client))).collect();
    for (client, asking) in &mut clients {
        let before = asking.ask();
        assert!(small.issued(&before["access_key_id"]), "{client}: {before}");
    }
    daemon.terminate().unwrap();
    daemon.wait().unwrap();
    let _daemon = small.start(&arguments);
    let answers = clients.iter_mut().map(|(client, asking)| (*client, [asking.ask(), asking.ask()])).collect();
    Some((small, answers))
}

#[test]
fn the_sdks_for_go_keep_using_their_token_after_a_restart() {
    let key_file = |small: &Small| vec![format!("--token-key-file={}", small.directory().join("keys").display())];
    let Some((small, answers)) = over_a_restart(key_file) else { return };
    for (client, after) in &answers {
        assert!(after.iter().all(|answer| small.issued(&answer["access_key_id"])), "{client}: {after:?}");
    }
}

/// After a 401, version 2 requests another token at once, and version 1 for its next request.
#[test]
fn the_sdks_for_go_replace_a_token_that_became_invalid() {
    let Some((small, answers)) = over_a_restart(|_| Vec::new()) else { return };
    for (client, after) in &answers {
        let fails = after.each_ref().map(|answer| answer["error"].as_str().is_some_and(|error| error.contains("401")));
        let is_served = after.each_ref().map(|answer| small.issued(&answer["access_key_id"]));
        let expected = if *client == "go-v1" { ([true, false], [false, true]) } else { ([false; 2], [true; 2]) };
        assert_eq!((fails, is_served), expected, "{client}: {after:?}");
    }
}
