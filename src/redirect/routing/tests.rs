#![allow(clippy::unwrap_used, reason = "a test says loudly what failed")]

use super::*;

const ORDERS: [[Part; 3]; 6] = {
    use Part::{Others as P, Own as G, OwnWithoutTarget as M};
    [[G, M, P], [G, P, M], [M, G, P], [M, P, G], [P, G, M], [P, M, G]]
};

fn local() -> PolicyRule {
    PolicyRule {
        preference: 0,
        to: None,
        arrived_on: None,
        action: RuleAction::Table(TABLE_LOCAL),
        protocol: Some(2),
        has_other_selectors: false,
    }
}

fn foreign(preference: u32, action: RuleAction) -> PolicyRule {
    PolicyRule { preference, action, ..local() }
}

fn listed(family: Family, rules: &[PolicyRule]) -> RoutingRules {
    let listed = rules.iter().map(|rule| ListedRule::for_test(rule.clone(), family.metadata())).collect();
    RoutingRules { family, listed }
}

/// Does what the kernel does: it adds a rule after those of its preference, and deletes the first that is alike.
fn apply(rules: &RoutingRules, change: &Change) -> RoutingRules {
    let mut rules = rules.clone();
    match change {
        Change::Add { rule, is_new } => {
            assert!(!is_new || rules.listed.iter().all(|listed| listed.rule != *rule), "there is such a rule: {rule:?}");
            let at = rules.listed.iter().position(|listed| listed.rule.preference > rule.preference).unwrap_or(rules.listed.len());
            rules.listed.insert(at, ListedRule::for_test(rule.clone(), rules.family.metadata()));
        }
        Change::Delete(gone) => {
            let at = rules.listed.iter().position(|listed| listed.rule == gone.rule).expect("a rule to delete");
            rules.listed.remove(at);
        }
    }
    rules
}

/// Whether the node's own packets get past the lock.
fn lets_own_pass(rules: &RoutingRules) -> bool {
    let is = |part: Part, listed: &ListedRule| part.is(rules.family, &listed.rule);
    let has_target = rules.listed.iter().any(|listed| is(Part::Target, listed));
    rules
        .listed
        .iter()
        .find_map(|listed| match () {
            () if is(Part::Own, listed) && has_target => Some(true),
            () if is(Part::OwnWithoutTarget, listed) => Some(true),
            () if is(Part::Others, listed) => Some(false),
            () => None,
        })
        .unwrap_or(true)
}

#[test]
fn every_mixture_is_repaired_without_an_opening() {
    for family in Family::ALL {
        for order in ORDERS {
            // Each of the four rules is there or not, and each of the ordered ones once or twice.
            for present in 0..64_u8 {
                let mut rules = vec![local()];
                for _ in 0..1 + present / 32 {
                    let there = order.iter().enumerate().filter(|(number, _)| present >> number & 1 == 1);
                    rules.extend(there.map(|(_, part)| part.rule(family)));
                }
                if present >> 3 & 1 == 1 {
                    rules.push(Part::Target.rule(family));
                }
                rules.push(foreign(100, RuleAction::Table(TABLE_MAIN)));
                let mut rules = listed(family, &rules);
                let mut rounds = 0;
                while !rules.differences().is_empty() {
                    rounds += 1;
                    assert!(rounds < 3, "{rules:?}");
                    for change in rules.repair() {
                        let (was_closed, passed) = (rules.is_closed(), lets_own_pass(&rules));
                        rules = apply(&rules, &change);
                        assert!(rules.is_closed() || !was_closed, "{change:?} opens {rules:?}");
                        assert!(lets_own_pass(&rules) || !passed, "{change:?} keeps the node's own packets out: {rules:?}");
                    }
                }
                assert!(rules.is_closed() && lets_own_pass(&rules), "{order:?} {present}: {rules:?}");
                assert_eq!(rules.repair(), []);
            }
        }
    }
}

#[test]
fn the_removal_leaves_exactly_the_rules_of_others() {
    for family in Family::ALL {
        let others = [local(), PolicyRule { protocol: Some(3), ..Part::Others.rule(family) }, foreign(100, RuleAction::Table(7))];
        let stale = PolicyRule { preference: 50, ..Part::Others.rule(family) };
        let ours: Vec<_> = Part::ALL.iter().map(|part| part.rule(family)).chain([stale]).collect();
        let mut rules: Vec<_> = others.iter().cloned().chain(ours).collect();
        rules.sort_by_key(|rule| rule.preference);
        let mut rules = listed(family, &rules);
        assert!(rules.has_ours());
        for change in rules.removal() {
            rules = apply(&rules, &change);
        }
        assert!(!rules.has_ours());
        assert_eq!(rules.listed.iter().map(|listed| listed.rule.clone()).collect::<Vec<_>>(), others);
    }
}

/// A rule that a person added by hand does the same, so no second one is needed.
#[test]
fn rules_of_others_with_the_same_meaning_count() {
    let by_hand = Part::ALL.map(|part| PolicyRule { protocol: Some(0), ..part.rule(Family::V4) });
    let rules = listed(Family::V4, &[by_hand[1].clone(), by_hand[2].clone(), by_hand[3].clone(), by_hand[0].clone()]);
    assert_eq!((rules.differences(), rules.is_closed(), rules.has_ours()), (Vec::new(), true, false));
    // Before Linux 4.17, the kernel does not say whose rule it is.
    let unsaid = Part::ALL.map(|part| PolicyRule { protocol: None, ..part.rule(Family::V4) });
    assert!(listed(Family::V4, &unsaid).has_ours());
    assert!(!listed(Family::V4, &[PolicyRule { protocol: None, ..local() }]).has_ours());
}

#[test]
fn rules_of_another_version_are_replaced() {
    let stale = PolicyRule { preference: 100, ..Part::Others.rule(Family::V4) };
    let mut rules = listed(Family::V4, &[local(), stale]);
    assert!(!rules.differences().is_empty());
    assert_eq!(rules.differences().last().unwrap(), "the routing rule '100: from all to 169.254.169.254 prohibit' is of another version");
    for change in rules.repair() {
        rules = apply(&rules, &change);
    }
    assert_eq!(rules.differences(), [""; 0]);
    assert_eq!(rules.listed.len(), 1 + Part::ALL.len());
}

#[test]
fn only_rules_that_may_route_pods_packets_are_ahead() {
    let metadata = Family::V4.metadata();
    let ours = [Part::Own, Part::OwnWithoutTarget, Part::Others].map(|part| part.rule(Family::V4));
    let with = |first: PolicyRule| listed(Family::V4, &[&[local(), first], &ours[..]].concat());
    for harmless in [
        foreign(0, RuleAction::Nothing),
        foreign(0, RuleAction::Prohibit),
        PolicyRule { to: Some(("10.0.0.0".parse().unwrap(), 8)), ..foreign(0, RuleAction::Table(9)) },
        PolicyRule { arrived_on: Some(LOOPBACK.to_owned()), ..foreign(0, RuleAction::Table(9)) },
    ] {
        let rules = with(harmless.clone());
        assert_eq!((rules.ahead(), rules.is_closed()), (Vec::new(), true), "{harmless:?}");
    }
    for (rule, line) in [
        (foreign(0, RuleAction::Table(TABLE_MAIN)), "0: from all lookup main"),
        (foreign(0, RuleAction::GoTo(7)), "0: from all goto 7"),
        (
            PolicyRule { to: Some(("169.254.0.0".parse().unwrap(), 16)), ..foreign(0, RuleAction::Table(9)) },
            "0: from all to 169.254.0.0/16 lookup 9",
        ),
        (PolicyRule { to: Some((metadata, 32)), ..foreign(0, RuleAction::Table(9)) }, "0: from all to 169.254.169.254 lookup 9"),
        (
            PolicyRule { arrived_on: Some("eni1".to_owned()), has_other_selectors: true, ..foreign(0, RuleAction::Table(9)) },
            "0: from all iif eni1 (with further conditions) lookup 9",
        ),
    ] {
        let rules = with(rule);
        assert_eq!((rules.ahead(), rules.is_closed()), (vec![line.to_owned()], false));
        assert_eq!(rules.differences().len(), 1, "only the target is missing: rolegate cannot come first");
    }
}

#[test]
fn prefixes_cover_their_addresses() {
    let ip = |text: &str| text.parse::<IpAddr>().unwrap();
    for (network, length, address, wanted) in [
        ("0.0.0.0", 0, "169.254.169.254", true),
        ("169.254.169.0", 24, "169.254.169.254", true),
        ("169.254.168.0", 24, "169.254.169.254", false),
        ("169.254.169.254", 32, "169.254.169.254", true),
        ("169.254.169.253", 32, "169.254.169.254", false),
        ("::", 0, "fd00:ec2::254", true),
        ("fd00:ec2::", 64, "fd00:ec2::254", true),
        ("fd00:ec3::", 64, "fd00:ec2::254", false),
        ("fd00:ec2::254", 128, "fd00:ec2::254", true),
        ("::", 0, "169.254.169.254", false),
    ] {
        assert_eq!(covers((ip(network), length), ip(address)), wanted, "{network}/{length} {address}");
    }
}

fn without_comments(text: &str) -> String {
    text.lines().filter(|line| !line.starts_with('#')).map(|line| format!("{line}\n")).collect()
}

#[test]
fn the_shipped_files_have_the_rules_that_the_daemon_keeps() {
    assert_eq!(without_comments(include_str!("../../../iptables/routing.rules")), render(Family::V4));
    assert_eq!(without_comments(include_str!("../../../iptables/routing6.rules")), render(Family::V6));
    let comments = render_as_comments();
    assert!(comments.lines().all(|line| line.starts_with("# ")));
    assert_eq!(comments.lines().count(), 1 + 2 * Part::ALL.len());
    // The script takes the address as an argument.
    let script = include_str!("../../../iptables/rolegate-guard");
    for line in render(Family::V4).lines() {
        let command = line.replace("169.254.169.254", "\"$2\"").replace("rule add ", "");
        assert!(script.contains(&command), "the script lacks: {command}");
    }
}
