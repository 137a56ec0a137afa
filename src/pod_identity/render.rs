//! `rolegate pod-identity render`: a patch that gives containers of a workload what AWS SDKs need to get credentials with the protocol
//! of EKS Pod Identity. It only produces text, and contacts no cluster.
//!
//! Names and paths are those that EKS uses. The admission policy in `daemonset/pod-identity-injection/` adds the same to pods.

use super::CREDENTIALS_PATH;
use crate::config::pod_identity_render::PodIdentityRender;

/// The address where pods request credentials.
const IPV4: &str = "169.254.170.23";
/// The address where pods that have only IPv6 addresses request credentials.
const IPV6: &str = "[fd00:ec2::23]";
/// The name of the volume, and of the token in it.
const TOKEN: &str = "eks-pod-identity-token";
/// Where the volume is mounted.
const DIRECTORY: &str = "/var/run/secrets/pods.eks.amazonaws.com/serviceaccount";
/// How long a token lasts, in seconds. The kubelet renews it earlier.
const EXPIRATION_SECONDS: u32 = 86_400;

/// Returns a strategic merge patch, for `kubectl patch` and kustomize. Names and audience are validated, so they cannot inject lines.
pub(crate) fn render(wanted: &PodIdentityRender) -> String {
    let PodIdentityRender { kind, name, containers, init_containers, host_port, ipv6, audience } = wanted;
    let uri = match host_port {
        Some(port) => format!("http://127.0.0.1:{port}{CREDENTIALS_PATH}"),
        None => format!("http://{}{CREDENTIALS_PATH}", if *ipv6 { IPV6 } else { IPV4 }),
    };
    let mut lines = Lines::default();
    lines.add(0, format!("apiVersion: {}", kind.version));
    lines.add(0, format!("kind: {}", kind.kind));
    lines.add(0, "metadata:");
    lines.add(1, format!("name: {}", quoted(name)));
    let mut depth = 0;
    for field in kind.path.iter().chain(&["spec"]) {
        lines.add(depth, format!("{field}:"));
        depth += 1;
    }
    for (list, names) in [("initContainers", init_containers), ("containers", containers)] {
        if names.is_empty() {
            continue;
        }
        lines.add(depth, format!("{list}:"));
        for name in names {
            lines.add(depth + 1, format!("- name: {}", quoted(name)));
            lines.add(depth + 2, "env:");
            lines.add(depth + 3, "- name: AWS_CONTAINER_CREDENTIALS_FULL_URI");
            lines.add(depth + 4, format!("value: {uri}"));
            lines.add(depth + 3, "- name: AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE");
            lines.add(depth + 4, format!("value: {DIRECTORY}/{TOKEN}"));
            lines.add(depth + 2, "volumeMounts:");
            lines.add(depth + 3, format!("- name: {TOKEN}"));
            lines.add(depth + 4, format!("mountPath: {DIRECTORY}"));
            lines.add(depth + 4, "readOnly: true");
        }
    }
    lines.add(depth, "volumes:");
    lines.add(depth + 1, format!("- name: {TOKEN}"));
    lines.add(depth + 2, "projected:");
    lines.add(depth + 3, "sources:");
    lines.add(depth + 4, "- serviceAccountToken:");
    lines.add(depth + 6, format!("audience: {}", quoted(audience)));
    lines.add(depth + 6, format!("expirationSeconds: {EXPIRATION_SECONDS}"));
    lines.add(depth + 6, format!("path: {TOKEN}"));
    lines.0
}

/// YAML that is written line by line.
#[derive(Default)]
struct Lines(String);

impl Lines {
    fn add(&mut self, depth: usize, line: impl AsRef<str>) {
        self.0.push_str(&"  ".repeat(depth));
        self.0.push_str(line.as_ref());
        self.0.push('\n');
    }
}

/// Returns a text in quotation marks, because YAML would read some names as numbers. A JSON string is also a YAML string.
fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

#[cfg(test)]
mod tests;
