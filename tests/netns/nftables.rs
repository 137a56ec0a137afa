//! Tests of the rules through `nft`: which changes by others are noticed, and what a repair leaves.

use std::net::{SocketAddrV4, SocketAddrV6};
use std::time::Duration;

use rolegate::config::InterfaceMatch;
use rolegate::redirect::changes::Changes;
use rolegate::redirect::nftables::Nftables;
use rolegate::redirect::observed::ObservedRules;
use rolegate::redirect::rules::{DirectConnections, RuleSet, Targets};
use rolegate::redirect::{Backend as _, RedirectError};
use rolegate_lab::node::{NODE_IP, NODE_IP6, Netns, Node, available_or_skip, programs_or_skip};
use tokio::time::timeout;

use crate::bed::PATIENCE;
use crate::redirects::with_pod_identity;

mod packets;

/// The app port.
const PORT: u16 = 8181;
const PROGRAMS: [&str; 6] = ["nft", "conntrack", "iptables-nft", "iptables-legacy", "ip6tables-nft", "ip6tables-legacy"];
/// The difference that is reported for a guard that was emptied.
const FLUSHED: &str = "the chain guard has 0 rules of 4";

/// Creates a node with a metadata service behind it, whose sockets the tests create.
fn node() -> Option<Node> {
    if !available_or_skip() || !programs_or_skip(&PROGRAMS) {
        return None;
    }
    Some(Node::with_imds().unwrap())
}

fn interface(name: &str, negated: bool) -> InterfaceMatch {
    InterfaceMatch { name: name.to_owned(), negated }
}

/// Returns the whole rule set, with both addresses of the node.
fn whole() -> RuleSet {
    let (ipv4, ipv6) = (Some(SocketAddrV4::new(NODE_IP, PORT)), SocketAddrV6::new(NODE_IP6, PORT, 0, 0));
    let targets = Targets { ipv4, ipv6: Some(ipv6), direct: DirectConnections::Dropped };
    RuleSet { targets: Some(targets), ..RuleSet::guard_alone() }
}

/// Returns the rules for these interfaces.
fn only(interfaces: &[(&str, bool)]) -> RuleSet {
    RuleSet { interfaces: interfaces.iter().map(|(name, negated)| interface(name, *negated)).collect(), ..whole() }
}

/// Runs a future inside the namespace, with the programs that it starts and the sockets that it creates.
fn inside<T: Send + 'static, F: Future<Output = T>>(ns: &Netns, make: impl FnOnce() -> F + Send + 'static) -> T {
    ns.run(move || tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(make())).unwrap()
}

fn install(node: &Node, rules: &RuleSet) {
    let rules = rules.clone();
    inside(node.ns(), move || async move { Nftables::default().install(&rules).await }).unwrap();
}

/// Returns the differences that a new process finds.
fn differences(node: &Node, rules: &RuleSet) -> Vec<String> {
    let rules = rules.clone();
    inside(node.ns(), move || async move { Nftables::default().differences(&rules).await }).unwrap()
}

fn observed(node: &Node) -> ObservedRules {
    inside(node.ns(), move || async move { Nftables::default().observed().await }).unwrap()
}

fn nft(node: &Node, commands: &str) {
    node.ns().sh(&format!("nft -f - <<'END'\n{commands}\nEND")).unwrap();
}

#[test]
fn the_shipped_files_load_twice_and_match_the_daemon() {
    let Some(node) = node() else { return };
    let serving = |direct| {
        let targets = Targets { ipv4: "192.0.2.1:8181".parse().ok(), ipv6: "[2001:db8::1]:8181".parse().ok(), direct };
        RuleSet { targets: Some(targets), ..RuleSet::guard_alone() }
    };
    for (file, rules) in [
        ("guard.nft", RuleSet::guard_alone()),
        ("rolegate.nft", serving(DirectConnections::Dropped)),
        ("rolegate-bpf.nft", serving(DirectConnections::Kept)),
        ("guard-pod-identity.nft", with_pod_identity(RuleSet::guard_alone())),
        ("rolegate-pod-identity.nft", with_pod_identity(serving(DirectConnections::Dropped))),
    ] {
        let path = format!("{}/iptables/{file}", env!("CARGO_MANIFEST_DIR"));
        let listed = [0; 2].map(|_| node.ns().sh(&format!("nft -f '{path}' && nft list ruleset")).unwrap());
        assert_eq!(listed[0], listed[1], "{file}");
        assert!(listed[0].contains("chain guard"), "{file}");
        assert_eq!(differences(&node, &rules), [""; 0], "{file}");
    }
}

#[test]
fn nothing_differs_after_an_install() {
    let Some(node) = node() else { return };
    let ipv4_alone = || {
        let rules = whole();
        RuleSet { targets: rules.targets.map(|targets| Targets { ipv6: None, ..targets }), ..rules }
    };
    let with_direct = |direct| {
        let rules = whole();
        RuleSet { targets: rules.targets.map(|targets| Targets { direct, ..targets }), ..rules }
    };
    let all = [
        RuleSet::guard_alone(),
        whole(),
        ipv4_alone(),
        with_direct(DirectConnections::Accepted),
        with_direct(DirectConnections::Kept),
        with_pod_identity(RuleSet::guard_alone()),
        with_pod_identity(with_direct(DirectConnections::Kept)),
        with_pod_identity(only(&[("cni0", false), ("eni+", false)])),
        with_pod_identity(only(&[("eth0", true), ("+", true)])),
        only(&[("cni0", false), ("eni+", false)]),
        only(&[("eth0", true), ("ens+", true)]),
        only(&[("a+", false), ("b", true), ("+", false)]),
        only(&[("+", true)]),
        only(&[("odd*", false), ("odd*+", false), ("a*b+c", false), ("$x;{}#@", false), ("exactly15chars+", false)]),
        RuleSet::guard_alone(),
    ];
    for (number, rules) in all.iter().enumerate() {
        install(&node, rules);
        assert_eq!(differences(&node, rules), [""; 0], "{rules:?}");
        install(&node, rules);
        assert_eq!(differences(&node, rules), [""; 0], "{rules:?}");
        assert!(observed(&node).is_guarded_with(&rules.pod_identity), "{rules:?}");
        // Each rule set differs from the previous one.
        if let Some(before) = number.checked_sub(1).map(|before| &all[before]) {
            assert_ne!(differences(&node, before), [""; 0], "{rules:?}");
        }
    }
}

#[test]
fn changes_by_others_are_reported_and_repaired() {
    let Some(node) = node() else { return };
    let changes = [
        ("delete table inet rolegate", "the table inet rolegate is missing"),
        ("flush ruleset", "the table inet rolegate is missing"),
        ("flush table inet rolegate", FLUSHED),
        ("flush chain inet rolegate guard", FLUSHED),
        ("flush chain inet rolegate direct\ndelete chain inet rolegate direct", "the chain direct is missing"),
        ("insert rule inet rolegate guard accept", "the chain guard has an unexpected rule: accept"),
        ("insert rule inet rolegate guard ct state established accept", "the chain guard has 5 rules instead of 4"),
        ("add rule inet rolegate redirection counter drop", "the chain redirection has an unexpected rule: drop"),
        ("add chain inet rolegate guard { policy drop; }", "the chain guard has the hook '"),
        ("add chain inet rolegate another", "the table inet rolegate has an unexpected chain another"),
        ("add set inet rolegate some { type ipv4_addr; }", "the table inet rolegate has an unexpected set some"),
        ("add table inet rolegate { flags dormant; }", "the table inet rolegate has a flag"),
    ];
    for (change, said) in changes {
        install(&node, &whole());
        nft(&node, change);
        let found = differences(&node, &whole());
        assert!(found.iter().any(|difference| difference.starts_with(said)), "{change}: {found:?}");
        install(&node, &whole());
        assert_eq!(differences(&node, &whole()), [""; 0], "{change}");
    }
    // Deletes one rule of each chain by its handle.
    for chain in ["redirection", "guard", "direct", "exit", "pin"] {
        let delete =
            format!("nft delete rule inet rolegate {chain} handle $(nft -a list chain inet rolegate {chain} | sed -n '4s/.*# handle //p')");
        node.ns().sh(&delete).unwrap();
        let [counted, missing] = &differences(&node, &whole())[..] else { panic!("{chain}") };
        assert!(counted.starts_with(&format!("the chain {chain} has ")) && missing.contains("lacks the rule"), "{counted}; {missing}");
        install(&node, &whole());
    }
    // Another target.
    let mut other = whole();
    other.targets = other.targets.map(|targets| Targets { ipv4: Some(SocketAddrV4::new(NODE_IP, 1)), ..targets });
    install(&node, &other);
    assert!(differences(&node, &whole()).iter().any(|said| said.ends_with("dnat ip to 10.42.0.1:1")));
    // The process that installed the rules notices it as well.
    inside(node.ns(), || async {
        let (backend, rules) = (Nftables::default(), whole());
        backend.install(&rules).await.unwrap();
        assert_eq!(backend.differences(&rules).await.unwrap(), [""; 0]);
        assert!(std::process::Command::new("nft").args(["flush", "chain", "inet", "rolegate", "guard"]).status().unwrap().success());
        assert_eq!(backend.differences(&rules).await.unwrap()[0], FLUSHED);
    });
}

#[test]
fn only_our_table_is_removed() {
    let Some(node) = node() else { return };
    nft(&node, "add table inet others\nadd chain inet others guard { type filter hook forward priority 5; }");
    node.ns().sh("iptables-nft -A FORWARD -d 10.9.9.9 -j DROP").unwrap();
    let before = node.ns().sh("nft list ruleset").unwrap();
    install(&node, &whole());
    let remove = || inside(node.ns(), || async { Nftables::default().remove().await }).unwrap();
    assert_eq!(
        remove(),
        ["the table inet rolegate with the chains direct (2 rules), exit (2 rules), guard (4 rules), pin (2 rules), redirection (4 rules)"]
    );
    assert_eq!(remove(), [""; 0]);
    assert_eq!(node.ns().sh("nft list ruleset").unwrap(), before);
}

/// The text after the quote would be a rule of its own, and the rest a comment.
#[test]
fn a_name_that_would_end_the_string_changes_nothing() {
    let Some(node) = node() else { return };
    install(&node, &whole());
    let result = inside(node.ns(), || async { Nftables::default().install(&only(&[("x\" accept #", false)])).await });
    assert!(matches!(result, Err(RedirectError::InterfaceName { .. })), "{result:?}");
    assert_eq!(differences(&node, &whole()), [""; 0]);
}

/// A name of 15 characters that ends in a star is too long for the program once it has a backslash.
#[test]
fn rejected_rules_change_nothing() {
    let Some(node) = node() else { return };
    install(&node, &whole());
    let result = inside(node.ns(), || async { Nftables::default().install(&only(&[("fourteen-chars*", false)])).await });
    assert!(matches!(result, Err(RedirectError::Failed { .. })), "{result:?}");
    assert_eq!(differences(&node, &whole()), [""; 0]);
}

#[test]
fn changes_by_every_program_are_reported() {
    let Some(node) = node() else { return };
    inside(node.ns(), || async {
        let mut changes = Changes::open().unwrap();
        let sh = |script: &str| assert!(std::process::Command::new("sh").args(["-ec", script]).status().unwrap().success(), "{script}");
        sh("iptables-nft -t nat -N NOTHING");
        timeout(PATIENCE, changes.changed()).await.unwrap().unwrap();
        for script in [
            "nft add table inet others",
            "nft delete table inet others",
            "iptables-nft -t nat -I PREROUTING 1 -j NOTHING",
            "ip6tables-nft -I FORWARD 1 -j ACCEPT",
            "nft flush ruleset",
        ] {
            // No notification of the previous change is left, and listing is not a change.
            sh("nft list ruleset >/dev/null");
            assert!(timeout(Duration::from_millis(20), changes.changed()).await.is_err(), "before {script}");
            sh(script);
            timeout(PATIENCE, changes.changed()).await.expect(script).unwrap();
        }
        // Our own change is reported, too.
        Nftables::default().install(&whole()).await.unwrap();
        timeout(PATIENCE, changes.changed()).await.unwrap().unwrap();
    });
}

#[test]
fn more_changes_than_the_buffer_holds_are_a_change() {
    let Some(node) = node() else { return };
    inside(node.ns(), || async {
        let mut changes = Changes::open().unwrap();
        let rules = "add rule ip others chain0 ip daddr 10.9.9.9 counter drop\n".repeat(20_000);
        let text = format!("add table ip others\nadd chain ip others chain0\n{rules}");
        rolegate::redirect::program::run("nft", &["-f", "-"], &text).await.unwrap();
        timeout(PATIENCE, changes.changed()).await.unwrap().unwrap();
        // The stream of notifications ends, and later changes are reported.
        while timeout(Duration::from_millis(20), changes.changed()).await.is_ok() {}
        rolegate::redirect::program::run("nft", &["delete", "table", "ip", "others"], "").await.unwrap();
        timeout(PATIENCE, changes.changed()).await.unwrap().unwrap();
    });
}
