#![allow(clippy::unwrap_used, reason = "a test says loudly what failed")]

use super::*;
use crate::config::{Config, flags};

#[test]
fn every_choice_is_a_value_that_the_flag_has() {
    for (name, choices) in CHOICES {
        let flag = flags::of_all_commands().find(|flag| flag.name == *name).unwrap_or_else(|| panic!("--{name} does not exist"));
        let offered = |choice: &&str| {
            flags::of_all_commands().filter(|flag| flag.name == *name).any(|flag| flag.help.contains(*choice) || flag.default == *choice)
        };
        let invented = choices.iter().find(|choice| !offered(choice));
        assert_eq!(invented, None, "--{name}: its help is {}", flag.help);
        if flags::all().any(|flag| flag.name == *name) {
            // The parser names the values that it takes.
            let mistakes = Config::from_arguments([format!("--{name}=@")], &|_| None).unwrap_err().mistakes;
            let expected = mistakes.iter().find(|mistake| mistake.contains(&format!("--{name}="))).unwrap();
            for choice in *choices {
                assert!(expected.contains(choice), "--{name}: {choice} is not in {expected}");
            }
        }
    }
}

#[test]
fn scripts_have_every_flag_and_command_but_not_the_hidden_one() {
    for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
        let text = String::from_utf8(script(shell)).unwrap();
        for flag in flags::of_all_commands() {
            assert!(text.contains(flag.name), "{shell}: {}", flag.name);
        }
        for command in commands::visible().get_subcommands() {
            assert!(text.contains(command.get_name()), "{shell}: {}", command.get_name());
        }
        assert!(!text.contains(crate::self_test::helper::SUBCOMMAND), "{shell}");
    }
}
