//! Tests of the capabilities that the process keeps once it runs, and that they are enough.

use std::collections::BTreeMap;
use std::fs;

use rolegate_lab::daemon::Daemon;
use rolegate_lab::node::{find_program, skip};

use crate::bed::{Bed, METADATA};

const NET_BIND_SERVICE: u64 = 1 << 10;
const NET_ADMIN: u64 = 1 << 12;
const NET_RAW: u64 = 1 << 13;
const BPF: u64 = 1 << 39;

/// Returns the fields of `/proc/PID/task/TID/status` for every thread.
fn threads(daemon: &Daemon) -> Vec<BTreeMap<String, String>> {
    let tasks = fs::read_dir(format!("/proc/{}/task", daemon.pid())).unwrap();
    let status = |task: fs::DirEntry| {
        // A thread may end meanwhile.
        let text = fs::read_to_string(task.path().join("status")).ok()?;
        Some(text.lines().filter_map(|line| line.split_once(":\t")).map(|(name, value)| (name.to_owned(), value.to_owned())).collect())
    };
    tasks.filter_map(Result::ok).filter_map(status).collect()
}

#[track_caller]
fn assert_has(daemon: &Daemon, wanted: u64) {
    let threads = threads(daemon);
    assert!(threads.len() > 1, "the runtime has threads");
    for thread in threads {
        for set in ["CapEff", "CapPrm", "CapBnd"] {
            assert_eq!(u64::from_str_radix(&thread[set], 16).unwrap(), wanted, "{set}: {thread:?}");
        }
        for set in ["CapInh", "CapAmb"] {
            assert_eq!(u64::from_str_radix(&thread[set], 16).unwrap(), 0, "{set}: {thread:?}");
        }
        assert_eq!(thread["NoNewPrivs"], "1");
    }
}

/// The daemon was started with all of root's capabilities.
#[test]
fn only_the_capabilities_for_rules_are_kept_and_suffice() {
    let Some(bed) = Bed::new() else { return };
    let pod = bed.pod("web", "veth");
    // `auto` attaches the exit guard as well.
    for (backend, wanted) in [("nftables", NET_ADMIN | NET_RAW), ("auto", NET_ADMIN | NET_RAW | BPF)] {
        let daemon = bed.start(&bed.setup_with_ip().argument(format!("--redirect={backend}")));
        assert_has(&daemon, wanted);
        bed.assert_served(&pod, METADATA);
    }
}

#[test]
fn without_rules_only_a_low_port_keeps_a_capability() {
    let Some(bed) = Bed::new() else { return };
    assert_has(&bed.start(&bed.setup_with_ip().argument("--redirect=none")), 0);
    let low = bed.setup_with_ip().argument("--redirect=none").argument("--metrics-port=953");
    assert_has(&bed.start(&low), NET_BIND_SERVICE);
    let tested = bed.setup_with_ip().argument("--redirect=none").argument("--self-test=on");
    let tested = tested.start().unwrap();
    assert_has(&tested, NET_ADMIN);
}

#[test]
fn a_read_only_root_file_system_is_enough() {
    let Some(bed) = Bed::new() else { return };
    if find_program("unshare").is_none() {
        return skip("the program `unshare` is not installed");
    }
    let pod = bed.pod("web", "veth");
    let script = "mount --make-rprivate / && mount -o bind,remount,ro / && mount -t tmpfs tmpfs /run && mkdir /run/rolegate \
                  && ! touch /etc/x 2>/dev/null && exec \"$0\" \"$@\"";
    let setup =
        bed.setup_with_ip().argument("--token-key-file=/run/rolegate/token-keys").by_way_of(["unshare", "--mount", "sh", "-c", script]);
    let daemon = bed.start(&setup);
    bed.assert_served(&pod, METADATA);
    assert!(daemon.events("token-key-file-unavailable").is_empty(), "{}", daemon.log());
}
