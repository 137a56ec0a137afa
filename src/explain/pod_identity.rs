//! Explains whether a pod can get credentials with Pod Identity: whether it is on, and whether the pod's manifest has what SDKs need.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use http::Uri;

use super::look::HOST_NETWORKS;
use super::{Report, ReportStep};
use crate::config::PodIdentityConfig;
use crate::pods::{ManifestContainer, PodManifest, Pods, VolumeToken};
use crate::policy::trace::StepVerdict;

const FULL_URI: &str = "AWS_CONTAINER_CREDENTIALS_FULL_URI";
const RELATIVE_URI: &str = "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI";
const TOKEN_FILE: &str = "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE";
/// Variables of sources of credentials that SDKs use first.
const USED_FIRST: [&str; 3] = ["AWS_ACCESS_KEY_ID", "AWS_WEB_IDENTITY_TOKEN_FILE", RELATIVE_URI];
const PROXIES: [&str; 4] = ["HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"];
const NO_PROXIES: [&str; 2] = ["NO_PROXY", "no_proxy"];
const CREDENTIALS: &str = "/v1/credentials";

/// What keeps a container from its credentials, and what to do.
struct Obstacle {
    detail: String,
    advice: String,
}

/// What a container's variable says.
enum Variable<'a> {
    Value(&'a str),
    Missing,
    /// The manifest does not have the value.
    Elsewhere,
}

/// Adds the steps to a report, and a note for each thing that has to be corrected. `config` is `None` if Pod Identity is off. Nothing is
/// added if neither the daemon nor the pod uses it.
pub(crate) fn look(manifest: Result<PodManifest, String>, config: Option<&PodIdentityConfig>, pods: &Pods, report: &mut Report) {
    let manifest = match manifest {
        Ok(manifest) => manifest,
        Err(error) => {
            if config.is_some() {
                report.notes.push(format!("the pod's manifest cannot be read, so nothing is known about Pod Identity: {error}"));
            }
            return;
        }
    };
    let is_prepared = manifest.containers.iter().any(is_prepared);
    let Some(config) = config else {
        if is_prepared {
            let detail = "off, but containers have the variables of Pod Identity, and most SDKs then do not use the metadata service";
            let advice = "start the daemon with --pod-identity, or remove the variables";
            refused(report, "endpoint", "--pod-identity", Obstacle { detail: detail.to_owned(), advice: advice.to_owned() });
        }
        return;
    };
    step(report, "endpoint", "--pod-identity", served(config), StepVerdict::Passed);
    let source = format!("--pod-identity-audience={}", config.audience);
    let tokens: Vec<_> = manifest.tokens.iter().filter(|token| token.audience == config.audience).collect();
    match tokens.first() {
        Some(token) => step(report, "token", &source, format!("volume {}, file {}", token.volume, token.path), StepVerdict::Passed),
        None if !is_prepared => {
            let detail = "no volume has a token with this audience, and no container has the variables: the pod uses the metadata service";
            return step(report, "token", &source, detail.to_owned(), StepVerdict::Skipped);
        }
        None => {
            let others: Vec<_> = manifest.tokens.iter().map(|token| &*token.audience).filter(|audience| !audience.is_empty()).collect();
            let others = if others.is_empty() { String::new() } else { format!("; there are tokens for {}", others.join(", ")) };
            let detail = format!("no volume has a token with this audience{others}");
            let advice =
                "add a projected volume with a serviceAccountToken for this audience, as docs/pod-identity.md describes".to_owned();
            refused(report, "token", &source, Obstacle { detail, advice });
        }
    }
    let notes = report.notes.len();
    let mut is_named = false;
    for container in &manifest.containers {
        if !is_prepared_or_unknown(container, is_prepared) {
            continue;
        }
        is_named = true;
        match check(container, &manifest, config, &tokens) {
            Ok((detail, verdict)) => step(report, "container", &container.name, detail, verdict),
            Err(obstacle) => refused(report, "container", &container.name, obstacle),
        }
        note_others(container, report);
    }
    if !is_named {
        let detail = format!("no container has the variable {FULL_URI}, so SDKs use the metadata service");
        let advice = format!("add {FULL_URI} and {TOKEN_FILE} to the containers that need credentials");
        refused(report, "container", "", Obstacle { detail, advice });
    }
    let is_denied = || pods.named(&report.namespace, &report.pod).is_some_and(|(pod, _)| pods.denies_in_host_network(&pod));
    let is_about_metadata = report.reason.as_deref().is_some_and(|reason| HOST_NETWORKS.contains(&reason));
    if is_about_metadata && report.notes.len() == notes && !is_denied() {
        report.notes.push(
            "the decision below is about the metadata service; with Pod Identity, the pod gets the role of the steps above".to_owned(),
        );
    }
}

fn step(report: &mut Report, what: &str, source: &str, detail: String, verdict: StepVerdict) {
    report.pod_identity.push(ReportStep { what: what.to_owned(), source: source.to_owned(), detail, verdict });
}

fn refused(report: &mut Report, what: &str, source: &str, Obstacle { detail, advice }: Obstacle) {
    let of = if source.is_empty() || what != "container" { String::new() } else { format!("container {source}: ") };
    report.notes.push(format!("Pod Identity: {of}{detail}. To fix: {advice}"));
    step(report, what, source, detail, StepVerdict::Refused);
}

fn served(config: &PodIdentityConfig) -> String {
    let addresses: Vec<_> = config.addresses.iter().map(SocketAddr::to_string).collect();
    let of_host = config.host_address.map_or_else(String::new, |address| format!("; for pods with hostNetwork, {address}"));
    format!("on, at {}{of_host}", addresses.join(" and "))
}

fn is_prepared(container: &ManifestContainer) -> bool {
    container.variable(FULL_URI).is_some() || container.variable(TOKEN_FILE).is_some()
}

/// Whether there is something to say about a container. Where no container has the variables, they may come from a ConfigMap.
fn is_prepared_or_unknown(container: &ManifestContainer, others_are: bool) -> bool {
    is_prepared(container) || (!others_are && container.has_other_variables)
}

fn variable<'a>(container: &'a ManifestContainer, name: &str) -> Variable<'a> {
    match container.variable(name).map(|variable| variable.value.as_deref()) {
        // Kubernetes replaces references to other variables.
        Some(Some(value)) if value.contains("$(") => Variable::Elsewhere,
        Some(Some(value)) => Variable::Value(value),
        Some(None) => Variable::Elsewhere,
        None if container.has_other_variables => Variable::Elsewhere,
        None => Variable::Missing,
    }
}

/// Checks the variables of a container, and that the token's file is there.
fn check(
    container: &ManifestContainer,
    manifest: &PodManifest,
    config: &PodIdentityConfig,
    tokens: &[&VolumeToken],
) -> Result<(String, StepVerdict), Obstacle> {
    let missing = |name: &str, advice: String| Obstacle { detail: format!("the variable {name} is missing"), advice };
    let uri = match variable(container, FULL_URI) {
        Variable::Value(uri) => Some(uri),
        Variable::Elsewhere => None,
        Variable::Missing => return Err(missing(FULL_URI, format!("set it to {}", expected_uri(manifest, config)))),
    };
    if let Some(uri) = uri {
        check_uri(uri, manifest, config)?;
    }
    let file = match variable(container, TOKEN_FILE) {
        Variable::Value(file) => Some(file),
        Variable::Elsewhere => None,
        Variable::Missing => return Err(missing(TOKEN_FILE, "set it to the path of the token in the container".to_owned())),
    };
    if let Some(file) = file {
        check_file(file, container, manifest, tokens)?;
    }
    match (uri, file) {
        (Some(uri), Some(file)) => Ok((format!("{uri}, with the token in {file}"), StepVerdict::Passed)),
        _ => {
            Ok(("some variables have no value in the manifest (valueFrom, envFrom), and are not checked".to_owned(), StepVerdict::Skipped))
        }
    }
}

fn expected_uri(manifest: &PodManifest, config: &PodIdentityConfig) -> String {
    let of_family = |address: &&SocketAddr| manifest.ips.is_empty() || manifest.ips.iter().any(|ip| ip.is_ipv4() == address.is_ipv4());
    let address = match config.host_address.filter(|_| manifest.host_network) {
        Some(address) => Some(address),
        None => config.addresses.iter().find(of_family).copied(),
    };
    address.map_or_else(|| "an address of --pod-identity-addresses".to_owned(), |address| format!("http://{}{CREDENTIALS}", host(address)))
}

/// Returns an address as SDKs write it: without the default port.
fn host(address: SocketAddr) -> String {
    let ip = match address.ip() {
        IpAddr::V4(ip) => ip.to_string(),
        IpAddr::V6(ip) => format!("[{ip}]"),
    };
    if address.port() == 80 { ip } else { format!("{ip}:{}", address.port()) }
}

/// Checks that a URI names an address where the daemon serves this pod.
fn check_uri(text: &str, manifest: &PodManifest, config: &PodIdentityConfig) -> Result<(), Obstacle> {
    let obstacle = |why: &str| Obstacle {
        detail: format!("{FULL_URI} is {text}: {why}"),
        advice: format!("set it to {}", expected_uri(manifest, config)),
    };
    let uri: Uri = text.parse().map_err(|_| obstacle("not a URI"))?;
    if uri.scheme_str() != Some("http") {
        return Err(obstacle("the daemon serves http only"));
    }
    if uri.path() != CREDENTIALS || uri.query().is_some() {
        return Err(obstacle("the path must be /v1/credentials"));
    }
    let name = uri.host().unwrap_or_default();
    let ip = match name {
        "localhost" => IpAddr::from([127, 0, 0, 1]),
        name => name.trim_start_matches('[').trim_end_matches(']').parse().map_err(|_| obstacle("SDKs accept only addresses here"))?,
    };
    let address = SocketAddr::new(ip, uri.port_u16().unwrap_or(80));
    if ip.is_loopback() && !manifest.host_network && !config.addresses.contains(&address) {
        return Err(obstacle("this is the pod's own loopback address, because the pod does not use hostNetwork"));
    }
    if ip == IpAddr::V6(Ipv6Addr::LOCALHOST) || !config.addresses_alone().any(|served| served == address) {
        return Err(obstacle("the daemon does not serve this address"));
    }
    let has_family = manifest.ips.is_empty() || manifest.ips.iter().any(|own| own.is_ipv4() == ip.is_ipv4());
    if !has_family && !manifest.host_network {
        return Err(obstacle("the pod has no address of this IP family"));
    }
    Ok(())
}

/// Checks that a file is a token with the right audience, in a volume that is mounted in the container.
fn check_file(file: &str, container: &ManifestContainer, manifest: &PodManifest, tokens: &[&VolumeToken]) -> Result<(), Obstacle> {
    let obstacle = |why: String, advice: &str| Obstacle { detail: format!("{TOKEN_FILE} is {file}: {why}"), advice: advice.to_owned() };
    let below = |path: &str| {
        let rest = file.strip_prefix(path.trim_end_matches('/'))?;
        (rest.is_empty() || rest.starts_with('/')).then(|| rest.trim_start_matches('/').to_owned())
    };
    let mounted = container.mounts.iter().filter_map(|mount| Some((mount, below(&mount.path)?)));
    let Some((mount, rest)) = mounted.max_by_key(|(mount, _)| mount.path.trim_end_matches('/').len()) else {
        return Err(obstacle("no volume is mounted at this path".to_owned(), "mount the volume with the token there"));
    };
    if mount.is_part {
        let why = format!("volume {} is mounted there with subPath, so the kubelet does not renew the token", mount.volume);
        return Err(obstacle(why, "mount the whole volume"));
    }
    let is_it = |token: &VolumeToken| token.volume == mount.volume && token.path.trim_start_matches('/') == rest;
    if tokens.iter().any(|token| is_it(token)) {
        return Ok(());
    }
    let advice = "set it to the path of the token with the audience of --pod-identity-audience";
    match manifest.tokens.iter().find(|token| is_it(token)) {
        Some(token) if token.audience.is_empty() => Err(obstacle("this token is for the Kubernetes API".to_owned(), advice)),
        Some(token) => Err(obstacle(format!("this token is for the audience {}", token.audience), advice)),
        None => Err(obstacle(format!("volume {}, which is mounted there, has no such token", mount.volume), advice)),
    }
}

/// Notes variables because of which SDKs may not use Pod Identity, although all else is right.
fn note_others(container: &ManifestContainer, report: &mut Report) {
    let has =
        |name: &&&str| !matches!(variable(container, name), Variable::Missing | Variable::Value("")) && container.variable(name).is_some();
    if let Some(first) = USED_FIRST.iter().find(has) {
        report.notes.push(format!(
            "Pod Identity: container {} also has {first}, which most SDKs use first. To fix: remove it, unless it is meant to be used",
            container.name
        ));
    }
    let is_direct = || NO_PROXIES.iter().any(|name| has(&name));
    if let Some(proxy) = PROXIES.iter().find(has)
        && !is_direct()
    {
        report.notes.push(format!(
            "Pod Identity: container {} has {proxy} without NO_PROXY, and the daemon refuses requests through a proxy. To fix: add the host \
             of {FULL_URI} to NO_PROXY",
            container.name
        ));
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test says loudly what failed")]
mod tests;
