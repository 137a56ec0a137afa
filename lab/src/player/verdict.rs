//! Judges whether the answers are the expected ones.

use super::answer::Response;
use super::entry::{Entry, Expect};
use super::play::Transcript;

/// The prefixes of access key IDs: of users, and of sessions.
const ACCESS_KEY_PREFIXES: [&str; 2] = ["AKIA", "ASIA"];
/// The minimum number of characters after a prefix. Session tokens are base64 and may contain a prefix by chance.
const ACCESS_KEY_REST_MIN: usize = 12;
/// The maximum size of an error page, in bytes.
const DENIED_BODY_MAX: usize = 1024;
const TOKEN_TTL_HEADER: &str = "x-aws-ec2-metadata-token-ttl-seconds";

/// What the pod may see, and what it must never see.
#[derive(Debug, Clone, Default)]
pub struct Own {
    /// The name of the pod's role.
    pub role: String,
    /// The access key IDs of every session of that role that the pod may get.
    pub access_key_ids: Vec<String>,
    /// What no answer may contain: the node's role and secrets, other pods' roles. Empty strings are ignored.
    pub forbidden: Vec<String>,
}

/// Compares a transcript with an entry's outcomes. The verdict is on the last answer. No answer at all may contain another
/// role's credentials or anything forbidden, and there must not be too many answers.
///
/// A transcript cannot show whether the upstream received something that it should not have: for that, ask the fake IMDS.
///
/// # Errors
/// Why the verdict is negative, with the entry's ID and what came back.
pub fn judge(entry: &Entry, transcript: &Transcript, own: &Own) -> Result<(), String> {
    let whole = String::from_utf8_lossy(&transcript.raw).into_owned();
    let fail = |why: String| {
        let seen: String = whole.chars().take(600).collect();
        Err(format!("{} ({}): {why}; got {seen:?}", entry.id, entry.why))
    };
    for text in transcript.texts() {
        if let Some(forbidden) = own.forbidden.iter().find(|text_| !text_.is_empty() && text.contains(text_.as_str())) {
            return fail(format!("{forbidden:?} is in an answer"));
        }
        if let Some(stranger) = access_key_ids(&text).find(|id| !own.access_key_ids.iter().any(|own| own == id)) {
            return fail(format!("{stranger} is not a session of the pod's role"));
        }
    }
    if transcript.responses.len() > entry.max_responses {
        return fail(format!("{} answers, at most {} are right", transcript.responses.len(), entry.max_responses));
    }
    if !transcript.rest.is_empty() {
        return fail("what came is not all HTTP answers".to_owned());
    }
    let mut reasons = Vec::new();
    for expect in entry.right() {
        match outcome(expect, entry, transcript, own) {
            Ok(()) => return Ok(()),
            Err(reason) => reasons.push(format!("not {expect}: {reason}")),
        }
    }
    fail(reasons.join("; "))
}

impl Transcript {
    /// Returns the texts in which forbidden strings are searched: the raw bytes, and the bodies without the framing of chunks.
    fn texts(&self) -> impl Iterator<Item = String> {
        let bodies = self.responses.iter().map(|response| response.body.as_slice());
        std::iter::once(self.raw.as_slice()).chain(bodies).map(|bytes| String::from_utf8_lossy(bytes).into_owned())
    }
}

fn outcome(expect: Expect, entry: &Entry, transcript: &Transcript, own: &Own) -> Result<(), String> {
    let closed = transcript.closed || transcript.closed_after_our_end;
    let last = transcript.responses.last();
    // There are fewer answers than requests: an error ends a connection, and the request after it gets no answer.
    let cut_short = transcript.responses.len() < entry.max_responses && last.is_none_or(|last| last.status < 400);
    let Some(last) = last.filter(|_| !cut_short) else {
        return match (expect, closed) {
            (Expect::BadRequest, true) => Ok(()),
            (_, true) => Err("the connection was closed without an answer".to_owned()),
            (_, false) => Err("no answer, and the connection stayed open".to_owned()),
        };
    };
    match expect {
        Expect::CredentialsOfOwnRole => own_role(last, entry, own),
        Expect::Passthrough => passthrough(last, entry, own),
        Expect::Denied => denied(last, own),
        Expect::BadRequest if !matches!(last.status, 400 | 414 | 431) => Err(format!("status {}", last.status)),
        Expect::BadRequest => denied(last, own),
    }
}

fn own_role(response: &Response, entry: &Entry, own: &Own) -> Result<(), String> {
    if response.status != 200 {
        return Err(format!("status {}", response.status));
    }
    if own.role.is_empty() {
        return Err("the test has no role".to_owned());
    }
    if response.body.is_empty() && entry.raw_request.starts_with("HEAD ") {
        return Ok(());
    }
    if response.body == own.role.as_bytes() {
        return Ok(());
    }
    let Ok(document) = serde_json::from_slice::<serde_json::Value>(&response.body) else {
        return Err("the body is neither the role's name, and nothing else, nor a document".to_owned());
    };
    let field = |name: &str| document.get(name).and_then(serde_json::Value::as_str).unwrap_or_default();
    let session = own.access_key_ids.iter().any(|id| id == field("AccessKeyId"));
    let profile = field("InstanceProfileArn").rsplit('/').next() == Some(own.role.as_str());
    match field("Code") {
        "Success" if session || profile => Ok(()),
        "Success" => Err("the document is of no session of the pod's role".to_owned()),
        code => Err(format!("Code {code:?}")),
    }
}

fn passthrough(response: &Response, entry: &Entry, own: &Own) -> Result<(), String> {
    if response.status != 200 {
        return Err(format!("status {}", response.status));
    }
    if response.body.is_empty() && !entry.raw_request.starts_with("HEAD ") {
        return Err("the body is empty".to_owned());
    }
    if entry.raw_request.starts_with("PUT ") && response.header(TOKEN_TTL_HEADER).is_none() {
        return Err(format!("a token without {TOKEN_TTL_HEADER}"));
    }
    holds_data(response, own)
}

fn denied(response: &Response, own: &Own) -> Result<(), String> {
    if response.status < 400 {
        return Err(format!("status {}", response.status));
    }
    if response.body.len() > DENIED_BODY_MAX {
        return Err(format!("{} bytes of body", response.body.len()));
    }
    holds_data(response, own)
}

/// Returns an error if the body contains the pod's role or credentials.
fn holds_data(response: &Response, own: &Own) -> Result<(), String> {
    let text = response.text();
    if !own.role.is_empty() && text.contains(&own.role) {
        return Err("the role's name is in it".to_owned());
    }
    match access_key_ids(&text).next() {
        Some(id) => Err(format!("{id} is in it")),
        None => Ok(()),
    }
}

/// Returns everything that looks like an access key ID, and every value of an `AccessKeyId`.
fn access_key_ids(text: &str) -> impl Iterator<Item = &str> {
    let words = text.split(|c: char| !(c.is_ascii_alphanumeric() || "+/=_-".contains(c)));
    let by_look = words.filter(|word| {
        ACCESS_KEY_PREFIXES
            .iter()
            .filter_map(|prefix| word.strip_prefix(prefix))
            .any(|rest| rest.len() >= ACCESS_KEY_REST_MIN && rest.bytes().all(|b| b.is_ascii_uppercase() || b.is_ascii_digit()))
    });
    let by_name = text.split("\"AccessKeyId\"").skip(1).filter_map(|after| {
        let value = after.trim_start().strip_prefix(':')?.trim_start().strip_prefix('"')?;
        value.split('"').next()
    });
    by_look.chain(by_name)
}
