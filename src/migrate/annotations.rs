//! `rolegate migrate annotations`: role annotations of pods → the same roles on their service accounts.
//!
//! Workloads that share a service account and have one role keep their account, which gets the role. If they have different roles, or
//! some have none, each role gets an account of its own: no pod gets a role that it did not have.

mod accounts;
mod workloads;

use std::collections::BTreeMap;

use super::error::MigrateError;
use super::manifest::{self, ManifestObject};
use super::migrated::{MAX_LISTED, Migrated};
use super::yaml::{self, MAX_WORKLOADS_INPUT, NotedDocument};
use crate::text::{self, quoted};
use accounts::AccountNames;
use workloads::{Change, DEFAULT, Workload, role};

/// The annotation of service accounts that names a role for web identity tokens.
const EKS_ROLE: &str = "eks.amazonaws.com/role-arn";

/// Returns service accounts that give each workload the role of its pods' annotation, which has this key on pods and accounts.
pub(crate) fn migrate_annotations(input: &[u8], role_key: &str) -> Result<Migrated, MigrateError> {
    if input.len() > MAX_WORKLOADS_INPUT {
        return Err(MigrateError::TooMuch);
    }
    let input = str::from_utf8(input).map_err(|_| MigrateError::NotText)?;
    let objects = manifest::objects(input)?;
    let mut output =
        AnnotationsOutput { role_key, names: AccountNames::of(&objects), objects: &objects, warnings: Vec::new(), documents: Vec::new() };
    let mut groups: BTreeMap<(&str, &str), Vec<Workload<'_>>> = BTreeMap::new();
    for workload in workloads::of(&objects, role_key, &mut output.warnings) {
        groups.entry((workload.namespace, workload.account)).or_default().push(workload);
    }
    for ((namespace, account), workloads) in &groups {
        output.add(namespace, account, workloads);
    }
    let header = format!(
        "Written by \"rolegate migrate annotations\" of rolegate {}. Read every comment. The daemon reads roles of service accounts only \
         with --service-account-roles. Annotations of pods take precedence: remove them when the pods use the accounts below.",
        env!("CARGO_PKG_VERSION")
    );
    match output.documents.first_mut() {
        Some(first) => first.notes.insert(0, header),
        None => return Err(MigrateError::NoRoles(output.warnings)),
    }
    let yaml = yaml::write(&output.documents).map_err(MigrateError::Write)?;
    Ok(Migrated { yaml, warnings: output.warnings.iter().map(|warning| text::printable(warning)).collect() })
}

/// The service accounts while they are made.
struct AnnotationsOutput<'a> {
    role_key: &'a str,
    objects: &'a [ManifestObject],
    names: AccountNames,
    warnings: Vec<String>,
    documents: Vec<NotedDocument>,
}

impl<'a> AnnotationsOutput<'a> {
    /// Adds the accounts for the workloads of one account.
    fn add(&mut self, namespace: &str, account: &str, workloads: &[Workload<'_>]) {
        let object = self.account(namespace, account);
        let title = quoted(&format!("{namespace}/{account}"));
        let annotation = |key: &str| object.and_then(|object| object.metadata("annotations")).and_then(|annotations| annotations.get(key));
        let Ok(own) = role(annotation(self.role_key)) else {
            self.warnings.push(format!(
                "service account {title} has a malformed role annotation; its workloads are skipped; correct the annotation first"
            ));
            return;
        };
        if own.is_none() && workloads.iter().all(|workload| workload.role.is_none()) {
            return;
        }
        if object.is_none() {
            self.warnings.push(format!(
                "service account {title} is not in the input, so its other settings are not known; add \"sa\" to the kubectl command"
            ));
        }
        let mut notes = Vec::new();
        if annotation(EKS_ROLE).is_some() {
            self.warnings
                .push(format!("service account {title} has the annotation {EKS_ROLE}: if a webhook reads it, SDKs use that role first"));
            notes.push(format!("It has the annotation {EKS_ROLE}: if a webhook reads it, SDKs use that role first."));
        }
        // Without an annotation, the pods have the role of their account already.
        let mut roles: BTreeMap<Option<&str>, Vec<&Workload<'_>>> = BTreeMap::new();
        for workload in workloads {
            roles.entry(workload.role.or(own)).or_default().push(workload);
        }
        let is_shared = roles.len() > 1 || (account == DEFAULT && own.is_none());
        let without = roles.remove(&None).unwrap_or_default();
        for (role, workloads) in roles {
            let Some(role) = role else { continue };
            if !is_shared || own == Some(role) {
                let mut notes = std::mem::take(&mut notes);
                notes.insert(0, format!("The workloads of this account that have the role {}:", quoted(role)));
                notes.splice(1..1, listed(&workloads));
                self.describe(&workloads, &mut notes);
                self.documents.push(accounts::document((namespace, account), (self.role_key, role), object, notes));
            } else {
                self.separate(namespace, account, role, &workloads, &without);
            }
        }
    }

    /// Adds a new account for one role.
    fn separate(&mut self, namespace: &str, account: &str, role: &str, workloads: &[&Workload<'_>], without: &[&Workload<'_>]) {
        let name = self.names.suggest(namespace, account, role);
        let title = quoted(&format!("{namespace}/{account}"));
        let why = if account == DEFAULT {
            "which all pods that name no account use"
        } else if without.is_empty() {
            "whose workloads have different roles"
        } else {
            "which workloads without a role also use"
        };
        let mut notes = vec![format!("A new account in place of {title}, {why}. For the role {}:", quoted(role))];
        notes.extend(listed(workloads));
        notes.push(format!("Grant it the Kubernetes permissions of {title} that these workloads need (RoleBindings). Then change the workloads, in the cluster and in their manifests:"));
        for workload in workloads {
            notes.push(match workload.change {
                Change::Patch(_) => workload.command(&name),
                Change::Recreate => format!("- {}: create it again, with serviceAccountName: {name}", workload.title()),
                Change::Owner => format!("- {}: set serviceAccountName: {name} in its pod template", workload.title()),
            });
        }
        self.describe(workloads, &mut notes);
        self.warnings.push(format!(
            "service account {title}: the new account {} is for {} with the role {}; the commands are in the comments",
            quoted(&name),
            count(workloads.len()),
            quoted(role)
        ));
        let document = accounts::document((namespace, &name), (self.role_key, role), None, notes);
        let document = accounts::with_settings_of(document, self.account(namespace, account));
        self.documents.push(document);
    }

    /// Adds notes and warnings about what does not move with the role.
    fn describe(&mut self, workloads: &[&Workload<'_>], notes: &mut Vec<String>) {
        for workload in workloads {
            for annotation in workload.staying() {
                let note =
                    format!("{} keeps the annotation {annotation} on its pods: service accounts have no such annotation", workload.title());
                self.warnings.push(note.clone());
                notes.push(note);
            }
            if workload.host_network {
                let note =
                    format!("{} has hostNetwork: its pods request credentials at 127.0.0.1 (--pod-identity-host-port)", workload.title());
                self.warnings.push(note.clone());
                notes.push(note);
            }
        }
    }

    fn account(&self, namespace: &str, name: &str) -> Option<&'a ManifestObject> {
        self.objects
            .iter()
            .find(|object| object.kind() == "ServiceAccount" && object.name() == name && workloads::namespace(object) == namespace)
    }
}

fn listed(workloads: &[&Workload<'_>]) -> Vec<String> {
    let mut lines: Vec<String> = workloads.iter().take(MAX_LISTED).map(|workload| format!("- {}", workload.title())).collect();
    if let Some(more) = workloads.len().checked_sub(MAX_LISTED).filter(|more| *more > 0) {
        lines.push(format!("- and {more} more"));
    }
    lines
}

fn count(workloads: usize) -> String {
    if workloads == 1 { "1 workload".to_owned() } else { format!("{workloads} workloads") }
}

#[cfg(test)]
mod tests;
