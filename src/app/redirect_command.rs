//! `rolegate redirect`: the packet rules by hand, for a node's boot, for hooks and for people. It asks neither Kubernetes nor AWS.

use std::io;
use std::net::{SocketAddrV4, SocketAddrV6};

use anyhow::bail;

use super::bpf_programs;
use super::failure::Failure;
use super::packet_rules::{PacketRules, given_addresses};
use crate::advice::{Advise as _, chain};
use crate::config::redirect::{Action, RedirectCommand};
use crate::config::{RedirectBackend, RedirectConfig};
use crate::metrics::Metrics;
use crate::pod_identity::addresses;
use crate::readiness::Readiness;
use crate::redirect::backend::SelectedBackend;
use crate::redirect::bpf::keeper::{Keeper, KeeperEnvironment};
use crate::redirect::bpf::{Scope, check_file_system, pinned, remove_pins};
use crate::redirect::observed::ObservedRules;
use crate::redirect::ownership::Proofs;
use crate::redirect::program::LOCK_WAIT;
use crate::redirect::routing::{self as routing_rules, RoutingError, node as routing};
use crate::redirect::rules::{DirectConnections, RuleSet, Targets};
use crate::redirect::status::{NodeObservation, RoutingObservation, StatusReport, tell};
use crate::redirect::{self, Backend as _, RedirectError, conntrack, foreign, legacy_rules, nftables, ownership};

/// Does what is asked, and says in words what was done or found.
pub(crate) async fn redirect(command: RedirectCommand) -> anyhow::Result<StatusReport> {
    let lines = match command.action {
        Action::Install => install(&command).await?,
        Action::Remove if command.peers => remove_of_peers().await?,
        Action::Remove => remove(&command).await?,
        Action::Status => return status(&command).await,
        Action::Render => vec![render(&command)?],
    };
    Ok(StatusReport { lines, as_wanted: true })
}

/// Places the guard alone, where nothing of ours guards the node yet: as the daemon does when it starts.
pub(crate) async fn place_guard(backend: RedirectBackend, routing_rules: bool) -> anyhow::Result<()> {
    let redirect = RedirectConfig::guard_alone(backend, routing_rules);
    let (metrics, readiness) = (Metrics::new(), Readiness::default());
    match PacketRules::guard(&redirect, false, &metrics, &readiness).await? {
        Some(mut rules) => rules.attach_at_once(&redirect, &metrics, &readiness),
        None => Ok(()),
    }
}

/// What the flags say.
fn wanted(command: &RedirectCommand) -> anyhow::Result<RuleSet> {
    let pod_identity = command.redirect.pod_identity.clone();
    if command.guard {
        return Ok(RuleSet { pod_identity, ..RuleSet::guard_alone() });
    }
    let (ipv4, ipv6) = given_addresses(&command.redirect).ok_or_else(|| {
        Failure::new(
            "the IPv4 address of this node is not known",
            "give --host-ip, or --host-interface with an interface that has an IPv4 address; --guard needs no address",
        )
    })?;
    let ipv6 = ipv6.map(|ip| SocketAddrV6::new(ip, command.port, 0, 0));
    let targets = Targets { ipv4: Some(SocketAddrV4::new(ipv4, command.port)), ipv6, direct: direct_connections(command) };
    Ok(RuleSet { interfaces: command.redirect.interfaces.clone(), targets: Some(targets), pod_identity })
}

fn direct_connections(command: &RedirectCommand) -> DirectConnections {
    bpf_programs::direct_connections(command.redirect.backend, command.refuse_direct)
}

async fn choose(command: &RedirectCommand) -> Result<SelectedBackend, RedirectError> {
    SelectedBackend::choose(command.redirect.backend, &command.redirect.interfaces).await
}

async fn install(command: &RedirectCommand) -> anyhow::Result<Vec<String>> {
    let rules = wanted(command)?;
    // First, because they need no program: a node on which no backend works is closed all the same.
    let (routing, failures) = route(command.redirect.routing_rules).await;
    let mut lines = install_packet_rules(command, &rules).await?;
    lines.extend(routing);
    if !failures.is_empty() {
        return Err(anyhow::Error::new(Failure::of_all(&failures)).context("installed the packet rules alone"));
    }
    Ok(lines)
}

/// Installs the routing rules, or removes those that are there. Returns what was done, and what failed.
async fn route(wanted: bool) -> (Vec<String>, Vec<RoutingError>) {
    let (mut lines, mut failures) = (Vec::new(), Vec::new());
    let results = if wanted { routing::install().await } else { routing::remove().await };
    for (_, result) in results {
        match result {
            Ok(differences) if wanted => lines.extend(differences.iter().map(|difference| format!("routing: repaired: {difference}"))),
            Ok(removed) => lines.extend(removed.iter().map(|removed| format!("removed: {removed}"))),
            Err(error @ RoutingError::Unsupported(_)) => lines.push(format!("routing: {}", error.with_advice())),
            Err(error) => failures.push(error),
        }
    }
    (lines, failures)
}

async fn install_packet_rules(command: &RedirectCommand, rules: &RuleSet) -> anyhow::Result<Vec<String>> {
    let backend = choose(command).await?;
    let mut lines = missing(command);
    let differences = match backend.differences(rules).await {
        Ok(differences) => differences,
        Err(unread) => {
            // What can be closed is closed: one family may be there, and what is there need not be read to be replaced.
            let what = match backend.install(rules).await {
                Ok(()) => "installed the rules, but cannot compare them",
                Err(error) if chain(&error) != chain(&unread) => {
                    return Err(anyhow::Error::new(error).context(format!("{}; and cannot install all rules", chain(&unread))));
                }
                Err(_) => "installed only some of the rules",
            };
            return Err(anyhow::Error::new(unread).context(what));
        }
    };
    if differences.is_empty() {
        lines.push(format!("{}: the rules are already installed", backend.name()));
    } else {
        backend.install(rules).await?;
        lines.extend(differences.iter().map(|difference| format!("{}: repaired: {difference}", backend.name())));
        lines.push(format!("{}: the rules are installed", backend.name()));
    }
    match conntrack::forget_earlier(rules).await {
        Ok(0) => {}
        Ok(connections) => lines.push(format!("closed {connections} earlier connections that did not lead to the daemon")),
        Err(error) => lines.push(format!("cannot close earlier connections; the guard rejects them: {}", error.with_advice())),
    }
    lines.extend(backend.tidy().await.into_iter().map(|removed| format!("removed: {removed}")));
    lines.extend(install_programs(command, rules)?);
    Ok(lines)
}

/// Attaches the kernel's programs, where they are wanted.
fn install_programs(command: &RedirectCommand, rules: &RuleSet) -> anyhow::Result<Vec<String>> {
    let Some(scope) = bpf_programs::scope(command.redirect.backend) else { return Ok(Vec::new()) };
    let environment =
        KeeperEnvironment { interval: command.redirect.interval, turn: None, metrics: Metrics::new(), readiness: Readiness::default() };
    let attached = Keeper::start(command.redirect.bpf.clone(), scope, environment).and_then(|mut keeper| match rules.targets {
        Some(targets) => keeper.redirect(targets.ipv4.map(|ipv4| *ipv4.ip()), targets.ipv6.map(|ipv6| *ipv6.ip()), targets.port()),
        None => Ok(()),
    });
    match attached {
        Ok(()) => Ok(vec![match scope {
            Scope::All => "bpf: the programs are attached".to_owned(),
            Scope::ExitGuard => "bpf: the exit guard is attached".to_owned(),
        }]),
        // It is an additional lock.
        Err(error) if scope == Scope::ExitGuard => Ok(vec![format!("bpf: no exit guard: {}", error.with_advice())]),
        Err(error) => Err(anyhow::Error::new(error).context("installed the rules, but cannot attach the BPF programs")),
    }
}

/// The backends that are asked for.
fn asked(command: &RedirectCommand) -> Vec<SelectedBackend> {
    let name = match command.redirect.backend {
        RedirectBackend::Nftables => "nftables",
        RedirectBackend::Iptables => "iptables",
        RedirectBackend::Auto | RedirectBackend::Bpf | RedirectBackend::None => return SelectedBackend::all().into(),
    };
    SelectedBackend::all().into_iter().filter(|backend| backend.name() == name).collect()
}

/// Returns whether a daemon runs on this node, or may run, whose rules must not be removed. With a directory for proofs, a name that another
/// process took does not count.
fn runs(command: &RedirectCommand) -> io::Result<bool> {
    let proofs = command.redirect.proofs.as_deref().map(Proofs::existing).transpose()?.flatten();
    proofs.as_ref().map_or_else(ownership::any, ownership::any_proved)
}

/// What kube2iam and kiam left behind, and nothing of ours: that is how one comes from them, with the daemon at work.
async fn remove_of_peers() -> anyhow::Result<Vec<String>> {
    let removed = legacy_rules::remove(LOCK_WAIT).await?;
    let mut lines: Vec<_> = removed.into_iter().map(|what| format!("removed: {what}")).collect();
    if lines.is_empty() {
        lines.push("no rules of kube2iam or kiam to remove".to_owned());
    }
    Ok(lines)
}

async fn remove(command: &RedirectCommand) -> anyhow::Result<Vec<String>> {
    let daemon = runs(command);
    if !command.force {
        match &daemon {
            Ok(false) => {}
            Ok(true) => bail!(Failure::new(
                "a rolegate daemon runs on this node; without its rules, the node is open until the daemon installs them again",
                "stop the daemon first, or give --force; to remove only the rules of kube2iam and kiam, give --peers"
            )),
            Err(error) => bail!(Failure::new(
                format!("cannot find out whether a rolegate daemon runs on this node: {error}"),
                "stop the daemon, and give --force"
            )),
        }
    }
    let (mut lines, mut failures) = (Vec::new(), Vec::new());
    if daemon.as_ref().is_ok_and(|runs| !runs) && ownership::any().unwrap_or(true) {
        lines.push(
            "another process has the name of a rolegate daemon, but does not prove in the directory of --handover-socket that it is one; \
             it does not count"
                .to_owned(),
        );
    }
    let backends = asked(command);
    let (all, mut without_program) = (backends.len(), Vec::new());
    for backend in backends {
        match backend.remove().await {
            Ok(removed) => lines.extend(removed.into_iter().map(|what| format!("removed: {what}"))),
            // What was never installed has left nothing, mostly.
            Err(error @ RedirectError::Program { .. }) => {
                lines.push(format!("{}: {}", backend.name(), chain(&error)));
                without_program.push(error);
            }
            Err(error) => failures.push(error),
        }
    }
    let pins = &command.redirect.bpf.pins;
    let (of_programs, unseen) = match (command.redirect.backend, check_file_system(pins)) {
        // In a container without the node's file system, pins are not seen, and the programs stay.
        (RedirectBackend::Bpf, Err(error)) => (Err(error), None),
        (RedirectBackend::Bpf | RedirectBackend::Auto, result) => (remove_pins(pins), result.err()),
        _ => (Ok(Vec::new()), None),
    };
    let of_programs = of_programs.map(|removed| lines.extend(removed.into_iter().map(|what| format!("removed: {what}"))));
    if without_program.len() == all {
        failures.append(&mut without_program);
    }
    let (removed, unremoved) = route(false).await;
    lines.extend(removed);
    lines.extend(addresses::place(&[])?.removed.into_iter().map(|ip| format!("removed: {ip} from the loopback interface")));
    let unremoved = (!unremoved.is_empty()).then(|| Failure::of_all(&unremoved));
    match (failures.is_empty(), unremoved) {
        (true, None) => {}
        (true, Some(unremoved)) => bail!(unremoved),
        (false, None) => bail!(Failure::of_all(&failures)),
        (false, Some(unremoved)) => return Err(anyhow::Error::new(Failure::of_all(&failures)).context(unremoved)),
    }
    of_programs?;
    if daemon.unwrap_or(true) {
        lines.push("a rolegate daemon runs on this node and will install its rules again".to_owned());
    }
    if lines.is_empty() {
        lines.push("no rules of rolegate to remove".to_owned());
    }
    lines.extend(unseen.map(|error| format!("bpf: programs, if there are any, stay: {}", error.with_advice())));
    Ok(lines)
}

async fn status(command: &RedirectCommand) -> anyhow::Result<StatusReport> {
    let (wanted, seen) = observe(command).await?;
    Ok(told(command, &wanted, &seen).await)
}

/// Returns the rules that the flags want, and the state of the node. It changes nothing.
pub(super) async fn observe(command: &RedirectCommand) -> anyhow::Result<(RuleSet, NodeObservation)> {
    let backend = choose(command).await?;
    let mut observed = backend.observed().await?;
    let other = SelectedBackend::all().into_iter().find(|other| other.name() != backend.name());
    let mut elsewhere = match &other {
        Some(other) => Some((other.name(), other.observed().await.map_err(|error| chain(&error)))),
        None => None,
    };
    // `auto` reports the rules that are there, of whichever backend.
    let mut looked_at = &backend;
    if let (RedirectBackend::Auto, Some(other), Some((_, Ok(there)))) = (command.redirect.backend, &other, &elsewhere)
        && observed == ObservedRules::default()
        && *there != ObservedRules::default()
    {
        let there = std::mem::replace(&mut observed, there.clone());
        elsewhere = Some((backend.name(), Ok(there)));
        looked_at = other;
    }
    let wanted = wanted_as_it_is(command, &observed);
    let differences = looked_at.differences(&wanted).await?;
    let legacy_rules = legacy_rules::find()
        .await
        .map(|all| all.into_iter().map(|left| format!("{}: -A PREROUTING {}", left.program, left.rule)).collect());
    let seen = NodeObservation {
        observed,
        backend: looked_at.name(),
        differences,
        elsewhere,
        legacy_rules: legacy_rules.map_err(|error| chain(&error)),
        foreign: foreign::find(&wanted, looked_at.precedence().await?).await,
        routing: observe_routing(command.redirect.routing_rules).await,
        addresses: redirect::interface_addresses(),
        // The answer decides nothing, and the daemon may have another directory.
        daemon: ownership::any().ok(),
    };
    Ok((wanted, seen))
}

async fn observe_routing(wanted: bool) -> RoutingObservation {
    let mut seen = RoutingObservation { wanted, ..RoutingObservation::default() };
    for (family, result) in routing::observe().await {
        match result {
            Ok(rules) => {
                seen.has_ours |= rules.has_ours();
                seen.closed.extend(rules.is_closed().then_some(family));
                seen.ahead.extend(rules.ahead());
                seen.differences.extend(rules.differences());
            }
            Err(error) => seen.unknown.push(error.with_advice()),
        }
    }
    seen
}

/// Returns the report of the state of the node.
pub(super) async fn told(command: &RedirectCommand, wanted: &RuleSet, seen: &NodeObservation) -> StatusReport {
    let mut told = tell(wanted, seen);
    // The guard alone is closed, and serves nobody.
    told.as_wanted &= command.guard || !seen.observed.targets.is_empty();
    let nat = if seen.backend == "nftables" { nftables::OUR_NAT } else { nftables::DESTINATION_NAT };
    told.lines.extend(nftables::ahead_of(nat).await);
    told.lines.extend(missing(command));
    if let Some(scope) = bpf_programs::scope(command.redirect.backend) {
        let is_wanted = scope == Scope::All;
        match pinned(&command.redirect.bpf.pins) {
            Ok(programs) if programs.is_empty() => {
                told.as_wanted &= !is_wanted;
                told.lines.extend(is_wanted.then(|| "the BPF programs are not attached".to_owned()));
            }
            Ok(programs) => {
                let programs: Vec<_> = programs.into_iter().collect();
                told.lines.push(format!("BPF programs are attached: {}", programs.join(", ")));
            }
            Err(error) => {
                told.as_wanted &= !is_wanted;
                told.lines.push(format!("cannot look for BPF programs: {}", error.with_advice()));
            }
        }
    }
    told
}

/// What the flags say; where they leave it open which address of the node it is, that which is there.
fn wanted_as_it_is(command: &RedirectCommand, observed: &ObservedRules) -> RuleSet {
    if let Ok(rules) = wanted(command) {
        return rules;
    }
    let targets = observed.as_targets(direct_connections(command)).map(|mut targets| {
        targets.ipv4.iter_mut().for_each(|ipv4| ipv4.set_port(command.port));
        targets.ipv6.iter_mut().for_each(|ipv6| ipv6.set_port(command.port));
        targets
    });
    let interfaces = if targets.is_some() { command.redirect.interfaces.clone() } else { Vec::new() };
    RuleSet { interfaces, targets, pod_identity: command.redirect.pod_identity.clone() }
}

fn render(command: &RedirectCommand) -> anyhow::Result<String> {
    let rules = wanted(command)?;
    let [backend, ..] = &asked(command)[..] else { bail!("no such backend") };
    let routing = if command.redirect.routing_rules { routing_rules::render_as_comments() } else { String::new() };
    let rendered = (backend.render(&rules) + &routing).trim_end().to_owned();
    Ok(match bpf_programs::scope(command.redirect.backend) {
        Some(Scope::All) => {
            format!("# rolegate redirect install --redirect=bpf also attaches BPF programs, which have no text\n{rendered}")
        }
        _ => rendered,
    })
}

/// Patterns of interfaces that none has.
fn missing(command: &RedirectCommand) -> Vec<String> {
    let missing = redirect::without_interface(&command.redirect.interfaces).into_iter();
    missing
        .map(|one| format!("no interface of this node matches --host-interface={}{} now", if one.negated { "!" } else { "" }, one.name))
        .collect()
}
