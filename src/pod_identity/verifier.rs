//! Verifies tokens with the issuer's current keys, and remembers those that are valid.
//!
//! A token that was verified before costs one hash. It is looked up by its SHA-256 digest, so the cache contains no tokens. It stays valid
//! until it expires, or until its key or its issuer changes. Refused tokens are not remembered, because they cost only the time of
//! their own request.

use std::sync::Arc;

use moka::future::Cache;

use super::keys::{IssuerKeys, KeyRequester, TrustedIssuer};
use super::token::{BearerToken, Claims, Expected, TokenDigest, TokenError, UnprovenClaims, UnverifiedToken};
use super::token_cache::token_cache;
use crate::clock::Clock;

/// Verifies tokens; cheap to clone.
#[derive(Clone, Debug)]
pub struct Verifier {
    keys: IssuerKeys,
    audience: Arc<str>,
    clock: Clock,
    verified: Cache<TokenDigest, Arc<VerifiedToken>>,
}

/// A token, as far as the keys that are known can verify it.
#[derive(Debug)]
pub enum Examined<'a> {
    /// The token is valid.
    Valid(Arc<Claims>),
    /// The token names a key that is not known.
    UnknownKey(Box<TokenOfUnknownKey<'a>>),
}

/// A token that names a key that is not known. Issuer, audience and time are as expected.
#[derive(Debug)]
pub struct TokenOfUnknownKey<'a> {
    verifier: &'a Verifier,
    digest: TokenDigest,
    token: UnverifiedToken<'a>,
    claimed: UnprovenClaims,
}

#[derive(Debug)]
struct VerifiedToken {
    claims: Arc<Claims>,
    key_id: String,
    /// What the token was verified with.
    trusted: Arc<TrustedIssuer>,
}

impl Verifier {
    /// Creates a verifier of tokens for this audience, such as the default of `--pod-identity-audience`.
    pub fn new(keys: IssuerKeys, audience: &str, clock: Clock) -> Self {
        Self { keys, audience: audience.into(), clock, verified: token_cache() }
    }

    /// Verifies a token with the keys that are known. Causes no fetch of keys. If no keys are known yet, waits for at most
    /// [`super::keys::PATIENCE`].
    pub async fn examine<'a>(&'a self, token: &'a BearerToken) -> Result<Examined<'a>, TokenError> {
        let digest = token.digest();
        if let Some(claims) = self.remembered(&digest).await? {
            return Ok(Examined::Valid(claims));
        }
        let token = UnverifiedToken::parse(token)?;
        let trusted = self.keys.any().await?;
        token.check(self.expected(&trusted), self.clock.now())?;
        if trusted.keys.get(token.key_id()).is_some() {
            return self.finish(digest, token, trusted).await.map(Examined::Valid);
        }
        let claimed = token.unproven()?;
        Ok(Examined::UnknownKey(Box::new(TokenOfUnknownKey { verifier: self, digest, token, claimed })))
    }

    async fn finish(
        &self,
        digest: TokenDigest,
        token: UnverifiedToken<'_>,
        trusted: Arc<TrustedIssuer>,
    ) -> Result<Arc<Claims>, TokenError> {
        let key_id = token.key_id().to_owned();
        let key = trusted.keys.get(&key_id).ok_or(TokenError::UnknownKey)?;
        let claims = Arc::new(token.verify(key, self.expected(&trusted), self.clock.now())?);
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

impl TokenOfUnknownKey<'_> {
    /// Returns what the token says, which is not proven.
    pub fn claimed(&self) -> &UnprovenClaims {
        &self.claimed
    }

    /// Returns the claims of the token if it is valid with newer keys. The fetch counts for the requester: the pod that sent the token, and
    /// that the token names. Waits for at most [`super::keys::PATIENCE`].
    pub async fn verify(self, requester: &KeyRequester) -> Result<Arc<Claims>, TokenError> {
        let Self { verifier, digest, token, .. } = self;
        let trusted = verifier.keys.with_key(token.key_id(), requester).await?;
        verifier.finish(digest, token, trusted).await
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

#[cfg(test)]
mod tests;
