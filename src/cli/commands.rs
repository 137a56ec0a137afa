//! The command line: every command with its flags and its help.

use clap::{Arg, ArgAction, Command};

use super::texts::ending;
use crate::config::arguments::RUN;
use crate::config::check_command::LIST;
use crate::config::explain_command::POD;
use crate::config::flags;
use crate::config::pod_identity_render::WORKLOAD;
use crate::config::probe::QUESTION;
use crate::config::redirect::Action;
use crate::migrate::Project;
use crate::self_test::helper;

/// The name of the argument that says whose manifests are read.
pub(super) const PROJECT: &str = "PROJECT";

/// `rolegate pod-identity`, and its only subcommand.
pub(super) const POD_IDENTITY: &str = "pod-identity";
pub(super) const RENDER: &str = "render";
/// `rolegate wait`.
pub(super) const WAIT: &str = "wait";

/// `rolegate help`, and its argument.
pub(super) const HELP: &str = "help";
pub(super) const TOPIC: &str = "COMMAND";

/// The argument of `rolegate completions`.
pub(super) const SHELL: &str = "SHELL";
/// The argument of `rolegate man`.
pub(super) const DIRECTORY: &str = "DIRECTORY";

/// The flag of the long help.
pub(super) const HELP_ALL: &str = "help-all";

/// What `migrate` reads besides the manifests of other projects.
const ANNOTATIONS: &str = "annotations";
const PROJECTS: [&str; 3] = [Project::NAMES[0].0, Project::NAMES[1].0, ANNOTATIONS];

/// The heading of the daemon's flags in the short help.
const ESSENTIAL_HEADING: &str = "Flags of the daemon that most operators need";

/// `rolegate iam-policy`.
pub(super) const IAM_POLICY: &str = "iam-policy";

/// Returns the command line: the flags, for the subcommand `run` and for the program without a subcommand alike.
pub fn command() -> Command {
    // The daemon starts it, nobody else.
    visible().subcommand(Command::new(helper::SUBCOMMAND).hide(true))
}

/// Returns the command line as `--help-all`, the man pages and the completions show it.
pub(super) fn visible() -> Command {
    let run = Command::new(RUN).about("Serve this node's pods (the default)");
    let program = Command::new("rolegate")
        .version(env!("CARGO_PKG_VERSION"))
        .about("Gives each pod of this node its own IAM role through the EC2 metadata address, never the node's role")
        .long_about(
            "Gives each pod of this node its own IAM role through the EC2 metadata address, never the node's role.\n\n\
             Without a command, it serves the pods of this node. Each flag can also be set by the environment variable beside it; the \
             flag takes precedence.",
        )
        .args_conflicts_with_subcommands(true)
        .subcommand(flags::add_to(run))
        .subcommand(explain_command())
        .subcommand(report_command())
        .subcommand(check_command())
        .subcommand(iam_policy_command())
        .subcommand(redirect_command())
        .subcommand(probe_command())
        .subcommand(migrate_command())
        .subcommand(pod_identity_command())
        .subcommand(Command::new(WAIT).about("Do nothing until the process is ended (for the DaemonSet that removes the rules)"))
        .subcommand(completions_command())
        .subcommand(man_command())
        .subcommand(help_command());
    with_help(flags::add_to(program), "")
}

/// Returns the command line as `--help` shows it: of the daemon's flags, only those that most operators need.
pub(super) fn short() -> Command {
    shorten(command())
}

fn shorten(command: Command) -> Command {
    let only_decides = ["explain", IAM_POLICY].contains(&command.get_name());
    command.mut_subcommands(shorten).mut_args(|arg| {
        let name = arg.get_id().as_str();
        match flags::ESSENTIAL.iter().find(|(essential, _)| *essential == name) {
            _ if !is_of_daemon(&arg) => arg,
            Some(_) if only_decides && !flags::DECIDING.contains(&name) => arg.hide_short_help(true),
            Some((_, text)) => arg.help(*text).help_heading(ESSENTIAL_HEADING),
            None => arg.hide_short_help(true),
        }
    })
}

/// Whether a flag is in a group of the daemon's flags.
fn is_of_daemon(arg: &Arg) -> bool {
    arg.get_help_heading().is_some_and(|heading| flags::GROUPS.iter().any(|(group, _)| *group == heading))
}

/// Adds the flags for help, the examples and the exit codes to a command and all commands below it.
fn with_help(command: Command, path: &str) -> Command {
    let below = path.to_owned();
    let command = command.mut_subcommands(move |sub| {
        let path = format!("{below} {}", sub.get_name());
        with_help(sub, path.trim_start())
    });
    let end = ending(path).map(|ending| ending.text()).unwrap_or_default();
    let hidden_flags = command.get_arguments().any(is_of_daemon);
    let rest =
        if hidden_flags { format!("{end}\n\nAll flags, with their environment variables: {}.", all_flags(path)) } else { end.clone() };
    command
        .disable_help_flag(true)
        .disable_help_subcommand(true)
        .max_term_width(120)
        .after_help(rest)
        .after_long_help(end)
        .arg(Arg::new("help").short('h').long("help").action(ArgAction::HelpShort).help("Print a short help"))
        .arg(Arg::new(HELP_ALL).long(HELP_ALL).action(ArgAction::HelpLong).help("Print the help with all flags"))
}

/// Returns where all flags of a command are described.
fn all_flags(path: &str) -> String {
    if path.is_empty() { "rolegate --help-all, man rolegate".to_owned() } else { format!("rolegate {path} --help-all") }
}

fn explain_command() -> Command {
    let command = Command::new("explain")
        .about("Show step by step which role a pod gets, and why")
        .long_about(
            "Shows step by step which role a pod gets, and why, or why it gets none.\n\n\
             By default, it asks the daemon on this machine, which decides with its own settings: run it in the daemon's pod on the \
             pod's node (kubectl exec), or use kubectl port-forward and --admin-url. With --kubeconfig or --api-server, it reads the \
             Kubernetes API and decides with the flags given here: give the daemon's flags.\n\n\
             With --assume, it also calls AssumeRole once: with the AWS identity of the daemon or, with --kubeconfig or --api-server, \
             with that of this command.",
        )
        .arg(Arg::new(POD).required(true).help("The pod, such as shop/web-0"));
    flags::add_to_explain(command)
}

fn check_command() -> Command {
    let command = Command::new("check")
        .about("Check what the daemon needs: arguments, API, AWS, metadata service and node")
        .long_about(
            "Checks what the daemon needs, and says how to fix what is missing: its arguments, the Kubernetes API and the permissions \
             that the flags need there, its own AWS identity, the connection to STS, the metadata service, and the node's packet rules \
             and ports.\n\n\
             Give it the daemon's flags. It runs on a node, in a pod or on any other machine, and skips what cannot be checked there. \
             With --role, it also assumes one role. It changes nothing; the self-test, which runs beside a daemon only, removes its \
             interface again.\n\n\
             With --args, or behind --, it verifies an argument list and nothing else.",
        )
        .arg(Arg::new(LIST).last(true).num_args(1..).allow_hyphen_values(true).help("The argument list, as for --args"));
    flags::add_to_check(command)
}

fn report_command() -> Command {
    let command = Command::new("report")
        .about("Show which protocols workloads use and, with --migrate, what strict settings would refuse")
        .long_about(
            "Shows which protocols each workload uses to get credentials and, for daemons with --migrate, what the strict settings would \
             refuse, by namespace and workload, and what would make it pass.\n\n\
             By default, it asks the daemon on this machine: run it in the daemon's pod (kubectl exec), or use kubectl port-forward and \
             --admin-url. With --all-nodes, it reads the reports of all daemons through the Kubernetes API, and merges them.",
        );
    flags::add_to_report(command)
}

fn redirect_command() -> Command {
    let about = |action| match action {
        Action::Install => "Install the rules, or with --guard only the guard; changes nothing if they are installed",
        Action::Remove => "Remove rolegate's rules; pods then reach the real metadata service",
        Action::Status => "Show what happens to pods' packets on this node, and how the rules differ from the flags",
        Action::Render => "Print the rules in the format of the backend (nftables, unless --redirect=iptables)",
    };
    let actions = Action::ALL.map(|(name, action)| flags::add_to_redirect(Command::new(name).about(about(action))));
    Command::new("redirect")
        .about("Install, remove, check or print the packet rules of this node")
        .long_about(
            "Installs, removes, checks or prints the packet rules of this node, without Kubernetes and AWS. Give it the daemon's \
             flags. The default of --redirect is auto here.",
        )
        .subcommand_required(true)
        .arg_required_else_help(true)
        .subcommands(actions)
}

fn probe_command() -> Command {
    let command = Command::new("probe")
        .about("Ask the daemon of this pod whether it is ready or alive (for exec probes)")
        .arg(Arg::new(QUESTION).help("ready (default): the daemon can serve this node's pods; live: the process answers"));
    flags::add_to_probe(command)
}

fn pod_identity_command() -> Command {
    let render = Command::new(RENDER)
        .about("Print a patch that lets containers of a workload use --pod-identity")
        .long_about(
            "Prints a patch that lets containers of a workload request credentials from a daemon with --pod-identity: it adds two \
             environment variables, and a volume with a service account token. Use it with kubectl patch --patch-file or as a patch of \
             kustomize, if the cluster does not add these itself (the component daemonset/pod-identity-injection does). Nothing is read \
             from a cluster or changed in one.",
        )
        .arg(Arg::new(WORKLOAD).required(true).help("The workload as KIND/NAME, such as deployment/web"));
    Command::new(POD_IDENTITY)
        .about("Prepare workloads for --pod-identity")
        .subcommand_required(true)
        .arg_required_else_help(true)
        .subcommand(flags::add_to_pod_identity_render(render))
}

fn migrate_command() -> Command {
    let command = Command::new("migrate")
        .about("Convert manifests of kube2iam or kiam, or move role annotations to service accounts")
        .long_about(
            "Reads the manifests of kube2iam or kiam as YAML from standard input, and prints rolegate's: DaemonSet, ServiceAccount, \
             ClusterRole and ClusterRoleBinding, with a comment beside everything that differs. What you must know before the swap is \
             also on standard error. Arguments that the daemon would refuse are not printed. Nothing is read from a cluster or changed \
             in one.\n\n\
             For kiam, give the manifests of agent and server together.\n\n\
             With annotations, it reads the workloads and service accounts of a cluster (kubectl get deploy,rs,sts,ds,job,cronjob,pods,sa \
             --all-namespaces --output json), and prints service accounts that give each workload the role of its pods' annotation, with \
             the label for the component daemonset/pod-identity-injection. If workloads of one service account have different roles, or \
             some have none, each role gets its own service account, and comments contain the commands that change the workloads.",
        )
        .arg(Arg::new(PROJECT).required(true).value_parser(PROJECTS).help("What to convert"));
    flags::add_to_migrate(command)
}

fn iam_policy_command() -> Command {
    let command = Command::new(IAM_POLICY).about("Print least-privilege IAM policies for the roles in use").long_about(
        "Prints the IAM policies that rolegate needs for the roles in use, as JSON, and nothing more: for the role of the nodes, for \
             each pod's role (its trust policy), for roles that assume target roles, and a permissions boundary for the role of the \
             nodes.\n\n\
             Give it the daemon's flags. It reads the pods of all nodes (or of --node), and their namespaces and service accounts if the \
             flags need them, from the Kubernetes API, and decides as the daemon does. It includes the roles of pods that exist now: \
             roles of Jobs between two runs, and of workloads without replicas, are missing. What it cannot resolve is on standard \
             error. Nothing is changed, and AWS is asked only for --auto-discover-base-arn and --auto-discover-default-role.",
    );
    flags::add_to_iam_policy(command)
}

fn completions_command() -> Command {
    Command::new("completions")
        .about("Print a completion script for bash, zsh or fish")
        .arg(Arg::new(SHELL).required(true).value_parser(["bash", "zsh", "fish"]).help("The shell"))
}

fn man_command() -> Command {
    Command::new("man")
        .about("Print the man page, or write the pages of all commands to a directory")
        .arg(Arg::new(DIRECTORY).help("The directory for the pages of all commands; default: print the page of the program"))
}

fn help_command() -> Command {
    Command::new(HELP)
        .about("Print this help, or that of a command")
        .arg(Arg::new(TOPIC).num_args(0..).help("The command, such as redirect status"))
}
