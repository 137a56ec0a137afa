//! `rolegate migrate`: reads the manifests of kube2iam or kiam, and writes rolegate's, with a comment beside everything that
//! differs. Text in, text out: it asks no cluster. `rolegate migrate annotations` reads a cluster's workloads, and writes service
//! accounts with the roles of their pods.
//!
//! A manifest is foreign text. Values are quoted by the YAML library, comments hold no control characters, and the output is
//! read again and compared before it is handed out ([`yaml`]). Arguments go through rolegate's own parser: a list that the
//! daemon would refuse is not printed.

mod annotations;
mod container;
mod daemon;
mod error;
mod kiam;
mod kube2iam;
mod manifest;
mod migrated;
mod rbac;
mod translation;
mod variables;
mod volumes;
mod words;
mod workload;
mod yaml;

use std::collections::BTreeSet;

use serde_json::{Map, Value};

use crate::text;
pub(crate) use annotations::migrate_annotations;
use daemon::OldDaemon;
pub(crate) use error::{KiamPart, MigrateError, Project};
use manifest::ManifestObject;
use migrated::{MAX_LISTED, Migrated};
use translation::Translation;
use variables::Variables;
use yaml::NotedDocument;
pub(crate) use yaml::{MAX_INPUT, MAX_WORKLOADS_INPUT};

/// Returns rolegate's manifests for those of another project.
pub(crate) fn migrate(project: Project, input: &[u8]) -> Result<Migrated, MigrateError> {
    if input.len() > MAX_INPUT {
        return Err(MigrateError::TooLarge);
    }
    let input = str::from_utf8(input).map_err(|_| MigrateError::NotText)?;
    let objects = manifest::objects(input)?;
    let found = daemon::find(&objects, project)?;
    if found.is_empty() {
        return Err(MigrateError::NothingToMigrate(project));
    }
    let (daemons, server) = sort(project, found)?;
    let mut output = Output { warnings: Vec::new(), documents: Vec::new() };
    let mut accounts = BTreeSet::new();
    for old in &daemons {
        output.add(project, old, server.as_ref(), &objects, &mut accounts)?;
    }
    let mut notes = vec![format!(
        "Written by \"rolegate migrate {}\" of rolegate {}. Read every comment. Replace the image. Keep the old manifests: you need them to go back.",
        project.name(),
        env!("CARGO_PKG_VERSION")
    )];
    if let Some(server) = &server {
        output.about_server(server, &objects, &mut notes);
    }
    notes.extend(left_alone(&objects, &output.documents));
    if let Some(first) = output.documents.first_mut() {
        first.notes.splice(0..0, notes);
    }
    let yaml = yaml::write(&output.documents).map_err(MigrateError::Write)?;
    Ok(Migrated { yaml, warnings: output.warnings.iter().map(|warning| text::printable(warning)).collect() })
}

/// The manifests while they are made.
struct Output {
    warnings: Vec<String>,
    documents: Vec<NotedDocument>,
}

impl Output {
    fn add(
        &mut self,
        project: Project,
        old: &OldDaemon<'_>,
        server: Option<&OldDaemon<'_>>,
        objects: &[ManifestObject],
        accounts: &mut BTreeSet<(String, String)>,
    ) -> Result<(), MigrateError> {
        let mut new = Translation::default();
        for entry in variables::entries(old.container) {
            new.add_variable(entry, None);
        }
        for entry in server.map(|server| variables::entries(server.container)).unwrap_or_default() {
            add_of_server(entry, &mut new);
        }
        let variables = Variables::of(new.variables(), objects);
        match (project, server) {
            (Project::Kiam, Some(server)) => {
                kiam::translate(&old.line.flags(kiam::is_switch), &server.line.flags(kiam::is_switch), &mut new)
            }
            _ => kube2iam::translate(&old.line.flags(kube2iam::is_switch), &variables, &mut new),
        }
        // With those that the translation added.
        let variables = Variables::of(new.variables(), objects);
        let config = new.check(&variables)?;
        let names = rbac::names(old, objects, &mut new.warnings);
        let daemon_set = workload::daemon_set(project, old, &names, &mut new, &config)?;
        if accounts.insert((names.namespace.clone(), names.service_account.clone())) {
            self.documents.extend(rbac::documents(project, old, &names, objects, &config, &mut new.warnings));
        }
        self.documents.push(daemon_set);
        self.warnings.append(&mut new.warnings);
        Ok(())
    }

    /// What the operator must know of kiam's server, which has no successor.
    fn about_server(&mut self, server: &OldDaemon<'_>, objects: &[ManifestObject], notes: &mut Vec<String>) {
        let note = "kiam's server assumed the roles, so its nodes were trusted by them. Now every node does: the role of the nodes must be \
                    allowed to assume the roles of pods, directly or by --assume-role-arn (docs/migrate-from-kiam.md)";
        self.warnings.push(note.to_owned());
        notes.push(note.to_owned());
        let account = server
            .service_account()
            .and_then(|name| objects.iter().find(|object| object.kind() == "ServiceAccount" && object.name() == name));
        if account
            .and_then(|account| account.metadata("annotations"))
            .and_then(|annotations| annotations.get("eks.amazonaws.com/role-arn"))
            .is_some()
        {
            let note = "the service account of kiam's server had an IAM role of its own (eks.amazonaws.com/role-arn), which is not carried over: \
                        decide which identity the daemon on each node is to have";
            self.warnings.push(note.to_owned());
            notes.push(note.to_owned());
        }
        notes.push(format!(
            "{} is not needed any more, nor its Service, certificates and RBAC. Delete them when no agent of kiam is left.",
            server.object.title()
        ));
    }
}

/// Adds a variable of kiam's server that the agent does not have.
fn add_of_server(entry: Map<String, Value>, new: &mut Translation) {
    let name = manifest::string(&entry, "name").unwrap_or_default().to_owned();
    if name.is_empty() || new.has_variable(&name) {
        return;
    }
    if name.starts_with("AWS_") && entry.contains_key("valueFrom") {
        new.warnings.push(format!("the variable {} of kiam's server is now on every node", text::quoted(&name)));
    }
    new.add_variable(entry, Some("from kiam's server"));
}

/// Returns the daemons to replace, and kiam's server.
fn sort(project: Project, found: Vec<OldDaemon<'_>>) -> Result<(Vec<OldDaemon<'_>>, Option<OldDaemon<'_>>), MigrateError> {
    let (mut daemons, mut servers) = (Vec::new(), Vec::new());
    for old in found {
        match project {
            Project::Kiam if old.part()? == KiamPart::Server => servers.push(old),
            _ if old.object.kind() != "DaemonSet" => return Err(MigrateError::NoDaemonSet(old.object.title())),
            _ => daemons.push(old),
        }
    }
    match (project, daemons.len(), servers.len()) {
        (Project::Kube2iam, ..) | (Project::Kiam, 1.., 1) => Ok((daemons, servers.pop())),
        (Project::Kiam, 0, _) => Err(MigrateError::HalfOfKiam(KiamPart::Server, KiamPart::Agent)),
        (Project::Kiam, _, 0) => Err(MigrateError::HalfOfKiam(KiamPart::Agent, KiamPart::Server)),
        (Project::Kiam, ..) => Err(MigrateError::ManyServers),
    }
}

/// Says which objects of the input have no successor in the output.
fn left_alone(objects: &[ManifestObject], documents: &[NotedDocument]) -> Vec<String> {
    let printed: BTreeSet<_> = documents.iter().map(NotedDocument::identity).collect();
    let is_printed = |object: &ManifestObject| printed.contains(&(object.kind().to_owned(), object.name().to_owned()));
    let rest: Vec<String> = objects.iter().filter(|object| !is_printed(object)).map(ManifestObject::title).collect();
    if rest.is_empty() {
        return Vec::new();
    }
    let more = rest.len().saturating_sub(MAX_LISTED);
    let mut notes = vec!["Of the input, these objects are not printed, and stay as they are in the cluster:".to_owned()];
    notes.extend(rest.into_iter().take(MAX_LISTED).map(|title| format!("- {title}")));
    if more > 0 {
        notes.push(format!("- and {more} more"));
    }
    notes
}

#[cfg(test)]
mod tests;
