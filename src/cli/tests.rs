#![allow(clippy::unwrap_used, reason = "a test says loudly what failed")]

use clap::Command;

use super::commands::{command, short, visible};
use super::texts::ENDINGS;
use crate::config::flags;
use crate::config::redirect::Action;

/// The help of a command, at a width that no terminal changes.
fn help(command: Command, path: &[&str], all: bool) -> String {
    let mut command = command;
    command.build();
    let command = path.iter().fold(&mut command, |command, name| command.find_subcommand_mut(name).unwrap());
    let mut command = command.clone().term_width(120);
    if all { command.render_long_help() } else { command.render_help() }.to_string()
}

/// All commands that people run, as paths.
fn paths() -> Vec<Vec<String>> {
    fn add(command: &Command, path: &[String], all: &mut Vec<Vec<String>>) {
        all.push(path.to_vec());
        for sub in command.get_subcommands() {
            add(sub, &[path, &[sub.get_name().to_owned()]].concat(), all);
        }
    }
    let mut all = Vec::new();
    add(&visible(), &[], &mut all);
    all
}

#[test]
fn help_of_every_command() {
    for path in paths() {
        let words: Vec<&str> = path.iter().map(String::as_str).collect();
        let name = ["rolegate"].iter().chain(&words).copied().collect::<Vec<_>>().join("_");
        insta::assert_snapshot!(name.clone(), help(short(), &words, false));
        // The four actions have the same flags, and `run` has those of the program.
        if !matches!(words[..], ["run" | "help" | "completions" | "man" | "wait"] | ["redirect", "remove" | "status" | "render"]) {
            insta::assert_snapshot!(format!("{name}_all"), help(command(), &words, true));
        }
    }
}

#[test]
fn the_short_help_is_a_screenful_and_names_the_rest() {
    for path in paths() {
        let words: Vec<&str> = path.iter().map(String::as_str).collect();
        let text = help(short(), &words, false);
        assert!(text.lines().count() <= 55, "{path:?}: {} lines", text.lines().count());
        assert!(text.lines().all(|line| line.chars().count() <= 150), "{path:?}: {text}");
        let all = help(command(), &words, true);
        if flags::all().any(|flag| all.contains(&format!("--{}", flag.name)) && !text.contains(&format!("--{}", flag.name))) {
            assert!(text.contains("\nAll flags, with their environment variables: "), "{path:?} does not say where the other flags are");
        }
    }
    let text = help(short(), &[], false);
    for (name, _) in flags::ESSENTIAL {
        assert!(text.contains(&format!("--{name}")), "{name}");
    }
}

#[test]
fn the_long_help_has_every_flag_with_default_and_environment_variable() {
    let text = help(command(), &[], true).split_whitespace().collect::<Vec<_>>().join(" ");
    for flag in flags::all() {
        assert!(text.contains(&format!("--{}", flag.name)) && text.contains(&format!("[env: {}]", flag.env())), "{}", flag.name);
        assert!(flag.value.is_none() || flag.default.is_empty() || text.contains(&format!("[default: {}]", flag.default)), "{}", flag.name);
    }
}

/// Every command has examples, and the parser takes them.
#[test]
fn every_example_is_a_valid_command() {
    for path in paths() {
        assert!(ENDINGS.iter().any(|ending| ending.command == path.join(" ")), "{path:?} has no example");
    }
    for ending in ENDINGS {
        assert!(!ending.examples.is_empty(), "{}", ending.command);
        for (_, example) in ending.examples {
            assert!(example.len() <= 112, "{example} is broken into two lines");
            let words = example.split_whitespace().map(|word| word.trim_matches(['(', ')', '<'])).skip_while(|word| *word != "rolegate");
            let words: Vec<&str> = words.take_while(|word| *word != "|" && !word.starts_with('>') && !word.ends_with(".yaml")).collect();
            let matches = command().try_get_matches_from(&words).unwrap_or_else(|error| panic!("{example}: {error}"));
            let mut found = Vec::new();
            let mut matches = &matches;
            while let Some((name, below)) = matches.subcommand() {
                found.push(name);
                matches = below;
            }
            assert!(found.join(" ").starts_with(ending.command), "{example} is no example of {:?}", ending.command);
        }
    }
    assert_eq!(ENDINGS.len(), paths().len(), "a command is in the table that does not exist, or twice");
}

/// The four actions have the same flags, so one snapshot is enough for them.
#[test]
fn every_action_of_redirect_has_the_same_flags() {
    let flags = |action| {
        let text = help(command(), &["redirect", action], true);
        let (_, flags) = text.split_once("\nOnly for rolegate redirect:\n").unwrap();
        flags.split_once("\nExamples:").unwrap().0.to_owned()
    };
    for (name, _) in Action::ALL {
        assert_eq!(flags(name), flags("install"), "{name}");
    }
}

/// What the short help does not show is parsed all the same.
#[test]
fn both_forms_of_the_command_line_take_the_same_arguments() {
    let ids = |command: &Command| command.get_arguments().map(|arg| arg.get_id().to_string()).collect::<Vec<_>>();
    for (a, b) in command().get_subcommands().zip(short().get_subcommands()) {
        assert_eq!((a.get_name(), ids(a)), (b.get_name(), ids(b)));
    }
    assert_eq!(ids(&command()), ids(&short()));
}
