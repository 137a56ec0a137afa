#![allow(clippy::unwrap_used, reason = "a test says loudly what failed")]

use super::*;
use crate::config::flags;

#[test]
fn pages_have_every_flag_of_their_command() {
    let pages = pages();
    assert_eq!(pages[0].0, "rolegate");
    for (name, page) in &pages {
        let path: Vec<&str> = name.split('-').skip(1).collect();
        for flag in flags::all().filter(|_| matches!(path[..], [] | ["run"] | ["explain"] | ["check"])) {
            let signature = format!("\\fB\\-\\-{}\\fR", flag.name.replace('-', "\\-"));
            assert!(page.contains(&signature), "{name}: {}", flag.name);
            assert!(page.contains(&flag.env().replace('-', "\\-")), "{name}: {}", flag.env());
        }
    }
    let all: String = pages.iter().map(|(_, page)| page.as_str()).collect();
    for flag in flags::of_all_commands() {
        assert!(all.contains(&format!("\\fB\\-\\-{}\\fR", flag.name.replace('-', "\\-"))), "{}", flag.name);
    }
}

#[test]
fn text_is_escaped() {
    assert_eq!(escaped("a-b\\c 'd' \"e\" `f` ^~ ö"), "a\\-b\\ec \\(aqd\\(aq \\(dqe\\(dq \\(gaf\\(ga \\(ha\\(ti \\[u00F6]");
    let mut page = String::new();
    line(&mut page, ".SH injected");
    assert_eq!(page, "\\&.SH injected\n");
}
