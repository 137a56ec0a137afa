//! `rolegate completions`: scripts for shells, from the commands that the parser reads.

use std::process::ExitCode;

use clap::{ArgMatches, Command};
use clap_complete::Shell;

use super::commands::{self, SHELL};
use super::output::{USAGE, print_text};

/// The values of flags that have a fixed set of them. Of a flag that several commands have, a command offers those in its help.
const CHOICES: &[(&str, &[&str])] = &[
    ("namespace-restrictions", &["true", "false", "audit"]),
    ("namespace-restriction-format", &["glob", "regexp"]),
    ("host-network-pods", &["ignore", "deny", "serve"]),
    ("session-scope", &["pod", "role"]),
    ("imds-tokens", &["required", "optional"]),
    ("metadata-profile", &["base", "node-info", "none"]),
    ("redirect", &["auto", "nftables", "iptables", "bpf", "none"]),
    ("redirect-on-exit", &["keep", "remove"]),
    ("self-test", &["auto", "on", "off"]),
    ("log-format", &["text", "json"]),
    ("log-level", &["error", "warn", "info", "debug", "trace"]),
    ("output", &["text", "json"]),
    ("format", &["text", "json", "csv"]),
    ("policy", &["all", "node", "intermediate", "trust", "chain", "boundary"]),
];

/// Prints the script of a shell.
pub(super) fn print(matches: &ArgMatches) -> ExitCode {
    let shell = matches.get_one::<String>(SHELL).and_then(|name| name.parse().ok());
    match shell {
        Some(shell) => print_text(&script(shell), "the completion script"),
        None => ExitCode::from(USAGE),
    }
}

fn script(shell: Shell) -> Vec<u8> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut with_choices(commands::visible()), "rolegate", &mut script);
    script
}

/// Adds the values of flags. The parser takes every text, so that the configuration can report all mistakes together.
fn with_choices(command: Command) -> Command {
    command.mut_subcommands(with_choices).mut_args(|arg| {
        let Some((_, choices)) = CHOICES.iter().find(|(name, _)| arg.get_id() == *name) else { return arg };
        let help = arg.get_help().map(ToString::to_string).unwrap_or_default();
        let is_word = |choice: &&str| help.split(|c: char| !c.is_ascii_alphanumeric() && c != '-').any(|word| word == *choice);
        let choices: Vec<&'static str> = choices.iter().copied().filter(is_word).collect();
        arg.value_parser(choices)
    })
}

#[cfg(test)]
mod tests;
