//! Properties that must hold for whatever a pod, its author or a client writes. The fuzz targets beside this file check them
//! with inputs from libFuzzer, and `tests/integration/properties.rs` with inputs from proptest.

#![allow(clippy::unwrap_used, clippy::panic, dead_code, reason = "a failed check panics, and no user of this file uses all of it")]

pub(crate) mod model;
pub(crate) mod service_account_token;

use std::net::IpAddr;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use http::header::{CONTENT_LENGTH, FORWARDED, HOST, TRANSFER_ENCODING};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Uri, Version};
use rolegate::clock::Clock;
use rolegate::config::{PatternFormat, Restrictions};
use rolegate::pods::{Namespace, Pod, PodContext, PodUid};
use rolegate::policy::node::NodeIdentity;
use rolegate::policy::patterns::Patterns;
use rolegate::policy::{Decision, Policy, Rules};
use rolegate::proxy::route::{Body, Hosts, Route, RouteContext, TOKEN_TTL, route as route_of};
use rolegate::proxy::token::Tokens;
use rolegate::role::{BaseArn, CallerIdentity, RoleArn};

pub(crate) const BASE: &str = "arn:aws:iam::111122223333:role/";
const CALLER: &str = "arn:aws:sts::111122223333:assumed-role/nodes/i-0f1e2d3c";
/// The address of a listener that accepts direct connections.
const OWN: &str = "127.0.0.1:8181";

/// Splits an input into fields, at bytes that are invalid in UTF-8. Missing fields are empty.
pub(crate) fn fields<const N: usize>(data: &[u8]) -> [&[u8]; N] {
    let mut fields = data.splitn(N, |byte| *byte == 0xff);
    std::array::from_fn(|_| fields.next().unwrap_or_default())
}

/// A role's ARN parses if it follows the grammar, and the result equals the input.
pub(crate) fn arn(text: &str) {
    let parsed = text.parse::<RoleArn>();
    assert_eq!(parsed.is_ok(), model::is_role_arn(text), "{text:?}: {parsed:?}");
    if let Ok(arn) = parsed {
        assert_eq!((arn.as_str(), arn.to_string().as_str()), (text, text));
        assert!(text.ends_with(&format!("/{}", arn.name())) && !arn.name().contains('/'), "{arn}");
        assert_eq!(text.split(':').nth(1), Some(arn.partition().name()));
        assert_eq!(text.split(':').nth(4), Some(arn.account()));
    }
    if let Ok(base) = text.parse::<BaseArn>() {
        assert!(base.as_str().ends_with('/') && base.as_str().starts_with(text), "{text:?}");
        base.complete("x").unwrap();
    }
}

/// A pattern matches complete ARNs, as in a matcher that is too simple to be wrong. An expression that the matcher does not
/// support still stays behind its base, and matches only the whole text.
pub(crate) fn pattern(regexp: bool, pattern: &str, text: &str) {
    let format = if regexp { PatternFormat::Regexp } else { PatternFormat::Glob };
    let Ok(patterns) = Patterns::new(format, Some(BASE), vec![pattern.to_owned()]) else {
        assert!(regexp || pattern.is_empty() || pattern.len() > 4096, "a glob was rejected: {pattern:?}");
        return;
    };
    let found = patterns.find(text).is_some();
    if !regexp {
        assert_eq!(found, model::glob(&model::completed(pattern, BASE), text), "{pattern:?} on {text:?}");
        return;
    }
    let rest = pattern.strip_prefix('^').unwrap_or(pattern);
    let is_short = !rest.starts_with("arn:");
    let behind = if is_short { text.strip_prefix(BASE) } else { Some(text) };
    let Some(behind) = behind else {
        assert!(!found, "{pattern:?} leaves its base on {text:?}");
        return;
    };
    let rest = if is_short { rest.strip_prefix('/').unwrap_or(rest) } else { rest };
    if let Some(expected) = model::expression(rest, behind) {
        assert_eq!(found, expected, "{pattern:?} on {text:?}");
    }
    let anywhere = regex::Regex::new(rest).is_ok_and(|expression| expression.is_match(behind));
    assert!(!found || anywhere, "{pattern:?} does not even match a part of {text:?}");
}

/// What people write on a pod and its namespace.
#[derive(Debug, Default)]
pub(crate) struct Written<'a> {
    pub(crate) role: Option<&'a str>,
    pub(crate) external_id: Option<&'a str>,
    pub(crate) session_name: Option<&'a str>,
    pub(crate) allowed_roles: Option<&'a str>,
    pub(crate) permitted: Option<&'a str>,
    pub(crate) regexp: bool,
}

/// Only what a straightforward reading of the rules allows is allowed.
pub(crate) fn annotations(written: &Written<'_>) {
    let owned = |text: Option<&str>| text.map(str::to_owned);
    let pod = Pod {
        role: owned(written.role),
        external_id: owned(written.external_id),
        session_name: owned(written.session_name),
        ..Pod::for_test("shop", "web-1")
    };
    let namespace = Namespace { name: "shop".to_owned(), allowed_roles: owned(written.allowed_roles), permitted: owned(written.permitted) };
    let around = PodContext { namespace: Some(Arc::new(namespace)), ..PodContext::default() };
    let rules = Rules {
        base: Some(BASE.parse().unwrap()),
        restrictions: Restrictions::Enforce,
        patterns: if written.regexp { PatternFormat::Regexp } else { PatternFormat::Glob },
        ..Rules::default()
    };
    let node = NodeIdentity::default();
    node.set_caller(CALLER.parse::<CallerIdentity>().unwrap());
    let policy = Policy::new(rules, node).unwrap();
    let decision = policy.decide(&pod, &around);
    assert_eq!(policy.explain(&pod, &around).decision, decision);
    let Decision::Allow { request, audit } = decision else { return };
    assert_eq!(audit, None);
    assert_eq!(Some(request.role().as_str()), model::allowed_role(written).as_deref(), "{written:?}");
    assert_eq!(request.external_id().map(|id| id.as_str()), written.external_id.filter(|id| !id.is_empty()), "{written:?}");
    if let Some(name) = written.session_name.filter(|name| !name.is_empty()) {
        assert_eq!(request.session_name().as_str(), model::session_name(name), "{written:?}");
    }
}

/// Every request is refused or is in the table. A request that is not refused contains nothing that could be read in two ways.
pub(crate) fn route(method: &[u8], target: &[u8], headers: &[(&[u8], &[u8])], version: Version) {
    for body in [Body::Unread, Body::EmptyChunked] {
        route_with(method, target, headers, version, body);
    }
}

fn route_with(method: &[u8], target: &[u8], headers: &[(&[u8], &[u8])], version: Version, body: Body) {
    let (Ok(method), Ok(uri)) = (Method::from_bytes(method), Uri::try_from(target)) else { return };
    let mut map = HeaderMap::new();
    for (name, value) in headers {
        if let (Ok(name), Ok(value)) = (HeaderName::from_bytes(name), HeaderValue::from_bytes(value)) {
            map.append(name, value);
        }
    }
    let Ok(route) = route_of(&method, &uri, version, &map, context(&Hosts::default(), body)) else { return };
    let path = uri.path();
    let odd = |byte: u8| !byte.is_ascii_graphic() || b"%\\;\"<>^`{|}#".contains(&byte);
    assert!(!path.bytes().any(odd) && path.starts_with('/'), "{route:?} by {path:?}");
    assert!(!path.split('/').any(|segment| matches!(segment, "." | "..")), "{route:?} by {path:?}");
    assert!(uri.to_string().len() <= 2048 + "http://169.254.169.254:80".len(), "a target of {} bytes", uri.to_string().len());
    for refused in [FORWARDED, HeaderName::from_static("x-forwarded-for")] {
        assert!(!map.contains_key(&refused), "{route:?} with {refused}");
    }
    let encodings: Vec<_> = map.get_all(TRANSFER_ENCODING).iter().collect();
    if !encodings.is_empty() {
        assert!(matches!(route, Route::NewToken { .. }) && body == Body::EmptyChunked && version == Version::HTTP_11, "{route:?}");
        assert!(encodings == ["chunked"] && !map.contains_key(CONTENT_LENGTH), "{encodings:?}");
    }
    assert!(map.get_all(CONTENT_LENGTH).iter().all(|length| length == "0") && map.get_all(CONTENT_LENGTH).iter().count() <= 1);
    let hosts: Vec<_> = map.get_all(HOST).iter().collect();
    assert!(hosts.len() <= 1, "{hosts:?}");
    assert!(hosts.iter().all(|host| model::is_host(host.as_bytes())), "{hosts:?}");
    let segments: Vec<&str> = path.split('/').filter(|segment| !segment.is_empty()).collect();
    let is_read = method == Method::GET || method == Method::HEAD;
    let is_right = match &route {
        Route::NewToken { ttl_seconds } => {
            let given: Vec<_> = map.get_all(TOKEN_TTL).iter().filter_map(|ttl| ttl.to_str().ok()?.parse::<u32>().ok()).collect();
            method == Method::PUT && segments == ["latest", "api", "token"] && (1..=21_600).contains(ttl_seconds) && given == [*ttl_seconds]
        }
        Route::RoleList => {
            is_read && matches!(segments[1..], ["meta-data", "iam", "security-credentials" | "security-credentials-extended"])
        }
        Route::Credentials { role, extended } => {
            let list = if *extended { "security-credentials-extended" } else { "security-credentials" };
            is_read && segments[1..4] == ["meta-data", "iam", list] && segments[4..].join("/") == *role && !role.is_empty()
        }
        Route::Versions => is_read && segments.is_empty(),
        Route::Metadata { path } => {
            let is_below_iam = segments[1..].starts_with(&["meta-data", "iam"]) && segments.len() > 3;
            let is_data = matches!(segments.get(1), None | Some(&"meta-data" | &"dynamic"));
            is_read && is_data && !is_below_iam && segments[1..].join("/") == *path
        }
        Route::InstanceProfile => is_read && segments[1..] == ["meta-data", "iam", "info"],
        _ => is_read,
    };
    assert!(is_right, "{method} {uri}: {route:?}");
    if !matches!(route, Route::NewToken { .. } | Route::Versions | Route::Unknown) {
        assert!(model::is_version(segments[0], "2026-02-28"), "{uri}: {route:?}");
    }
}

/// What a route depends on besides the head. It is always the same time.
fn context(hosts: &Hosts, body: Body) -> RouteContext<'_> {
    RouteContext { hosts, body, now: "2026-02-28T12:00:00Z".parse().unwrap() }
}

/// Neither bytes that the daemon did not issue nor a modified token are accepted.
pub(crate) fn token(data: &[u8]) {
    // These tokens are never issued: libFuzzer sees what is compared in this process, and would pass an issued token back.
    static NEVER_ISSUES: OnceLock<Tokens> = OnceLock::new();
    let never_issues = NEVER_ISSUES.get_or_init(|| Tokens::new(Clock::system()).unwrap());
    let (uid, ip) = (PodUid("uid-1".into()), IpAddr::from([10, 0, 0, 1]));
    assert!(!never_issues.is_valid(data, &uid, ip), "{data:?}");
    let tokens = Tokens::new(Clock::system()).unwrap();
    let real = tokens.issue(&uid, ip, Duration::from_secs(60));
    assert!(tokens.is_valid(real.as_bytes(), &uid, ip));
    assert!(!never_issues.is_valid(real.as_bytes(), &uid, ip), "a token of another key: {real}");
    let mut changed = real.clone().into_bytes();
    // Pairs of a position and a value that is added there. A position behind the end appends a byte.
    for pair in data.chunks_exact(2) {
        match changed.get_mut(usize::from(pair[0]) % (real.len() + 2)) {
            Some(byte) => *byte = byte.wrapping_add(pair[1]),
            None => changed.push(pair[1]),
        }
    }
    assert_eq!(tokens.is_valid(&changed, &uid, ip), changed == real.as_bytes(), "{changed:?} for {real}");
}

/// A request names the metadata service or the listener itself, in one of the forms that clients write, and nothing else.
pub(crate) fn host(value: &[u8]) {
    let Ok(value) = HeaderValue::from_bytes(value) else { return };
    let mut headers = HeaderMap::new();
    headers.insert(HOST, value.clone());
    let target = Uri::from_static("/latest/meta-data/iam/security-credentials/");
    for own in [None, Some(OWN)] {
        let hosts = Hosts { own: own.map(|own| own.parse().unwrap()) };
        let routed = route_of(&Method::GET, &target, Version::HTTP_11, &headers, context(&hosts, Body::Unread));
        let expected = model::is_host(value.as_bytes()) || own.is_some_and(|own| own.as_bytes() == value.as_bytes());
        assert_eq!(routed.is_ok(), expected, "{value:?}: {routed:?}");
    }
}
