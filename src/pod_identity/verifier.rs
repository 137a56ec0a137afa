//! Verifies tokens with the issuer's current keys, and remembers those that are valid.
//!
//! A token that was verified before costs one hash. It is looked up by its SHA-256 digest, so the cache contains no tokens. It stays valid
//! until it expires, or until its key or its issuer changes. Refused tokens are not remembered, because they cost only the time of
//! their own request.

use std::sync::Arc;
use std::time::Duration;

use moka::future::Cache;
use ring::digest::{SHA256, SHA256_OUTPUT_LEN, digest};

use super::keys::{IssuerKeys, TrustedIssuer};
use super::token::{BearerToken, Claims, Expected, TokenError, UnverifiedToken};
use crate::clock::Clock;

/// The audience of tokens for EKS Pod Identity.
pub const AUDIENCE: &str = "pods.eks.amazonaws.com";
/// The most tokens that are remembered. A node has fewer pods, and each pod has one token, or two while it is replaced.
const MAX_REMEMBERED: u64 = 4096;
/// How long an unused token is remembered. SDKs send a request at least once an hour.
const MAX_IDLE: Duration = Duration::from_secs(2 * 60 * 60);

type TokenDigest = [u8; SHA256_OUTPUT_LEN];

/// Verifies tokens; cheap to clone.
#[derive(Clone, Debug)]
pub struct Verifier {
    keys: IssuerKeys,
    audience: Arc<str>,
    clock: Clock,
    verified: Cache<TokenDigest, Arc<VerifiedToken>>,
}

#[derive(Debug)]
struct VerifiedToken {
    claims: Arc<Claims>,
    key_id: String,
    /// What the token was verified with.
    trusted: Arc<TrustedIssuer>,
}

impl Verifier {
    /// Creates a verifier of tokens for this audience, which is usually [`AUDIENCE`].
    pub fn new(keys: IssuerKeys, audience: &str, clock: Clock) -> Self {
        let verified = Cache::builder().max_capacity(MAX_REMEMBERED).time_to_idle(MAX_IDLE).build();
        Self { keys, audience: audience.into(), clock, verified }
    }

    /// Returns the claims of a valid token. Waits for at most [`super::keys::PATIENCE`], if no keys are known yet, or if the token names
    /// an unknown one.
    pub async fn verify(&self, token: &BearerToken) -> Result<Arc<Claims>, TokenError> {
        let digest = digest_of(token);
        if let Some(claims) = self.remembered(&digest).await? {
            return Ok(claims);
        }
        let unverified = UnverifiedToken::parse(token)?;
        // Checked before an unknown key causes a fetch.
        let trusted = self.keys.any().await?;
        unverified.check(self.expected(&trusted), self.clock.now())?;
        let key_id = unverified.key_id().to_owned();
        let trusted = self.keys.with_key(&key_id).await?;
        let key = trusted.keys.get(&key_id).ok_or(TokenError::UnknownKey)?;
        let claims = Arc::new(unverified.verify(key, self.expected(&trusted), self.clock.now())?);
        let verified = Arc::new(VerifiedToken { claims: Arc::clone(&claims), key_id, trusted });
        self.verified.insert(digest, verified).await;
        Ok(claims)
    }

    /// Returns the keys that the verifier uses.
    pub fn keys(&self) -> &IssuerKeys {
        &self.keys
    }

    fn expected<'a>(&'a self, trusted: &'a TrustedIssuer) -> Expected<'a> {
        Expected { issuers: &trusted.issuers, audience: &self.audience }
    }

    async fn remembered(&self, digest: &TokenDigest) -> Result<Option<Arc<Claims>>, TokenError> {
        let Some(verified) = self.verified.get(digest).await else { return Ok(None) };
        if verified.claims.expires <= self.clock.now() {
            self.verified.invalidate(digest).await;
            return Err(TokenError::Expired);
        }
        let is_still_trusted = self.keys.known().is_some_and(|known| verified.is_trusted_by(&known));
        if !is_still_trusted {
            self.verified.invalidate(digest).await;
            return Ok(None);
        }
        Ok(Some(Arc::clone(&verified.claims)))
    }
}

impl VerifiedToken {
    /// Returns whether the issuer and the key of the token are still those with which it was verified.
    fn is_trusted_by(&self, known: &Arc<TrustedIssuer>) -> bool {
        let is_same_key = || {
            let key = self.trusted.keys.get(&self.key_id);
            key.is_some() && key == known.keys.get(&self.key_id)
        };
        Arc::ptr_eq(&self.trusted, known) || self.trusted.issuers == known.issuers && is_same_key()
    }
}

fn digest_of(token: &BearerToken) -> TokenDigest {
    let mut bytes = [0; SHA256_OUTPUT_LEN];
    bytes.copy_from_slice(digest(&SHA256, token.text().as_bytes()).as_ref());
    bytes
}

#[cfg(test)]
mod tests;
