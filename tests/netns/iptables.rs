//! Tests of the backend without the daemon: what it writes, observes, repairs and removes, in both flavours and families.

use std::io::{BufRead as _, BufReader};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rolegate::advice::Advise as _;
use rolegate::config::InterfaceMatch;
use rolegate::redirect::iptables::Iptables;
use rolegate::redirect::iptables::program::Flavour;
use rolegate::redirect::rules::{DirectConnections, RuleSet, Targets};
use rolegate::redirect::{Backend as _, RedirectError, legacy_rules};
use rolegate_lab::node::{NODE_IP, NODE_IP6, Netns, Node, available_or_skip, programs_or_skip};

use crate::redirects::with_pod_identity;

const FLAVOURS: [(Flavour, &str); 2] = [(Flavour::Nft, "nft"), (Flavour::Legacy, "legacy")];

fn node() -> Option<Node> {
    let programs = ["iptables-nft-save", "iptables-legacy-save", "ip6tables-nft-save", "ip6tables-legacy-save", "flock"];
    if !available_or_skip() || !programs_or_skip(&programs) {
        return None;
    }
    Some(Node::new().unwrap())
}

fn rules() -> RuleSet {
    rules_with(DirectConnections::Dropped)
}

fn rules_with(direct: DirectConnections) -> RuleSet {
    let targets = Targets { ipv4: format!("{NODE_IP}:8181").parse().ok(), ipv6: format!("[{NODE_IP6}]:8181").parse().ok(), direct };
    RuleSet { targets: Some(targets), ..RuleSet::guard_alone() }
}

/// Runs the backend's work inside the namespace.
fn inside<T: Send + 'static, F: Future<Output = T>>(ns: &Netns, work: impl FnOnce() -> F + Send + 'static) -> T {
    ns.run_with_own_locks(move || tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(work())).unwrap()
}

#[track_caller]
fn install(ns: &Netns, flavour: Flavour, rules: RuleSet) {
    inside(ns, move || async move { Iptables::default().with_flavour(flavour).install(&rules).await }).unwrap();
}

#[track_caller]
fn differences(ns: &Netns, flavour: Flavour, rules: RuleSet) -> Vec<String> {
    inside(ns, move || async move { Iptables::default().with_flavour(flavour).differences(&rules).await }).unwrap()
}

#[track_caller]
fn remove(ns: &Netns, flavour: Flavour) -> Vec<String> {
    inside(ns, move || async move { Iptables::default().with_flavour(flavour).remove().await }).unwrap()
}

/// Returns the rules and chains of both families as the program prints them, without comments and counters.
fn saved(ns: &Netns, flavour: &str) -> Vec<String> {
    let text = ns.sh(&format!("iptables-{flavour}-save; ip6tables-{flavour}-save")).unwrap();
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    lines.map(|line| line.split(" [").next().unwrap_or_default().to_owned()).collect()
}

fn ours(ns: &Netns, flavour: &str) -> Vec<String> {
    saved(ns, flavour).into_iter().filter(|line| line.contains("ROLEGATE")).collect()
}

#[test]
fn installing_twice_changes_nothing_and_removing_leaves_nothing() {
    let Some(node) = node() else { return };
    for (flavour, name) in FLAVOURS {
        node.ns()
            .sh(&format!("iptables-{name} -w 30 -A FORWARD -j ACCEPT; ip6tables-{name} -w 30 -t nat -A PREROUTING -j RETURN"))
            .unwrap();
        let before: Vec<_> = saved(node.ns(), name).into_iter().filter(|line| line.starts_with("-A")).collect();
        assert_eq!(differences(node.ns(), flavour, rules()).len(), 24);
        install(node.ns(), flavour, rules());
        assert_eq!(differences(node.ns(), flavour, rules()), [""; 0]);
        let once = saved(node.ns(), name);
        install(node.ns(), flavour, rules());
        assert_eq!(saved(node.ns(), name), once);

        let said = remove(node.ns(), flavour);
        assert_eq!(said.len(), 24, "{said:?}");
        assert!(said[0].contains("the jump from PREROUTING to ROLEGATE of the table nat"), "{said:?}");
        let after: Vec<_> = saved(node.ns(), name).into_iter().filter(|line| line.starts_with("-A") || line.contains("ROLEGATE")).collect();
        assert_eq!(after, before);
        assert_eq!(remove(node.ns(), flavour), [""; 0]);
    }
}

#[test]
fn rules_of_pod_identity_are_observed() {
    let Some(node) = node() else { return };
    for (flavour, _) in FLAVOURS {
        let interfaces = [("eth0", true), ("cni+", false)].map(|(name, negated)| InterfaceMatch { name: name.to_owned(), negated });
        let all = [
            RuleSet::guard_alone(),
            with_pod_identity(RuleSet::guard_alone()),
            with_pod_identity(rules()),
            with_pod_identity(rules_with(DirectConnections::Kept)),
            rules_with(DirectConnections::Kept),
            with_pod_identity(RuleSet { interfaces: interfaces.into(), ..rules() }),
            rules(),
        ];
        for rules in all {
            install(node.ns(), flavour, rules.clone());
            assert_eq!(differences(node.ns(), flavour, rules.clone()), [""; 0], "{rules:?}");
            let observed = inside(node.ns(), move || async move { Iptables::default().with_flavour(flavour).observed().await }).unwrap();
            assert_eq!(observed.pod_identity, rules.pod_identity, "{rules:?}");
            assert!(observed.is_guarded_with(&rules.pod_identity), "{rules:?}");
        }
        // Without one of the rules of a family.
        install(node.ns(), flavour, with_pod_identity(rules()));
        let name = if flavour == Flavour::Nft { "nft" } else { "legacy" };
        node.ns().sh(&format!("iptables-{name} -w 30 -t mangle -D ROLEGATE-EXIT 2")).unwrap();
        let observed = inside(node.ns(), move || async move { Iptables::default().with_flavour(flavour).observed().await }).unwrap();
        let of_ipv6 = with_pod_identity(rules()).pod_identity.into_iter().filter(|address| address.is_ipv6());
        assert_eq!(observed.pod_identity, of_ipv6.collect(), "{name}");
        remove(node.ns(), flavour);
    }
}

#[test]
fn changes_by_others_are_reported_and_repaired() {
    let Some(node) = node() else { return };
    for (flavour, name) in FLAVOURS {
        for (family, elsewhere) in [("iptables", "192.0.2.9:1"), ("ip6tables", "[2001:db8::9]:1")] {
            let program = format!("{family}-{name} -w 30");
            install(node.ns(), flavour, rules());
            let target = "-p tcp -j DNAT --to-destination";
            for (change, said) in [
                ("-F".to_owned(), "FORWARD has no jump to ROLEGATE-GUARD"),
                ("-t nat -F".to_owned(), "PREROUTING has no jump to ROLEGATE"),
                (format!("-F FORWARD; {program} -F ROLEGATE-GUARD; {program} -X ROLEGATE-GUARD"), "the chain ROLEGATE-GUARD is missing"),
                (
                    format!("-t nat -F PREROUTING; {program} -t nat -F ROLEGATE; {program} -t nat -X ROLEGATE"),
                    "the chain ROLEGATE is missing",
                ),
                ("-D INPUT 1".to_owned(), "INPUT has no jump to ROLEGATE-DIRECT"),
                ("-I FORWARD 1 -i cni0 -j ACCEPT".to_owned(), "`-A FORWARD -i cni0 -j ACCEPT` comes before rolegate's jump in FORWARD"),
                (format!("-t nat -I PREROUTING 1 -i x {target} {elsewhere}"), "`-A PREROUTING -i x"),
                (format!("-t nat -R ROLEGATE 2 {target} {elsewhere}"), "ROLEGATE has the rule `-p tcp -j DNAT --to-destination"),
                ("-t nat -D ROLEGATE 1".to_owned(), "ROLEGATE has 1 rules instead of 2"),
                ("-I ROLEGATE-GUARD 1 -j RETURN".to_owned(), "ROLEGATE-GUARD has 3 rules instead of 2"),
                ("-A ROLEGATE-DIRECT -j RETURN".to_owned(), "ROLEGATE-DIRECT has 2 rules instead of 1"),
                ("-A FORWARD -j ROLEGATE-GUARD".to_owned(), "2 rules jump to ROLEGATE-GUARD instead of one"),
                ("-t security -F FORWARD".to_owned(), "table security: FORWARD has no jump to ROLEGATE-BACKSTOP"),
                ("-t security -F ROLEGATE-BACKSTOP".to_owned(), "ROLEGATE-BACKSTOP has 0 rules instead of 1"),
                ("-t security -I FORWARD 1 -j ACCEPT".to_owned(), "`-A FORWARD -j ACCEPT` comes before rolegate's jump in FORWARD"),
                ("-t mangle -F POSTROUTING".to_owned(), "table mangle: POSTROUTING has no jump to ROLEGATE-EXIT"),
                ("-t mangle -F ROLEGATE-EXIT".to_owned(), "ROLEGATE-EXIT has 0 rules instead of 1"),
                (
                    "-t mangle -I POSTROUTING 1 -j ACCEPT".to_owned(),
                    "`-A POSTROUTING -j ACCEPT` comes before rolegate's jump in POSTROUTING",
                ),
                ("-t nat -F OUTPUT".to_owned(), "table nat: OUTPUT has no jump to ROLEGATE-PIN"),
                (format!("-t nat -I OUTPUT 1 {target} {elsewhere}"), "comes before rolegate's jump in OUTPUT"),
                (format!("-t nat -R ROLEGATE-PIN 1 {target} {elsewhere}"), "ROLEGATE-PIN has the rule `-p tcp -j DNAT --to-destination"),
            ] {
                node.ns().sh(&format!("{program} {change}")).unwrap();
                let found = differences(node.ns(), flavour, rules());
                assert!(found.iter().any(|words| words.starts_with(family) && words.contains(said)), "{program} {change}: {found:?}");
                install(node.ns(), flavour, rules());
                assert_eq!(differences(node.ns(), flavour, rules()), [""; 0], "{program} {change}");
            }
            let others = saved(node.ns(), name);
            assert!(others.iter().any(|line| line.starts_with("-A PREROUTING -i x -p tcp -j DNAT")), "{others:?}");
        }
        remove(node.ns(), flavour);
    }
}

/// A comparison does not look for such a jump, which does no harm. It must not keep anything from being removed.
#[test]
fn jumps_from_any_chain_are_removed_with_ours() {
    let Some(node) = node() else { return };
    for (flavour, name) in FLAVOURS {
        install(node.ns(), flavour, rules());
        for family in ["iptables", "ip6tables"] {
            let program = format!("{family}-{name} -w 30");
            let comment = "-m comment --comment 'see -j ROLEGATE-GUARD above'";
            let jumps = ["OUTPUT -j ROLEGATE-GUARD", "OUTPUT -j ROLEGATE-DIRECT", &format!("OUTPUT {comment} -j ACCEPT")];
            node.ns().sh(&jumps.map(|jump| format!("{program} -A {jump}")).join("\n")).unwrap();
        }
        // The chain is removed, which the jump would otherwise prevent.
        install(node.ns(), flavour, RuleSet::guard_alone());
        assert!(!ours(node.ns(), name).iter().any(|line| line.contains("ROLEGATE-DIRECT")));
        remove(node.ns(), flavour);
        let left = ours(node.ns(), name);
        assert!(left.len() == 2 && left.iter().all(|line| line.contains("--comment")), "{left:?}");
        node.ns().sh(&format!("iptables-{name} -w 30 -F OUTPUT; ip6tables-{name} -w 30 -F OUTPUT")).unwrap();
    }
}

/// The rules of versions before the guard, with a duplicate jump.
#[test]
fn the_rules_of_older_versions_are_replaced() {
    let Some(node) = node() else { return };
    for (flavour, name) in FLAVOURS {
        node.ns()
            .sh(&format!(
                "iptables-{name} -w 30 -t nat -N ROLEGATE
                 iptables-{name} -w 30 -t nat -A ROLEGATE -p tcp -j DNAT --to-destination 10.42.0.1:8282
                 for i in 1 2; do iptables-{name} -w 30 -t nat -I PREROUTING 1 -p tcp -d 169.254.169.254/32 --dport 80 -j ROLEGATE; done"
            ))
            .unwrap();
        install(node.ns(), flavour, rules());
        let jumps: Vec<_> = ours(node.ns(), name).into_iter().filter(|line| line.starts_with("-A PREROUTING -d 169")).collect();
        assert_eq!(jumps, ["-A PREROUTING -d 169.254.169.254/32 -p tcp -m tcp --dport 80 -j ROLEGATE"]);
        assert!(!ours(node.ns(), name).iter().any(|line| line.contains("8282")));
        remove(node.ns(), flavour);
    }
}

#[test]
fn the_guard_alone_leaves_no_redirect_and_its_file_can_be_loaded_again() {
    let Some(node) = node() else { return };
    for (flavour, name) in FLAVOURS {
        let boot = |family: &str, file: &str| {
            let file = format!("{}/iptables/{file}", env!("CARGO_MANIFEST_DIR"));
            let text = std::fs::read_to_string(&file).unwrap();
            let documented = text.lines().find_map(|line| line.strip_prefix("#   ")).unwrap();
            let script = documented.replace(&format!("{family}-restore"), &format!("{family}-{name}-restore"));
            let script = script.replace(file.rsplit('/').next().unwrap(), &file);
            node.ns().sh(&script).unwrap();
        };
        let load = || {
            boot("iptables", "guard.rules");
            boot("ip6tables", "guard6.rules");
        };
        load();
        assert_eq!(differences(node.ns(), flavour, RuleSet::guard_alone()), [""; 0]);
        // Loading the file again repairs what was broken, apart from a duplicate jump, which does no harm.
        for family in ["iptables", "ip6tables"] {
            let program = format!("{family}-{name} -w 30");
            node.ns().sh(&format!("{program} -F ROLEGATE-GUARD; {program} -t security -F; {program} -I FORWARD 1 -j ACCEPT")).unwrap();
        }
        load();
        let found = differences(node.ns(), flavour, RuleSet::guard_alone());
        assert!(found.len() == 6 && found.iter().all(|words| words.contains("2 rules jump to ROLEGATE-")), "{found:?}");
        install(node.ns(), flavour, RuleSet::guard_alone());
        node.ns().sh(&format!("iptables-{name} -w 30 -D FORWARD 2; ip6tables-{name} -w 30 -D FORWARD 2")).unwrap();
        let guard = ours(node.ns(), name);
        install(node.ns(), flavour, rules());
        assert!(ours(node.ns(), name).len() > guard.len());
        install(node.ns(), flavour, RuleSet::guard_alone());
        assert_eq!(ours(node.ns(), name), guard);
        remove(node.ns(), flavour);
    }
}

#[test]
fn only_the_rules_of_kube2iam_and_kiam_are_found() {
    let Some(node) = node() else { return };
    let to = "-d 169.254.169.254/32 -p tcp -m tcp --dport 80 -j DNAT --to-destination 10.42.0.1";
    for (_, name) in FLAVOURS {
        node.ns()
            .sh(&format!(
                "iptables-{name} -w 30 -t nat -A PREROUTING -i docker0 {to}:8181
                 iptables-{name} -w 30 -t nat -A PREROUTING ! -i eth0 {to}:3100
                 iptables-{name} -w 30 -t nat -A PREROUTING {to}:1
                 iptables-{name} -w 30 -t nat -A PREROUTING -i docker0 -s 10.0.0.0/8 {to}:2"
            ))
            .unwrap();
    }
    let found = inside(node.ns(), || async { legacy_rules::find().await }).unwrap();
    let targets: Vec<_> = found.iter().map(|left| (left.program, left.target.to_string())).collect();
    let both =
        ["iptables-nft", "iptables-legacy"].map(|program| [(program, "10.42.0.1:8181".to_owned()), (program, "10.42.0.1:3100".to_owned())]);
    assert_eq!(targets, both.concat());
    let said = inside(node.ns(), || async { legacy_rules::remove(Duration::from_secs(30)).await }).unwrap();
    assert!(said.len() == 4 && said[0].contains("10.42.0.1:8181"), "{said:?}");
    for (_, name) in FLAVOURS {
        let left: Vec<_> = saved(node.ns(), name).into_iter().filter(|line| line.starts_with("-A")).collect();
        assert_eq!(left.len(), 2, "{left:?}");
        assert!(left[0].ends_with(":1") && left[1].ends_with(":2"), "{left:?}");
    }
    assert_eq!(inside(node.ns(), || async { legacy_rules::remove(Duration::from_secs(30)).await }).unwrap(), [""; 0]);
}

/// The backend waits for others that write as fast as they can, and they lose nothing.
#[test]
fn the_backend_waits_for_twenty_concurrent_writers() {
    const OTHERS: usize = 20;
    const RULES: usize = 10;
    let Some(node) = node() else { return };
    for (flavour, name) in FLAVOURS {
        let found = inside(node.ns(), move || async move {
            let one = |number: usize| {
                let script = format!(
                    "i=0; while [ $i -lt {RULES} ]; do iptables-{name} -w 60 -t nat -A POSTROUTING -d 10.{number}.0.$i -j RETURN || exit 1; i=$((i+1)); done"
                );
                Command::new("sh").args(["-c", &script]).stdin(Stdio::null()).spawn().unwrap()
            };
            let mut others: Vec<Child> = (0..OTHERS).map(one).collect();
            let backend = Iptables::default().with_flavour(flavour).with_lock_wait(Duration::from_secs(60));
            for _time in 0..3 {
                backend.install(&rules()).await.unwrap();
                backend.remove().await.unwrap();
            }
            backend.install(&rules()).await.unwrap();
            assert!(others.iter_mut().all(|other| other.wait().unwrap().success()));
            backend.differences(&rules()).await.unwrap()
        });
        assert_eq!(found, [""; 0]);
        let others = saved(node.ns(), name).into_iter().filter(|line| line.starts_with("-A POSTROUTING -d 10.")).count();
        assert_eq!(others, OTHERS * RULES);
        remove(node.ns(), flavour);
    }
}

#[test]
fn a_lock_that_is_held_too_long_leaves_the_rules_unchanged() {
    let Some(node) = node() else { return };
    install(node.ns(), Flavour::Legacy, RuleSet::guard_alone());
    let before = ours(node.ns(), "legacy");
    let error = inside(node.ns(), || async {
        let holds = ["-x", "/run/xtables.lock", "-c", "echo held; read line"];
        let mut holder = Command::new("flock").args(holds).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(holder.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
        assert_eq!(line, "held\n");
        let backend = Iptables::default().with_flavour(Flavour::Legacy).with_lock_wait(Duration::from_secs(1));
        let error = backend.install(&rules()).await.unwrap_err();
        let removal = backend.remove().await.unwrap_err();
        assert!(matches!(removal, RedirectError::Locked { .. }), "{removal}");
        drop(holder.stdin.take());
        holder.wait().unwrap();
        error
    });
    assert!(matches!(error, RedirectError::Locked { .. }), "{error}");
    assert!(error.advice().is_some_and(|advice| advice.contains("/run/xtables.lock")), "{error}");
    assert_eq!(ours(node.ns(), "legacy"), before);
    install(node.ns(), Flavour::Legacy, rules());
    assert_eq!(differences(node.ns(), Flavour::Legacy, rules()), [""; 0]);
}
