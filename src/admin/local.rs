//! Pages about pods, which only people on the node may read: checks who asks, and parses the query.

use std::net::{IpAddr, SocketAddr};

use http::header::{HOST, HeaderName};
use http::uri::Authority;
use http::{HeaderMap, Uri};

use crate::config::explain_command::{NotAPodName, PodReference};

/// A query to `/explain`.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct ExplainQuery {
    pub(super) pod: PodReference,
    pub(super) assume: bool,
}

/// The form of the migration report.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ReportFormat {
    Text,
    Json,
    Csv,
}

impl ReportFormat {
    /// Returns the form of `?format=FORMAT`; text without it, `None` for another one.
    pub(super) fn of(uri: &Uri) -> Option<Self> {
        let format = uri.query().unwrap_or_default().split('&').find_map(|part| part.strip_prefix("format="));
        match format.unwrap_or("text") {
            "text" => Some(Self::Text),
            "json" => Some(Self::Json),
            "csv" => Some(Self::Csv),
            _ => None,
        }
    }
}

/// Headers that only proxies, and web pages of another origin, send. A proxy on the node is itself a peer on loopback, whoever its client is.
const PROXY_HEADERS: [&str; 4] = ["forwarded", "via", "x-real-ip", "origin"];
/// A prefix of more such headers.
const PROXY_HEADER_PREFIX: &str = "x-forwarded-";

/// Returns whether the peer is on the node's loopback and acts for a person on the node. A web page in a browser there may come
/// from anywhere: a page whose name resolves to this address sends that name in `Host`, and any other page sends its origin in
/// `Origin`. A forwarded request is recognized by the headers that proxies add; a proxy that adds none cannot be recognized.
pub(super) fn is_local(peer: SocketAddr, headers: &HeaderMap) -> bool {
    is_on_loopback(peer, headers) && !headers.keys().any(is_of_browser)
}

/// Returns whether [`is_local`], or a person on the node opens the page in a browser: by its address, or by a link of the status page
/// itself. Browsers say in `Sec-Fetch-Site` where a request comes from (W3C, "Fetch Metadata Request Headers"), and a page cannot change
/// that. Another port of `localhost` is the same site, but another origin.
pub(super) fn is_local_page(peer: SocketAddr, headers: &HeaderMap) -> bool {
    let mut sites = headers.get_all("sec-fetch-site").iter();
    let is_opened = match (sites.next(), sites.next()) {
        (Some(site), None) => site == "none" || site == "same-origin",
        (None, _) => !headers.keys().any(is_of_browser),
        (Some(_), Some(_)) => false,
    };
    is_on_loopback(peer, headers) && is_opened
}

/// Returns whether only browsers send this header.
fn is_of_browser(name: &HeaderName) -> bool {
    name.as_str().starts_with("sec-fetch-")
}

/// Returns whether the peer is on loopback, `Host` names it so, and no proxy and no page elsewhere sends the request.
fn is_on_loopback(peer: SocketAddr, headers: &HeaderMap) -> bool {
    let mut hosts = headers.get_all(HOST).iter();
    let named = match (hosts.next().and_then(|host| host.to_str().ok()), hosts.next()) {
        (Some(host), None) => is_loopback_name(host),
        _ => false,
    };
    let is_of_proxy = |name: &HeaderName| PROXY_HEADERS.contains(&name.as_str()) || name.as_str().starts_with(PROXY_HEADER_PREFIX);
    peer.ip().to_canonical().is_loopback() && named && !headers.keys().any(is_of_proxy)
}

fn is_loopback_name(host: &str) -> bool {
    let Ok(authority) = host.parse::<Authority>() else { return false };
    let name = authority.host();
    let is_plain = name.len() == host.len() || authority.port().is_some();
    let ip = name.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>();
    is_plain && !host.contains('@') && (name.eq_ignore_ascii_case("localhost") || ip.is_ok_and(|ip| ip.to_canonical().is_loopback()))
}

/// Parses the query `?namespace=NAMESPACE&pod=POD[&assume=true]`: the pod, and whether to call STS.
pub(super) fn question(uri: &Uri) -> Result<ExplainQuery, NotAPodName> {
    let (mut namespace, mut pod, mut assume) = ("", "", false);
    for part in uri.query().unwrap_or_default().split('&') {
        match part.split_once('=') {
            Some(("namespace", text)) => namespace = text,
            Some(("pod", text)) => pod = text,
            Some(("assume", text)) => assume = text == "true",
            _ => {}
        }
    }
    Ok(ExplainQuery { pod: PodReference::new(namespace, pod)?, assume })
}
