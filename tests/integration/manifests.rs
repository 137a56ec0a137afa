//! Checks the kustomize components of `daemonset/`.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use rolegate_lab::node::programs_or_skip;
use serde_json::Value;

fn directory() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("daemonset")
}

/// Returns the documents of a YAML file.
pub(crate) fn documents(text: &str) -> Vec<Value> {
    serde_saphyr::from_multiple(text).unwrap()
}

fn document(path: &str) -> Value {
    let [document] = documents(&fs::read_to_string(directory().join(path)).unwrap()).try_into().unwrap();
    document
}

/// Returns the names of all components.
pub(crate) fn components() -> BTreeSet<String> {
    let entries = fs::read_dir(directory()).unwrap().map(|entry| entry.unwrap().path());
    let names = entries.filter(|path| path.is_dir()).map(|path| path.file_name().unwrap().to_str().unwrap().to_owned());
    names.filter(|name| document(&format!("{name}/kustomization.yaml"))["kind"] == "Component").collect()
}

/// Renders the base with these components, as `kubectl apply -k` does.
pub(crate) fn render(components: &[&str]) -> Vec<Value> {
    let overlay = tempfile::tempdir().unwrap();
    symlink(directory(), overlay.path().join("base")).unwrap();
    let components: Vec<_> = components.iter().map(|name| format!("base/{name}")).collect();
    let text = format!(
        "apiVersion: kustomize.config.k8s.io/v1beta1\nkind: Kustomization\nresources: [base]\ncomponents: [{}]\n",
        components.join(", ")
    );
    fs::write(overlay.path().join("kustomization.yaml"), text).unwrap();
    let output = Command::new("kubectl").arg("kustomize").arg(overlay.path()).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    documents(&String::from_utf8(output.stdout).unwrap())
}

fn of_kind<'a>(documents: &'a [Value], kind: &str) -> Vec<&'a Value> {
    documents.iter().filter(|document| document["kind"] == kind).collect()
}

#[test]
fn every_component_renders_with_the_base() {
    if !programs_or_skip(&["kubectl"]) {
        return;
    }
    let (base, components) = (render(&[]), components());
    assert!(components.len() > 5, "{components:?}");
    for component in &components {
        let rendered = render(&[component]);
        assert_ne!(rendered, base, "{component} changes nothing");
        let [daemon] = of_kind(&rendered, "DaemonSet").try_into().unwrap();
        assert_eq!(daemon["metadata"]["namespace"], "kube-system", "{component}");
    }
}

/// Returns the DaemonSet of the base with these components.
fn daemon_set(components: &[&str]) -> Value {
    let rendered = render(components);
    let [daemon] = of_kind(&rendered, "DaemonSet").try_into().unwrap();
    daemon.clone()
}

#[test]
fn a_daemon_that_overlaps_its_successor_declares_no_ports() {
    if !programs_or_skip(&["kubectl"]) {
        return;
    }
    let handover = |daemon: &Value| {
        let arguments = daemon.pointer("/spec/template/spec/containers/0/args").unwrap().as_array().unwrap();
        arguments.iter().any(|argument| argument.as_str().unwrap().starts_with("--handover-socket="))
    };
    for (components, overlaps) in [
        (&[][..], true),
        (&["bpf", "pod-identity"], true),
        (&["without-surge"], false),
        (&["without-surge", "bpf"], false),
        (&["cilium"], false),
    ] {
        let daemon = daemon_set(components);
        let rolling = &daemon["spec"]["updateStrategy"]["rollingUpdate"];
        assert_eq!((rolling["maxSurge"] == 1, handover(&daemon)), (overlaps, overlaps), "{components:?}: {rolling}");
        let ports = &daemon["spec"]["template"]["spec"]["containers"][0]["ports"];
        assert_eq!(ports.is_null(), overlaps, "{components:?}: {ports}");
        // A probe of the metrics port would ask the other daemon of the node.
        let probe = &daemon["spec"]["template"]["spec"]["containers"][0]["readinessProbe"];
        assert_eq!(probe["exec"]["command"][1], "probe", "{components:?}: {probe}");
    }
}

/// The rules are removed once the daemon has ended, whatever else the kustomization names.
#[test]
fn the_removal_runs_alone_and_with_few_rights() {
    if !programs_or_skip(&["kubectl"]) {
        return;
    }
    for components in
        [&["uninstall"][..], &["bpf", "pod-identity", "uninstall"], &["cilium", "uninstall"], &["without-self-test", "uninstall"]]
    {
        let daemon = daemon_set(components);
        assert_eq!(daemon["spec"]["updateStrategy"]["rollingUpdate"], serde_json::json!({"maxUnavailable": "100%"}), "{components:?}");
        let pod = &daemon["spec"]["template"]["spec"];
        assert!(pod["containers"][0]["ports"].is_null(), "{components:?}");
        let capabilities = &pod["initContainers"][0]["securityContext"]["capabilities"];
        assert_eq!(*capabilities, serde_json::json!({"drop": ["ALL"], "add": ["NET_ADMIN"]}), "{components:?}");
    }
}

#[test]
fn the_local_redirect_policy_selects_the_daemons_pods_and_port() {
    if !programs_or_skip(&["kubectl"]) {
        return;
    }
    let rendered = render(&["cilium"]);
    let [daemon] = of_kind(&rendered, "DaemonSet").try_into().unwrap();
    let [policy] = of_kind(&rendered, "CiliumLocalRedirectPolicy").try_into().unwrap();
    assert_eq!(policy["metadata"]["namespace"], daemon["metadata"]["namespace"]);
    let (spec, template) = (&policy["spec"], &daemon["spec"]["template"]);
    let labels = spec["redirectBackend"]["localEndpointSelector"]["matchLabels"].as_object().unwrap();
    assert!(!labels.is_empty());
    for (name, value) in labels {
        assert_eq!(template["metadata"]["labels"][name], *value, "{name}");
    }
    let container = &template["spec"]["containers"][0];
    let ports = container["ports"].as_array().unwrap();
    let [app] = ports.iter().filter(|port| port["name"] == "metadata").collect::<Vec<_>>().try_into().unwrap();
    assert_eq!(spec["redirectBackend"]["toPorts"][0]["port"], app["containerPort"].to_string());
    let arguments = container["args"].as_array().unwrap();
    assert!(arguments.iter().any(|argument| argument == "--accept-direct-connections"), "{arguments:?}");
    // The packet rules stay, for what they see.
    assert!(arguments.iter().any(|argument| argument == "--iptables"), "{arguments:?}");
}

/// Checks a port in the form that Cilium's schema requires.
#[track_caller]
fn assert_port(ports: &Value, wanted: &str) {
    let [port] = ports.as_array().unwrap().as_slice() else { panic!("with several ports, Cilium requires names: {ports}") };
    // A number is rejected.
    assert_eq!((port["port"].as_str(), port["protocol"].as_str()), (Some(wanted), Some("TCP")), "{port}");
    assert_eq!(port.as_object().unwrap().len(), 2, "{port}");
}

/// The fields are those that the resource definition `ciliumlocalredirectpolicies.cilium.io` requires or knows, in Cilium 1.15 to 1.20
/// (`pkg/k8s/apis/cilium.io/client/crds/v2` in Cilium's repository). An API server rejects or drops others.
#[test]
fn the_local_redirect_policy_has_the_fields_that_cilium_requires() {
    let policy = document("cilium/local-redirect-policy.yaml");
    let keys = |value: &Value| value.as_object().unwrap().keys().cloned().collect::<BTreeSet<_>>();
    let set = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<BTreeSet<_>>();
    assert_eq!((&policy["apiVersion"], &policy["kind"]), (&"cilium.io/v2".into(), &"CiliumLocalRedirectPolicy".into()));
    assert_eq!(keys(&policy), set(&["apiVersion", "kind", "metadata", "spec"]));
    let (spec, backend) = (&policy["spec"], &policy["spec"]["redirectBackend"]);
    assert_eq!(keys(spec), set(&["description", "redirectBackend", "redirectFrontend"]));
    assert!(spec["description"].is_string());
    // A frontend has either of two matchers.
    assert_eq!(keys(&spec["redirectFrontend"]), set(&["addressMatcher"]));
    let frontend = &spec["redirectFrontend"]["addressMatcher"];
    assert_eq!(keys(frontend), set(&["ip", "toPorts"]));
    assert_eq!(frontend["ip"], rolegate::metadata_service::METADATA_IPV4.to_string());
    assert_port(&frontend["toPorts"], "80");
    assert_eq!(keys(backend), set(&["localEndpointSelector", "toPorts"]));
    assert_port(&backend["toPorts"], "8181");
}

/// Whoever names the component must have read what it does.
#[test]
fn the_component_with_the_local_redirect_policy_warns() {
    let text = fs::read_to_string(directory().join("cilium/kustomization.yaml")).unwrap();
    assert!(text.starts_with("# Not recommended: ") && text.contains("docs/cni.md"), "{text}");
    assert!(document("cilium/kustomization.yaml")["resources"][0] == "local-redirect-policy.yaml");
}
