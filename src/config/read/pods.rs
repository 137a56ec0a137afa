//! Reads which pods are served, and how the Kubernetes API is reached.

use std::path::PathBuf;
use std::time::Duration;

use secrecy::SecretString;

use crate::config::own_pod::OwnPodHints;
use crate::config::source::SettingSource;
use crate::config::{AnnotationKeys, ApiConfig, DEFAULT_MAX_STALENESS, DEFAULT_POD_WAIT, HostNetworkConfig, PodsConfig, RedirectConfig};

/// With a shorter time, pods could be refused although nothing is wrong: an idle watch is only given up after 90 seconds.
const SHORT_STALENESS: Duration = Duration::from_secs(180);

pub(in crate::config) fn pods(source: &mut SettingSource<'_>, redirect: &RedirectConfig) -> PodsConfig {
    // Without it, the daemon looks for its own pod.
    let node = source.expanded("node").or_else(|| source.env("NODE_NAME")).unwrap_or_default();
    if !node.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '.')) {
        source.mistake("--node: expected a node name of letters, digits, - and .");
    }
    let api = api(source);
    PodsConfig {
        node,
        own_pod: OwnPodHints::read(source, &redirect.host_ips),
        api,
        annotations: AnnotationKeys {
            role: source.annotation_key("iam-role-key"),
            target_role: source.annotation_key("iam-target-role-key"),
            external_id: source.annotation_key("iam-external-id"),
            allowed_roles: source.annotation_key("namespace-key"),
        },
        wait: source.duration("backoff-max-elapsed-time", DEFAULT_POD_WAIT),
        max_staleness: max_staleness(source),
        cni_results: source.directory("cni-results"),
        events: source.switch("events"),
        startup_taint: source.taint_key("startup-taint"),
        host_network: HostNetworkConfig::read(source, redirect.bpf.host_network_pods),
    }
}

/// Reads how the Kubernetes API is reached.
pub(in crate::config) fn api(source: &mut SettingSource<'_>) -> ApiConfig {
    let mut api = ApiConfig {
        kubeconfig: source.text("kubeconfig").map(PathBuf::from),
        server: source.text("api-server"),
        token: source.text("api-token").map(SecretString::from),
        insecure: source.switch("insecure"),
    };
    if api.server.as_ref().is_some_and(|url| {
        url.contains('@') || url.parse::<http::Uri>().map_or(true, |uri| uri.scheme().is_none() || uri.authority().is_none())
    }) {
        source.mistake("--api-server: expected a URL such as https://10.0.0.1:6443");
    }
    if api.token.is_some() && api.server.is_none() {
        source.warn("api-token-unused", "--api-token without --api-server has no effect, as in kube2iam; remove it, or give both");
        api.token = None;
    }
    api
}

fn max_staleness(source: &mut SettingSource<'_>) -> Option<Duration> {
    let longest = source.duration("max-staleness", DEFAULT_MAX_STALENESS);
    if !longest.is_zero() && longest < SHORT_STALENESS {
        source.warn("max-staleness-short", format!(
            "--max-staleness is {}, which is less than {}: pods may be refused without need, because an idle watch of the Kubernetes API \
             can be silent for a minute or more",
            humantime::format_duration(longest),
            humantime::format_duration(SHORT_STALENESS),
        ));
    }
    (!longest.is_zero()).then_some(longest)
}
