//! A fake Kubernetes API, STS and metadata service on loopback, for a daemon that is started by hand.
//!
//! Prints the command line of such a daemon and the requests of its pods, and stays up until Ctrl-C. The pods are addresses of
//! 127.0.0.0/8. Nothing here needs root or network namespaces.
#![forbid(unsafe_code)]
#![allow(clippy::print_stdout, reason = "it prints the commands to run")]

use std::io;
use std::net::{Ipv4Addr, TcpListener};

use rolegate_lab::imds::Imds;
use rolegate_lab::kube::{self, KubeApi, PodBuilder, Resource};
use rolegate_lab::sts::{self, Role, Sts};

/// The name of the node in the fake cluster.
const NODE: &str = "node-a";
/// Pods of the namespace `shop`, with the role that each one names.
const PODS: [(&str, Ipv4Addr, Option<&str>); 3] = [
    ("web", Ipv4Addr::new(127, 0, 0, 2), Some("web-role")),
    ("db", Ipv4Addr::new(127, 0, 0, 3), Some("db-role")),
    ("plain", Ipv4Addr::new(127, 0, 0, 4), None),
];

#[tokio::main]
async fn main() -> io::Result<()> {
    let listener = || TcpListener::bind((Ipv4Addr::LOCALHOST, 0));
    let (api, sts, imds) = (KubeApi::start(listener()?)?, Sts::start(listener()?)?, Imds::start(listener()?)?);
    api.apply(Resource::Namespaces, kube::namespace("shop", &[("iam.amazonaws.com/allowed-roles", r#"["*-role"]"#)]));
    api.apply(Resource::Nodes, kube::node(NODE, &["127.0.0.1"]));
    for (name, ip, role) in PODS {
        let mut pod = PodBuilder::new("shop", name).node(NODE).ip(&ip.to_string());
        if let Some(role) = role {
            sts.add_role(Role::new(format!("arn:aws:iam::{}:role/{role}", sts::NODE_ACCOUNT)));
            pod = pod.annotation("iam.amazonaws.com/role", role);
        }
        api.apply(Resource::Pods, pod.build());
    }
    explain(&api, &sts, &imds);
    tokio::signal::ctrl_c().await
}

/// Prints what to run in other terminals.
fn explain(api: &KubeApi, sts: &Sts, imds: &Imds) {
    println!("The daemon, in a second terminal:\n");
    println!("AWS_EC2_METADATA_DISABLED=true AWS_REGION=eu-central-1 AWS_ENDPOINT_URL_STS={} \\", sts.url());
    println!("AWS_ACCESS_KEY_ID={} AWS_SECRET_ACCESS_KEY='{}' \\", sts::NODE_ACCESS_KEY_ID, sts::NODE_SECRET_ACCESS_KEY);
    println!("AWS_SESSION_TOKEN='{}' \\", sts::NODE_SESSION_TOKEN);
    println!("target/debug/rolegate --node={NODE} --api-server={} --metadata-addr={} \\", api.url(), imds.addr());
    println!("  --base-role-arn=arn:aws:iam::{}:role/ --namespace-restrictions --accept-direct-connections \\", sts::NODE_ACCOUNT);
    println!("  --metadata-bind-address=127.0.0.1 --metrics-bind-address=127.0.0.1\n");
    println!("A pod's request, in a third one; --interface chooses the pod:\n");
    for (name, ip, role) in PODS {
        println!("  {ip}  shop/{name:<6} {}", role.unwrap_or("names no role"));
    }
    let (_, ip, _) = PODS[0];
    println!("\nTOKEN=$(curl -sS --interface {ip} -X PUT -H 'X-aws-ec2-metadata-token-ttl-seconds: 60' \\");
    println!("  http://127.0.0.1:8181/latest/api/token)");
    println!("curl -sS --interface {ip} -H \"X-aws-ec2-metadata-token: $TOKEN\" \\");
    println!("  http://127.0.0.1:8181/latest/meta-data/iam/security-credentials/web-role\n");
    println!("Ctrl-C ends it.");
}
