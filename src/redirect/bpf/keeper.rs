//! Keeps the programs attached and configured, on the pods' control group and on the node's interfaces.
//!
//! Like the packet rules, they are compared on an interval, and soon after interfaces or routes have changed. The daemon that was started
//! last owns them, as it owns the packet rules; an earlier one takes them over again when that has ended. Until then, it configures and
//! removes nothing, and attaches the exit guard where there is none: a guard that runs twice does no harm.

use std::collections::BTreeSet;
use std::future::Future;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsRawFd, RawFd};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::time::{Instant, sleep, sleep_until};
use tracing::{debug, info, warn};

use super::attach::{DaemonMaps, Programs, Scope};
use super::cgroups::PodsCgroup;
use super::error::BpfError;
use super::exit_check::ExitGuardCheck;
use super::host_network;
use super::layout::{BpfTargets, ProgramConfig};
use super::turn::ProgramTurn;
use super::uplinks::NodeInterfaces;
use crate::advice::{Advise as _, chain};
use crate::cgroup::RedirectPrograms;
use crate::config::{BpfConfig, HostNetworkMode};
use crate::metrics::{ComparedRules, Metrics, RuleKind, RuleState};
use crate::netlink::Notifications;
use crate::readiness::{PROGRAMS_REPAIRED, Readiness, ReadinessStep};
use crate::redirect::notifications::Watched;
use crate::redirect::ownership::{self, Ownership};

/// How often the pods' control group is looked for while it does not exist.
const LOOK_AGAIN: Duration = Duration::from_millis(100);
/// How long notifications are gathered before interfaces are read.
const GATHER: Duration = Duration::from_millis(20);
/// The minimum pause between two comparisons, unless there is a new interface.
const PAUSE: Duration = Duration::from_secs(1);
/// RTNLGRP_LINK, RTNLGRP_IPV4_ROUTE and RTNLGRP_IPV6_ROUTE, each as a bit.
const GROUPS: u32 = 1 | 1 << 6 | 1 << 10;
/// RTM_NEWLINK: an interface is new, or has changed.
const NEW_LINK: u16 = 16;
/// The size of the queue of notifications, in bytes.
const QUEUE: usize = 64 * 1024;

/// What the keeper needs besides the programs.
#[derive(Debug)]
pub struct KeeperEnvironment {
    /// How often the programs are compared.
    pub interval: Duration,
    /// Which daemon owns them.
    pub turn: Option<Arc<Ownership>>,
    /// Where repairs are counted.
    pub metrics: Metrics,
    /// What is not done while they are wrong.
    pub readiness: Readiness,
}

/// Keeps the programs.
#[derive(Debug)]
pub struct Keeper {
    settings: BpfConfig,
    scope: Scope,
    environment: KeeperEnvironment,
    programs: Programs,
    maps: DaemonMaps,
    turn: ProgramTurn,
    pods: PodsCgroup,
    host_network: u64,
    /// Where connections are redirected, once this daemon knows it. Before, those of the daemon before stay.
    targets: Option<BpfTargets>,
    changes: Option<Changes>,
    /// The interfaces that were there when the programs were compared last.
    interfaces: NodeInterfaces,
    compared_at: Instant,
    /// When what has changed since then is to be compared.
    due: Option<Instant>,
    /// Held while the programs are wrong.
    waiting: Option<ReadinessStep>,
    /// The failure that was logged last.
    failure: Option<String>,
}

impl Keeper {
    /// Loads and attaches the programs. Until [`redirect`](Self::redirect), connections to the metadata address are denied, or redirected
    /// as the daemon before has configured it.
    ///
    /// # Errors
    /// If the pods' control group does not exist, or the programs cannot be loaded or attached.
    pub fn start(settings: BpfConfig, scope: Scope, environment: KeeperEnvironment) -> Result<Self, BpfError> {
        let pods = PodsCgroup::find(settings.cgroup.as_deref())?;
        let (programs, maps) = Programs::load(&settings.pins)?;
        let turn = programs.turn(environment.turn.clone());
        let host_network = host_network::cookie().unwrap_or_else(|error| {
            debug!(error = chain(&error), "assuming that the network of this process is the initial one");
            0
        });
        let changes = Watched::Interfaces.subscribed(Changes::open());
        let mut keeper = Self {
            settings,
            scope,
            environment,
            programs,
            maps,
            turn,
            pods,
            host_network,
            targets: None,
            changes,
            interfaces: NodeInterfaces::default(),
            compared_at: Instant::now(),
            due: None,
            waiting: None,
            failure: None,
        };
        keeper.maps.exemptions.take_turns(keeper.turn.clone());
        keeper.exempt_own(&keeper.pods)?;
        keeper.clear_exemptions()?;
        let attached = keeper.settle(true)?;
        keeper.observed(RuleState::Guarded);
        info!(
            event = "bpf-programs-attached",
            cgroup = %keeper.pods.path.display(),
            attached = attached.join(", "),
            "attached the BPF programs; pods cannot reach the real metadata service, whatever the network plugin does with their packets"
        );
        Ok(keeper)
    }

    /// Waits until the control group of all pods exists, and returns at once if something else is wrong.
    pub async fn pods_exist(settings: &BpfConfig) {
        let mut is_news = true;
        while let Err(error @ BpfError::NoPodsCgroup) = PodsCgroup::find(settings.cgroup.as_deref()) {
            if std::mem::take(&mut is_news) {
                warn!(
                    event = "pods-cgroup-missing",
                    advice = error.advice().as_deref(),
                    "the pods' control group does not exist yet; waiting for the kubelet to create it, and attaching the BPF programs then"
                );
            }
            sleep(LOOK_AGAIN).await;
        }
    }

    /// Returns what the rest of the daemon uses of the programs; `None` for the exit guard alone, which redirects nothing.
    pub fn programs(&self) -> Option<RedirectPrograms> {
        (self.scope == Scope::All).then(|| RedirectPrograms {
            sockets: Arc::new(self.maps.records.clone()),
            exemptions: Arc::new(self.maps.exemptions.clone()),
            passed: Arc::new(self.maps.passed.clone()),
            pods_cgroup: self.pods.path.clone(),
        })
    }

    /// Returns a check of the exit guard for the self-test.
    ///
    /// # Errors
    /// If the program cannot be opened again.
    pub fn exit_guard_check(&mut self) -> Result<ExitGuardCheck, BpfError> {
        self.programs.exit_guard_check(&self.settings.interfaces)
    }

    /// Returns the directory of the pins.
    pub fn pins(&self) -> PathBuf {
        self.settings.pins.clone()
    }

    /// Redirects connections to these addresses of the daemon, and removes what an earlier daemon has attached besides.
    ///
    /// # Errors
    /// If the programs cannot be configured.
    pub fn redirect(&mut self, ipv4: Option<Ipv4Addr>, ipv6: Option<Ipv6Addr>, port: u16) -> Result<(), BpfError> {
        self.targets = Some(BpfTargets { ipv4, ipv6, port });
        self.settle(true)?;
        self.tidy()?;
        self.is_right();
        Ok(())
    }

    /// Keeps the programs forever.
    pub async fn keep(&mut self) {
        loop {
            let is_thorough = self.wait().await;
            self.check(is_thorough);
        }
    }

    /// Keeps the programs until `work` is done.
    pub async fn keep_during<T>(&mut self, work: impl Future<Output = T>) -> T {
        let mut work = std::pin::pin!(work);
        loop {
            let is_thorough = tokio::select! {
                biased;
                done = &mut work => return done,
                is_thorough = self.wait() => is_thorough,
            };
            self.check(is_thorough);
        }
    }

    /// Waits until the next comparison is due, and returns whether it is a thorough one: not after each change of a route. If it is
    /// cancelled, no change is lost.
    async fn wait(&mut self) -> bool {
        let end = self.compared_at + self.environment.interval;
        loop {
            let due = self.due.unwrap_or(end);
            let Some(changes) = &mut self.changes else {
                sleep_until(due).await;
                return self.due.is_none();
            };
            tokio::select! {
                () = sleep_until(due) => return self.due.is_none(),
                changed = changes.changed(&self.interfaces.all) => match changed {
                    Ok(change) => {
                        let due = self.due_after(change);
                        self.due = Some(self.due.map_or(due, |earlier| earlier.min(due)));
                    }
                    Err(error) => {
                        Watched::Interfaces.lost(&error);
                        self.changes = None;
                    }
                },
            }
        }
    }

    fn due_after(&self, change: Change) -> Instant {
        let soon = Instant::now() + GATHER;
        match change {
            Change::NewInterface => soon,
            // Routes may change all the time, and each comparison reads all of them.
            Change::Other => soon.max(self.compared_at + PAUSE),
        }
    }

    /// Compares the programs once, and repairs them.
    fn check(&mut self, is_thorough: bool) {
        (self.compared_at, self.due) = (Instant::now(), None);
        let is_succeeded = self.turn.is_succeeded();
        let settled = match is_succeeded {
            // Both daemons may attach to a new interface, and one of them then finds the scratch file of the other.
            true => self.settle_beside().or_else(|_| self.settle_beside()),
            false => self.settle(is_thorough).and_then(|attached| self.tidy().map(|()| attached)),
        };
        match settled {
            Ok(attached) if attached.is_empty() => self.is_right(),
            Ok(attached) => {
                let attached = attached.join(", ");
                self.environment.metrics.redirect_repaired(true);
                self.environment.metrics.rules_repaired(RuleKind::Programs, None);
                warn!(
                    event = "bpf-programs-repaired",
                    attached,
                    "attached or configured BPF programs again; this is normal for a new interface and after another daemon ends; \
                     otherwise, find the program that removes them"
                );
                self.is_right();
            }
            Err(error) => return self.is_wrong(&error),
        }
        if is_succeeded {
            self.observed(RuleState::AnotherDaemons);
        }
    }

    /// Attaches the exit guard beside a later daemon, where there is none. A later daemon that wants no programs has removed them.
    fn settle_beside(&mut self) -> Result<Vec<String>, BpfError> {
        self.read_interfaces()?;
        if self.turn.is_kept() { self.programs.attach_beside(&self.interfaces.uplinks) } else { Ok(Vec::new()) }
    }

    /// Records the state for the status page.
    fn observed(&self, state: RuleState) {
        let redirects_to = self.targets.as_ref().and_then(|BpfTargets { ipv4, ipv6, port }| {
            let ip = ipv4.map(IpAddr::from).or(ipv6.map(IpAddr::from))?;
            Some(SocketAddr::new(ip, *port))
        });
        let rules = ComparedRules { kind: RuleKind::Programs, backend: "bpf", family: None, redirects_to, state };
        self.environment.metrics.rules_compared(rules);
    }

    fn is_right(&mut self) {
        // The exit guard alone redirects nothing.
        let is_all = self.targets.is_some() || self.scope != Scope::All;
        self.observed(if is_all { RuleState::InPlace } else { RuleState::Guarded });
        if self.failure.take().is_some() {
            info!(event = "bpf-programs-correct-again", "the BPF programs are attached again");
        }
        if let Some(waiting) = self.waiting.take() {
            waiting.done();
        }
    }

    fn is_wrong(&mut self, error: &BpfError) {
        self.environment.metrics.redirect_repaired(false);
        self.observed(RuleState::Wrong);
        let text = chain(error);
        if self.failure.as_ref() != Some(&text) {
            warn!(
                event = "bpf-programs-repair-failed",
                error = text,
                advice = error.advice().as_deref(),
                "cannot attach the BPF programs again; not ready, retrying; pods may reach the real metadata service"
            );
            self.failure = Some(text);
        }
        if self.waiting.is_none() {
            self.waiting = Some(self.environment.readiness.step(PROGRAMS_REPAIRED));
        }
    }

    /// Attaches and configures what is not as wanted, and returns what that was.
    fn settle(&mut self, is_thorough: bool) -> Result<Vec<String>, BpfError> {
        let looked = self.look_for_pods(is_thorough);
        let is_thorough = is_thorough || matches!(looked, Ok(true));
        let mut changed = Vec::new();
        let former = self.programs.config();
        let config = self.config(former.as_ref());
        if former != Some(config) {
            self.programs.configure(&config)?;
            changed.push("the configuration".to_owned());
        }
        let is_thorough = self.read_interfaces()? || is_thorough;
        changed.extend(self.programs.attach(self.scope, &self.pods, &self.interfaces.uplinks, is_thorough)?);
        // Until then, what is known is kept.
        looked.map(|_| changed)
    }

    /// Reads the interfaces, and returns whether there are others that need a guard.
    fn read_interfaces(&mut self) -> Result<bool, BpfError> {
        let interfaces =
            NodeInterfaces::read(&self.settings.interfaces).map_err(|error| BpfError::kernel("read the interfaces of this node", error))?;
        let is_other = interfaces.uplinks != self.interfaces.uplinks;
        self.interfaces = interfaces;
        Ok(is_other)
    }

    /// Looks for the pods' control group again, and returns whether it is another one: the kubelet may have been configured anew.
    fn look_for_pods(&mut self, is_thorough: bool) -> Result<bool, BpfError> {
        if !is_thorough && self.pods.is_there() {
            return Ok(false);
        }
        let found = PodsCgroup::find(self.settings.cgroup.as_deref())?;
        if found.id == self.pods.id {
            return Ok(false);
        }
        self.exempt_own(&found)?;
        self.pods = found;
        Ok(true)
    }

    /// Exempts the daemon's own pod, if it is in one.
    fn exempt_own(&self, pods: &PodsCgroup) -> Result<(), BpfError> {
        pods.own_pod()?.map_or(Ok(()), |own| self.maps.exemptions.exempt_own(own))
    }

    /// Removes the exemptions of an earlier daemon that let all pods in the node's network reach the real service, if this one does not.
    /// Until the pods are listed, nobody knows which of them are exempt now.
    fn clear_exemptions(&self) -> Result<(), BpfError> {
        let former = self.programs.config();
        let has_passed_all = former.is_some_and(|former| former.pass_host_network);
        if has_passed_all && !self.config(former.as_ref()).pass_host_network { self.maps.exemptions.clear() } else { Ok(()) }
    }

    fn config(&self, former: Option<&ProgramConfig>) -> ProgramConfig {
        let targets = match self.scope {
            Scope::All => self.targets.or_else(|| former?.targets),
            Scope::ExitGuard => None,
        };
        ProgramConfig {
            pods: self.pods.id.0,
            host_network: self.host_network,
            classes: self.pods.classes(),
            level: self.pods.level,
            // The exit guard alone identifies nobody.
            pass_host_network: self.settings.host_network_pods == HostNetworkMode::Ignore || self.scope == Scope::ExitGuard,
            targets,
        }
    }

    /// Removes what is attached besides. Before this daemon redirects, the one before may need it.
    fn tidy(&self) -> Result<(), BpfError> {
        if self.targets.is_none() {
            return Ok(());
        }
        let mut removed = self.programs.tidy(self.scope, &self.interfaces.all)?;
        // A later daemon has attached its own already. One that runs decides, and not a command beside it.
        let is_last = match &self.environment.turn {
            Some(turn) => turn.others().is_ok_and(|others| !others.is_later),
            None => ownership::any().is_ok_and(|is_any| !is_any),
        };
        if is_last {
            removed.extend(self.programs.remove_other_layouts()?);
        }
        if !removed.is_empty() {
            debug!(removed = removed.join(", "), "removed pins of BPF programs that are not needed");
        }
        Ok(())
    }
}

/// A subscription to changes of interfaces and routes.
#[derive(Debug)]
struct Changes {
    notifications: AsyncFd<Registered>,
}

/// Keeps the descriptor open for as long as it is registered with the runtime.
#[derive(Debug)]
struct Registered(Notifications);

impl AsRawFd for Registered {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

impl Changes {
    fn open() -> io::Result<Self> {
        let registered = Registered(Notifications::open(GROUPS, QUEUE)?);
        // The replacement is unsafe because some types close their descriptor too early; this one keeps it open.
        #[allow(deprecated, reason = "the descriptor stays open until it is dropped, which is after its registration ends")]
        let notifications = AsyncFd::with_interest(registered, Interest::READABLE)?;
        Ok(Self { notifications })
    }

    /// Returns when something has changed since the last return. Cancel safe.
    async fn changed(&mut self, known: &BTreeSet<u32>) -> io::Result<Change> {
        let mut buffer = [0; 64];
        loop {
            let mut ready = self.notifications.readable().await?;
            let mut changed = None;
            loop {
                match ready.get_inner().0.next(&mut buffer) {
                    Ok(Some(_)) if changed == Some(Change::NewInterface) => {}
                    Ok(Some(message)) => changed = Some(Change::of(message, known)),
                    Ok(None) => break,
                    // Some were lost, so something has changed.
                    Err(_) if changed.is_none() => changed = Some(Change::Other),
                    Err(error) => return Err(error),
                }
            }
            ready.clear_ready();
            if let Some(change) = changed {
                return Ok(change);
            }
        }
    }
}

/// What has changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Change {
    /// There is an interface that was not there before. It has no guard yet.
    NewInterface,
    /// An interface has changed, or a route.
    Other,
}

impl Change {
    /// Reads a notification: `struct nlmsghdr`, and for an interface `struct ifinfomsg` (rtnetlink(7)).
    fn of(message: &[u8], known: &BTreeSet<u32>) -> Self {
        let kind = message.get(4..6).and_then(|bytes| bytes.try_into().ok()).map(u16::from_ne_bytes);
        let interface = message.get(20..24).and_then(|bytes| bytes.try_into().ok()).map(u32::from_ne_bytes);
        match interface {
            Some(interface) if kind == Some(NEW_LINK) && !known.contains(&interface) => Self::NewInterface,
            _ => Self::Other,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn new_interfaces_are_told_from_changes() {
        let message = |kind: u16, interface: u32| {
            let mut message = vec![0; 32];
            message[4..6].copy_from_slice(&kind.to_ne_bytes());
            message[20..24].copy_from_slice(&interface.to_ne_bytes());
            message
        };
        let known = BTreeSet::from([1, 2]);
        assert_eq!(Change::of(&message(NEW_LINK, 3), &known), Change::NewInterface);
        assert_eq!(Change::of(&message(NEW_LINK, 2), &known), Change::Other);
        // RTM_DELLINK, and RTM_NEWROUTE.
        assert_eq!(Change::of(&message(17, 3), &known), Change::Other);
        assert_eq!(Change::of(&message(24, 3), &known), Change::Other);
        assert_eq!(Change::of(&message(NEW_LINK, 3)[..20], &known), Change::Other);
    }
}
