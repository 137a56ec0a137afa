//! The arguments of kiam's agent, in the words of rolegate.
//!
//! kiam has two programs: `kiam agent` on every node, and `kiam server` on a few. rolegate takes the place of both, so it starts
//! with the arguments of the agent, and with those of the server that say the same here. The names and meanings are kiam's
//! (`cmd/kiam/*.go`). kiam's flags have other names than rolegate's, so nothing else is changed.

use std::collections::VecDeque;
use std::ffi::{OsStr, OsString};
use std::net::{IpAddr, Ipv4Addr};

use super::ConfigWarning;

/// kiam's word for what runs on each node.
const AGENT: &str = "agent";
/// kiam's word for what runs on some nodes.
const SERVER: &str = "server";

/// What a flag of kiam is here.
enum Meaning {
    /// A flag of the same meaning.
    Flag(&'static str),
    /// A switch: what it is when it is on, and with `--no-` before it.
    Switch(&'static str, &'static str),
    /// `HOST:PORT` of the metrics.
    MetricsAddress,
    /// A value that has no use here, and why.
    Unused(&'static str),
    /// A switch that has no use here, and why.
    UnusedSwitch(&'static str),
}

use Meaning::{Flag, MetricsAddress, Switch, Unused, UnusedSwitch};

const NO_SERVER: &str = "rolegate has no server, so there is no connection to one";
const NO_STATSD: &str = "rolegate has metrics for Prometheus only";
const KEPT: &str = "rolegate keeps the packet rules when it stops, so that pods never reach the node's credentials; give \
                    --redirect-on-exit=remove to remove them";
const ROUTES: &str = "rolegate does not pass requests on; see --metadata-profile for what pods may read";

const FLAGS: &[(&str, Meaning)] = &[
    ("json-log", Switch("--log-format=json", "--log-format=text")),
    ("level", Flag("log-level")),
    ("port", Flag("app-port")),
    ("host", Flag("host-ip")),
    ("prometheus-listen-addr", MetricsAddress),
    ("role-base-arn", Flag("base-role-arn")),
    ("role-base-arn-autodetect", Switch("--auto-discover-base-arn", "--auto-discover-base-arn=false")),
    ("iptables-remove", UnusedSwitch(KEPT)),
    ("allow-route-regexp", Unused(ROUTES)),
    ("whitelist-route-regexp", Unused(ROUTES)),
    ("cert", Unused(NO_SERVER)),
    ("key", Unused(NO_SERVER)),
    ("ca", Unused(NO_SERVER)),
    ("server-address", Unused(NO_SERVER)),
    ("server-address-refresh", Unused(NO_SERVER)),
    ("gateway-timeout-creation", Unused(NO_SERVER)),
    ("grpc-keepalive-time-duration", Unused(NO_SERVER)),
    ("grpc-keepalive-timeout-duration", Unused(NO_SERVER)),
    ("grpc-keepalive-permit-without-stream", UnusedSwitch(NO_SERVER)),
    ("bind", Unused(NO_SERVER)),
    ("statsd", Unused(NO_STATSD)),
    ("statsd-prefix", Unused(NO_STATSD)),
    ("statsd-interval", Unused(NO_STATSD)),
    ("prometheus-sync-interval", Unused("metrics are always current")),
    ("sync", Unused("the watch needs no resync")),
    ("fetchers", Unused("--sts-concurrency limits requests to STS")),
    ("prefetch-buffer-size", Unused("rolegate needs no such buffer")),
    ("session-refresh", Unused("sessions are refreshed at half of their duration")),
    ("session", Unused("--session-name-template names sessions")),
    ("region", Unused("the variable AWS_REGION sets the region")),
    ("disable-strict-namespace-regexp", UnusedSwitch("the patterns of namespaces always match whole ARNs")),
];

/// The arguments in the words of rolegate.
#[derive(Debug)]
pub(crate) struct TranslatedArguments {
    /// The program and its arguments.
    pub arguments: Vec<OsString>,
    /// What was changed.
    pub warnings: Vec<ConfigWarning>,
    /// Whether they are those of the daemon, or may be meant as such.
    pub of_daemon: bool,
}

/// The arguments are those of kiam's server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "rolegate has no server: the daemon on each node takes the place of kiam's agent and server. Delete this DaemonSet or Deployment, and \
     give --base-role-arn, --auto-discover-base-arn or --assume-role-arn to the daemon"
)]
pub(crate) struct ServerArguments;

/// Translates what is kiam's in the arguments of the daemon. Those of `other` subcommands stay as they are.
///
/// # Errors
/// If they are those of kiam's server.
pub(crate) fn translate(
    arguments: impl IntoIterator<Item = OsString>,
    other: impl Fn(&str) -> bool,
) -> Result<TranslatedArguments, ServerArguments> {
    let mut all: VecDeque<OsString> = arguments.into_iter().collect();
    let program = all.pop_front();
    let first = all.front().and_then(|word| word.to_str()).unwrap_or_default().to_owned();
    let mut translated = TranslatedArguments { arguments: program.into_iter().collect(), warnings: Vec::new(), of_daemon: !other(&first) };
    if first == SERVER {
        return Err(ServerArguments);
    }
    if first == AGENT {
        all.pop_front();
        translated.agent(&all);
    }
    while let Some(argument) = all.pop_front() {
        match KiamFlag::find(&argument).filter(|_| translated.of_daemon) {
            Some(flag) => translated.flag(flag, &mut all),
            None => translated.arguments.push(argument),
        }
    }
    Ok(translated)
}

/// A flag of kiam on the command line.
struct KiamFlag {
    /// As it stands there, without dashes and value.
    name: String,
    meaning: &'static Meaning,
    /// With `--no-` before it.
    negated: bool,
    /// What stands behind the equals sign.
    value: Option<String>,
}

impl KiamFlag {
    fn find(argument: &OsStr) -> Option<Self> {
        let text = argument.to_str()?.strip_prefix("--")?;
        let (name, value) = text.split_once('=').map_or((text, None), |(name, value)| (name, Some(value.to_owned())));
        let find = |wanted: &str| FLAGS.iter().find(|(name, _)| *name == wanted).map(|(_, meaning)| meaning);
        let positive = find(name).map(|meaning| (meaning, false));
        let negative = || {
            let meaning = find(name.strip_prefix("no-")?)?;
            matches!(meaning, Switch(..) | UnusedSwitch(_)).then_some((meaning, true))
        };
        let (meaning, negated) = positive.or_else(negative)?;
        Some(Self { name: name.to_owned(), meaning, negated, value })
    }
}

impl TranslatedArguments {
    /// Says what the agent's arguments leave open, and takes over what kiam does without being told.
    fn agent(&mut self, rest: &VecDeque<OsString>) {
        self.warn(
            "kiam-agent",
            "the arguments are those of kiam's agent: rolegate needs no kiam server, and completes short role names only with \
             --base-role-arn or --auto-discover-base-arn",
        );
        let is_given = |name: &str| rest.iter().any(|word| word.to_str().is_some_and(|word| word.starts_with(name)));
        if !is_given("--namespace-restrictions") {
            self.warn(
                "kiam-namespaces",
                "kiam allows a namespace only the roles of its annotation iam.amazonaws.com/permitted: using --namespace-restrictions=true",
            );
            self.arguments.push("--namespace-restrictions=true".into());
        }
    }

    fn flag(&mut self, flag: KiamFlag, rest: &mut VecDeque<OsString>) {
        let KiamFlag { name, meaning, negated, value } = flag;
        let takes_value = matches!(meaning, Flag(_) | MetricsAddress | Unused(_));
        let value = match value {
            None if takes_value => rest.pop_front().and_then(|word| word.into_string().ok()),
            value => value,
        };
        let instead = match meaning {
            Flag(ours) => vec![format!("--{ours}={}", value.unwrap_or_default())],
            // Some parsers take a value of a switch, too.
            Switch(on, off) => vec![if negated || value.as_deref() == Some("false") { off } else { on }.to_string()],
            MetricsAddress => metrics_address(value.as_deref().unwrap_or_default()),
            Unused(why) | UnusedSwitch(why) => {
                return self.warn("kiam-argument", format!("--{name} of kiam has no effect: {why}"));
            }
        };
        self.warn("kiam-argument", format!("--{name} is a flag of kiam: using {}; use that instead", instead.join(" ")));
        self.arguments.extend(instead.into_iter().map(OsString::from));
    }

    fn warn(&mut self, reason: &'static str, text: impl Into<String>) {
        self.warnings.push(ConfigWarning::new(reason, text));
    }
}

/// The flags for the metrics at `HOST:PORT`; a text of another form stands as the port, for the error that it is.
fn metrics_address(text: &str) -> Vec<String> {
    let (host, port) = text.rsplit_once(':').unwrap_or(("", text));
    let host = match host.trim_start_matches('[').trim_end_matches(']') {
        "localhost" => Some(IpAddr::V4(Ipv4Addr::LOCALHOST)),
        host => host.parse().ok().filter(|ip: &IpAddr| !ip.is_unspecified()),
    };
    let bind = host.map(|ip| format!("--metrics-bind-address={ip}"));
    std::iter::once(format!("--metrics-port={port}")).chain(bind).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test says loudly what failed")]
    use super::*;

    fn translated(arguments: &[&str]) -> (Vec<String>, Vec<&'static str>) {
        let words = ["rolegate"].iter().chain(arguments).map(OsString::from);
        let TranslatedArguments { arguments, warnings, .. } = translate(words, |word| word == "explain").unwrap();
        let arguments = arguments.into_iter().skip(1).map(|word| word.into_string().unwrap()).collect();
        (arguments, warnings.into_iter().map(|warning| warning.reason).collect())
    }

    #[test]
    fn flags_of_kiam_become_ours() {
        for (kiam, ours) in [
            (&["--json-log"][..], &["--log-format=json"][..]),
            (&["--no-json-log"], &["--log-format=text"]),
            (&["--level=warn", "--port=8181"], &["--log-level=warn", "--app-port=8181"]),
            (&["--level", "warn", "--port", "8181", "--iptables"], &["--log-level=warn", "--app-port=8181", "--iptables"]),
            (&["--host=10.0.0.1"], &["--host-ip=10.0.0.1"]),
            (&["--prometheus-listen-addr=0.0.0.0:9620"], &["--metrics-port=9620"]),
            (&["--prometheus-listen-addr=localhost:9620"], &["--metrics-port=9620", "--metrics-bind-address=127.0.0.1"]),
            (&["--prometheus-listen-addr=[fd00::1]:9620"], &["--metrics-port=9620", "--metrics-bind-address=fd00::1"]),
            (&["--role-base-arn-autodetect"], &["--auto-discover-base-arn"]),
            (&["--no-iptables-remove", "--cert=/a", "--statsd", "host:1"], &[]),
        ] {
            let (arguments, reasons) = translated(kiam);
            assert_eq!(arguments, ours, "{kiam:?}");
            assert!(!reasons.is_empty() && reasons.iter().all(|reason| *reason == "kiam-argument"), "{kiam:?}: {reasons:?}");
        }
    }

    #[test]
    fn the_agent_restricts_namespaces_as_in_kiam() {
        assert_eq!(translated(&["agent", "--iptables"]).0, ["--namespace-restrictions=true", "--iptables"]);
        assert_eq!(translated(&["agent", "--namespace-restrictions=audit"]).0, ["--namespace-restrictions=audit"]);
        let words = |first: &str| ["rolegate".into(), OsString::from(first), "--port=1".into()];
        assert_eq!(translate(words("server"), |_| false).unwrap_err(), ServerArguments);
    }

    #[test]
    fn arguments_that_are_not_of_kiam_stay_as_they_are() {
        for arguments in [&["--node=a", "--iptables=true", "--port-range=1"][..], &["explain", "--level=x"], &["run", "--node", "b"], &[]] {
            assert_eq!(translated(arguments), (arguments.iter().map(|word| (*word).to_owned()).collect(), vec![]), "{arguments:?}");
        }
    }

    /// Else one of them could never be given to rolegate.
    #[test]
    fn no_flag_of_ours_is_taken_for_one_of_kiam() {
        for flag in crate::config::flags::of_all_commands() {
            assert!(KiamFlag::find(OsStr::new(&format!("--{}", flag.name))).is_none(), "--{}", flag.name);
        }
    }
}
