//! The flags of `rolegate migrate`.

use clap::ArgMatches;

use super::ConfigError;
use super::source::SettingSource;

/// The flag with the key of role annotations, which is the daemon's as well.
const ROLE_KEY: &str = "iam-role-key";

/// Returns the key of role annotations. The environment counts only where a cluster's workloads are read.
///
/// # Errors
/// If the key is malformed, or is given for manifests of another project, which have arguments of their own.
pub(crate) fn role_key(matches: &ArgMatches, env: &dyn Fn(&str) -> Option<String>, reads_workloads: bool) -> Result<String, ConfigError> {
    let nothing = |_: &str| None;
    let mut source = SettingSource::new(matches, if reads_workloads { env } else { &nothing });
    if !reads_workloads && source.is_argument(ROLE_KEY) {
        source.mistake(format!(
            "--{ROLE_KEY} is only for rolegate migrate annotations: the manifests of kube2iam and kiam name the key themselves"
        ));
    }
    let key = source.annotation_key(ROLE_KEY);
    let mistakes = source.into_mistakes();
    if mistakes.is_empty() { Ok(key) } else { Err(ConfigError { mistakes }) }
}
