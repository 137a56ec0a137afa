//! Tokens in compact form, from the text to the claims.

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jiff::{SignedDuration, Timestamp};
use serde::Deserialize;
use serde::de::IgnoredAny;

use super::bearer::BearerToken;
use super::claims::{Claims, UnprovenClaims};
use super::error::TokenError;
use super::json::is_strict_object;
use super::key::{Algorithm, MAX_KEY_ID, PublicKey};
use super::payload::Payload;

/// The longest header, in bytes of base64url text. A real one has about 100; a key ID of the maximum length fits.
const MAX_HEADER: usize = 2 << 10;
/// The longest payload, in bytes of base64url text. A real one has about 750.
const MAX_PAYLOAD: usize = 6 << 10;
/// The longest signature, in bytes of base64url text: that of an RSA key with 8,192 bits.
const MAX_SIGNATURE: usize = 1366;

/// How far the node's clock may be behind that of the control plane for a new token to be accepted. kube-apiserver allows the same.
///
/// There is no leeway when a token expires: the kubelet replaces a token when 80 % of its lifetime has passed, so a pod that reads its file
/// again never sends an expired one.
pub const LEEWAY: SignedDuration = SignedDuration::from_secs(60);

/// The issuer and audience that a token must have.
#[derive(Clone, Copy, Debug)]
pub struct Expected<'a> {
    /// The accepted issuers. `iss` must be equal to one of them, byte for byte.
    pub issuers: &'a [String],
    /// The audience that `aud` must contain.
    pub audience: &'a str,
}

/// A token whose format is valid, but whose signature has not been verified. Of its claims, it shows only [`UnprovenClaims`].
pub struct UnverifiedToken<'a> {
    /// Header and payload as they were signed.
    signed: &'a [u8],
    signature: Vec<u8>,
    algorithm: Algorithm,
    key_id: String,
    payload: Payload,
}

/// The members of the header that are used.
#[derive(Deserialize)]
struct Header {
    alg: String,
    kid: Option<String>,
    /// Whether the member is present, with any value.
    #[serde(default, deserialize_with = "present")]
    crit: bool,
}

fn present<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<bool, D::Error> {
    IgnoredAny::deserialize(deserializer).map(|_| true)
}

impl<'a> UnverifiedToken<'a> {
    /// Parses a token. Sizes are checked before anything is decoded.
    pub fn parse(token: &'a BearerToken) -> Result<Self, TokenError> {
        let text = token.text();
        let mut parts = text.split('.');
        let (Some(header), Some(payload), Some(signature), None) = (parts.next(), parts.next(), parts.next(), parts.next()) else {
            return Err(TokenError::NotCompact);
        };
        if header.len() > MAX_HEADER || payload.len() > MAX_PAYLOAD || signature.len() > MAX_SIGNATURE {
            return Err(TokenError::TooLarge);
        }
        let decoded = |part: &str| URL_SAFE_NO_PAD.decode(part).map_err(|_| TokenError::NotCompact);
        let signed = text.as_bytes().get(..header.len() + 1 + payload.len()).ok_or(TokenError::NotCompact)?;
        let (header, payload, signature) = (decoded(header)?, decoded(payload)?, decoded(signature)?);
        let (algorithm, key_id) = read_header(&header)?;
        if !is_strict_object(&payload) {
            return Err(TokenError::BadPayload);
        }
        let payload = serde_json::from_slice(&payload).map_err(|_| TokenError::BadPayload)?;
        Ok(Self { signed, signature, algorithm, key_id, payload })
    }

    /// Returns the ID of the key that the token names. It is not trusted: it is only compared with those of the issuer.
    pub fn key_id(&self) -> &str {
        &self.key_id
    }

    /// Returns what the token says of its pod. The signature is not verified, so this can only refuse a token.
    pub fn unproven(&self) -> Result<UnprovenClaims, TokenError> {
        self.payload.claims().map(UnprovenClaims::new)
    }

    /// Checks issuer, audience and time. The signature is not verified, so the result can only refuse a token.
    pub fn check(&self, expected: Expected<'_>, now: Timestamp) -> Result<(), TokenError> {
        if !expected.issuers.contains(&self.payload.iss) {
            return Err(TokenError::WrongIssuer);
        }
        if !self.payload.aud.contains(expected.audience) {
            return Err(TokenError::WrongAudience);
        }
        let period = self.payload.period()?;
        if period.expires <= now {
            return Err(TokenError::Expired);
        }
        let is_future = |time: Timestamp| time.duration_since(now) > LEEWAY;
        if is_future(period.not_before) || is_future(period.issued) {
            return Err(TokenError::NotYetValid);
        }
        Ok(())
    }

    /// Verifies the signature with the issuer's key of [`Self::key_id`], checks the token again, and returns its claims.
    pub fn verify(self, key: &PublicKey, expected: Expected<'_>, now: Timestamp) -> Result<Claims, TokenError> {
        if self.algorithm != key.algorithm() {
            return Err(TokenError::WrongAlgorithm);
        }
        if !key.has_signed(self.signed, &self.signature) {
            return Err(TokenError::BadSignature);
        }
        self.check(expected, now)?;
        self.payload.claims()
    }
}

fn read_header(header: &[u8]) -> Result<(Algorithm, String), TokenError> {
    if !is_strict_object(header) {
        return Err(TokenError::BadHeader);
    }
    let header: Header = serde_json::from_slice(header).map_err(|_| TokenError::BadHeader)?;
    if header.crit {
        return Err(TokenError::CriticalExtension);
    }
    let algorithm = Algorithm::named(&header.alg).ok_or(TokenError::UnsupportedAlgorithm)?;
    let key_id = header.kid.filter(|kid| (1..=MAX_KEY_ID).contains(&kid.len())).ok_or(TokenError::BadKeyId)?;
    Ok((algorithm, key_id))
}

impl fmt::Debug for UnverifiedToken<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("UnverifiedToken").field("algorithm", &self.algorithm).finish_non_exhaustive()
    }
}
