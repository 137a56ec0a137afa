//! What can be read of arguments that are refused: whether there are to be packet rules, and the form of the log.
//!
//! A daemon whose arguments are wrong ends before it has rules. The guard is placed all the same wherever the arguments leave no
//! doubt that rules are wanted, so that a typing error does not open the node.

use std::ffi::OsString;

use super::flags::Flag;
use super::source::switch_value;
use super::{LogConfig, RedirectBackend, flags};

/// What refused arguments say for certain.
#[derive(Debug)]
pub(crate) struct RefusedArguments {
    /// The backend of the guard; `None` where no rules are wanted.
    pub backend: Option<RedirectBackend>,
    /// The form of the log.
    pub log: LogConfig,
}

impl RefusedArguments {
    /// Reads what can be read. The arguments are those of the daemon, without the program.
    pub(crate) fn read(arguments: &[OsString], env: &dyn Fn(&str) -> Option<String>) -> Self {
        let last = |name: &str| last(arguments, name).or_else(|| variable(name, env));
        let json = last("log-format").is_some_and(|text| text.eq_ignore_ascii_case("json"));
        // A word that is none of a switch's counts as on: the guard harms no node that wants rules.
        let switched_on = last("iptables").is_some_and(|text| switch_value(&text) != Some(false));
        let backend = match last("redirect").map(|text| text.to_ascii_lowercase()).as_deref() {
            None | Some("") => switched_on.then_some(RedirectBackend::Auto),
            Some("none") => None,
            Some("nftables") => Some(RedirectBackend::Nftables),
            Some("iptables") => Some(RedirectBackend::Iptables),
            Some("bpf") => Some(RedirectBackend::Bpf),
            // Whatever is meant, there are to be rules.
            Some(_) => Some(RedirectBackend::Auto),
        };
        Self { backend, log: LogConfig { json, level: tracing::Level::INFO } }
    }
}

fn variable(name: &str, env: &dyn Fn(&str) -> Option<String>) -> Option<String> {
    flags::all().find(|flag| flag.name == name).map(Flag::env).and_then(|name| env(&name)).filter(|text| !text.is_empty())
}

/// The last value of a flag, `true` where it has none.
fn last(arguments: &[OsString], name: &str) -> Option<String> {
    let flag = flags::all().find(|flag| flag.name == name)?;
    let mut found = None;
    let mut words = arguments.iter().filter_map(|word| word.to_str()).peekable();
    while let Some(word) = words.next() {
        match word.strip_prefix("--").and_then(|text| text.strip_prefix(name)) {
            Some("") if flag.bare => found = Some("true".to_owned()),
            Some("") => found = words.peek().map(|value| (*value).to_owned()).or(found),
            Some(value) => found = value.strip_prefix('=').map(str::to_owned).or(found),
            None => {}
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_backend_is_read_among_whatever_else() {
        use RedirectBackend::{Auto, Iptables, Nftables};
        for (arguments, backend) in [
            (&["--bogus", "--iptables"][..], Some(Auto)),
            (&["--iptables=true", "--app-port=x"], Some(Auto)),
            (&["--iptables=yes"], Some(Auto)),
            (&["--iptables=false", "--bogus"], None),
            (&["--iptables", "--redirect=none"], None),
            (&["--redirect", "nftables", "--bogus"], Some(Nftables)),
            (&["--redirect=iptables"], Some(Iptables)),
            (&["--redirect=ebtables"], Some(Auto)),
            (&["--redirect-interval=1"], None),
            (&["--bogus"], None),
            (&[], None),
        ] {
            let words: Vec<_> = arguments.iter().map(OsString::from).collect();
            assert_eq!(RefusedArguments::read(&words, &|_| None).backend, backend, "{arguments:?}");
        }
        let env = |name: &str| (name == "ROLEGATE_IPTABLES").then(|| "true".to_owned());
        assert_eq!(RefusedArguments::read(&[], &env).backend, Some(Auto));
    }

    #[test]
    fn the_form_of_the_log_is_read() {
        let json = |words: &[&str]| RefusedArguments::read(&words.iter().map(OsString::from).collect::<Vec<_>>(), &|_| None).log.json;
        assert!(json(&["--log-format=json"]) && json(&["--log-format", "json"]) && !json(&["--log-format=text"]) && !json(&[]));
    }
}
