//! `--migrate`: the settings that are enforced are opened to what kube2iam serves, and the strict ones are kept for the report.
//!
//! A strict setting is the one that the operator gave. One that was not given is that of the shipped manifests: tokens required,
//! base metadata, namespace restrictions on. Restrictions that the operator enforced stay enforced, as in kube2iam and kiam: no pod
//! gets a role that it was refused before. Limits that kube2iam does not have are never opened: `--allowed-roles`, the guard of the
//! node's own role, and everything that is not in the table of metadata.

use super::source::SettingSource;
use super::{Config, MetadataProfile, Restrictions, StrictSettings, TokenMode};

impl StrictSettings {
    /// Returns a sentence for the log: what is served only because of `--migrate`, with the restrictions that are in force.
    pub fn opened(&self, restrictions: Restrictions) -> String {
        let mut opened = Vec::new();
        if self.tokens == TokenMode::Required {
            opened.push("requests without a session token (IMDSv1)");
        }
        if self.profile != MetadataProfile::NodeInfo {
            opened.push("the metadata of node-info for all namespaces");
        }
        if self.restricted && restrictions != Restrictions::Enforce {
            opened.push("roles that no annotation of the namespace allows");
        }
        if opened.is_empty() { "nothing: the settings given are as open as kube2iam".to_owned() } else { opened.join(", ") }
    }
}

/// Opens the configuration as `--migrate` says, if it is given.
pub(super) fn open(mut config: Config, source: &mut SettingSource<'_>) -> Config {
    if !source.switch("migrate") {
        return config;
    }
    let enforced = config.roles.restrictions == Restrictions::Enforce;
    let restricted = !source.is_given("namespace-restrictions") || config.roles.restrictions != Restrictions::Off;
    config.migrate = Some(StrictSettings {
        tokens: config.server.tokens,
        profile: config.metadata.profile,
        node_info_namespaces: config.metadata.node_info_namespaces.clone(),
        restricted,
        node_role_withheld: source.switch("auto-discover-default-role") && !config.roles.allow_node_role,
    });
    config.server.tokens = TokenMode::Optional;
    if restricted && !enforced {
        config.roles.restrictions = Restrictions::Audit;
    }
    // Without a metadata service, there is nothing to open.
    if !config.metadata.disabled || source.is_given("metadata-addr") {
        config.metadata.profile = MetadataProfile::NodeInfo;
    }
    config
}

#[cfg(test)]
mod tests {
    use clap::Command;

    use super::super::flags;
    use super::*;

    fn read(arguments: &[&str], disabled: bool) -> Config {
        let command = flags::add_to(Command::new("rolegate"));
        let matches = command.try_get_matches_from([&["rolegate", "--node=a", "--migrate"], arguments].concat());
        let env = |name: &str| (disabled && name == "AWS_EC2_METADATA_DISABLED").then(|| "true".to_owned());
        Config::from_source(&matches.unwrap_or_else(|error| panic!("{error}")), &env).unwrap_or_else(|error| panic!("{error}"))
    }

    fn strict(config: &Config) -> StrictSettings {
        config.migrate.clone().unwrap_or_else(|| panic!("--migrate is given"))
    }

    #[test]
    fn what_is_not_given_is_strict_as_in_the_shipped_manifests() {
        let config = read(&[], false);
        let served = (config.server.tokens, config.metadata.profile, config.roles.restrictions);
        assert_eq!(served, (TokenMode::Optional, MetadataProfile::NodeInfo, Restrictions::Audit));
        let StrictSettings { tokens, profile, restricted, node_role_withheld, .. } = strict(&config);
        assert_eq!((tokens, profile, restricted, node_role_withheld), (TokenMode::Required, MetadataProfile::Base, true, false));
        assert!(!config.warnings.iter().any(|warning| warning.text.contains("--namespace-restrictions is off")));
    }

    #[test]
    fn what_the_operator_gave_is_the_strict_setting() {
        let given = ["--imds-tokens=optional", "--metadata-profile=node-info", "--namespace-restrictions=false"];
        let config = read(&given, false);
        assert_eq!(config.roles.restrictions, Restrictions::Off);
        let strict_settings = strict(&config);
        assert_eq!(
            (strict_settings.tokens, strict_settings.profile, strict_settings.restricted),
            (TokenMode::Optional, MetadataProfile::NodeInfo, false)
        );
        let audited = read(&["--namespace-restrictions=audit"], false);
        assert_eq!((audited.roles.restrictions, strict(&audited).restricted), (Restrictions::Audit, true));
        assert_eq!(strict(&read(&["--node-info-namespaces=a,b*"], false)).node_info_namespaces, ["a", "b*"]);
    }

    #[test]
    fn restrictions_that_were_enforced_stay_enforced() {
        for given in ["--namespace-restrictions", "--namespace-restrictions=true"] {
            let config = read(&[given], false);
            assert_eq!((config.roles.restrictions, strict(&config).restricted), (Restrictions::Enforce, true), "{given}");
            assert!(!strict(&config).opened(config.roles.restrictions).contains("namespace allows"), "{given}");
        }
        let config = read(&[], false);
        assert!(strict(&config).opened(config.roles.restrictions).contains("namespace allows"));
    }

    #[test]
    fn limits_that_kube2iam_lacks_are_never_opened() {
        let config = read(&["--allowed-roles=arn:aws:iam::111122223333:role/web"], false);
        assert_eq!(config.roles.allowed.as_deref().map(<[String]>::len), Some(1));
        assert!(!config.roles.allow_node_role);
        assert_eq!(read(&[], true).metadata.profile, MetadataProfile::None, "there is no metadata service");
        assert_eq!(read(&["--metadata-addr=10.0.0.1"], true).metadata.profile, MetadataProfile::NodeInfo);
    }
}
