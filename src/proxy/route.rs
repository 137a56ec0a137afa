//! What a request asks for: a pure function of its method, target and headers.
//!
//! The strictness is deliberate. Proxies in front of the metadata service have been bypassed by encoded slashes, dot
//! segments, letter case, absolute targets, smuggled bodies and forged headers; whatever is not exactly a request that an
//! SDK sends is refused here, also where hyper accepts it. Nothing of a request ever travels on: a route is a value of
//! our own.

use http::header::{CONTENT_LENGTH, FORWARDED, HOST, TRANSFER_ENCODING};
use http::{HeaderMap, HeaderName, Method, Uri, Version};

/// Header of a PUT with the seconds that a token shall live.
pub const TOKEN_TTL: HeaderName = HeaderName::from_static("x-aws-ec2-metadata-token-ttl-seconds");
/// Header of a request with its token.
pub const TOKEN: HeaderName = HeaderName::from_static("x-aws-ec2-metadata-token");
const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");

/// The longest target, in bytes.
const MAX_TARGET: usize = 2048;
/// The longest life of a token, in seconds: 6 hours (EC2 user guide, "Use IMDSv2").
pub const MAX_TOKEN_TTL: u32 = 21_600;

/// The versions that the metadata service lists, in its order (EC2 user guide, "Instance metadata categories").
pub(super) const VERSIONS: [&str; 26] = [
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
    "latest",
];

/// What is asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Route {
    /// `PUT /latest/api/token`, with the seconds asked for.
    NewToken {
        /// 1 to 21600.
        ttl_seconds: u32,
    },
    /// `meta-data/iam/security-credentials/`, and the extended one.
    RoleList,
    /// `meta-data/iam/security-credentials/ROLE`
    Credentials {
        /// As the client wrote it.
        role: String,
        /// Below `security-credentials-extended/`: the document has the account, too.
        extended: bool,
    },
    /// `meta-data/iam/info`
    InstanceProfile,
    /// `/`
    Versions,
    /// Anything else of `meta-data` and `dynamic`, or a directory above them.
    Metadata {
        /// Below the version, without slashes at its ends.
        path: String,
    },
    /// Well-formed, and nothing that is served.
    Unknown,
}

/// Why a request is not looked at further.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rejection {
    /// Its framing, target or headers are not those of a metadata client. The connection ends: what follows on it cannot
    /// be trusted to begin where it seems to.
    Malformed,
    /// A proxy has handled it: as from the real service, such requests get nothing.
    Forwarded,
    /// Another host.
    Host,
    /// No such method here.
    Method,
    /// A method whose meaning is the connection's, not a resource's.
    ConnectionMethod,
    /// A token is to be had under `latest` only.
    TokenVersion,
}

impl Rejection {
    /// The stable name: a metric's label.
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

/// Who a client may say it is talking to.
#[derive(Clone, Debug, Default)]
pub struct Hosts {
    /// The address that the client really connected to, where connections need not be redirected.
    pub own: Option<std::net::SocketAddr>,
}

impl Hosts {
    fn allow(&self, host: &str) -> bool {
        // aws-c-auth writes the IPv6 address without brackets, Envoy the port.
        const ALWAYS: [&str; 5] = ["169.254.169.254", "169.254.169.254:80", "[fd00:ec2::254]", "[fd00:ec2::254]:80", "fd00:ec2::254"];
        ALWAYS.contains(&host) || self.own.is_some_and(|own| host == own.to_string())
    }
}

/// What a request asks for, or why it is not looked at.
pub fn route(method: &Method, uri: &Uri, version: Version, headers: &HeaderMap, hosts: &Hosts) -> Result<Route, Rejection> {
    check_framing(headers)?;
    check_host(uri, version, headers, hosts)?;
    if headers.contains_key(X_FORWARDED_FOR) || headers.contains_key(FORWARDED) {
        return Err(Rejection::Forwarded);
    }
    if [Method::CONNECT, Method::OPTIONS, Method::TRACE].contains(method) {
        return Err(Rejection::ConnectionMethod);
    }
    let segments = segments(uri)?;
    match (method, segments.as_slice()) {
        (&Method::GET | &Method::HEAD, ["latest", "api", "token"]) => Err(Rejection::Method),
        (&Method::GET | &Method::HEAD, segments) => Ok(data(segments)),
        (&Method::PUT, ["latest", "api", "token"]) => Ok(Route::NewToken { ttl_seconds: ttl(headers)? }),
        (&Method::PUT, [_, "api", "token"]) => Err(Rejection::TokenVersion),
        _ => Err(Rejection::Method),
    }
}

/// No request has a body here. A length of 0 is what some clients write for that.
fn check_framing(headers: &HeaderMap) -> Result<(), Rejection> {
    if headers.contains_key(TRANSFER_ENCODING) {
        return Err(Rejection::Malformed);
    }
    let mut lengths = headers.get_all(CONTENT_LENGTH).iter();
    match (lengths.next(), lengths.next()) {
        (None, _) => Ok(()),
        (Some(length), None) if length == "0" => Ok(()),
        _ => Err(Rejection::Malformed),
    }
}

/// One host, and one of those that the metadata service has: a page that was rebound to the metadata address names
/// another.
fn check_host(uri: &Uri, version: Version, headers: &HeaderMap, hosts: &Hosts) -> Result<(), Rejection> {
    let mut given = headers.get_all(HOST).iter();
    let host = match (given.next(), given.next()) {
        (Some(host), None) => Some(host.to_str().map_err(|_| Rejection::Malformed)?),
        (None, _) if version == Version::HTTP_10 => None,
        _ => return Err(Rejection::Malformed),
    };
    if host.is_some_and(|host| !hosts.allow(host)) {
        return Err(Rejection::Host);
    }
    match (uri.scheme_str(), uri.authority()) {
        (None, None) => Ok(()),
        (Some("http"), Some(authority)) if host == Some(authority.as_str()) => Ok(()),
        _ => Err(Rejection::Malformed),
    }
}

/// The path's segments, `//` taken as `/` and the query dropped.
fn segments(uri: &Uri) -> Result<Vec<&str>, Rejection> {
    let target = uri.path_and_query().ok_or(Rejection::Malformed)?.as_str();
    let path = uri.path();
    let strange = |byte: u8| br#"%\;"<>^`{|}#"#.contains(&byte);
    let printable = target.bytes().all(|byte| byte.is_ascii_graphic());
    if target.len() > MAX_TARGET || !printable || !path.starts_with('/') || path.bytes().any(strange) {
        return Err(Rejection::Malformed);
    }
    let segments: Vec<&str> = path.split('/').filter(|segment| !segment.is_empty()).collect();
    if segments.iter().any(|segment| matches!(*segment, "." | "..")) {
        return Err(Rejection::Malformed);
    }
    Ok(segments)
}

fn data(segments: &[&str]) -> Route {
    match segments {
        [version, rest @ ..] if VERSIONS.contains(version) => match rest {
            ["meta-data", "iam", "security-credentials" | "security-credentials-extended"] => Route::RoleList,
            ["meta-data", "iam", list @ ("security-credentials" | "security-credentials-extended"), role] => {
                Route::Credentials { role: (*role).to_owned(), extended: *list == "security-credentials-extended" }
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

/// The one TTL header: decimal digits, 1 to 21600.
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
