//! Identity under constant change: ten thousand pods over two hundred addresses, all of which send requests continuously.
//!
//! Each pod has a role of its own, so that every answer shows which pod the daemon took its client for. The API publishes
//! changes as an API may: late, in order for each object but not across objects, with watches that break, history that is gone
//! and errors in between. Tenants do everything that they can do to others ([`moves`], [`tenants`], [`floods`], [`networks`]).
//! The [`ledger`] defines what is correct at each moment by the order of events alone, so that neither load nor luck changes
//! the verdict. The [`driver`]'s plan defines how many requests are made and how many credentials must be served, and waits for
//! all of them, however long that takes. A run prints its seed; `ROLEGATE_STRESS_SEED` repeats it.

mod clients;
mod cluster;
mod driver;
mod floods;
mod ledger;
mod moves;
mod networks;
mod tenants;

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;
use std::time::Instant;

use clients::{Client, Clients, Seen, life_of};
use cluster::Cluster;
use driver::Stage;
use ledger::{Ledger, Life};

use crate::world::{Fakes, World, arn};

const ADDRESSES: u8 = 200;
const LIVES: u32 = 10_000;
/// The addresses of hostile tenants, after the others.
const LOOPER: usize = ADDRESSES as usize;
const FORGER: usize = LOOPER + 1;
const FAT: usize = FORGER + 1;
const MISLED: usize = FAT + 1;
const TENANTS: u8 = 4;
/// Outcomes of STS requests that a slow machine explains.
const TOO_SLOW: [&str; 3] = ["unreachable", "failed", "queued"];
/// The minimum number of credentials: far fewer than the plan of any run demands.
const LEAST_CREDENTIALS: usize = 1500;

/// A generator of numbers from a seed (SplitMix64).
#[derive(Clone, Debug)]
pub(crate) struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }
}

fn seed() -> u64 {
    use std::hash::{BuildHasher as _, RandomState};
    let given = std::env::var("ROLEGATE_STRESS_SEED").ok();
    given.map_or_else(|| RandomState::new().hash_one(()), |seed| seed.parse().expect("ROLEGATE_STRESS_SEED is a number"))
}

#[test]
fn ten_thousand_pods_only_ever_get_their_own_role() {
    let (seed, began) = (seed(), Instant::now());
    println!("ROLEGATE_STRESS_SEED={seed}");
    let fakes = Fakes::new();
    fakes.sts.unknown_roles_allowed(true);
    let cluster = Cluster::new(&fakes, Random(seed), (0..ADDRESSES + TENANTS).map(address));
    // STS is not under test: it has room for every pod. Connections are limited to what all pods need.
    let mut setup = fakes.setup().argument("--backoff-max-elapsed-time=300ms");
    setup = setup.argument("--sts-rate=1000").argument("--sts-timeout=1m").argument("--limits-connections=512");
    if let Ok(path) = std::env::var("ROLEGATE_STRESS_LOG") {
        setup = setup.argument("--log-level=debug").log_file(path);
    }
    let world = fakes.into_world(&setup);
    let client = |(number, slot): (u64, &cluster::Slot)| {
        Client::new(slot.ip, world.daemon.metadata_address(), slot.ledger.clone(), Random(seed ^ number << 32))
    };
    let clients = Clients::start(&world, (0..).zip(&cluster.slots).map(client), ADDRESSES.into());
    let mut stage = Stage { world: &world, cluster, clients };
    driver::live(&mut stage, LIVES);
    let Stage { cluster, clients, .. } = stage;
    let owed = clients.owed;
    let seen = clients.finish(&world);
    // All clients have stopped.
    let roles = world.fakes.sts.issued().into_iter().map(|issued| (issued.access_key_id, issued.role_arn)).collect();
    let failures = failures_of_sts(&world);
    let (mut all, mut excused) = (Seen::default(), 0);
    for (slot, (ledger, mut seen)) in seen.into_iter().enumerate() {
        judge_keys(&mut seen, &ledger, &roles);
        for (life, what) in seen.excused.drain(..) {
            match failures.contains(&life) {
                true => excused += 1,
                false => seen.violations.push(what),
            }
        }
        all.served += seen.served;
        all.had_to_be_served += seen.had_to_be_served;
        all.refused += seen.refused;
        all.paid += seen.paid;
        all.keys.extend(seen.keys);
        let told = |violation| format!("{}: {violation}\nwhat the API was told of it:\n{}", address_of(slot), cluster.record_of(slot));
        all.violations.extend(seen.violations.into_iter().map(told));
    }
    let Seen { served, had_to_be_served, refused, paid, keys, violations, .. } = all;
    println!(
        "{served} served ({had_to_be_served} of them had to be, {} with credentials), {refused} refused ({excused} as STS was too slow); {paid} of {owed} credentials that were due; {:?}; {:?}",
        keys.len(),
        cluster.tally(),
        began.elapsed()
    );
    let first: Vec<_> = violations.iter().take(5).map(String::as_str).collect();
    assert!(violations.is_empty(), "{} violations with ROLEGATE_STRESS_SEED={seed}; the first:\n{}", violations.len(), first.join("\n\n"));
    assert_eq!(paid, owed);
    assert!(owed > LEAST_CREDENTIALS, "too few requests for the verdict to mean anything");
}

/// Returns the pods for which the daemon reports that STS issued no credentials, with the time span. No other report is an
/// excuse: each pod requests one session, so that no pod changes too often and all of them together do not fill a queue.
fn failures_of_sts(world: &World) -> HashSet<Life> {
    let log = world.daemon.log();
    let failed = log.lines().filter(|line| line.contains(r#""level":"WARN""#) && line.contains(r#""role""#)).filter_map(|line| {
        let line: serde_json::Value = serde_json::from_str(line).ok()?;
        let is_slow = |key: &str| line[key].as_str().is_some_and(|outcome| TOO_SLOW.contains(&outcome));
        let role = line["role"].as_str().filter(|_| is_slow("outcome") || is_slow("reason"));
        role.and_then(|role| role.strip_prefix(&arn(""))).and_then(life_of)
    });
    failed.collect()
}

/// Checks that each access key belongs to a role that had the address while the key was requested.
fn judge_keys(seen: &mut Seen, ledger: &Ledger, roles: &HashMap<String, String>) {
    for (key, span) in &seen.keys {
        let role = roles.get(key).map_or("", String::as_str);
        let life = role.strip_prefix(&arn("")).and_then(life_of);
        if !life.is_some_and(|life| ledger.may_be(life, *span)) {
            seen.violations.push(format!("the credentials were those of {role:?}\n{}", ledger.describe(*span)));
        }
    }
}

fn address_of(slot: usize) -> IpAddr {
    address(u8::try_from(slot).unwrap())
}

fn address(number: u8) -> IpAddr {
    IpAddr::from([127, 0, 7, number + 1])
}
