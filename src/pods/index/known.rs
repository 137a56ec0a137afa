//! What is known of pods and of what is around them.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use jiff::Timestamp;

use crate::digest::Digest;

/// A namespace and a name.
pub(super) type Name = (String, String);

/// A pod's `metadata.uid`: the one name that is never used again. Cheap to clone: the index has it in three places.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PodUid(pub Arc<str>);

impl PodUid {
    /// The digest that stands for it in what the node itself knows.
    pub(in crate::pods) fn digest(&self) -> Digest {
        Digest::of_name(&*self.0)
    }
}

/// A pod of which nothing but its names is known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodName {
    /// Never used again for another pod.
    pub uid: PodUid,
    /// The namespace.
    pub namespace: String,
    /// The name, unique in the namespace at one time.
    pub name: String,
}

/// What is known of one pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pod {
    /// Never used again for another pod.
    pub uid: PodUid,
    /// The namespace.
    pub namespace: String,
    /// The name, unique in the namespace at one time.
    pub name: String,
    /// `spec.serviceAccountName`.
    pub service_account: String,
    /// The annotation that names its role, as it stands.
    pub role: Option<String>,
    /// The annotation with the external id, as it stands.
    pub external_id: Option<String>,
    /// The annotation with the session's name, as it stands.
    pub session_name: Option<String>,
    /// The addresses that are its own now: `status.podIPs`, while it has a network that they are of.
    pub ips: Vec<IpAddr>,
    /// Phase Succeeded or Failed: it has no address any more, whatever its status says.
    pub finished: bool,
    /// Its deletion has begun.
    pub terminating: bool,
    /// When it has no address any more, whatever else is heard of it; `None` while its deletion has not begun.
    pub claims_until: Option<Timestamp>,
    /// It has the node's address, and is not told from the node.
    pub host_network: bool,
    /// What the API says about the network of its addresses.
    pub sandbox: Sandbox,
    /// One of its containers may have the capability `NET_RAW`: it is privileged, adds it, or does not drop it.
    pub may_have_net_raw: bool,
}

/// What the API says about the network namespace of a pod. All times are from the node's clock, with a resolution of one second.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sandbox {
    /// When the current network namespace was created, if the API says so. A later time means another network namespace, with
    /// another link.
    pub since: Option<Timestamp>,
    /// The latest known start of any part of the pod.
    pub started: Option<Timestamp>,
}

impl Pod {
    /// Returns a running pod for tests, benches and fuzz targets: it has these names, a UID that is made of them and the service
    /// account `default`, but no annotations and no addresses. What a test is about is set with `Pod { role, ..Pod::for_test(…) }`.
    #[doc(hidden)]
    pub fn for_test(namespace: &str, name: &str) -> Self {
        Self {
            uid: PodUid(format!("{namespace}/{name}").into()),
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            service_account: "default".to_owned(),
            role: None,
            external_id: None,
            session_name: None,
            ips: Vec::new(),
            finished: false,
            terminating: false,
            claims_until: None,
            host_network: false,
            sandbox: Sandbox::default(),
            may_have_net_raw: false,
        }
    }

    /// Whether it claims this address at this time.
    pub(super) fn claims(&self, ip: IpAddr, now: Timestamp) -> bool {
        self.may_claim(now) && self.ips.contains(&ip)
    }

    /// Whether it has addresses of its own at this time, be they known or not.
    pub(super) fn may_claim(&self, now: Timestamp) -> bool {
        !self.finished && !self.host_network && self.claims_until.is_none_or(|until| now < until)
    }
}

/// What is known of one namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Namespace {
    /// The name.
    pub name: String,
    /// The annotation with the list of allowed roles (kube2iam's), as it stands.
    pub allowed_roles: Option<String>,
    /// The annotation with the expression of permitted roles (kiam's), as it stands.
    pub permitted: Option<String>,
}

/// What is known of one service account.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServiceAccount {
    /// The namespace.
    pub namespace: String,
    /// The name, unique in the namespace.
    pub name: String,
    /// The annotation that names the role of its pods, as it stands.
    pub role: Option<String>,
    /// The annotation that EKS reads for the same, as it stands.
    pub eks_role: Option<String>,
}

/// What is known of the objects that a pod is decided by, besides the pod itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PodContext {
    /// The pod's namespace.
    pub namespace: Option<Arc<Namespace>>,
    /// The pod's service account.
    pub service_account: Option<Arc<ServiceAccount>>,
    /// The API does not let us read the pod's service account: where it is not known, it is not waited for.
    pub service_account_forbidden: bool,
}

/// Who claims an address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Claims {
    /// Nobody.
    None,
    /// One pod.
    One(Arc<Pod>),
    /// Pods of equal standing.
    Several(Vec<Arc<Pod>>),
    /// A pod whose present state cannot be read, perhaps among others. This is what it last was.
    Unreadable(Arc<Pod>),
}

/// The addresses of the node itself. No pod has one of them for its own: who asks from there is the node, or a pod in its
/// network.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodeAddresses {
    /// The addresses of its interfaces.
    pub ips: BTreeSet<IpAddr>,
    /// Whether loopback addresses are the node's.
    pub loopback: bool,
}

impl NodeAddresses {
    pub(super) fn contains(&self, ip: IpAddr) -> bool {
        self.ips.contains(&ip) || self.loopback && ip.is_loopback()
    }
}

/// Whether one version is before another; where either is not a number, that is not known.
pub(super) fn is_older(version: Option<u64>, than: Option<u64>) -> bool {
    version.zip(than).is_some_and(|(version, than)| version < than)
}
