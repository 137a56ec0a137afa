//! The new argument list while it is made: each argument with what is said of it, in the order of the old one.

use serde_json::{Map, Value, json};

use super::error::MigrateError;
use super::variables::{Expanded, Variables, references};
use super::words::CommandWord;
use super::yaml::{Noted, YamlNode};
use crate::config::source::switch_value;
use crate::config::{Config, flags};
use crate::text;

/// Arguments that every migrated daemon gets, unless they are there: the ones of `daemonset/daemonset.yaml`.
const ADDED: &[(&str, &str, &str)] = &[
    ("token-key-file", "/run/rolegate/token-keys", "added: session tokens stay valid when the daemon restarts"),
    (
        "cni-results",
        "/var/lib/cni/results",
        "added: the CNI's own record of pods' addresses, a second source besides the API. With cri-dockerd, it is in \
         /var/lib/cni/cache/results",
    ),
];
/// What rolegate serves only on request. Without it, old clients would break with the swap.
const MIGRATE: (&str, &str) = (
    "migrate",
    "added for the migration: serves IMDSv1, the metadata of node-info for all pods and, unless --namespace-restrictions is given, \
     roles that no annotation of the namespace allows, and records what the settings would refuse without it. Read \"rolegate report\" (docs/report.md), follow it, then remove \
     this flag",
);
/// Flags whose value is not needed to check the others.
const SAMPLES: &[(&str, &str)] = &[("node", "node-1"), ("host-ip", "192.0.2.1")];
/// The variable of `--node`, and the one of `--host-ip`, with the fields of the pod that they are set from.
const NODE_NAME: (&str, &str) = ("NODE_NAME", "spec.nodeName");
const HOST_IP: (&str, &str) = ("HOST_IP", "status.hostIP");

/// An argument, or only what is said in its place.
#[derive(Debug)]
struct ArgumentLine {
    argument: Option<String>,
    notes: Vec<String>,
}

impl ArgumentLine {
    /// Whether a warning is about this argument.
    fn is_about(&self, warning: &str) -> bool {
        let Some(rest) = warning.strip_prefix("--") else { return false };
        let name = rest.split(|c: char| !c.is_ascii_alphanumeric() && c != '-').next().unwrap_or_default();
        self.argument.as_deref().map(name_of) == Some(name)
    }
}

/// The arguments and variables of the new container.
#[derive(Debug, Default)]
pub(super) struct Translation {
    lines: Vec<ArgumentLine>,
    env: Vec<Noted>,
    entries: Vec<Map<String, Value>>,
    /// What the operator must know before the swap.
    pub warnings: Vec<String>,
}

impl Translation {
    /// Adds an argument.
    pub(super) fn keep(&mut self, name: &str, value: Option<&str>, note: Option<&str>) {
        let argument = value.map_or_else(|| format!("--{name}"), |value| format!("--{name}={value}"));
        self.lines.push(ArgumentLine { argument: Some(argument), notes: note.map(str::to_owned).into_iter().collect() });
    }

    /// Says why an argument is not there any more.
    pub(super) fn drop(&mut self, note: impl Into<String>) {
        self.lines.push(ArgumentLine { argument: None, notes: vec![note.into()] });
    }

    /// Says something in the list, and to the operator at once.
    pub(super) fn warn(&mut self, note: impl Into<String>) {
        let note = note.into();
        self.warnings.push(note.clone());
        self.drop(note);
    }

    /// Adds a variable, with a comment.
    pub(super) fn add_variable(&mut self, entry: Map<String, Value>, note: Option<&str>) {
        self.entries.push(entry.clone());
        self.env.push(Noted { notes: note.map(str::to_owned).into_iter().collect(), node: entry.into() });
    }

    pub(super) fn has_variable(&self, name: &str) -> bool {
        self.entries.iter().any(|entry| entry.get("name").and_then(Value::as_str) == Some(name))
    }

    fn add_field(&mut self, (name, path): (&str, &str)) {
        if let Value::Object(entry) = json!({"name": name, "valueFrom": {"fieldRef": {"fieldPath": path}}}) {
            self.add_variable(entry, Some("added: the arguments use it"));
        }
    }

    /// The value of a flag in the new list: of several, the last; of a switch without one, an empty text.
    pub(super) fn value(&self, name: &str) -> Option<&str> {
        let arguments = self.lines.iter().rev().filter_map(|line| line.argument.as_deref());
        arguments.filter_map(|argument| flag_of(argument, name)).next()
    }

    pub(super) fn has(&self, name: &str) -> bool {
        self.value(name).is_some()
    }

    /// Whether the daemon manages packet rules.
    pub(super) fn manages_rules(&self) -> bool {
        let by_switch = self.value("iptables").is_some_and(|value| !is_off(value));
        self.value("redirect").map_or(by_switch, |backend| backend != "none")
    }

    /// Takes a word that is no flag, or a flag that neither the old daemon nor rolegate has.
    pub(super) fn drop_unknown(&mut self, word: &CommandWord) {
        match word {
            CommandWord::Flag { name, .. } => self.warn(format!(
                "dropped: neither the old daemon nor rolegate is known to have the flag {}",
                text::quoted(&format!("--{name}"))
            )),
            // It could be a value that must not be repeated.
            CommandWord::Bare(_) => self.warn("dropped: a word here that is no flag"),
        }
    }

    /// Keeps the last of arguments that were given twice: rolegate would take a list.
    fn drop_repeated(&mut self) {
        let names: Vec<Option<String>> =
            self.lines.iter().map(|line| line.argument.as_deref().map(|argument| name_of(argument).to_owned())).collect();
        for at in 0..self.lines.len() {
            let Some(name) = &names[at] else { continue };
            if names[at + 1..].iter().flatten().any(|later| later == name) {
                self.lines[at] = ArgumentLine {
                    argument: None,
                    notes: vec![format!("dropped: --{} is given again below, and the last one counted", text::bounded(name))],
                };
            }
        }
    }

    /// Adds `--migrate`, and what every daemon needs.
    pub(super) fn complete(&mut self) {
        self.drop_repeated();
        if !self.has("node") && !self.has_variable("ROLEGATE_NODE") {
            self.keep("node", Some("$(NODE_NAME)"), Some("added: the node whose pods are watched and served"));
        }
        if self.manages_rules() {
            if !self.has("host-ip") {
                self.keep("host-ip", Some("$(HOST_IP)"), Some("added: the packet rules redirect to this address"));
            }
        } else {
            self.warn(
                "nothing here manages packet rules: something else on the node must redirect the metadata requests of pods to the app port, \
                 and keep pods from the real service (docs/packet-rules.md). Better: --iptables",
            );
        }
        for (name, value, note) in ADDED {
            if !self.has(name) {
                self.keep(name, Some(value), Some(note));
            }
        }
        self.migrate();
        let used: Vec<String> = self.lines.iter().filter_map(|line| line.argument.as_deref()).flat_map(references).collect();
        for name in used {
            if self.has_variable(&name) {
                continue;
            }
            match [NODE_NAME, HOST_IP].into_iter().find(|(known, _)| *known == name) {
                Some(field) => self.add_field(field),
                None => self.warn(format!("the variable {} is used above, but the manifest does not define it", text::quoted(&name))),
            }
        }
    }

    fn migrate(&mut self) {
        let (name, note) = MIGRATE;
        if !self.has(name) {
            self.keep(name, None, Some(note));
        }
    }

    /// Gives the list to rolegate's own parser. What it says stands beside the arguments.
    pub(super) fn check(&mut self, variables: &Variables) -> Result<Config, MigrateError> {
        let mut arguments = Vec::new();
        let mut unchecked = Vec::new();
        for line in &mut self.lines {
            let Some(argument) = &line.argument else { continue };
            let name = name_of(argument);
            match (variables.expand(argument), SAMPLES.iter().find(|(sampled, _)| *sampled == name)) {
                (Expanded::Text(text), _) => arguments.push(text),
                (Expanded::Elsewhere(_), Some((name, sample))) => arguments.push(format!("--{name}={sample}")),
                (Expanded::Elsewhere(variable), None) => {
                    let note = format!(
                        "not checked: the value of --{} comes from {}, which is not in the manifest",
                        text::bounded(name),
                        text::quoted(&variable)
                    );
                    line.notes.push(note.clone());
                    unchecked.push(note);
                }
            }
        }
        self.warnings.append(&mut unchecked);
        let config =
            Config::from_arguments(arguments, &|name| variables.get(name)).map_err(|error| MigrateError::Refused(error.mistakes))?;
        for warning in config.warnings.iter().map(|warning| warning.text.as_str()) {
            let note = format!("rolegate will log at its start: {warning}");
            self.warnings.push(note.clone());
            match self.lines.iter_mut().find(|line| line.is_about(warning)) {
                Some(line) => line.notes.push(note),
                None => self.lines.push(ArgumentLine { argument: None, notes: vec![note] }),
            }
        }
        Ok(config)
    }

    /// The list `args`.
    pub(super) fn arguments(&mut self) -> YamlNode {
        let (mut items, mut notes) = (Vec::new(), Vec::new());
        for line in self.lines.drain(..) {
            notes.extend(line.notes);
            if let Some(argument) = line.argument {
                items.push(Noted { notes: std::mem::take(&mut notes), node: YamlNode::Plain(Value::from(argument)) });
            }
        }
        YamlNode::List { items, trailing: notes }
    }

    /// The list `env`, and its plain entries.
    pub(super) fn environment(&mut self) -> YamlNode {
        YamlNode::from(std::mem::take(&mut self.env))
    }

    pub(super) fn variables(&self) -> &[Map<String, Value>] {
        &self.entries
    }

    /// The arguments as they stand now.
    pub(super) fn texts(&self) -> impl Iterator<Item = &str> {
        self.lines.iter().filter_map(|line| line.argument.as_deref())
    }
}

/// The flag of rolegate with this name.
pub(super) fn rolegate_flag(name: &str) -> Option<&'static flags::Flag> {
    flags::all().find(|flag| flag.name == name)
}

/// Why a flag that rolegate accepts for the sake of kube2iam has no effect, in the words of its help.
pub(super) fn without_effect(name: &str) -> Option<&'static str> {
    rolegate_flag(name)?.help.split_once("no effect: ").map(|(_, why)| why)
}

/// Whether the value of a switch means off.
pub(super) fn is_off(value: &str) -> bool {
    switch_value(value) == Some(false)
}

fn name_of(argument: &str) -> &str {
    argument.trim_start_matches("--").split('=').next().unwrap_or_default()
}

fn flag_of<'a>(argument: &'a str, name: &str) -> Option<&'a str> {
    let rest = argument.strip_prefix("--")?.strip_prefix(name)?;
    if rest.is_empty() { Some("") } else { rest.strip_prefix('=') }
}
