#![allow(clippy::unwrap_used, reason = "a test says loudly what failed")]

use super::*;

/// The `--help` of a subcommand, at a width that no terminal changes.
fn help(path: &[&str]) -> String {
    let mut command = command();
    command.build();
    let command = path.iter().fold(&mut command, |command, name| command.find_subcommand_mut(name).unwrap());
    command.clone().term_width(120).render_long_help().to_string()
}

#[test]
fn help_of_every_command() {
    for path in
        [&[][..], &["explain"], &["check"], &["redirect"], &["redirect", "install"], &["probe"], &["migrate"], &["pod-identity", "render"]]
    {
        insta::assert_snapshot!(["rolegate"].iter().chain(path).copied().collect::<Vec<_>>().join("_"), help(path));
    }
}

/// The four actions have the same flags, so one snapshot is enough for them.
#[test]
fn every_action_of_redirect_has_the_same_flags() {
    let flags = |action| help(&["redirect", action]).split_once("\nOnly for rolegate redirect:\n").unwrap().1.to_owned();
    for (name, _) in Action::ALL {
        assert_eq!(flags(name), flags("install"), "{name}");
    }
}
