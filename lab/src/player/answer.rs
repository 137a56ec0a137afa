//! Parses the answers in a stream of bytes.
//!
//! RFC 9112, read strictly: if the server under test answers in any other way, the test must notice it, not tolerate it.

/// One final answer. Interim answers (100 to 199, except 101) are skipped.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Response {
    /// The status code.
    pub status: u16,
    /// Header names as they were sent, and values, in order.
    pub headers: Vec<(String, String)>,
    /// The body, without the framing of chunks.
    pub body: Vec<u8>,
}

/// The result of parsing a piece of the stream.
enum Step {
    /// A complete answer and its length in bytes; `None` for an interim answer.
    Whole(Option<Response>, usize),
    /// An incomplete answer.
    Partial,
    /// Bytes that are not an HTTP answer.
    Wrong,
}

struct Head {
    status: u16,
    headers: Vec<(String, String)>,
    length: usize,
}

impl Response {
    /// Returns the first header of this name, ignoring case.
    pub fn header(&self, name: &str) -> Option<&str> {
        header(&self.headers, name)
    }

    /// The body as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
}

/// Returns the methods of the requests that were sent, as far as they can be separated. Only HEAD and CONNECT matter, because
/// their answers have no body. Bytes that are not a request end the list.
pub(super) fn methods(mut sent: &[u8]) -> Vec<String> {
    let mut methods = Vec::new();
    while let Some(end) = find(sent, b"\r\n\r\n") {
        let head = latin1(&sent[..end]);
        let mut lines = head.split("\r\n");
        let method = lines.next().and_then(|line| line.split(' ').next()).unwrap_or_default();
        methods.push(method.to_owned());
        let headers: Vec<_> = lines.filter_map(split_header).collect();
        let body = &sent[end + 4..];
        let length = if header(&headers, "transfer-encoding").is_some() {
            match dechunk(body) {
                Some(Some((_, length))) => length,
                _ => break,
            }
        } else {
            header(&headers, "content-length").and_then(|value| value.parse().ok()).unwrap_or(0)
        };
        match body.get(length..) {
            Some(rest) => sent = rest,
            None => break,
        }
    }
    methods
}

/// Returns the answers in what was received, and how many bytes they take. `closed` says that nothing more will arrive.
pub(super) fn responses(received: &[u8], methods: &[String], closed: bool) -> (Vec<Response>, usize) {
    let mut responses = Vec::new();
    let mut at = 0;
    while at < received.len() {
        let method = methods.get(responses.len()).map_or("GET", String::as_str);
        match next(&received[at..], method, closed) {
            Step::Whole(response, length) => {
                responses.extend(response);
                at += length;
            }
            Step::Partial | Step::Wrong => break,
        }
    }
    (responses, at)
}

fn next(bytes: &[u8], method: &str, closed: bool) -> Step {
    let Some(end) = find(bytes, b"\r\n\r\n") else {
        return Step::Partial;
    };
    let Some(Head { status, headers, length: head }) = parse_head(&bytes[..end]) else {
        return Step::Wrong;
    };
    let rest = &bytes[head..];
    let whole = |body: Vec<u8>, length: usize, headers| Step::Whole(Some(Response { status, headers, body }), head + length);
    let tunnel = status == 101 || (method == "CONNECT" && (200..300).contains(&status));
    if (100..200).contains(&status) && !tunnel {
        return Step::Whole(None, head);
    }
    if !tunnel && (method == "HEAD" || status == 204 || status == 304) {
        return whole(Vec::new(), 0, headers);
    }
    if !tunnel && let Some(coding) = header(&headers, "transfer-encoding") {
        if !coding.eq_ignore_ascii_case("chunked") || header(&headers, "content-length").is_some() {
            return Step::Wrong;
        }
        return match dechunk(rest) {
            Some(Some((body, length))) => whole(body, length, headers),
            Some(None) => Step::Partial,
            None => Step::Wrong,
        };
    }
    if !tunnel && header(&headers, "content-length").is_some() {
        let mut lengths = headers.iter().filter(|(name, _)| name.eq_ignore_ascii_case("content-length"));
        let length = lengths.next().and_then(|(_, value)| digits(value, 10));
        return match length {
            Some(_) if lengths.next().is_some() => Step::Wrong,
            Some(length) => match rest.get(..length) {
                Some(body) => whole(body.to_vec(), length, headers),
                None => Step::Partial,
            },
            None => Step::Wrong,
        };
    }
    if closed { whole(rest.to_vec(), rest.len(), headers) } else { Step::Partial }
}

fn parse_head(bytes: &[u8]) -> Option<Head> {
    let text = latin1(bytes);
    let mut lines = text.split("\r\n");
    let (version, status) = lines.next()?.split_once(' ')?;
    let (code, _reason) = status.split_once(' ').unwrap_or((status, ""));
    if !matches!(version, "HTTP/1.0" | "HTTP/1.1") || code.len() != 3 {
        return None;
    }
    let status = u16::try_from(digits(code, 10)?).ok().filter(|status| (100..600).contains(status))?;
    let headers = lines.map(split_header).collect::<Option<Vec<_>>>()?;
    Some(Head { status, headers, length: bytes.len() + 4 })
}

fn split_header(line: &str) -> Option<(String, String)> {
    let (name, value) = line.split_once(':')?;
    let is_token = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
    let valid = !name.is_empty() && name.bytes().all(is_token) && !value.contains(['\r', '\n', '\0']);
    valid.then(|| (name.to_owned(), value.trim_matches([' ', '\t']).to_owned()))
}

/// Returns a chunked body and its length as sent; `Some(None)` if it is incomplete, and `None` if it is not a chunked body.
#[allow(clippy::option_option, reason = "three cases for two callers in this file")]
fn dechunk(bytes: &[u8]) -> Option<Option<(Vec<u8>, usize)>> {
    let mut body = Vec::new();
    let mut at = 0;
    loop {
        let Some(end) = find(&bytes[at..], b"\r\n") else {
            return Some(None);
        };
        let line = latin1(&bytes[at..at + end]);
        let size = digits(line.split(';').next()?.trim_end(), 16)?;
        at += end + 2;
        if size == 0 {
            break;
        }
        let Some(chunk) = at.checked_add(size).and_then(|end| bytes.get(at..end)) else {
            return Some(None);
        };
        body.extend_from_slice(chunk);
        at += size;
        match bytes.get(at..at + 2) {
            Some(b"\r\n") => at += 2,
            Some(_) => return None,
            None => return Some(None),
        }
    }
    // Trailers, up to an empty line.
    loop {
        let Some(end) = find(&bytes[at..], b"\r\n") else {
            return Some(None);
        };
        at += end + 2;
        if end == 0 {
            return Some(Some((body, at)));
        }
    }
}

/// Parses a number that consists of digits only, without a sign or spaces.
fn digits(text: &str, radix: u32) -> Option<usize> {
    text.chars().all(|c| c.is_digit(radix)).then(|| usize::from_str_radix(text, radix).ok())?
}

fn header<'a>(headers: &'a [(String, String)], wanted: &str) -> Option<&'a str> {
    headers.iter().find(|(name, _)| name.eq_ignore_ascii_case(wanted)).map(|(_, value)| value.as_str())
}

fn latin1(bytes: &[u8]) -> String {
    bytes.iter().copied().map(char::from).collect()
}

fn find(haystack: &[u8], needle: &[u8]) -> Option<usize> {
    haystack.windows(needle.len()).position(|window| window == needle)
}
