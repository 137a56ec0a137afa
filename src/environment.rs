//! The environment as libraries may see it.
//!
//! The AWS SDK, the Kubernetes client and the TLS libraries read variables by themselves, each in its own way: an empty
//! `AWS_ENDPOINT_URL_STS` panics, an empty `HTTPS_PROXY` hides `https_proxy`, and none spares the metadata service a proxy. So the
//! program puts its environment in order before anything reads it, and starts itself again with that: a process cannot change its
//! own safely.
//!
//! - A variable that is empty is not there: manifests leave variables empty.
//! - Proxies are those of `HTTPS_PROXY`, `HTTP_PROXY` and `NO_PROXY`, upper or lower case, as for programs written in Go
//!   (`golang.org/x/net/http/httpproxy`): one without a scheme is an HTTP proxy. Loopback addresses get none, as there, and no
//!   link-local addresses either: the metadata service and the agents with container credentials answer with secrets.

use std::ffi::{OsStr, OsString};
use std::os::unix::process::CommandExt as _;
use std::process::Command;

/// What never goes through a proxy.
const DIRECT: [&str; 6] = ["localhost", "127.0.0.0/8", "::1", "169.254.0.0/16", "fe80::/10", "fd00:ec2::/32"];
/// The ports of URLs without one.
const DEFAULT_PORTS: [&str; 2] = ["443", "80"];
/// The variables of proxies, and their lower-case forms.
const PROXIES: [(&str, &str); 2] = [("HTTPS_PROXY", "https_proxy"), ("HTTP_PROXY", "http_proxy")];
/// Hosts without a proxy.
const NO_PROXY: (&str, &str) = ("NO_PROXY", "no_proxy");
/// Variables that Go programs do not read, or for which they drop a proxy, and libraries here do.
const UNREAD: [&str; 3] = ["ALL_PROXY", "all_proxy", "REQUEST_METHOD"];

/// A variable.
type Variable = (OsString, OsString);

/// Returns the environment in order; `None` where it is so already.
pub fn cleaned(variables: impl IntoIterator<Item = Variable>) -> Option<Vec<Variable>> {
    let given: Vec<Variable> = variables.into_iter().collect();
    let mut kept: Vec<Variable> = given.iter().filter(|(_, value)| !value.is_empty()).cloned().collect();
    let mut taken = |name: &str| {
        let at = kept.iter().position(|(known, _)| known == name)?;
        Some(kept.remove(at).1)
    };
    for name in UNREAD {
        taken(name);
    }
    let mut proxies = Vec::new();
    for (upper, lower) in PROXIES {
        let (first, second) = (taken(upper), taken(lower));
        proxies.extend(first.or(second).map(|proxy| (OsString::from(upper), with_scheme(proxy))));
    }
    let (first, second) = (taken(NO_PROXY.0), taken(NO_PROXY.1));
    if !proxies.is_empty() {
        let direct = without_proxy(first.or(second).as_deref().and_then(OsStr::to_str).unwrap_or_default());
        proxies.push((NO_PROXY.0.into(), direct.into()));
    }
    kept.extend(proxies);
    let mut before = given;
    before.sort();
    let mut after = kept.clone();
    after.sort();
    (before != after).then_some(kept)
}

/// Starts the program again with this environment, in the same process. Returns only if that fails.
pub fn start_again(arguments: impl IntoIterator<Item = OsString>, environment: Vec<Variable>) -> std::io::Error {
    let mut arguments = arguments.into_iter();
    let mut program = Command::new("/proc/self/exe");
    if let Some(name) = arguments.next() {
        program.arg0(name);
    }
    program.args(arguments).env_clear().envs(environment).exec()
}

/// The URL of a proxy. Libraries here take one without a scheme for a mistake, and some repeat it with its password.
fn with_scheme(proxy: OsString) -> OsString {
    match proxy.to_str() {
        Some(text) if !text.contains("://") => format!("http://{text}").into(),
        _ => proxy,
    }
}

/// The list of hosts without a proxy, in the words that all libraries here know, and what never has one.
fn without_proxy(list: &str) -> String {
    let mut hosts: Vec<String> = Vec::new();
    let mut add = |host: &str| {
        if !host.is_empty() && !hosts.iter().any(|known| known == host) {
            hosts.push(host.to_owned());
        }
    };
    for entry in list.split(',').map(str::trim) {
        // Go takes "*.example.com" for ".example.com", and a port, which libraries here do not know.
        let entry = if entry == "*" { entry } else { entry.trim_start_matches(|c: char| c == '*' || c.is_whitespace()) };
        match entry.rsplit_once(':') {
            Some((host, port)) if !host.contains(':') && DEFAULT_PORTS.contains(&port) => add(host.trim_end()),
            _ => add(entry),
        }
    }
    DIRECT.into_iter().for_each(add);
    // With others beside it, some libraries do not know it.
    if hosts.iter().any(|host| host == "*") { "*".to_owned() } else { hosts.join(",") }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test says loudly what failed")]
    use super::*;

    const NEVER: &str = "localhost,127.0.0.0/8,::1,169.254.0.0/16,fe80::/10,fd00:ec2::/32";

    fn variables(given: &[(&str, &str)]) -> Vec<Variable> {
        given.iter().map(|(name, value)| ((*name).into(), (*value).into())).collect()
    }

    fn clean(given: &[(&str, &str)]) -> Option<Vec<Variable>> {
        cleaned(variables(given))
    }

    #[test]
    fn an_environment_in_order_stays() {
        assert_eq!(clean(&[]), None);
        assert_eq!(clean(&[("PATH", "/bin"), ("AWS_REGION", "eu-central-1")]), None);
        assert_eq!(clean(&[("HTTPS_PROXY", "http://proxy:3128"), ("NO_PROXY", NEVER)]), None);
    }

    #[test]
    fn empty_variables_are_unset() {
        assert_eq!(clean(&[("AWS_ENDPOINT_URL_STS", ""), ("PATH", "/bin"), ("HTTPS_PROXY", "")]), Some(variables(&[("PATH", "/bin")])));
    }

    #[test]
    fn proxies_are_those_of_go_programs() {
        let proxied = |name: &str, no: &str| Some(variables(&[(name, "http://proxy"), ("NO_PROXY", no)]));
        assert_eq!(clean(&[("https_proxy", "http://proxy")]), proxied("HTTPS_PROXY", NEVER));
        assert_eq!(clean(&[("HTTPS_PROXY", ""), ("https_proxy", "http://proxy")]), proxied("HTTPS_PROXY", NEVER));
        assert_eq!(clean(&[("HTTP_PROXY", "http://proxy"), ("http_proxy", "http://other")]), proxied("HTTP_PROXY", NEVER));
        assert_eq!(clean(&[("HTTPS_PROXY", "a:b@proxy:3128")]), {
            let url = ("HTTPS_PROXY", "http://a:b@proxy:3128");
            Some(variables(&[url, ("NO_PROXY", NEVER)]))
        });
        // Neither of these is read there.
        assert_eq!(clean(&[("ALL_PROXY", "http://proxy"), ("REQUEST_METHOD", "GET"), ("NO_PROXY", "a")]), Some(vec![]));
        let no = |list: &str| clean(&[("HTTPS_PROXY", "http://proxy"), ("no_proxy", list)]);
        let direct = format!(".example.com,sts.internal,10.0.0.0/8,host:8443,{NEVER}");
        assert_eq!(no(" *.example.com, sts.internal:443,,10.0.0.0/8,host:8443, localhost"), {
            let direct = direct.as_str();
            proxied("HTTPS_PROXY", direct)
        });
        assert_eq!(no("a,*"), proxied("HTTPS_PROXY", "*"));
    }

    proptest::proptest! {
        /// The program starts itself again until nothing is to be changed.
        #[test]
        fn what_is_in_order_is_not_changed_again(
            https in "(http://[a-z]{0,3})?", lower in "(http://p)?", no in "[a-z*.:,0-9/ ]{0,30}", other in "[a-z]{0,2}",
        ) {
            let given = [("HTTPS_PROXY", &*https), ("https_proxy", &*lower), ("no_proxy", &*no), ("X", &*other), ("ALL_PROXY", "x")];
            if let Some(once) = clean(&given) {
                proptest::prop_assert_eq!(cleaned(once), None);
            }
        }
    }
}
