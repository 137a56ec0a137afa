//! A node with more Services than the daemon can search for redirects in bounded memory.

use std::process::Command;

use nix::sys::resource::{UsageWho, getrusage};
use rolegate::redirect::Backend as _;
use rolegate::redirect::foreign::{self, ForeignRedirects, Precedence};
use rolegate::redirect::iptables::Iptables;
use rolegate::redirect::iptables::program::Flavour;
use rolegate::redirect::legacy_rules;
use rolegate::redirect::rules::RuleSet;
use rolegate_lab::node::{Node, available_or_skip, programs_or_skip};

/// Set in the process that searches, whose memory is that of the search alone.
const ALONE: &str = "ROLEGATE_TEST_ALONE";
const SERVICES: usize = 10_000;
/// The most that a search may use, in KiB, of the daemon and of each program that it runs.
const MOST: i64 = 65 << 10;

/// What kube-proxy's mode `nftables` makes of Services, but with the endpoints in the chain of the Service: the kernel checks each jump
/// between chains, which takes a minute for 10,000 Services.
fn kube_proxy(services: usize) -> String {
    let mut text = "table ip kube-proxy {\n".to_owned();
    for number in 0..services {
        text += &format!(" chain service-{number} {{ ip saddr != 10.0.0.0/8 meta mark set meta mark or 0x4000\n");
        for endpoint in ["10.1.2.3", "10.1.2.4", "10.1.2.5"] {
            text += &format!(" meta l4proto tcp numgen random mod 3 0 dnat to {endpoint}:8080\n");
        }
        text += " }\n";
    }
    text += " map service-ips { type ipv4_addr . inet_proto . inet_service : verdict\n elements = {\n";
    for number in 0..services {
        text += &format!("10.96.{}.{} . tcp . 80 : goto service-{number},\n", number / 256, number % 256);
    }
    let services = "ip daddr . meta l4proto . th dport vmap @service-ips";
    text + &format!(
        "}}\n }}\n chain services {{ {services}\n }}\n chain nat-output {{ type nat hook output priority -100; jump services\n }}\n}}\n"
    )
}

/// What kube-proxy's mode `iptables` makes of Services with one endpoint each.
fn of_iptables(services: usize) -> String {
    let mut text = "*nat\n:KUBE-SERVICES - [0:0]\n".to_owned();
    for number in 0..services {
        text += &format!(":KUBE-SVC-{number} - [0:0]\n:KUBE-SEP-{number} - [0:0]\n");
    }
    text += "-A OUTPUT -m comment --comment \"kubernetes service portals\" -j KUBE-SERVICES\n";
    for number in 0..services {
        let (to, comment) =
            (format!("10.96.{}.{}/32", number / 256, number % 256), format!("-m comment --comment \"ns/service-{number}:http\""));
        text += &format!("-A KUBE-SERVICES -d {to} -p tcp {comment} -m tcp --dport 80 -j KUBE-SVC-{number}\n");
        text += &format!("-A KUBE-SVC-{number} {comment} -j KUBE-SEP-{number}\n");
        text += &format!("-A KUBE-SEP-{number} -s 10.1.2.3/32 {comment} -j RETURN\n");
        text += &format!("-A KUBE-SEP-{number} -p tcp {comment} -m tcp -j DNAT --to-destination 10.1.2.3:8080\n");
    }
    text + "COMMIT\n"
}

fn block_on<T>(work: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(work)
}

fn search() -> ForeignRedirects {
    block_on(foreign::find(&RuleSet::guard_alone(), Precedence::Nftables))
}

/// Searches in a process of its own inside the namespace, which runs the rest of the same test.
fn search_alone(node: &Node, test: &str) {
    let name = format!("many_services::{test}");
    let output = node.ns().run(move || Command::new(std::env::current_exe().unwrap()).args([&name, "--exact"]).env(ALONE, "1").output());
    let output = output.unwrap().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && said.contains("1 passed"), "{said}");
}

/// The kernel counts what a process had before it executed another program for the process itself, but not in its present memory.
#[track_caller]
fn assert_bounded_memory(most: i64) {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let own = status.lines().find_map(|line| line.strip_prefix("VmHWM:")?.split_whitespace().next()?.parse::<i64>().ok()).unwrap();
    let of_programs = getrusage(UsageWho::RUSAGE_CHILDREN).unwrap().max_rss();
    assert!(own < most && of_programs < most, "{own} KiB, and {of_programs} KiB of the programs");
}

fn node() -> Option<Node> {
    if !available_or_skip() || !programs_or_skip(&["nft", "iptables-nft", "iptables-nft-save", "iptables-nft-restore"]) {
        return None;
    }
    Some(Node::with_imds().unwrap())
}

fn load(node: &Node, program: &str, rules: &str) {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), rules).unwrap();
    node.ns().sh(&format!("{program} {}", file.path().display())).unwrap();
}

#[test]
fn too_many_services_of_nftables_are_an_explicit_unknown() {
    if std::env::var_os(ALONE).is_some() {
        let found = search();
        assert_eq!(found.count(), 0, "{found:?}");
        let [unsearched] = &found.unsearched[..] else { panic!("not exactly one: {found:?}") };
        assert!(unsearched.what.starts_with("nft, ") && unsearched.reason == "too-large", "{unsearched:?}");
        return assert_bounded_memory(MOST);
    }
    let Some(node) = node() else { return };
    load(&node, "nft -f", &kube_proxy(SERVICES));
    search_alone(&node, "too_many_services_of_nftables_are_an_explicit_unknown");
}

#[test]
fn too_many_services_of_iptables_are_an_explicit_unknown() {
    if std::env::var_os(ALONE).is_some() {
        let found = search();
        assert_eq!(found.count(), 0, "{found:?}");
        let reasons: Vec<_> = found.unsearched.iter().map(|one| (one.what.as_str(), one.reason)).collect();
        assert!(reasons.contains(&("iptables-nft-save, table nat", "too-large")), "{found:?}");
        return assert_bounded_memory(MOST);
    }
    let Some(node) = node() else { return };
    load(&node, "iptables-nft-restore --noflush", &of_iptables(16_000));
    search_alone(&node, "too_many_services_of_iptables_are_an_explicit_unknown");
}

/// The daemon does this once its own rules are in nftables.
#[test]
fn the_rules_of_others_are_not_read_to_remove_none_of_ours() {
    if std::env::var_os(ALONE).is_some() {
        let removed = block_on(Iptables::default().with_flavour(Flavour::Nft).remove()).unwrap();
        let left = block_on(legacy_rules::find()).unwrap();
        assert_eq!((removed, left), (vec![], vec![]));
        return assert_bounded_memory(24 << 10);
    }
    let Some(node) = node() else { return };
    load(&node, "iptables-nft-restore --noflush", &of_iptables(6_000));
    search_alone(&node, "the_rules_of_others_are_not_read_to_remove_none_of_ours");
}

/// What a large cluster has is searched all the same.
#[test]
fn a_redirect_among_a_thousand_services_is_found() {
    if std::env::var_os(ALONE).is_some() {
        let found = search();
        assert_eq!((found.own_requests.len(), &found.unsearched[..]), (2, &[][..]), "{found:?}");
        return assert_bounded_memory(MOST);
    }
    let Some(node) = node() else { return };
    load(&node, "nft -f", &kube_proxy(1_000).replace("10.96.3.7 .", "169.254.169.254 ."));
    load(&node, "iptables-nft-restore --noflush", &of_iptables(4_000).replace("10.96.3.7/32", "169.254.169.254/32"));
    search_alone(&node, "a_redirect_among_a_thousand_services_is_found");
}
