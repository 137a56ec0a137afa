//! Every flag of kiam's agent and server, with its meaning in rolegate. The daemon's start and `rolegate migrate` read this table.
//!
//! The names are kiam's (`cmd/kiam/*.go`, v4). Its parser (kingpin) also knows each switch with `--no-` before it.

/// A flag of kiam.
#[derive(Debug)]
pub(crate) struct KiamFlag {
    /// The name, without dashes.
    pub name: &'static str,
    /// Whether it takes no value.
    pub is_switch: bool,
    /// What it is in rolegate.
    pub meaning: KiamMeaning,
}

/// What a flag of kiam is in rolegate.
#[derive(Debug)]
pub(crate) enum KiamMeaning {
    /// The flag of the same name.
    Same,
    /// A flag of another name that takes the same value.
    Renamed(&'static str),
    /// A flag with a value for each position of the switch. `on: None` stands for the flag without a value.
    Switch {
        /// The name of the flag.
        ours: &'static str,
        /// Its value if the switch is on.
        on: Option<&'static str>,
        /// Its value if the switch is off.
        off: &'static str,
    },
    /// The address of the metrics, `HOST:PORT`: see [`metrics_address`].
    MetricsAddress,
    /// It has no effect and nothing is lost. The text says why.
    Unneeded(&'static str),
    /// It has no effect, and what it did is missing or different. The text says how.
    Lost(&'static str),
    /// It prints something and ends the program.
    Ends,
}

use KiamMeaning::{Ends, Lost, MetricsAddress, Renamed, Same, Switch, Unneeded};

const ONE_PROCESS: &str = "agent and server are one process, so there is no connection between them";
const NO_CERTIFICATES: &str = "agent and server are one process, so they need no certificates";
const NO_STATSD: &str = "rolegate does not send StatsD metrics; scrape the metrics port";
const RULES_STAY: &str = "rolegate keeps its packet rules when it stops, so that pods never reach the real metadata service; \
                          --redirect-on-exit=remove removes them, and opens the node at every restart";
const NO_FORWARDING: &str = "rolegate does not pass requests on; see --metadata-profile for what pods may read";

const FLAGS: &[KiamFlag] = &[
    // Of both.
    switch("json-log", Switch { ours: "log-format", on: Some("json"), off: "text" }),
    value("level", Renamed("log-level")),
    value("prometheus-listen-addr", MetricsAddress),
    value("prometheus-sync-interval", Unneeded("metrics are always current")),
    value("statsd", Lost(NO_STATSD)),
    value("statsd-prefix", Lost(NO_STATSD)),
    value("statsd-interval", Lost(NO_STATSD)),
    value("cert", Unneeded(NO_CERTIFICATES)),
    value("key", Unneeded(NO_CERTIFICATES)),
    value("ca", Unneeded(NO_CERTIFICATES)),
    value("grpc-keepalive-time-duration", Unneeded(ONE_PROCESS)),
    value("grpc-keepalive-timeout-duration", Unneeded(ONE_PROCESS)),
    switch("grpc-keepalive-permit-without-stream", Unneeded(ONE_PROCESS)),
    value("timeout", Unneeded(ONE_PROCESS)),
    switch("help", Ends),
    switch("version", Ends),
    // Of the agent.
    value("port", Renamed("app-port")),
    value("host", Renamed("host-ip")),
    value("host-interface", Same),
    switch("iptables", Same),
    switch("iptables-remove", Unneeded(RULES_STAY)),
    value("allow-route-regexp", Lost(NO_FORWARDING)),
    value("whitelist-route-regexp", Lost(NO_FORWARDING)),
    switch("allow-ip-query", Unneeded("a pod is known by its connection alone")),
    value("server-address", Unneeded(ONE_PROCESS)),
    value("server-address-refresh", Unneeded(ONE_PROCESS)),
    value("gateway-timeout-creation", Unneeded(ONE_PROCESS)),
    // Of the server.
    value("bind", Unneeded(ONE_PROCESS)),
    value("kubeconfig", Same),
    value("role-base-arn", Renamed("base-role-arn")),
    switch("role-base-arn-autodetect", Switch { ours: "auto-discover-base-arn", on: None, off: "false" }),
    value("assume-role-arn", Same),
    value(
        "session",
        Unneeded(
            "sessions are named after the pod, or by its annotation iam.amazonaws.com/session-name, as before; --session-name-template \
             names them otherwise, and ignores the annotations",
        ),
    ),
    value("session-duration", Same),
    value("session-refresh", Unneeded("sessions are renewed at half of their life")),
    value("region", Unneeded("the variable AWS_REGION sets the region")),
    value("sync", Unneeded("the watch needs no resync")),
    value("fetchers", Unneeded("--sts-concurrency (16) and --sts-rate limit requests to STS, on each node")),
    value("prefetch-buffer-size", Unneeded("each node watches its own pods only")),
    switch(
        "disable-strict-namespace-regexp",
        Lost(
            "regular expressions of namespaces always match the whole ARN: write .* where a part was enough; until then, roles may be \
             refused; --namespace-restrictions=audit serves and reports",
        ),
    ),
];

const fn value(name: &'static str, meaning: KiamMeaning) -> KiamFlag {
    KiamFlag { name, is_switch: false, meaning }
}

const fn switch(name: &'static str, meaning: KiamMeaning) -> KiamFlag {
    KiamFlag { name, is_switch: true, meaning }
}

impl KiamFlag {
    /// Returns the flag with this name, and whether it is a switch with `no-` before the name.
    pub(crate) fn named(given: &str) -> Option<(&'static Self, bool)> {
        let find = |wanted: &str| FLAGS.iter().find(|flag| flag.name == wanted);
        find(given).map(|flag| (flag, false)).or_else(|| {
            let flag = find(given.strip_prefix("no-")?).filter(|flag| flag.is_switch)?;
            Some((flag, true))
        })
    }
}

/// Returns the port of `HOST:PORT` and the host; `None` for a host that stands for every address. A text of another form is
/// returned as the port, for the error that it is.
pub(crate) fn metrics_address(text: &str) -> (&str, Option<&str>) {
    let (host, port) = text.rsplit_once(':').unwrap_or(("", text));
    let host = match host.trim_start_matches('[').trim_end_matches(']') {
        "" | "0.0.0.0" | "::" => None,
        "localhost" => Some("127.0.0.1"),
        host => Some(host),
    };
    (port, host)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::flags;

    #[test]
    fn names_of_our_flags_exist() {
        for flag in FLAGS {
            let ours = match flag.meaning {
                Same => flag.name,
                Renamed(ours) | Switch { ours, .. } => ours,
                MetricsAddress => "metrics-port",
                Unneeded(_) | Lost(_) | Ends => continue,
            };
            let found = flags::all().find(|known| known.name == ours);
            assert!(
                found.is_some_and(|known| known.bare || !flag.is_switch || matches!(flag.meaning, Switch { on: Some(_), .. })),
                "{ours}"
            );
        }
    }

    #[test]
    fn switches_have_a_negative_form() {
        let found = |given: &str| KiamFlag::named(given).map(|(flag, negated)| (flag.name, negated));
        assert_eq!(found("json-log"), Some(("json-log", false)));
        assert_eq!(found("no-json-log"), Some(("json-log", true)));
        assert_eq!([found("no-level"), found("bogus"), found("no-bogus"), found("")], [None; 4]);
    }

    #[test]
    fn the_address_of_metrics_has_a_port_and_mostly_a_host() {
        for (text, wanted) in [
            (":9620", ("9620", None)),
            ("0.0.0.0:9620", ("9620", None)),
            ("[::]:9620", ("9620", None)),
            ("localhost:9620", ("9620", Some("127.0.0.1"))),
            ("[fd00::1]:9620", ("9620", Some("fd00::1"))),
            ("$(HOST_IP):9620", ("9620", Some("$(HOST_IP)"))),
            ("nonsense", ("nonsense", None)),
        ] {
            assert_eq!(metrics_address(text), wanted, "{text}");
        }
    }
}
