#![allow(clippy::unwrap_used, reason = "a test says loudly what failed")]

use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::net::{SocketAddr, UnixListener as StdListener};
use std::time::Duration;

use super::*;

fn hold_as_another(name: &str) -> StdListener {
    StdListener::bind_addr(&SocketAddr::from_abstract_name(name).unwrap()).unwrap()
}

/// Fills a listener's queue, as any process can.
fn fill(name: &str) {
    while holder(name) != Holder::Unknown {}
}

/// One test covers everything, because the names belong to the network namespace that all tests share.
#[tokio::test]
async fn the_later_daemon_owns_the_rules_while_it_lives() {
    // Another process holds the highest number.
    let last = hold_as_another(&format!("{RUNS}{}", u64::MAX));
    let (first, second) = (Ownership::take(None).unwrap(), Ownership::take(None).unwrap());
    drop(last);
    assert!(first.number < second.number && second.number < u64::MAX);
    assert_eq!(first.others().unwrap(), OtherDaemons { is_any: true, is_later: true });
    assert_eq!(second.others().unwrap(), OtherDaemons { is_any: true, is_later: false });
    first.claim_rules().unwrap();
    assert!(!second.is_succeeded().unwrap());
    // Another process took the name that it could guess in advance.
    let guessed = hold_as_another(&format!("{RULES}{}", second.number));
    second.claim_rules().unwrap();
    second.claim_rules().unwrap();
    drop(guessed);
    assert!(first.is_succeeded().unwrap() && first.is_succeeded().unwrap());

    let claim = names::names(RULES, |number| number == second.number).unwrap().pop_first().unwrap().1;
    fill(&claim);
    assert!(!first.is_succeeded().unwrap(), "a daemon that hangs takes no ownership");
    fill(&format!("{RUNS}{}", first.number));
    assert!(any().unwrap(), "a daemon that hangs still counts as running");
    let answered = tokio::time::timeout(Duration::from_secs(60), async {
        while !first.is_succeeded().unwrap() {
            tokio::task::yield_now().await;
        }
    });
    tokio::select! {
        answered = answered => answered.unwrap(),
        never = second.answer() => match never {},
    }

    assert_eq!(second.others().unwrap(), OtherDaemons { is_any: true, is_later: false }, "although its holder is unknown");
    assert!(second.leave().unwrap(), "the first daemon still counts, although its holder is unknown");
    assert_eq!(first.others().unwrap(), OtherDaemons::default());
    assert!(names::names(RULES, |number| number == second.number).unwrap().is_empty(), "its claim is released with it");
    assert!(!first.is_succeeded().unwrap());
    drop(first);

    proofs_decide().await;
    a_flood_of_names_keeps_the_rules();
}

/// With a directory, only what is proved in it takes ownership. What could be a daemon still keeps rules from being removed.
async fn proofs_decide() {
    let directory = tempfile::tempdir().unwrap();
    let proofs = || Some(Proofs::in_directory(directory.path()).unwrap());
    let first = Ownership::take(proofs()).unwrap();
    // A process in the node's network that runs as the same user.
    let names = ["rules/18446744073709551615/1", "daemon/18446744073709551615"].map(|name| hold_as_another(&format!("rolegate/{name}")));
    assert!(!first.is_succeeded().unwrap() && !first.is_followed().unwrap(), "nothing proves these names");
    assert_eq!(first.others().unwrap(), OtherDaemons { is_any: true, is_later: true }, "it may be a daemon with another directory");
    let without = Ownership::take(None).unwrap();
    assert!(without.is_succeeded().unwrap() && without.is_followed().unwrap(), "without a directory, there is nothing better");
    drop(without);
    assert!(any().unwrap() && any_proved(&proofs().unwrap()).unwrap());

    // A daemon that has not installed its rules yet. The name of somebody else for it takes no ownership.
    let second = Ownership::take(proofs()).unwrap();
    let early = hold_as_another(&format!("{RULES}{}/1", second.number));
    assert!(!first.is_succeeded().unwrap());
    drop(early);
    assert!(first.is_followed().unwrap() && !second.is_followed().unwrap());
    second.claim_rules().unwrap();
    assert!(first.is_succeeded().unwrap() && !second.is_succeeded().unwrap());
    // A daemon without a directory sees it as well, and it is of no use there.
    let elsewhere = tempfile::tempdir().unwrap();
    assert!(!any_proved(&Proofs::in_directory(elsewhere.path()).unwrap()).unwrap());
    assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 3);
    drop(second);
    assert!(!first.is_succeeded().unwrap());
    assert!(first.leave().unwrap(), "the name without a proof keeps the rules");
    assert!(!any_proved(&proofs().unwrap()).unwrap());
    assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 0);
    drop(names);
}

fn a_flood_of_names_keeps_the_rules() {
    let own = Ownership::take(None).unwrap();
    let flood: Vec<_> = (1..=MOST as u64 + 1).map(|number| hold_as_another(&format!("{RUNS}{number}"))).collect();
    assert!(any().unwrap());
    assert_eq!(own.others().unwrap(), OtherDaemons { is_any: true, is_later: true });
    drop(flood);
    assert_eq!(own.others().unwrap(), OtherDaemons::default());
}
