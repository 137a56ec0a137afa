//! Manifests for kiam's agent and server.

use crate::cluster::{Manifest, Rbac, Verdict, judge};

const AGENT: &[&str] = &[
    "agent",
    "--iptables",
    "--host-interface=eni+",
    "--json-log",
    "--port=8181",
    "--cert=/etc/kiam/tls/agent.pem",
    "--key=/etc/kiam/tls/agent-key.pem",
    "--ca=/etc/kiam/tls/ca.pem",
    "--server-address=kiam-server:443",
    "--prometheus-listen-addr=0.0.0.0:9620",
    "--prometheus-sync-interval=5s",
    "--gateway-timeout-creation=1s",
];

const BASE: Manifest = Manifest {
    arguments: AGENT,
    variables: &["HOST_IP"],
    warnings: &["kiam-agent", "kiam-argument", "kiam-namespaces"],
    ..Manifest::KUBE2IAM
};

/// The agent of kiam's repository, with the permissions that kiam's server has.
#[test]
fn agent_with_the_permissions_of_the_server() {
    judge(&BASE);
}

/// The agent alone has none: nothing is served, and nothing is open.
#[test]
fn agent_without_permissions() {
    judge(&Manifest { rbac: Rbac::Nothing, verdict: Verdict::Waits, ..BASE });
}

/// As the chart renders it.
#[test]
fn agent_of_the_chart() {
    let arguments = &[
        "agent",
        "--iptables",
        "--no-iptables-remove",
        "--host-interface=cali+",
        "--json-log",
        "--level=info",
        "--port=8181",
        "--cert=/etc/kiam/tls/cert",
        "--key=/etc/kiam/tls/key",
        "--ca=/etc/kiam/tls/ca",
        "--server-address=kiam-server:443",
        "--prometheus-listen-addr=0.0.0.0:9620",
        "--prometheus-sync-interval=5s",
        "--allow-route-regexp=.*",
        "--gateway-timeout-creation=1s",
    ];
    judge(&Manifest { arguments, interfaces: "cali", ..BASE });
}

/// Values behind spaces, and everything but the node's own interface.
#[test]
fn agent_with_spaces() {
    let arguments = &["agent", "--iptables", "--host", "$(HOST_IP)", "--host-interface", "!eth0", "--port", "8181", "--level", "info"];
    judge(&Manifest { arguments, ..BASE });
}

/// A mistake of the agent's leaves the node guarded.
#[test]
fn agent_with_a_mistake() {
    let arguments = &["agent", "--iptables", "--json-log", "--port=https", "--host-interface=eni+"];
    judge(&Manifest { arguments, verdict: Verdict::Refused, ..BASE });
}

/// What runs on a few nodes is not needed.
#[test]
fn server() {
    let arguments = &[
        "server",
        "--json-log",
        "--level=warn",
        "--bind=0.0.0.0:443",
        "--cert=/etc/kiam/tls/server.pem",
        "--key=/etc/kiam/tls/server-key.pem",
        "--ca=/etc/kiam/tls/ca.pem",
        "--role-base-arn-autodetect",
        "--assume-role-arn=arn:aws:iam::123456789012:role/kiam_server",
        "--sync=1m",
        "--prometheus-listen-addr=0.0.0.0:9620",
        "--prometheus-sync-interval=5s",
    ];
    judge(&Manifest { arguments, verdict: Verdict::RefusedOpen, ..BASE });
}

/// With a flag that asks for rules, which the server of kiam does not have.
#[test]
fn server_with_rules() {
    judge(&Manifest { arguments: &["server", "--iptables=true"], verdict: Verdict::Refused, ..BASE });
}
