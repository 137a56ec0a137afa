//! Reads each part of the configuration from the source of settings, and records mistakes there.

use std::path::{Path, PathBuf};
use std::time::Duration;

use super::source::SettingSource;
use super::{
    AdminConfig, DEFAULT_APP_PORT, DEFAULT_METADATA_ADDR, DEFAULT_METRICS_PORT, DEFAULT_STARTUP_GRACE, LimitsConfig, LogConfig,
    MetadataConfig, MetadataProfile, ServerConfig, TokenMode,
};

mod pods;
mod roles;
mod rules;
mod sessions;

pub(super) use pods::{api, pods};
pub(super) use roles::roles;
pub(super) use rules::{check_target, redirect, self_test};
pub(super) use sessions::sessions;

/// The shortest and the longest timeout of a request.
const HEAD_TIMEOUTS: std::ops::RangeInclusive<Duration> = Duration::from_millis(100)..=Duration::from_secs(60);
/// What the idle timeout of the app port may be.
const IDLE_TIMEOUTS: std::ops::RangeInclusive<Duration> = Duration::from_millis(100)..=Duration::from_secs(3600);

/// Flags that are accepted only because kube2iam has them, and why they have no effect.
pub(super) const WITHOUT_EFFECT: &[(&str, &str)] = &[
    ("backoff-max-interval", "the watch wakes a waiting request"),
    ("cache-resync-period", "the watch needs no resync"),
    ("resolve-duplicate-cache-ips", "pods that claim one address are always told apart or refused"),
    ("use-regional-sts-endpoint", "the regional endpoint is always used"),
];

/// Returns the directory of a file.
pub(super) fn directory_of(path: &Path) -> PathBuf {
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
    parent.unwrap_or(Path::new(".")).to_owned()
}

pub(super) fn server(source: &mut SettingSource<'_>) -> ServerConfig {
    let server = ServerConfig {
        address: source.ip("metadata-bind-address"),
        port: source.port("app-port", DEFAULT_APP_PORT),
        accept_direct: source.switch("accept-direct-connections"),
        tokens: source.choice("imds-tokens", &[("required", TokenMode::Required), ("optional", TokenMode::Optional)], TokenMode::Required),
        token_key_file: source.text("token-key-file").map(PathBuf::from),
        handover_socket: source.text("handover-socket").map(PathBuf::from),
        startup_grace: source.duration("startup-grace", DEFAULT_STARTUP_GRACE),
        limits: limits(source),
    };
    if server.handover_socket.is_some() && server.token_key_file.is_none() {
        source.warn(
            "handover-without-token-keys",
            "--handover-socket without --token-key-file: while two daemons overlap, each refuses the session tokens of the other; give both \
             the same --token-key-file",
        );
    }
    if server.tokens == TokenMode::Required && server.token_key_file.is_none() {
        source.warn(
            "token-keys-in-memory",
            "--token-key-file is missing: a restart invalidates all session tokens, and some SDKs then fail for hours, until they request \
             new ones; give it a file on the node",
        );
    }
    server
}

fn limits(source: &mut SettingSource<'_>) -> LimitsConfig {
    let default = LimitsConfig::default();
    let connections = source.limit("limits-connections", default.connections as u32);
    // One pod must not be able to take most of few.
    let per_pod = (default.connections_per_pod as u32).min(connections / 4).max(1);
    let connections_per_pod = source.limit("limits-connections-per-pod", per_pod);
    let connection_rate = source.limit("limits-connection-rate", default.connection_rate);
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
pub(super) fn metadata(source: &mut SettingSource<'_>) -> MetadataConfig {
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
        source.warn(
            "metadata-disabled",
            "AWS_EC2_METADATA_DISABLED is set: pods get only credentials, no other metadata; to serve it, set --metadata-addr",
        );
        (profile, node_info_namespaces) = (MetadataProfile::None, Vec::new());
    }
    MetadataConfig { address, disabled, profile, node_info_namespaces }
}

/// Returns where the metrics are served instead, if the two ports are equal. The chart of kube2iam renders them so: there, one port
/// serves both.
pub(super) fn moved_metrics_port(app_port: u16, metrics_port: u16) -> Option<u16> {
    let other = if app_port == DEFAULT_METRICS_PORT { DEFAULT_METRICS_PORT + 1 } else { DEFAULT_METRICS_PORT };
    (app_port == metrics_port && app_port != 0).then_some(other)
}

pub(super) fn admin(source: &mut SettingSource<'_>) -> AdminConfig {
    AdminConfig {
        address: source.ip("metrics-bind-address"),
        port: source.port("metrics-port", DEFAULT_METRICS_PORT),
        debug: source.switch("debug"),
        namespace_labels: source.switch("metrics-namespace-labels"),
        role_label: source.switch("metrics-role-label"),
        status_page: source.switch("status-page"),
        probe_socket: source.text("probe-socket").map(PathBuf::from),
    }
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
