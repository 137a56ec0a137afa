//! The service accounts that are printed.

use std::collections::BTreeSet;

use serde_json::{Map, Value};

use super::workloads::{self, DEFAULT};
use crate::migrate::manifest::{ManifestObject, filled};
use crate::migrate::yaml::{MapBuilder, NotedDocument};

/// The label of service accounts whose pods the admission policy changes.
pub(super) const LABEL: &str = "rolegate.io/pod-identity";
/// The longest suggested name, in bytes. Kubernetes allows 253; names in labels may have 63.
const MAX_NAME: usize = 63;
/// What `kubectl apply` remembers of the last manifest. It writes it again.
const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";
/// Settings of an account that pods depend on.
const SETTINGS: &[&str] = &["automountServiceAccountToken", "imagePullSecrets"];

/// The names of accounts that exist or were suggested.
#[derive(Debug)]
pub(super) struct AccountNames(BTreeSet<(String, String)>);

impl AccountNames {
    pub(super) fn of(objects: &[ManifestObject]) -> Self {
        let accounts = objects.iter().filter(|object| object.kind() == "ServiceAccount");
        Self(accounts.map(|account| (workloads::namespace(account).to_owned(), account.name().to_owned())).collect())
    }

    /// Returns a free name for the account of one role, made of the names of the old account and the role.
    pub(super) fn suggest(&mut self, namespace: &str, account: &str, role: &str) -> String {
        let short = role.rsplit(['/', ':']).next().unwrap_or_default().to_ascii_lowercase();
        let short: String = short.chars().map(|c| if c.is_ascii_lowercase() || c.is_ascii_digit() { c } else { '-' }).collect();
        let short = short.trim_matches('-');
        let short = if short.is_empty() { "role" } else { short };
        let base = if account == DEFAULT { short.to_owned() } else { format!("{account}-{short}") };
        let mut number = 1_usize;
        loop {
            let end = if number == 1 { String::new() } else { format!("-{number}") };
            let start = &base[..base.floor_char_boundary(MAX_NAME - end.len())];
            let name = format!("{}{end}", start.trim_end_matches(['-', '.']));
            if name != DEFAULT && self.0.insert((namespace.to_owned(), name.clone())) {
                return name;
            }
            number += 1;
        }
    }
}

/// Returns an account with a role annotation, and all that it has now: `kubectl apply` removes what a manifest no longer has.
pub(super) fn document(
    (namespace, name): (&str, &str),
    (role_key, role): (&str, &str),
    now: Option<&ManifestObject>,
    notes: Vec<String>,
) -> NotedDocument {
    let texts = |key| now.and_then(|now| now.metadata(key)).and_then(Value::as_object).cloned().unwrap_or_default();
    let (mut labels, mut annotations): (Map<_, _>, Map<_, _>) = (texts("labels"), texts("annotations"));
    labels.insert(LABEL.to_owned(), "true".into());
    annotations.remove(LAST_APPLIED);
    annotations.insert(role_key.to_owned(), role.into());
    let mut metadata = MapBuilder::default();
    metadata.put("name", name).put("namespace", namespace).put("labels", Value::from(labels)).put("annotations", Value::from(annotations));
    let mut root = MapBuilder::default();
    root.put("apiVersion", "v1").put("kind", "ServiceAccount").put("metadata", metadata);
    for key in SETTINGS.iter().chain(&["secrets"]) {
        root.put_some(key, now.and_then(|now| filled(now.get(key))));
    }
    NotedDocument { notes, root: root.build() }
}

/// Adds the settings of another account that its pods depend on.
pub(super) fn with_settings_of(mut document: NotedDocument, other: Option<&ManifestObject>) -> NotedDocument {
    for key in SETTINGS {
        if let Some(value) = other.and_then(|other| filled(other.get(key))) {
            document.root.push(key, value);
        }
    }
    document
}
