//! The known state of pods and the objects that they belong to.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use jiff::Timestamp;

use crate::digest::Digest;
use crate::links::witness::RecordedPod;

/// A namespace and a name.
pub(super) type Name = (String, String);

/// A pod's `metadata.uid`: the only identifier that is never reused. Cheap to clone, because the index stores it in three
/// places.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PodUid(pub Arc<str>);

impl PodUid {
    /// Returns the digest that the node's own records use for it.
    pub(in crate::pods) fn digest(&self) -> Digest {
        Digest::of_name(&*self.0)
    }
}

/// A pod of which only the names are known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodName {
    /// The UID, which no other pod ever gets.
    pub uid: PodUid,
    /// The namespace.
    pub namespace: String,
    /// The name, unique in the namespace at one time.
    pub name: String,
}

/// The known state of one pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pod {
    /// The UID, which no other pod ever gets.
    pub uid: PodUid,
    /// The namespace.
    pub namespace: String,
    /// The name, unique in the namespace at one time.
    pub name: String,
    /// `spec.serviceAccountName`.
    pub service_account: String,
    /// The unparsed annotation with the pod's role.
    pub role: Option<String>,
    /// The unparsed annotation with the role that the session of the pod's role assumes.
    pub target_role: Option<String>,
    /// The unparsed annotation with the external ID.
    pub external_id: Option<String>,
    /// The unparsed annotation with the session's name.
    pub session_name: Option<String>,
    /// The pod's own current addresses: `status.podIPs`, while the pod has the network that they belong to.
    pub ips: Vec<IpAddr>,
    /// Whether the phase is Succeeded or Failed: the pod has no address any more, whatever its status says.
    pub finished: bool,
    /// Whether the deletion has begun.
    pub terminating: bool,
    /// When the pod's addresses are no longer its own, even without further events; `None` while its deletion has not begun.
    pub claims_until: Option<Timestamp>,
    /// Whether the pod is in the node's network and has the node's address. Its control group distinguishes it from the node.
    pub host_network: bool,
    /// What the API says about the network of its addresses.
    pub sandbox: Sandbox,
    /// Whether one of its containers may have the capability `NET_RAW`: it is privileged, adds it, or does not drop it.
    pub may_have_net_raw: bool,
    /// Whether the pod has a projected service account token for the audience of `--pod-identity-audience`, without which it cannot request
    /// credentials with a token.
    pub has_token_audience: bool,
    /// The UID by which the kubelet knows the pod, if it is a static pod: the hash of its manifest. The API has a mirror of such a
    /// pod, with a UID of its own.
    pub static_uid: Option<Box<str>>,
    /// The object that manages the pod, if owners are read.
    pub owner: Option<Box<PodOwner>>,
}

/// The object that manages a pod, as the pod's author or its controller wrote it: neither field is checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodOwner {
    /// The kind, such as `ReplicaSet`.
    pub kind: Box<str>,
    /// The name, in the namespace of the pod.
    pub name: Box<str>,
}

impl PodOwner {
    /// Returns whether this is a node, which owns the objects of its static pods.
    pub fn is_a_node(&self) -> bool {
        &*self.kind == "Node"
    }
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
    /// Returns a running pod for tests, benchmarks and fuzz targets: [`Pod::named`], with a UID derived from the names. Tests set other fields with `Pod { role,
    /// ..Pod::for_test(…) }`.
    #[doc(hidden)]
    pub fn for_test(namespace: &str, name: &str) -> Self {
        let uid = PodUid(format!("{namespace}/{name}").into());
        Self::named(PodName { uid, namespace: namespace.to_owned(), name: name.to_owned() })
    }

    /// Returns whether a CNI result names this pod. Without a UID, the name decides.
    pub(crate) fn is_recorded(&self, as_pod: &RecordedPod) -> bool {
        match as_pod.uid {
            Some(uid) => uid == self.uid.digest(),
            None => as_pod.name == Digest::of_pod(&self.namespace, &self.name),
        }
    }

    /// Creates a running pod with the service account `default`, without annotations and addresses.
    pub(crate) fn named(name: PodName) -> Self {
        let PodName { uid, namespace, name } = name;
        Self {
            uid,
            namespace,
            name,
            service_account: "default".to_owned(),
            role: None,
            target_role: None,
            external_id: None,
            session_name: None,
            ips: Vec::new(),
            finished: false,
            terminating: false,
            claims_until: None,
            host_network: false,
            sandbox: Sandbox::default(),
            may_have_net_raw: false,
            has_token_audience: false,
            static_uid: None,
            owner: None,
        }
    }

    /// Returns whether the pod claims this address at this time.
    pub(super) fn claims(&self, ip: IpAddr, now: Timestamp) -> bool {
        self.may_claim(now) && self.ips.contains(&ip)
    }

    /// Returns whether the pod has addresses of its own at this time, known or not.
    pub(super) fn may_claim(&self, now: Timestamp) -> bool {
        self.may_run(now) && !self.host_network
    }

    /// Returns whether containers of the pod may run at this time.
    pub(super) fn may_run(&self, now: Timestamp) -> bool {
        !self.finished && self.claims_until.is_none_or(|until| now < until)
    }

    /// Returns the UID by which the kubelet of its node knows the pod.
    pub fn uid_of_kubelet(&self) -> &str {
        self.static_uid.as_deref().unwrap_or(&self.uid.0)
    }
}

/// The known state of one namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Namespace {
    /// The name.
    pub name: String,
    /// The unparsed annotation with the list of allowed roles (kube2iam's).
    pub allowed_roles: Option<String>,
    /// The unparsed annotation with the expression of permitted roles (kiam's).
    pub permitted: Option<String>,
}

/// The known state of one service account.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServiceAccount {
    /// The namespace.
    pub namespace: String,
    /// The name, unique in the namespace.
    pub name: String,
    /// The unparsed annotation with the role of its pods.
    pub role: Option<String>,
    /// The unparsed annotation that EKS reads for the role.
    pub eks_role: Option<String>,
    /// The unparsed annotation with the role that the session of its pods' role assumes.
    pub target_role: Option<String>,
}

/// The known state of the objects that decisions about a pod depend on, besides the pod itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PodContext {
    /// The pod's namespace.
    pub namespace: Option<Arc<Namespace>>,
    /// The pod's service account.
    pub service_account: Option<Arc<ServiceAccount>>,
    /// Whether the daemon has no permission to read the pod's service account. If the account is not known, requests do not
    /// wait for it.
    pub service_account_forbidden: bool,
}

/// The pods that claim an address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Claims {
    /// No pod claims it.
    None,
    /// One pod claims it.
    One(Arc<Pod>),
    /// Several pods of equal standing claim it.
    Ambiguous(Vec<Arc<Pod>>),
    /// A pod whose current state cannot be read claims it, perhaps with others. This is its last known state.
    Unreadable(Arc<Pod>),
}

/// A pod that was looked up by the UID that the kubelet knows it by.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ByUid {
    /// It may run.
    Living(Arc<Pod>),
    /// Its current state cannot be read. This is its last known one.
    Unreadable(Arc<Pod>),
    /// No such pod is known, or it has finished or should have been deleted by now.
    None,
}

/// The addresses of the node itself. No pod owns one of them: a request from there comes from the node, or from a pod in the
/// host network.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodeAddresses {
    /// The addresses of its interfaces.
    pub ips: BTreeSet<IpAddr>,
    /// Whether loopback addresses belong to the node.
    pub loopback: bool,
}

impl NodeAddresses {
    pub(super) fn contains(&self, ip: IpAddr) -> bool {
        self.ips.contains(&ip) || self.loopback && ip.is_loopback()
    }
}

/// Returns whether one version is known to be older than another. Versions that are not numbers cannot be compared.
pub(super) fn is_older(version: Option<u64>, than: Option<u64>) -> bool {
    version.zip(than).is_some_and(|(version, than)| version < than)
}
