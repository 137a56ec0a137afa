//! Checks the alerts and the dashboard of `daemonset/monitoring/` against the daemon's metrics and the documentation. `scripts/check-alerts`
//! tests, with promtool, when the alerts fire.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use rolegate::metrics;
use serde_json::Value;

use super::docs::documented_metrics;
use super::manifests::documents;

/// Metrics of others: of Prometheus itself, of kube-state-metrics and of the kubelet.
const OF_OTHERS: &[&str] = &["up", "ALERTS", "kube_daemonset_status_number_unavailable"];

fn read(path: &str) -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// Returns the rules of the manifest: the alerts, and the recording rules.
fn rules() -> [Vec<Value>; 2] {
    let [rule] = documents(&read("daemonset/monitoring/prometheus-rule.yaml")).try_into().unwrap();
    let groups = rule["spec"]["groups"].as_array().unwrap();
    let rules = groups.iter().flat_map(|group| group["rules"].as_array().unwrap().clone());
    let (alerts, records) = rules.partition(|rule| rule["record"].is_null());
    [alerts, records]
}

fn alerts() -> Vec<Value> {
    let [alerts, _] = rules();
    assert!(alerts.len() > 20, "{}", alerts.len());
    alerts
}

fn text<'a>(value: &'a Value, pointer: &str) -> &'a str {
    value.pointer(pointer).and_then(Value::as_str).unwrap_or_else(|| panic!("{pointer} is missing: {value}"))
}

/// Returns the expressions of all panels, variables and annotations of the dashboard, with the title of each.
fn queries() -> Vec<(String, String)> {
    let dashboard: Value = serde_json::from_str(&read("daemonset/monitoring/dashboard.json")).unwrap();
    let mut found = Vec::new();
    for panel in dashboard["panels"].as_array().unwrap().iter().filter(|panel| panel["type"] != "row") {
        let targets = panel["targets"].as_array().unwrap();
        assert!(!targets.is_empty(), "{}", panel["title"]);
        found.extend(targets.iter().map(|target| (text(panel, "/title").to_owned(), text(target, "/expr").to_owned())));
    }
    for annotation in dashboard["annotations"]["list"].as_array().unwrap() {
        found.push((text(annotation, "/name").to_owned(), text(annotation, "/expr").to_owned()));
    }
    for variable in dashboard["templating"]["list"].as_array().unwrap().iter().filter(|variable| variable["type"] == "query") {
        found.push((text(variable, "/name").to_owned(), text(variable, "/query/query").to_owned()));
    }
    assert!(found.len() > 30, "{}", found.len());
    found
}

/// The metrics that an expression selects, each with its matchers. Functions, keywords and labels have no metric's form.
fn selected(expression: &str) -> Vec<(String, String)> {
    let is_of_name = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let mut found = Vec::new();
    for (start, _) in expression.match_indices(is_of_name) {
        if expression[..start].ends_with(is_of_name) {
            continue;
        }
        let name: String = expression[start..].chars().take_while(|c| is_of_name(*c)).collect();
        let rest = &expression[start + name.len()..];
        let is_metric = name.starts_with("rolegate_") || rest.starts_with('{') || OF_OTHERS.contains(&name.as_str());
        let in_quotes = expression[..start].matches('"').count() % 2 == 1;
        if is_metric && !in_quotes {
            let matchers = rest.strip_prefix('{').and_then(|rest| rest.split_once('}')).map_or("", |(matchers, _)| matchers);
            found.push((name, matchers.to_owned()));
        }
    }
    found
}

/// Checks the metrics, labels and values of labels that an expression names.
fn assert_real(what: &str, expression: &str, values: &BTreeSet<String>) {
    let selected = selected(expression);
    assert!(!selected.is_empty(), "{what}: no metric in {expression}");
    for (name, matchers) in selected {
        if OF_OTHERS.contains(&name.as_str()) {
            continue;
        }
        let base = name.trim_end_matches("_bucket");
        let metric = metrics::ALL.iter().find(|metric| metric.name == name || (metric.name == base && metric.kind == "histogram"));
        let metric = metric.unwrap_or_else(|| panic!("{what}: there is no metric {name}"));
        for matcher in matchers.split("\",").filter(|matcher| !matcher.is_empty()) {
            let (label, value) = matcher.split_at(matcher.find(['=', '!']).unwrap());
            if label == "instance" {
                continue;
            }
            assert!(metric.labels.contains(&label), "{what}: {name} has no label {label}");
            for value in value.trim_matches(['!', '=', '~', '"']).split('|').filter(|value| !value.contains('.')) {
                // The values of one metric may be documented at another.
                let documented = values.iter().any(|known| known.ends_with(&format!("{{{label}}} {value}")));
                assert!(documented, "{what}: {label}={value} of {name} is not documented");
            }
        }
    }
}

#[test]
fn alerts_name_real_metrics() {
    let (_, values) = documented_metrics();
    for alert in alerts() {
        assert_real(text(&alert, "/alert"), text(&alert, "/expr"), &values);
    }
}

#[test]
fn recording_rules_name_real_metrics_and_are_documented_and_tested() {
    let (_, values) = documented_metrics();
    let [_, records] = rules();
    assert!(!records.is_empty());
    for record in records {
        let name = text(&record, "/record");
        assert_real(name, text(&record, "/expr"), &values);
        assert!(read("docs/metrics.md").contains(&format!("`{name}`")), "{name} is not documented");
        assert!(read("tests/alerts/records.yaml").contains(name), "{name} is not tested");
    }
}

#[test]
fn the_dashboard_names_real_metrics() {
    let (_, values) = documented_metrics();
    for (title, expression) in queries() {
        assert_real(&title, &expression.replace("$__rate_interval", "5m"), &values);
    }
}

#[test]
fn the_check_of_metrics_finds_wrong_ones() {
    let (_, values) = documented_metrics();
    let is_wrong = |expression: &str| std::panic::catch_unwind(|| assert_real("test", expression, &values)).is_err();
    assert!(!is_wrong("sum(rate(rolegate_denials_total{reason=~\"sts|no-role\"}[5m])) > 0"));
    assert!(is_wrong("rolegate_denial_total > 0"));
    assert!(is_wrong("rolegate_denials_total{reason=~\"sts|no-rule\"}"));
    assert!(is_wrong("rolegate_denials_total{cause=\"sts\"}"));
    assert!(is_wrong("rolegate_pods_bucket"));
    assert!(is_wrong("vector(1)"));
}

/// Every alert has a severity, texts without placeholders of other alerts, and a runbook section; every section has an alert.
#[test]
fn every_alert_has_a_runbook() {
    let page = read("docs/runbooks.md");
    let sections: BTreeSet<&str> = page.lines().filter_map(|line| line.strip_prefix("## ")).collect();
    let mut names = BTreeSet::new();
    let alerts = alerts();
    for alert in &alerts {
        let name = text(alert, "/alert");
        assert!(["critical", "warning", "info"].contains(&text(alert, "/labels/severity")), "{name}");
        assert!(text(alert, "/annotations/summary").ends_with('.') && text(alert, "/annotations/description").ends_with('.'), "{name}");
        assert_eq!(text(alert, "/annotations/runbook"), format!("docs/runbooks.md#{}", name.to_lowercase()));
        assert!(names.insert(name), "{name} is there twice");
    }
    assert_eq!(sections, names);
    for section in page.split("\n## ").skip(1) {
        let name = section.lines().next().unwrap();
        for part in ["**What it means.** ", "**Find the cause.** ", "**What to do.**"] {
            assert_eq!(section.matches(part).count(), 1, "{name}: {part}");
        }
    }
}

/// Otherwise the test of a node at rest would show nothing about an alert.
#[test]
fn the_node_at_rest_has_every_metric_of_the_alerts() {
    let rest = read("tests/alerts/at-rest.yaml");
    for alert in alerts() {
        let of_alert = selected(text(&alert, "/expr"));
        for (name, _) in of_alert {
            assert!(rest.contains(&format!("'{name}{{")), "{}: tests/alerts/at-rest.yaml has no {name}", alert["alert"]);
        }
    }
}

/// Grafana shows panels with the same number or place on top of each other.
#[test]
fn the_panels_of_the_dashboard_have_their_own_places() {
    let dashboard: Value = serde_json::from_str(&read("daemonset/monitoring/dashboard.json")).unwrap();
    let (mut ids, mut places) = (BTreeSet::new(), BTreeSet::new());
    for panel in dashboard["panels"].as_array().unwrap() {
        assert!(ids.insert(panel["id"].as_u64().unwrap()), "{}", panel["title"]);
        let [x, y, width, height] = ["x", "y", "w", "h"].map(|key| panel["gridPos"][key].as_u64().unwrap());
        assert!(x + width <= 24, "{}", panel["title"]);
        for column in x..x + width {
            for line in y..y + height {
                assert!(places.insert((column, line)), "{} is on top of another panel", panel["title"]);
            }
        }
        assert!(panel["type"] == "row" || panel["description"].as_str().is_some_and(|text| text.ends_with('.')), "{}", panel["title"]);
    }
}
