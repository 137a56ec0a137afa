//! Tests of clients that keep a session token across a restart of the daemon, and of clients that use none.

use aws_config::imds;
use aws_config::provider_config::ProviderConfig;
use aws_smithy_http_client::tls::{Provider, rustls_provider::CryptoMode};
use serde_json::{Value, json};

use crate::bed::LIST;
use crate::rust_client::in_the_machines_own_namespace;
use crate::small::{Asking, Small};

/// The name of the client below.
const ENTRY: &str = "tokens::the_client_itself";

/// Starts the SDK for Rust in the pod.
fn start(small: &Small) -> Asking {
    let program = std::env::current_exe().unwrap();
    let arguments = ["--exact", ENTRY, "--ignored", "--nocapture"];
    Asking::start(small, program.to_str().unwrap(), &arguments, &[("ROLEGATE_TEST_ASKS", "1")])
}

/// Sends requests with one SDK client, and so with one token, while there are input lines.
#[test]
#[ignore = "is run by the other tests, inside a pod"]
#[allow(clippy::print_stdout, reason = "a client program, whose answers are its output")]
fn the_client_itself() {
    // Tests must not use the machine's own metadata address.
    if std::env::var_os("ROLEGATE_TEST_ASKS").is_none() || in_the_machines_own_namespace() {
        return;
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    runtime.block_on(async {
        let http = aws_smithy_http_client::Builder::new().tls_provider(Provider::Rustls(CryptoMode::Ring)).build_https();
        let config = ProviderConfig::without_region().with_http_client(http);
        let client = imds::Client::builder().configure(&config).build();
        let mut lines = std::io::stdin().lines();
        while let Some(Ok(_)) = lines.next() {
            let answer = match ask(&client).await {
                Ok(answer) => answer,
                Err(error) => json!({ "error": format!("{error:?}") }),
            };
            println!("\n{answer}");
        }
    });
}

async fn ask(client: &imds::Client) -> Result<Value, imds::client::error::ImdsError> {
    let role = String::from(client.get(LIST).await?);
    let document = client.get(format!("{LIST}{role}")).await?;
    let document: Value = serde_json::from_str(document.as_ref()).unwrap_or_default();
    let region = String::from(client.get("/latest/meta-data/placement/region").await?);
    Ok(json!({ "role": role, "access_key_id": document["AccessKeyId"], "region": region }))
}

/// Sends a request, restarts the daemon, and sends another one with the same token.
fn over_a_restart(arguments: impl Fn(&Small) -> Vec<String>) -> Option<(Small, Value, Value)> {
    let small = Small::new(&[])?;
    let arguments = arguments(&small);
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let mut client = start(&small);
    let mut daemon = small.start(&arguments);
    let before = client.ask();
    daemon.terminate().unwrap();
    daemon.wait().unwrap();
    let daemon = small.start(&arguments);
    let after = client.ask();
    drop(daemon);
    Some((small, before, after))
}

#[test]
fn the_sdk_for_rust_keeps_using_its_token_after_a_restart() {
    let key_file = |small: &Small| vec![format!("--token-key-file={}", small.directory().join("keys").display())];
    let Some((small, before, after)) = over_a_restart(key_file) else { return };
    for answer in [&before, &after] {
        assert_eq!((&answer["role"], &answer["region"]), (&json!("web-role"), &json!("eu-central-1")), "{answer}");
        assert!(small.issued(&answer["access_key_id"]), "{answer}");
    }
}

/// The reason for the key file: the SDK keeps sending a dead token for the rest of its lifetime, and never requests another.
#[test]
fn without_the_key_file_a_restart_breaks_the_sdk_for_rust() {
    let Some((_small, before, after)) = over_a_restart(|_| Vec::new()) else { return };
    assert_eq!(before["role"], "web-role", "{before}");
    let error = after["error"].as_str().unwrap_or_default();
    assert!(error.contains("401"), "{after}");
}

#[test]
fn imdsv1_clients_are_served_and_counted_if_allowed() {
    let Some(small) = Small::new(&["curl"]) else { return };
    let document = format!("{LIST}web-role");
    let required = small.start(&[]);
    assert_eq!(small.version_one(LIST), ("401".to_owned(), "Unauthorized".to_owned()));
    assert_eq!(small.version_one(&document), ("401".to_owned(), "Unauthorized".to_owned()));
    assert_eq!(small.imdsv1(&required, "refused"), 2.0);
    drop(required);

    let optional = small.start(&["--imds-tokens=optional"]);
    assert_eq!(small.version_one(LIST), ("200".to_owned(), "web-role".to_owned()));
    let (status, text) = small.version_one(&document);
    let document: Value = serde_json::from_str(&text).unwrap();
    assert!(status == "200" && small.issued(&document["AccessKeyId"]), "{text}");
    assert_eq!(small.imdsv1(&optional, "served"), 2.0);
    // IMDSv2 still works beside it.
    let answer = start(&small).ask();
    assert_eq!(answer["role"], "web-role", "{answer}");
    assert_eq!(small.imdsv1(&optional, "served"), 2.0);
}
