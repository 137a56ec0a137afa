//! Reads each part of the configuration from the source of settings, and records mistakes there.

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use secrecy::SecretString;

use super::session::{Placeholder, SessionScope, SessionTag, SessionTemplate};
use super::source::SettingSource;
use super::{
    AdminConfig, AnnotationKeys, ApiConfig, BaseRole, DEFAULT_APP_PORT, DEFAULT_ERROR_TTL, DEFAULT_MAX_STALENESS, DEFAULT_METADATA_ADDR,
    DEFAULT_METRICS_PORT, DEFAULT_POD_WAIT, DEFAULT_PREFETCH_SPREAD, DEFAULT_REDIRECT_INTERVAL, DEFAULT_SELF_TEST_INTERVAL,
    DEFAULT_SESSION_DURATION, DEFAULT_STS_CONCURRENCY, DEFAULT_STS_RATE, DEFAULT_STS_RISE, DEFAULT_STS_TIMEOUT, DefaultRole,
    InterfaceMatch, LimitsConfig, LogConfig, MetadataConfig, MetadataProfile, PatternFormat, PodsConfig, REDIRECT_INTERVALS,
    RedirectBackend, RedirectConfig, Restrictions, RolesConfig, SELF_TEST_INTERVALS, SESSION_DURATIONS, SHORT_STALENESS,
    SHORTEST_ERROR_TTL, STS_TIMEOUTS, SelfTestConfig, SelfTestMode, ServerConfig, ServiceAccountRoles, SessionsConfig, TokenMode,
};

/// The largest limit that can be given.
const MAX_LIMIT: u32 = 1_000_000;
/// The shortest and the longest timeout of a request.
const HEAD_TIMEOUTS: std::ops::RangeInclusive<Duration> = Duration::from_millis(100)..=Duration::from_secs(60);
/// What the idle timeout of the app port may be.
const IDLE_TIMEOUTS: std::ops::RangeInclusive<Duration> = Duration::from_millis(100)..=Duration::from_secs(3600);
use crate::role::{BaseArn, MAX_ARN_LENGTH, RoleArn};
use crate::session_limits::LONGEST_CHAINED;
use crate::session_limits::LONGEST_SDK_MARGIN;

/// The most patterns of `--allowed-roles`.
const MAX_ALLOWED_ROLES: usize = 256;

/// Flags that are accepted only because kube2iam has them, and why they have no effect.
pub(super) const WITHOUT_EFFECT: &[(&str, &str)] = &[
    ("backoff-max-interval", "the watch wakes a waiting request"),
    ("cache-resync-period", "the watch needs no resync"),
    ("resolve-duplicate-cache-ips", "pods that claim one address are always told apart or refused"),
    ("use-regional-sts-endpoint", "the regional endpoint is always used"),
];

pub(super) fn pods(source: &mut SettingSource<'_>, node_needed: bool, warnings: &mut Vec<String>) -> PodsConfig {
    let node = source.text("node").or_else(|| source.env("NODE_NAME")).unwrap_or_else(|| {
        if node_needed {
            source.mistake("--node (or NODE_NAME) is missing: set it from the field spec.nodeName of the DaemonSet's pod");
        }
        String::new()
    });
    if !node.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '.')) {
        source.mistake("--node: expected a node name of letters, digits, - and .");
    }
    let api = api(source);
    PodsConfig {
        node,
        api,
        annotations: AnnotationKeys {
            role: source.annotation_key("iam-role-key"),
            external_id: source.annotation_key("iam-external-id"),
            allowed_roles: source.annotation_key("namespace-key"),
        },
        wait: source.duration("backoff-max-elapsed-time", DEFAULT_POD_WAIT),
        max_staleness: max_staleness(source, warnings),
        cni_results: source.directory("cni-results"),
        events: source.switch("events"),
        startup_taint: source.taint_key("startup-taint"),
    }
}

/// How the Kubernetes API is reached.
pub(super) fn api(source: &mut SettingSource<'_>) -> ApiConfig {
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
        source.mistake("--api-token requires --api-server");
    }
    api
}

fn max_staleness(source: &mut SettingSource<'_>, warnings: &mut Vec<String>) -> Option<Duration> {
    let longest = source.duration("max-staleness", DEFAULT_MAX_STALENESS);
    if !longest.is_zero() && longest < SHORT_STALENESS {
        warnings.push(format!(
            "--max-staleness is {}, which is less than {}: pods may be refused without need, because an idle watch of the Kubernetes API \
             can be silent for a minute or more",
            humantime::format_duration(longest),
            humantime::format_duration(SHORT_STALENESS),
        ));
    }
    (!longest.is_zero()).then_some(longest)
}

pub(super) fn roles(source: &mut SettingSource<'_>) -> RolesConfig {
    let given = match source.text("base-role-arn") {
        Some(_) => source.parse("base-role-arn", |text| text.parse::<BaseArn>().map_err(|error| error.to_string())),
        None => None,
    };
    let base = match (given, source.switch("auto-discover-base-arn")) {
        (Some(base), discover) => {
            if discover {
                source.mistake("--auto-discover-base-arn and --base-role-arn exclude each other: give one of them");
            }
            BaseRole::Given(base)
        }
        (None, true) => BaseRole::Discover,
        // A malformed one is already reported; do not also report it as missing.
        (None, false) if source.text("base-role-arn").is_some() => BaseRole::Discover,
        (None, false) => BaseRole::None,
    };
    let node_role = source.switch("auto-discover-default-role");
    let allowed = source.switch("allow-node-role");
    if node_role && !allowed {
        source.mistake(
            "--auto-discover-default-role gives the node's own role to every pod without a role annotation: give --default-role with a \
             role for pods instead, or confirm it with --allow-node-role",
        );
    }
    let default = match (source.text("default-role"), node_role) {
        (Some(role), also_node_role) => {
            if also_node_role {
                source.mistake("--auto-discover-default-role and --default-role exclude each other: give one of them");
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
        allowed: allowed_roles(&base, source),
        allow_node_role: allowed,
        service_accounts: service_account_roles(source),
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

/// Reads the roles that pods of this node may use at all. The patterns are completed where the base ARN is known.
fn allowed_roles(base: &BaseRole, source: &mut SettingSource<'_>) -> Option<Vec<String>> {
    if !source.is_given("allowed-roles") {
        return None;
    }
    let patterns = source.list("allowed-roles");
    if patterns.is_empty() {
        // A variable that was left empty by mistake must not lift the limit.
        source.mistake("--allowed-roles is empty: name the roles that pods of this node may use, or remove the flag");
    }
    if patterns.len() > MAX_ALLOWED_ROLES {
        source.mistake(format!("--allowed-roles: expected at most {MAX_ALLOWED_ROLES} patterns"));
    }
    for (place, pattern) in &patterns {
        if !pattern.chars().all(|c| c.is_ascii_graphic()) || pattern.len() > MAX_ARN_LENGTH {
            source.mistake(format!("{place}={pattern:?}: expected the ARN or the name of a role, in which * matches any text"));
        } else if *base == BaseRole::None && !pattern.starts_with("arn:") {
            source.mistake(format!("{place}={pattern:?} is a short name: give an ARN, or add --base-role-arn or --auto-discover-base-arn"));
        }
    }
    Some(patterns.into_iter().map(|(_, pattern)| pattern).collect())
}

fn service_account_roles(source: &mut SettingSource<'_>) -> ServiceAccountRoles {
    match (source.switch("service-account-roles"), source.switch("eks-role-annotation")) {
        (true, true) => ServiceAccountRoles::OwnAndEks,
        (true, false) => ServiceAccountRoles::Own,
        (false, eks) => {
            if eks {
                source.mistake("--eks-role-annotation requires --service-account-roles");
            }
            ServiceAccountRoles::Off
        }
    }
}

fn default_role_mistake(role: &str, base: &BaseRole, source: &mut SettingSource<'_>) {
    let parsed = match base {
        _ if role.starts_with("arn:") => role.parse::<RoleArn>(),
        BaseRole::Given(base) => base.complete(role),
        // The account does not matter for the form of the name.
        BaseRole::Discover => format!("arn:aws:iam::000000000000:role/{}", role.strip_prefix('/').unwrap_or(role)).parse(),
        BaseRole::None => {
            return source.mistake(format!(
                "--default-role={role:?} is a short name: give an ARN, or add --base-role-arn or --auto-discover-base-arn"
            ));
        }
    };
    if let Err(error) = parsed {
        source.mistake(format!("--default-role={role:?}: {error}"));
    }
}

pub(super) fn sessions(source: &mut SettingSource<'_>, warnings: &mut Vec<String>) -> SessionsConfig {
    let mut duration = source.duration("session-duration", DEFAULT_SESSION_DURATION);
    let mut flag = "--session-duration";
    if source.is_given("iam-role-session-ttl") && source.text("iam-role-session-ttl").is_some() {
        if source.is_given("session-duration") {
            source.mistake("--iam-role-session-ttl and --session-duration exclude each other: give one of them");
        }
        duration = source.duration("iam-role-session-ttl", DEFAULT_SESSION_DURATION / 2).saturating_mul(2);
        flag = "twice --iam-role-session-ttl";
        warnings.push(format!(
            "--iam-role-session-ttl is doubled, as in kube2iam: sessions last {}; use --session-duration={0} instead",
            humantime::format_duration(duration)
        ));
    }
    if !SESSION_DURATIONS.contains(&duration) {
        source.mistake(format!("{flag} is {}: expected 15m to 12h, the limits of STS", humantime::format_duration(duration)));
    }
    if duration < LONGEST_SDK_MARGIN * 2 {
        warnings.push(format!(
            "sessions last {}, which is less than {}: pods also get credentials that expire in less than {}, which some SDKs request again \
             and again",
            humantime::format_duration(duration),
            humantime::format_duration(LONGEST_SDK_MARGIN * 2),
            humantime::format_duration(LONGEST_SDK_MARGIN),
        ));
    }
    let mut error_ttl = source.duration("iam-role-error-ttl", DEFAULT_ERROR_TTL);
    if error_ttl < SHORTEST_ERROR_TTL {
        warnings.push(format!(
            "--iam-role-error-ttl is {}, which would repeat a failed request to STS for each request of a pod: using {}",
            humantime::format_duration(error_ttl),
            humantime::format_duration(SHORTEST_ERROR_TTL),
        ));
        error_ttl = SHORTEST_ERROR_TTL;
    }
    let cluster = source.text("cluster-name");
    let scope = source.choice("session-scope", &[("pod", SessionScope::Pod), ("role", SessionScope::Role)], SessionScope::Pod);
    let name = session_template("session-name-template", scope, cluster.is_some(), source).unwrap_or_else(|| {
        SessionTemplate::of(match scope {
            SessionScope::Pod => Placeholder::Pod,
            SessionScope::Role => Placeholder::Role,
        })
    });
    let source_identity = session_template("source-identity", scope, cluster.is_some(), source);
    let tags = session_tags(scope, cluster.is_some(), source);
    let pod_may_name = source.text("session-name-template").is_none();
    let timeout = source.duration("sts-timeout", DEFAULT_STS_TIMEOUT);
    if !STS_TIMEOUTS.contains(&timeout) {
        source.mistake("--sts-timeout: expected 100ms to 1m");
    }
    let intermediate = source.text("assume-role-arn").and_then(|_| {
        source.parse("assume-role-arn", |text| text.parse::<RoleArn>().map_err(|error| format!("expected the ARN of a role: {error}")))
    });
    if intermediate.is_some() && duration > LONGEST_CHAINED {
        warnings
            .push(format!("--assume-role-arn is role chaining, so sessions last 1h, not {flag}={}", humantime::format_duration(duration)));
        duration = LONGEST_CHAINED;
    }
    let rate = limit("sts-rate", DEFAULT_STS_RATE, source);
    let max_rate = limit("sts-max-rate", rate.saturating_mul(DEFAULT_STS_RISE), source);
    if max_rate < rate {
        source.mistake("--sts-max-rate is less than --sts-rate: give the same number if the rate must not rise");
    }
    SessionsConfig {
        duration,
        cluster,
        name,
        pod_may_name,
        scope,
        source_identity,
        tags,
        error_ttl,
        timeout,
        intermediate,
        rate,
        max_rate,
        concurrency: limit("sts-concurrency", DEFAULT_STS_CONCURRENCY, source) as usize,
        prefetch: source.switch("prefetch"),
        prefetch_spread: source.duration("prefetch-spread", DEFAULT_PREFETCH_SPREAD),
    }
}

/// Reads the template of a flag, if it is given.
fn session_template(
    flag: &'static str,
    scope: SessionScope,
    cluster_known: bool,
    source: &mut SettingSource<'_>,
) -> Option<SessionTemplate> {
    source.text(flag)?;
    let template = source.parse(flag, |text| text.parse::<SessionTemplate>().map_err(|error| error.to_string()))?;
    if scope == SessionScope::Role && template.fields().any(Placeholder::is_of_pod) {
        source.mistake(format!(
            "--{flag} names the pod, but pods share sessions with --session-scope=role: use only {{cluster}}, {{node}} and {{role}}"
        ));
    }
    if !cluster_known && template.fields().any(|field| field == Placeholder::Cluster) {
        source.mistake(format!("--{flag} contains {{cluster}}: add --cluster-name"));
    }
    Some(template)
}

fn session_tags(scope: SessionScope, cluster_known: bool, source: &mut SettingSource<'_>) -> Vec<SessionTag> {
    let mut tags = Vec::new();
    for (place, item) in source.list("session-tags") {
        match SessionTag::NAMES.iter().find(|(name, _)| *name == item) {
            Some((name, tag)) => {
                if scope == SessionScope::Role && tag.is_of_pod() {
                    source.mistake(format!("{place}={name}: pods share sessions with --session-scope=role: use only cluster and node"));
                }
                tags.push(*tag);
            }
            None => {
                let names: Vec<_> = SessionTag::NAMES.iter().map(|(name, _)| *name).collect();
                source.mistake(format!("{place}={item:?}: expected one of {}", names.join(", ")));
            }
        }
    }
    if !cluster_known && tags.contains(&SessionTag::Cluster) {
        source.mistake("--session-tags contains cluster: add --cluster-name");
    }
    // The same tags in another order are the same session.
    tags.sort_unstable();
    tags.dedup();
    tags
}

pub(super) fn server(source: &mut SettingSource<'_>, warnings: &mut Vec<String>) -> ServerConfig {
    let server = ServerConfig {
        address: source.ip("metadata-bind-address"),
        port: source.port("app-port", DEFAULT_APP_PORT),
        accept_direct: source.switch("accept-direct-connections"),
        tokens: source.choice("imds-tokens", &[("required", TokenMode::Required), ("optional", TokenMode::Optional)], TokenMode::Required),
        token_key_file: source.text("token-key-file").map(PathBuf::from),
        handover_socket: source.text("handover-socket").map(PathBuf::from),
        limits: limits(source),
    };
    if server.handover_socket.is_some() && server.token_key_file.is_none() {
        warnings.push(
            "--handover-socket without --token-key-file: while two daemons overlap, each refuses the session tokens of the other; give both \
             the same --token-key-file"
                .to_owned(),
        );
    }
    if server.tokens == TokenMode::Required && server.token_key_file.is_none() {
        warnings.push(
            "--token-key-file is missing: a restart invalidates all session tokens, and some SDKs then fail for hours, until they request \
             new ones; give it a file on the node"
                .to_owned(),
        );
    }
    server
}

/// Reads a limit.
fn limit(name: &str, default: u32, source: &mut SettingSource<'_>) -> u32 {
    let given = source.parse(name, |text| match text.parse() {
        Ok(number @ 1..=MAX_LIMIT) => Ok(number),
        _ => Err(format!("expected a number from 1 to {MAX_LIMIT}")),
    });
    given.unwrap_or(default)
}

fn limits(source: &mut SettingSource<'_>) -> LimitsConfig {
    let default = LimitsConfig::default();
    let connections = limit("limits-connections", default.connections as u32, source);
    // One pod must not be able to take most of few.
    let per_pod = (default.connections_per_pod as u32).min(connections / 4).max(1);
    let connections_per_pod = limit("limits-connections-per-pod", per_pod, source);
    let connection_rate = limit("limits-connection-rate", default.connection_rate, source);
    let head_timeout = source.duration("limits-head-timeout", default.head_timeout);
    if connections_per_pod > connections || (connections_per_pod == connections && connections > 1) {
        source.mistake("--limits-connections-per-pod must be less than --limits-connections, or one pod could use all connections");
    }
    if !HEAD_TIMEOUTS.contains(&head_timeout) {
        source.mistake("--limits-head-timeout: expected 100ms to 1m");
    }
    let idle_timeout = source.duration("limits-idle-timeout", default.idle_timeout);
    if !IDLE_TIMEOUTS.contains(&idle_timeout) {
        source.mistake("--limits-idle-timeout: expected 100ms to 1h");
    }
    let (connections, connections_per_pod) = (connections as usize, connections_per_pod as usize);
    LimitsConfig { connections, connections_per_pod, connection_rate, head_timeout, idle_timeout }
}

/// The real service, and what pods may read of it. Where the SDK is told that there is no metadata service, there is none for
/// pods either, unless its address is given.
pub(super) fn metadata(source: &mut SettingSource<'_>, warnings: &mut Vec<String>) -> MetadataConfig {
    let given = source.is_given("metadata-addr");
    let address = source.parse("metadata-addr", authority).unwrap_or_else(|| DEFAULT_METADATA_ADDR.to_owned());
    let profiles = [("base", MetadataProfile::Base), ("node-info", MetadataProfile::NodeInfo), ("none", MetadataProfile::None)];
    let mut profile = source.choice("metadata-profile", &profiles, MetadataProfile::Base);
    let mut node_info_namespaces = Vec::new();
    for (place, pattern) in source.list("node-info-namespaces") {
        // What a namespace's name is made of (RFC 1123 label), and the star.
        if pattern.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || matches!(byte, b'-' | b'*')) {
            node_info_namespaces.push(pattern);
        } else {
            source.mistake(format!("{place}={pattern:?}: expected the name of a namespace, with * for any text"));
        }
    }
    let disabled = source.env("AWS_EC2_METADATA_DISABLED").is_some_and(|text| text.trim().eq_ignore_ascii_case("true"));
    if disabled && !given && (profile != MetadataProfile::None || !node_info_namespaces.is_empty()) {
        warnings.push(
            "AWS_EC2_METADATA_DISABLED is set: pods get only credentials, no other metadata; to serve it, set --metadata-addr".to_owned(),
        );
        (profile, node_info_namespaces) = (MetadataProfile::None, Vec::new());
    }
    MetadataConfig { address, disabled, profile, node_info_namespaces }
}

pub(super) fn admin(source: &mut SettingSource<'_>) -> AdminConfig {
    AdminConfig {
        address: source.ip("metrics-bind-address"),
        port: source.port("metrics-port", DEFAULT_METRICS_PORT),
        debug: source.switch("debug"),
        namespace_labels: source.switch("metrics-namespace-labels"),
        probe_socket: source.text("probe-socket").map(PathBuf::from),
    }
}

pub(super) fn redirect(source: &mut SettingSource<'_>) -> RedirectConfig {
    let by_switch = if source.switch("iptables") { RedirectBackend::Auto } else { RedirectBackend::None };
    let backends = [
        ("auto", RedirectBackend::Auto),
        ("nftables", RedirectBackend::Nftables),
        ("iptables", RedirectBackend::Iptables),
        ("none", RedirectBackend::None),
    ];
    let backend = source.choice("redirect", &backends, by_switch);
    let interval = source.duration("redirect-interval", DEFAULT_REDIRECT_INTERVAL);
    if !REDIRECT_INTERVALS.contains(&interval) {
        source.mistake("--redirect-interval: expected 1s to 1h");
    }
    let remove_on_exit = source.choice("redirect-on-exit", &[("keep", false), ("remove", true)], false);
    let mut interfaces = Vec::new();
    for (place, item) in source.list("host-interface") {
        match interface(&item) {
            Ok(interface) => interfaces.push(interface),
            Err(expected) => source.mistake(format!("{place}={item:?}: {expected}")),
        }
    }
    if interfaces.iter().any(|i| i.negated) && interfaces.iter().any(|i| !i.negated) {
        source.mistake("--host-interface: expected either names or names with !, not both in one list");
    }
    let host_ips = source.ips("host-ip");
    if [IpAddr::is_ipv4, IpAddr::is_ipv6].iter().any(|family| host_ips.iter().filter(|ip| family(ip)).count() > 1) {
        source.mistake("--host-ip: expected at most one IPv4 and one IPv6 address");
    }
    RedirectConfig { backend, interfaces, host_ips, interval, remove_on_exit }
}

pub(super) fn self_test(source: &mut SettingSource<'_>) -> SelfTestConfig {
    let modes = [("auto", SelfTestMode::Auto), ("on", SelfTestMode::On), ("off", SelfTestMode::Off)];
    let mode = source.choice("self-test", &modes, SelfTestMode::Auto);
    let interval = source.duration("self-test-interval", DEFAULT_SELF_TEST_INTERVAL);
    if !SELF_TEST_INTERVALS.contains(&interval) {
        source.mistake("--self-test-interval: expected 1s to 1h");
    }
    SelfTestConfig { mode, interval }
}

/// Checks that the rules redirect to the app port, and that pods can reach that address.
pub(super) fn check_target(redirect: &RedirectConfig, bound: Option<IpAddr>, source: &mut SettingSource<'_>) {
    if redirect.backend == RedirectBackend::None {
        return;
    }
    let bound = bound.map(|bound| bound.to_canonical());
    if let Some(bound) = bound.filter(IpAddr::is_loopback) {
        source.mistake(format!(
            "--metadata-bind-address={bound}: packet rules cannot redirect to a loopback address; remove the flag, or give this node's \
             address"
        ));
    }
    for ip in &redirect.host_ips {
        if ip.is_loopback() || ip.is_unspecified() {
            source.mistake(format!(
                "--host-ip={ip}: pods cannot reach this address; give this node's address, from the field status.hostIP of the pod"
            ));
        } else if let Some(bound) = bound.filter(|bound| !bound.is_unspecified() && bound.is_ipv4() == ip.is_ipv4() && bound != ip) {
            source.mistake(format!(
                "--host-ip={ip} and --metadata-bind-address={bound} differ: the rules would redirect to an address on which rolegate does not \
                 listen"
            ));
        }
    }
}

fn interface(text: &str) -> Result<InterfaceMatch, String> {
    let (name, negated) = text.strip_prefix('!').map_or((text, false), |name| (name, true));
    // The kernel's IFNAMSIZ is 16 with the closing zero.
    let plain = |c: char| c.is_ascii_graphic() && !matches!(c, '/' | '!' | '"' | '\'' | '\\' | ',');
    if name.is_empty() || name.len() > 15 || !name.chars().all(plain) || name.starts_with('-') {
        return Err("expected the name of an interface, at most 15 characters".to_owned());
    }
    Ok(InterfaceMatch { name: name.to_owned(), negated })
}

pub(super) fn log(source: &mut SettingSource<'_>) -> LogConfig {
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
pub(super) fn authority(text: &str) -> Result<String, String> {
    let good = text.parse::<http::uri::Authority>().is_ok_and(|authority| {
        let host = authority.host();
        // What follows the host is nothing, or a port that is a number of 16 bits.
        !host.is_empty() && (text == host || authority.port_u16().is_some()) && !text.contains('@')
    });
    if good { Ok(text.to_owned()) } else { Err("expected HOST or HOST:PORT".to_owned()) }
}
