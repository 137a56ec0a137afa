//! Entries of a corpus.

use serde::Deserialize;

/// One raw request, or several on one connection, with the outcomes that are right.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Entry {
    /// Unique in the corpus.
    pub id: String,
    /// What the entry is about: `base`, `token`, `role`, `path`, `frame`, …
    pub category: String,
    /// The bytes, with placeholders; each character is one byte (latin-1).
    pub raw_request: String,
    /// The best outcome.
    pub expect: Expect,
    /// Other outcomes that are safe.
    pub also_ok: Vec<Expect>,
    /// Under which setting of `--imds-tokens` it holds.
    pub mode: Mode,
    /// More answers than this mean that bytes were taken for a request that are none.
    pub max_responses: usize,
    /// What goes wrong where it fails.
    pub why: String,
    /// Where that is known from.
    pub evidence: String,
}

/// An outcome, as seen by the pod. Of several answers on one connection, the last one counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Expect {
    /// 200, and nothing but the own role's name or credentials.
    CredentialsOfOwnRole,
    /// A normal 200: a token was issued, or it is allow-listed metadata.
    Passthrough,
    /// 4xx or 5xx, without data.
    Denied,
    /// 400, 414 or 431 without data, or the connection is closed without an answer.
    BadRequest,
}

/// The setting of `--imds-tokens` that an entry is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// Either.
    Any,
    /// `optional`: IMDSv1 is served.
    V1,
    /// `required`: only IMDSv2 is.
    V2,
}
