//! Reads an argument list as the daemon's start does.

use std::ffi::OsString;

use clap::{ArgMatches, Command};

use super::kiam::{self, TranslatedArguments};
use super::{Config, ConfigError, ConfigWarning, flags};

/// The subcommand of the daemon, and the default one.
pub(crate) const RUN: &str = "run";

impl Config {
    /// Returns the configuration that the daemon makes of an argument list, without the program, and of an environment.
    ///
    /// # Errors
    /// Every mistake. Arguments that print something and end the program are one.
    pub(crate) fn from_arguments(
        arguments: impl IntoIterator<Item = String>,
        env: &dyn Fn(&str) -> Option<String>,
    ) -> Result<Self, ConfigError> {
        let failed = |mistake: String| ConfigError { mistakes: vec![mistake] };
        let mut words = arguments.into_iter().map(OsString::from).peekable();
        words.next_if(|word| word == RUN);
        let program = std::iter::once(OsString::from("rolegate"));
        let TranslatedArguments { arguments, warnings, .. } =
            kiam::translate(program.chain(words), |_| false).map_err(|error| failed(error.to_string()))?;
        let command = flags::add_to(Command::new("rolegate").version(env!("CARGO_PKG_VERSION")));
        match command.try_get_matches_from(arguments) {
            Ok(matches) => Self::from_translated(&matches, env, warnings),
            Err(error) if !error.use_stderr() => Err(failed("--help and --version print something and end the program".to_owned())),
            Err(error) => {
                // The first line is what is wrong; a hint about --help follows.
                let text = error.to_string();
                let first = text.lines().next().unwrap_or_default();
                Err(failed(first.trim_start_matches("error: ").to_owned()))
            }
        }
    }

    /// Returns the configuration that flags and environment give, with the warnings of the translation of these flags before its own.
    ///
    /// # Errors
    /// Every mistake.
    pub(crate) fn from_translated(
        matches: &ArgMatches,
        env: &dyn Fn(&str) -> Option<String>,
        translated: Vec<ConfigWarning>,
    ) -> Result<Self, ConfigError> {
        let mut config = Self::from_source(matches, env)?;
        config.warnings.splice(0..0, translated);
        Ok(config)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test says loudly what failed")]
    use super::*;
    use crate::config::Restrictions;

    fn read(arguments: &[&str]) -> Result<Config, ConfigError> {
        Config::from_arguments(arguments.iter().map(|word| (*word).to_owned()), &|_| None)
    }

    #[test]
    fn arguments_of_kiam_are_read_as_at_the_start() {
        let config = read(&["agent", "--json-log", "--port", "8282", "--node=a", "--no-iptables"]).unwrap();
        assert_eq!((config.log.json, config.server.port, config.roles.restrictions), (true, 8282, Restrictions::Enforce));
        let reasons: Vec<_> = config.warnings.iter().map(|warning| warning.reason).take(5).collect();
        assert_eq!(reasons, ["kiam-agent", "kiam-namespaces", "kiam-argument", "kiam-argument", "kiam-argument"]);
        assert_eq!(read(&["run", "--json-log", "--node=a"]).unwrap().warnings[0].reason, "kiam-argument");
    }

    #[test]
    fn lists_that_start_no_daemon_are_one_mistake() {
        for list in [&["server", "--bind=:443"][..], &["--help"], &["--version"], &["explain"], &["--bogus", "--app-port=x"]] {
            assert_eq!(read(list).unwrap_err().mistakes.len(), 1, "{list:?}");
        }
    }
}
