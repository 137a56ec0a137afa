//! What the daemon's settings mean for requests of pods, besides the role.

use crate::config::{MetadataProfile, TokenMode};
use crate::policy::patterns::Patterns;

/// The settings that refuse requests of a pod regardless of its role.
#[derive(Debug)]
pub(crate) struct RequestModes {
    /// Whether session tokens are required.
    pub tokens: TokenMode,
    /// What every pod may read.
    pub profile: MetadataProfile,
    /// The namespaces whose pods may read everything.
    pub node_info: Patterns,
}

impl RequestModes {
    /// Returns what the settings mean for pods of this namespace.
    pub(crate) fn note(&self, namespace: &str) -> String {
        let metadata = match self.profile {
            _ if self.node_info.find(namespace).is_some() => "node-info, because of --node-info-namespaces",
            MetadataProfile::None => "none (--metadata-profile=none)",
            MetadataProfile::Base => "the base set (--metadata-profile=base)",
            MetadataProfile::NodeInfo => "node-info (--metadata-profile=node-info)",
        };
        format!("{}; metadata besides credentials: {metadata}", self.tokens())
    }

    /// Returns what the settings mean for all pods.
    pub(crate) fn summary(&self) -> String {
        let metadata = match self.profile {
            MetadataProfile::None => "pods can read no metadata besides credentials (--metadata-profile=none)",
            MetadataProfile::Base => "besides credentials, pods can read the base set of metadata (--metadata-profile=base)",
            MetadataProfile::NodeInfo => "besides credentials, pods can read node-info (--metadata-profile=node-info)",
        };
        let more = if self.node_info.count() > 0 { ", those of --node-info-namespaces node-info" } else { "" };
        format!("{}; {metadata}{more}", self.tokens())
    }

    fn tokens(&self) -> &'static str {
        match self.tokens {
            TokenMode::Required => "requests without a session token (IMDSv1) are refused (--imds-tokens=required)",
            TokenMode::Optional => "requests without a session token (IMDSv1) are served (--imds-tokens=optional)",
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test says loudly what failed")]
mod tests {
    use super::*;
    use crate::config::PatternFormat;

    #[test]
    fn a_note_is_about_the_namespace_of_the_pod() {
        let node_info = Patterns::new(PatternFormat::Glob, None, vec!["kube-*".to_owned()]).unwrap();
        let modes = RequestModes { tokens: TokenMode::Required, profile: MetadataProfile::Base, node_info };
        insta::assert_snapshot!(modes.note("shop"), @"requests without a session token (IMDSv1) are refused (--imds-tokens=required); metadata besides credentials: the base set (--metadata-profile=base)");
        assert!(modes.note("kube-system").ends_with("node-info, because of --node-info-namespaces"));
        let summary = modes.summary();
        assert!(summary.contains("--metadata-profile=base") && summary.contains("--node-info-namespaces"), "{summary}");
    }
}
