//! What `rolegate explain` is asked: about which pod, of whom, and in which form to answer.

use std::fmt;
use std::str::FromStr;

use clap::ArgMatches;
use http::uri::Authority;

use super::source::SettingSource;
use super::{Config, ConfigError, metrics_port};
use crate::text::is_object_name;

/// The name of the argument that names the pod.
pub(crate) const POD: &str = "NAMESPACE/POD";

/// A pod's namespace and name, each in the form that Kubernetes lets them have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct PodReference {
    namespace: String,
    name: String,
}

/// Why a text names no pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("expected NAMESPACE/POD, such as shop/web-0, with names of lower-case letters, digits, - and .")]
pub(crate) struct NotAPodName;

impl PodReference {
    /// The two names, where they may be such.
    pub(crate) fn new(namespace: &str, name: &str) -> Result<Self, NotAPodName> {
        if !is_object_name(namespace) || !is_object_name(name) {
            return Err(NotAPodName);
        }
        Ok(Self { namespace: namespace.to_owned(), name: name.to_owned() })
    }

    /// The namespace.
    pub(crate) fn namespace(&self) -> &str {
        &self.namespace
    }

    /// The pod's name in it.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }
}

impl FromStr for PodReference {
    type Err = NotAPodName;

    fn from_str(text: &str) -> Result<Self, NotAPodName> {
        let (namespace, name) = text.split_once('/').ok_or(NotAPodName)?;
        Self::new(namespace, name)
    }
}

impl fmt::Display for PodReference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// Who is asked.
#[derive(Debug)]
pub(crate) enum ExplainTarget {
    /// The daemon whose metrics port this is, over plain HTTP.
    Daemon(Authority),
    /// The Kubernetes API; what it says is decided by the settings given to this command.
    Cluster(Box<Cluster>),
}

/// What the Kubernetes API is asked by.
#[derive(Debug)]
pub(crate) struct Cluster {
    /// The settings to decide by. The node's name may be empty.
    pub config: Config,
    /// The node that was named on the command line.
    pub node: Option<String>,
}

/// The form of the answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Output {
    /// For people.
    Text,
    /// For programs: one JSON object.
    Json,
}

/// What `rolegate explain` is asked.
#[derive(Debug)]
pub(crate) struct ExplainConfig {
    /// About this pod.
    pub pod: PodReference,
    /// Who is asked.
    pub asked: ExplainTarget,
    /// The form of the answer.
    pub output: Output,
    /// Whether STS is asked, too.
    pub assume: bool,
}

impl ExplainConfig {
    /// What flags and environment ask. Where the API's address stands on the command line, the API is asked; else the
    /// daemon: in its own container, its variables are there for its own sake, and those that do not say how to ask it are not
    /// read. `first_process` is the content of [`metrics_port::FIRST_PROCESS`].
    pub(crate) fn from_source(
        matches: &ArgMatches,
        env: &dyn Fn(&str) -> Option<String>,
        first_process: &[u8],
    ) -> Result<Self, ConfigError> {
        let mut source = SettingSource::new(matches, env);
        let text = matches.get_one::<String>(POD).map_or("", String::as_str);
        let pod = match text.parse() {
            Ok(pod) => Some(pod),
            Err(error) => {
                source.mistake(format!("{text:?}: {error}"));
                None
            }
        };
        let cluster = source.is_argument("kubeconfig") || source.is_argument("api-server");
        if cluster && source.is_argument("admin-url") {
            source.mistake("--admin-url asks a daemon, but --kubeconfig and --api-server ask the Kubernetes API: give one of them");
        }
        let asked = if cluster {
            let config = Config::read(&mut source);
            if source.is_argument("admin-url") {
                source.parse("admin-url", daemon);
            }
            let node = source.is_argument("node").then(|| config.pods.node.clone());
            Some(ExplainTarget::Cluster(Box::new(Cluster { config, node })))
        } else if source.text("admin-url").is_some() {
            source.parse("admin-url", daemon).map(ExplainTarget::Daemon)
        } else {
            let port = metrics_port::of_daemon_here(&mut source, env, first_process);
            Authority::try_from(format!("127.0.0.1:{port}")).ok().map(ExplainTarget::Daemon)
        };
        let output = source.choice("output", &[("text", Output::Text), ("json", Output::Json)], Output::Text);
        let assume = source.switch("assume");
        let mistakes = source.into_mistakes();
        match (pod, asked) {
            (Some(pod), Some(asked)) if mistakes.is_empty() => Ok(Self { pod, asked, output, assume }),
            _ => Err(ConfigError { mistakes }),
        }
    }
}

/// `http://HOST[:PORT]`.
pub(super) fn daemon(text: &str) -> Result<Authority, String> {
    let expected = || "expected the URL of a daemon's metrics port, such as http://127.0.0.1:9543".to_owned();
    let rest = text.strip_prefix("http://").ok_or_else(expected)?;
    let authority = super::read::authority(rest.strip_suffix('/').unwrap_or(rest))?;
    authority.parse().map_err(|_| expected())
}

#[cfg(test)]
mod tests;
