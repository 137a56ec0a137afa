//! What becomes of kiam's flags. Its agent and its server are one daemon in rolegate.

use serde_json::{Value, json};

use super::translation::{Translation, rolegate_flag};
use super::words::CommandWord;
use crate::config::DEFAULT_APP_PORT;
use crate::text;

/// What becomes of a flag.
#[derive(Clone, Copy)]
enum Fate {
    /// The name in rolegate.
    Renamed(&'static str),
    /// Why it is not needed.
    Dropped(&'static str),
    /// Why it is not there, which the operator must know.
    Lost(&'static str),
    /// It has a rule of its own below.
    Special,
}

const TLS: &str = "agent and server are one process, so they need no certificates";
const GRPC: &str = "there is no connection between agent and server any more";
const STATSD: &str = "rolegate does not send StatsD metrics; scrape the metrics port";

/// Switches, of which kingpin also knows `--no-NAME`.
const SWITCHES: &[&str] = &[
    "json-log",
    "allow-ip-query",
    "iptables",
    "iptables-remove",
    "role-base-arn-autodetect",
    "disable-strict-namespace-regexp",
    "grpc-keepalive-permit-without-stream",
    "help",
    "version",
];

fn fate(name: &str) -> Option<Fate> {
    Some(match name {
        "port" => Fate::Renamed("app-port"),
        "host" => Fate::Renamed("host-ip"),
        "host-interface" => Fate::Renamed("host-interface"),
        "level" => Fate::Renamed("log-level"),
        "role-base-arn" => Fate::Special,
        "assume-role-arn" | "kubeconfig" => Fate::Special,
        "session-duration" => Fate::Renamed("session-duration"),
        "json-log"
        | "iptables"
        | "iptables-remove"
        | "role-base-arn-autodetect"
        | "prometheus-listen-addr"
        | "region"
        | "session"
        | "whitelist-route-regexp"
        | "allow-route-regexp" => Fate::Special,
        "cert" | "key" | "ca" => Fate::Dropped(TLS),
        "server-address" | "server-address-refresh" | "gateway-timeout-creation" | "bind" | "timeout" => Fate::Dropped(GRPC),
        grpc if grpc.starts_with("grpc-") => Fate::Dropped(GRPC),
        "statsd" | "statsd-prefix" | "statsd-interval" => Fate::Lost(STATSD),
        "prometheus-sync-interval" => Fate::Dropped("metrics are always current"),
        "sync" => Fate::Dropped("the watch needs no resync"),
        "fetchers" => Fate::Dropped("--sts-concurrency (16) and --sts-rate limit requests to STS, on each node"),
        "prefetch-buffer-size" => Fate::Dropped("each node watches its own pods only"),
        "session-refresh" => Fate::Dropped("sessions are renewed at half of their life"),
        "allow-ip-query" => Fate::Dropped("a pod is known by its connection alone"),
        "disable-strict-namespace-regexp" => Fate::Lost(
            "regular expressions of namespaces always match the whole ARN. Write .* where a part was enough; until then, roles may be refused. \
             --namespace-restrictions=audit serves and reports",
        ),
        "help" | "version" => Fate::Dropped("it prints something and ends the program"),
        _ => return None,
    })
}

/// Whether a flag takes no value from the next word.
pub(super) fn is_switch(name: &str) -> bool {
    let plain = name.strip_prefix("no-").unwrap_or(name);
    SWITCHES.contains(&plain) || rolegate_flag(name).is_some_and(|flag| flag.bare)
}

/// Translates the flags of the agent and of the server.
pub(super) fn translate(agent: &[CommandWord], server: &[CommandWord], new: &mut Translation) {
    let autodetects = server.iter().any(|word| matches!(word, CommandWord::Flag { name, .. } if name == "role-base-arn-autodetect"));
    new.drop("from kiam's agent:");
    for word in agent {
        one("agent", word, false, new);
    }
    new.drop("from kiam's server:");
    for word in server {
        // Of the server's listener for metrics, there is one in the agent's place.
        if matches!(word, CommandWord::Flag { name, .. } if name == "prometheus-listen-addr" || name == "level" || name == "json-log") {
            continue;
        }
        one("server", word, autodetects, new);
    }
    if !agent.iter().any(|word| matches!(word, CommandWord::Flag { name, .. } if name == "port")) {
        new.drop(format!("kiam's port was 3100 by default; rolegate's is {DEFAULT_APP_PORT}"));
    }
    if !new.has("host-interface") && new.manages_rules() {
        new.drop("kiam without --host-interface redirected requests of docker0 only; rolegate redirects those of every interface");
    }
    if !new.has("host-ip") && new.has_variable("HOST_IP") {
        new.keep("host-ip", Some("$(HOST_IP)"), Some("kiam read the variable HOST_IP by itself"));
    }
    if !new.has("namespace-restrictions") {
        new.keep("namespace-restrictions", None, Some("added: kiam always checked the namespace's annotation iam.amazonaws.com/permitted"));
    }
    new.complete();
}

fn one(from: &str, word: &CommandWord, autodetects: bool, new: &mut Translation) {
    let CommandWord::Flag { name: given, value } = word else {
        return new.drop_unknown(word);
    };
    let (name, is_on) = match given.strip_prefix("no-").filter(|plain| SWITCHES.contains(plain)) {
        Some(plain) => (plain, false),
        None => (given.as_str(), !matches!(value.as_deref(), Some("false"))),
    };
    let value = value.as_deref();
    match fate(name) {
        Some(Fate::Renamed(ours)) => {
            let note = (ours != name).then(|| format!("kiam: --{name}"));
            new.keep(ours, value, note.as_deref());
        }
        Some(Fate::Dropped(why)) => new.drop(format!("dropped: {from} --{}: {why}", text::bounded(given))),
        Some(Fate::Lost(why)) => new.warn(format!("dropped: {from} --{}: {why}", text::bounded(given))),
        Some(Fate::Special) => special(name, value, is_on, autodetects, new),
        // Some later argument of rolegate's, in a manifest that is half changed.
        None if rolegate_flag(given).is_some() => new.keep(given, value, None),
        None => new.drop_unknown(word),
    }
}

fn special(name: &str, value: Option<&str>, is_on: bool, autodetects: bool, new: &mut Translation) {
    match (name, value) {
        ("json-log", _) if is_on => new.keep("log-format", Some("json"), Some("kiam: --json-log")),
        ("iptables", _) => new.keep("iptables", (!is_on).then_some("false"), None),
        ("iptables-remove", _) if is_on => new.drop(
            "dropped: agent --iptables-remove: rolegate's rules stay when it ends, so that pods never reach the real service. \
             --redirect-on-exit=remove removes them, and opens the node at every restart",
        ),
        ("iptables-remove", _) => new.drop("dropped: agent --no-iptables-remove: rolegate's rules stay by default"),
        ("role-base-arn-autodetect", _) if is_on => new.keep(
            "auto-discover-base-arn",
            None,
            Some("kiam: --role-base-arn-autodetect, by the server's nodes; now each node reads its own account"),
        ),
        ("role-base-arn", _) if autodetects => new.drop("dropped: server --role-base-arn: --role-base-arn-autodetect took precedence"),
        ("role-base-arn", Some(arn)) => new.keep("base-role-arn", Some(arn), Some("kiam: --role-base-arn")),
        ("assume-role-arn", Some("")) | ("kubeconfig", Some("")) | ("region", Some("")) => {}
        ("assume-role-arn", Some(arn)) => {
            new.keep(
                "assume-role-arn",
                Some(arn),
                Some("each node's own identity must be allowed to assume this role; with kiam, only the server's was"),
            );
        }
        ("kubeconfig", Some(path)) => new.keep("kubeconfig", Some(path), None),
        ("region", Some(region)) => {
            if let (false, Value::Object(entry)) = (new.has_variable("AWS_REGION"), json!({"name": "AWS_REGION", "value": region})) {
                new.add_variable(entry, Some("kiam: --region"));
            }
            new.drop("server --region has become the variable AWS_REGION");
        }
        ("session", _) => new.drop(
            "dropped: server --session: sessions are named after the pod, or by its annotation iam.amazonaws.com/session-name, as before. \
             --session-name-template names them otherwise, and ignores the annotations",
        ),
        ("prometheus-listen-addr", Some(address)) => listener(address, new),
        ("whitelist-route-regexp" | "allow-route-regexp", _) if matches!(value, Some("^$" | "")) => {
            new.drop(format!("dropped: agent --{name}: rolegate passes no request on (docs/metadata.md)"));
        }
        ("whitelist-route-regexp" | "allow-route-regexp", _) => {
            new.warn(format!(
                "dropped: agent --{name}: rolegate passes no request on. Region, zone, instance ID and type and the identity document are \
                 served to all pods; check that what your expression allowed is listed in docs/metadata.md"
            ));
            new.keep(
                "metadata-profile",
                Some("node-info"),
                Some(
                    "added for the migration, in place of that expression: the node's addresses, interfaces, tags and notices, for all pods. \
                     Remove it, or use --node-info-namespaces, when you know who reads them",
                ),
            );
        }
        // A switch that is off, as it is without it.
        ("json-log" | "role-base-arn-autodetect", _) => {}
        _ => new.warn(format!("dropped: --{} has no value", text::bounded(name))),
    }
}

/// `HOST:PORT`; without a host or with a wildcard, every address.
fn listener(address: &str, new: &mut Translation) {
    let (host, port) = address.rsplit_once(':').unwrap_or(("", address));
    new.keep("metrics-port", Some(port), Some("kiam: --prometheus-listen-addr. The server's metrics are here, too"));
    match host {
        "" | "0.0.0.0" | "[::]" => {}
        "localhost" => new.keep("metrics-bind-address", Some("127.0.0.1"), None),
        host => new.keep("metrics-bind-address", Some(host.trim_matches(['[', ']'])), None),
    }
}
