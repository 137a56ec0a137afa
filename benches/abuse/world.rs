//! The daemon with its pods, and what one attack does to the victim.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use rolegate_lab::daemon::Daemon;
use rolegate_lab::kube::{KubeApi, PodBuilder, Resource};
use rolegate_lab::sts::{Role, Sts};

use super::attacker::Attacker;
use super::common::median;
use super::common::pods::with_role;
use super::common::process::Memory;
use super::common::world::{arn, setup, start_api, start_sts};
use super::http;
use super::moves::{Moves, neighbour};
use super::victim::{Times, Victim};

pub(super) const VICTIM: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 1, 2));
pub(super) const ATTACKER: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 1, 3));
/// A harmless pod that opens many connections at once.
pub(super) const HONEST: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 1, 4));
/// A pod that is deleted.
pub(super) const GHOST: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 1, 5));
/// A pod for whose role STS returns sessions of the victim's role.
pub(super) const MISLED: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 1, 6));
/// A pod that appears after an attack.
const LATEST: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 1, 7));
/// The number of pods of one role that start at the same time.
pub(super) const CROWD: usize = 220;
/// The number of other namespaces, with a pod each.
const NAMESPACES: u8 = 40;
/// The duration of each attack.
const LASTS: Duration = Duration::from_secs(10);
/// The interval at which the daemon's memory is read.
const LOOK: Duration = Duration::from_millis(20);
const VICTIM_ROLE: &str = "web-role";

pub(super) fn crowd_ip(n: usize) -> IpAddr {
    IpAddr::from([127, 2, 0, (n + 1) as u8])
}

pub(super) fn neighbour_ip(number: u8) -> IpAddr {
    IpAddr::from([127, 3, 0, number])
}

pub(super) fn pod(name: &str, ip: IpAddr, role: &str) -> PodBuilder {
    with_role("shop", name, ip, role)
}

/// Returns the role of the pod at an address.
fn role_at(ip: IpAddr) -> &'static str {
    match ip {
        ATTACKER => "attacker-role",
        HONEST => "honest-role",
        GHOST => "ghost-role",
        MISLED => "misled-role",
        _ => "crowd-role",
    }
}

/// The daemon and its dependencies.
pub(super) struct World {
    daemon: Daemon,
    api: KubeApi,
    sts: Sts,
    runtime: tokio::runtime::Runtime,
}

/// The outcome of one attack.
pub(super) struct Outcome {
    pub(super) requests: Times,
    pub(super) sequences: Times,
    pub(super) wrong: Vec<String>,
    /// The daemon's memory in KiB: before, at its peak, and after.
    pub(super) memory: [u64; 3],
    /// What the attacker counted.
    pub(super) attacker: String,
}

impl World {
    pub(super) fn start() -> World {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let (api, sts) = (start_api(&runtime), start_sts(&runtime));
        for role in [VICTIM_ROLE, "attacker-role", "honest-role", "ghost-role", "misled-role", "crowd-role", "team-role"] {
            sts.add_role(Role::new(arn(role)));
        }
        for (name, ip) in [("attacker", ATTACKER), ("honest", HONEST), ("ghost", GHOST)] {
            api.apply(Resource::Pods, pod(name, ip, role_at(ip)).build());
        }
        api.apply(Resource::Pods, pod("web", VICTIM, VICTIM_ROLE).build());
        for number in 1..=NAMESPACES {
            api.apply(Resource::Pods, neighbour(number).build());
        }
        // Restores the default, which the lab replaces.
        let daemon = setup(&api.url(), &sts).argument("--limits-connection-rate=250").start().unwrap();
        daemon.wait_ready(None).unwrap();
        let world = World { daemon, api, sts, runtime };
        // The sessions exist before anything is timed, and the metrics have every namespace.
        world.ask_once(VICTIM, VICTIM_ROLE);
        (1..=NAMESPACES).for_each(|number| world.ask_once(neighbour_ip(number), "team-role"));
        world
    }

    /// Measures the victim's requests during an attack, or without one.
    pub(super) fn measure(&self, attack: Option<&str>) -> Outcome {
        let before = self.memory();
        let moves = Moves { api: &self.api, sts: &self.sts };
        let (over, peak) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(before)));
        let (seen, attacker, keys) = std::thread::scope(|scope| {
            scope.spawn(|| {
                while !over.load(Ordering::Relaxed) {
                    peak.fetch_max(self.memory(), Ordering::Relaxed);
                    std::thread::sleep(LOOK);
                }
            });
            let attacker = attack.map(|attack| {
                moves.prepare(attack);
                scope.spawn(|| moves.run(attack, &over));
                Attacker::start(attack, self.daemon.metadata_address(), self.daemon.metrics_address())
            });
            let seen = self.victim().ask_for(LASTS);
            over.store(true, Ordering::Relaxed);
            let (counts, keys) = attacker.map_or_else(|| ("—".to_owned(), Vec::new()), Attacker::end);
            (seen, counts, keys)
        });
        if let Some(attack) = attack {
            moves.restore(attack);
            self.catch_up();
        }
        let of_victim = seen.keys.iter().map(|(key, secret)| (VICTIM_ROLE, key, secret));
        let of_others = keys.iter().map(|(ip, key, secret)| (role_at(*ip), key, secret));
        let issued = self.sts.issued();
        let is_wrong = |(role, key, secret): &(&str, &String, &String)| {
            let session = issued.iter().find(|session| session.access_key_id == **key);
            session.is_none_or(|session| session.role_arn != arn(role) || session.secret_access_key != **secret)
        };
        let mut wrong = seen.wrong;
        wrong.extend(of_victim.chain(of_others).filter(is_wrong).map(|(role, key, _)| format!("a pod of {role} has the key {key}")));
        let memory = [before, peak.load(Ordering::Relaxed), self.memory()];
        Outcome { requests: seen.requests, sequences: seen.sequences, wrong, memory, attacker }
    }

    /// Returns the time of a request for the metrics, in words. The daemon renders them for each of the node's own requests.
    pub(super) fn time_of_metrics(&self) -> String {
        let request = |_| {
            let began = Instant::now();
            let size = self.daemon.get(None, "/metrics").unwrap().body.len();
            (began.elapsed(), size)
        };
        let (took, size) = median(&(0..21).map(request).collect::<Vec<_>>());
        let took = took.as_secs_f64() * 1000.0;
        format!("metrics with {} namespaces: {} KiB, {took:.1} ms (median)", NAMESPACES + 1, size / 1024)
    }

    /// Waits until the daemon knows every change at the API.
    fn catch_up(&self) {
        self.api.apply(Resource::Pods, pod("latest", LATEST, VICTIM_ROLE).build());
        let deadline = Instant::now() + Duration::from_secs(120);
        let is_known = || {
            let token = self.runtime.block_on(async {
                let mut stream = http::connect(LATEST, self.daemon.metadata_address()).await?;
                let token = http::token(&mut stream).await?;
                std::io::Result::Ok(token.status == 200)
            });
            token.unwrap_or(false)
        };
        while !is_known() {
            assert!(Instant::now() < deadline, "a new pod did not become known");
            std::thread::sleep(LOOK);
        }
        self.api.delete(Resource::Pods, Some("shop"), "latest");
    }

    /// Returns the daemon's resident memory, in KiB.
    fn memory(&self) -> u64 {
        Memory::of(&self.daemon.pid().to_string()).resident
    }

    fn victim(&self) -> Victim {
        Victim { ip: VICTIM, daemon: self.daemon.metadata_address(), role: VICTIM_ROLE }
    }

    fn ask_once(&self, ip: IpAddr, role: &str) {
        let address: SocketAddr = self.daemon.metadata_address();
        let document = self.runtime.block_on(async {
            let mut stream = http::connect(ip, address).await?;
            let token = http::token(&mut stream).await?.body;
            http::role(&mut stream, role, &token).await
        });
        assert_eq!(document.unwrap().status, 200);
    }
}
