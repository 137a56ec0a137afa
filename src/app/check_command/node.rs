//! The node: packet rules, leftovers, ports, capabilities, and the self-test.

use std::net::SocketAddr;
use std::path::Path;

use super::step::{STEP, is_on_node, missing_addresses, no_answer, of_failure, within};
use crate::app::listener::listens;
use crate::app::redirect_command::{observe, told};
use crate::capabilities::{self, Need};
use crate::check::node::{self, CheckedPort};
use crate::check::{CheckItem, CheckSection};
use crate::config::check_command::CheckPlace;
use crate::config::redirect::RedirectCommand;
use crate::config::{Config, RedirectBackend, listen_address};
use crate::redirect::interface_addresses;
use crate::self_test::once::{SelfTestResult, once};
use crate::self_test::{Ability, ExpectedRules};

const SECTION: CheckSection = CheckSection::Node;

pub(super) async fn checks(config: &Config, place: &CheckPlace, self_test: Ability) -> Vec<CheckItem> {
    if !is_on_node(place) {
        let skipped = SECTION.skipped("all", "this is no pod, and the process lacks NET_ADMIN: packet rules, ports and the self-test");
        return vec![skipped.advise("run this as root on a node, or in the daemon's pod")];
    }
    let has_rules = config.redirect.backend != RedirectBackend::None;
    let mut needs = vec![Need::Port(config.server.port), Need::Port(config.admin.port)];
    needs.extend(has_rules.then_some(Need::Rules));
    let mut checks = vec![node::capabilities(&capabilities::missing(&needs))];
    let daemon = if has_rules {
        let (of_rules, daemon) = rules(config, self_test).await;
        checks.extend(of_rules);
        daemon
    } else {
        checks.push(SECTION.skipped("packet-rules", "--redirect=none: other programs install the rules"));
        None
    };
    let host_network = &config.pods.host_network;
    checks.push(node::host_network(host_network.pods, host_network.exempt.len(), has_cgroup2()));
    let port = |check, flag, address: SocketAddr| {
        node::port(CheckedPort { check, flag, port: address.port(), is_in_use: listens(address) }, daemon)
    };
    checks.push(port("app-port", "--app-port", listen_address(config.server.address, config.server.port)));
    checks.push(port("metrics-port", "--metrics-port", listen_address(config.admin.address, config.admin.port)));
    checks
}

/// Whether the node has control groups of version 2 alone; `None` if its cgroup file system is not mounted here.
fn has_cgroup2() -> Option<bool> {
    let mount = Path::new("/sys/fs/cgroup");
    mount.is_dir().then(|| mount.join("cgroup.controllers").exists())
}

/// The checks of the rules, and whether a daemon runs on this node.
async fn rules(config: &Config, self_test: Ability) -> (Vec<CheckItem>, Option<bool>) {
    let mut checks = Vec::new();
    if !config.redirect.host_ips.is_empty() {
        checks.push(node::addresses(&missing_addresses(&config.redirect.host_ips, &interface_addresses())));
    }
    if !capabilities::has_net_admin() {
        checks.push(SECTION.skipped("packet-rules", "they cannot be read without NET_ADMIN"));
        return (checks, None);
    }
    let command = RedirectCommand::status_of(config);
    let (wanted, mut seen) = match within(STEP, observe(&command)).await {
        None => {
            checks.push(no_answer(SECTION.failed("packet-rules", "the packet rules")));
            return (checks, None);
        }
        Some(Err(failure)) => {
            checks.push(of_failure(SECTION, "packet-rules", &failure));
            return (checks, None);
        }
        Some(Ok(observed)) => observed,
    };
    // They have lines of their own.
    let leftovers = std::mem::replace(&mut seen.legacy_rules, Ok(Vec::new()));
    let foreign = std::mem::take(&mut seen.foreign);
    let status = told(&command, &wanted, &seen).await;
    checks.push(node::packet_rules(&status, seen.daemon));
    checks.extend(node::leftovers(&leftovers));
    checks.extend(node::redirects_of_own_requests(&foreign.own_requests));
    checks.extend(foreign.unsearched.iter().map(node::unsearched_rules));
    if !wanted.kept_addresses().is_empty() {
        checks.extend(node::redirects_of_daemon_connections(&foreign.to_daemon));
    }
    let is_served = status.as_wanted && seen.daemon == Some(true);
    let is_redirected = |family: fn(&SocketAddr) -> bool| seen.observed.targets.iter().any(family);
    let expected = ExpectedRules { ipv4: is_redirected(SocketAddr::is_ipv4), ipv6: is_redirected(SocketAddr::is_ipv6) };
    checks.push(test(self_test, config, is_served, expected).await);
    (checks, seen.daemon)
}

/// Runs the self-test, where a daemon answers it.
async fn test(ability: Ability, config: &Config, is_served: bool, expected: ExpectedRules) -> CheckItem {
    let helper = match ability {
        Ability::Off => return SECTION.skipped("self-test", "--self-test=off"),
        Ability::Unable(reason) => return SECTION.skipped("self-test", reason),
        Ability::Able(_) if !is_served => {
            return SECTION.skipped("self-test", "it needs a running daemon, and its packet rules in place");
        }
        Ability::Able(helper) => helper,
    };
    match within(STEP, once(helper, &config.redirect, expected)).await {
        None => no_answer(SECTION.failed("self-test", "the self-test")),
        Some(SelfTestResult::Passed) => SECTION.ok("self-test", "a pod's request reaches the daemon, and the guard rejects all others"),
        Some(SelfTestResult::Unavailable(reason)) => SECTION.skipped("self-test", reason),
        Some(SelfTestResult::Failed { cause, advice }) => {
            let item = SECTION.failed("self-test", cause);
            advice.into_iter().fold(item, |item, advice| item.advise(advice))
        }
    }
}
