//! Arguments and environment → one validated [`Config`]. Every mistake is reported at once.
//!
//! The names and meanings of kube2iam's flags are kept, so that its users change the image and nothing else.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use clap::ArgMatches;
use secrecy::SecretString;

use crate::role::{BaseArn, RoleArn};

pub mod flags;
mod source;

use source::Source;

/// Default of `--app-port`, as kube2iam's.
pub const DEFAULT_APP_PORT: u16 = 8181;
/// Default of `--metrics-port`.
pub const DEFAULT_METRICS_PORT: u16 = 9543;
/// Default of `--session-duration`.
pub const DEFAULT_SESSION_DURATION: Duration = Duration::from_secs(3600);
/// Default of `--iam-role-error-ttl`.
pub const DEFAULT_ERROR_TTL: Duration = Duration::from_secs(30);
/// Default of `--backoff-max-elapsed-time`.
pub const DEFAULT_POD_WAIT: Duration = Duration::from_secs(2);
/// Default of `--metadata-addr`.
pub const DEFAULT_METADATA_ADDR: &str = "169.254.169.254";
/// The shortest and the longest session that STS gives (API reference of AssumeRole, DurationSeconds).
const SESSION_DURATIONS: std::ops::RangeInclusive<Duration> = Duration::from_secs(900)..=Duration::from_secs(43_200);

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
    /// The operators' port.
    pub admin: AdminConfig,
    /// The packet rule.
    pub redirect: RedirectConfig,
    /// The logs.
    pub log: LogConfig,
    /// `host:port` of the real metadata service.
    pub metadata_addr: String,
    /// What the operator should know about the arguments; logged at start.
    pub warnings: Vec<String>,
}

/// Which pods, and how the Kubernetes API is reached.
#[derive(Debug)]
pub struct PodsConfig {
    /// This node's name.
    pub node: String,
    /// The API.
    pub api: ApiConfig,
    /// Annotation keys.
    pub annotations: AnnotationKeys,
    /// The longest wait of a request for its pod to become known.
    pub wait: Duration,
}

/// How the Kubernetes API is reached; with nothing set, by the pod's service account.
#[derive(Debug, Default)]
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
    /// `--auto-discover-default-role` with `--allow-node-role`: the node's own.
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
#[derive(Clone, Copy, Debug)]
pub struct SessionsConfig {
    /// How long a session lasts.
    pub duration: Duration,
    /// How long a failure is remembered.
    pub error_ttl: Duration,
}

/// The pod-facing port.
#[derive(Clone, Copy, Debug)]
pub struct ServerConfig {
    /// `None`: every address, IPv6 and IPv4.
    pub address: Option<IpAddr>,
    /// 0: a free one.
    pub port: u16,
    /// Serve what was not redirected.
    pub accept_direct: bool,
    /// Whether requests without a token are refused.
    pub tokens: TokenMode,
}

/// Whether IMDSv1 is served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TokenMode {
    /// Only IMDSv2.
    Required,
    /// IMDSv1 too.
    Optional,
}

/// The operators' port.
#[derive(Clone, Copy, Debug)]
pub struct AdminConfig {
    /// `None`: every address, IPv6 and IPv4.
    pub address: Option<IpAddr>,
    /// 0: a free one.
    pub port: u16,
    /// `/debug/store`, for peers on loopback.
    pub debug: bool,
}

/// The packet rule.
#[derive(Clone, Debug)]
pub struct RedirectConfig {
    /// Who keeps it.
    pub backend: RedirectBackend,
    /// Which interfaces it matches.
    pub interfaces: Vec<InterfaceMatch>,
    /// Where it sends requests to.
    pub host_ip: Option<IpAddr>,
}

/// Who keeps the packet rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RedirectBackend {
    /// Nobody here.
    None,
    /// The `iptables` program.
    Iptables,
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
                write!(f, "{} mistakes in the arguments:", mistakes.len())?;
                mistakes.iter().try_for_each(|mistake| write!(f, "\n  {mistake}"))
            }
        }
    }
}

impl std::error::Error for ConfigError {}

impl Config {
    /// The configuration that flags and environment give.
    pub fn from_source(matches: &ArgMatches, env: &dyn Fn(&str) -> Option<String>) -> Result<Self, ConfigError> {
        let mut source = Source::new(matches, env);
        let mut warnings = Vec::new();
        let config = Self {
            pods: pods(&mut source),
            roles: roles(&mut source),
            sessions: sessions(&mut source, &mut warnings),
            server: server(&mut source),
            admin: admin(&mut source),
            redirect: redirect(&mut source),
            log: log(&mut source),
            metadata_addr: source.parse("metadata-addr", authority).unwrap_or_else(|| DEFAULT_METADATA_ADDR.to_owned()),
            warnings: Vec::new(),
        };
        if config.server.port == config.admin.port && config.server.port != 0 {
            source.mistake(format!(
                "--metrics-port and --app-port are both {}: pods reach the app port, and metrics are not for them; \
                 choose another --metrics-port (default {DEFAULT_METRICS_PORT})",
                config.server.port
            ));
        }
        for (name, instead) in WITHOUT_EFFECT {
            if source.is_given(name) {
                // Its value is still checked, so that a typing error does not hide.
                if flags::all().any(|flag| flag.name == *name && flag.value.is_none()) {
                    source.switch(name);
                } else {
                    source.duration(name, Duration::ZERO);
                }
                warnings.push(format!("--{name} has no effect: {instead}"));
            }
        }
        if config.roles.restrictions == Restrictions::Off {
            warnings.push(
                "--namespace-restrictions is off: whoever may create pods in a namespace may use any role that this node may assume"
                    .to_owned(),
            );
        }
        let mistakes = source.into_mistakes();
        if mistakes.is_empty() { Ok(Self { warnings, ..config }) } else { Err(ConfigError { mistakes }) }
    }
}

/// Flags that are accepted because kube2iam has them, and why nothing comes of them.
const WITHOUT_EFFECT: &[(&str, &str)] = &[
    ("backoff-max-interval", "a waiting request is woken by the watch, not by polling"),
    ("cache-resync-period", "the watch needs no resync"),
    ("resolve-duplicate-cache-ips", "pods that claim one address are always told apart or refused"),
    ("use-regional-sts-endpoint", "the regional endpoint is always used"),
];

fn pods(source: &mut Source<'_>) -> PodsConfig {
    let node = source.text("node").or_else(|| source.env("NODE_NAME")).unwrap_or_else(|| {
        source.mistake("--node (or NODE_NAME) is missing: give this node's name, from the field spec.nodeName of the DaemonSet's pod");
        String::new()
    });
    if !node.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '.')) {
        source.mistake("--node: expected the name of a node: letters, digits, - and . only");
    }
    let api = ApiConfig {
        kubeconfig: source.text("kubeconfig").map(PathBuf::from),
        server: source.text("api-server"),
        token: source.text("api-token").map(SecretString::from),
        insecure: source.switch("insecure"),
    };
    if api
        .server
        .as_ref()
        .is_some_and(|url| url.parse::<http::Uri>().map_or(true, |uri| uri.scheme().is_none() || uri.authority().is_none()))
    {
        source.mistake("--api-server: expected a URL such as https://10.0.0.1:6443");
    }
    if api.token.is_some() && api.server.is_none() {
        source.mistake("--api-token goes with --api-server, which is missing");
    }
    PodsConfig {
        node,
        api,
        annotations: AnnotationKeys {
            role: source.annotation_key("iam-role-key"),
            external_id: source.annotation_key("iam-external-id"),
            allowed_roles: source.annotation_key("namespace-key"),
        },
        wait: source.duration("backoff-max-elapsed-time", DEFAULT_POD_WAIT),
    }
}

fn roles(source: &mut Source<'_>) -> RolesConfig {
    let given = match source.text("base-role-arn") {
        Some(_) => source.parse("base-role-arn", |text| text.parse::<BaseArn>().map_err(|error| error.to_string())),
        None => None,
    };
    let base = match (given, source.switch("auto-discover-base-arn")) {
        (Some(base), discover) => {
            if discover {
                source.mistake("--auto-discover-base-arn and --base-role-arn say the same thing: give one of them");
            }
            BaseRole::Given(base)
        }
        (None, true) => BaseRole::Discover,
        (None, false) => BaseRole::None,
    };
    let node_role = source.switch("auto-discover-default-role");
    let allowed = source.switch("allow-node-role");
    if node_role && !allowed {
        source.mistake(
            "--auto-discover-default-role gives the node's own role to every pod without one; \
             if that is really meant, add --allow-node-role, else use --default-role with a role made for pods",
        );
    }
    let default = match (source.text("default-role"), node_role) {
        (Some(role), also_node_role) => {
            if also_node_role {
                source.mistake("--auto-discover-default-role and --default-role say the same thing: give one of them");
            }
            default_role_mistake(&role, &base, source);
            DefaultRole::Given(role)
        }
        (None, true) => DefaultRole::NodeRole,
        (None, false) => DefaultRole::None,
    };
    let restrictions = [
        ("true", Restrictions::Enforce),
        ("false", Restrictions::Off),
        ("audit", Restrictions::Audit),
        ("1", Restrictions::Enforce),
        ("0", Restrictions::Off),
    ];
    RolesConfig {
        base,
        default,
        restrictions: source.choice("namespace-restrictions", &restrictions, Restrictions::Off),
        patterns: source.choice(
            "namespace-restriction-format",
            &[("glob", PatternFormat::Glob), ("regexp", PatternFormat::Regexp)],
            PatternFormat::Glob,
        ),
    }
}

fn default_role_mistake(role: &str, base: &BaseRole, source: &mut Source<'_>) {
    let parsed = match base {
        _ if role.starts_with("arn:") => role.parse::<RoleArn>(),
        BaseRole::Given(base) => base.complete(role),
        // The account does not matter for the form of the name.
        BaseRole::Discover => format!("arn:aws:iam::000000000000:role/{role}").parse(),
        BaseRole::None => {
            return source
                .mistake(format!("--default-role={role:?} is a short name: give its ARN, or --base-role-arn or --auto-discover-base-arn"));
        }
    };
    if let Err(error) = parsed {
        source.mistake(format!("--default-role={role:?}: {error}"));
    }
}

fn sessions(source: &mut Source<'_>, warnings: &mut Vec<String>) -> SessionsConfig {
    let mut duration = source.duration("session-duration", DEFAULT_SESSION_DURATION);
    let mut flag = "--session-duration";
    if source.is_given("iam-role-session-ttl") && source.text("iam-role-session-ttl").is_some() {
        if source.is_given("session-duration") {
            source.mistake("--iam-role-session-ttl and --session-duration say the same thing: give one of them");
        }
        duration = source.duration("iam-role-session-ttl", DEFAULT_SESSION_DURATION / 2).saturating_mul(2);
        flag = "twice --iam-role-session-ttl";
        warnings.push(format!(
            "--iam-role-session-ttl is doubled, as in kube2iam: sessions last {}; --session-duration says it literally",
            humantime::format_duration(duration)
        ));
    }
    if !SESSION_DURATIONS.contains(&duration) {
        source.mistake(format!("{flag} is {}: STS gives sessions of 15m to 12h", humantime::format_duration(duration)));
    }
    SessionsConfig { duration, error_ttl: source.duration("iam-role-error-ttl", DEFAULT_ERROR_TTL) }
}

fn server(source: &mut Source<'_>) -> ServerConfig {
    ServerConfig {
        address: source.ip("metadata-bind-address"),
        port: source.port("app-port", DEFAULT_APP_PORT),
        accept_direct: source.switch("accept-direct-connections"),
        tokens: source.choice("imds-tokens", &[("required", TokenMode::Required), ("optional", TokenMode::Optional)], TokenMode::Required),
    }
}

fn admin(source: &mut Source<'_>) -> AdminConfig {
    AdminConfig {
        address: source.ip("metrics-bind-address"),
        port: source.port("metrics-port", DEFAULT_METRICS_PORT),
        debug: source.switch("debug"),
    }
}

fn redirect(source: &mut Source<'_>) -> RedirectConfig {
    let by_switch = if source.switch("iptables") { RedirectBackend::Iptables } else { RedirectBackend::None };
    let backend = source.parse("redirect", |text| match text {
        "auto" | "iptables" => Ok(RedirectBackend::Iptables),
        "none" => Ok(RedirectBackend::None),
        "nftables" => Err("this version has no nftables backend; use iptables, whose nft flavour works beside nftables".to_owned()),
        _ => Err("expected one of auto, iptables, none".to_owned()),
    });
    let mut interfaces = Vec::new();
    for item in source.list("host-interface") {
        match interface(&item) {
            Ok(interface) => interfaces.push(interface),
            Err(expected) => source.mistake(format!("--host-interface={item:?}: {expected}")),
        }
    }
    if interfaces.iter().any(|i| i.negated) && interfaces.iter().any(|i| !i.negated) {
        source.mistake("--host-interface: a list names interfaces or, with !, all but some; not both");
    }
    RedirectConfig { backend: backend.unwrap_or(by_switch), interfaces, host_ip: source.ip("host-ip") }
}

fn interface(text: &str) -> Result<InterfaceMatch, String> {
    let (name, negated) = text.strip_prefix('!').map_or((text, false), |name| (name, true));
    // The kernel's IFNAMSIZ is 16 with the closing zero.
    let plain = |c: char| c.is_ascii_graphic() && !matches!(c, '/' | '!' | '"' | '\'' | '\\' | ',');
    if name.is_empty() || name.len() > 15 || !name.chars().all(plain) || name.starts_with('-') {
        return Err("expected the name of an interface, of at most 15 characters".to_owned());
    }
    Ok(InterfaceMatch { name: name.to_owned(), negated })
}

fn log(source: &mut Source<'_>) -> LogConfig {
    use tracing::Level;
    // The names are logrus's, which kube2iam's users have in their manifests.
    let levels = [
        ("error", Level::ERROR),
        ("warn", Level::WARN),
        ("info", Level::INFO),
        ("debug", Level::DEBUG),
        ("trace", Level::TRACE),
        ("warning", Level::WARN),
        ("fatal", Level::ERROR),
        ("panic", Level::ERROR),
    ];
    let level = source.choice("log-level", &levels, Level::INFO);
    let detailed = source.switch("verbose") | source.switch("debug");
    LogConfig {
        json: source.choice("log-format", &[("text", false), ("json", true)], false),
        level: if detailed { level.max(Level::DEBUG) } else { level },
    }
}

/// `host` or `host:port`, and nothing that a URL could be smuggled in by.
fn authority(text: &str) -> Result<String, String> {
    let good = text.parse::<http::uri::Authority>().is_ok_and(|authority| {
        let host = authority.host();
        // What follows the host is nothing, or a port that is a number of 16 bits.
        !host.is_empty() && (text == host || authority.port_u16().is_some()) && !text.contains('@')
    });
    if good { Ok(text.to_owned()) } else { Err("expected HOST or HOST:PORT".to_owned()) }
}

/// The socket address of a listener: the address given, or all of them.
pub fn listen_address(address: Option<IpAddr>, port: u16) -> SocketAddr {
    SocketAddr::new(address.unwrap_or(IpAddr::V6(std::net::Ipv6Addr::UNSPECIFIED)), port)
}

#[cfg(test)]
mod tests;
