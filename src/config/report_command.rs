//! What `rolegate report` is asked: the report of one daemon or of all, and in which form.

use clap::ArgMatches;
use http::uri::Authority;

use super::explain_command::daemon;
use super::source::SettingSource;
use super::{ApiConfig, ConfigError, DEFAULT_METRICS_PORT, metrics_port, read};

/// Whose report is read.
#[derive(Debug)]
pub(crate) enum ReportTarget {
    /// The daemon with this metrics port, over plain HTTP.
    Daemon(Authority),
    /// All daemons, through the Kubernetes API.
    AllNodes(AllNodes),
}

/// How the daemons of all nodes are found and reached.
#[derive(Debug)]
pub(crate) struct AllNodes {
    /// The Kubernetes API.
    pub api: ApiConfig,
    /// The namespace of the daemons' pods.
    pub namespace: String,
    /// Their label selector.
    pub selector: String,
    /// Their metrics port, if it is given. Otherwise, that of the arguments of each one.
    pub port: Option<u16>,
}

/// The form of a report.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ReportOutput {
    /// For people.
    Text,
    /// For programs: one JSON object.
    Json,
    /// For spreadsheets: a line for each finding.
    Csv,
}

/// What `rolegate report` is asked.
#[derive(Debug)]
pub(crate) struct ReportConfig {
    /// Whose report is read.
    pub target: ReportTarget,
    /// The form of the answer.
    pub output: ReportOutput,
}

impl ReportConfig {
    /// Reads what flags and environment ask. `first_process` is the content of [`metrics_port::FIRST_PROCESS`].
    pub(crate) fn from_source(
        matches: &ArgMatches,
        env: &dyn Fn(&str) -> Option<String>,
        first_process: &[u8],
    ) -> Result<Self, ConfigError> {
        let mut source = SettingSource::new(matches, env);
        let formats = [("text", ReportOutput::Text), ("json", ReportOutput::Json), ("csv", ReportOutput::Csv)];
        let output = source.choice("format", &formats, ReportOutput::Text);
        let target = if source.switch("all-nodes") {
            if source.is_argument("admin-url") {
                source.mistake("--admin-url asks one daemon, but --all-nodes asks all: give one of them");
            }
            let api = read::api(&mut source);
            let namespace = source.name("daemon-namespace");
            let selector = source.selector("daemon-selector");
            let port = source.port("metrics-port", DEFAULT_METRICS_PORT);
            let port = source.is_given("metrics-port").then_some(port);
            Some(ReportTarget::AllNodes(AllNodes { api, namespace, selector, port }))
        } else {
            for name in ["kubeconfig", "api-server", "daemon-namespace", "daemon-selector"] {
                if source.is_argument(name) {
                    source.mistake(format!("--{name} requires --all-nodes"));
                }
            }
            let given = source.text("admin-url").is_some();
            let port = metrics_port::of_daemon_here(&mut source, env, first_process);
            let own = || Authority::try_from(format!("127.0.0.1:{port}")).ok();
            if given { source.parse("admin-url", daemon) } else { own() }.map(ReportTarget::Daemon)
        };
        let mistakes = source.into_mistakes();
        match target {
            Some(target) if mistakes.is_empty() => Ok(Self { target, output }),
            _ => Err(ConfigError { mistakes }),
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::Command;

    use super::super::flags;
    use super::*;

    fn read(arguments: &[&str]) -> Result<ReportConfig, Vec<String>> {
        let command = flags::add_to_report(Command::new("report"));
        let matches = command.try_get_matches_from([&["report"], arguments].concat()).unwrap_or_else(|error| panic!("{error}"));
        ReportConfig::from_source(&matches, &|_| None, b"/usr/local/bin/rolegate\0--metrics-port=9620\0").map_err(|error| error.mistakes)
    }

    #[test]
    fn a_report_is_of_the_daemon_here_of_another_or_of_all() {
        let target = |arguments: &[&str]| read(arguments).map(|config| format!("{:?}", config.target)).unwrap_or_default();
        assert_eq!(target(&[]), "Daemon(127.0.0.1:9620)");
        assert_eq!(target(&["--metrics-port=9999"]), "Daemon(127.0.0.1:9999)");
        assert_eq!(target(&["--admin-url=http://10.0.0.1:80/"]), "Daemon(10.0.0.1:80)");
        let all = read(&["--all-nodes", "--kubeconfig=/k", "--format=csv", "--metrics-port=9544"]);
        let Ok(ReportConfig { target: ReportTarget::AllNodes(all), output: ReportOutput::Csv }) = all else { panic!("{all:?}") };
        assert_eq!((&*all.namespace, &*all.selector, all.port), ("kube-system", "app.kubernetes.io/name=rolegate", Some(9544)));
        let all = read(&["--all-nodes", "--kubeconfig=/k"]);
        assert!(matches!(all, Ok(ReportConfig { target: ReportTarget::AllNodes(AllNodes { port: None, .. }), .. })), "{all:?}");
    }

    #[test]
    fn what_does_not_go_together_is_a_mistake() {
        for arguments in [
            &["--all-nodes", "--admin-url=http://127.0.0.1"][..],
            &["--kubeconfig=/k"],
            &["--daemon-namespace=x"],
            &["--format=xml"],
            &["--admin-url=ftp://x"],
            &["--all-nodes", "--daemon-namespace=a/b"],
            &["--all-nodes", "--daemon-selector="],
        ] {
            assert!(read(arguments).is_err_and(|mistakes| mistakes.len() == 1), "{arguments:?}");
        }
    }
}
