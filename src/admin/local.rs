//! Pages that tell about pods, for people on the node alone: who may ask, and what is asked.

use std::net::{IpAddr, SocketAddr};

use http::header::{HOST, ORIGIN};
use http::uri::Authority;
use http::{HeaderMap, Uri};

use crate::config::explain::{NotAPodName, PodName};

/// What `/explain` is asked.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Question {
    pub(super) pod: PodName,
    pub(super) assume: bool,
}

/// Whether the peer is on the node's loopback, and speaks for a person. A page in a browser there may be anybody's: one
/// whose name was pointed at this address names itself in `Host`, and any other in `Origin`.
pub(super) fn is_local(peer: SocketAddr, headers: &HeaderMap) -> bool {
    let mut hosts = headers.get_all(HOST).iter();
    let named = match (hosts.next().and_then(|host| host.to_str().ok()), hosts.next()) {
        (Some(host), None) => is_loopback_name(host),
        _ => false,
    };
    peer.ip().to_canonical().is_loopback() && named && !headers.contains_key(ORIGIN)
}

fn is_loopback_name(host: &str) -> bool {
    let Ok(authority) = host.parse::<Authority>() else { return false };
    let name = authority.host();
    let is_plain = name.len() == host.len() || authority.port().is_some();
    let ip = name.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>();
    is_plain && !host.contains('@') && (name.eq_ignore_ascii_case("localhost") || ip.is_ok_and(|ip| ip.to_canonical().is_loopback()))
}

/// The pod, and whether STS is to be asked, of `?namespace=NAMESPACE&pod=POD[&assume=true]`.
pub(super) fn question(uri: &Uri) -> Result<Question, NotAPodName> {
    let (mut namespace, mut pod, mut assume) = ("", "", false);
    for part in uri.query().unwrap_or_default().split('&') {
        match part.split_once('=') {
            Some(("namespace", text)) => namespace = text,
            Some(("pod", text)) => pod = text,
            Some(("assume", text)) => assume = text == "true",
            _ => {}
        }
    }
    Ok(Question { pod: PodName::new(namespace, pod)?, assume })
}
