//! The policies that `rolegate iam-policy` prints, in moto, which validates policy documents as IAM does.

use std::io::Write as _;
use std::process::Stdio;

use rolegate_lab::kube::{KubeApi, PodBuilder, Resource};
use rolegate_lab::node::{NODE_IP, Node, available_or_skip, skip};
use serde_json::Value;

use crate::bed::ACCOUNT;
use crate::kit;

#[test]
fn moto_accepts_the_policies() {
    if !available_or_skip() {
        return;
    }
    if let Some(reason) = kit::missing("python") {
        return skip(reason);
    }
    let node = Node::with_imds().unwrap();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let guard = runtime.enter();
    let api = KubeApi::start(node.ns().tcp_listener((NODE_IP, 0).into()).unwrap()).unwrap();
    drop(guard);
    let pod = |namespace: &str, name: &str, role: &str| {
        PodBuilder::new(namespace, name).node("node-a").service_account("app").annotation("iam.amazonaws.com/role", role)
    };
    api.apply(Resource::Pods, pod("shop", "web", "web").annotation("iam.amazonaws.com/external-id", "ours").build());
    api.apply(Resource::Pods, pod("books", "api", "pods/a*b/api").build());
    let target = format!("arn:aws:iam::{ACCOUNT}:role/data");
    api.apply(Resource::Pods, pod("books", "etl", "etl").annotation("iam.amazonaws.com/target-role", &target).build());
    let role = format!("arn:aws:iam::{ACCOUNT}:role/");
    let mut command = kit::command(node.ns(), env!("CARGO_BIN_EXE_rolegate"));
    command.args(["iam-policy", "--session-tags=namespace,service-account", "--source-identity={namespace}"]);
    command.arg(format!("--api-server={}", api.url())).arg(format!("--base-role-arn={role}"));
    command.arg(format!("--node-role={role}nodes")).arg(format!("--assume-role-arn={role}hub"));
    let output = command.env("AWS_EC2_METADATA_DISABLED", "true").output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));

    let python = kit::directory().join("python/bin/python");
    let mut check = kit::command(node.ns(), python.to_str().unwrap());
    check.arg(format!("{}/python/check_policies.py", kit::SOURCES)).env("AWS_EC2_METADATA_DISABLED", "true");
    let mut check = check.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    check.stdin.take().unwrap().write_all(&output.stdout).unwrap();
    let answer = check.wait_with_output().unwrap();
    assert!(answer.status.success(), "{}", String::from_utf8_lossy(&answer.stderr));
    let created: Value = serde_json::from_slice(&answer.stdout).unwrap();
    // The nodes', the intermediate role's, that of the role with a target role, and the boundary; the trust policies of the hub, three
    // roles and the target role.
    assert_eq!(created, serde_json::json!({ "managed": 4, "inline": 1, "trust": 5 }));
}
