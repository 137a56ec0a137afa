//! Whose manifests are read, and why none are printed.

use std::borrow::Cow;

use super::yaml::{MAX_INPUT, MAX_WORKLOADS_INPUT, YamlError};
use crate::advice::Advise;

/// The project whose manifests are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Project {
    Kube2iam,
    Kiam,
}

impl Project {
    /// The words for them.
    pub(crate) const NAMES: [(&str, Project); 2] = [("kube2iam", Project::Kube2iam), ("kiam", Project::Kiam)];

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Kube2iam => "kube2iam",
            Self::Kiam => "kiam",
        }
    }
}

/// The two programs of kiam.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum KiamPart {
    Agent,
    Server,
}

/// Why no manifests were made.
#[derive(Debug, thiserror::Error)]
pub(crate) enum MigrateError {
    #[error("the input is larger than {} MiB", MAX_INPUT / 1024 / 1024)]
    TooLarge,
    #[error("the input is larger than {} MiB", MAX_WORKLOADS_INPUT / 1024 / 1024)]
    TooMuch,
    #[error("no workload in the input has a role that can move to its service account{}", sentences(.0))]
    NoRoles(Vec<String>),
    #[error("the input is not UTF-8 text")]
    NotText,
    #[error("cannot read the input as YAML")]
    Yaml(#[source] YamlError),
    #[error("a document of the input is not a Kubernetes object")]
    NotAnObject,
    #[error("the input has no DaemonSet of {}", .0.name())]
    NothingToMigrate(Project),
    #[error("a workload of {} has no name", .0.name())]
    NoName(Project),
    #[error("{0} has no container")]
    NoContainer(String),
    #[error("cannot tell which container of {0} is the daemon")]
    WhichContainer(String),
    #[error("cannot tell whether {0} is kiam's agent or its server")]
    Part(String),
    #[error("the input has kiam's {}, but not its {}", part(.0), part(.1))]
    HalfOfKiam(KiamPart, KiamPart),
    #[error("the input has more than one server of kiam")]
    ManyServers,
    #[error("{0} is no DaemonSet")]
    NoDaemonSet(String),
    #[error("the selector of {0} does not select its own pods, or they have no labels")]
    Selector(String),
    #[error("the {0} of the daemon's container are not a list of texts")]
    Arguments(String),
    #[error("the daemon is started by a shell script that cannot be written as a list of arguments")]
    Shell,
    #[error("rolegate refuses the arguments: {}", .0.join("; "))]
    Refused(Vec<String>),
    #[error("cannot write the manifests")]
    Write(#[source] YamlError),
}

/// Warnings behind a sentence.
fn sentences(warnings: &[String]) -> String {
    warnings.iter().map(|warning| format!("; {warning}")).collect()
}

fn part(part: &KiamPart) -> &'static str {
    match part {
        KiamPart::Agent => "agent",
        KiamPart::Server => "server",
    }
}

impl Advise for MigrateError {
    fn advice(&self) -> Option<Cow<'static, str>> {
        Some(match self {
            Self::TooLarge => "give the manifests of kube2iam or kiam alone".into(),
            Self::TooMuch => "give one namespace at a time".into(),
            Self::NoRoles(_) => {
                "give the workloads and service accounts of a cluster: kubectl get deploy,sts,ds,job,cronjob,pods,sa --all-namespaces \
                 --output json"
                    .into()
            }
            Self::NotText | Self::Yaml(_) | Self::NotAnObject => {
                "give manifests as \"kubectl get --output yaml\" or \"helm template\" print them; templates must be rendered first".into()
            }
            Self::NothingToMigrate(project) => {
                format!("give the DaemonSet: its image, its name or its container's name contains {}", project.name()).into()
            }
            Self::NoName(_) => "give it the name that it has in the cluster".into(),
            Self::NoContainer(_) | Self::WhichContainer(_) => {
                "leave only the container of the daemon in it, or name that container after the project".into()
            }
            Self::Part(_) => "start the container with the subcommand agent or server".into(),
            Self::HalfOfKiam(..) => "give both: roles and sessions are set on the server, packet rules on the agent".into(),
            Self::ManyServers => "give one server and the agents that ask it".into(),
            Self::NoDaemonSet(_) => "rolegate runs on every node: give the DaemonSet".into(),
            Self::Selector(_) => "correct the labels of the pod template".into(),
            Self::Arguments(_) => "write each argument as a text in the list".into(),
            Self::Shell => "write the daemon's arguments as a list in args, and run this command again".into(),
            Self::Refused(_) => "correct the arguments in the input, and run this command again".into(),
            Self::Write(_) => return None,
        })
    }
}
