//! The self-test: proof that a packet of a pod arrives at this daemon.
//!
//! A [`helper`] process has a network namespace like a pod's, tied to the node by a veth like a pod's ([`test_network`]). From there
//! it connects to the metadata address, and the daemon must see that connection at its acceptor, by the source address, which
//! nobody else has. The daemon closes it at once; nothing is ever sent on it, so that a rule that lets it through brings
//! the real service a bare connection and no request. A connection to another port of that address must not come to be, and
//! the guard must say so: a datagram there must bring an ICMP error of this node. That nothing comes back proves nothing.

use std::borrow::Cow;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::broadcast;
use tracing::{debug, error, info, warn};

use self::datagram::IcmpError;
use self::helper::{Helper, Order, Spoken};
use self::netlink::Netlink;
use self::placement::{NoPlacement, Outside, Placement};
use self::reply::HelperReply;
use self::test_network::{FIRST_IPV4, FIRST_IPV6, NUMBERS, TestNetwork, make, source};
use crate::advice::{Advise, chain};
use crate::config::{InterfaceMatch, SelfTestConfig, SelfTestMode};
use crate::log_once::{Changes, Conditions};
use crate::metadata_service::METADATA_PORT;
use crate::metrics::Metrics;
use crate::pods::Pods;
use crate::readiness::{Readiness, ReadinessStep};
use crate::redirect::{self, rules::Family};

pub(crate) mod bypass;
mod datagram;
pub(crate) mod helper;
pub(crate) mod netlink;
pub(crate) mod placement;
mod reply;
mod test_network;

/// The step of readiness.
pub(crate) const STEP: &str = "the self-test";
/// What the namespace takes for its gateway; nobody is asked who has it.
const GATEWAY_IPV4: Ipv4Addr = Ipv4Addr::new(192, 0, 0, 31);
/// Of the link alone.
const GATEWAY_IPV6: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1);
/// A port of the metadata address that is none of its own.
const OTHER_PORT: u16 = 81;
/// How long a connection may take.
const TIMEOUT: Duration = Duration::from_secs(2);
/// How long the guard's ICMP error may take. The node has no IPv6 address to send it from, mostly, in the two seconds at the
/// most after the interface is made (RFC 4862, 5.4.2).
const GUARD_TIMEOUT: Duration = Duration::from_secs(3);
/// Whether the node passes IPv6 packets on; there is no such file without IPv6.
const FORWARDS_IPV6: &str = "/proc/sys/net/ipv6/conf/all/forwarding";
/// Pause after a test that did not pass.
const AGAIN: Duration = Duration::from_secs(2);
/// Two daemons that share the port share the connections, too: by chance, another gets so many of ours at the most.
const TRIES: usize = 24;

/// What the rules that are in place have, as the test is to find them, beside the guard, which is always wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ExpectedRules {
    /// Requests to the IPv6 address arrive, too; else they must be rejected.
    pub ipv6: bool,
}

/// Between the acceptor, the rules and the test; cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Probes(Arc<SharedProbes>);

#[derive(Debug)]
struct SharedProbes {
    seen: broadcast::Sender<SocketAddr>,
    wanted: Mutex<ExpectedRules>,
}

impl Default for Probes {
    fn default() -> Self {
        let wanted = Mutex::new(ExpectedRules { ipv6: false });
        Self(Arc::new(SharedProbes { seen: broadcast::Sender::new(TRIES * 2), wanted }))
    }
}

impl Probes {
    /// Whether an address is that of a test, this daemon's or another's.
    pub(crate) fn is_source(ip: IpAddr) -> bool {
        match ip {
            IpAddr::V4(ip) => (FIRST_IPV4..FIRST_IPV4 + u32::from(NUMBERS)).contains(&ip.to_bits()),
            IpAddr::V6(ip) => (FIRST_IPV6..FIRST_IPV6 + u128::from(NUMBERS)).contains(&ip.to_bits()),
        }
    }

    /// A connection from there to the metadata address arrived.
    pub(crate) fn arrived(&self, from: SocketAddr) {
        // Without a test of ours that waits, it was another daemon's.
        let _ = self.0.seen.send(from);
    }

    /// These are the rules that are in place.
    pub(crate) fn set_wanted(&self, wanted: ExpectedRules) {
        *self.0.wanted.lock().unwrap_or_else(PoisonError::into_inner) = wanted;
    }

    fn wanted(&self) -> ExpectedRules {
        *self.0.wanted.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether the test can be done.
#[derive(Debug, Default)]
pub(crate) enum Ability {
    /// It is not wanted.
    #[default]
    Off,
    /// It is not possible, for this reason.
    Unable(String),
    /// By this child.
    Able(Helper),
}

/// What is to be done, and can be; the helper is started. To be called while the process has one thread and its capabilities.
///
/// # Errors
/// What is missing, where the test must be done.
pub(crate) fn ability(config: &SelfTestConfig, interfaces: &[InterfaceMatch], has_rules: bool) -> Result<Ability, String> {
    let reason = match config.mode {
        SelfTestMode::Off => return Ok(Ability::Off),
        // Rules that are not ours are tested where that is asked for.
        SelfTestMode::Auto if !has_rules => return Ok(Ability::Off),
        SelfTestMode::Auto | SelfTestMode::On => match placement::never(interfaces) {
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

/// How the last test ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum SelfTestState {
    /// Everything arrived that should.
    Passed,
    /// Something did not.
    Failed,
    /// It could not be done.
    Unavailable,
    /// It is not wanted.
    Off,
}

impl SelfTestState {
    /// Every one.
    pub(crate) const ALL: [Self; 4] = [Self::Passed, Self::Failed, Self::Unavailable, Self::Off];

    /// As the metric names it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Passed => "passed",
            Self::Failed => "failed",
            Self::Unavailable => "unavailable",
            Self::Off => "off",
        }
    }
}

/// Why a test failed.
#[derive(Debug, thiserror::Error)]
enum SelfTestFailure {
    #[error("a pod's connection to {0} went elsewhere: THE REAL METADATA SERVICE MAY ANSWER PODS")]
    Missed(SocketAddr),
    #[error("a pod's connection to {0} was refused")]
    Refused(SocketAddr),
    #[error("a pod's connection to {0} got no answer")]
    TimedOut(SocketAddr),
    #[error("a pod's connection to {0} found no route")]
    Unreachable(SocketAddr),
    #[error("a pod can connect to {0}, which the guard must reject")]
    Open(SocketAddr),
    #[error("a pod's packet to {to} got past the guard ({by} answered): THE REAL METADATA SERVICE MAY BE OPEN TO PODS")]
    Unguarded { to: SocketAddr, by: IpAddr },
    #[error("a pod's packet to {0} got no answer, but the guard answers: THE REAL METADATA SERVICE MAY BE OPEN TO PODS")]
    Unproven(SocketAddr),
    #[error("cannot connect the test's namespace to the node")]
    NotMade(#[source] io::Error),
    #[error("the helper process ended")]
    Ended,
}

impl Advise for SelfTestFailure {
    fn advice(&self) -> Option<Cow<'static, str>> {
        Some(match self {
            Self::Missed(_) => "check that the redirect rule exists, matches the pods' interfaces (--host-interface), comes before other \
                                rules, and redirects to this daemon"
                .into(),
            Self::Refused(_) => "check that the redirect rule redirects to the address and port of this daemon".into(),
            Self::TimedOut(_) => "find what drops the packets or the answers (network policies, firewalls, rp_filter)".into(),
            Self::Unreachable(_) => "check the node's routes and network policies; the node does not accept packets for the address".into(),
            Self::Open(_) | Self::Unguarded { .. } => {
                "check that the guard's rules exist, and that no rule before them accepts the packet".into()
            }
            Self::Unproven(_) => "check that the guard's rules exist, that no rule before them accepts or drops the packet, and that a \
                                  guard of another program rejects packets and does not drop them"
                .into(),
            Self::NotMade(_) => return None,
            Self::Ended => "restart the daemon to start another helper process".into(),
        })
    }
}

impl SelfTestFailure {
    fn name(&self) -> &'static str {
        match self {
            Self::Missed(_) => "missed",
            Self::Refused(_) => "refused",
            Self::TimedOut(_) => "timeout",
            Self::Unreachable(_) => "unreachable",
            Self::Open(_) => "open",
            Self::Unguarded { .. } => "guard-missing",
            Self::Unproven(_) => "guard-unknown",
            Self::NotMade(_) => "not-made",
            Self::Ended => "helper",
        }
    }
}

/// The test, and the look at the pods' interfaces, which needs no helper.
#[derive(Debug)]
pub(crate) struct SelfTest {
    /// Whether the test can be done.
    pub ability: Ability,
    /// How it was asked for.
    pub config: SelfTestConfig,
    /// Which interfaces the rules match.
    pub interfaces: Vec<InterfaceMatch>,
    /// Whether the rules are ours, so that the interfaces are theirs.
    pub has_rules: bool,
    /// Whose interfaces are looked at and imitated.
    pub pods: Pods,
    /// Where what arrives is told.
    pub probes: Probes,
    /// Where the outcome is told.
    pub metrics: Metrics,
    /// Not ready while a pod's request would not arrive.
    pub readiness: Readiness,
}

impl SelfTest {
    /// Runs for as long as the process, from when these steps of the start are done. With a test that can be done, `step` is
    /// done when it passes first.
    pub(crate) async fn run(self, step: Option<ReadinessStep>, after: &[&str]) {
        let Self { ability, config, interfaces, has_rules, pods, probes, metrics, readiness } = self;
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
                Ok(helper) => Ok(Running { helper, network: None, failing: Changes::default(), metrics: metrics.clone(), readiness, step }),
                Err(error) => {
                    return error!(
                        event = "self-test-helper-failed", %error,
                        "cannot communicate with the self-test's helper process; exiting, so that the daemon is restarted"
                    );
                }
            },
        };
        let state = running.as_ref().err().copied();
        tell(&metrics, state.unwrap_or(SelfTestState::Unavailable));
        if let Ok(running) = &running {
            running.readiness.done(after).await;
        }
        let mut look = InterfaceScan { outside: Outside::default(), logged: Conditions::default() };
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
                    // The process ends with this task, and is started anew.
                    Err(HelperEnded) => return,
                },
            };
            tokio::time::sleep(pause).await;
        }
    }
}

/// There is no helper any more.
struct HelperEnded;

/// A test that can be done.
#[derive(Debug)]
struct Running {
    // Before the helper, whose end takes the interface away by itself.
    network: Option<TestNetwork>,
    helper: Spoken,
    failing: Changes<&'static str>,
    metrics: Metrics,
    readiness: Readiness,
    step: Option<ReadinessStep>,
}

impl Running {
    /// One test, and what is told of it; whether it passed, or need not be repeated soon.
    async fn round(
        &mut self,
        interfaces: &[InterfaceMatch],
        pods: Vec<IpAddr>,
        probes: &Probes,
        mode: SelfTestMode,
    ) -> Result<bool, HelperEnded> {
        let (of, asked) =
            (interfaces.to_vec(), move |netlink: &mut Netlink, of: Vec<InterfaceMatch>| placement::place(&of, &pods, netlink));
        let failure = match blocking(move || asked(&mut Netlink::open()?, of)).await {
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
        if !self.failing.is_new(failure.name()) {
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
            self.step = Some(self.readiness.step(STEP));
        }
        // Whatever was wrong with it, the next one is made afresh.
        self.unmake().await;
        if matches!(failure, SelfTestFailure::Ended) { Err(HelperEnded) } else { Ok(false) }
    }

    /// No interface like the pods' can be made. Where none is there yet, there are no pods either, and nothing to wait for.
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

    /// An interface that is old may be what is wrong: somebody took it away, or a bridge has another address.
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
        let ExpectedRules { ipv6 } = probes.wanted();
        for family in Family::ALL {
            let is_redirected = family == Family::V4 || ipv6;
            if is_redirected {
                self.arrives(source(family, number), SocketAddr::new(family.metadata(), METADATA_PORT), probes).await?;
            }
            // What no packet passes needs no guard; with IPv6 off, it would get no answer either.
            if family == Family::V4 || (has_ipv6 && forwards_ipv6()) {
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
            // It logs by itself what could not be taken away.
            let _ = blocking(move || {
                drop(network);
                Ok(())
            })
            .await;
        }
    }

    /// The daemon sees the connection.
    async fn arrives(&mut self, own: IpAddr, to: SocketAddr, probes: &Probes) -> Result<(), SelfTestFailure> {
        for _ in 0..TRIES {
            let mut seen = probes.0.seen.subscribe();
            let (port, closed) = match self.order(&Order::Connect { to, timeout: TIMEOUT }).await? {
                HelperReply::Closed { port } => (port, true),
                HelperReply::Open { port } => (port, false),
                HelperReply::Refused => return Err(SelfTestFailure::Refused(to)),
                HelperReply::TimedOut => return Err(SelfTestFailure::TimedOut(to)),
                HelperReply::Unreachable | HelperReply::Told { .. } | HelperReply::Done => return Err(SelfTestFailure::Unreachable(to)),
            };
            // It is told before it is closed.
            while let Ok(from) = seen.try_recv() {
                if from == SocketAddr::new(own, port) {
                    return Ok(());
                }
            }
            if !closed {
                return Err(SelfTestFailure::Missed(to));
            }
            // Closed at once, as another daemon on this port does with a test that is not its own.
        }
        Err(SelfTestFailure::Missed(to))
    }

    /// The guard rejects what is not redirected. A connection that is refused may have been refused by the service itself;
    /// one that the guard has to do with never waits in vain.
    async fn is_guarded(&mut self, family: Family, is_redirected: bool) -> Result<(), SelfTestFailure> {
        let ports = [METADATA_PORT, OTHER_PORT].into_iter().skip(usize::from(is_redirected));
        for to in ports.map(|port| SocketAddr::new(family.metadata(), port)) {
            match self.order(&Order::Connect { to, timeout: TIMEOUT }).await? {
                HelperReply::Closed { .. } | HelperReply::Open { .. } => return Err(SelfTestFailure::Open(to)),
                HelperReply::TimedOut | HelperReply::Done => return Err(SelfTestFailure::Unproven(to)),
                HelperReply::Refused | HelperReply::Unreachable | HelperReply::Told { .. } => {}
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
            HelperReply::TimedOut | HelperReply::Refused | HelperReply::Unreachable | HelperReply::Done => {
                Err(SelfTestFailure::Unproven(to))
            }
        }
    }

    async fn order(&mut self, order: &Order) -> Result<HelperReply, SelfTestFailure> {
        self.helper.order(order).await.map_err(|error| match error.kind() {
            io::ErrorKind::BrokenPipe => SelfTestFailure::Ended,
            _ => SelfTestFailure::NotMade(error),
        })
    }
}

/// The look at the pods' interfaces, and which of them were told of.
#[derive(Debug)]
struct InterfaceScan {
    outside: Outside,
    /// Interfaces that were logged.
    logged: Conditions<String>,
}

impl InterfaceScan {
    async fn at(mut self, interfaces: Vec<InterfaceMatch>, pods: Vec<IpAddr>, metrics: &Metrics) -> Self {
        let looked = blocking(move || {
            let found = Netlink::open().and_then(|mut netlink| self.outside.look(&interfaces, &pods, &mut netlink));
            Ok((self, found))
        });
        let (mut look, found) = match looked.await {
            Ok((look, Ok(found))) => (look, found),
            Ok((look, Err(error))) => {
                debug!(%error, "the routes to pods could not be read");
                return look;
            }
            Err(error) => {
                debug!(%error, "the routes to pods could not be read");
                return Self { outside: Outside::default(), logged: Conditions::default() };
            }
        };
        let addresses: std::collections::BTreeSet<_> = found.iter().map(|(ip, _)| *ip).collect();
        metrics.pods_outside(addresses.len());
        for (address, interface) in found {
            if look.logged.begins(interface.clone()) {
                warn!(
                    event = "pods-outside-rules", %interface, %address,
                    "pods are behind an interface that --host-interface does not include; their metadata requests do not reach this \
                     daemon; add the interface, or remove --host-interface to include all"
                );
            }
        }
        look
    }
}

fn forwards_ipv6() -> bool {
    std::fs::read_to_string(FORWARDS_IPV6).is_ok_and(|text| text.trim() != "0")
}

fn tell(metrics: &Metrics, state: SelfTestState) {
    metrics.self_test(state.name(), SelfTestState::ALL.map(SelfTestState::name));
}

/// Asks the kernel something that may have to wait for others who change interfaces.
async fn blocking<T: Send + 'static>(ask: impl FnOnce() -> io::Result<T> + Send + 'static) -> io::Result<T> {
    tokio::task::spawn_blocking(ask).await.map_err(io::Error::other)?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_addresses_of_tests_are_told_from_others() {
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
