//! Arguments and environment → one validated [`Config`]. Every mistake is reported at once.
//!
//! The names and meanings of kube2iam's flags are kept, so that its users change the image and nothing else.

use std::collections::BTreeSet;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use secrecy::SecretString;

use crate::role::{BaseArn, RoleArn};

pub(crate) mod arguments;
pub mod aws;
pub(crate) mod check_command;
pub(crate) mod explain_command;
pub mod flags;
pub mod host_network;
pub(crate) mod iam_policy_command;
pub(crate) mod kiam;
mod load;
pub(crate) mod metrics_port;
mod migrate;
pub(crate) mod migrate_command;
pub mod own_pod;
pub mod pod_identity;
pub(crate) mod pod_identity_render;
pub(crate) mod probe;
mod read;
pub(crate) mod redirect;
pub(crate) mod refused;
pub(crate) mod report_command;
pub(crate) mod session;
pub(crate) mod source;
mod warning;

pub use aws::AwsConfig;
pub use host_network::{ExemptPods, HostNetworkConfig, HostNetworkMode};
use own_pod::OwnPodHints;
pub use pod_identity::{IdentityEndpoint, PodIdentityConfig};
use session::{SessionScope, SessionTag, SessionTemplate};
pub use warning::ConfigWarning;

/// Default of `--app-port`, as kube2iam's.
pub const DEFAULT_APP_PORT: u16 = 8181;
/// Default of `--metrics-port`.
pub const DEFAULT_METRICS_PORT: u16 = 9543;
/// Default of `--session-duration`.
pub const DEFAULT_SESSION_DURATION: Duration = Duration::from_secs(3600);
/// Default of `--iam-role-error-ttl`.
pub const DEFAULT_ERROR_TTL: Duration = Duration::from_secs(30);
/// Default of `--sts-timeout`.
pub const DEFAULT_STS_TIMEOUT: Duration = Duration::from_secs(5);
/// Default of `--sts-rate`.
pub const DEFAULT_STS_RATE: u32 = 20;
/// Default of `--sts-max-rate`, as a multiple of `--sts-rate`.
pub const DEFAULT_STS_RISE: u32 = 5;
/// Default of `--sts-concurrency`.
pub const DEFAULT_STS_CONCURRENCY: u32 = 16;
/// Default of `--prefetch-spread`.
pub const DEFAULT_PREFETCH_SPREAD: Duration = Duration::from_secs(600);
/// Default of `--backoff-max-elapsed-time`.
pub const DEFAULT_POD_WAIT: Duration = Duration::from_secs(2);
/// Default of `--max-staleness`.
pub const DEFAULT_MAX_STALENESS: Duration = Duration::from_secs(900);
/// Default of `--redirect-interval`.
pub const DEFAULT_REDIRECT_INTERVAL: Duration = Duration::from_secs(30);
/// Default of `--bpf-pins`.
pub const DEFAULT_BPF_PINS: &str = "/sys/fs/bpf/rolegate";
/// Default of `--self-test-interval`.
pub const DEFAULT_SELF_TEST_INTERVAL: Duration = Duration::from_secs(60);
/// Default of `--startup-grace`: longer than the probe of kube2iam's manifests lets a container live that does not answer.
pub const DEFAULT_STARTUP_GRACE: Duration = Duration::from_secs(60);
/// Default of `--metadata-addr`.
pub const DEFAULT_METADATA_ADDR: &str = "169.254.169.254";
/// The shortest and the longest session that STS gives (API reference of AssumeRole, DurationSeconds).
pub(crate) const SESSION_DURATIONS: std::ops::RangeInclusive<Duration> = Duration::from_secs(900)..=Duration::from_secs(43_200);

/// Returns whether packet rules cannot redirect pods to this address.
pub(crate) fn is_no_target(ip: IpAddr) -> bool {
    ip.is_loopback() || ip.is_unspecified()
}

/// The whole configuration, valid.
#[derive(Debug)]
pub struct Config {
    /// Which pods, and how the Kubernetes API is reached.
    pub pods: PodsConfig,
    /// Which role a pod may have.
    pub roles: RolesConfig,
    /// What is asked of STS.
    pub sessions: SessionsConfig,
    /// The pod-facing port.
    pub server: ServerConfig,
    /// The endpoint for service account tokens; `None` if it is off.
    pub pod_identity: Option<PodIdentityConfig>,
    /// The operators' port.
    pub admin: AdminConfig,
    /// The packet rules.
    pub redirect: RedirectConfig,
    /// The test of it.
    pub self_test: SelfTestConfig,
    /// How AWS is reached.
    pub aws: AwsConfig,
    /// The logs.
    pub log: LogConfig,
    /// The real metadata service, and what of it pods may read.
    pub metadata: MetadataConfig,
    /// The settings that `--migrate` does not enforce yet; `None` without it.
    pub migrate: Option<StrictSettings>,
    /// What the operator should know about the arguments; logged at start.
    pub warnings: Vec<ConfigWarning>,
}

/// Which pods, and how the Kubernetes API is reached.
#[derive(Debug)]
pub struct PodsConfig {
    /// This node's name; empty where it is to be found by the daemon's own pod.
    pub node: String,
    /// What is known of that pod.
    pub own_pod: OwnPodHints,
    /// The API.
    pub api: ApiConfig,
    /// Annotation keys.
    pub annotations: AnnotationKeys,
    /// The longest wait of a request for its pod to become known.
    pub wait: Duration,
    /// How long after the last contact with the API pods are served whose claims nothing on the node confirms; `None` for no
    /// limit.
    pub max_staleness: Option<Duration>,
    /// The directory of the results of CNI plugins; an absolute path.
    pub cni_results: Option<PathBuf>,
    /// Whether pods' owners are told by Events why pods get nothing.
    pub events: bool,
    /// The key of the taints that keep pods off this node until the daemon is ready.
    pub startup_taint: Option<String>,
    /// What happens to the requests of pods in the node's network.
    pub host_network: HostNetworkConfig,
}

/// How the Kubernetes API is reached; with nothing set, by the pod's service account.
#[derive(Clone, Debug, Default)]
pub struct ApiConfig {
    /// A kubeconfig file.
    pub kubeconfig: Option<PathBuf>,
    /// The server's URL.
    pub server: Option<String>,
    /// A bearer token.
    pub token: Option<SecretString>,
    /// Skip the verification of the server's certificate.
    pub insecure: bool,
}

/// The annotations that are read.
#[derive(Clone, Debug)]
pub struct AnnotationKeys {
    /// On a pod: its role.
    pub role: String,
    /// On a pod: the role that the session of its role assumes.
    pub target_role: String,
    /// On a pod: the external id.
    pub external_id: String,
    /// On a namespace: the JSON list of allowed roles.
    pub allowed_roles: String,
}

/// Which role a pod may have.
#[derive(Debug)]
pub struct RolesConfig {
    /// What short names are completed with.
    pub base: BaseRole,
    /// The role of pods without an annotation.
    pub default: DefaultRole,
    /// Whether namespaces limit roles.
    pub restrictions: Restrictions,
    /// How the namespaces' patterns are written.
    pub patterns: PatternFormat,
    /// Patterns of the roles that pods of this node may have at all; `None`: every role.
    pub allowed: Option<Vec<String>>,
    /// Whether a pod may have the node's own role.
    pub allow_node_role: bool,
    /// Which annotations of service accounts name roles.
    pub service_accounts: ServiceAccountRoles,
}

/// Which annotations of service accounts name the roles of their pods.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ServiceAccountRoles {
    /// None: service accounts are not read.
    Off,
    /// The annotation that pods have as well.
    Own,
    /// The role annotation and the EKS annotation.
    OwnAndEks,
}

/// What short role names are completed with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BaseRole {
    /// Nothing: roles are ARNs.
    None,
    /// `--base-role-arn`.
    Given(BaseArn),
    /// `--auto-discover-base-arn`: the node's own account and partition.
    Discover,
}

/// The role of pods that name none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DefaultRole {
    /// None: such a pod is refused.
    None,
    /// `--default-role`: an ARN or a short name.
    Given(String),
    /// `--auto-discover-default-role` with `--allow-node-role`: the node's own. Without the second, it is `None`.
    NodeRole,
}

/// Whether a namespace's annotation limits the roles of its pods.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Restrictions {
    /// It does not.
    Off,
    /// It does.
    Enforce,
    /// What it would refuse is reported and served.
    Audit,
}

/// How patterns of roles are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PatternFormat {
    /// `*` stands for any text, everything else for itself.
    Glob,
    /// Regular expressions.
    Regexp,
}

/// What is asked of STS.
#[derive(Clone, Debug)]
pub struct SessionsConfig {
    /// How long a session lasts.
    pub duration: Duration,
    /// The cluster's name, for session names and tags.
    pub cluster: Option<String>,
    /// What sessions are named.
    pub name: SessionTemplate,
    /// Whether a pod's annotation names its session instead: where no template is given.
    pub pod_may_name: bool,
    /// Who shares a session.
    pub scope: SessionScope,
    /// The source identity of sessions; `None`: they get none.
    pub source_identity: Option<SessionTemplate>,
    /// What STS is told about the pod beside the name; in the order of the enum, each once.
    pub tags: Vec<SessionTag>,
    /// Whether sessions that pods create with their credentials inherit them.
    pub transitive_tags: bool,
    /// How long the first failure of a session is remembered.
    pub error_ttl: Duration,
    /// The role that pods' roles are assumed by; `None`: the daemon's own identity.
    pub intermediate: Option<RoleArn>,
    /// The longest wait of a request for STS.
    pub timeout: Duration,
    /// Requests to STS in a second.
    pub rate: u32,
    /// The highest rate of requests to STS, per second, while STS answers quickly.
    pub max_rate: u32,
    /// Requests to STS under way.
    pub concurrency: usize,
    /// Whether sessions are fetched before a pod asks.
    pub prefetch: bool,
    /// The time over which the sessions of pods that were here before the daemon are fetched.
    pub prefetch_spread: Duration,
}

/// The pod-facing port.
#[derive(Clone, Debug)]
pub struct ServerConfig {
    /// `None`: every address, IPv6 and IPv4.
    pub address: Option<IpAddr>,
    /// 0: a free one.
    pub port: u16,
    /// Serve what was not redirected.
    pub accept_direct: bool,
    /// Whether requests without a token are refused.
    pub tokens: TokenMode,
    /// Where the keys of session tokens are kept; without it, in memory.
    pub token_key_file: Option<PathBuf>,
    /// Where the listening socket is taken over from the daemon before, and offered to the next.
    pub handover_socket: Option<PathBuf>,
    /// How long after the start `/healthz` on this port fails while the daemon is not ready.
    pub startup_grace: Duration,
    /// What pods may take of it.
    pub limits: LimitsConfig,
}

/// What pods may take of their port. A connection has one request under way at a time, so that requests are limited with
/// connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LimitsConfig {
    /// Open connections, all pods together.
    pub connections: usize,
    /// Open connections of one pod.
    pub connections_per_pod: usize,
    /// New connections of one pod, per second; twice as many at once.
    pub connection_rate: u32,
    /// Time for a request to arrive, from its first byte, and for a response to be read.
    pub head_timeout: Duration,
    /// Time until the first byte of a connection's next request.
    pub idle_timeout: Duration,
}

impl Default for LimitsConfig {
    fn default() -> Self {
        Self {
            connections: 4096,
            connections_per_pod: 128,
            connection_rate: 250,
            head_timeout: Duration::from_secs(5),
            idle_timeout: Duration::from_secs(75),
        }
    }
}

/// File descriptors for everything but the limited connections of pods: listeners, the Kubernetes API, AWS, the metrics port, one
/// connection beyond the limit for each namespace, and connections of which the kernel is asked where they come from.
const OTHER_DESCRIPTORS: u64 = 512;

impl LimitsConfig {
    /// Returns the limit of open connections for all addresses together that belong to no known pod of this node. These
    /// connections have a separate budget, so that forged addresses do not affect known pods.
    pub fn unknown(&self) -> usize {
        (self.connections / 16).clamp(8, 256)
    }

    /// Returns how many connections beyond a limit may wait for a place.
    pub fn waiting(&self) -> usize {
        (self.connections / 16).clamp(8, 1024)
    }

    /// Lowers the number of connections to what this many file descriptors allow. Without a free descriptor, rolegate can neither
    /// accept connections nor reach AWS and the Kubernetes API.
    pub fn within(self, descriptors: u64) -> Self {
        let room = descriptors.saturating_sub(OTHER_DESCRIPTORS).max(descriptors / 4).max(1);
        // Each connection takes a descriptor. Connections of unknown sources and waiting ones come on top: a sixteenth each.
        let most = usize::try_from(room).unwrap_or(usize::MAX).saturating_mul(8) / 9;
        let connections = self.connections.min(most.max(1));
        let per_pod = self.connections_per_pod;
        let connections_per_pod = if connections < self.connections && per_pod >= connections { (connections / 4).max(1) } else { per_pod };
        Self { connections, connections_per_pod, ..self }
    }
}

/// Whether IMDSv1 is served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TokenMode {
    /// Only IMDSv2.
    Required,
    /// IMDSv1 too.
    Optional,
}

/// The real metadata service, and what of it pods may read.
#[derive(Clone, Debug)]
pub struct MetadataConfig {
    /// `host` or `host:port`.
    pub address: String,
    /// Whether there is no such service, as the SDKs' variable `AWS_EC2_METADATA_DISABLED` says.
    pub disabled: bool,
    /// What every pod may read.
    pub profile: MetadataProfile,
    /// Patterns of the namespaces whose pods may read everything that there is for pods.
    pub node_info_namespaces: Vec<String>,
}

/// What pods may read besides credentials.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MetadataProfile {
    /// Nothing.
    None,
    /// Region, zone, partition, instance id and type, the unsigned identity document.
    Base,
    /// The base set, and the node's addresses, interfaces, tags and notices.
    NodeInfo,
}

/// The settings by which `--migrate` says what would be refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StrictSettings {
    /// Whether requests without a token would be refused.
    pub tokens: TokenMode,
    /// What every pod could read.
    pub profile: MetadataProfile,
    /// Patterns of the namespaces whose pods could read everything.
    pub node_info_namespaces: Vec<String>,
    /// Whether namespaces would limit roles.
    pub restricted: bool,
    /// Whether kube2iam gives pods without a role the node's own role with these arguments, and rolegate does not.
    pub node_role_withheld: bool,
}

/// The operators' port.
#[derive(Clone, Debug)]
pub struct AdminConfig {
    /// `None`: every address, IPv6 and IPv4.
    pub address: Option<IpAddr>,
    /// 0: a free one.
    pub port: u16,
    /// `/debug/store`, for peers on loopback.
    pub debug: bool,
    /// Whether clients that are not on this node see namespaces in the metrics.
    pub namespace_labels: bool,
    /// Whether there is a metric with the roles of pods.
    pub role_label: bool,
    /// The status page, for peers on loopback.
    pub status_page: bool,
    /// Where `rolegate probe` asks.
    pub probe_socket: Option<PathBuf>,
}

/// The packet rules.
#[derive(Clone, Debug)]
pub struct RedirectConfig {
    /// What keeps them.
    pub backend: RedirectBackend,
    /// Which interfaces they match.
    pub interfaces: Vec<InterfaceMatch>,
    /// Where they send requests to: at most one address of each family. With none, the node's is found out at the start.
    pub host_ips: Vec<IpAddr>,
    /// The address in `HOST_IP`, which counts if none is given and an interface of the node has it.
    pub host_ip_hint: Option<IpAddr>,
    /// How often they are compared.
    pub interval: Duration,
    /// Whether they are removed at the daemon's orderly end.
    pub remove_on_exit: bool,
    /// Whether routing rules prohibit the way to the real metadata service as well.
    pub routing_rules: bool,
    /// The kernel's programs beside them.
    pub bpf: BpfConfig,
    /// The addresses at which the daemon serves Pod Identity: other programs must not redirect connections to them.
    pub pod_identity: BTreeSet<SocketAddr>,
    /// The directory of the node in which daemons prove that they run, if there is one.
    pub proofs: Option<PathBuf>,
}

/// The kernel's programs beside the packet rules.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BpfConfig {
    /// The directory of the control group of all pods; without it, where kubelets create it.
    pub cgroup: Option<PathBuf>,
    /// The directory of the pins, in a BPF file system.
    pub pins: PathBuf,
    /// The interfaces that get the exit guard; without any, those through which packets can leave.
    pub interfaces: Vec<InterfaceMatch>,
    /// What happens to the requests of pods in the node's network.
    pub host_network_pods: HostNetworkMode,
}

impl Default for BpfConfig {
    fn default() -> Self {
        Self { cgroup: None, pins: PathBuf::from(DEFAULT_BPF_PINS), interfaces: Vec::new(), host_network_pods: HostNetworkMode::Ignore }
    }
}

impl RedirectConfig {
    /// What is used of it to place the guard alone.
    pub(crate) fn guard_alone(backend: RedirectBackend, routing_rules: bool) -> Self {
        let (interfaces, host_ips) = (Vec::new(), Vec::new());
        let (interval, bpf) = (DEFAULT_REDIRECT_INTERVAL, BpfConfig::default());
        let pod_identity = BTreeSet::new();
        Self {
            backend,
            interfaces,
            host_ips,
            host_ip_hint: None,
            interval,
            remove_on_exit: false,
            routing_rules,
            bpf,
            pod_identity,
            proofs: None,
        }
    }
}

/// What keeps the packet rules.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RedirectBackend {
    /// Nothing here.
    None,
    /// What works here.
    Auto,
    /// The `nft` program.
    Nftables,
    /// The `iptables` programs.
    Iptables,
    /// What works here, and the kernel's programs beside it.
    Bpf,
}

/// The test whether pods' requests arrive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SelfTestConfig {
    /// Whether it is done.
    pub mode: SelfTestMode,
    /// The time between two.
    pub interval: Duration,
}

/// Whether the self-test is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SelfTestMode {
    /// Of our own rules, where it can be done.
    Auto,
    /// Of whatever rules there are.
    On,
    /// Not at all.
    Off,
}

/// `NAME`, `NAME+` or `!NAME`, as `iptables -i` reads names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InterfaceMatch {
    /// The name, or a prefix with a closing `+`.
    pub name: String,
    /// Everything but it.
    pub negated: bool,
}

/// The logs.
#[derive(Clone, Copy, Debug)]
pub struct LogConfig {
    /// One JSON object a line.
    pub json: bool,
    /// The most detailed level shown.
    pub level: tracing::Level,
}

/// Everything that is wrong with the arguments.
#[derive(Debug, PartialEq, Eq)]
pub struct ConfigError {
    /// One line each.
    pub mistakes: Vec<String>,
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.mistakes.as_slice() {
            [mistake] => write!(f, "{mistake}"),
            mistakes => {
                write!(f, "{} errors in the flags:", mistakes.len())?;
                mistakes.iter().try_for_each(|mistake| write!(f, "\n  {mistake}"))
            }
        }
    }
}

impl std::error::Error for ConfigError {}

/// The socket address of a listener: the address given, or all of them.
pub fn listen_address(address: Option<IpAddr>, port: u16) -> SocketAddr {
    SocketAddr::new(address.unwrap_or(IpAddr::V6(std::net::Ipv6Addr::UNSPECIFIED)), port)
}

#[cfg(test)]
mod tests;
