//! Identity under constant change: ten thousand pods over two hundred addresses, all of which ask all the while.
//!
//! Each pod has a role of its own, so that every answer says whom the daemon took its client for. The API gives changes
//! out as an API may: late, object by object in order but not across objects, with watches that break, history that is
//! gone and errors between. What is right at which moment is in the [`ledger`], by the order of events alone, so that
//! neither load nor luck changes the verdict. The seed of a run is printed; `ROLEGATE_STRESS_SEED` repeats it.

mod clients;
mod driver;
mod ledger;

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Instant;

use clients::{Client, Seen};
use driver::Driver;
use tokio::sync::Semaphore;

use crate::world::{Fakes, arn};

const ADDRESSES: u8 = 200;
const LIVES: u32 = 10_000;

/// Numbers that follow from a seed (SplitMix64).
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
fn ten_thousand_pods_never_get_another_ones_role_and_are_never_refused_their_own() {
    let (seed, began) = (seed(), Instant::now());
    println!("ROLEGATE_STRESS_SEED={seed}");
    let fakes = Fakes::new();
    fakes.sts.unknown_roles_allowed(true);
    let mut driver = Driver::new(&fakes, Random(seed), ADDRESSES, LIVES);
    let setup = fakes.setup().argument("--backoff-max-elapsed-time=300ms");
    let world = fakes.into_world(&setup);
    let turns = Arc::new(Semaphore::new(0));
    let clients: Vec<_> = (0..ADDRESSES)
        .map(|number| {
            let client = Client {
                ip: address(number),
                daemon: world.daemon.metadata_address(),
                ledger: driver.ledger(number),
                turns: turns.clone(),
                random: Random(seed ^ u64::from(number) << 32),
                connection: None,
                token: None,
                seen: Seen::default(),
            };
            world.fakes.runtime.spawn(client.run())
        })
        .collect();
    driver.live(&world, &turns);
    turns.close();
    let mut finished = Vec::new();
    world.fakes.runtime.block_on(async {
        for client in clients {
            let mut client = client.await.unwrap();
            // Nothing changes any more, and everything is proven: the last pod of each address is served.
            client.token = None;
            let before = client.seen.served;
            client.ask().await;
            if client.seen.served == before {
                client.seen.violations.push(format!("{}: the last pod is not served", client.ip));
            }
            finished.push(client);
        }
    });
    let issued = world.fakes.sts.issued().into_iter().map(|issued| (issued.access_key_id, issued.role_arn)).collect();
    let mut all = Seen::default();
    for mut client in finished {
        judge_keys(&mut client, &issued);
        let Seen { served, had_to_be_served, refused, failed, keys, violations } = client.seen;
        all.served += served;
        all.had_to_be_served += had_to_be_served;
        all.refused += refused;
        all.failed += failed;
        all.keys.extend(keys);
        all.violations.extend(violations);
    }
    let Seen { served, had_to_be_served, refused, failed, keys, violations } = all;
    println!(
        "{served} served ({had_to_be_served} of them had to be, {} with credentials), {refused} refused, {failed} failed at STS; {:?}; {:?}",
        keys.len(),
        driver.tally(),
        began.elapsed()
    );
    let first: Vec<_> = violations.iter().take(5).map(String::as_str).collect();
    assert!(violations.is_empty(), "{} violations with ROLEGATE_STRESS_SEED={seed}; the first:\n{}", violations.len(), first.join("\n\n"));
    assert!(served > 1000 && had_to_be_served > 500 && keys.len() > 100, "too little was asked for the verdict to mean anything");
}

/// Whether each access key is of a role that was the address's while it was asked for.
fn judge_keys(client: &mut Client, roles: &HashMap<String, String>) {
    for (key, span) in &client.seen.keys {
        let role = roles.get(key).cloned().unwrap_or_default();
        let life = role.strip_prefix(&arn("r-")).and_then(|life| life.parse().ok());
        if !life.is_some_and(|life| client.ledger.may_be(life, *span)) {
            let what = format!("{}: the credentials were those of {role:?}\n{}", client.ip, client.ledger.describe(*span));
            client.seen.violations.push(what);
        }
    }
}

fn address(number: u8) -> IpAddr {
    IpAddr::from([127, 0, 7, number + 1])
}
