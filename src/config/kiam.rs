//! The arguments of kiam's agent, in the words of rolegate.
//!
//! kiam has two programs: `kiam agent` on every node, and `kiam server` on a few. rolegate takes the place of both, so it starts
//! with the arguments of the agent, and with those of the server that say the same here. [`table`] has the names and meanings. kiam's flags that need a translation
//! have other names than rolegate's, so nothing else is changed.

use std::collections::VecDeque;
use std::ffi::{OsStr, OsString};
use std::net::IpAddr;

use super::ConfigWarning;
use table::{KiamFlag, KiamMeaning, metrics_address};

pub(crate) mod table;

/// kiam's word for what runs on each node.
const AGENT: &str = "agent";
/// kiam's word for what runs on some nodes.
const SERVER: &str = "server";

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
        match GivenKiamFlag::find(&argument).filter(|_| translated.of_daemon) {
            Some(flag) => translated.flag(flag, &mut all),
            None => translated.arguments.push(argument),
        }
    }
    Ok(translated)
}

/// A flag of kiam on the command line that rolegate does not have in this form.
struct GivenKiamFlag {
    /// As it stands there, without dashes and value.
    name: String,
    flag: &'static KiamFlag,
    /// With `--no-` before it.
    negated: bool,
    /// What stands behind the equals sign.
    value: Option<String>,
}

impl GivenKiamFlag {
    fn find(argument: &OsStr) -> Option<Self> {
        let text = argument.to_str()?.strip_prefix("--")?;
        let (name, value) = text.split_once('=').map_or((text, None), |(name, value)| (name, Some(value.to_owned())));
        let (flag, negated) = KiamFlag::named(name)?;
        let is_ours = matches!(flag.meaning, KiamMeaning::Same) && !negated || matches!(flag.meaning, KiamMeaning::Ends);
        (!is_ours).then(|| Self { name: name.to_owned(), flag, negated, value })
    }

    /// Whether the switch is on. Some parsers take a value of a switch, too.
    fn is_on(&self) -> bool {
        !self.negated && self.value.as_deref() != Some("false")
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

    fn flag(&mut self, mut given: GivenKiamFlag, rest: &mut VecDeque<OsString>) {
        if !given.flag.is_switch && given.value.is_none() {
            given.value = rest.pop_front().and_then(|word| word.into_string().ok());
        }
        let (name, value) = (&given.name, given.value.as_deref().unwrap_or_default());
        let argument = |name: &str, value: Option<&str>| value.map_or_else(|| format!("--{name}"), |value| format!("--{name}={value}"));
        let instead = match given.flag.meaning {
            KiamMeaning::Renamed(ours) => vec![argument(ours, Some(value))],
            KiamMeaning::Switch { ours, on, off } => vec![argument(ours, if given.is_on() { on } else { Some(off) })],
            KiamMeaning::MetricsAddress => {
                let (port, host) = metrics_address(value);
                // The name of a host is no address: every address, as without it.
                let host = host.filter(|host| host.parse::<IpAddr>().is_ok());
                std::iter::once(argument("metrics-port", Some(port)))
                    .chain(host.map(|ip| argument("metrics-bind-address", Some(ip))))
                    .collect()
            }
            KiamMeaning::Unneeded(why) | KiamMeaning::Lost(why) => {
                return self.warn("kiam-argument", format!("--{name} of kiam has no effect: {why}"));
            }
            // Only a switch with `--no-` before it comes here.
            KiamMeaning::Same | KiamMeaning::Ends => vec![argument(given.flag.name, Some("false"))],
        };
        self.warn("kiam-argument", format!("--{name} is a flag of kiam: using {}; use that instead", instead.join(" ")));
        self.arguments.extend(instead.into_iter().map(OsString::from));
    }

    fn warn(&mut self, reason: &'static str, text: impl Into<String>) {
        self.warnings.push(ConfigWarning::new(reason, text));
    }
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
            (&["--no-iptables"], &["--iptables=false"]),
            (&["--no-iptables-remove", "--allow-ip-query", "--cert=/a", "--statsd", "host:1"], &[]),
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
            assert!(GivenKiamFlag::find(OsStr::new(&format!("--{}", flag.name))).is_none(), "--{}", flag.name);
        }
    }
}
