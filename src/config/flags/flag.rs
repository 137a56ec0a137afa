//! One flag of the command line.

/// One flag, which is also the environment variable `ROLEGATE_` + its name in upper snake case.
#[derive(Debug)]
pub struct Flag {
    /// The name, without dashes.
    pub name: &'static str,
    /// The placeholder of the value in `--help`; a flag without one is a switch (`--name`, `--name=true`, `--name=false`).
    pub value: Option<&'static str>,
    /// The default as a person would write it; empty if there is none.
    pub default: &'static str,
    /// Whether the value may be left out, and then is `true`. A value needs the equals sign, as in Go's flags.
    pub bare: bool,
    /// Whether the flag may be repeated, and its value may be a comma-separated list.
    pub list: bool,
    /// The text in `--help`.
    pub help: &'static str,
}

impl Flag {
    /// The environment variable that is read if the flag is not given.
    pub fn env(&self) -> String {
        format!("ROLEGATE_{}", self.name.replace('-', "_").to_uppercase())
    }
}

pub(super) const fn value(name: &'static str, value: &'static str, default: &'static str, help: &'static str) -> Flag {
    Flag { name, value: Some(value), default, bare: false, list: false, help }
}

pub(super) const fn list(name: &'static str, value: &'static str, default: &'static str, help: &'static str) -> Flag {
    Flag { name, value: Some(value), default, bare: false, list: true, help }
}

pub(super) const fn switch(name: &'static str, help: &'static str) -> Flag {
    Flag { name, value: None, default: "false", bare: true, list: false, help }
}

pub(super) const fn on_switch(name: &'static str, help: &'static str) -> Flag {
    Flag { name, value: None, default: "true", bare: true, list: false, help }
}
