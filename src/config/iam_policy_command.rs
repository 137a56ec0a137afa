//! What `rolegate iam-policy` prints, and for which pods.

use clap::ArgMatches;

use super::source::SettingSource;
use super::{BaseRole, Config, ConfigError};
use crate::role::RoleArn;

/// Which policies are printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PolicyChoice {
    /// All, as one document.
    All,
    /// That of the nodes' role.
    Node,
    /// That of the role of `--assume-role-arn`.
    Intermediate,
    /// The trust policy of a role.
    Trust,
    /// That of a role that assumes target roles.
    Chain,
    /// The permissions boundary of the nodes' role.
    Boundary,
}

/// What `rolegate iam-policy` prints, and for which pods.
#[derive(Debug)]
pub(crate) struct IamPolicyCommand {
    /// The daemon's settings.
    pub config: Config,
    /// The node that the command line names; `None` for all nodes.
    pub node: Option<String>,
    /// The role of the nodes.
    pub node_role: Option<RoleArn>,
    /// Which policies are printed.
    pub policy: PolicyChoice,
    /// The role of a trust policy or of a chain.
    pub role: Option<RoleArn>,
    /// Whether paths of roles are allowed instead of each role.
    pub by_path: bool,
    /// Whether roles count that enforced restrictions of namespaces would refuse.
    pub with_audited: bool,
}

impl IamPolicyCommand {
    /// Reads flags and environment. The node is read from the command line alone: in the daemon's container, the environment names its
    /// own.
    ///
    /// # Errors
    /// Every mistake, also in the daemon's flags.
    pub(crate) fn from_source(matches: &ArgMatches, env: &dyn Fn(&str) -> Option<String>) -> Result<Self, ConfigError> {
        let mut source = SettingSource::new(matches, env);
        let config = Config::read(&mut source);
        let node = source.is_argument("node").then(|| config.pods.node.clone());
        let choices = [
            ("all", PolicyChoice::All),
            ("node", PolicyChoice::Node),
            ("intermediate", PolicyChoice::Intermediate),
            ("trust", PolicyChoice::Trust),
            ("chain", PolicyChoice::Chain),
            ("boundary", PolicyChoice::Boundary),
        ];
        let policy = source.choice("policy", &choices, PolicyChoice::All);
        let by_path = source.switch("prefix");
        let with_audited = source.switch("include-audited");
        let node_role = source.parse("node-role", principal);
        let base = match &config.roles.base {
            BaseRole::Given(base) => Some(base.clone()),
            _ => None,
        };
        let role = source.parse("role", |text| match &base {
            Some(base) if !text.starts_with("arn:") => base.complete(text).map_err(|error| error.to_string()),
            _ => text.parse::<RoleArn>().map_err(|error| error.to_string()),
        });
        if source.is_argument("role") && !matches!(policy, PolicyChoice::Trust | PolicyChoice::Chain) {
            source.mistake("--role requires --policy=trust or --policy=chain");
        }
        if policy == PolicyChoice::Trust && !source.is_given("node-role") && config.sessions.intermediate.is_none() {
            source.mistake("--policy=trust requires --node-role: trust policies name the role of the nodes");
        }
        if by_path && !source.is_given("node-role") {
            source.mistake("--prefix requires --node-role: the path of a role may be that of the nodes' role, which pods must not get");
        }
        if policy == PolicyChoice::Intermediate && config.sessions.intermediate.is_none() {
            source.mistake("--policy=intermediate requires --assume-role-arn");
        }
        let mistakes = source.into_mistakes();
        if mistakes.is_empty() {
            Ok(Self { config, node, node_role, policy, role, by_path, with_audited })
        } else {
            Err(ConfigError { mistakes })
        }
    }
}

/// Reads a role that a trust policy can name. IAM does not allow wildcards in the ARN of a principal.
fn principal(text: &str) -> Result<RoleArn, String> {
    let role = text.parse::<RoleArn>().map_err(|error| error.to_string())?;
    match role.as_str().contains(['*', '?', '$']) {
        true => Err("expected the ARN of one role: IAM does not allow the characters * ? $ in the ARN of a principal".to_owned()),
        false => Ok(role),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test says loudly what failed")]
    use super::*;

    fn read(arguments: &[&str]) -> Result<IamPolicyCommand, Vec<String>> {
        let matches = crate::cli::command().try_get_matches_from(["rolegate", "iam-policy"].iter().chain(arguments)).unwrap();
        // That of the daemon's container.
        let env = |name: &str| ["NODE_NAME", "ROLEGATE_NODE"].contains(&name).then(|| "node-a".to_owned());
        IamPolicyCommand::from_source(matches.subcommand_matches("iam-policy").unwrap(), &env).map_err(|error| error.mistakes)
    }

    #[test]
    fn all_nodes_are_read_unless_an_argument_names_one() {
        assert_eq!(read(&[]).unwrap().node, None);
        assert_eq!(read(&["--node=node-b"]).unwrap().node.as_deref(), Some("node-b"));
    }

    #[test]
    fn a_role_may_be_short() {
        let base = "--base-role-arn=arn:aws:iam::123456789012:role/pods/";
        let node = "--node-role=arn:aws:iam::123456789012:role/nodes";
        let command = read(&[base, node, "--policy=trust", "--role=web"]).unwrap();
        assert_eq!(command.role.unwrap().as_str(), "arn:aws:iam::123456789012:role/pods/web");
        assert_eq!(command.policy, PolicyChoice::Trust);
        assert!(!command.by_path);
    }

    #[test]
    fn what_does_not_go_together_is_a_mistake() {
        for arguments in [
            &["--policy=all-of-them"][..],
            &["--policy=trust"],
            &["--policy=intermediate"],
            &["--role=arn:aws:iam::123456789012:role/web"],
            &["--prefix"],
            &["--node-role=nodes"],
            &["--node-role=arn:aws:iam::123456789012:role/a*/nodes"],
            &["--app-port=x"],
        ] {
            assert!(read(arguments).is_err_and(|mistakes| mistakes.len() == 1), "{arguments:?}");
        }
        let intermediate = "--assume-role-arn=arn:aws:iam::123456789012:role/hub";
        assert!(read(&["--policy=trust", intermediate]).is_ok());
        assert!(read(&["--policy=intermediate", intermediate]).is_ok());
    }
}
