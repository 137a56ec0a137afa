//! What becomes of kiam's flags. Its agent and its server are one daemon in rolegate. The meanings of flags are in
//! [`crate::config::kiam::table`], as for the daemon; here are the comments, and what a manifest allows besides.

use serde_json::{Value, json};

use super::translation::{Translation, rolegate_flag};
use super::words::CommandWord;
use crate::config::DEFAULT_APP_PORT;
use crate::config::kiam::table::{KiamFlag, KiamMeaning, metrics_address};
use crate::text;

/// What differs although rolegate has the flag.
const CHANGED: &[(&str, &str)] = &[
    ("role-base-arn-autodetect", "kiam: --role-base-arn-autodetect, by the server's nodes; now each node reads its own account"),
    ("assume-role-arn", "each node's own identity must be allowed to assume this role; with kiam, only the server's was"),
];

/// The two names of the expression of paths that the agent passed on.
const FORWARDING: [&str; 2] = ["whitelist-route-regexp", "allow-route-regexp"];

/// Whether a flag takes no value from the next word.
pub(super) fn is_switch(name: &str) -> bool {
    KiamFlag::named(name).is_some_and(|(flag, _)| flag.is_switch) || rolegate_flag(name).is_some_and(|flag| flag.bare)
}

/// Translates the flags of the agent and of the server.
pub(super) fn translate(agent: &[CommandWord], server: &[CommandWord], new: &mut Translation) {
    let autodetects = server.iter().any(|word| matches!(word, CommandWord::Flag { name, .. } if name == "role-base-arn-autodetect"));
    new.drop("from kiam's agent:");
    for word in agent {
        one("agent", word, false, new);
    }
    new.drop("from kiam's server:");
    for word in server {
        // Of the server's listener for metrics, there is one in the agent's place.
        if matches!(word, CommandWord::Flag { name, .. } if name == "prometheus-listen-addr" || name == "level" || name == "json-log") {
            continue;
        }
        one("server", word, autodetects, new);
    }
    if !agent.iter().any(|word| matches!(word, CommandWord::Flag { name, .. } if name == "port")) {
        new.drop(format!("kiam's port was 3100 by default; rolegate's is {DEFAULT_APP_PORT}"));
    }
    if !new.has("host-interface") && new.manages_rules() {
        new.drop("kiam without --host-interface redirected requests of docker0 only; rolegate redirects those of every interface");
    }
    if !new.has("host-ip") && new.has_variable("HOST_IP") {
        new.keep("host-ip", Some("$(HOST_IP)"), Some("kiam read the variable HOST_IP by itself"));
    }
    if !new.has("namespace-restrictions") {
        new.keep("namespace-restrictions", None, Some("added: kiam always checked the namespace's annotation iam.amazonaws.com/permitted"));
    }
    new.complete();
}

/// Whether an expression matches no path.
fn is_no_route(expression: &str) -> bool {
    matches!(expression, "^$" | "")
}

fn one(from: &str, word: &CommandWord, autodetects: bool, new: &mut Translation) {
    let CommandWord::Flag { name: given, value } = word else {
        return new.drop_unknown(word);
    };
    let value = value.as_deref();
    let Some((flag, negated)) = KiamFlag::named(given) else {
        return match rolegate_flag(given) {
            // Some later argument of rolegate's, in a manifest that is half changed.
            Some(_) => new.keep(given, value, None),
            None => new.drop_unknown(word),
        };
    };
    let name = flag.name;
    let is_on = !negated && value != Some("false");
    let changed = CHANGED.iter().find(|(changed, _)| *changed == name).map(|(_, note)| (*note).to_owned());
    let renamed = || changed.clone().or_else(|| Some(format!("kiam: --{name}")));
    let dropped = |why: &str| format!("dropped: {from} --{}: {why}", text::bounded(given));
    match (&flag.meaning, value) {
        _ if special(name, value, autodetects, new) => {}
        (KiamMeaning::Unneeded(why), _) => new.drop(dropped(why)),
        (KiamMeaning::Lost(why), _) => new.warn(dropped(why)),
        (KiamMeaning::Ends, _) => new.drop(dropped("it prints something and ends the program")),
        (KiamMeaning::Same, _) if flag.is_switch => new.keep(name, (!is_on).then_some("false"), changed.as_deref()),
        (KiamMeaning::Switch { ours, on, .. }, _) if is_on => new.keep(ours, *on, renamed().as_deref()),
        // A switch that is off, and an empty value, as without them.
        (KiamMeaning::Switch { .. }, _) | (_, Some("")) => {}
        (_, None) => new.warn(format!("dropped: --{} has no value", text::bounded(name))),
        (KiamMeaning::Same, value) => new.keep(name, value, changed.as_deref()),
        (KiamMeaning::Renamed(ours), value) => new.keep(ours, value, renamed().as_deref()),
        (KiamMeaning::MetricsAddress, Some(address)) => {
            let (port, host) = metrics_address(address);
            new.keep("metrics-port", Some(port), Some("kiam: --prometheus-listen-addr. The server's metrics are here, too"));
            if host.is_some() {
                new.keep("metrics-bind-address", host, None);
            }
        }
    }
}

/// Translates what depends on other arguments, on the value or on the environment. Returns whether it did.
fn special(name: &str, value: Option<&str>, autodetects: bool, new: &mut Translation) -> bool {
    match (name, value) {
        ("role-base-arn", _) if autodetects => new.drop("dropped: server --role-base-arn: --role-base-arn-autodetect took precedence"),
        ("region", Some(region)) if !region.is_empty() => {
            if let (false, Value::Object(entry)) = (new.has_variable("AWS_REGION"), json!({"name": "AWS_REGION", "value": region})) {
                new.add_variable(entry, Some("kiam: --region"));
            }
            new.drop("server --region has become the variable AWS_REGION");
        }
        (forwarding, Some(expression)) if FORWARDING.contains(&forwarding) && is_no_route(expression) => {
            new.drop(format!("dropped: agent --{name}: rolegate passes no request on (docs/metadata.md)"));
        }
        (forwarding, _) if FORWARDING.contains(&forwarding) => {
            new.warn(format!(
                "dropped: agent --{name}: rolegate passes no request on. Check that what your expression allowed is listed in \
                 docs/metadata.md. Base metadata is served to all pods; node-info is, too, with --migrate, and the report names who reads it"
            ));
        }
        _ => return false,
    }
    true
}
