//! Checks the Helm chart, without Helm: its golden renders, which `scripts/check-chart` compares with those of Helm, against the kustomize
//! components of `daemonset/`, and its schema against the daemon's flags.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use rolegate::config::{self, flags};
use rolegate_lab::node::programs_or_skip;
use serde_json::Value;

use super::manifests::{components, documents, render};

fn chart() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("charts/rolegate")
}

/// Returns the golden renders, each with the name of its values.
pub(crate) fn goldens() -> BTreeMap<String, Vec<Value>> {
    let entries = fs::read_dir(chart().join("tests/golden")).unwrap().map(|entry| entry.unwrap().path());
    let name = |path: &Path| path.file_stem().unwrap().to_str().unwrap().to_owned();
    let found: BTreeMap<_, _> = entries.map(|path| (name(&path), documents(&fs::read_to_string(&path).unwrap()))).collect();
    assert!(found.len() > 15, "{:?}", found.keys());
    found
}

/// Sorts a list of objects by their names, and a list of texts by the texts.
fn sort(list: &mut Value) {
    if let Some(items) = list.as_array_mut() {
        items.sort_by_key(|item| item["name"].as_str().or(item.as_str()).unwrap_or_default().to_owned());
    }
}

/// Removes what the two kinds of rendering may do differently: labels of Helm's own, and orders that mean nothing.
fn normalized(objects: Vec<Value>) -> BTreeMap<String, Value> {
    let of_helm = ["app.kubernetes.io/instance", "app.kubernetes.io/managed-by", "app.kubernetes.io/version", "helm.sh/chart"];
    let one = |mut object: Value| {
        if let Some(labels) = object["metadata"].get_mut("labels").and_then(Value::as_object_mut) {
            labels.retain(|name, _| !of_helm.contains(&name.as_str()));
        }
        let pod = object.pointer_mut("/spec/template/spec");
        if let Some(pod) = pod {
            sort(&mut pod["volumes"]);
            for container in pod["containers"].as_array_mut().unwrap() {
                for list in ["args", "volumeMounts"] {
                    if container.get(list).is_some() {
                        sort(&mut container[list]);
                    }
                }
                if let Some(added) = container.pointer_mut("/securityContext/capabilities/add") {
                    sort(added);
                }
            }
        }
        (format!("{} {}", object["kind"].as_str().unwrap(), object["metadata"]["name"].as_str().unwrap()), object)
    };
    objects.into_iter().map(one).collect()
}

/// Components that are an example to copy, which the chart has in another form: `nodePools`.
const OTHERWISE: &[&str] = &["node-pool"];

#[test]
fn the_chart_renders_what_kustomize_renders() {
    if !programs_or_skip(&["kubectl"]) {
        return;
    }
    let mut goldens = goldens();
    let mut compare = |golden: &str, components: &[&str]| {
        let of_chart = normalized(goldens.remove(golden).unwrap_or_else(|| panic!("charts/rolegate/tests/golden has no {golden}.yaml")));
        let of_manifests = normalized(render(components));
        let names = |objects: &BTreeMap<String, Value>| objects.keys().cloned().collect::<Vec<_>>();
        assert_eq!(names(&of_chart), names(&of_manifests), "{golden}");
        for (name, object) in &of_manifests {
            assert_eq!(of_chart[name], *object, "{golden}: {name}");
        }
    };
    compare("default", &[]);
    for component in components() {
        if !OTHERWISE.contains(&component.as_str()) {
            compare(&component, &[&component]);
        }
    }
}

#[test]
fn generated_files_of_the_chart_are_up_to_date() {
    if !programs_or_skip(&["python3"]) {
        return;
    }
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/chart-files");
    let output = Command::new("python3").arg(script).arg("--check").output().unwrap();
    assert!(output.status.success(), "{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
}

/// Parses arguments of the daemon, with values for the pod fields that the kubelet fills in. Panics if the daemon would not start.
fn configured(arguments: impl IntoIterator<Item = String>) -> config::Config {
    let fields = |argument: String| argument.replace("$(NODE_NAME)", "node-a").replace("$(HOST_IP)", "10.0.0.1");
    let all = std::iter::once("rolegate".to_owned()).chain(arguments.into_iter().map(fields));
    let matches = flags::add_to(clap::Command::new("rolegate")).try_get_matches_from(all).unwrap();
    config::Config::from_source(&matches, &|_| None).unwrap()
}

/// The image has no program besides the daemon that a container could start.
#[test]
fn containers_start_commands_that_the_image_has() {
    let mut seen = BTreeSet::new();
    for (name, objects) in goldens() {
        for daemon in objects.iter().filter(|object| object["kind"] == "DaemonSet") {
            let template = &daemon["spec"]["template"]["spec"];
            let containers = ["initContainers", "containers"].into_iter().filter_map(|list| template[list].as_array()).flatten();
            for container in containers.filter(|container| container["image"].as_str().unwrap().contains("/rolegate")) {
                assert!(container["command"].is_null(), "{name}: {container}");
                let arguments = container["args"].as_array().unwrap().iter().map(|argument| argument.as_str().unwrap());
                let parsed = rolegate::cli::command().try_get_matches_from(std::iter::once("rolegate").chain(arguments));
                let parsed = parsed.unwrap_or_else(|error| panic!("{name}: {error}"));
                seen.extend(parsed.subcommand_name().map(str::to_owned));
            }
        }
    }
    assert_eq!(seen.into_iter().collect::<Vec<_>>(), ["redirect", "wait"], "the DaemonSet that removes the rules");
}

#[test]
fn the_daemon_starts_with_the_arguments_of_the_chart() {
    let mut seen = 0;
    for (name, objects) in goldens() {
        for daemon in objects.iter().filter(|object| object["kind"] == "DaemonSet") {
            let container = &daemon["spec"]["template"]["spec"]["containers"][0];
            let arguments = container["args"].as_array().unwrap();
            if arguments[0] == "wait" {
                continue;
            }
            let config = configured(arguments.iter().map(|argument| argument.as_str().unwrap().to_owned()));
            seen += 1;
            if name == "default" {
                assert!(config.warnings.is_empty(), "{:?}", config.warnings);
            }
        }
    }
    assert!(seen > 15, "{seen}");
}

/// The arguments of a container that the chart writes itself, and one that would show a secret.
const NOT_VALUES: [&str; 4] = ["api-token", "handover-socket", "node", "probe-socket"];

#[test]
fn the_schema_of_the_chart_has_every_flag() {
    let schema: Value = serde_json::from_str(&fs::read_to_string(chart().join("values.schema.json")).unwrap()).unwrap();
    let of_flags = &schema["$defs"]["flags"];
    assert_eq!(of_flags["additionalProperties"], false);
    let properties = of_flags["properties"].as_object().unwrap();
    let real: BTreeSet<_> = flags::all().map(|flag| flag.name).filter(|name| !NOT_VALUES.contains(name)).collect();
    assert_eq!(properties.keys().map(String::as_str).collect::<BTreeSet<_>>(), real);
    for flag in flags::all().filter(|flag| real.contains(flag.name)) {
        let property = &properties[flag.name];
        assert_eq!(property["description"], flag.help, "{}", flag.name);
        let takes = |kind: &str| property["type"].as_array().is_some_and(|kinds| kinds.iter().any(|item| item == kind));
        match property["enum"].as_array() {
            // Every choice is one that the daemon accepts.
            Some(choices) => {
                for choice in choices.iter().filter(|choice| !choice.is_null()) {
                    let text = match (flag.name, choice) {
                        ("self-test", Value::Bool(on)) => if *on { "on" } else { "off" }.to_owned(),
                        (_, Value::String(text)) => text.clone(),
                        _ => choice.to_string(),
                    };
                    configured(["--node=node-a".to_owned(), format!("--{}={text}", flag.name)]);
                }
            }
            None => assert!(takes("null") && takes("boolean") == flag.value.is_none(), "{}: {property}", flag.name),
        }
        assert!(!flag.list || takes("array"), "{}: {property}", flag.name);
    }
}

/// A chart of another version than the image would have other flags.
#[test]
fn the_versions_of_the_chart_are_those_of_the_daemon() {
    let [chart] = documents(&fs::read_to_string(chart().join("Chart.yaml")).unwrap()).try_into().unwrap();
    for key in ["version", "appVersion"] {
        assert_eq!(chart[key], env!("CARGO_PKG_VERSION"), "{key}");
    }
}
