//! Reads an argument list that is not this process's own.

use clap::Command;

use super::{Config, ConfigError, flags};

impl Config {
    /// Returns the configuration that the daemon would make of an argument list and an environment.
    pub(crate) fn from_arguments(
        arguments: impl IntoIterator<Item = String>,
        env: &dyn Fn(&str) -> Option<String>,
    ) -> Result<Self, ConfigError> {
        let command = flags::add_to(Command::new("rolegate").no_binary_name(true));
        match command.try_get_matches_from(arguments) {
            Ok(matches) => Self::from_source(&matches, env),
            Err(error) => {
                // The first line is what is wrong; a hint about --help follows.
                let text = error.to_string();
                let first = text.lines().next().unwrap_or_default();
                Err(ConfigError { mistakes: vec![first.trim_start_matches("error: ").to_owned()] })
            }
        }
    }
}
