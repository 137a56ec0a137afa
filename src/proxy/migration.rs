//! What requests show the migration report: which of them the strict settings would refuse.
//!
//! Nothing of a client's text is recorded but the cleaned name of the client. A path is recorded by its name in the table.

use http::header::USER_AGENT;
use http::request::Parts;

use super::documents;
use super::metadata::Access;
use super::metadata::table;
use super::refusal::Refusal;
use super::route::{self, Route};
use crate::config::TokenMode;
use crate::pods::{Pod, PodContext};
use crate::policy::{Denial, Policy, RoleRequest};
use crate::report::recorder::Recorder;

/// Paths below the version that are never served, by which they are named. Every other one is [`OTHER_PATH`].
const NEVER_SERVED: [&str; 8] = [
    "user-data",
    "dynamic/instance-identity/pkcs7",
    "dynamic/instance-identity/rsa2048",
    "dynamic/instance-identity/signature",
    "meta-data/iam",
    "meta-data/identity-credentials",
    "meta-data/managed-ssh-keys",
    "meta-data/public-keys",
];
const OTHER_PATH: &str = "another path";

/// Records what the strict settings would refuse; by default, nothing.
#[derive(Debug, Default)]
pub(crate) struct Migration(Option<StrictProxy>);

#[derive(Debug)]
struct StrictProxy {
    recorder: Recorder,
    tokens: TokenMode,
    access: Access,
}

impl Migration {
    /// Records by these settings.
    pub(crate) fn new(recorder: Recorder, tokens: TokenMode, access: Access) -> Self {
        Self(Some(StrictProxy { recorder, tokens, access }))
    }

    /// Returns whether anything is recorded.
    pub(super) fn is_on(&self) -> bool {
        self.0.is_some()
    }

    /// Records a request for metadata, or for a path that is never served.
    pub(super) fn asked(&self, pod: &Pod, route: &Route, request: &Parts) {
        let Some(strict) = &self.0 else { return };
        match route {
            // Programs that only look for a role list it. A pod that has one is recorded where it gets it.
            Route::Metadata { path } if path == "meta-data/iam" => {}
            Route::Metadata { path } if documents::DIRECTORIES.contains(&path.as_str()) => strict.served(pod, request),
            Route::Metadata { path } => match table::name_of(path) {
                Some((set, name)) => {
                    strict.served(pod, request);
                    if !strict.access.of(&pod.namespace).iter().any(|allowed| allowed.has(path)) {
                        strict.recorder.metadata(pod, set.name(), name);
                    }
                }
                None => strict.recorder.refused(pod, "path", never_served(path)),
            },
            Route::Versions => strict.served(pod, request),
            Route::Unknown => {
                let below = request.uri.path().trim_matches('/').split_once('/').map_or("", |(_, path)| path);
                strict.recorder.refused(pod, "path", never_served(below));
            }
            // They are recorded once it is known whether the pod has a role.
            Route::RoleList | Route::Credentials { .. } | Route::InstanceProfile | Route::NewToken { .. } => {}
        }
    }

    /// Records a request for a role, or for what depends on it, that the pod may have.
    pub(super) fn allowed(&self, pod: &Pod, request: &Parts) {
        if let Some(strict) = &self.0 {
            strict.served(pod, request);
        }
    }

    /// Records a role that namespace restrictions would refuse.
    pub(super) fn restricted(&self, pod: &Pod, request: &RoleRequest, denial: Denial) {
        if let Some(strict) = &self.0 {
            strict.recorder.restricted(pod, request.refused_role(denial), denial);
        }
    }

    /// Records a role that is refused.
    pub(super) fn denied(&self, policy: &Policy, pod: &Pod, context: &PodContext, denial: Denial) {
        if let Some(strict) = &self.0 {
            strict.recorder.denied(pod, policy.named_role(pod, context), denial);
        }
    }

    /// Records another refusal of a known pod.
    pub(super) fn refused(&self, refusal: &Refusal) {
        let Some(strict) = &self.0 else { return };
        let reason = refusal.reason();
        match refusal {
            Refusal::AmbiguousAddress(pods) => pods.iter().for_each(|pod| strict.recorder.refused(pod, reason, "")),
            Refusal::UnreadablePod(pod)
            | Refusal::Objected(pod, _)
            | Refusal::OtherRole(pod)
            | Refusal::HostNetwork(pod)
            | Refusal::Rejected(Some(pod), _) => {
                strict.recorder.refused(pod, reason, "");
            }
            // Roles and paths are recorded where they are decided. The others have no pod, or pass by themselves.
            Refusal::Denied { .. }
            | Refusal::Path { .. }
            | Refusal::Token { .. }
            | Refusal::Absent(_)
            | Refusal::Unavailable(_)
            | Refusal::Changed(_)
            | Refusal::Rejected(None, _)
            | Refusal::UnknownPod
            | Refusal::UnknownCgroup
            | Refusal::HostNetworkExempt(_)
            | Refusal::PodsNotListed
            // kube2iam and kiam serve no service account tokens, and the strict settings change nothing about STS.
            | Refusal::Session { .. }
            | Refusal::IdentityRejected(..)
            | Refusal::NodeWithoutToken
            | Refusal::ServiceAccountToken(..)
            | Refusal::TokenOfOtherPod(..)
            | Refusal::TokenOfOtherNode(..) => {}
        }
    }
}

impl StrictProxy {
    fn served(&self, pod: &Pod, request: &Parts) {
        if self.tokens == TokenMode::Required && !request.headers.contains_key(route::TOKEN) {
            self.recorder.without_token(pod, request.headers.get(USER_AGENT).map(|agent| agent.as_bytes()));
        }
    }
}

fn never_served(path: &str) -> &'static str {
    let is_below = |named: &&&str| path.strip_prefix(**named).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'));
    NEVER_SERVED.iter().find(is_below).copied().unwrap_or(OTHER_PATH)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proxy::metadata::table::Set;

    #[test]
    fn a_path_that_is_never_served_is_named_by_the_table() {
        for (path, name) in [
            ("user-data", "user-data"),
            ("user-data/x\u{1b}", "user-data"),
            ("user-data2", OTHER_PATH),
            ("meta-data/public-keys/0/openssh-key", "meta-data/public-keys"),
            ("meta-data/\u{1b}[31m", OTHER_PATH),
            ("", OTHER_PATH),
        ] {
            assert_eq!(never_served(path), name);
        }
    }

    #[test]
    fn metadata_is_named_without_what_the_client_wrote() {
        let mac = "meta-data/network/interfaces/macs";
        for (path, name) in [
            ("meta-data/placement/region".to_owned(), Some((Set::Base, "meta-data/placement/region".to_owned()))),
            ("meta-data/mac".to_owned(), Some((Set::NodeInfo, "meta-data/mac".to_owned()))),
            ("meta-data/spot".to_owned(), Some((Set::NodeInfo, "meta-data/spot/".to_owned()))),
            (mac.to_owned(), Some((Set::NodeInfo, format!("{mac}/")))),
            (format!("{mac}/=1+1"), Some((Set::NodeInfo, format!("{mac}/*/")))),
            (format!("{mac}/0a:1b:2c:3d:4e:5f/subnet-id"), Some((Set::NodeInfo, format!("{mac}/*/subnet-id")))),
            (format!("{mac}/x/ipv4-associations/1.2.3.4"), Some((Set::NodeInfo, format!("{mac}/*/ipv4-associations/*")))),
            (format!("{mac}/x/ipv4-associations"), Some((Set::NodeInfo, format!("{mac}/*/ipv4-associations/")))),
            (format!("{mac}/x/secret/y"), Some((Set::NodeInfo, format!("{mac}/*/*")))),
            ("meta-data/tags/instance/mine".to_owned(), Some((Set::NodeInfo, "meta-data/tags/instance/*".to_owned()))),
            ("meta-data/unheard-of".to_owned(), None),
        ] {
            assert_eq!(table::name_of(&path), name, "{path}");
        }
    }
}
