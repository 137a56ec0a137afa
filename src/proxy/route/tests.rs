#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test says loudly what failed")]
use http::HeaderValue;
use proptest::prelude::*;

use super::Rejection::{ConnectionMethod, Forwarded, Host, Malformed, Method as OtherMethod, TokenVersion};
use super::*;

const TTL_HEADER: &str = "x-aws-ec2-metadata-token-ttl-seconds";
const HOST_HEADER: (&str, &str) = ("host", "169.254.169.254");

/// What a request leads to on a connection that was redirected.
fn routed(method: &str, target: &str, headers: &[(&str, &str)]) -> Result<Route, Rejection> {
    routed_as(method, target, Version::HTTP_11, headers, &Hosts::default())
}

/// The time at which all requests arrive.
fn now() -> Timestamp {
    "2026-02-28T23:59:59Z".parse().unwrap()
}

fn routed_as(method: &str, target: &str, version: Version, headers: &[(&str, &str)], hosts: &Hosts) -> Result<Route, Rejection> {
    routed_in(method, target, version, headers, RouteContext { hosts, body: Body::Unread, now: now() })
}

fn routed_in(
    method: &str,
    target: &str,
    version: Version,
    headers: &[(&str, &str)],
    context: RouteContext<'_>,
) -> Result<Route, Rejection> {
    let mut map = HeaderMap::new();
    for (name, value) in headers {
        // As from the wire: every byte that hyper lets through, one character for each.
        let bytes: Vec<u8> = value.chars().map(|c| u8::try_from(u32::from(c)).unwrap()).collect();
        map.append(HeaderName::from_bytes(name.as_bytes()).unwrap(), HeaderValue::from_bytes(&bytes).unwrap());
    }
    let uri = Uri::try_from(target).unwrap_or_else(|error| panic!("{target:?}: {error}"));
    route(&Method::from_bytes(method.as_bytes()).unwrap(), &uri, version, &map, context)
}

fn get(target: &str) -> Result<Route, Rejection> {
    routed("GET", target, &[HOST_HEADER])
}

fn credentials(role: &str) -> Result<Route, Rejection> {
    Ok(Route::Credentials { role: role.to_owned(), extended: false })
}

#[test]
fn what_sdks_ask_for_is_understood() {
    for (target, expected) in [
        ("/latest/meta-data/iam/security-credentials", Ok(Route::RoleList)),
        ("/latest/meta-data/iam/security-credentials/", Ok(Route::RoleList)),
        ("/latest/meta-data/iam/security-credentials/web", credentials("web")),
        ("/latest/meta-data/iam/security-credentials/web/", credentials("web")),
        ("/latest/meta-data/iam/security-credentials/w_e+b=1,.@-", credentials("w_e+b=1,.@-")),
        ("/latest/meta-data/iam/security-credentials/..a", credentials("..a")),
        ("/2021-03-23/meta-data/iam/security-credentials/web", credentials("web")),
        ("/1.0/meta-data/iam/security-credentials/", Ok(Route::RoleList)),
        ("/latest/meta-data/iam/info", Ok(Route::InstanceProfile)),
        ("/latest/meta-data/iam/info/", Ok(Route::InstanceProfile)),
        ("/latest/meta-data/iam/security-credentials/team/web", credentials("team/web")),
        ("/latest/meta-data/iam/security-credentials/team/a/web/", credentials("team/a/web")),
        (
            "/latest/meta-data/iam/security-credentials/arn:aws:iam::111122223333:role/team/web/",
            credentials("arn:aws:iam::111122223333:role/team/web"),
        ),
        ("//latest//meta-data///iam/security-credentials//web", credentials("web")),
        ("/latest/meta-data/iam/security-credentials/web?role=node", credentials("web")),
        ("/latest/meta-data/iam/security-credentials/?recursive=true", Ok(Route::RoleList)),
        ("/latest/meta-data/iam/security-credentials/?/../node", Ok(Route::RoleList)),
        ("http://169.254.169.254/latest/meta-data/iam/security-credentials/web", credentials("web")),
    ] {
        assert_eq!(get(target), expected, "GET {target}");
        assert_eq!(routed("HEAD", target, &[HOST_HEADER]), expected, "HEAD {target}");
    }
}

#[test]
fn every_date_from_the_first_version_to_today_is_a_version() {
    let own = ["2007-01-19", "2016-02-29", "2021-07-15", "2021-03-24", "2022-09-24", "2024-04-11", "2026-02-28"];
    for version in VERSIONS.into_iter().chain(own) {
        assert_eq!(get(&format!("/{version}/meta-data/iam/info")), Ok(Route::InstanceProfile), "{version}");
    }
    for other in [
        "Latest",
        "LATEST",
        "lates",
        "latest2",
        "latest~",
        "1",
        "1.00",
        "1.1",
        "v1",
        "meta-data",
        "*",
        "2026-03-01",
        "2099-01-01",
        "2007-01-18",
        "2006-12-31",
        "0000-01-01",
        "2021-02-29",
        "2021-00-10",
        "2021-13-01",
        "2021-01-00",
        "2021-01-32",
        "2021-1-1",
        "21-01-01",
        "02021-01-01",
        "2021-01-01-",
        "2021-01-1a",
        "2021-01-+1",
        "+021-01-01",
        "-2021-01-01",
        "2021-01-01T00:00:00Z",
        "2021/01/01",
        "20210101",
        "2021-01",
        "",
    ] {
        assert_ne!(get(&format!("/{other}/meta-data/iam/info")), Ok(Route::InstanceProfile), "{other}");
    }
    let at = |now: &str| {
        let context = RouteContext { hosts: &Hosts::default(), body: Body::Unread, now: now.parse().unwrap() };
        routed_in("GET", "/2026-03-01/meta-data/iam/info", Version::HTTP_11, &[HOST_HEADER], context)
    };
    assert_eq!(at("2026-02-28T23:59:59Z"), Ok(Route::Unknown));
    assert_eq!(at("2026-03-01T00:00:00Z"), Ok(Route::InstanceProfile));
}

#[test]
fn the_listed_versions_are_in_order_and_begin_with_the_first_date() {
    let dates: Vec<Date> = VERSIONS[1..VERSIONS.len() - 1].iter().map(|version| date(version).unwrap()).collect();
    assert!(dates.is_sorted() && dates[0] == FIRST_DATE);
    assert_eq!((VERSIONS[0], VERSIONS[VERSIONS.len() - 1]), ("1.0", "latest"));
}

#[test]
fn the_extended_document_is_asked_for_like_the_plain_one() {
    let extended = |role: &str| Ok(Route::Credentials { role: role.to_owned(), extended: true });
    for (target, expected) in [
        ("/latest/meta-data/iam/security-credentials-extended", Ok(Route::RoleList)),
        ("/latest/meta-data/iam/security-credentials-extended/", Ok(Route::RoleList)),
        ("/latest/meta-data/iam/security-credentials-extended/web", extended("web")),
        ("/latest/meta-data/iam/security-credentials-extended/web/", extended("web")),
        ("/latest/meta-data/iam/security-credentials-extended/web/more", extended("web/more")),
        ("/latest/meta-data/iam/security-credentials-extended2/web", Ok(Route::Unknown)),
    ] {
        assert_eq!(get(target), expected, "{target}");
    }
}

#[test]
fn metadata_is_a_path_to_look_up_and_no_more() {
    for (target, path) in [
        ("/latest", ""),
        ("/2021-03-23/", ""),
        ("/latest/meta-data/", "meta-data"),
        ("/latest/meta-data/iam/", "meta-data/iam"),
        ("/latest/dynamic", "dynamic"),
        ("/latest/dynamic/instance-identity/document", "dynamic/instance-identity/document"),
        ("/latest/meta-data/placement/availability-zone/", "meta-data/placement/availability-zone"),
        ("//1.0//meta-data//instance-id?x=/../y", "meta-data/instance-id"),
        // Nobody has these: case counts, and the node's are in no table.
        ("/latest/meta-data/IAM/info", "meta-data/IAM/info"),
        ("/latest/meta-data/identity-credentials/ec2/info", "meta-data/identity-credentials/ec2/info"),
    ] {
        assert_eq!(get(target), Ok(Route::Metadata { path: path.to_owned() }), "{target}");
    }
    assert_eq!(get("/"), Ok(Route::Versions));
    assert_eq!(get("//"), Ok(Route::Versions));
}

#[test]
fn everything_else_is_unknown() {
    for target in [
        "/latest/meta-data/iam/Security-Credentials/web",
        "/latest/META-DATA/iam/security-credentials/web",
        "/latest/meta-data/iam/info/more",
        "/latest/user-data",
        "/latest/latest/meta-data/iam/security-credentials/web",
        "/meta-data/iam/security-credentials/web",
        "/healthz",
        "/metrics",
        "/debug/store",
        "/latest/api",
        "/2021-03-23/api/token",
    ] {
        assert_eq!(get(target), Ok(Route::Unknown), "{target}");
    }
}

#[test]
fn a_path_with_anything_that_may_be_read_in_two_ways_is_malformed() {
    for strange in [
        "%77eb",
        "web%2f",
        "%2e%2e",
        "web%00",
        "web%",
        "web;a=b",
        "we\\b",
        "we\"b",
        "w{b",
        "w}b",
        "w|b",
        "w^b",
        "w`b",
        "..",
        ".",
        "../web",
        "./web",
        "a/../web",
        "web/.",
        "web/..",
        "w\u{e9}b",
        "\u{ff57}eb",
        "..?x",
    ] {
        let target = format!("/latest/meta-data/iam/security-credentials/{strange}");
        // Some of it hyper refuses already.
        if Uri::try_from(target.as_str()).is_ok() {
            assert_eq!(get(&target), Err(Malformed), "{target}");
        }
    }
    for target in ["/%6catest/meta-data/iam/info", "/latest/./meta-data/iam/info", "/../latest/meta-data/iam/info", "/."] {
        assert_eq!(get(target), Err(Malformed), "{target}");
    }
    assert_eq!(get("*"), Err(Malformed));
}

#[test]
fn a_target_has_2048_printable_characters_at_most() {
    let role = |length: usize| "r".repeat(length - "/latest/meta-data/iam/security-credentials/".len());
    let longest = format!("/latest/meta-data/iam/security-credentials/{}", role(2048));
    assert_eq!(get(&longest), credentials(&role(2048)));
    assert_eq!(get(&format!("{longest}r")), Err(Malformed));
    let with_query = format!("/latest/meta-data/iam/info?{}", "q".repeat(2048));
    assert_eq!(get(&with_query), Err(Malformed));
    let target = "/latest/meta-data/iam/info?\u{e9}";
    if Uri::try_from(target).is_ok() {
        assert_eq!(get(target), Err(Malformed), "a query is dropped, and its bytes are those of a target all the same");
    }
}

#[test]
fn only_reading_and_asking_for_a_token_are_methods() {
    let target = "/latest/meta-data/iam/security-credentials/web";
    for (method, expected) in [
        ("POST", OtherMethod),
        ("PUT", OtherMethod),
        ("DELETE", OtherMethod),
        ("PATCH", OtherMethod),
        ("PROPFIND", OtherMethod),
        ("get", OtherMethod),
        ("Get", OtherMethod),
        ("GETX", OtherMethod),
        ("PRI", OtherMethod),
        ("OPTIONS", ConnectionMethod),
        ("TRACE", ConnectionMethod),
        ("CONNECT", ConnectionMethod),
    ] {
        assert_eq!(routed(method, target, &[HOST_HEADER]), Err(expected), "{method}");
    }
    assert_eq!(routed("OPTIONS", "*", &[HOST_HEADER]), Err(ConnectionMethod));
    assert!(routed("CONNECT", "169.254.169.254:80", &[HOST_HEADER]).is_err());
    assert!(routed("GET", "169.254.169.254:80", &[HOST_HEADER]).is_err());
}

#[test]
fn a_token_is_put_for_at_one_path_with_one_life() {
    let put = |target: &str, ttl: &str| routed("PUT", target, &[HOST_HEADER, (TTL_HEADER, ttl), ("content-length", "0")]);
    for (ttl, seconds) in [("1", 1), ("60", 60), ("21600", 21_600), ("00060", 60)] {
        assert_eq!(put("/latest/api/token", ttl), Ok(Route::NewToken { ttl_seconds: seconds }), "{ttl}");
    }
    for ttl in [
        "",
        "0",
        "21601",
        "-1",
        "+60",
        "abc",
        "6h",
        "60.0",
        "1e3",
        "0x10",
        "60,60",
        "6 0",
        "000060",
        "99999999999999999999",
        "\u{b2}",
        "6\u{a0}",
    ] {
        assert_eq!(put("/latest/api/token", ttl), Err(Malformed), "{ttl:?}");
    }
    let ttl = (TTL_HEADER, "60");
    assert_eq!(routed("PUT", "/latest/api/token", &[HOST_HEADER]), Err(Malformed), "no life");
    assert_eq!(routed("PUT", "/latest/api/token", &[HOST_HEADER, ttl, ttl]), Err(Malformed), "two lives");
    for other in ["/latest/api/tokens", "/latest/api", "/latest/api/token/more", "/api/token", "/latest/Api/token", "/"] {
        assert_eq!(put(other, "60"), Err(OtherMethod), "{other}");
    }
    for other in ["/2021-03-23/api/token", "/1.0/api/token", "/Latest/api/token"] {
        assert_eq!(put(other, "60"), Err(TokenVersion), "{other}");
    }
    assert_eq!(put("/latest%252fapi/api/token", "60"), Err(Malformed));
    for method in ["GET", "HEAD", "POST"] {
        assert_eq!(routed(method, "/latest/api/token", &[HOST_HEADER, ttl]), Err(OtherMethod), "{method}");
    }
}

#[test]
fn a_request_has_no_body() {
    let target = "/latest/meta-data/iam/info";
    assert_eq!(routed("GET", target, &[HOST_HEADER, ("content-length", "0")]), Ok(Route::InstanceProfile));
    for headers in [
        &[("content-length", "1")][..],
        &[("content-length", "00")],
        &[("content-length", "+0")],
        &[("content-length", "-0")],
        &[("content-length", "")],
        &[("content-length", "0, 0")],
        &[("content-length", "0"), ("content-length", "0")],
        &[("content-length", "0"), ("content-length", "5")],
        &[("transfer-encoding", "chunked")],
        &[("transfer-encoding", "identity")],
        &[("transfer-encoding", "")],
        &[("content-length", "0"), ("transfer-encoding", "chunked")],
    ] {
        for method in ["GET", "PUT", "POST", "OPTIONS"] {
            assert_eq!(routed(method, target, &[&[HOST_HEADER], headers].concat()), Err(Malformed), "{method} {headers:?}");
        }
    }
}

#[test]
fn an_empty_chunked_body_is_the_only_one_and_only_for_a_token() {
    let (ttl, chunked) = ((TTL_HEADER, "60"), ("transfer-encoding", "chunked"));
    let with = |method: &str, target: &str, version: Version, headers: &[(&str, &str)], body: Body| {
        routed_in(method, target, version, headers, RouteContext { hosts: &Hosts::default(), body, now: now() })
    };
    let (token, good) = ("/latest/api/token", [HOST_HEADER, ttl, chunked]);
    let new = Ok(Route::NewToken { ttl_seconds: 60 });
    assert_eq!(with("PUT", token, Version::HTTP_11, &good, Body::EmptyChunked), new);
    assert_eq!(with("PUT", "//latest/api/token/", Version::HTTP_11, &good, Body::EmptyChunked), new);
    assert_eq!(with("PUT", token, Version::HTTP_11, &good, Body::Unread), Err(Malformed), "another body, or one that was not read");
    assert_eq!(with("PUT", token, Version::HTTP_10, &good, Body::EmptyChunked), Err(Malformed));
    assert_eq!(with("PUT", token, Version::HTTP_11, &[HOST_HEADER, chunked], Body::EmptyChunked), Err(Malformed), "no life");
    for (method, target) in [
        ("GET", token),
        ("POST", token),
        ("PUT", "/2021-03-23/api/token"),
        ("PUT", "/"),
        ("GET", "/latest/meta-data/iam/info"),
        ("OPTIONS", token),
    ] {
        assert_eq!(with(method, target, Version::HTTP_11, &good, Body::EmptyChunked), Err(Malformed), "{method} {target}");
    }
    for more in [&[chunked][..], &[("transfer-encoding", "identity")], &[("content-length", "0")], &[("content-length", "5")]] {
        assert_eq!(with("PUT", token, Version::HTTP_11, &[&good, more].concat(), Body::EmptyChunked), Err(Malformed), "{more:?}");
    }
    for encoding in ["Chunked", "chunked, chunked", "gzip, chunked", "chunked;a=b", "xchunked", "identity", ""] {
        let headers = [HOST_HEADER, ttl, ("transfer-encoding", encoding)];
        assert_eq!(with("PUT", token, Version::HTTP_11, &headers, Body::EmptyChunked), Err(Malformed), "{encoding:?}");
    }
}

#[test]
fn a_request_names_the_metadata_service_as_its_host_once() {
    let target = "/latest/meta-data/iam/info";
    for host in [
        "169.254.169.254",
        "169.254.169.254:80",
        "[fd00:ec2::254]",
        "[fd00:ec2::254]:80",
        "fd00:ec2::254",
        "instance-data",
        "instance-data:80",
        "instance-data.ec2.internal",
        "instance-data.ec2.internal:80",
    ] {
        assert_eq!(routed("GET", target, &[("host", host)]), Ok(Route::InstanceProfile), "{host}");
    }
    for host in [
        "",
        "evil.example",
        "localhost",
        "10.0.0.10",
        "10.0.0.10:8181",
        "127.0.0.1",
        "169.254.169.254:8080",
        "169.254.169.254:",
        "169.254.169.254.",
        "169.254.169.254.evil.example",
        "169.254.169.254@evil.example",
        "evil.example@169.254.169.254",
        "169.254.169.254, evil.example",
        "169.254.169.254/",
        "2852039166",
        "[fd00:ec2:0::254]",
        "[FD00:EC2::254]",
        "Instance-Data",
        "instance-data.",
        "instance-data:8080",
        "instance-data.evil.example",
        "instance-data.ec2.internal.evil.example",
        "evil.instance-data",
    ] {
        assert_eq!(routed("GET", target, &[("host", host)]), Err(Host), "{host:?}");
    }
    assert_eq!(routed("GET", target, &[]), Ok(Route::InstanceProfile), "no host: no browser sends that");
    assert_eq!(routed("GET", target, &[HOST_HEADER, HOST_HEADER]), Err(Malformed), "two hosts");
    assert_eq!(routed("GET", target, &[HOST_HEADER, ("host", "evil.example")]), Err(Malformed), "two hosts");
    assert_eq!(routed("GET", target, &[("host", "169.254.169.254\u{e9}")]), Err(Malformed), "a host that is no text");
}

#[test]
fn http_1_0_may_leave_the_host_out_and_may_not_name_another() {
    let with = |headers: &[(&str, &str)]| routed_as("GET", "/latest/meta-data/iam/info", Version::HTTP_10, headers, &Hosts::default());
    assert_eq!(with(&[]), Ok(Route::InstanceProfile));
    assert_eq!(with(&[HOST_HEADER]), Ok(Route::InstanceProfile));
    assert_eq!(with(&[("host", "evil.example")]), Err(Host));
    assert_eq!(with(&[HOST_HEADER, HOST_HEADER]), Err(Malformed));
}

#[test]
fn an_absolute_target_names_the_host_of_the_header_and_http() {
    let path = "/latest/meta-data/iam/info";
    for (authority, host, expected) in [
        ("http://169.254.169.254", "169.254.169.254", Ok(Route::InstanceProfile)),
        ("http://169.254.169.254:80", "169.254.169.254:80", Ok(Route::InstanceProfile)),
        ("http://[fd00:ec2::254]", "[fd00:ec2::254]", Ok(Route::InstanceProfile)),
        ("http://169.254.169.254:80", "169.254.169.254", Err(Malformed)),
        ("http://169.254.169.254", "[fd00:ec2::254]", Err(Malformed)),
        ("https://169.254.169.254", "169.254.169.254", Err(Malformed)),
        ("ftp://169.254.169.254", "169.254.169.254", Err(Malformed)),
        ("http://evil.example", "169.254.169.254", Err(Malformed)),
        ("http://user@169.254.169.254", "169.254.169.254", Err(Malformed)),
        ("http://169.254.169.254@evil.example", "169.254.169.254", Err(Malformed)),
        ("http://evil.example", "evil.example", Err(Host)),
        ("http://169.254.169.254", "evil.example", Err(Host)),
    ] {
        assert_eq!(routed("GET", &format!("{authority}{path}"), &[("host", host)]), expected, "{authority} {host}");
    }
    for version in [Version::HTTP_10, Version::HTTP_11] {
        let without_host = routed_as("GET", "http://169.254.169.254/latest/meta-data/iam/info", version, &[], &Hosts::default());
        assert_eq!(without_host, Err(Malformed));
    }
}

#[test]
fn the_ports_address_is_a_host_only_if_connections_need_no_redirect() {
    let target = "/latest/meta-data/iam/info";
    let direct = Hosts { own: Some("127.0.0.1:8181".parse().unwrap()) };
    let with = |host: &str, hosts: &Hosts| routed_as("GET", target, Version::HTTP_11, &[("host", host)], hosts);
    assert_eq!(with("127.0.0.1:8181", &direct), Ok(Route::InstanceProfile));
    assert_eq!(with("169.254.169.254", &direct), Ok(Route::InstanceProfile));
    assert_eq!(with("127.0.0.1:8182", &direct), Err(Host));
    assert_eq!(with("127.0.0.1:8181", &Hosts::default()), Err(Host));
}

#[test]
fn what_a_proxy_has_handled_gets_nothing() {
    for name in ["x-forwarded-for", "X-Forwarded-For", "forwarded"] {
        for value in ["10.0.0.1", ""] {
            for (method, target) in [("GET", "/latest/meta-data/iam/info"), ("PUT", "/latest/api/token"), ("GET", "/other")] {
                let headers = [HOST_HEADER, (name, value), (TTL_HEADER, "60")];
                assert_eq!(routed(method, target, &headers), Err(Forwarded), "{name}: {value}");
            }
        }
    }
}

#[test]
fn no_other_header_changes_what_is_asked_for() {
    let expected = credentials("web");
    for (name, value) in [
        ("x-real-ip", "10.0.0.2"),
        ("x-original-url", "/latest/meta-data/iam/security-credentials/node"),
        ("x-rewrite-url", "/latest/meta-data/iam/security-credentials/node"),
        ("x-http-method-override", "PUT"),
        ("x-forwarded-host", "evil.example"),
        ("connection", "x-aws-ec2-metadata-token"),
        ("upgrade", "h2c"),
        ("expect", "100-continue"),
        ("range", "bytes=0-0"),
    ] {
        let target = "/latest/meta-data/iam/security-credentials/web";
        assert_eq!(routed("GET", target, &[HOST_HEADER, (name, value)]), expected, "{name}");
    }
}

/// Everything that somebody may take a path for: decoded, in lower case, with backslashes for slashes, without dot
/// segments and doubled slashes; as often as it changes something.
fn readings(path: &str) -> Vec<String> {
    let mut readings = vec![path.to_owned()];
    let mut at = 0;
    while at < readings.len() && readings.len() < 64 {
        for reading in [decoded(&readings[at]), readings[at].to_lowercase(), readings[at].replace('\\', "/"), normalised(&readings[at])] {
            if !readings.contains(&reading) {
                readings.push(reading);
            }
        }
        at += 1;
    }
    readings
}

fn decoded(path: &str) -> String {
    let (bytes, mut out, mut at) = (path.as_bytes(), Vec::new(), 0);
    while at < bytes.len() {
        let hex = bytes.get(at + 1..at + 3).and_then(|hex| std::str::from_utf8(hex).ok()).and_then(|hex| u8::from_str_radix(hex, 16).ok());
        match (bytes[at], hex) {
            (b'%', Some(byte)) => {
                out.push(byte);
                at += 3;
            }
            (byte, _) => {
                out.push(byte);
                at += 1;
            }
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

fn normalised(path: &str) -> String {
    let mut segments: Vec<&str> = Vec::new();
    for segment in path.split('/') {
        match segment {
            "" | "." => {}
            ".." => drop(segments.pop()),
            segment => segments.push(segment),
        }
    }
    format!("/{}", segments.join("/"))
}

/// A path made of the pieces that bypasses are made of.
fn tricky_path() -> impl Strategy<Value = Vec<u8>> {
    let pieces = [
        "/latest",
        "/meta-data",
        "/iam",
        "/security-credentials",
        "/web",
        "/info",
        "/",
        "//",
        "/.",
        "/..",
        "/%2e%2e",
        "%2f",
        "%252f",
        "\\",
        ";",
        "?",
        "#",
        "%00",
        "/LATEST",
        "/1.0",
        "/api/token",
        "/user-data",
        "-extended",
        "\u{e9}",
        "*",
        "@",
        ":80",
        " ",
    ];
    let piece = prop_oneof![
        8 => prop::sample::select(pieces.to_vec()).prop_map(|piece| piece.as_bytes().to_vec()),
        1 => prop::collection::vec(any::<u8>(), 1..3),
    ];
    let tail = prop::collection::vec(piece, 0..8).prop_map(|pieces| pieces.concat());
    let head =
        prop::sample::select(vec!["", "/latest/meta-data/iam/security-credentials", "/latest/meta-data/iam/security-credentials/web"]);
    (head, tail).prop_map(|(head, tail)| [head.as_bytes(), &tail].concat())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn credentials_are_asked_for_by_a_path_that_has_one_reading(target in tricky_path()) {
        let Ok(uri) = Uri::try_from(target.as_slice()) else { return Ok(()) };
        let mut headers = HeaderMap::new();
        headers.insert(HOST, HeaderValue::from_static("169.254.169.254"));
        for method in [Method::GET, Method::HEAD, Method::PUT] {
            let context = RouteContext { hosts: &Hosts::default(), body: Body::Unread, now: now() };
            let routed = route(&method, &uri, Version::HTTP_11, &headers, context);
            let Ok(Route::Credentials { role, extended }) = routed else { continue };
            prop_assert!(method != Method::PUT);
            prop_assert!(!role.is_empty() && role.bytes().all(|byte| byte.is_ascii_graphic() && !b"%\\;?#".contains(&byte)), "{role}");
            // Whoever decodes, lowers or normalises the path finds the same one, but for case and doubled slashes.
            let plain = |path: &str| normalised(&path.to_lowercase());
            for reading in readings(uri.path()) {
                prop_assert_eq!(plain(&reading), plain(uri.path()), "{:?} read as {:?}", uri, reading);
            }
            let path = normalised(uri.path());
            let list = if extended { "security-credentials-extended" } else { "security-credentials" };
            let segments: Vec<&str> = role.split('/').collect();
            prop_assert!(!segments.iter().any(|segment| matches!(*segment, "" | "." | "..")), "{role}");
            let form = VERSIONS.iter().any(|version| path == format!("/{version}/meta-data/iam/{list}/{role}"));
            prop_assert!(form, "{path} has not the form of a path to credentials");
        }
    }

    #[test]
    fn no_target_and_no_header_makes_it_panic(
        method in "[A-Za-z]{1,8}",
        target in prop::collection::vec(0x21..0x7f_u8, 0..60),
        name in prop::sample::select(vec!["host", "content-length", "transfer-encoding", "x-aws-ec2-metadata-token-ttl-seconds"]),
        value in prop::collection::vec(any::<u8>(), 0..20),
    ) {
        let (Ok(method), Ok(uri), Ok(value)) =
            (Method::from_bytes(method.as_bytes()), Uri::try_from(target.as_slice()), HeaderValue::from_bytes(&value)) else { return Ok(()) };
        let mut headers = HeaderMap::new();
        headers.insert(HOST, HeaderValue::from_static("169.254.169.254"));
        headers.insert(name, value);
        for body in [Body::Unread, Body::EmptyChunked] {
            let context = RouteContext { hosts: &Hosts::default(), body, now: now() };
            let _ = route(&method, &uri, Version::HTTP_11, &headers, context);
        }
    }
}
