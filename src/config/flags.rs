//! Every flag, in one table: `--help`, the environment, the documentation's test and the parser all read it.

use clap::{Arg, ArgAction, Command, ValueHint};

mod essential;
mod flag;
mod table;

pub use essential::{DECIDING, ESSENTIAL};
pub use flag::Flag;
use table::REDIRECT;
pub use table::{
    DEFAULT_EXEMPT, DEFAULT_POD_IDENTITY_ADDRESSES, DEFAULT_POD_IDENTITY_AUDIENCE, GROUPS, OF_CHECK, OF_EXPLAIN, OF_IAM_POLICY,
    OF_POD_IDENTITY_RENDER, OF_REDIRECT, OF_REPORT,
};

/// Flags that `rolegate redirect` shares with the daemon, besides those of the packet rules.
const SHARED_WITH_REDIRECT: &[&str] = &["app-port", "accept-direct-connections", "host-network-pods", "handover-socket"];

/// Flags that `rolegate report` shares with the daemon and with `rolegate explain`.
const SHARED_WITH_REPORT: &[&str] = &["admin-url", "metrics-port", "kubeconfig", "api-server", "api-token", "insecure"];

/// The flag that `rolegate migrate` shares with the daemon.
const SHARED_WITH_MIGRATE: &str = "iam-role-key";

/// The flag of `rolegate probe`, which is the daemon's as well.
pub fn add_to_probe(command: Command) -> Command {
    all().filter(|flag| flag.name == "probe-socket").fold(command, |command, flag| command.arg(arg(flag, "Flags")))
}

/// All flags of the daemon, in the order of `--help`.
pub fn all() -> impl Iterator<Item = &'static Flag> {
    GROUPS.iter().flat_map(|(_, flags)| flags.iter())
}

/// The flags of every subcommand.
pub fn of_all_commands() -> impl Iterator<Item = &'static Flag> {
    all()
        .chain(OF_EXPLAIN.1)
        .chain(OF_REPORT.1)
        .chain(OF_CHECK.1)
        .chain(OF_IAM_POLICY.1)
        .chain(OF_REDIRECT.1)
        .chain(OF_POD_IDENTITY_RENDER.1)
}

/// Adds the flags to a clap command. Values stay texts here, so that the configuration can report every mistake at once.
pub fn add_to(command: Command) -> Command {
    add(command, GROUPS)
}

/// Adds those of `rolegate explain`, and all others: it decides by the same settings.
pub fn add_to_explain(command: Command) -> Command {
    add(add(command, &[OF_EXPLAIN]), GROUPS)
}

/// Adds those of `rolegate check`, and all others: it verifies what the daemon would do with them.
pub fn add_to_check(command: Command) -> Command {
    add(add(command, &[OF_CHECK]), GROUPS).mut_arg("args", |arg| arg.num_args(1..).allow_hyphen_values(true))
}

/// Adds those of `rolegate iam-policy`, and all others: it decides by the same settings.
pub fn add_to_iam_policy(command: Command) -> Command {
    add(add(command, &[OF_IAM_POLICY]), GROUPS)
}

/// Adds those of `rolegate report`, and those that it shares.
pub fn add_to_report(command: Command) -> Command {
    let shared = of_all_commands().filter(|flag| SHARED_WITH_REPORT.contains(&flag.name));
    shared.fold(add(command, &[OF_REPORT]), |command, flag| command.arg(arg(flag, "Daemons and the Kubernetes API")))
}

/// Adds those of `rolegate redirect`, and those of the daemon that it reads.
pub fn add_to_redirect(command: Command) -> Command {
    let command = add(command, &[OF_REDIRECT, ("Packet rules", REDIRECT)]);
    // All flags of Pod Identity, because its rules depend on addresses that several of them determine.
    let shared = all().filter(|flag| SHARED_WITH_REDIRECT.contains(&flag.name) || flag.name.starts_with("pod-identity"));
    shared.fold(command, |command, flag| command.arg(arg(flag, "Serving")))
}

/// Adds the flag that `rolegate migrate` shares with the daemon.
pub fn add_to_migrate(command: Command) -> Command {
    all().filter(|flag| flag.name == SHARED_WITH_MIGRATE).fold(command, |command, flag| command.arg(arg(flag, "Only for annotations")))
}

/// Adds those of `rolegate pod-identity render`.
pub fn add_to_pod_identity_render(command: Command) -> Command {
    add(command, &[OF_POD_IDENTITY_RENDER])
}

fn add(mut command: Command, groups: &[(&'static str, &'static [Flag])]) -> Command {
    for (group, flags) in groups {
        for flag in *flags {
            command = command.arg(arg(flag, group));
        }
    }
    command
}

fn arg(flag: &'static Flag, group: &'static str) -> Arg {
    let mut help = flag.help.to_owned();
    if !flag.default.is_empty() && (flag.value.is_some() || flag.default == "true") {
        help.push_str(&format!(" [default: {}]", flag.default));
    }
    help.push_str(&format!(" [env: {}]", flag.env()));
    let arg = Arg::new(flag.name).long(flag.name).help(help).help_heading(group).action(ArgAction::Append);
    // What completions offer.
    let hint = match flag.value {
        Some("FILE") => ValueHint::FilePath,
        Some("DIR") => ValueHint::DirPath,
        Some("PATH") => ValueHint::AnyPath,
        _ => ValueHint::Unknown,
    };
    let arg = arg.value_name(flag.value.unwrap_or("BOOL")).value_hint(hint);
    if flag.bare { arg.num_args(0..=1).require_equals(true).default_missing_value("true") } else { arg.num_args(1) }
}
