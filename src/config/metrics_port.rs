//! The metrics port of a daemon, from the arguments and variables that it was started with.
//!
//! `rolegate report` and `rolegate explain` send their requests to that port. A DaemonSet that keeps the arguments of kube2iam or
//! kiam may have another port than the default one, under another name. The commands read these arguments, so that nobody has to
//! repeat them.

use std::ffi::OsString;
use std::path::Path;

use clap::Command;

use super::arguments::RUN;
use super::source::SettingSource;
use super::{DEFAULT_APP_PORT, DEFAULT_METRICS_PORT, flags, kiam, read};

/// The file with the command line of the first process: in the daemon's container, that of the daemon.
pub(crate) const FIRST_PROCESS: &str = "/proc/1/cmdline";
/// The name of the program.
const PROGRAM: &str = env!("CARGO_PKG_NAME");

/// Returns the metrics port of a daemon with these arguments, without the program, and this environment. `None` if they start no
/// daemon, or one whose port only the kernel knows.
pub(crate) fn metrics_port(arguments: impl IntoIterator<Item = String>, env: &dyn Fn(&str) -> Option<String>) -> Option<u16> {
    let mut words = arguments.into_iter().map(OsString::from).peekable();
    words.next_if(|word| word == RUN);
    let translated = kiam::translate(std::iter::once(OsString::from(PROGRAM)).chain(words), |_| false).ok()?;
    let matches = flags::add_to(Command::new(PROGRAM)).try_get_matches_from(translated.arguments).ok()?;
    let mut source = SettingSource::new(&matches, env);
    let port = source.port("metrics-port", DEFAULT_METRICS_PORT);
    let app_port = source.port("app-port", DEFAULT_APP_PORT);
    let port = read::moved_metrics_port(app_port, port).unwrap_or(port);
    (port != 0 && source.into_mistakes().is_empty()).then_some(port)
}

/// Returns the metrics port for a command that asks the daemon on this machine: the port that the command is given, else that of
/// the daemon that is the first process, else the default one. `first_process` is the content of [`FIRST_PROCESS`].
pub(super) fn of_daemon_here(source: &mut SettingSource<'_>, env: &dyn Fn(&str) -> Option<String>, first_process: &[u8]) -> u16 {
    let given = source.port("metrics-port", DEFAULT_METRICS_PORT);
    if source.is_argument("metrics-port") {
        return given;
    }
    // The daemon in this container has these variables, too, and its arguments come before them.
    arguments_of_daemon(first_process).and_then(|arguments| metrics_port(arguments, env)).unwrap_or(given)
}

/// Returns what follows the program in the command line of a process, if it is this program, possibly started by an init program.
fn arguments_of_daemon(command_line: &[u8]) -> Option<Vec<String>> {
    let mut words = command_line.strip_suffix(b"\0")?.split(|byte| *byte == 0).map(|word| String::from_utf8_lossy(word).into_owned());
    words.find(|word| Path::new(word).file_name().is_some_and(|name| name == PROGRAM))?;
    Some(words.collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn port(arguments: &[&str], env: &[(&str, &str)]) -> Option<u16> {
        let variable = |name: &str| env.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned());
        metrics_port(arguments.iter().map(|word| (*word).to_owned()), &variable)
    }

    #[test]
    fn the_port_is_the_one_that_the_daemon_uses() {
        assert_eq!(port(&[], &[]), Some(9543));
        assert_eq!(port(&["run", "--metrics-port=9620"], &[]), Some(9620));
        assert_eq!(port(&["--metrics-port", "9620", "--iptables=true"], &[]), Some(9620));
        assert_eq!(port(&["--node=$(NODE_NAME)", "--host-ip=$(HOST_IP)", "--metrics-port=8182"], &[]), Some(8182));
        assert_eq!(port(&[], &[("ROLEGATE_METRICS_PORT", "9999")]), Some(9999));
        assert_eq!(port(&["--metrics-port=9620"], &[("ROLEGATE_METRICS_PORT", "9999")]), Some(9620));
        // kube2iam's chart, with one port for both.
        assert_eq!(port(&["--app-port=8181", "--metrics-port=8181"], &[]), Some(9543));
        assert_eq!(port(&["--app-port=9543"], &[]), Some(9544));
        // kiam's agent.
        assert_eq!(port(&["agent", "--iptables", "--port=8181", "--prometheus-listen-addr=0.0.0.0:9620"], &[]), Some(9620));
    }

    #[test]
    fn arguments_that_name_no_port_give_none() {
        for arguments in [
            &["--metrics-port=0"][..],
            &["--metrics-port=many"],
            &["--metrics-port=$(PORT)"],
            &["--of-another-version"],
            &["server", "--bind=:443"],
            &["redirect", "remove"],
            &["--help"],
        ] {
            assert_eq!(port(arguments, &[]), None, "{arguments:?}");
        }
    }

    #[test]
    fn only_this_program_is_the_daemon() {
        let words = |line: &str| arguments_of_daemon(line.replace(' ', "\0").as_bytes());
        let given = |arguments: &[&str]| Some(arguments.iter().map(|word| (*word).to_owned()).collect());
        assert_eq!(words("/usr/local/bin/rolegate --iptables --metrics-port=1 "), given(&["--iptables", "--metrics-port=1"]));
        assert_eq!(words("rolegate "), given(&[]));
        assert_eq!(words("/sbin/tini -- rolegate run "), given(&["run"]));
        for other in ["", "/sbin/init ", "/usr/bin/rolegate-init --metrics-port=1 ", "rolegate"] {
            assert_eq!(words(other), None, "{other:?}");
        }
    }
}
