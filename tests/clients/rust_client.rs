//! The AWS SDK for Rust as a pod runs it: the default chain, then GetCallerIdentity with its credentials. This test program
//! runs itself again inside a pod for it.

use std::os::unix::fs::MetadataExt as _;
use std::process::Output;

use aws_config::{BehaviorVersion, Region};
use aws_sdk_sts::Client;
use aws_sdk_sts::config::ProvideCredentials as _;
use aws_smithy_http_client::tls::{Provider, rustls_provider::CryptoMode};
use ring::digest::{SHA256, digest};
use rolegate_lab::node::Netns;
use serde_json::{Value, json};

use crate::bed::Bed;
use crate::kit;
use crate::moto::Moto;

/// The arguments of this test program that make it run the client below.
pub(crate) const ARGUMENTS: [&str; 4] = ["--exact", "rust_client::the_client_itself", "--ignored", "--nocapture"];

/// Runs the client inside the pod.
pub(crate) fn run(bed: &Bed, ns: &Netns) -> Output {
    let program = std::env::current_exe().unwrap();
    kit::run(ns, bed.home(), &Moto::url(), program.to_str().unwrap(), &ARGUMENTS)
}

/// Prints its answer on a line of its own, and ends the process as the other clients do.
#[test]
#[ignore = "is run by the other tests, inside a pod"]
#[allow(
    clippy::print_stdout,
    clippy::exit,
    clippy::disallowed_methods,
    reason = "a client program, whose answer is its output and its exit code"
)]
fn the_client_itself() {
    // Tests must not use the machine's own metadata address.
    let (Ok(sts), false) = (std::env::var("STS_ENDPOINT"), in_the_machines_own_namespace()) else { return };
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let (code, answer) = runtime.block_on(client(sts));
    println!("\n{answer}");
    std::process::exit(code);
}

async fn client(sts: String) -> (i32, Value) {
    let failed = |code: i32, kind: &str, error: &dyn std::error::Error| {
        let mut detail = error.to_string();
        let mut source = error.source();
        while let Some(cause) = source {
            detail.push_str(&format!(": {cause}"));
            source = cause.source();
        }
        (code, json!({ "client": "rust", "error": kind, "detail": detail }))
    };
    let http = aws_smithy_http_client::Builder::new().tls_provider(Provider::Rustls(CryptoMode::Ring)).build_https();
    let config = aws_config::defaults(BehaviorVersion::latest()).http_client(http).region(Region::new(kit::REGION)).load().await;
    let provider = config.credentials_provider().expect("the default chain");
    let credentials = match provider.provide_credentials().await {
        Ok(credentials) => credentials,
        Err(error) => return failed(3, "no-credentials", &error),
    };
    // The request is signed with the credentials just read.
    let signed = aws_sdk_sts::config::Builder::from(&config).credentials_provider(credentials.clone()).endpoint_url(sts).build();
    let identity = match Client::from_conf(signed).get_caller_identity().send().await {
        Ok(identity) => identity,
        Err(error) => return failed(4, "other", &error),
    };
    let token = digest(&SHA256, credentials.session_token().unwrap_or_default().as_bytes());
    let token: String = token.as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
    let expiration = credentials.expiry().map(|at| jiff::Timestamp::try_from(at).unwrap().strftime("%Y-%m-%dT%H:%M:%SZ").to_string());
    let answer = json!({
        "client": "rust",
        "access_key_id": credentials.access_key_id(),
        "session_token_sha256": token,
        "expiration": expiration,
        "account": identity.account(),
        "arn": identity.arn(),
    });
    (0, answer)
}

/// Returns whether this thread is in the namespace in which the machine's own metadata address may be reachable.
pub(crate) fn in_the_machines_own_namespace() -> bool {
    // A network namespace is identified by the inode behind its /proc/net.
    let inode = |process: &str| std::fs::metadata(format!("/proc/{process}/net/dev")).unwrap().ino();
    inode("1") == inode("thread-self")
}
