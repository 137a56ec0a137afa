//! The source of the settings, and the list of mistakes in them.

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::ArgMatches;

use super::flags::{self, Flag};
use super::warning::ConfigWarning;
use crate::text::is_object_name;

/// No setting means more, and clocks can count it.
const LONGEST_DURATION: Duration = Duration::from_secs(24 * 3600);

/// The largest limit that can be given.
const MAX_LIMIT: u32 = 1_000_000;

/// Reads the texts of settings: the flag if it is given, else its environment variable.
pub(super) struct SettingSource<'a> {
    matches: &'a ArgMatches,
    env: &'a dyn Fn(&str) -> Option<String>,
    mistakes: Vec<String>,
    warnings: Vec<ConfigWarning>,
}

/// A setting's text and where it stands, for messages.
struct Given {
    text: String,
    place: String,
}

impl<'a> SettingSource<'a> {
    /// Reads flags from `matches` (made by [`flags::add_to`]) and variables by `env`.
    pub(super) fn new(matches: &'a ArgMatches, env: &'a dyn Fn(&str) -> Option<String>) -> Self {
        Self { matches, env, mistakes: Vec::new(), warnings: Vec::new() }
    }

    /// The mistakes found until now.
    pub(super) fn into_mistakes(self) -> Vec<String> {
        self.mistakes
    }

    /// Adds a mistake that concerns more than one setting.
    pub(super) fn mistake(&mut self, text: impl Into<String>) {
        self.mistakes.push(text.into());
    }

    /// Adds a warning. The reason is for programs, the text for people.
    pub(super) fn warn(&mut self, reason: &'static str, text: impl Into<String>) {
        self.warnings.push(ConfigWarning::new(reason, text));
    }

    /// Returns the warnings added until now, and forgets them.
    pub(super) fn take_warnings(&mut self) -> Vec<ConfigWarning> {
        std::mem::take(&mut self.warnings)
    }

    /// An environment variable that is not a flag's.
    pub(super) fn env(&self, name: &str) -> Option<String> {
        (self.env)(name).filter(|text| !text.is_empty())
    }

    pub(super) fn flag(name: &str) -> &'static Flag {
        let found = flags::of_all_commands().find(|flag| flag.name == name);
        #[expect(clippy::expect_used, reason = "a start-up invariant: every setting read has its line in the table")]
        found.expect("every setting stands in the table of flags")
    }

    fn given(&self, name: &str) -> Vec<Given> {
        let flag = Self::flag(name);
        if let Some(values) = self.matches.get_many::<String>(name) {
            let place = format!("--{name}");
            return values.map(|text| Given { text: text.clone(), place: place.clone() }).collect();
        }
        let text = self.env(&flag.env()).filter(|text| !is_service_link(&flag.env(), text));
        text.map(|text| Given { text, place: flag.env() }).into_iter().collect()
    }

    /// Whether the setting stands on the command line, and is not empty there.
    pub(super) fn is_argument(&self, name: &str) -> bool {
        self.matches.get_many::<String>(name).is_some_and(|mut values| values.any(|text| !text.is_empty()))
    }

    /// Whether the setting was given at all.
    pub(super) fn is_given(&self, name: &str) -> bool {
        !self.given(name).is_empty()
    }

    /// The last value given, parsed; a mistake (with `expected`) where that fails.
    pub(super) fn parse<T>(&mut self, name: &str, parse: impl Fn(&str) -> Result<T, String>) -> Option<T> {
        let given = self.given(name).pop()?;
        match parse(&given.text) {
            Ok(value) => Some(value),
            Err(expected) => {
                // The text of a secret is not repeated.
                let shown = if name == "api-token" { "..." } else { &given.text };
                self.mistakes.push(format!("{}={shown:?}: {expected}", given.place));
                None
            }
        }
    }

    /// A text, as it is; empty counts as not given (manifests leave variables empty).
    pub(super) fn text(&mut self, name: &str) -> Option<String> {
        self.given(name).pop().map(|given| given.text).filter(|text| !text.is_empty())
    }

    /// A text as [`SettingSource::text`]; one in which Kubernetes left `$(VARIABLE)` counts as not given, with a warning. For
    /// settings that rolegate can find out itself.
    pub(super) fn expanded(&mut self, name: &str) -> Option<String> {
        let text = self.text(name)?;
        let Some(variable) = unexpanded(&text) else { return Some(text) };
        self.warn(
            "variable-not-expanded",
            format!(
                "--{name}={text}: the container has no variable {variable}, so Kubernetes left the text as it is; ignoring the setting; add \
                 the variable to env in the manifest"
            ),
        );
        None
    }

    /// All values of a list, split at commas, each with the place where it stands.
    pub(super) fn list(&mut self, name: &str) -> Vec<(String, String)> {
        let mut items = Vec::new();
        for given in self.given(name) {
            let texts = given.text.split(',').map(str::trim).filter(|text| !text.is_empty());
            items.extend(texts.map(|text| (given.place.clone(), text.to_owned())));
        }
        items
    }

    /// IP addresses, split at commas; IPv4 addresses in the form of IPv6 are taken as what they are.
    pub(super) fn ips(&mut self, name: &str) -> Vec<IpAddr> {
        let mut ips = Vec::new();
        for (place, item) in self.list(name) {
            match item.parse::<IpAddr>() {
                Ok(ip) => ips.push(ip.to_canonical()),
                Err(_) => self.mistakes.push(format!("{place}={item:?}: expected an IP address")),
            }
        }
        ips
    }

    /// A switch; absent is its default, which is mostly off.
    pub(super) fn switch(&mut self, name: &str) -> bool {
        let default = Self::flag(name).default == "true";
        self.parse(name, boolean).unwrap_or(default)
    }

    /// A duration as kube2iam's flags are written: `15m`, `1h30m`, `500ms`, `0`.
    pub(super) fn duration(&mut self, name: &str, default: Duration) -> Duration {
        self.parse(name, duration).unwrap_or(default)
    }

    /// A TCP port.
    pub(super) fn port(&mut self, name: &str, default: u16) -> u16 {
        self.parse(name, |text| text.parse().map_err(|_| "expected a port number, 0 to 65535".to_owned())).unwrap_or(default)
    }

    /// A number of something that is limited, at least 1.
    pub(super) fn limit(&mut self, name: &str, default: u32) -> u32 {
        let given = self.parse(name, |text| match text.parse() {
            Ok(number @ 1..=MAX_LIMIT) => Ok(number),
            _ => Err(format!("expected a number from 1 to {MAX_LIMIT}")),
        });
        given.unwrap_or(default)
    }

    /// An IP address.
    pub(super) fn ip(&mut self, name: &str) -> Option<IpAddr> {
        self.text(name)?;
        self.parse(name, |text| text.parse().map_err(|_| "expected an IP address".to_owned()))
    }

    /// Reads the absolute path of a directory; `None` if it is empty.
    pub(super) fn directory(&mut self, name: &str) -> Option<PathBuf> {
        self.text(name)?;
        self.parse(name, |text| {
            let path = PathBuf::from(text);
            if path.is_absolute() { Ok(path) } else { Err("expected an absolute path, such as /var/lib/cni/results".to_owned()) }
        })
    }

    /// An annotation key.
    pub(super) fn annotation_key(&mut self, name: &str) -> String {
        let default = Self::flag(name).default;
        self.parse(name, annotation_key).unwrap_or_else(|| default.to_owned())
    }

    /// Reads the name of an object, such as a namespace.
    pub(super) fn name(&mut self, name: &str) -> String {
        self.or_default(name, |text| {
            if is_object_name(text) {
                Ok(text.to_owned())
            } else {
                Err("expected a name of lower-case letters, digits, - and .".to_owned())
            }
        })
    }

    /// Reads a label selector. The API checks its form.
    pub(super) fn selector(&mut self, name: &str) -> String {
        self.or_default(name, |text| {
            let is_good = !text.is_empty() && text.len() <= 1024 && text.bytes().all(|byte| byte.is_ascii_graphic() || byte == b' ');
            if is_good { Ok(text.to_owned()) } else { Err("expected a label selector such as app=rolegate".to_owned()) }
        })
    }

    fn or_default(&mut self, name: &str, parse: impl Fn(&str) -> Result<String, String>) -> String {
        self.parse(name, parse).unwrap_or_else(|| Self::flag(name).default.to_owned())
    }

    /// The key of a taint; none where it is empty.
    pub(super) fn taint_key(&mut self, name: &str) -> Option<String> {
        self.text(name)?;
        self.parse(name, taint_key)
    }

    /// One of a closed set of words.
    pub(super) fn choice<T: Copy>(&mut self, name: &str, choices: &[(&str, T)], default: T) -> T {
        let parsed = self.parse(name, |text| {
            let found = choices.iter().find(|(word, _)| word.eq_ignore_ascii_case(text));
            found.map(|(_, value)| *value).ok_or_else(|| {
                let words: Vec<_> = choices.iter().map(|(word, _)| *word).collect();
                format!("expected one of {}", words.join(", "))
            })
        });
        parsed.unwrap_or(default)
    }
}

/// Returns the variable in `$(VARIABLE)`: Kubernetes leaves the text as it is where the container has no such variable.
pub(super) fn unexpanded(text: &str) -> Option<&str> {
    let name = text.split_once("$(")?.1.split_once(')')?.0;
    let is_of_name = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.');
    (!name.is_empty() && name.chars().all(is_of_name)).then_some(name)
}

/// Whether a variable is Kubernetes' and not the operator's: beside a Service named `rolegate-metrics`, pods are given
/// `ROLEGATE_METRICS_PORT=tcp://10.0.0.1:9543` (Kubernetes documentation, "Service", environment variables).
fn is_service_link(variable: &str, text: &str) -> bool {
    variable.ends_with("_PORT") && text.starts_with("tcp://")
}

fn boolean(text: &str) -> Result<bool, String> {
    switch_value(text).ok_or_else(|| "expected true or false".to_owned())
}

/// Returns the value of a switch: the words of Go's `strconv.ParseBool`, with which kube2iam reads its switches.
pub(crate) fn switch_value(text: &str) -> Option<bool> {
    match text {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Some(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Some(false),
        _ => None,
    }
}

fn duration(text: &str) -> Result<Duration, String> {
    if text == "0" {
        return Ok(Duration::ZERO);
    }
    match humantime::parse_duration(text) {
        Ok(duration) if duration <= LONGEST_DURATION => Ok(duration),
        Ok(_) => Err("expected a duration of at most 24h".to_owned()),
        Err(_) => Err("expected a duration such as 30s, 15m or 1h30m".to_owned()),
    }
}

/// `[PREFIX/]NAME` as Kubernetes validates the keys of annotations, without its finer points.
fn annotation_key(text: &str) -> Result<String, String> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.' | '/');
    let good = !text.is_empty() && text.len() <= 317 && text.chars().all(allowed) && text.matches('/').count() <= 1;
    if good { Ok(text.to_owned()) } else { Err("expected an annotation key such as iam.amazonaws.com/role".to_owned()) }
}

/// Prefixes of the taints that Kubernetes and the tools that make nodes put on and take away themselves.
const TAINTS_OF_OTHERS: &[&str] =
    &["node.kubernetes.io/", "node-role.kubernetes.io/", "node.cloudprovider.kubernetes.io/", "node.cluster.x-k8s.io/", "karpenter.sh/"];

/// `[PREFIX/]NAME` as Kubernetes validates the keys of taints (`IsQualifiedName` of apimachinery): a DNS subdomain of at most
/// 253 characters, and a name of at most 63.
fn taint_key(text: &str) -> Result<String, String> {
    let (prefix, name) = text.split_once('/').map_or((None, text), |(prefix, name)| (Some(prefix), name));
    let is_end = |c: Option<char>| c.is_some_and(|c| c.is_ascii_alphanumeric());
    let of_name = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    let good_name = name.len() <= 63 && name.chars().all(of_name) && is_end(name.chars().next()) && is_end(name.chars().last());
    let of_label = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    let is_label = |label: &str| label.chars().all(of_label) && is_end(label.chars().next()) && is_end(label.chars().last());
    let good_prefix = prefix.is_none_or(|prefix| prefix.len() <= 253 && prefix.split('.').all(is_label));
    if !good_name || !good_prefix {
        return Err("expected a taint key without value and effect, such as example.com/rolegate".to_owned());
    }
    match TAINTS_OF_OTHERS.iter().find(|prefix| text.starts_with(**prefix)) {
        Some(prefix) => Err(format!(
            "rolegate does not remove taints with the prefix {prefix}, which belong to other programs; use a taint of your own"
        )),
        None => Ok(text.to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::unexpanded;

    #[test]
    fn a_reference_to_a_missing_variable_is_recognized() {
        assert_eq!(unexpanded("$(HOST_IP)"), Some("HOST_IP"));
        assert_eq!(unexpanded("a-$(NODE_NAME).b"), Some("NODE_NAME"));
        for text in ["10.0.0.1", "$HOST_IP", "${HOST_IP}", "$()", "$(a b)", "$(", "(HOST_IP)"] {
            assert_eq!(unexpanded(text), None, "{text}");
        }
    }
}
