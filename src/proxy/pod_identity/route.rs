//! Decides which requests are for credentials at an address of Pod Identity: a pure function of method, target and headers.
//!
//! There is one resource. As for metadata, a request is refused unless it has exactly the form that SDKs send.

use std::net::{IpAddr, SocketAddr};

use http::header::{AUTHORIZATION, HOST};
use http::{HeaderMap, HeaderName, Method, Uri};

use crate::pod_identity::CREDENTIALS_PATH;
use crate::pod_identity::token::TokenError;
use crate::proxy::route::{Rejection, check_framing, check_not_forwarded, check_target};

/// Checks that a request is for credentials. `local` is the address that the client connected to, which is the only host that the
/// request may name: a web page that uses DNS rebinding names its own host.
pub(super) fn check(method: &Method, uri: &Uri, headers: &HeaderMap, local: Option<SocketAddr>) -> Result<(), Rejection> {
    check_framing(headers, false)?;
    let host = the_only(headers, &HOST).and_then(|host| host.to_str().ok()).ok_or(Rejection::Malformed)?;
    if !local.is_some_and(|local| names(host, local)) {
        return Err(Rejection::Host);
    }
    check_target(uri, Some(host))?;
    check_not_forwarded(headers)?;
    if uri.path() != CREDENTIALS_PATH || uri.query().is_some() {
        return Err(Rejection::Malformed);
    }
    if method == Method::GET { Ok(()) } else { Err(Rejection::Method) }
}

/// The headers that web browsers send and SDKs do not.
const OF_BROWSERS: [&str; 6] = ["cookie", "origin", "referer", "sec-fetch-dest", "sec-fetch-mode", "sec-fetch-site"];

/// Checks that no web browser sent the request. Requests without a token need it.
pub(super) fn check_not_of_browser(headers: &HeaderMap) -> Result<(), Rejection> {
    if OF_BROWSERS.iter().any(|name| headers.contains_key(*name)) { Err(Rejection::Malformed) } else { Ok(()) }
}

/// Returns the token of a request: the value of its only header `Authorization`, without a scheme.
pub(super) fn token(headers: &HeaderMap) -> Result<&[u8], TokenError> {
    if !headers.contains_key(AUTHORIZATION) {
        return Err(TokenError::Missing);
    }
    the_only(headers, &AUTHORIZATION).map(http::HeaderValue::as_bytes).ok_or(TokenError::NotCompact)
}

fn the_only<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<&'a http::HeaderValue> {
    let mut given = headers.get_all(name).iter();
    given.next().filter(|_| given.next().is_none())
}

/// Returns whether a host header names this address, with or without the port. The AWS CRT sends neither a port nor the
/// brackets of an IPv6 address.
fn names(host: &str, local: SocketAddr) -> bool {
    let with_port = |name: &str| host.strip_prefix(name).is_some_and(|port| port.strip_prefix(':') == Some(&local.port().to_string()));
    let has_name = |name: &str| with_port(name) || host == name;
    let names_ip = match local.ip() {
        IpAddr::V4(ip) => has_name(&ip.to_string()),
        IpAddr::V6(ip) => has_name(&format!("[{ip}]")) || host == ip.to_string(),
    };
    names_ip || (local.ip().is_loopback() && has_name("localhost"))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test says loudly what failed")]
mod tests {
    use super::*;

    fn headers(given: &[(&str, &str)]) -> HeaderMap {
        given.iter().map(|(name, value)| (name.parse::<HeaderName>().unwrap(), value.parse().unwrap())).collect()
    }

    fn checked(method: &str, target: &str, given: &[(&str, &str)], local: &str) -> Result<(), Rejection> {
        check(&method.parse().unwrap(), &target.parse().unwrap(), &headers(given), Some(local.parse().unwrap()))
    }

    const IPV4: &str = "169.254.170.23:80";
    const GOOD: &[(&str, &str)] = &[("host", "169.254.170.23"), ("authorization", "a.b.c")];

    #[test]
    fn the_request_of_an_sdk_is_taken() {
        assert_eq!(checked("GET", "/v1/credentials", GOOD, IPV4), Ok(()));
        for (host, local) in [
            ("169.254.170.23:80", IPV4),
            ("[fd00:ec2::23]", "[fd00:ec2::23]:80"),
            ("[fd00:ec2::23]:80", "[fd00:ec2::23]:80"),
            ("fd00:ec2::23", "[fd00:ec2::23]:80"),
            ("127.0.0.1", "127.0.0.1:8182"),
            ("localhost", "127.0.0.1:8182"),
            ("127.0.0.1:8182", "127.0.0.1:8182"),
            ("localhost:8182", "127.0.0.1:8182"),
        ] {
            assert_eq!(checked("GET", "/v1/credentials", &[("host", host)], local), Ok(()), "{host}");
        }
        assert_eq!(checked("GET", "http://169.254.170.23/v1/credentials", GOOD, IPV4), Ok(()));
        assert_eq!(checked("GET", "/v1/credentials", &[("host", "169.254.170.23"), ("content-length", "0")], IPV4), Ok(()));
    }

    #[test]
    fn another_host_is_refused() {
        for (host, local) in [
            ("attacker.example", IPV4),
            ("169.254.170.23:8080", IPV4),
            ("169.254.170.234", IPV4),
            ("localhost", IPV4),
            ("[fd00:ec2::23]", IPV4),
            ("127.0.0.1:80", "127.0.0.1:8182"),
            ("fd00:ec2::23:80", "[fd00:ec2::23]:80"),
            ("fd00:ec2::2", "[fd00:ec2::23]:80"),
            ("127.0.0.1:08182", "127.0.0.1:8182"),
        ] {
            assert_eq!(checked("GET", "/v1/credentials", &[("host", host)], local), Err(Rejection::Host), "{host}");
        }
        assert_eq!(check(&Method::GET, &"/v1/credentials".parse().unwrap(), &headers(GOOD), None), Err(Rejection::Host));
    }

    #[test]
    fn only_the_exact_form_is_taken() {
        let with = |name: &'static str, value: &'static str| [GOOD, &[(name, value)]].concat();
        for (method, target, given, expected) in [
            ("POST", "/v1/credentials", GOOD.to_vec(), Rejection::Method),
            ("HEAD", "/v1/credentials", GOOD.to_vec(), Rejection::Method),
            ("GET", "/v1/credentials/", GOOD.to_vec(), Rejection::Malformed),
            ("GET", "//v1/credentials", GOOD.to_vec(), Rejection::Malformed),
            ("GET", "/v1/credentials?a=b", GOOD.to_vec(), Rejection::Malformed),
            ("GET", "/V1/credentials", GOOD.to_vec(), Rejection::Malformed),
            ("GET", "/v1/%63redentials", GOOD.to_vec(), Rejection::Malformed),
            ("GET", "/latest/meta-data/", GOOD.to_vec(), Rejection::Malformed),
            ("GET", "http://attacker.example/v1/credentials", GOOD.to_vec(), Rejection::Malformed),
            ("GET", "/v1/credentials", with("transfer-encoding", "chunked"), Rejection::Malformed),
            ("GET", "/v1/credentials", with("content-length", "1"), Rejection::Malformed),
            ("GET", "/v1/credentials", with("x-forwarded-for", "10.0.0.1"), Rejection::Forwarded),
            ("GET", "/v1/credentials", with("forwarded", "for=10.0.0.1"), Rejection::Forwarded),
            ("GET", "/v1/credentials", with("host", "169.254.170.23"), Rejection::Malformed),
            ("GET", "/v1/credentials", vec![("authorization", "a.b.c")], Rejection::Malformed),
        ] {
            assert_eq!(checked(method, target, &given, IPV4), Err(expected), "{method} {target} {given:?}");
        }
    }

    #[test]
    fn what_only_browsers_send_is_found() {
        assert_eq!(check_not_of_browser(&headers(GOOD)), Ok(()));
        for name in ["Origin", "Referer", "Cookie", "Sec-Fetch-Site", "Sec-Fetch-Mode", "Sec-Fetch-Dest"] {
            assert_eq!(check_not_of_browser(&headers(&[("host", "169.254.170.2"), (name, "a")])), Err(Rejection::Malformed), "{name}");
        }
    }

    #[test]
    fn the_token_is_the_only_authorization() {
        assert_eq!(token(&headers(GOOD)), Ok(b"a.b.c".as_slice()));
        assert_eq!(token(&headers(&[("host", "169.254.170.23")])), Err(TokenError::Missing));
        assert_eq!(token(&headers(&[("authorization", "a"), ("authorization", "b")])), Err(TokenError::NotCompact));
    }
}
