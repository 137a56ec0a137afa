//! The route of a request: a pure function of its method, target, headers and time.
//!
//! The strictness is deliberate. Proxies in front of the metadata service have been bypassed by encoded slashes, dot
//! segments, letter case, absolute targets, smuggled bodies and forged headers. A request is refused unless it has exactly
//! the form that clients send, even if hyper accepts it. Nothing of a request is ever passed on: a route is a value of this
//! module.

use http::header::{CONTENT_LENGTH, FORWARDED, HOST, TRANSFER_ENCODING};
use http::{HeaderMap, HeaderName, Method, Uri, Version};
use jiff::Timestamp;
use jiff::civil::Date;
use jiff::tz::TimeZone;

/// The header of a PUT with the lifetime of the token, in seconds.
pub const TOKEN_TTL: HeaderName = HeaderName::from_static("x-aws-ec2-metadata-token-ttl-seconds");
/// The header of a request with its token.
pub const TOKEN: HeaderName = HeaderName::from_static("x-aws-ec2-metadata-token");
const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");

/// The path of a request for a token.
const TOKEN_PATH: [&str; 3] = ["latest", "api", "token"];

/// The bytes that a path may have: printable ones, except those that proxies and servers read differently.
const OF_PATHS: [bool; 256] = {
    let strange = br#"%\;"<>^`{|}#"#;
    let mut table = [false; 256];
    let mut byte = 0;
    while byte < table.len() {
        table[byte] = (byte as u8).is_ascii_graphic();
        byte += 1;
    }
    let mut at = 0;
    while at < strange.len() {
        table[strange[at] as usize] = false;
        at += 1;
    }
    table
};

/// The longest target, in bytes.
const MAX_TARGET: usize = 2048;
/// The longest lifetime of a token, in seconds: 6 hours (EC2 user guide, "Use IMDSv2").
pub const MAX_TOKEN_TTL: u32 = 21_600;

/// The versions that the metadata service lists, in its order (EC2 user guide, "Instance metadata categories"). More are
/// served, see [`is_version`].
pub(super) const VERSIONS: [&str; 29] = [
    "1.0",
    "2007-01-19",
    "2007-03-01",
    "2007-08-29",
    "2007-10-10",
    "2007-12-15",
    "2008-02-01",
    "2008-09-01",
    "2009-04-04",
    "2011-01-01",
    "2011-05-01",
    "2012-01-12",
    "2014-02-25",
    "2014-11-05",
    "2015-10-20",
    "2016-04-19",
    "2016-06-30",
    "2016-09-02",
    "2018-03-28",
    "2018-08-17",
    "2018-09-24",
    "2019-10-01",
    "2020-10-27",
    "2021-01-03",
    "2021-03-23",
    "2021-07-15",
    "2022-09-24",
    "2024-04-11",
    "latest",
];

/// The first version that is a date.
const FIRST_DATE: Date = Date::constant(2007, 1, 19);

/// A request for a resource.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Route {
    /// `PUT /latest/api/token`, with the requested lifetime.
    NewToken {
        /// 1 to 21600.
        ttl_seconds: u32,
    },
    /// `meta-data/iam/security-credentials/`, or `meta-data/iam/security-credentials-extended/`.
    RoleList,
    /// `meta-data/iam/security-credentials/ROLE`
    Credentials {
        /// What the client wrote: a name, a path and a name, or an ARN. It may contain slashes.
        role: String,
        /// The path is below `security-credentials-extended/`, where the document also has the account.
        extended: bool,
    },
    /// `meta-data/iam/info`
    InstanceProfile,
    /// `/`
    Versions,
    /// Anything else of `meta-data` and `dynamic`, or a directory above them.
    Metadata {
        /// The path below the version, without slashes at its ends.
        path: String,
    },
    /// A well-formed request for something that is never served.
    Unknown,
}

/// The reason why a request is refused before anything is looked up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rejection {
    /// The framing, target or headers are not those of a metadata client. The connection ends, because the next request may
    /// not begin where it seems to.
    Malformed,
    /// The request went through a proxy. The real service refuses such requests as well.
    Forwarded,
    /// The request names another host.
    Host,
    /// The resource does not have this method.
    Method,
    /// The method is about the connection, not about a resource.
    ConnectionMethod,
    /// The request is for a token under a version other than `latest`.
    TokenVersion,
}

impl Rejection {
    /// Returns the stable name, which is a metric's label.
    pub fn name(self) -> &'static str {
        match self {
            Self::Malformed => "malformed",
            Self::Forwarded => "forwarded",
            Self::Host => "host",
            Self::Method | Self::ConnectionMethod => "method",
            Self::TokenVersion => "token-version",
        }
    }
}

/// The hosts that a request may name.
#[derive(Clone, Debug, Default)]
pub struct Hosts {
    /// The address that the client connected to, if connections need not be redirected.
    pub own: Option<std::net::SocketAddr>,
}

impl Hosts {
    fn allow(&self, host: &str) -> bool {
        // aws-c-auth writes the IPv6 address without brackets, Envoy the port. The names are those of the VPC's resolver.
        const ALWAYS: [&str; 9] = [
            "169.254.169.254",
            "169.254.169.254:80",
            "[fd00:ec2::254]",
            "[fd00:ec2::254]:80",
            "fd00:ec2::254",
            "instance-data",
            "instance-data:80",
            "instance-data.ec2.internal",
            "instance-data.ec2.internal:80",
        ];
        ALWAYS.contains(&host) || self.own.is_some_and(|own| host == own.to_string())
    }
}

/// What was read of a request's body.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Body {
    /// Nothing.
    #[default]
    Unread,
    /// All of it: an empty chunked body without extensions and trailers, and no other length was given.
    EmptyChunked,
}

/// What a route depends on besides the head of the request.
#[derive(Clone, Copy, Debug)]
pub struct RouteContext<'a> {
    /// The hosts that the request may name.
    pub hosts: &'a Hosts,
    /// What was read of the body.
    pub body: Body,
    /// The current time. Versions after today do not exist.
    pub now: Timestamp,
}

/// Returns what a request asks for, or why it is refused.
pub fn route(method: &Method, uri: &Uri, version: Version, headers: &HeaderMap, context: RouteContext<'_>) -> Result<Route, Rejection> {
    let RouteContext { hosts, body, now } = context;
    let has_good_body = body == Body::EmptyChunked && is_chunked_token_request(method, uri, version, headers);
    check_framing(headers, has_good_body)?;
    check_host(uri, headers, hosts)?;
    check_not_forwarded(headers)?;
    if [Method::CONNECT, Method::OPTIONS, Method::TRACE].contains(method) {
        return Err(Rejection::ConnectionMethod);
    }
    let segments = segments(uri)?;
    match (method, segments.as_slice()) {
        (&Method::GET | &Method::HEAD, ["latest", "api", "token"]) => Err(Rejection::Method),
        (&Method::GET | &Method::HEAD, segments) => Ok(data(segments, now)),
        (&Method::PUT, ["latest", "api", "token"]) => Ok(Route::NewToken { ttl_seconds: ttl(headers)? }),
        (&Method::PUT, [_, "api", "token"]) => Err(Rejection::TokenVersion),
        _ => Err(Rejection::Method),
    }
}

/// Whether a request is the only kind that may have a body, which must be empty and chunked: a PUT for a token. Some clients, such
/// as s3fs 1.91 and `curl -T`, send it like that, and EC2 answers with a token.
pub fn is_chunked_token_request(method: &Method, uri: &Uri, version: Version, headers: &HeaderMap) -> bool {
    let mut encodings = headers.get_all(TRANSFER_ENCODING).iter();
    let is_chunked = encodings.next().is_some_and(|encoding| encoding == "chunked") && encodings.next().is_none();
    let is_token_request = method == Method::PUT && segments(uri).is_ok_and(|segments| segments == TOKEN_PATH);
    is_chunked && is_token_request && version == Version::HTTP_11 && !headers.contains_key(CONTENT_LENGTH)
}

/// Checks that a request did not come through a proxy.
pub(super) fn check_not_forwarded(headers: &HeaderMap) -> Result<(), Rejection> {
    if headers.contains_key(X_FORWARDED_FOR) || headers.contains_key(FORWARDED) { Err(Rejection::Forwarded) } else { Ok(()) }
}

/// Checks that a request has no body, or one that was read and found empty. A length of 0 is how some clients say that there
/// is none.
pub(super) fn check_framing(headers: &HeaderMap, has_good_body: bool) -> Result<(), Rejection> {
    if headers.contains_key(TRANSFER_ENCODING) && !has_good_body {
        return Err(Rejection::Malformed);
    }
    let mut lengths = headers.get_all(CONTENT_LENGTH).iter();
    match (lengths.next(), lengths.next()) {
        (None, _) => Ok(()),
        (Some(length), None) if length == "0" => Ok(()),
        _ => Err(Rejection::Malformed),
    }
}

/// Checks that a request names the metadata service, or no host at all. A web page that was rebound to the metadata address names
/// its own host, because every browser sends one. The CRT of AWS from before June 2023 sends none.
fn check_host(uri: &Uri, headers: &HeaderMap, hosts: &Hosts) -> Result<(), Rejection> {
    let mut given = headers.get_all(HOST).iter();
    let host = match (given.next(), given.next()) {
        (Some(host), None) => Some(host.to_str().map_err(|_| Rejection::Malformed)?),
        (None, _) => None,
        (Some(_), Some(_)) => return Err(Rejection::Malformed),
    };
    if host.is_some_and(|host| !hosts.allow(host)) {
        return Err(Rejection::Host);
    }
    check_target(uri, host)
}

/// Checks that the target of a request is a path, or a URL of the host in its header.
pub(super) fn check_target(uri: &Uri, host: Option<&str>) -> Result<(), Rejection> {
    match (uri.scheme_str(), uri.authority()) {
        (None, None) => Ok(()),
        (Some("http"), Some(authority)) if host == Some(authority.as_str()) => Ok(()),
        _ => Err(Rejection::Malformed),
    }
}

/// Returns the segments of the path. `//` counts as `/`, and the query is dropped.
fn segments(uri: &Uri) -> Result<Vec<&str>, Rejection> {
    let target = uri.path_and_query().ok_or(Rejection::Malformed)?;
    let (path, query) = (target.path(), target.query().unwrap_or_default());
    let is_path = path.starts_with('/') && path.bytes().all(|byte| OF_PATHS[usize::from(byte)]);
    if target.as_str().len() > MAX_TARGET || !is_path || !query.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err(Rejection::Malformed);
    }
    // Six is the depth of credentials.
    let mut segments = Vec::with_capacity(6);
    segments.extend(path.split('/').filter(|segment| !segment.is_empty()));
    if segments.iter().any(|segment| matches!(*segment, "." | "..")) {
        return Err(Rejection::Malformed);
    }
    Ok(segments)
}

/// Whether this is a version of the metadata service: `latest`, `1.0`, or a date from the first version until today. The real
/// service has more dates than it lists, and adds some now and then.
fn is_version(text: &str, now: Timestamp) -> bool {
    matches!(text, "latest" | "1.0") || date(text).is_some_and(|date| (FIRST_DATE..=TimeZone::UTC.to_datetime(now).date()).contains(&date))
}

/// Parses a date of the form `YYYY-MM-DD`.
fn date(text: &str) -> Option<Date> {
    let number = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse::<i16>().ok()).flatten();
    let mut fields = text.splitn(3, '-').map(|field| (field.len(), number(field)));
    let (Some((4, Some(year))), Some((2, Some(month))), Some((2, Some(day)))) = (fields.next(), fields.next(), fields.next()) else {
        return None;
    };
    Date::new(year, month.try_into().ok()?, day.try_into().ok()?).ok()
}

fn data(segments: &[&str], now: Timestamp) -> Route {
    match segments {
        [version, rest @ ..] if is_version(version, now) => match rest {
            ["meta-data", "iam", "security-credentials" | "security-credentials-extended"] => Route::RoleList,
            ["meta-data", "iam", list @ ("security-credentials" | "security-credentials-extended"), role @ ..] => {
                Route::Credentials { role: role.join("/"), extended: *list == "security-credentials-extended" }
            }
            ["meta-data", "iam", "info"] => Route::InstanceProfile,
            ["meta-data", "iam", _, ..] => Route::Unknown,
            [] | ["meta-data" | "dynamic", ..] => Route::Metadata { path: rest.join("/") },
            _ => Route::Unknown,
        },
        [] => Route::Versions,
        _ => Route::Unknown,
    }
}

/// Returns the lifetime of the only TTL header, 1 to 21600 seconds in decimal digits.
fn ttl(headers: &HeaderMap) -> Result<u32, Rejection> {
    let mut given = headers.get_all(TOKEN_TTL).iter();
    let (Some(ttl), None) = (given.next(), given.next()) else {
        return Err(Rejection::Malformed);
    };
    let text = ttl.to_str().map_err(|_| Rejection::Malformed)?;
    if text.is_empty() || text.len() > 5 || !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(Rejection::Malformed);
    }
    let seconds = text.parse().map_err(|_| Rejection::Malformed)?;
    if (1..=MAX_TOKEN_TTL).contains(&seconds) { Ok(seconds) } else { Err(Rejection::Malformed) }
}

#[cfg(test)]
mod tests;
