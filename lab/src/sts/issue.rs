//! The credentials that the fake STS issues: unique, reproducible, and recognizable as those of their role.

use jiff::{SignedDuration, Timestamp};

use super::model::{Caller, Identity, Issued, Token, account_of, partition_of, unique_id};
use super::signature::sha256;

/// The length of session tokens. Those of AWS have several hundred characters.
const TOKEN_LENGTH: usize = 480;

/// A new session: what the client gets, and what the service keeps to recognize it.
pub(super) struct Session {
    pub(super) issued: Issued,
    pub(super) caller: Caller,
}

impl Session {
    /// Creates session number `number` of this service.
    pub(super) fn new(role_arn: &str, session_name: &str, number: u64, now: Timestamp, lifetime: SignedDuration) -> Session {
        let name = role_arn.rsplit('/').next().unwrap_or_default();
        // STS uses whole seconds.
        let second = now.as_second().saturating_add(lifetime.as_secs());
        let expires_at = Timestamp::from_second(second).unwrap_or(Timestamp::MAX);
        let issued = Issued {
            access_key_id: access_key_id(name, number),
            secret_access_key: format!("lab/secret+{name}/{number:010}"),
            session_token: session_token(name, number),
            role_arn: role_arn.to_owned(),
            session_name: session_name.to_owned(),
            source_identity: None,
            tags: Vec::new(),
            expires_at,
        };
        let (partition, account) = (partition_of(role_arn), account_of(role_arn));
        let identity = Identity {
            arn: format!("arn:{partition}:sts::{account}:assumed-role/{name}/{session_name}"),
            role_arn: role_arn.to_owned(),
            user_id: format!("{}:{session_name}", unique_id("AROA", role_arn)),
            chained: true,
            source_identity: None,
            transitive_tags: Vec::new(),
        };
        let caller = Caller {
            secret: issued.secret_access_key.clone(),
            token: Token::Required(issued.session_token.clone()),
            identity,
            expires_at: Some(expires_at),
        };
        Session { issued, caller }
    }

    /// Sets the session's source identity.
    pub(super) fn identified(mut self, source_identity: Option<String>) -> Session {
        self.caller.identity.source_identity.clone_from(&source_identity);
        self.issued.source_identity = source_identity;
        self
    }

    /// Sets the session's tags, and those of them that sessions which it assumes inherit.
    pub(super) fn tagged(mut self, tags: Vec<(String, String)>, transitive: Vec<(String, String)>) -> Session {
        self.issued.tags = tags;
        self.caller.identity.transitive_tags = transitive;
        self
    }
}

/// Returns `ASIA`, eight letters of the role's name and eight digits.
fn access_key_id(role_name: &str, number: u64) -> String {
    let letters: String = role_name.chars().filter(char::is_ascii_alphanumeric).map(|letter| letter.to_ascii_uppercase()).take(8).collect();
    format!("ASIA{letters:X<8}{number:08}")
}

fn session_token(role_name: &str, number: u64) -> String {
    let mut token = format!("IQoJb3JpZ2luX2VjLAB//{role_name}/{number:010}+");
    while token.len() < TOKEN_LENGTH - 2 {
        token.push_str(&sha256(token.as_bytes()));
    }
    token.truncate(TOKEN_LENGTH - 2);
    token.push_str("==");
    token
}
