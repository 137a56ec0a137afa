//! Entries of a corpus.

use serde::Deserialize;

/// One or more raw requests on one connection, with their correct outcomes.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Entry {
    /// The entry's ID, unique in the corpus.
    pub id: String,
    /// The subject of the entry: `base`, `token`, `role`, `path`, `frame`, …
    pub category: String,
    /// The bytes to send, with placeholders. Each character is one byte (latin-1).
    pub raw_request: String,
    /// The best outcome.
    pub expect: Expect,
    /// Other outcomes that are safe.
    pub also_ok: Vec<Expect>,
    /// The setting of `--imds-tokens` that the entry applies to.
    pub mode: Mode,
    /// The maximum number of answers. More mean that other bytes were parsed as a request.
    pub max_responses: usize,
    /// What goes wrong if the entry fails.
    pub why: String,
    /// The source of this knowledge.
    pub evidence: String,
}

/// An outcome as the pod sees it. Of several answers on one connection, the last one counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Expect {
    /// 200, with the name or credentials of the pod's own role and nothing else.
    CredentialsOfOwnRole,
    /// An ordinary 200 with a token or allow-listed metadata.
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
    /// Either setting.
    Any,
    /// `optional`: IMDSv1 is served.
    V1,
    /// `required`: only IMDSv2 is served.
    V2,
}
