//! Which workloads of a manifest are kube2iam's or kiam's.

use serde_json::{Map, Value};

use super::error::{KiamPart, MigrateError, Project};
use super::manifest::{ManifestObject, maps, string};
use super::words::CommandLine;

/// A workload, with the container that is the daemon.
#[derive(Debug)]
pub(super) struct OldDaemon<'a> {
    pub object: &'a ManifestObject,
    pub pod: &'a Map<String, Value>,
    pub container: &'a Map<String, Value>,
    pub line: CommandLine,
}

impl OldDaemon<'_> {
    /// The service account, unless it is the namespace's default.
    pub(super) fn service_account(&self) -> Option<&str> {
        let name = string(self.pod, "serviceAccountName").or_else(|| string(self.pod, "serviceAccount"));
        name.filter(|name| !name.is_empty() && *name != "default")
    }

    /// Which part of kiam this is: by its subcommand, else its flags, else its name.
    pub(super) fn part(&self) -> Result<KiamPart, MigrateError> {
        for word in self.line.program() {
            match word {
                "agent" => return Ok(KiamPart::Agent),
                "server" => return Ok(KiamPart::Server),
                _ => {}
            }
        }
        let has = |flag: &str| self.line.words.iter().any(|word| word.split('=').next() == Some(flag));
        let names =
            |part: &str| self.object.name().contains(part) || string(self.container, "name").is_some_and(|name| name.contains(part));
        match (has("--server-address"), has("--bind") || has("--role-base-arn") || has("--role-base-arn-autodetect")) {
            (true, false) => Ok(KiamPart::Agent),
            (false, true) => Ok(KiamPart::Server),
            _ if names("agent") && !names("server") => Ok(KiamPart::Agent),
            _ if names("server") && !names("agent") => Ok(KiamPart::Server),
            _ => Err(MigrateError::Part(self.object.title())),
        }
    }
}

/// Returns the workloads of a project.
pub(super) fn find(objects: &[ManifestObject], project: Project) -> Result<Vec<OldDaemon<'_>>, MigrateError> {
    let mut found = Vec::new();
    for object in objects.iter().filter(|object| object.is_workload()) {
        let pod = object.pod();
        let containers: Vec<_> = pod.into_iter().flat_map(|pod| maps(pod, "containers")).collect();
        let mut its: Vec<_> = containers.iter().copied().filter(|container| is_of(container, project)).collect();
        if its.is_empty() && object.name().contains(project.name()) {
            match containers.as_slice() {
                [] => return Err(MigrateError::NoContainer(object.title())),
                [only] => its.push(*only),
                _ => return Err(MigrateError::WhichContainer(object.title())),
            }
        }
        match (pod, its.as_slice()) {
            (_, []) => {}
            _ if object.name().is_empty() => return Err(MigrateError::NoName(project)),
            (Some(pod), [container]) => found.push(OldDaemon { object, pod, container, line: CommandLine::of(container)? }),
            _ => return Err(MigrateError::WhichContainer(object.title())),
        }
    }
    Ok(found)
}

/// Whether a container runs the project's program: by its image, its name, or its command.
fn is_of(container: &Map<String, Value>, project: Project) -> bool {
    let image = string(container, "image").unwrap_or_default();
    let image = image.split('@').next().unwrap_or_default().rsplit('/').next().unwrap_or_default();
    let image = image.split(':').next().unwrap_or_default();
    let is_named = |text: &str| text.contains(project.name());
    let command = container.get("command").and_then(Value::as_array).and_then(|words| words.first()).and_then(Value::as_str);
    is_named(image)
        || string(container, "name").is_some_and(is_named)
        || command.is_some_and(|word| is_named(word.rsplit('/').next().unwrap_or_default()))
}
