//! The service's answers: session tokens, listings, values and refusals.
//!
//! <https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/instancedata-data-retrieval.html> and
//! <https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/configuring-instance-metadata-service.html>.

use std::time::Duration;

use super::secrets::NODE_IMDS_TOKEN_MARKER;
use super::state::{ImdsRequest, Known};
use super::tree::{LATEST, VERSIONS};

const TOKEN_HEADER: &str = "x-aws-ec2-metadata-token";
const TTL_HEADER: &str = "x-aws-ec2-metadata-token-ttl-seconds";
/// The maximum lifetime of a session token, in seconds: six hours.
const LONGEST_TTL: u64 = 21_600;
/// An arbitrary date, no later than the instance's start.
const LAST_MODIFIED: &str = "Thu, 01 Jan 2026 00:00:00 GMT";

/// One answer, before it is written to the connection.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) status: u16,
    pub(super) content_type: &'static str,
    pub(super) headers: Vec<(&'static str, String)>,
    pub(super) body: String,
}

impl Answer {
    pub(super) fn empty(status: u16) -> Answer {
        Answer { status, content_type: "text/plain", headers: Vec::new(), body: String::new() }
    }

    /// Returns a refusal with the small page that the real service sends.
    pub(super) fn page(status: u16, title: &str) -> Answer {
        Answer {
            content_type: "text/html",
            body: format!(
                "<?xml version=\"1.0\" encoding=\"iso-8859-1\"?>\n\
                 <html xmlns=\"http://www.w3.org/1999/xhtml\" xml:lang=\"en\" lang=\"en\">\n \
                 <head>\n  <title>{status} - {title}</title>\n </head>\n \
                 <body>\n  <h1>{status} - {title}</h1>\n </body>\n</html>\n"
            ),
            ..Answer::empty(status)
        }
    }

    fn data(body: String) -> Answer {
        Answer {
            headers: vec![("Accept-Ranges", "bytes".to_owned()), ("Last-Modified", LAST_MODIFIED.to_owned())],
            body,
            ..Answer::empty(200)
        }
    }

    fn not_found() -> Answer {
        Answer::page(404, "Not Found")
    }
}

impl Known {
    pub(super) fn has_valid_token(&self, request: &ImdsRequest) -> bool {
        let token = request.header(TOKEN_HEADER);
        let ends = token.and_then(|token| self.tokens.get(token));
        ends.is_some_and(|ends| self.now() < *ends)
    }

    pub(super) fn answer(&mut self, request: &ImdsRequest) -> Answer {
        let segments = segments(&request.target);
        let path: Vec<&str> = segments.iter().map(String::as_str).collect();
        match request.method.as_str() {
            "PUT" => self.put(request, &path),
            "GET" | "HEAD" => self.get(request, &path),
            _ => Answer::page(405, "Method Not Allowed"),
        }
    }

    fn put(&mut self, request: &ImdsRequest, path: &[&str]) -> Answer {
        match path {
            [LATEST, "api", "token"] => {}
            [version, "api", "token"] if VERSIONS.contains(version) => {
                return Answer::page(403, "Forbidden");
            }
            _ => return Answer::page(405, "Method Not Allowed"),
        }
        // Misconfigured open proxies add this header.
        if request.header("x-forwarded-for").is_some() {
            return Answer::page(403, "Forbidden");
        }
        let ttl = request
            .header(TTL_HEADER)
            .filter(|ttl| ttl.bytes().all(|byte| byte.is_ascii_digit()))
            .and_then(|ttl| ttl.parse().ok())
            .filter(|ttl| (1..=LONGEST_TTL).contains(ttl));
        let Some(ttl) = ttl else {
            return Answer::page(400, "Bad Request");
        };
        self.tokens_issued += 1;
        let token = format!("{NODE_IMDS_TOKEN_MARKER}{:024}==", self.tokens_issued);
        let ends = self.now() + Duration::from_secs(ttl);
        self.tokens.insert(token.clone(), ends);
        Answer { headers: vec![("X-Aws-Ec2-Metadata-Token-Ttl-Seconds", ttl.to_string())], body: token, ..Answer::empty(200) }
    }

    fn get(&self, request: &ImdsRequest, path: &[&str]) -> Answer {
        // An invalid token is refused even if no token is required.
        let token_shown = request.header(TOKEN_HEADER).is_some();
        if !request.had_valid_token && (self.tokens_required || token_shown) {
            return Answer::page(401, "Unauthorized");
        }
        let Some((version, rest)) = path.split_first() else {
            return Answer::data(versions());
        };
        if *version != LATEST && !VERSIONS.contains(version) {
            return Answer::not_found();
        }
        if rest == ["api", "token"] {
            return Answer::page(405, "Method Not Allowed");
        }
        let path = rest.join("/");
        let found = self.tree.value(&path, self.now()).or_else(|| self.tree.listing(&path));
        let Some(body) = found else {
            return Answer::not_found();
        };
        let mut answer = Answer::data(body);
        if path == "user-data" {
            answer.content_type = "application/octet-stream";
        }
        answer
    }
}

fn versions() -> String {
    let mut lines = VERSIONS.to_vec();
    lines.push(LATEST);
    lines.join("\n")
}

/// Returns the path of a target, read as leniently as possible: without authority, query and fragment, decoded, and without
/// empty and dot segments.
fn segments(target: &str) -> Vec<String> {
    let path = match target.split_once("://") {
        Some((_, rest)) => rest.find('/').map_or("", |slash| &rest[slash..]),
        None => target,
    };
    let path = path.split(['?', '#']).next().unwrap_or_default();
    let path = decode(path);
    let mut segments: Vec<String> = Vec::new();
    for segment in path.split('/') {
        match segment {
            "" | "." => {}
            ".." => {
                segments.pop();
            }
            other => segments.push(other.to_owned()),
        }
    }
    segments
}

/// Percent-decodes what can be decoded, and leaves the rest.
fn decode(path: &str) -> String {
    let mut decoded = Vec::with_capacity(path.len());
    let mut rest = path.as_bytes();
    while let Some((&byte, after)) = rest.split_first() {
        let hex = after
            .get(..2)
            .filter(|hex| byte == b'%' && hex.iter().all(u8::is_ascii_hexdigit))
            .and_then(|hex| std::str::from_utf8(hex).ok())
            .and_then(|hex| u8::from_str_radix(hex, 16).ok());
        decoded.push(hex.unwrap_or(byte));
        rest = if hex.is_some() { &after[2..] } else { after };
    }
    String::from_utf8_lossy(&decoded).into_owned()
}
