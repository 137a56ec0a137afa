//! Tests of the metrics of the real daemon: their form, and which series are there from the start.

use std::collections::BTreeSet;
use std::io::Write as _;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use rolegate::metrics;
use rolegate_lab::node::{find_program, skip};
use rolegate_lab::sts::Behaviour;

use crate::docs::documented_metrics;
use crate::world::{Fakes, World, arn, ip};

/// Counters whose labels are not known beforehand, as docs/metrics.md says.
const UNKNOWN_BEFOREHAND: [&str; 3] = ["rolegate_pod_refusals_total", "rolegate_imdsv1_requests_total", "rolegate_role_credentials_total"];

fn scrape(world: &World) -> String {
    world.daemon.get(None, "/metrics").unwrap().text()
}

/// Returns promtool, from PATH or from where scripts/install-test-needs puts it.
fn promtool() -> Option<PathBuf> {
    let variable = |name: &str| std::env::var_os(name).map(PathBuf::from);
    let cache = variable("XDG_CACHE_HOME").or_else(|| variable("HOME").map(|home| home.join(".cache")));
    let tools = variable("TOOLS").or_else(|| cache.map(|cache| cache.join("rolegate-tools")));
    find_program("promtool").or_else(|| tools.map(|tools| tools.join("promtool")).filter(|file| file.is_file()))
}

#[test]
fn promtool_finds_nothing_wrong_with_the_metrics() {
    let Some(promtool) = promtool() else {
        skip("the metrics are not checked: promtool is not installed (scripts/install-test-needs)");
        return;
    };
    let check = |text: &str| {
        let mut child = Command::new(&promtool)
            .args(["check", "metrics"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        child.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
        let output = child.wait_with_output().unwrap();
        let said = [output.stdout, output.stderr].map(|text| String::from_utf8_lossy(&text).into_owned()).concat();
        (output.status.success(), said)
    };
    let world = World::start_with(|setup| setup.argument("--metrics-role-label").argument("--migrate"));
    assert_eq!(world.credentials(ip(2), "web-role").status, 200);
    assert_eq!(world.get(ip(4), "/latest/user-data").status, 404);
    let text = scrape(&world);
    assert_eq!(check(&text), (true, String::new()));
    let (is_good, said) = check(&text.replace("rolegate_denials_total", "rolegate_denials"));
    assert!(!is_good && said.contains("rolegate_denials"), "{said}");
}

/// Otherwise `rate()` and `increase()` would not see the first event.
#[test]
fn counters_with_known_labels_have_all_series_from_the_start() {
    let world = World::start();
    let text = scrape(&world);
    let (_, documented) = documented_metrics();
    let values = |metric: &str, label: &str| -> BTreeSet<String> {
        let prefix = format!("{metric}{{{label}}} ");
        documented.iter().filter_map(|value| value.strip_prefix(&prefix)).map(str::to_owned).collect()
    };
    let series = |metric: &str| -> BTreeSet<&str> {
        let prefix = format!("{metric}{{");
        text.lines().filter_map(|line| line.strip_prefix(&prefix)?.split_once('}')).map(|(labels, _)| labels).collect()
    };
    let mut compared = 0;
    for metric in metrics::ALL.iter().filter(|metric| metric.kind == "counter" && !UNKNOWN_BEFOREHAND.contains(&metric.name)) {
        let found = series(metric.name);
        let wanted: BTreeSet<String> = match metric.labels {
            [] => {
                assert!(text.lines().any(|line| line.starts_with(&format!("{} ", metric.name))), "{} has no series", metric.name);
                continue;
            }
            ["route", "code"] => {
                let of_pod_identity = |route: &str| ["pod-identity", "relative-uri"].contains(&route);
                let may_be = |route: &str, code: &str| code != "other" && (of_pod_identity(route) || !["429", "503"].contains(&code));
                let codes = values(metric.name, "code");
                let pairs = values(metric.name, "route")
                    .into_iter()
                    .flat_map(|route| codes.clone().into_iter().map(move |code| (route.clone(), code)));
                pairs
                    .filter(|(route, code)| may_be(route, code))
                    .map(|(route, code)| format!("code=\"{code}\",route=\"{route}\""))
                    .collect()
            }
            [label] => values(metric.name, label).into_iter().map(|value| format!("{label}=\"{value}\"")).collect(),
            [one, other] => {
                let others = values(metric.name, other);
                let pairs = values(metric.name, one)
                    .into_iter()
                    .flat_map(|first| others.clone().into_iter().map(move |second| (first.clone(), second)));
                pairs.map(|(first, second)| format!("{one}=\"{first}\",{other}=\"{second}\"")).collect()
            }
            labels => panic!("{}: {labels:?}", metric.name),
        };
        assert_eq!(found, wanted.iter().map(String::as_str).collect(), "{}", metric.name);
        assert!(!wanted.is_empty(), "{}", metric.name);
        compared += 1;
    }
    assert!(compared > 15, "{compared}");
    for metric in UNKNOWN_BEFOREHAND {
        assert_eq!(series(metric).len(), 0, "{metric}");
    }
    // docs/metrics.md says about how many there are.
    let all = text.lines().filter(|line| !line.starts_with('#')).count();
    assert!((400..600).contains(&all), "{all} series");
}

#[test]
fn readiness_and_its_causes_are_metrics() {
    let world = World::start_without_identity(|setup| setup.env("AWS_ENDPOINT_URL_STS", "http://127.0.0.1:1"));
    let metric = |name: &str| world.metric(name);
    assert_eq!(metric("rolegate_ready"), 0.0);
    assert_eq!(metric("rolegate_not_ready{cause=\"own-identity\"}"), 1.0);
    assert_eq!(metric("rolegate_not_ready{cause=\"pod-list\"}"), 0.0);
    assert!(metric("process_resident_memory_bytes") > 1e6 && metric("process_open_fds") > 3.0);
    let ready = World::start();
    assert_eq!((ready.metric("rolegate_ready"), ready.metric("rolegate_not_ready{cause=\"own-identity\"}")), (1.0, 0.0));
}

#[test]
fn roles_are_in_the_metrics_only_on_request_and_only_while_they_are_in_use() {
    let of_role = |world: &World, role: &str| {
        let label = format!("role=\"{}\"", arn(role));
        scrape(world).lines().filter(|line| line.contains(&label)).map(str::to_owned).collect::<Vec<_>>()
    };
    let off = World::start();
    assert_eq!(off.credentials(ip(2), "web-role").status, 200);
    assert_eq!(of_role(&off, "web-role"), [""; 0]);
    let fakes = Fakes::new();
    fakes.pod("web", ip(2), Some("web-role"));
    fakes.pod("db", ip(3), Some("db-role"));
    fakes.sts.set_role_behaviour(&arn("db-role"), Behaviour::AccessDenied);
    let setup = fakes.setup().argument("--metrics-role-label");
    let world = fakes.into_world(&setup);
    let line = |role: &str, outcome: &str, count: u64| {
        format!("rolegate_role_credentials_total{{outcome=\"{outcome}\",role=\"{}\"}} {count}", arn(role))
    };
    for _ in 0..3 {
        assert_eq!(world.credentials(ip(2), "web-role").status, 200);
    }
    assert_eq!(world.credentials(ip(3), "db-role").status, 500);
    assert_eq!(of_role(&world, "web-role"), [line("web-role", "failed", 0), line("web-role", "served", 3)]);
    assert_eq!(of_role(&world, "db-role"), [line("db-role", "failed", 1), line("db-role", "served", 0)]);
    world.fakes.delete_pod("web");
    world.eventually(|world| of_role(world, "web-role"), Vec::is_empty);
    assert_eq!(of_role(&world, "db-role").len(), 2);
}
