//! The self-test: proof that a pod's packets reach this daemon, and that the guard rejects the others.
//!
//! A [`helper`] process runs in a network namespace like a pod's, connected to the node by a veth pair like a pod's
//! ([`test_network`]). From there it connects to the metadata address. The daemon must accept that connection, which it recognises by
//! its source address. It closes the connection at once. No request is ever sent on it, so if the rules are missing, the real
//! service sees an empty connection. A connection to another port of the metadata address must fail, and the failure must be the
//! guard's: a datagram to that port must be answered by an ICMP error from this node. Silence proves nothing.
//!
//! If BPF programs redirect connections, [`programs`] tests these instead, from a process in the pods' control group ([`group`]).

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::broadcast;
use tracing::{debug, error, info, warn};

use self::blocking::blocking;
use self::datagram::IcmpError;
use self::group::HelperGroup;
use self::helper::{Helper, Order, Spoken};
use self::interfaces::InterfaceScan;
use self::netlink::Netlink;
use self::outcome::{SelfTestFailure, SelfTestState};
use self::placement::{NoPlacement, Placement};
use self::reply::HelperReply;
use self::test_network::{FIRST_IPV4, FIRST_IPV6, NUMBERS, TestNetwork, make, source};
use crate::advice::{Advise as _, chain};
use crate::config::{InterfaceMatch, RedirectBackend, RedirectConfig, SelfTestConfig, SelfTestMode};
use crate::log_once::Changes;
use crate::metadata_service::METADATA_PORT;
use crate::metrics::Metrics;
use crate::pods::Pods;
use crate::readiness::{Readiness, ReadinessStep, SELF_TEST_PASSED};
use crate::redirect::bpf::ExitGuardCheck;
use crate::redirect::{self, rules::Family};

mod blocking;
pub(crate) mod bypass;
mod datagram;
mod group;
pub(crate) mod helper;
mod interfaces;
pub(crate) mod netlink;
pub(crate) mod once;
mod outcome;
pub(crate) mod placement;
mod programs;
mod reply;
mod test_network;

/// The gateway of the namespace. Its neighbour entry is permanent, so no interface needs this address.
const GATEWAY_IPV4: Ipv4Addr = Ipv4Addr::new(192, 0, 0, 31);
/// The IPv6 gateway of the namespace, a link-local address.
const GATEWAY_IPV6: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1);
/// A port on which the metadata service does not listen.
const OTHER_PORT: u16 = 81;
/// The time limit of a connection.
const TIMEOUT: Duration = Duration::from_secs(2);
/// The time limit of the guard's ICMP error. For up to two seconds after the interface is created, the node usually has no IPv6
/// address to send the error from (RFC 4862, 5.4.2).
const GUARD_TIMEOUT: Duration = Duration::from_secs(3);
/// Says whether the node forwards IPv6 packets. The file does not exist without IPv6.
const FORWARDS_IPV6: &str = "/proc/sys/net/ipv6/conf/all/forwarding";
/// The pause after a test that did not pass.
const AGAIN: Duration = Duration::from_secs(2);
/// The number of attempts. Two daemons that share the port also share its connections, so another daemon may accept some of ours.
const TRIES: usize = 24;

/// What the test expects of the rules, in addition to the guard, which is always expected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ExpectedRules {
    /// Whether requests to the IPv4 address are redirected. If not, they must be rejected.
    pub ipv4: bool,
    /// Whether requests to the IPv6 address are redirected. If not, they must be rejected.
    pub ipv6: bool,
}

/// How a connection from a test address reached the app port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ProbeArrival {
    /// BPF programs redirected and recorded it.
    Recorded,
    /// Packet rules redirected it.
    ByRules,
    /// Nothing shows that it was opened to the metadata address.
    Direct,
}

/// What redirects pods' connections, which decides what is tested.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) enum Redirection {
    /// Packet rules.
    #[default]
    PacketRules,
    /// BPF programs on the control group of all pods.
    Programs {
        /// The control group of all pods, if it is not where kubelets create it.
        cgroup: Option<PathBuf>,
    },
}

impl Redirection {
    /// Returns what redirects connections with these settings.
    pub(crate) fn of(redirect: &RedirectConfig) -> Self {
        match redirect.backend {
            RedirectBackend::Bpf => Self::Programs { cgroup: redirect.bpf.cgroup.clone() },
            RedirectBackend::None | RedirectBackend::Auto | RedirectBackend::Nftables | RedirectBackend::Iptables => Self::PacketRules,
        }
    }
}

/// Connects the accept loops, the packet rules and the test; cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Probes(Arc<SharedProbes>);

#[derive(Debug)]
struct SharedProbes {
    seen: broadcast::Sender<(SocketAddr, ProbeArrival)>,
    wanted: Mutex<ExpectedRules>,
}

impl Default for Probes {
    fn default() -> Self {
        let wanted = Mutex::new(ExpectedRules { ipv4: true, ipv6: false });
        Self(Arc::new(SharedProbes { seen: broadcast::Sender::new(TRIES * 2), wanted }))
    }
}

impl Probes {
    /// Returns whether an address belongs to a self-test of this daemon or of another one.
    pub(crate) fn is_source(ip: IpAddr) -> bool {
        match ip {
            IpAddr::V4(ip) => (FIRST_IPV4..FIRST_IPV4 + u32::from(NUMBERS)).contains(&ip.to_bits()),
            IpAddr::V6(ip) => (FIRST_IPV6..FIRST_IPV6 + u128::from(NUMBERS)).contains(&ip.to_bits()),
        }
    }

    /// Reports a connection from a test address.
    pub(crate) fn arrived(&self, from: SocketAddr, arrival: ProbeArrival) {
        // If no test of ours is waiting, the connection was another daemon's.
        let _ = self.0.seen.send((from, arrival));
    }

    /// Sets the rules that are now in place.
    pub(crate) fn set_wanted(&self, wanted: ExpectedRules) {
        *self.0.wanted.lock().unwrap_or_else(PoisonError::into_inner) = wanted;
    }

    fn wanted(&self) -> ExpectedRules {
        *self.0.wanted.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether the test can run.
#[derive(Debug, Default)]
pub(crate) enum Ability {
    /// The test is switched off.
    #[default]
    Off,
    /// The test cannot run, for this reason.
    Unable(String),
    /// The test can run, with this helper process.
    Able(Helper),
}

/// Decides whether the test can run, and starts its helper. Must be called while the process has one thread and all its
/// capabilities.
///
/// # Errors
/// Returns what is missing if the test is required (`--self-test=on`).
pub(crate) fn ability(config: &SelfTestConfig, redirect: &RedirectConfig) -> Result<Ability, String> {
    let never = || match Redirection::of(redirect) {
        Redirection::PacketRules => placement::never(&redirect.interfaces),
        Redirection::Programs { .. } => None,
    };
    let reason = match config.mode {
        SelfTestMode::Off => return Ok(Ability::Off),
        // Rules of others are tested only with --self-test=on.
        SelfTestMode::Auto if redirect.backend == RedirectBackend::None => return Ok(Ability::Off),
        SelfTestMode::Auto | SelfTestMode::On => match never() {
            Some(never) => never.to_string(),
            None => match Helper::start() {
                Ok(helper) => return Ok(Ability::Able(helper)),
                Err(error) => error.with_advice(),
            },
        },
    };
    match config.mode {
        SelfTestMode::On => Err(reason),
        SelfTestMode::Auto | SelfTestMode::Off => Ok(Ability::Unable(reason)),
    }
}

/// The test, and the scan of the pods' interfaces, which needs no helper.
#[derive(Debug)]
pub(crate) struct SelfTest {
    /// Whether the test can run.
    pub ability: Ability,
    /// The flags of the self-test.
    pub config: SelfTestConfig,
    /// The interfaces that the rules match.
    pub interfaces: Vec<InterfaceMatch>,
    /// Whether this daemon installs the rules, so that `interfaces` are theirs.
    pub has_rules: bool,
    /// What redirects pods' connections.
    pub redirection: Redirection,
    /// The check of the exit guard, if it is attached.
    pub exit_guard: Option<ExitGuardCheck>,
    /// The pods whose interfaces are scanned and imitated.
    pub pods: Pods,
    /// Receives the connections that arrive.
    pub probes: Probes,
    /// Receives the outcome.
    pub metrics: Metrics,
    /// Becomes not ready while the test fails.
    pub readiness: Readiness,
}

impl SelfTest {
    /// Runs until the process ends, once the start-up steps `after` are done. If the test can run, `step` is done when the test
    /// passes for the first time. Returns only if the helper fails.
    pub(crate) async fn run(self, step: Option<ReadinessStep>, after: &[&str]) -> HelperFailure {
        let Self { ability, config, interfaces, has_rules, redirection, exit_guard, pods, probes, metrics, readiness } = self;
        sweep_groups(&redirection).await;
        let mut running = match ability {
            Ability::Off => Err(SelfTestState::Off),
            Ability::Unable(reason) => {
                warn!(
                    event = "self-test-unavailable", %reason,
                    "cannot run the self-test; nothing else verifies that pods' requests reach this daemon; fix the reason, or set \
                     --self-test=off to accept this"
                );
                Err(SelfTestState::Unavailable)
            }
            Ability::Able(helper) => match helper.speak() {
                Ok(helper) => Ok(Running {
                    helper,
                    group: HelperGroup::default(),
                    is_in_group: false,
                    network: None,
                    redirection,
                    exit_guard,
                    failing: Changes::default(),
                    metrics: metrics.clone(),
                    readiness,
                    step,
                    is_served_by_another: false,
                }),
                Err(error) => {
                    error!(
                        event = "self-test-helper-failed", %error,
                        "cannot communicate with the self-test's helper process; exiting, so that the daemon is restarted"
                    );
                    return HelperFailure::Pipes(error);
                }
            },
        };
        let state = running.as_ref().err().copied();
        tell(&metrics, state.unwrap_or(SelfTestState::Unavailable));
        if let Ok(running) = &running {
            running.readiness.done(after).await;
        }
        let mut look = InterfaceScan::default();
        loop {
            let ips = placement::addresses(&pods);
            if has_rules && !interfaces.is_empty() {
                look = look.at(interfaces.clone(), ips.clone(), &metrics).await;
            }
            let pause = match &mut running {
                Err(_) => config.interval,
                Ok(running) => match running.round(&interfaces, ips, &probes, config.mode).await {
                    Ok(true) => config.interval,
                    Ok(false) => config.interval.min(AGAIN),
                    // The process ends with this task; Kubernetes restarts it.
                    Err(failure) => return failure,
                },
            };
            tokio::time::sleep(pause).await;
        }
    }
}

/// Why a self-test that can run does not go on: it has no helper process any more.
#[derive(Debug, thiserror::Error)]
pub(crate) enum HelperFailure {
    /// The pipes to it cannot be used.
    #[error("cannot communicate with the self-test's helper process")]
    Pipes(#[source] io::Error),
    /// It ended, or hangs.
    #[error("the self-test's helper process ended or does not answer")]
    Ended,
}

/// A test that can run.
#[derive(Debug)]
struct Running {
    // Dropped before the helper; the end of the helper also removes the interface.
    network: Option<TestNetwork>,
    helper: Spoken,
    // After `helper`: fields are dropped in order, and the control group can be removed only when the helper has ended.
    group: HelperGroup,
    /// Whether the helper is in a control group where the programs treat it like a pod.
    is_in_group: bool,
    redirection: Redirection,
    exit_guard: Option<ExitGuardCheck>,
    failing: Changes<&'static str>,
    metrics: Metrics,
    readiness: Readiness,
    step: Option<ReadinessStep>,
    /// Whether another process serves this node, so that its connections are not seen here.
    is_served_by_another: bool,
}

impl Running {
    /// Runs one test and reports it. Returns false if the test should be repeated soon.
    async fn round(
        &mut self,
        interfaces: &[InterfaceMatch],
        pods: Vec<IpAddr>,
        probes: &Probes,
        mode: SelfTestMode,
    ) -> Result<bool, HelperFailure> {
        let failure = match self.place(interfaces.to_vec(), pods).await {
            Ok(Ok(place)) => self.test_afresh(place, probes).await.err(),
            Ok(Err(reason)) => {
                self.unavailable(&reason, mode);
                return Ok(true);
            }
            Err(error) => Some(SelfTestFailure::NotMade(error)),
        };
        let Some(failure) = failure else {
            if self.failing.forget().is_some() {
                info!(event = "self-test-passed", "the self-test passes again; pods' requests reach this daemon");
            } else if self.step.is_some() {
                info!(event = "self-test-passed", "the self-test passed; pods' requests reach this daemon");
            }
            if let Some(step) = self.step.take() {
                step.done();
            }
            tell(&self.metrics, SelfTestState::Passed);
            return Ok(true);
        };
        tell(&self.metrics, SelfTestState::Failed);
        self.metrics.self_test_failed(failure.name());
        if matches!(failure, SelfTestFailure::Ended) {
            error!(
                event = "self-test-helper-failed",
                "the self-test's helper process ended or does not answer; exiting, so that the daemon is restarted"
            );
        } else if !self.failing.is_new(failure.name()) {
            debug!(reason = failure.name(), "the self-test still fails: {}", chain(&failure));
        } else {
            error!(
                event = "self-test-failed",
                reason = failure.name(),
                error = chain(&failure),
                advice = failure.advice().as_deref(),
                "the self-test failed; not ready, retrying"
            );
        }
        if self.step.is_none() {
            self.step = Some(self.readiness.step(SELF_TEST_PASSED));
        }
        // The network itself may be at fault, so the next test creates a new one. Another program may have moved the helper.
        self.unmake().await;
        self.is_in_group = false;
        if matches!(failure, SelfTestFailure::Ended) { Err(HelperFailure::Ended) } else { Ok(false) }
    }

    /// Chooses the placement. If BPF programs redirect, moves the helper to a control group where they treat it like a pod.
    async fn place(&mut self, interfaces: Vec<InterfaceMatch>, pods: Vec<IpAddr>) -> io::Result<Result<Placement, NoPlacement>> {
        let Redirection::Programs { cgroup } = &self.redirection else {
            let has_exit_guard = self.exit_guard.is_some();
            return blocking(move || placement::place(&interfaces, &pods, has_exit_guard, &mut Netlink::open()?)).await;
        };
        if !self.is_in_group {
            let (cgroup, process) = (cgroup.clone(), self.helper.pid());
            match blocking(move || Ok(group::enter(cgroup.as_deref(), process))).await? {
                Ok(made) => self.group.keep(made),
                Err(failure) => return Ok(Err(NoPlacement::Never(failure.with_advice()))),
            }
            self.is_in_group = true;
        }
        Ok(Ok(placement::of_programs()))
    }

    /// Reports that no interface like the pods' can be created. Before the first pod there is none to imitate, and nothing to wait for.
    fn unavailable(&mut self, reason: &NoPlacement, mode: SelfTestMode) {
        tell(&self.metrics, SelfTestState::Unavailable);
        let forever = matches!(reason, NoPlacement::Never(_));
        let name = if forever { "never" } else { "not-yet" };
        if self.failing.is_new(name) {
            warn!(
                event = "self-test-unavailable", %reason,
                "cannot run the self-test; nothing else verifies that pods' requests reach this daemon; fix the reason, or set \
                 --self-test=off to accept this"
            );
        }
        if !(forever && mode == SelfTestMode::On)
            && let Some(step) = self.step.take()
        {
            step.done();
        }
    }

    /// Tests, and after a failure tests again with a new interface: the old one may have been removed, or a bridge may have a new
    /// address.
    async fn test_afresh(&mut self, place: Placement, probes: &Probes) -> Result<(), SelfTestFailure> {
        let is_old = self.network.is_some();
        match self.test(place.clone(), probes).await {
            Err(SelfTestFailure::Ended) => Err(SelfTestFailure::Ended),
            Err(failure) if is_old => {
                debug!("the self-test is repeated with a new interface: {}", chain(&failure));
                self.unmake().await;
                self.test(place, probes).await
            }
            ended => ended,
        }
    }

    async fn test(&mut self, place: Placement, probes: &Probes) -> Result<(), SelfTestFailure> {
        let (number, has_ipv6) = match &self.network {
            Some(network) if network.place == place => (network.number, network.has_ipv6),
            _ => self.make(place).await?,
        };
        let expected = probes.wanted();
        match self.redirection {
            Redirection::PacketRules => self.test_rules(number, has_ipv6, expected, probes).await?,
            Redirection::Programs { .. } => self.test_programs(number, has_ipv6, expected, probes).await?,
        }
        self.check_exit_guard().await
    }

    /// Tests packet rules.
    async fn test_rules(&mut self, number: u8, has_ipv6: bool, expected: ExpectedRules, probes: &Probes) -> Result<(), SelfTestFailure> {
        let ExpectedRules { ipv4, ipv6 } = expected;
        for family in Family::ALL {
            let is_redirected = if family == Family::V4 { ipv4 } else { ipv6 };
            if is_redirected {
                self.arrives(source(family, number), SocketAddr::new(family.metadata(), METADATA_PORT), probes).await?;
            }
            // A node that does not forward IPv6 needs no guard, and with IPv6 off there would be no ICMP error either.
            if family == Family::V4 && !ipv4 {
                // Without an IPv4 address, the node sends no ICMP error, which would show the guard.
                self.is_closed(SocketAddr::new(family.metadata(), METADATA_PORT)).await?;
            } else if family == Family::V4 || (has_ipv6 && forwards_ipv6()) {
                self.is_guarded(family, is_redirected).await?;
            }
        }
        Ok(())
    }

    async fn make(&mut self, place: Placement) -> Result<(u8, bool), SelfTestFailure> {
        self.unmake().await;
        let pid = self.helper.pid();
        let (network, gateway_mac) = blocking(move || make(place, pid)).await.map_err(SelfTestFailure::NotMade)?;
        let (number, has_ipv6) = (network.number, network.has_ipv6);
        self.network = Some(network);
        let order = Order::SetUp {
            addresses: Family::ALL.map(|family| source(family, number)).to_vec(),
            gateways: vec![GATEWAY_IPV4.into(), GATEWAY_IPV6.into()],
            gateway_mac,
        };
        self.order(&order).await.map(|_| (number, has_ipv6))
    }

    async fn unmake(&mut self) {
        if let Some(network) = self.network.take() {
            // It logs what it cannot remove.
            let _ = blocking(move || {
                drop(network);
                Ok(())
            })
            .await;
        }
    }

    /// Checks that the daemon accepts the connection.
    async fn arrives(&mut self, own: IpAddr, to: SocketAddr, probes: &Probes) -> Result<(), SelfTestFailure> {
        for _ in 0..TRIES {
            let mut seen = probes.0.seen.subscribe();
            let (port, closed) = match self.order(&Order::Connect { to, timeout: TIMEOUT }).await? {
                HelperReply::Closed { port } => (port, true),
                HelperReply::Open { port } => (port, false),
                HelperReply::Refused => return Err(SelfTestFailure::Refused(to)),
                HelperReply::TimedOut => return Err(SelfTestFailure::TimedOut(to)),
                HelperReply::Denied => return Err(SelfTestFailure::Denied(to)),
                HelperReply::NoFamily if is_mapped(to) => return Ok(()),
                HelperReply::Unreachable | HelperReply::Told { .. } | HelperReply::NoFamily | HelperReply::Sent | HelperReply::Done => {
                    return Err(SelfTestFailure::Unreachable(to));
                }
            };
            // The accept loop reports it before it closes it.
            while let Ok((from, arrival)) = seen.try_recv() {
                if from == SocketAddr::new(own, port) {
                    match (&self.redirection, arrival) {
                        (Redirection::PacketRules, ProbeArrival::Direct) => {}
                        (Redirection::PacketRules, _) | (Redirection::Programs { .. }, ProbeArrival::Recorded) => return Ok(()),
                        (Redirection::Programs { .. }, ProbeArrival::ByRules) => return Err(SelfTestFailure::ByRules(to)),
                        (Redirection::Programs { .. }, ProbeArrival::Direct) => return Err(SelfTestFailure::Unrecorded(to)),
                    }
                }
            }
            if !closed {
                return Err(SelfTestFailure::Missed(to));
            }
            if self.is_served_by_another {
                return Ok(());
            }
            // It was closed at once, as another daemon on this port does with the test of others.
        }
        Err(SelfTestFailure::Missed(to))
    }

    /// Checks that nothing accepts a connection to this address.
    async fn is_closed(&mut self, to: SocketAddr) -> Result<(), SelfTestFailure> {
        match self.order(&Order::Connect { to, timeout: TIMEOUT }).await? {
            HelperReply::Closed { .. } | HelperReply::Open { .. } => Err(SelfTestFailure::Open(to)),
            _ => Ok(()),
        }
    }

    /// Checks that the guard rejects what is not redirected. A refused connection alone is no proof: the service itself may have
    /// refused it. The guard never leaves a connection to time out.
    async fn is_guarded(&mut self, family: Family, is_redirected: bool) -> Result<(), SelfTestFailure> {
        let ports = [METADATA_PORT, OTHER_PORT].into_iter().skip(usize::from(is_redirected));
        for to in ports.map(|port| SocketAddr::new(family.metadata(), port)) {
            match self.order(&Order::Connect { to, timeout: TIMEOUT }).await? {
                HelperReply::Closed { .. } | HelperReply::Open { .. } => return Err(SelfTestFailure::Open(to)),
                HelperReply::TimedOut | HelperReply::Done | HelperReply::Sent | HelperReply::NoFamily => {
                    return Err(SelfTestFailure::Unproven(to));
                }
                HelperReply::Refused | HelperReply::Unreachable | HelperReply::Told { .. } | HelperReply::Denied => {}
            }
        }
        let to = SocketAddr::new(family.metadata(), OTHER_PORT);
        match self.order(&Order::Datagram { to, timeout: GUARD_TIMEOUT }).await? {
            HelperReply::Told { by, kind, code } => {
                let is_of_node = by != to.ip() && redirect::interface_addresses().contains(&by);
                match datagram::said(family == Family::V4, kind, code) {
                    IcmpError::Rejected | IcmpError::NoWay if is_of_node => Ok(()),
                    _ => Err(SelfTestFailure::Unguarded { to, by }),
                }
            }
            HelperReply::Open { .. } | HelperReply::Closed { .. } => Err(SelfTestFailure::Unguarded { to, by: to.ip() }),
            HelperReply::TimedOut
            | HelperReply::Refused
            | HelperReply::Unreachable
            | HelperReply::Denied
            | HelperReply::NoFamily
            | HelperReply::Sent
            | HelperReply::Done => Err(SelfTestFailure::Unproven(to)),
        }
    }

    async fn order(&mut self, order: &Order) -> Result<HelperReply, SelfTestFailure> {
        self.helper.order(order).await.map_err(|error| match error.kind() {
            io::ErrorKind::BrokenPipe => SelfTestFailure::Ended,
            _ => SelfTestFailure::NotMade(error),
        })
    }
}

/// Removes the control group of an earlier daemon's test.
async fn sweep_groups(redirection: &Redirection) {
    let given = match redirection {
        Redirection::Programs { cgroup } => cgroup.clone(),
        Redirection::PacketRules => None,
    };
    // If that fails, an empty control group remains.
    let _ = blocking(move || {
        group::sweep(given.as_deref());
        Ok(())
    })
    .await;
}

/// Returns whether this is an IPv4-mapped IPv6 address.
fn is_mapped(address: SocketAddr) -> bool {
    matches!(address.ip(), IpAddr::V6(ip) if ip.to_ipv4_mapped().is_some())
}

fn forwards_ipv6() -> bool {
    std::fs::read_to_string(FORWARDS_IPV6).is_ok_and(|text| text.trim() != "0")
}

fn tell(metrics: &Metrics, state: SelfTestState) {
    metrics.self_test(state.name(), SelfTestState::ALL.map(SelfTestState::name));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn test_addresses_are_distinguished_from_others() {
        for number in [0, 1, NUMBERS - 1] {
            assert!(Family::ALL.iter().all(|family| Probes::is_source(source(*family, number))), "{number}");
        }
        for other in ["192.0.0.31", "192.0.0.128", "192.0.0.170", "10.0.0.1", "fd5e:91c7:3ab4:7e57::60", "fd5e:91c7:3ab4:7e56::1", "::1"] {
            assert!(other.parse().is_ok_and(|ip| !Probes::is_source(ip)), "{other}");
        }
        assert_eq!(source(Family::V4, 0).to_string(), "192.0.0.32");
        assert_eq!(source(Family::V6, 1).to_string(), "fd5e:91c7:3ab4:7e57::1");
    }
}
