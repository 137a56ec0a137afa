//! The daemon's container: image, ports, probes, resources and rights.

use serde_json::{Map, Value, json};

use super::daemon::OldDaemon;
use super::manifest::{filled, string};
use super::translation::Translation;
use super::yaml::{MapBuilder, Noted, YamlNode};
use crate::config::{Config, RedirectBackend, SelfTestMode};
use crate::text;

/// Fields of the container that are written anew, or are read elsewhere.
const WRITTEN: &[&str] = &[
    "name",
    "image",
    "command",
    "args",
    "env",
    "ports",
    "livenessProbe",
    "readinessProbe",
    "resources",
    "securityContext",
    "volumeMounts",
    "envFrom",
    "imagePullPolicy",
    "terminationMessagePath",
    "terminationMessagePolicy",
];
/// How often and for how long a probe asks: the operator's numbers stay.
const TIMES: &[&str] = &["initialDelaySeconds", "periodSeconds", "timeoutSeconds", "failureThreshold"];
/// Below it, ports are for NET_BIND_SERVICE alone.
const FIRST_FREE_PORT: u16 = 1024;

/// Returns the container.
pub(super) fn translate(old: &OldDaemon<'_>, new: &mut Translation, config: &Config, mounts: YamlNode) -> MapBuilder {
    let mut container = MapBuilder::default();
    container.noted(
        "name",
        string(old.container, "name").unwrap_or("rolegate"),
        vec!["unchanged, so that \"kubectl apply\" replaces the old container instead of adding one".to_owned()],
    );
    container.noted(
        "image",
        concat!("registry.example.com/rolegate:", env!("CARGO_PKG_VERSION")),
        vec![format!("replace with your image; it was {}", text::quoted(string(old.container, "image").unwrap_or_default()))],
    );
    container.put_some("imagePullPolicy", filled(old.container.get("imagePullPolicy")));
    let mut notes = old.line.notes.clone();
    if old.container.contains_key("command") {
        notes.insert(0, "command dropped: rolegate's image starts rolegate".to_owned());
    }
    container.noted("args", new.arguments(), notes);
    container.put("env", new.environment());
    if let Some(sources) = filled(old.container.get("envFrom")) {
        let note = "kept, but not checked: variables named ROLEGATE_... are flags of rolegate";
        new.warnings.push(format!("envFrom: {note}"));
        container.noted("envFrom", sources, vec![note.to_owned()]);
    }
    container.put("ports", ports(old, config));
    probes(&mut container, old, config);
    container.put("volumeMounts", mounts);
    match filled(old.container.get("resources")) {
        Some(resources) => {
            let is_cpu_limited = resources.get("limits").is_some_and(|limits| limits.get("cpu").is_some());
            let mut notes = vec!["unchanged; rolegate's own manifest requests 20m and 32Mi, and limits memory to 128Mi".to_owned()];
            if is_cpu_limited {
                notes.push("remove the CPU limit: a throttled daemon is slower than SDKs wait".to_owned());
            }
            container.noted("resources", resources, notes);
        }
        None => {
            let resources = json!({"requests": {"cpu": "20m", "memory": "32Mi"}, "limits": {"memory": "128Mi"}});
            container.noted("resources", resources, vec!["added: those of rolegate's own manifest".to_owned()]);
        }
    }
    rights(&mut container, old, config);
    rest(&mut container, old, new);
    container
}

/// The two ports. Names of ports are kept, because Services and monitors use them.
fn ports(old: &OldDaemon<'_>, config: &Config) -> YamlNode {
    let name_of = |port: u16| {
        let mut ports = super::manifest::maps(old.container, "ports");
        ports.find(|entry| entry.get("containerPort") == Some(&json!(port))).and_then(|entry| string(entry, "name"))
    };
    let app = name_of(config.server.port).filter(|name| *name != "metrics").unwrap_or("metadata");
    let metrics = name_of(config.admin.port).filter(|name| *name != app).unwrap_or("metrics");
    let port = |name: &str, number: u16, note: Option<String>| {
        let mut port = MapBuilder::default();
        port.put("name", name);
        port.put("containerPort", json!(number));
        port.put("hostPort", json!(number));
        port.put("protocol", "TCP");
        Noted { notes: note.into_iter().collect(), node: port.build() }
    };
    let moved = name_of(config.admin.port).is_none().then(|| "metrics and probes; let Prometheus scrape this port".to_owned());
    vec![port(app, config.server.port, None), port(metrics, config.admin.port, moved)].into()
}

fn probes(container: &mut MapBuilder, old: &OldDaemon<'_>, config: &Config) {
    for (kind, path) in [("livenessProbe", "/healthz"), ("readinessProbe", "/readyz")] {
        let given = old.container.get(kind).and_then(Value::as_object).filter(|probe| !probe.is_empty());
        let mut request = MapBuilder::default();
        request.put("path", path);
        request.put("port", json!(config.admin.port));
        if let Some(address) = config.admin.address.filter(|address| !address.is_unspecified()) {
            request.put("host", address.to_string().as_str());
        }
        let mut probe = MapBuilder::default();
        probe.put("httpGet", request);
        for (key, default) in TIMES.iter().zip([Some(5), Some(10), Some(3), None]) {
            let own = given.and_then(|probe| probe.get(*key)).filter(|value| value.is_u64()).cloned();
            probe.put_some(key, own.or(if given.is_some() { None } else { default.map(Value::from) }));
        }
        let note = match given.map(described) {
            Some(was) => format!("replaced: it was {was}"),
            None => "added".to_owned(),
        };
        container.noted(kind, probe, vec![note]);
    }
}

/// What an old probe asked.
fn described(probe: &Map<String, Value>) -> String {
    if let Some(request) = probe.get("httpGet") {
        let port = request.get("port").map(|port| port.as_str().map_or_else(|| port.to_string(), str::to_owned));
        let path = request.get("path").and_then(Value::as_str).unwrap_or("/");
        return text::quoted(&format!("GET {path} on port {}", port.unwrap_or_default()));
    }
    match probe.keys().find(|key| matches!(key.as_str(), "exec" | "tcpSocket" | "grpc")) {
        Some(kind) if kind == "exec" => "a program of the old image".to_owned(),
        Some(kind) => text::bounded(kind),
        None => "of no known kind".to_owned(),
    }
}

fn rights(container: &mut MapBuilder, old: &OldDaemon<'_>, config: &Config) {
    let had = old.container.get("securityContext").and_then(Value::as_object);
    let has_rules = config.redirect.backend != RedirectBackend::None;
    let mut added = Vec::new();
    let mut notes = Vec::new();
    if has_rules {
        added.push("NET_ADMIN");
        notes.push("NET_ADMIN: the packet rules");
        if config.self_test.mode != SelfTestMode::Off {
            added.push("SYS_ADMIN");
            notes.push("SYS_ADMIN: the self-test, at startup; without this capability, set --self-test=off");
        }
    }
    if [config.server.port, config.admin.port].into_iter().any(|port| (1..FIRST_FREE_PORT).contains(&port)) {
        added.push("NET_BIND_SERVICE");
        notes.push("NET_BIND_SERVICE: a port below 1024");
    }
    let mut capabilities = MapBuilder::default();
    capabilities.put("drop", json!(["ALL"]));
    if !added.is_empty() {
        capabilities.noted("add", json!(added), notes.into_iter().map(str::to_owned).collect());
    }
    let mut context = MapBuilder::default();
    context.noted("runAsUser", json!(0), vec!["iptables and nft work for root alone".to_owned()]);
    let was_privileged = had.and_then(|had| had.get("privileged")) == Some(&json!(true));
    context.noted(
        "privileged",
        json!(false),
        was_privileged.then(|| "changed: rolegate needs no privileged container".to_owned()).into_iter().collect(),
    );
    context.put("allowPrivilegeEscalation", json!(false));
    context.put("readOnlyRootFilesystem", json!(true));
    context.put("capabilities", capabilities);
    context.put("seccompProfile", json!({"type": "RuntimeDefault"}));
    context.put_some("seLinuxOptions", had.and_then(|had| filled(had.get("seLinuxOptions"))));
    container.put("securityContext", context);
}

/// What is left of the old container.
fn rest(container: &mut MapBuilder, old: &OldDaemon<'_>, new: &mut Translation) {
    for (key, value) in old.container {
        if WRITTEN.contains(&key.as_str()) || filled(Some(value)).is_none() || *value == json!(false) {
            continue;
        }
        let why = match key.as_str() {
            "lifecycle" => "rolegate needs no hooks. A hook that takes packet rules away would open the node to its pods",
            "startupProbe" => "rolegate listens at once; the readiness probe says when it serves",
            _ => "check whether you need it",
        };
        let note = format!("dropped: {} of the container: {why}", text::quoted(key));
        new.warnings.push(note.clone());
        container.comment(note);
    }
}
