//! Tests of unmodified AWS SDKs, each in the network namespace of a pod, with the daemon's own packet rules between them and
//! the metadata address, and with moto, an independent implementation, as STS.
//!
//! tests/clients/install.sh installs the SDKs. Missing ones are skipped.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a failed unwrap fails the test")]

mod bed;
mod bpf;
mod bytes;
mod forms;
mod iam_policies;
mod kit;
mod moto;
mod pod_identity;
mod pollers;
mod recovery;
mod rust_client;
mod small;
mod tokens;

use std::process::Output;

use ring::digest::{SHA256, digest};
use rolegate_lab::node::{Netns, skip};
use serde_json::Value;

use bed::{ACCOUNT, Bed};
use moto::Moto;

#[test]
fn boto3_gets_the_role_of_its_pod() {
    check("python", "NoCredentialsError: Unable to locate credentials", |bed, ns| run(bed, ns, "boto3"));
}

#[test]
fn the_aws_cli_gets_the_role_of_its_pod() {
    check("python", "Unable to locate credentials", |bed, ns| run(bed, ns, "awscli"));
}

#[test]
fn the_sdk_for_go_v1_gets_the_role_of_its_pod() {
    check("go", "EC2MetadataError: failed to make EC2Metadata request", |bed, ns| run(bed, ns, "go-v1"));
}

#[test]
fn the_sdk_for_javascript_gets_the_role_of_its_pod() {
    check("node", "ProviderError: Error response received from instance metadata service", |bed, ns| run(bed, ns, "node"));
}

#[test]
fn the_sdk_for_go_gets_the_role_of_its_pod() {
    check("go", "no EC2 IMDS role found, operation error ec2imds: GetMetadata, http response error StatusCode: 404", |bed, ns| {
        run(bed, ns, "go")
    });
}

#[test]
fn the_sdk_for_java_gets_the_role_of_its_pod() {
    check("java", "The requested metadata is not found", |bed, ns| run(bed, ns, "java"));
}

#[test]
fn the_sdk_for_rust_gets_the_role_of_its_pod() {
    check("python", "received 404 from IMDS", rust_client::run);
}

fn run(bed: &Bed, ns: &Netns, client: &str) -> Output {
    kit::run(ns, bed.home(), &Moto::url(), &kit::run_script(), &[client])
}

/// Checks that each pod with a role has a session of that role, named after the pod, and that the pod without a role has none:
/// its SDK says so in its own words.
#[track_caller]
fn check(kit: &str, words_without_credentials: &str, run: impl Fn(&Bed, &Netns) -> Output) {
    let Some(bed) = Bed::shared() else { return };
    if let Some(reason) = kit::missing(kit) {
        return skip(reason);
    }
    for pod in &bed.pods {
        let answer = answer(&bed, pod.ns.ns(), 0, &run);
        let said = |name: &str| answer[name].as_str().unwrap_or_default();
        assert_eq!((said("arn"), said("account")), (pod.session_arn().as_str(), ACCOUNT), "{answer}");
        let issued = bed.issued_for(pod);
        let [session] = issued.as_slice() else { panic!("not exactly one session: {issued:?}") };
        assert_eq!(said("access_key_id"), session.access_key_id, "{answer}");
        assert_eq!(said("session_token_sha256"), sha256(&session.session_token), "{answer}");
        if !answer["expiration"].is_null() {
            assert_eq!(answer["expiration"], bed.credentials(pod)["Expiration"], "{answer}");
        }
    }
    let answer = answer(&bed, bed.without_role.ns(), 3, &run);
    let detail = answer["detail"].as_str().unwrap_or_default();
    assert!(answer["error"] == "no-credentials" && detail.contains(words_without_credentials), "{answer}");
    bed::assert_untouched(&bed.imds);
}

/// Returns the client's line of JSON.
#[track_caller]
fn answer(bed: &Bed, ns: &Netns, exit_code: i32, run: &impl Fn(&Bed, &Netns) -> Output) -> Value {
    let Output { status, stdout, stderr } = run(bed, ns);
    let (out, err) = (String::from_utf8_lossy(&stdout), String::from_utf8_lossy(&stderr));
    bed.assert_nothing_of_the_node(ns, &[stdout.as_slice(), &stderr].concat());
    assert_eq!(status.code(), Some(exit_code), "{out}\n{err}\n{}", bed.daemon.log());
    let line = out.lines().find(|line| line.starts_with('{')).unwrap_or_default();
    serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {out}\n{err}"))
}

fn sha256(text: &str) -> String {
    digest(&SHA256, text.as_bytes()).as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
}
