//! What `rolegate redirect` is to do, by the flags that the daemon has.

use std::path::Path;

use clap::ArgMatches;

use super::source::SettingSource;
use super::{Config, ConfigError, DEFAULT_APP_PORT, PodIdentityConfig, RedirectBackend, RedirectConfig, read};

/// What is done with the packet rules.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Action {
    /// They are put in place.
    Install,
    /// They are taken away.
    Remove,
    /// They are compared, and told of in words.
    Status,
    /// They are printed.
    Render,
}

/// What `rolegate redirect` is to do.
#[derive(Clone, Debug)]
pub(crate) struct RedirectCommand {
    /// What.
    pub action: Action,
    /// The rules, as the daemon would be told.
    pub redirect: RedirectConfig,
    /// The app port.
    pub port: u16,
    /// Whether connections straight to it are dropped.
    pub refuse_direct: bool,
    /// The guard alone.
    pub guard: bool,
    /// What kube2iam and kiam left behind goes, and nothing of ours.
    pub peers: bool,
    /// The rules are removed although a daemon needs them.
    pub force: bool,
}

impl Action {
    /// Every one, by the name of its subcommand.
    pub(crate) const ALL: [(&'static str, Self); 4] =
        [("install", Self::Install), ("remove", Self::Remove), ("status", Self::Status), ("render", Self::Render)];
}

impl RedirectCommand {
    /// Returns the question for the state of the rules that the daemon of this configuration would keep.
    pub(crate) fn status_of(config: &Config) -> Self {
        Self {
            action: Action::Status,
            redirect: config.redirect.clone(),
            port: config.server.port,
            refuse_direct: !config.server.accept_direct,
            guard: false,
            peers: false,
            force: false,
        }
    }

    /// What flags and environment ask for. Without `--redirect`, it is what works here.
    ///
    /// # Errors
    /// Every mistake in them.
    pub(crate) fn from_source(action: Action, matches: &ArgMatches, env: &dyn Fn(&str) -> Option<String>) -> Result<Self, ConfigError> {
        let mut source = SettingSource::new(matches, env);
        let mut redirect = read::redirect(&mut source, RedirectBackend::Auto);
        redirect.proofs = source.text("handover-socket").map(|path| read::directory_of(Path::new(path.as_str())));
        redirect.pod_identity = PodIdentityConfig::read(&mut source).iter().flat_map(PodIdentityConfig::addresses_alone).collect();
        // A person or a hook gives them: what the daemon only warns of is a mistake here.
        for warning in source.take_warnings() {
            source.mistake(warning.text);
        }
        if redirect.backend == RedirectBackend::None {
            source.mistake("--redirect=none: expected auto, bpf, nftables or iptables");
        }
        let port = source.port("app-port", DEFAULT_APP_PORT);
        let (guard, peers, force) = (source.switch("guard"), source.switch("peers"), source.switch("force"));
        if port == 0 && !guard {
            source.mistake("--app-port=0: expected the port of the daemon");
        }
        if peers && action != Action::Remove {
            source.mistake("--peers is for remove only; status always reports the rules of kube2iam and kiam");
        }
        if force && action != Action::Remove {
            source.mistake("--force is for remove only");
        }
        let refuse_direct = !source.switch("accept-direct-connections");
        read::check_target(&redirect, None, &mut source);
        let mistakes = source.into_mistakes();
        let command = Self { action, redirect, port, refuse_direct, guard, peers, force };
        if mistakes.is_empty() { Ok(command) } else { Err(ConfigError { mistakes }) }
    }
}
