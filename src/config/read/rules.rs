//! Reads the packet rules and the self-test.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use crate::config::own_pod::host_ip;
use crate::config::source::SettingSource;
use crate::config::{
    BpfConfig, DEFAULT_REDIRECT_INTERVAL, DEFAULT_SELF_TEST_INTERVAL, HostNetworkMode, InterfaceMatch, RedirectBackend, RedirectConfig,
    SelfTestConfig, SelfTestMode, is_no_target,
};

/// Shorter, comparing would be all that the node does; longer, it would hardly be a comparison.
const REDIRECT_INTERVALS: std::ops::RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_secs(3600);
/// What `--self-test-interval` may be.
const SELF_TEST_INTERVALS: std::ops::RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_secs(3600);

/// Reads the packet rules, without the addresses of Pod Identity; `default` is the backend where none is given.
pub(in crate::config) fn redirect(source: &mut SettingSource<'_>, default: RedirectBackend) -> RedirectConfig {
    let by_switch = if source.switch("iptables") { RedirectBackend::Auto } else { default };
    let backends = [
        ("auto", RedirectBackend::Auto),
        ("nftables", RedirectBackend::Nftables),
        ("iptables", RedirectBackend::Iptables),
        ("bpf", RedirectBackend::Bpf),
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
    let mut host_ips = match source.expanded("host-ip") {
        Some(_) => source.ips("host-ip"),
        None => Vec::new(),
    };
    if let Some(ip) = host_ips.iter().find(|ip| is_no_target(**ip)).filter(|_| backend != RedirectBackend::None) {
        source.warn(
            "host-ip-ignored",
            format!(
                "--host-ip={ip}: pods cannot reach this address; using the address of this node instead; remove the flag, or set it from the \
                 field status.hostIP of the pod"
            ),
        );
    }
    host_ips.retain(|ip| !is_no_target(*ip));
    if [IpAddr::is_ipv4, IpAddr::is_ipv6].iter().any(|family| host_ips.iter().filter(|ip| family(ip)).count() > 1) {
        source.mistake("--host-ip: expected at most one IPv4 and one IPv6 address");
    }
    let routing_rules = source.switch("redirect-routing-rules");
    let bpf = bpf(source);
    RedirectConfig {
        backend,
        interfaces,
        host_ips,
        host_ip_hint: host_ip(source),
        interval,
        remove_on_exit,
        routing_rules,
        bpf,
        pod_identity: BTreeSet::new(),
        proofs: None,
    }
}

/// Reads the kernel's programs.
fn bpf(source: &mut SettingSource<'_>) -> BpfConfig {
    let default = BpfConfig::default();
    let mut path = |name: &str| {
        let path = source.text(name).map(PathBuf::from)?;
        if !path.is_absolute() {
            source.mistake(format!("--{name}={}: expected an absolute path", path.display()));
        }
        Some(path)
    };
    let (cgroup, pins) = (path("bpf-cgroup"), path("bpf-pins").unwrap_or(default.pins));
    let mut interfaces = Vec::new();
    for (place, item) in source.list("bpf-interfaces") {
        match interface(&item) {
            Ok(interface) if interface.negated => source.mistake(format!("{place}={item:?}: expected the name of an interface, without !")),
            Ok(interface) => interfaces.push(interface),
            Err(expected) => source.mistake(format!("{place}={item:?}: {expected}")),
        }
    }
    BpfConfig { cgroup, pins, interfaces, host_network_pods: HostNetworkMode::read(source) }
}

pub(in crate::config) fn self_test(source: &mut SettingSource<'_>) -> SelfTestConfig {
    let modes = [("auto", SelfTestMode::Auto), ("on", SelfTestMode::On), ("off", SelfTestMode::Off)];
    let mode = source.choice("self-test", &modes, SelfTestMode::Auto);
    let interval = source.duration("self-test-interval", DEFAULT_SELF_TEST_INTERVAL);
    if !SELF_TEST_INTERVALS.contains(&interval) {
        source.mistake("--self-test-interval: expected 1s to 1h");
    }
    SelfTestConfig { mode, interval }
}

/// Checks that the rules redirect to the app port, and that pods can reach that address.
pub(in crate::config) fn check_target(redirect: &RedirectConfig, bound: Option<IpAddr>, source: &mut SettingSource<'_>) {
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
        if let Some(bound) = bound.filter(|bound| !bound.is_unspecified() && bound.is_ipv4() == ip.is_ipv4() && bound != ip) {
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
