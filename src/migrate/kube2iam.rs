//! What becomes of kube2iam's flags. Most have the same name and meaning in rolegate.

use std::net::IpAddr;

use super::translation::{Translation, is_off, rolegate_flag, without_effect};
use super::variables::{Expanded, Variables};
use super::words::CommandWord;
use crate::config::{self, DEFAULT_APP_PORT, DEFAULT_METRICS_PORT};

/// Flags of kube2iam that rolegate does not have: they end the program.
const ENDS: &[&str] = &["version", "help"];
/// Flags that differ although they have the same name.
const CHANGED: &[(&str, &str)] = &[
    ("debug", "/debug/store moves to the metrics port, and answers only clients on the node's loopback"),
    ("default-role", "never used for a pod that is not known yet: its request waits instead"),
    ("namespace-restriction-format", "regular expressions must match the whole ARN; in kube2iam, a part was enough"),
    ("insecure", "the API server's certificate is not verified: for tests only"),
];

/// Whether a flag takes no value from the next word.
pub(super) fn is_switch(name: &str) -> bool {
    ENDS.contains(&name) || rolegate_flag(name).is_some_and(|flag| flag.bare)
}

/// Translates the flags of kube2iam.
pub(super) fn translate(words: &[CommandWord], variables: &Variables, new: &mut Translation) {
    let allows_node_role = given(words, "allow-node-role").is_some();
    let app_port = given(words, "app-port").flatten();
    for word in words {
        let CommandWord::Flag { name, value } = word else {
            new.drop_unknown(word);
            continue;
        };
        let value = value.as_deref();
        match name.as_str() {
            ends if ENDS.contains(&ends) => new.drop(format!("dropped: --{ends} prints something and ends the program")),
            "auto-discover-default-role" if !allows_node_role && !value.is_some_and(is_off) => new.keep(
                name,
                value,
                Some(
                    "changed: it no longer gives the node's own role to pods without a role annotation. They get no credentials, and \
                     \"rolegate report\" lists them. Annotate them, or set --default-role to a role for them",
                ),
            ),
            "metrics-port" if value.is_some() && is_same_port(value, app_port, variables) => new.drop(format!(
                "dropped: --metrics-port was the app port, which pods reach. Metrics and probes are on port {DEFAULT_METRICS_PORT} now"
            )),
            "host-ip" if value.is_some_and(|value| is_no_target(value, variables)) => {
                new.keep("host-ip", Some("$(HOST_IP)"), Some("changed: pods cannot reach the address that was here"))
            }
            _ => match (without_effect(name), rolegate_flag(name)) {
                (Some(why), _) => new.drop(format!("dropped: --{name} has no effect: {why}")),
                (None, Some(_)) => new.keep(name, value, CHANGED.iter().find(|(changed, _)| changed == name).map(|(_, note)| *note)),
                (None, None) => new.drop_unknown(word),
            },
        }
    }
    if !new.has("host-interface") && new.manages_rules() {
        new.drop("kube2iam without --host-interface redirected requests of docker0 only; rolegate redirects those of every interface");
    }
    if !new.has("metadata-profile") {
        new.drop(
            "kube2iam passed every other path on to the real service; rolegate serves those of docs/metadata.md, and never user data and \
             signed identity",
        );
    }
    if !new.has("namespace-restrictions") {
        new.drop(
            "not added: --namespace-restrictions, which kube2iam did not enforce. With --migrate, the report names the roles that it would \
             refuse. Add it when you remove --migrate",
        );
    }
    new.complete();
}

/// The value of a flag, if it is given; the last one counts.
fn given<'a>(words: &'a [CommandWord], wanted: &str) -> Option<Option<&'a str>> {
    words.iter().rev().find_map(|word| match word {
        CommandWord::Flag { name, value } if name == wanted => Some(value.as_deref()),
        _ => None,
    })
}

fn is_same_port(metrics: Option<&str>, app: Option<&str>, variables: &Variables) -> bool {
    let port = |text: &str| match variables.expand(text) {
        Expanded::Text(text) => text.parse::<u16>().ok(),
        Expanded::Elsewhere(_) => None,
    };
    let app = app.map_or(Some(DEFAULT_APP_PORT), port);
    app.is_some() && metrics.and_then(port) == app
}

/// Whether packet rules cannot redirect to this address.
fn is_no_target(value: &str, variables: &Variables) -> bool {
    let Expanded::Text(text) = variables.expand(value) else { return false };
    text.parse::<IpAddr>().is_ok_and(config::is_no_target)
}
