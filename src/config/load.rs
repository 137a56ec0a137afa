//! Reads the whole configuration.

use std::time::Duration;

use clap::ArgMatches;

use super::source::SettingSource;
use super::{Config, ConfigError, DEFAULT_METRICS_PORT, Restrictions, flags, migrate, read};

impl Config {
    /// The configuration that flags and environment give.
    pub fn from_source(matches: &ArgMatches, env: &dyn Fn(&str) -> Option<String>) -> Result<Self, ConfigError> {
        let mut source = SettingSource::new(matches, env);
        let config = Self::read(&mut source, true);
        let mistakes = source.into_mistakes();
        if mistakes.is_empty() { Ok(config) } else { Err(ConfigError { mistakes }) }
    }

    /// All of it; what is wrong is noted in the source. Without `node_needed`, the node's name may be empty.
    pub(super) fn read(source: &mut SettingSource<'_>, node_needed: bool) -> Self {
        let mut warnings = Vec::new();
        let config = Self {
            pods: read::pods(source, node_needed, &mut warnings),
            roles: read::roles(source),
            sessions: read::sessions(source, &mut warnings),
            server: read::server(source, &mut warnings),
            admin: read::admin(source),
            redirect: read::redirect(source),
            self_test: read::self_test(source),
            log: read::log(source),
            metadata: read::metadata(source, &mut warnings),
            migrate: None,
            warnings: Vec::new(),
        };
        let config = migrate::open(config, source);
        if config.server.port == config.admin.port && config.server.port != 0 {
            source.mistake(format!(
                "--metrics-port and --app-port are both {}: pods reach the app port and must not read the metrics; choose another \
                 --metrics-port (default {DEFAULT_METRICS_PORT})",
                config.server.port
            ));
        }
        read::check_target(&config.redirect, config.server.address, source);
        for (name, instead) in read::WITHOUT_EFFECT {
            if source.is_given(name) {
                // Its value is still checked, so that a typing error does not hide.
                if flags::all().any(|flag| flag.name == *name && flag.value.is_none()) {
                    source.switch(name);
                } else {
                    source.duration(name, Duration::ZERO);
                }
                warnings.push(format!("--{name} has no effect: {instead}"));
            }
        }
        if config.roles.restrictions == Restrictions::Off {
            warnings.push(
                "--namespace-restrictions is off: anyone who may create pods in any namespace may use every role that this node may assume"
                    .to_owned(),
            );
        }
        Self { warnings, ..config }
    }
}
