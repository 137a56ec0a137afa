//! What `rolegate probe` is asked.

use std::path::PathBuf;

use clap::ArgMatches;

use super::ConfigError;
use super::source::SettingSource;

/// The name of the argument that says what is asked.
pub(crate) const QUESTION: &str = "QUESTION";

/// What a daemon can be asked by its probe socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ProbeQuestion {
    /// Whether this node's pods can be served.
    Ready,
    /// Whether the process answers.
    Live,
}

impl ProbeQuestion {
    /// The words for them.
    pub(crate) const NAMES: [(&str, ProbeQuestion); 2] = [("ready", ProbeQuestion::Ready), ("live", ProbeQuestion::Live)];

    /// The page that answers it.
    pub(crate) fn path(self) -> &'static str {
        match self {
            Self::Ready => "/readyz",
            Self::Live => "/healthz",
        }
    }
}

/// What `rolegate probe` is asked.
#[derive(Debug)]
pub(crate) struct ProbeConfig {
    /// Where the daemon listens.
    pub socket: PathBuf,
    /// What it is asked.
    pub question: ProbeQuestion,
}

impl ProbeConfig {
    /// What arguments and environment ask.
    pub(crate) fn from_source(matches: &ArgMatches, env: &dyn Fn(&str) -> Option<String>) -> Result<Self, ConfigError> {
        let mut source = SettingSource::new(matches, env);
        let word = matches.get_one::<String>(QUESTION).map_or("ready", String::as_str);
        let question = ProbeQuestion::NAMES.iter().find(|(name, _)| *name == word).map(|(_, question)| *question);
        if question.is_none() {
            source.mistake(format!("{word:?}: expected ready or live"));
        }
        let socket = source.text("probe-socket").map(PathBuf::from);
        if socket.is_none() {
            source.mistake("--probe-socket is missing: give the path that the daemon was started with");
        }
        match (socket, question) {
            (Some(socket), Some(question)) => Ok(Self { socket, question }),
            _ => Err(ConfigError { mistakes: source.into_mistakes() }),
        }
    }
}
