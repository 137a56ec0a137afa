//! The arguments of `rolegate pod-identity render`.

use clap::ArgMatches;

use super::ConfigError;
use super::pod_identity::DEFAULT_HOST_PORT;
use super::source::SettingSource;
use crate::text::{is_object_name, quoted};

/// The name of the argument that says which workload the patch is for.
pub(crate) const WORKLOAD: &str = "WORKLOAD";
/// The longest audience, in characters.
const MAX_AUDIENCE: usize = 512;

/// A kind of object that has containers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct WorkloadKind {
    /// The word for it in the arguments.
    pub word: &'static str,
    /// The object's `kind`.
    pub kind: &'static str,
    /// The object's `apiVersion`.
    pub version: &'static str,
    /// The fields between the object and its pod's spec.
    pub path: &'static [&'static str],
}

/// The supported kinds, all of which Kubernetes itself defines.
pub(crate) const KINDS: &[WorkloadKind] = &[
    WorkloadKind { word: "deployment", kind: "Deployment", version: "apps/v1", path: &["spec", "template"] },
    WorkloadKind { word: "statefulset", kind: "StatefulSet", version: "apps/v1", path: &["spec", "template"] },
    WorkloadKind { word: "daemonset", kind: "DaemonSet", version: "apps/v1", path: &["spec", "template"] },
    WorkloadKind { word: "job", kind: "Job", version: "batch/v1", path: &["spec", "template"] },
    WorkloadKind { word: "cronjob", kind: "CronJob", version: "batch/v1", path: &["spec", "jobTemplate", "spec", "template"] },
    WorkloadKind { word: "pod", kind: "Pod", version: "v1", path: &[] },
];

/// The arguments of `rolegate pod-identity render`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct PodIdentityRender {
    /// The kind of the workload.
    pub kind: WorkloadKind,
    /// The name of the workload.
    pub name: String,
    /// Names of containers to change.
    pub containers: Vec<String>,
    /// Names of init containers to change.
    pub init_containers: Vec<String>,
    /// The port on the loopback address that the pods connect to, if they have `hostNetwork`.
    pub host_port: Option<u16>,
    /// Whether pods connect to the IPv6 address.
    pub ipv6: bool,
    /// The audience of the token.
    pub audience: String,
}

impl PodIdentityRender {
    /// Reads arguments and environment.
    ///
    /// # Errors
    /// Every mistake in them.
    pub(crate) fn from_source(matches: &ArgMatches, env: &dyn Fn(&str) -> Option<String>) -> Result<Self, ConfigError> {
        let mut source = SettingSource::new(matches, env);
        let word = matches.get_one::<String>(WORKLOAD).map_or("", String::as_str);
        let (kind, name) = word.split_once('/').unwrap_or((word, ""));
        let kind = KINDS.iter().find(|known| known.word == kind.to_ascii_lowercase()).copied();
        if kind.is_none() || !is_object_name(name) {
            let words: Vec<_> = KINDS.iter().map(|known| known.word).collect();
            source.mistake(format!("{}: expected KIND/NAME, such as deployment/web; kinds: {}", quoted(word), words.join(", ")));
        }
        let containers = names(&mut source, "container");
        let init_containers = names(&mut source, "init-container");
        if containers.is_empty() && init_containers.is_empty() {
            source.mistake("--container is missing: name each container that is to get credentials");
        }
        if let Some(name) = containers.iter().chain(&init_containers).enumerate().find_map(|(index, name)| {
            let before = containers.iter().chain(&init_containers).take(index);
            before.into_iter().any(|other| other == name).then_some(name)
        }) {
            source.mistake(format!("{} is given twice: the containers of a pod have different names", quoted(name)));
        }
        let host_network = source.switch("host-network");
        let ipv6 = source.switch("ipv6");
        if host_network && ipv6 {
            source.mistake("--ipv6 has no effect with --host-network: these pods connect to 127.0.0.1");
        }
        let port = source.port("host-port", DEFAULT_HOST_PORT);
        if port == 0 {
            source.mistake("--host-port=0: expected the port of --pod-identity-host-port");
        }
        let audience = source.parse("audience", audience).unwrap_or_else(|| SettingSource::flag("audience").default.to_owned());
        let mistakes = source.into_mistakes();
        match kind {
            Some(kind) if mistakes.is_empty() => Ok(Self {
                kind,
                name: name.to_owned(),
                containers,
                init_containers,
                host_port: host_network.then_some(port),
                ipv6,
                audience,
            }),
            _ => Err(ConfigError { mistakes }),
        }
    }
}

fn names(source: &mut SettingSource<'_>, flag: &str) -> Vec<String> {
    let mut names = Vec::new();
    for (place, name) in source.list(flag) {
        if is_object_name(&name) {
            names.push(name);
        } else {
            source.mistake(format!("{place}: {} is not a name of a container", quoted(&name)));
        }
    }
    names
}

fn audience(text: &str) -> Result<String, String> {
    let is_valid = !text.is_empty() && text.chars().count() <= MAX_AUDIENCE && text.chars().all(|c| c.is_ascii_graphic());
    if is_valid { Ok(text.to_owned()) } else { Err("expected an audience without spaces".to_owned()) }
}
