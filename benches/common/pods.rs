//! Pods by number, as the API has them and as the index knows them, and the watch that turns one into the other.

use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use rolegate::config::{AnnotationKeys, ApiConfig};
use rolegate::kubernetes::client;
use rolegate::metrics::Metrics;
use rolegate::pods::watch::PodWatch;
use rolegate::pods::{Needs, NodeAddresses, Pod, PodUid, Pods, pods};
use rolegate::readiness::Readiness;
use rolegate_lab::kube::PodBuilder;
use serde_json::Value;
use tokio::task::JoinHandle;

use super::NODE;

/// The number of namespaces.
pub(crate) const NAMESPACES: usize = 40;
/// The size of a large pod as JSON, in bytes.
const LARGE: usize = 12 * 1024;

pub(crate) fn address(number: usize) -> Ipv4Addr {
    Ipv4Addr::from_bits(Ipv4Addr::new(10, 1, 0, 0).to_bits() + u32::try_from(number).unwrap())
}

pub(crate) fn uid(number: usize) -> String {
    format!("5f3c1e2a-7b64-4d0e-9a51-{number:012x}")
}

/// Returns a namespace and a name.
pub(crate) fn names(number: usize) -> (String, String) {
    (format!("team-{}", number % NAMESPACES), format!("web-7f9c8d6b5-{number:05}"))
}

/// Returns a pod as the index knows it, with a role of its team: `team-7-web`.
pub(crate) fn known(number: usize) -> Pod {
    let (namespace, name) = names(number);
    Pod {
        uid: PodUid(uid(number).into()),
        role: Some(format!("{namespace}-web")),
        ips: vec![address(number).into()],
        ..Pod::for_test(&namespace, &name)
    }
}

/// Returns a pod of this node for the API, with a role and an address.
pub(crate) fn with_role(namespace: &str, name: &str, ip: IpAddr, role: &str) -> PodBuilder {
    PodBuilder::new(namespace, name).node(NODE).ip(&ip.to_string()).annotation("iam.amazonaws.com/role", role)
}

/// Returns a pod of 12 KiB as JSON: kubectl's annotation, and environment variables for the rest.
pub(crate) fn large(number: usize) -> Value {
    let (namespace, name) = names(number);
    let applied = format!("{{\"kind\":\"Pod\",\"spec\":\"{}\"}}", "x".repeat(2000));
    let builder = with_role(&namespace, &name, address(number).into(), &format!("web-role-{}", number % 100))
        .uid(&uid(number))
        .annotation("kubectl.kubernetes.io/last-applied-configuration", &applied);
    let mut pod = builder.build();
    let variable = |number: usize| serde_json::json!({ "name": format!("SETTING_{number:04}"), "value": "y".repeat(100) });
    let (missing, each) = (LARGE.saturating_sub(pod.to_string().len()), variable(0).to_string().len() + 1);
    pod["spec"]["containers"][0]["env"].as_array_mut().unwrap().extend((0..missing.div_ceil(each)).map(variable));
    pod
}

/// Starts the daemon's watch of an API, and returns it with its pods once the list is complete.
pub(crate) async fn watch(url: &str) -> (JoinHandle<()>, Pods) {
    let (writer, pods) = pods();
    let annotation = |name: &str| format!("iam.amazonaws.com/{name}");
    let watch = PodWatch {
        client: client::connect(&ApiConfig { server: Some(url.to_owned()), ..ApiConfig::default() }).await.unwrap(),
        node: NODE.to_owned(),
        node_addresses: Box::new(NodeAddresses::default),
        now: Box::new(|| rolegate::clock::Clock::system().now()),
        annotations: AnnotationKeys {
            role: annotation("role"),
            target_role: annotation("target-role"),
            external_id: annotation("external-id"),
            allowed_roles: annotation("allowed-roles"),
        },
        writer,
        pods: pods.clone(),
        needs: Needs::default(),
        token_audience: None,
        metrics: Metrics::new(),
    };
    let readiness = Readiness::default();
    let running = tokio::spawn(watch.run(readiness.step("the list")));
    let mut changes = pods.clone();
    while !readiness.pending().is_empty() {
        // The last change may arrive before the step is done.
        let _ = tokio::time::timeout(Duration::from_millis(1), changes.changed()).await;
    }
    (running, pods)
}
