//! What `rolegate check` verifies, where it runs, and the form of its report.

use clap::ArgMatches;

use super::explain_command::Output;
use super::source::SettingSource;
use super::{Config, ConfigError, flags};

/// The argument before an argument list that is verified alone.
pub(crate) const ARGS: &str = "args";
/// The same list behind `--`.
pub(crate) const LIST: &str = "ARGUMENTS";

/// Programs whose names stand before their arguments in a manifest or a process list.
const PROGRAMS: [&str; 3] = ["rolegate", "kube2iam", "kiam"];
/// Variables that manifests refer to, each with a value that a pod could have. The addresses are of nobody (RFC 5737).
const OF_MANIFESTS: [(&str, &str); 5] =
    [("NODE_NAME", "node"), ("HOST_IP", "192.0.2.1"), ("NODE_IP", "192.0.2.1"), ("POD_NAME", "pod"), ("POD_NAMESPACE", "namespace")];

/// What `rolegate check` verifies.
#[derive(Debug)]
pub(crate) struct CheckCommand {
    /// The configuration, or what is wrong with the arguments.
    pub config: Result<Box<Config>, ConfigError>,
    /// Whether nothing else is verified.
    pub only_arguments: bool,
    /// The role that is assumed once.
    pub role: Option<String>,
    /// The form of the report.
    pub output: Output,
    /// What the environment says.
    pub place: CheckPlace,
}

/// What the environment says about the place where the command runs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct CheckPlace {
    /// Whether this is a container of a pod: the kubelet sets `KUBERNETES_SERVICE_HOST` in each.
    pub in_pod: bool,
    /// `POD_NAME` or, in a pod, `HOSTNAME`. The second is the node's name in the host's network.
    pub pod_name: Option<String>,
    /// `POD_NAMESPACE`.
    pub pod_namespace: Option<String>,
}

impl CheckCommand {
    /// Reads flags and environment. Mistakes in the daemon's arguments are not errors here: they are in the report.
    ///
    /// # Errors
    /// Every mistake in the command's own flags.
    pub(crate) fn from_source(matches: &ArgMatches, env: &dyn Fn(&str) -> Option<String>) -> Result<Self, ConfigError> {
        let mut own = SettingSource::new(matches, env);
        let output = own.choice("format", &[("text", Output::Text), ("json", Output::Json)], Output::Text);
        let role = own.text("role");
        let given = [ARGS, LIST].iter().find_map(|name| matches.get_many::<String>(name));
        let list: Option<Vec<String>> = given.map(|list| list.cloned().collect()).or_else(|| own.text(ARGS).map(|text| vec![text]));
        if list.is_some() && flags::all().any(|flag| own.is_argument(flag.name)) {
            own.mistake("--args and -- verify an argument list alone: put every flag of the daemon behind them");
        }
        if list.is_some() && own.is_argument("role") {
            own.mistake("--role needs AWS, but --args and -- verify an argument list alone: give the daemon's flags without them");
        }
        let mistakes = own.into_mistakes();
        if !mistakes.is_empty() {
            return Err(ConfigError { mistakes });
        }
        let (config, only_arguments) = match list {
            // The environment of this process is not that of the container.
            Some(list) => (Config::from_arguments(words(list), &|_| None), true),
            None => (Config::from_source(matches, env), false),
        };
        Ok(Self { config: config.map(Box::new), only_arguments, role, output, place: CheckPlace::read(env) })
    }
}

impl CheckPlace {
    fn read(env: &dyn Fn(&str) -> Option<String>) -> Self {
        let env = |name: &str| env(name).filter(|text| !text.is_empty());
        let in_pod = env("KUBERNETES_SERVICE_HOST").is_some();
        let pod_name = env("POD_NAME").or_else(|| env("HOSTNAME").filter(|_| in_pod));
        Self { in_pod, pod_name, pod_namespace: env("POD_NAMESPACE") }
    }
}

/// Returns the words of an argument list as a container gets them: without the name of the program, and with values in place of
/// `$(VARIABLE)`, which Kubernetes replaces. One text with spaces is split.
fn words(given: Vec<String>) -> Vec<String> {
    let split: Vec<String> = match given.as_slice() {
        [text] => text.split_whitespace().map(str::to_owned).collect(),
        _ => given,
    };
    let is_program = |word: &&String| word.rsplit('/').next().is_some_and(|name| PROGRAMS.contains(&name));
    let expanded =
        |word: &String| OF_MANIFESTS.iter().fold(word.clone(), |word, (variable, value)| word.replace(&format!("$({variable})"), value));
    split.iter().skip_while(is_program).map(expanded).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test says loudly what failed")]
    use super::*;

    fn read(arguments: &[&str], env: &dyn Fn(&str) -> Option<String>) -> Result<CheckCommand, ConfigError> {
        let command = crate::cli::command();
        let matches = command.try_get_matches_from(["rolegate", "check"].iter().chain(arguments)).unwrap();
        CheckCommand::from_source(matches.subcommand_matches("check").unwrap(), env)
    }

    #[test]
    fn an_argument_list_is_read_as_a_container_gets_it() {
        let list = |arguments: &[&str]| {
            let command = read(arguments, &|_| None).unwrap();
            assert!(command.only_arguments);
            command.config.map(|config| (config.pods.node, config.redirect.host_ips.len())).map_err(|error| error.mistakes.len())
        };
        for arguments in [
            &["--args", "--node=$(NODE_NAME)", "--host-ip=$(HOST_IP)", "--iptables=true"][..],
            &["--args", "/kube2iam --node=$(NODE_NAME)  --host-ip=$(HOST_IP)\n"],
            &["--", "rolegate", "run", "--node", "$(NODE_NAME)", "--host-ip=$(HOST_IP)"],
            &["--", "/kiam", "agent", "--json-log", "--node=$(NODE_NAME)", "--host=$(HOST_IP)"],
        ] {
            assert_eq!(list(arguments), Ok(("node".to_owned(), 1)), "{arguments:?}");
        }
        assert_eq!(list(&["--args", "--bogus"]), Err(1));
        assert_eq!(list(&["--args", "--node=a", "--app-port=x", "--log-level=y"]), Err(2));
    }

    #[test]
    fn the_environment_is_that_of_the_container_or_nobodys() {
        let env = |name: &str| (name == "NODE_NAME").then(|| "node-a".to_owned());
        assert_eq!(read(&[], &env).unwrap().config.unwrap().pods.node, "node-a");
        assert_eq!(read(&[], &|_| None).unwrap().config.unwrap().pods.node, "");
        assert_eq!(read(&["--args", "--node=b"], &env).unwrap().config.unwrap().pods.node, "b");
    }

    #[test]
    fn wrong_usage_is_distinguished_from_wrong_arguments() {
        for arguments in [
            &["--format=xml"][..],
            &["--node=a", "--args", "--node=a"],
            &["--role=web", "--args", "--node=a"],
            &["--role=web", "--", "--node=a"],
        ] {
            assert!(read(arguments, &|_| None).is_err(), "{arguments:?}");
        }
        assert!(read(&["--app-port=x"], &|_| None).unwrap().config.is_err());
    }

    #[test]
    fn the_name_of_the_host_is_a_pods_only_in_a_pod() {
        let of = |names: &'static [&str]| CheckPlace::read(&move |name| names.contains(&name).then(|| name.to_lowercase()));
        assert_eq!(of(&["HOSTNAME"]), CheckPlace::default());
        let in_pod = of(&["HOSTNAME", "KUBERNETES_SERVICE_HOST"]);
        assert_eq!((in_pod.in_pod, in_pod.pod_name.as_deref()), (true, Some("hostname")));
    }
}
