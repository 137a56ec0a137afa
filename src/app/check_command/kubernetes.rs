//! The Kubernetes API: whether it answers, what the daemon may do there, and whether it knows node and pod.

use std::path::Path;

use futures_util::future::join_all;

use super::step::{STEP, no_answer, within};
use crate::advice::Advise as _;
use crate::check::permissions::{Permission, needed};
use crate::check::{CheckItem, CheckSection};
use crate::config::check_command::CheckPlace;
use crate::config::{Config, RedirectBackend};
use crate::kubernetes::access::AccessAttributes;
use crate::kubernetes::client::{self, Client, RequestError, encode};
use crate::kubernetes::setup::SERVICE_ACCOUNT;

const SECTION: CheckSection = CheckSection::Kubernetes;
const NODE_NAME: &str = "set --node from the field spec.nodeName of the pod";

pub(super) async fn checks(config: &Config, place: &CheckPlace) -> Vec<CheckItem> {
    let api = &config.pods.api;
    if !place.in_pod && api.kubeconfig.is_none() && api.server.is_none() {
        let skipped = SECTION.skipped("api", "this is no pod, and neither --kubeconfig nor --api-server is given");
        return vec![skipped.advise("give --kubeconfig, or run this in the daemon's pod")];
    }
    let client = match client::connect(api).await {
        Ok(client) => client,
        Err(error) => return vec![SECTION.error("api", &error)],
    };
    let version = match client.version().await {
        Ok(version) => version,
        Err(error) => {
            let item = SECTION.error("api", &error);
            // Without a status code, nothing has answered.
            return vec![match error.code() {
                None => item.advise("check the address in --kubeconfig or --api-server, and routes, firewalls and DNS on the way"),
                Some(_) => item,
            }];
        }
    };
    let (permissions, node, pod) = tokio::join!(
        join_all(needed(config).into_iter().map(|need| permission(&client, need, &config.pods.node))),
        node(&client, &config.pods.node),
        own_pod(&client, config, place),
    );
    let mut checks = vec![SECTION.ok("api", format!("version {version}"))];
    checks.extend(permissions);
    checks.extend([node, pod]);
    checks
}

async fn permission(client: &Client, need: Permission, node: &str) -> CheckItem {
    // Only the pods are selected by their node.
    let selector = (need.resource == "pods" && !node.is_empty()).then_some(("spec.nodeName", node));
    let ask = |verb: &'static str| async move {
        let (group, resource) = (need.group, need.resource);
        client.may(AccessAttributes { group, resource, verb, selector }).await.map(|allowed| (!allowed).then_some(verb))
    };
    match join_all(need.verbs.iter().map(|verb| ask(verb))).await.into_iter().collect::<Result<Vec<_>, _>>() {
        Ok(denied) => need.item(&denied.into_iter().flatten().collect::<Vec<_>>()),
        Err(error) => SECTION.error(need.resource, &error),
    }
}

async fn node(client: &Client, node: &str) -> CheckItem {
    if node.is_empty() {
        return SECTION.skipped("node", "no node is named (--node)");
    }
    match client.get(&format!("/api/v1/nodes/{}", encode(node))).await {
        Ok(_) => SECTION.ok("node", format!("{node} exists")),
        Err(error) if error.code() == Some(404) => {
            SECTION.failed("node", format!("there is no node {node}: the daemon would serve no pods")).advise(NODE_NAME)
        }
        // The daemon may do without this permission; the pods of the node say as much.
        Err(error) if error.code() == Some(403) => match within(STEP, client.find_pod(None, &format!("spec.nodeName={node}"))).await {
            None => no_answer(SECTION.failed("node", "the list of pods")),
            Some(Ok(Some(_))) => SECTION.ok("node", format!("there are pods on {node}")),
            Some(Ok(None)) => SECTION
                .warning("node", format!("there are no pods on a node {node}, and this identity may not read nodes: the name may be wrong"))
                .advise(NODE_NAME),
            Some(Err(error)) => unknown("node", &error),
        },
        Err(error) => SECTION.error("node", &error),
    }
}

/// Whether the pod in which this runs is on the node that is named, and in its network.
async fn own_pod(client: &Client, config: &Config, place: &CheckPlace) -> CheckItem {
    if !place.in_pod {
        return SECTION.skipped("own-pod", "this is no pod");
    }
    let namespace = place.pod_namespace.clone().or_else(|| {
        let text = std::fs::read_to_string(Path::new(SERVICE_ACCOUNT).join("namespace")).ok()?;
        Some(text.trim().to_owned())
    });
    let (Some(name), Some(namespace)) = (&place.pod_name, namespace) else {
        return SECTION.skipped("own-pod", "the name of this pod is not known (POD_NAME, POD_NAMESPACE)");
    };
    let found = match within(STEP, client.find_pod(Some(&namespace), &format!("metadata.name={name}"))).await {
        None => return no_answer(SECTION.failed("own-pod", "the list of pods")),
        Some(Err(error)) => return unknown("own-pod", &error),
        Some(Ok(found)) => found,
    };
    let Some(pod) = found else {
        let is_of_node = *name == config.pods.node;
        return if is_of_node {
            SECTION.ok("own-pod", format!("the host name is {name}, as in the node's network"))
        } else {
            SECTION.skipped("own-pod", format!("there is no pod {namespace}/{name}; set POD_NAME and POD_NAMESPACE"))
        };
    };
    let on = pod.node_name.unwrap_or_default();
    if !config.pods.node.is_empty() && on != config.pods.node {
        return SECTION.failed("own-pod", format!("this pod is on node {on}, but --node is {}", config.pods.node)).advise(NODE_NAME);
    }
    if pod.host_network {
        return SECTION.ok("own-pod", format!("{namespace}/{name} is in the network of node {on}"));
    }
    let detail = format!("{namespace}/{name} is not in the node's network, so it can neither redirect nor receive the requests of pods");
    let item = match config.redirect.backend {
        RedirectBackend::None => SECTION.warning("own-pod", detail),
        _ => SECTION.failed("own-pod", detail),
    };
    item.advise("set hostNetwork: true in the pod's spec")
}

/// What the daemon does not need for its work, and cannot be found out.
fn unknown(check: &'static str, error: &RequestError) -> CheckItem {
    SECTION.skipped(check, error.with_advice())
}
