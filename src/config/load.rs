//! Reads the whole configuration.

use std::time::Duration;

use clap::ArgMatches;

use super::source::SettingSource;
use super::{AwsConfig, Config, ConfigError, PodIdentityConfig, RedirectBackend, Restrictions, flags, migrate, read};

impl Config {
    /// The configuration that flags and environment give.
    pub fn from_source(matches: &ArgMatches, env: &dyn Fn(&str) -> Option<String>) -> Result<Self, ConfigError> {
        let mut source = SettingSource::new(matches, env);
        let config = Self::read(&mut source);
        let mistakes = source.into_mistakes();
        if mistakes.is_empty() { Ok(config) } else { Err(ConfigError { mistakes }) }
    }

    /// Reads all of it. Mistakes and warnings are noted in the source, and the warnings are returned with the configuration.
    pub(super) fn read(source: &mut SettingSource<'_>) -> Self {
        let (mut redirect, pod_identity) = (read::redirect(source, RedirectBackend::None), PodIdentityConfig::read(source));
        redirect.pod_identity = pod_identity.iter().flat_map(PodIdentityConfig::addresses_alone).collect();
        let mut config = Self {
            pods: read::pods(source, &redirect),
            roles: read::roles(source),
            sessions: read::sessions(source),
            server: read::server(source),
            pod_identity,
            admin: read::admin(source),
            redirect,
            self_test: read::self_test(source),
            aws: AwsConfig::read(source),
            log: read::log(source),
            metadata: read::metadata(source),
            migrate: None,
            warnings: Vec::new(),
        };
        let of_daemons = config.server.handover_socket.as_ref().or(config.server.token_key_file.as_ref());
        config.redirect.proofs = of_daemons.map(|path| read::directory_of(path));
        let mut config = migrate::open(config, source);
        if let Some(port) = read::moved_metrics_port(config.server.port, config.admin.port) {
            source.warn(
                "metrics-port-moved",
                format!(
                    "--metrics-port and --app-port are both {}, but pods reach the app port and must not read the metrics: serving metrics \
                     on port {port}; set --metrics-port={port}, and scrape that port",
                    config.server.port
                ),
            );
            config.admin.port = port;
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
                source.warn("no-effect", format!("--{name} has no effect: {instead}"));
            }
        }
        if config.roles.restrictions == Restrictions::Off {
            source.warn(
                "namespace-restrictions-off",
                "--namespace-restrictions is off: anyone who may create pods in any namespace may use every role that this node may assume",
            );
        }
        Self { warnings: source.take_warnings(), ..config }
    }
}
