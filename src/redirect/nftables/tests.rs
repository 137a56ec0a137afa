#![allow(clippy::unwrap_used, reason = "a test says loudly what failed")]

use super::chains::rules_of;
use super::*;
use crate::advice::Advise as _;
use crate::config::InterfaceMatch;
use crate::redirect::rules::{DirectConnections, Family, Hook, Match, Targets};

fn interface(name: &str, negated: bool) -> InterfaceMatch {
    InterfaceMatch { name: name.to_owned(), negated }
}

fn full(interfaces: &[(&str, bool)]) -> RuleSet {
    let targets = Targets {
        ipv4: "192.0.2.1:8181".parse().ok(),
        ipv6: Some("[2001:db8::1]:8181".parse().unwrap()),
        direct: DirectConnections::Dropped,
    };
    RuleSet {
        interfaces: interfaces.iter().map(|(name, negated)| interface(name, *negated)).collect(),
        targets: Some(targets),
        ..RuleSet::guard_alone()
    }
}

/// Returns the rules of a node on which BPF programs send pods' connections straight to the daemon.
fn kept() -> RuleSet {
    let rules = full(&[]);
    RuleSet { targets: rules.targets.map(|targets| Targets { direct: DirectConnections::Kept, ..targets }), ..rules }
}

/// Returns the rules of a node that serves Pod Identity at its default addresses.
fn with_pod_identity(rules: RuleSet) -> RuleSet {
    RuleSet { pod_identity: ["127.0.0.1:8182", "169.254.170.23:80", "[fd00:ec2::23]:80"].map(|text| text.parse().unwrap()).into(), ..rules }
}

fn without_comments(text: &str) -> String {
    text.lines().filter(|line| !line.starts_with('#')).map(|line| format!("{line}\n")).collect()
}

/// Returns the rules of the chain `redirection` for IPv4.
fn redirection(interfaces: &[(&str, bool)]) -> Vec<String> {
    let text = text::render(&full(interfaces));
    let rules = text.lines().map(str::trim).filter(|line| line.contains("ip daddr 169.254.169.254 tcp dport 80"));
    rules.map(|rule| rule.replace("ip daddr 169.254.169.254 tcp dport 80 ", "")).collect()
}

/// Returns what version 1.0.6 lists once the whole rule set is installed, with a counter and a comment as someone might add
/// them.
fn listed() -> String {
    let mut objects = vec![r#"{"metainfo": {"version": "1.0.6", "json_schema_version": 1}}"#.to_owned()];
    objects.push(r#"{"table": {"family": "inet", "name": "rolegate", "handle": 2}}"#.to_owned());
    for (name, kind, hook, prio) in [
        ("redirection", "nat", "prerouting", -110),
        ("guard", "filter", "forward", -10),
        ("direct", "filter", "input", -10),
        ("exit", "filter", "postrouting", 90),
        ("pin", "nat", "output", -110),
    ] {
        objects.push(format!(
            r#"{{"chain": {{"family": "inet", "table": "rolegate", "name": "{name}", "handle": 1, "type": "{kind}", "hook": "{hook}", "prio": {prio}, "policy": "accept"}}}}"#
        ));
    }
    let lo = r#"{"match": {"op": "==", "left": {"meta": {"key": "iifname"}}, "right": "lo"}}"#;
    let not_lo = lo.replace("==", "!=");
    let http = r#"{"match": {"op": "==", "left": {"payload": {"protocol": "tcp", "field": "dport"}}, "right": 80}}"#;
    let port = http.replace("80", "8181");
    let not_own = r#"{"match": {"op": "!=", "left": {"fib": {"result": "type", "flags": ["saddr"]}}, "right": "local"}}"#;
    let tcp = r#"{"match": {"op": "==", "left": {"meta": {"key": "l4proto"}}, "right": "tcp"}}"#;
    for (ip, address, target, icmp) in [("ip", "169.254.169.254", "192.0.2.1", "icmp"), ("ip6", "fd00:ec2::254", "2001:db8::1", "icmpv6")] {
        let to = format!(
            r#"{{"match": {{"op": "==", "left": {{"payload": {{"protocol": "{ip}", "field": "daddr"}}}}, "right": "{address}"}}}}"#
        );
        let opened =
            format!(r#"{{"match": {{"op": "!=", "left": {{"ct": {{"key": "{ip} daddr", "dir": "original"}}}}, "right": "{address}"}}}}"#);
        for (chain, expr) in [
            ("redirection", format!(r#"{lo}, {to}, {http}, {{"return": null}}"#)),
            ("redirection", format!(r#"{to}, {http}, {{"dnat": {{"family": "{ip}", "addr": "{target}", "port": 8181}}}}"#)),
            ("guard", format!(r#"{to}, {tcp}, {{"counter": {{"packets": 3, "bytes": 180}}}}, {{"reject": {{"type": "tcp reset"}}}}"#)),
            ("guard", format!(r#"{to}, {{"reject": {{"type": "{icmp}", "expr": "port-unreachable"}}}}"#)),
            ("direct", format!(r#"{not_lo}, {port}, {opened}, {{"drop": null}}"#)),
            ("exit", format!(r#"{to}, {not_own}, {{"drop": null}}"#)),
            ("pin", format!(r#"{to}, {tcp}, {{"dnat": {{"family": "{ip}", "addr": "{address}"}}}}"#)),
        ] {
            objects.push(format!(
                r#"{{"rule": {{"family": "inet", "table": "rolegate", "chain": "{chain}", "handle": 4, "comment": "x", "expr": [{expr}]}}}}"#
            ));
        }
    }
    format!(r#"{{"nftables": [{}]}}"#, objects.join(", "))
}

/// Returns the listing with one piece of text replaced.
fn changed(from: &str, to: &str) -> NftListing {
    let listed = listed();
    assert!(listed.contains(from), "{from}");
    NftListing::read(&listed.replacen(from, to, 1)).unwrap()
}

#[test]
fn the_shipped_files_match_the_rendered_rules() {
    assert_eq!(without_comments(include_str!("../../../iptables/rolegate.nft")), text::render(&full(&[])));
    assert_eq!(without_comments(include_str!("../../../iptables/rolegate-bpf.nft")), text::render(&kept()));
    let of_pod_identity = with_pod_identity(full(&[]));
    assert_eq!(without_comments(include_str!("../../../iptables/rolegate-pod-identity.nft")), text::render(&of_pod_identity));
    let guard_with_pod_identity = with_pod_identity(RuleSet::guard_alone());
    assert_eq!(without_comments(include_str!("../../../iptables/guard-pod-identity.nft")), text::render(&guard_with_pod_identity));
    assert_eq!(without_comments(include_str!("../../../iptables/guard.nft")), text::render(&RuleSet::guard_alone()));
}

/// Connections to the daemon are kept at the priority of the redirect, and those rules are no redirects.
#[test]
fn connections_to_the_daemon_are_kept() {
    let wanted = NftListing::of(&kept());
    assert_eq!(wanted.observed().targets, NftListing::of(&full(&[])).observed().targets);
    assert!(wanted.observed().is_guarded());
    let differences = NftListing::of(&full(&[])).differences(&wanted);
    assert_eq!(
        differences,
        [
            "the chain keep_incoming is missing",
            "the chain keep_outgoing is missing",
            "the table inet rolegate has an unexpected chain direct"
        ]
    );
    // Without the programs, there are no such chains.
    assert!(!text::render(&full(&[])).contains("keep_"));
}

#[test]
fn the_addresses_of_pod_identity_count_only_if_their_rules_are_whole() {
    for (rules, kept_by_daemon) in
        [(with_pod_identity(full(&[])), 0), (with_pod_identity(kept()), 2), (with_pod_identity(RuleSet::guard_alone()), 0)]
    {
        let observed = NftListing::of(&rules).observed();
        assert_eq!(observed.pod_identity, rules.pod_identity);
        assert!(observed.is_guarded_with(&rules.pod_identity) && !observed.is_guarded_with(&["192.0.2.9:80".parse().unwrap()].into()));
        assert_eq!(rules.kept_addresses().len(), 3 + kept_by_daemon);
        assert_eq!(NftListing::of(&RuleSet { pod_identity: Default::default(), ..rules }).observed().pod_identity, Default::default());
    }
    let whole = with_pod_identity(full(&[]));
    for chain in ["guard", "exit", "keep_incoming", "keep_outgoing"] {
        // Without the rules of this chain, and of a table that does nothing.
        let plain = NftListing::of(&RuleSet { pod_identity: Default::default(), ..whole.clone() });
        let found = NftListing::of(&whole).with_chain_of(chain, &plain);
        let remains = if chain.starts_with("keep") { 0 } else { 1 };
        assert_eq!(found.observed().pod_identity.len(), remains, "{chain}: only a loopback address needs no guard");
        assert!(found.observed().is_guarded(), "{chain}");
    }
}

#[test]
fn the_addresses_of_pod_identity_are_closed_to_interfaces_without_pods() {
    let direct = |interfaces: &[(&str, bool)]| -> Vec<String> {
        let text = text::render(&with_pod_identity(full(interfaces)));
        let lines = text.lines().map(str::trim).filter(|line| line.contains("ip daddr 169.254.170.23 tcp dport 80"));
        lines.filter(|line| line.contains("iifname")).map(|line| line.replace(" ip daddr 169.254.170.23 tcp dport 80", "")).collect()
    };
    assert_eq!(direct(&[]), [""; 0]);
    assert_eq!(
        direct(&[("cni0", false), ("eni+", false)]),
        ["iifname \"cni0\" return", "iifname \"eni*\" return", "iifname != \"lo\" drop"]
    );
    assert_eq!(direct(&[("eth0", true), ("ens+", true)]), ["iifname \"eth0\" drop", "iifname \"ens*\" drop"]);
}

#[test]
fn interface_names_follow_the_syntax_of_nft() {
    let dnat = "dnat ip to 192.0.2.1:8181";
    let lo = "iifname \"lo\" return".to_owned();
    assert_eq!(redirection(&[]), [lo.clone(), dnat.to_owned()]);
    let named = [("cni0", false), ("eni+", false), ("odd*", false), ("odd*+", false), ("a*b+c", false), ("$x;{#", false)];
    let patterns = ["cni0", "eni*", "odd\\*", "odd**", "a*b+c", "$x;{#"];
    let rules = patterns.map(|pattern| format!("iifname \"{pattern}\" {dnat}"));
    assert_eq!(redirection(&named), [std::slice::from_ref(&lo), &rules].concat());
    assert_eq!(
        redirection(&[("eth0", true), ("ens+", true)]),
        [lo, "iifname \"eth0\" return".to_owned(), "iifname \"ens*\" return".to_owned(), dnat.to_owned()]
    );
}

/// nft's language has no pattern for every interface.
#[test]
fn a_pattern_for_every_interface_renders_no_match() {
    let dnat = "dnat ip to 192.0.2.1:8181";
    assert_eq!(redirection(&[("+", false)]), ["iifname \"lo\" return", dnat]);
    assert_eq!(redirection(&[("+", true)]), ["iifname \"lo\" return", "return", dnat]);
}

#[test]
fn a_name_that_would_end_the_string_is_refused() {
    for name in ["a\"b", "a\\", "a b", "a\nb", "", "\u{e9}"] {
        let error = refuse_what_cannot_be_quoted(&full(&[(name, false)])).unwrap_err();
        assert!(matches!(error, RedirectError::InterfaceName { program: "nft", .. }), "{error}");
    }
    refuse_what_cannot_be_quoted(&full(&[("veth+", true), ("$x;{}#", false)])).unwrap();
}

/// An address tells which family's packets a rule matches.
#[test]
fn every_rule_has_an_address() {
    for rule in Hook::ALL.into_iter().flat_map(|hook| {
        let of_pod_identity = with_pod_identity(full(&[("eth0", true), ("cni0", false)]));
        [rules_of(&of_pod_identity, hook), rules_of(&kept(), hook)].concat()
    }) {
        assert!(rule.matches.iter().any(|one| matches!(one, Match::To(_) | Match::NotOpenedTo(_))), "{rule:?}");
    }
}

#[test]
fn the_listing_equals_the_wanted_rules() {
    let found = NftListing::read(&listed()).unwrap();
    assert_eq!(found, NftListing::of(&full(&[])));
    assert_eq!(found.differences(&NftListing::of(&full(&[]))), [""; 0]);
    assert_eq!(
        found.to_string(),
        "the table inet rolegate with the chains direct (2 rules), exit (2 rules), guard (4 rules), pin (2 rules), redirection (4 rules)"
    );
}

/// Some versions list a single flag without a list around it.
#[test]
fn a_flag_without_a_list_is_the_same() {
    let found = changed(r#""flags": ["saddr"]"#, r#""flags": "saddr""#);
    assert_eq!(found, NftListing::of(&full(&[])));
}

#[test]
fn an_exit_and_a_pin_count_only_if_they_are_whole() {
    let of = |from: &str, to: &str| {
        let observed = changed(from, to).observed();
        (observed.exits.len(), observed.pins.len(), observed.guards.len(), observed.is_guarded())
    };
    assert_eq!(of(r#""handle": 2"#, r#""handle": 3"#), (2, 2, 2, true), "a number of no meaning");
    assert_eq!(of(r#""prio": 90"#, r#""prio": 300"#), (0, 2, 2, false));
    // After source NAT, and before another program's redirect.
    assert_eq!(
        of(
            r#""name": "pin", "handle": 1, "type": "nat", "hook": "output", "prio": -110"#,
            r#""name": "pin", "type": "nat", "hook": "output", "prio": -90"#
        ),
        (2, 0, 2, false)
    );
    assert_eq!(of(r#""right": "local""#, r#""right": "unicast""#), (0, 2, 2, false), "another rule could be an accept");
    assert_eq!(of(r#"{"dnat": {"family": "ip", "addr": "169.254.169.254"}}"#, r#"{"dnat": {"family": "ip", "addr": "10.0.0.9"}}"#).1, 0);
    assert_eq!(changed("192.0.2.1", "192.0.2.9").observed().pins.len(), 2);
}

#[test]
fn an_invalid_listing_is_an_error() {
    for json in
        ["", "{}", "[]", r#"{"nftables": [{"rule": {"chain": "guard"}}]}"#, r#"{"nftables": [{"rule": {"chain": "guard", "expr": []}}]}"#]
    {
        assert!(NftListing::read(json).is_err(), "{json}");
    }
}

#[test]
fn differences_are_described() {
    let wanted = NftListing::of(&full(&[]));
    let said = |from: &str, to: &str| changed(from, to).differences(&wanted).join("\n");
    assert_eq!(said(r#""handle": 2"#, r#""handle": 2, "flags": "dormant""#).lines().count(), 1);
    assert!(said(r#""prio": -10,"#, r#""prio": 300,"#).starts_with("the chain guard has the hook 'type filter hook forward priority 300"));
    assert!(said(r#""policy": "accept""#, r#""policy": "drop""#).contains("the chain redirection has the hook '"));
    assert_eq!(
        said("192.0.2.1", "192.0.2.9"),
        "the chain redirection has an unexpected rule: ip daddr 169.254.169.254 tcp dport 80 dnat ip to 192.0.2.9:8181\n\
         the chain redirection lacks the rule: ip daddr 169.254.169.254 tcp dport 80 dnat ip to 192.0.2.1:8181"
    );
    assert_eq!(
        said(r#"{"reject": {"type": "tcp reset"}}"#, r#"{"accept": null}"#),
        "the chain guard has an unexpected rule: ip daddr 169.254.169.254 meta l4proto tcp accept\n\
         the chain guard lacks the rule: ip daddr 169.254.169.254 meta l4proto tcp reject with tcp reset"
    );
    let alone = NftListing::of(&RuleSet::guard_alone());
    assert_eq!(alone.differences(&wanted), ["the chain direct is missing", "the chain redirection is missing"]);
    assert_eq!(wanted.differences(&alone)[0], "the table inet rolegate has an unexpected chain direct");
    let nothing = NftListing::read(r#"{"nftables": [{"chain": {"name": "guard"}}, {"set": {"name": "s"}}]}"#).unwrap();
    let said = nothing.differences(&alone);
    assert_eq!((said[0].as_str(), said.iter().filter(|said| said.ends_with(" is missing")).count()), ("the chain exit is missing", 2));
    assert_eq!(
        said[1..3],
        [
            "the chain guard has the hook 'none' instead of 'type filter hook forward priority -10 policy accept'",
            "the chain guard has 0 rules of 4"
        ]
    );
    assert_eq!(nothing.differences(&alone).last().unwrap(), "the table inet rolegate has an unexpected set s");
}

#[test]
fn the_order_of_rules_counts() {
    let listed = listed();
    // The two IPv4 rules of the guard swap places.
    let (first, second) = (listed.find("tcp reset").unwrap(), listed.find(r#""expr": "port-unreachable""#).unwrap());
    let object = |at: usize| {
        let start = listed[..at].rfind(r#"{"rule""#).unwrap();
        (start, start + listed[start..].find("]}}").unwrap() + 3)
    };
    let ((a, b), (c, d)) = (object(first), object(second));
    let swapped = format!("{}{}{}{}{}", &listed[..a], &listed[c..d], &listed[b..c], &listed[a..b], &listed[d..]);
    let found = NftListing::read(&swapped).unwrap();
    assert_eq!(found.differences(&NftListing::of(&full(&[]))), ["the rules of the chain guard are in the wrong order"]);
    assert!(!found.is_another_wording_of(&NftListing::of(&full(&[]))));
}

#[test]
fn the_wording_of_another_version_may_be_remembered() {
    let wanted = NftListing::of(&full(&[]));
    let tcp = r#"{"match": {"op": "==", "left": {"meta": {"key": "l4proto"}}, "right": "tcp"}}, "#;
    let ipv4 = r#"{"match": {"op": "==", "left": {"meta": {"key": "nfproto"}}, "right": "ipv4"}}, "#;
    for (from, to) in [
        (tcp, ""),
        (tcp, &tcp.replace("\"tcp\"", "6")),
        (r#"{"key": "ip daddr", "dir": "original"}"#, r#"{"key": "daddr", "family": "ip", "dir": "original"}"#),
        (r#"[{"match": {"op": "!=", "#, &format!(r#"[{ipv4}{{"match": {{"op": "!=", "#)),
    ] {
        let found = changed(from, to);
        assert!(found != wanted && found.is_another_wording_of(&wanted), "{from} → {to}");
    }
}

#[test]
fn an_incomplete_listing_is_never_remembered() {
    let wanted = NftListing::of(&full(&[]));
    let established = r#"{"match": {"op": "in", "left": {"ct": {"key": "state"}}, "right": "new"}}, "#;
    for (from, to) in [
        (r#""handle": 2"#, r#""handle": 2, "flags": "dormant""#),
        (r#""prio": -10,"#, r#""prio": 300,"#),
        (r#""right": "lo""#, r#""right": "lo*""#),
        (r#""right": "lo""#, r#""right": "eth0""#),
        (r#""op": "!=""#, r#""op": "==""#),
        ("192.0.2.1", "192.0.2.9"),
        (r#""right": 80"#, r#""right": 81"#),
        (r#"{"reject": {"type": "tcp reset"}}"#, r#"{"accept": null}"#),
        (r#"{"drop": null}"#, r#"{"accept": null}"#),
        (r#"{"reject": {"type": "tcp reset"}}"#, &format!(r#"{established}{{"reject": {{"type": "tcp reset"}}}}"#)),
        (r#""right": "tcp""#, r#""right": "udp""#),
    ] {
        let found = changed(from, to);
        assert!(found != wanted && !found.is_another_wording_of(&wanted), "{from} → {to}");
    }
    assert!(!NftListing::of(&RuleSet::guard_alone()).is_another_wording_of(&wanted));
    assert!(!wanted.is_another_wording_of(&NftListing::of(&RuleSet::guard_alone())));
    assert!(!NftListing::default().is_another_wording_of(&wanted));
    assert!(!NftListing::of(&full(&[("eth0", true)])).is_another_wording_of(&wanted));
}

#[test]
fn an_unsupported_kernel_differs_from_a_missing_permission() {
    let refused = |message: &str| of_the_kernel(RedirectError::Failed { program: NFT, message: message.to_owned() });
    for message in ["Error: Could not process rule: Operation not supported", "Error: Could not process rule: No such file or directory"] {
        let error = refused(message);
        assert!(
            matches!(error, RedirectError::Kernel { .. }) && error.advice().is_some_and(|advice| advice.contains("--redirect=iptables")),
            "{error}"
        );
    }
    assert!(matches!(refused("Operation not permitted (you must be root)"), RedirectError::Failed { .. }));
}

#[test]
fn nat_chains_ahead_of_ours_are_named() {
    let chain = |table: &str, kind: &str, hook: &str, prio: i32| {
        format!(r#"{{"chain": {{"family": "inet", "table": "{table}", "name": "c", "type": "{kind}", "hook": "{hook}", "prio": {prio}}}}}"#)
    };
    let chains = [
        chain("ahead", "nat", "prerouting", -111),
        chain("iptables", "nat", "prerouting", -100),
        chain("marks", "filter", "prerouting", -300),
        chain("leaving", "nat", "output", -300),
        chain(TABLE, "nat", "prerouting", -300),
    ];
    let json = format!(r#"{{"nftables": [{{"metainfo": {{}}}}, {}]}}"#, chains.join(", "));
    let [said, own] = &listing::nat_ahead_of(&json, OUR_NAT)[..] else { panic!("not exactly two") };
    assert!(["chain c ", "table inet ahead ", " -111", " -110", "pods' requests"].iter().all(|part| said.contains(part)), "{said}");
    assert!(["table inet leaving ", " -300", "the node's own requests"].iter().all(|part| own.contains(part)), "{own}");
    assert_eq!(listing::nat_ahead_of("", OUR_NAT), [""; 0]);
}

#[test]
fn only_a_chain_that_rejects_every_packet_is_a_guard() {
    let guards = |found: &NftListing| found.observed().guards.into_iter().collect::<Vec<_>>();
    assert_eq!(guards(&NftListing::read(&listed()).unwrap()), Family::ALL);
    let tcp = r#"{"match": {"op": "==", "left": {"meta": {"key": "l4proto"}}, "right": "tcp"}}, "#;
    let plain = r#"{"reject": {"type": "icmp", "expr": "port-unreachable"}}"#;
    let to = r#"{"match": {"op": "==", "left": {"payload": {"protocol": "ip", "field": "daddr"}}, "right": "169.254.169.254"}}, "#;
    let both = format!("{to}{plain}");
    for (case, from, into) in [
        ("to somewhere else", both.clone(), both.replace("daddr", "saddr")),
        ("TCP alone", both.clone(), format!("{to}{tcp}{plain}")),
        ("another operator", both.clone(), both.replace("==", "!=")),
        ("a port", both.clone(), both.replace("daddr", "dport")),
    ] {
        assert_eq!(guards(&changed(&from, &into)), [], "{case}: the guard's chain has another rule");
    }
    // Any other rule in the chain could be an accept.
    assert_eq!(guards(&changed(plain, r#"{"accept": null}"#)), []);
    // Some versions omit this match.
    assert_eq!(guards(&changed(tcp, "")), Family::ALL);
    let ipv4 = r#"{"match": {"op": "==", "left": {"meta": {"key": "nfproto"}}, "right": "ipv4"}}, "#;
    assert_eq!(guards(&changed(&both, &format!("{ipv4}{both}"))), Family::ALL);
    assert_eq!(guards(&changed(&both, &format!("{}{both}", ipv4.replace("ipv4", "ipv6")))), []);
}
