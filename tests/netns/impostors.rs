//! A process in the node's network that runs as the daemon's user and poses as a later daemon: a pod with `hostNetwork` that runs as root,
//! without any capability. It can take the names of daemons, and cannot write into a directory of the node.

use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::os::unix::net::{SocketAddr, UnixListener};
use std::path::Path;
use std::time::{Duration, Instant};

use rolegate_lab::daemon::{Daemon, Setup};
use rolegate_lab::node::{NODE_IP, Netns, find_program};

use crate::bed::{Bed, METADATA, PATIENCE};
use crate::keep::{by_hand_ends, wait_until};

/// The names of a daemon that was started later than any other, and has installed its rules.
pub(crate) struct Impostor(#[expect(dead_code, reason = "they are held")] Vec<UnixListener>);

impl Impostor {
    pub(crate) fn new(ns: &Netns) -> Self {
        Self::named(ns, &["daemon/18446744073709551615", "rules/18446744073709551615/1"])
    }

    fn named(ns: &Netns, names: &[&str]) -> Self {
        let hold = |name: &&str| {
            let name = format!("rolegate/{name}");
            ns.run(move || UnixListener::bind_addr(&SocketAddr::from_abstract_name(name).unwrap())).unwrap().unwrap()
        };
        Self(names.iter().map(hold).collect())
    }
}

fn setup(bed: &Bed, directory: &Path) -> Setup {
    let setup = bed.setup_with_ip().argument("--redirect=nftables").argument("--app-port=8181");
    setup.argument(format!("--handover-socket={}", directory.join("handover").display()))
}

fn handover(directory: &Path) -> String {
    format!("--handover-socket={}", directory.join("handover").display())
}

fn repairs(bed: &Bed, daemon: &Daemon) -> f64 {
    daemon.metric(Some(bed.node.ns()), "rolegate_redirect_repairs_total{outcome=\"repaired\"}").unwrap()
}

/// A later daemon is what a change that comes back is left to.
#[test]
fn an_impostor_does_not_keep_rules_from_being_repaired() {
    let Some(bed) = Bed::new() else { return };
    let pod = bed.pod("web", "veth");
    let directory = tempfile::tempdir().unwrap();
    let daemon = bed.start(&setup(&bed, directory.path()));
    let _impostor = Impostor::new(bed.node.ns());
    for number in 1..=3 {
        bed.node.ns().sh("nft flush chain inet rolegate direct").unwrap();
        let deadline = Instant::now() + PATIENCE;
        while repairs(&bed, &daemon) < f64::from(number) {
            assert!(Instant::now() < deadline, "{number}\n{}", daemon.log());
            std::thread::sleep(Duration::from_millis(10));
        }
    }
    assert!(daemon.events("rules-of-newer-daemon").is_empty(), "{}", daemon.log());
    bed.assert_served(&pod, METADATA);
}

/// Daemons with one directory still find each other.
#[test]
fn the_later_of_two_daemons_proves_that_it_is_one() {
    let Some(bed) = Bed::new() else { return };
    let pod = bed.pod("web", "veth");
    let directory = tempfile::tempdir().unwrap();
    let first = bed.start(&setup(&bed, directory.path()));
    let second = bed.start(&setup(&bed, directory.path()).argument("--app-port=8282"));
    first.wait_for_event("rules-of-newer-daemon").unwrap();
    bed.assert_served(&pod, METADATA);
    drop(second);
    // What is left of it proves nothing.
    assert_eq!(std::fs::read_dir(directory.path()).unwrap().flatten().filter(|entry| is_proof(entry, "rules.")).count(), 2);
    let (redirect, ip) = ("--redirect=nftables", format!("--host-ip={NODE_IP}"));
    wait_until(|| match crate::keep::by_hand(&bed, &["status", redirect, "--app-port=8181", &ip]) {
        output if output.status.success() => Ok(()),
        output => Err(std::io::Error::other(String::from_utf8_lossy(&output.stdout).into_owned())),
    });
    let third = bed.start(&setup(&bed, directory.path()));
    assert_eq!(std::fs::read_dir(directory.path()).unwrap().flatten().filter(|entry| is_proof(entry, "rules.")).count(), 2);
    drop((first, third));
}

fn is_proof(entry: &std::fs::DirEntry, prefix: &str) -> bool {
    entry.file_name().to_str().is_some_and(|name| name.starts_with(prefix))
}

/// What removes the rules of a node that is to have none must not wait for an impostor. Without a directory, every name counts.
#[test]
fn rules_are_removed_in_spite_of_an_impostor() {
    let Some(bed) = Bed::new() else { return };
    let directory = tempfile::tempdir().unwrap();
    let flag = handover(directory.path());
    let daemon = bed.start(&setup(&bed, directory.path()));
    let impostor = Impostor::new(bed.node.ns());
    assert!(by_hand_ends(&bed, &["remove", &flag], 1).contains("a rolegate daemon runs on this node"));
    assert!(by_hand_ends(&bed, &["status", &flag, "--app-port=8181"], 0).contains("a rolegate daemon runs on this node"));
    drop(daemon);
    assert!(
        by_hand_ends(&bed, &["remove"], 1).contains("a rolegate daemon runs on this node"),
        "it may be a daemon with another directory"
    );
    assert!(by_hand_ends(&bed, &["remove", "--handover-socket=/does/not/exist/handover"], 1).contains("runs on this node"));
    let removed = by_hand_ends(&bed, &["remove", &flag], 0);
    assert!(removed.contains("removed: ") && !removed.contains("will install"), "{removed}");
    assert!(removed.contains("does not prove in the directory of --handover-socket that it is one"), "{removed}");
    drop(impostor);
}

/// A daemon starts while the last one removes the rules, and has found the guard in place.
#[test]
fn the_guard_is_placed_again_for_a_daemon_that_starts_during_the_removal() {
    let Some(bed) = Bed::new() else { return };
    let pod = bed.pod("web", "veth");
    let programs = tempfile::tempdir().unwrap();
    let at = |name: &str| programs.path().join(name);
    symlink(find_program("conntrack").unwrap(), at("conntrack")).unwrap();
    // Removes the table only when the other daemon is there.
    let (began, goes_on) = (at("began"), at("goes-on"));
    let script = format!(
        "#!/bin/sh\ncase \"$*\" in 'delete table inet rolegate')\n : >'{}'\n while ! [ -e '{}' ]; do {} 0.01; done;; esac\nexec {} \"$@\"\n",
        began.display(),
        goes_on.display(),
        find_program("sleep").unwrap().display(),
        find_program("nft").unwrap().display()
    );
    std::fs::write(at("nft"), script).unwrap();
    std::fs::set_permissions(at("nft"), std::fs::Permissions::from_mode(0o755)).unwrap();
    let setup = bed.setup_with_ip().argument("--redirect=nftables").argument("--redirect-on-exit=remove");
    let mut daemon = bed.start(&setup.env("PATH", programs.path().to_str().unwrap()));
    bed.assert_served(&pod, METADATA);
    daemon.terminate().unwrap();
    wait_until(|| if began.exists() { Ok(()) } else { Err(std::io::Error::other(daemon.log())) });
    let _later = Impostor::named(bed.node.ns(), &["daemon/18446744073709551615"]);
    std::fs::write(&goes_on, "").unwrap();
    assert_eq!(daemon.wait().unwrap().code(), Some(0), "{}", daemon.log());
    assert_eq!(daemon.events("rules-restored").len(), 1, "{}", daemon.log());
    assert!(daemon.events("rules-removed").is_empty(), "{}", daemon.log());
    bed.assert_refused(&pod);
    assert_eq!(bed.metadata_requests_of(&pod), 0);
}
