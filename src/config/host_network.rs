//! What happens to the requests of pods in the node's network.

use super::flags::DEFAULT_EXEMPT;
use super::source::SettingSource;
use crate::text::is_object_name;

/// The item of `--host-network-exempt` that stands for all static pods.
pub(crate) const STATIC_PODS: &str = "static-pods";

/// What happens to the requests of pods in the node's network, where the kernel's programs are in effect.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HostNetworkConfig {
    /// Those of pods that are not exempt.
    pub pods: HostNetworkMode,
    /// The pods whose requests reach the real metadata service in every mode.
    pub exempt: Vec<ExemptPods>,
}

/// What happens to the requests of pods in the node's network that are not exempt.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum HostNetworkMode {
    /// They reach the real metadata service.
    #[default]
    Ignore,
    /// They are refused.
    Deny,
    /// They are identified by their control group, and each pod gets its own role, or a refusal.
    Serve,
}

impl HostNetworkMode {
    /// Returns the value of `--host-network-pods`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Ignore => "ignore",
            Self::Deny => "deny",
            Self::Serve => "serve",
        }
    }

    /// Reads `--host-network-pods`.
    pub(super) fn read(source: &mut SettingSource<'_>) -> Self {
        let modes = [Self::Ignore, Self::Deny, Self::Serve].map(|mode| (mode.name(), mode));
        source.choice("host-network-pods", &modes, Self::default())
    }
}

/// An item of `--host-network-exempt`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ExemptPods {
    /// Pods whose manifests are files on the node. They have no service account.
    Static,
    /// Every pod of a namespace.
    OfNamespace(String),
    /// The pods of a service account.
    OfAccount {
        /// The namespace of both.
        namespace: String,
        /// The service account.
        name: String,
    },
}

impl ExemptPods {
    /// Returns the item that names a pod of this namespace and service account, or a static pod, and as few others as possible.
    pub fn naming(of_namespace: &str, service_account: &str, is_static: bool) -> Self {
        match is_static {
            true => Self::Static,
            false => Self::OfAccount { namespace: of_namespace.to_owned(), name: service_account.to_owned() },
        }
    }

    /// Returns whether the item names a pod of this namespace and service account, or a static pod.
    pub fn matches(&self, of_namespace: &str, service_account: &str, is_static: bool) -> bool {
        match self {
            Self::Static => is_static,
            Self::OfNamespace(namespace) => namespace == of_namespace,
            Self::OfAccount { namespace, name } => !is_static && namespace == of_namespace && name == service_account,
        }
    }
}

impl std::fmt::Display for ExemptPods {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Static => formatter.write_str(STATIC_PODS),
            Self::OfNamespace(namespace) => write!(formatter, "{namespace}/*"),
            Self::OfAccount { namespace, name } => write!(formatter, "{namespace}/{name}"),
        }
    }
}

impl HostNetworkConfig {
    /// Reads `--host-network-exempt`.
    pub(super) fn read(source: &mut SettingSource<'_>, pods: HostNetworkMode) -> Self {
        // An empty list exempts no pod but the daemon's own.
        let items = match source.is_given("host-network-exempt") {
            true => source.list("host-network-exempt"),
            false => DEFAULT_EXEMPT.split(',').map(|item| (String::new(), item.to_owned())).collect(),
        };
        let mut exempt = Vec::new();
        for (place, item) in items {
            match item_of(&item) {
                Some(item) => exempt.push(item),
                None => source.mistake(format!(
                    "{place}={item:?}: expected NAMESPACE/SERVICEACCOUNT, NAMESPACE/* for all pods of a namespace, or {STATIC_PODS}"
                )),
            }
        }
        Self { pods, exempt }
    }
}

fn item_of(text: &str) -> Option<ExemptPods> {
    if text == STATIC_PODS {
        return Some(ExemptPods::Static);
    }
    let (namespace, name) = text.split_once('/')?;
    match name {
        _ if !is_object_name(namespace) => None,
        "*" => Some(ExemptPods::OfNamespace(namespace.to_owned())),
        name if is_object_name(name) => Some(ExemptPods::OfAccount { namespace: namespace.to_owned(), name: name.to_owned() }),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_item_matches_the_pods_that_it_names_and_no_others() {
        let matches =
            |item: &str, namespace, account, is_static| item_of(item).is_some_and(|item| item.matches(namespace, account, is_static));
        assert!(matches("kube-system/aws-node", "kube-system", "aws-node", false));
        for (namespace, account, is_static) in [
            ("kube-system", "aws-nod", false),
            ("kube-systems", "aws-node", false),
            ("default", "aws-node", false),
            ("kube-system", "aws-node", true),
        ] {
            assert!(!matches("kube-system/aws-node", namespace, account, is_static), "{namespace}/{account} {is_static}");
        }
        assert!(matches("kube-system/*", "kube-system", "any", false) && matches("kube-system/*", "kube-system", "", true));
        assert!(!matches("kube-system/*", "default", "any", false));
        assert!(matches("static-pods", "any", "", true) && !matches("static-pods", "any", "static-pods", false));
    }

    #[test]
    fn items_are_read_strictly_and_shown_as_they_were_written() {
        for item in DEFAULT_EXEMPT.split(',').chain(["team/*"]) {
            assert_eq!(item_of(item).map(|item| item.to_string()).as_deref(), Some(item));
        }
        for item in [
            "",
            "aws-node",
            "*",
            "*/*",
            "*/aws-node",
            "kube-*/aws-node",
            "kube-system/",
            "/aws-node",
            "a/b/c",
            "a/b*",
            "A/b",
            "a/ b",
            "static-pod",
        ] {
            assert_eq!(item_of(item), None, "{item}");
        }
    }
}
