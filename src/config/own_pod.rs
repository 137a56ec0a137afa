//! What the environment says about the daemon's own pod.

use std::net::IpAddr;

use super::source::{SettingSource, unexpanded};

/// What the environment says about the daemon's own pod, for a daemon that is not given the name of its node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OwnPodHints {
    /// `POD_NAME`: its name.
    pub name: Option<String>,
    /// `POD_NAMESPACE`: its namespace.
    pub namespace: Option<String>,
    /// `POD_UID`: its UID.
    pub uid: Option<String>,
    /// `HOSTNAME`: its name or, in the host's network, mostly that of the node.
    pub hostname: Option<String>,
    /// `HOST_IP`, or `--host-ip`: addresses of the node.
    pub host_ips: Vec<IpAddr>,
}

impl OwnPodHints {
    /// Reads the variables that manifests set from fields of the pod. `given` are the addresses of `--host-ip`.
    pub(super) fn read(source: &SettingSource<'_>, given: &[IpAddr]) -> Self {
        let variable = |name| source.env(name).filter(|text| unexpanded(text).is_none());
        let name = |variable_name| variable(variable_name).filter(|text| is_object_name(text));
        let host_ips = match given {
            [] => host_ip(source).into_iter().collect(),
            given => given.to_vec(),
        };
        Self { name: name("POD_NAME"), namespace: name("POD_NAMESPACE"), uid: name("POD_UID"), hostname: name("HOSTNAME"), host_ips }
    }
}

/// The address in `HOST_IP`, which manifests of kube2iam and kiam set from `status.podIP` or `status.hostIP`; `None` if it cannot
/// be an address that pods reach.
pub(super) fn host_ip(source: &SettingSource<'_>) -> Option<IpAddr> {
    let ip: IpAddr = source.env("HOST_IP")?.trim().parse().ok()?;
    Some(ip.to_canonical()).filter(|ip| !ip.is_loopback() && !ip.is_unspecified())
}

/// Whether an object of Kubernetes may have this name or UID.
fn is_object_name(text: &str) -> bool {
    text.len() <= 253 && text.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '.'))
}
