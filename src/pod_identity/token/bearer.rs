//! The token as a client sends it.

use std::fmt;

use ring::digest::{SHA256, SHA256_OUTPUT_LEN, digest};
use secrecy::{ExposeSecret as _, SecretString};

use super::error::TokenError;

/// The longest token, in bytes. A real one has about 1,200. An RSA signature has 342, and names have at most 253 each.
pub const MAX_TOKEN: usize = 8 << 10;

/// The SHA-256 digest of a token.
pub(crate) type TokenDigest = [u8; SHA256_OUTPUT_LEN];

/// A token that has not been verified. Its `Debug` output is redacted, and its memory is wiped when it is dropped.
#[derive(Clone)]
pub struct BearerToken(SecretString);

impl BearerToken {
    /// Reads the value of a header. Only its size and its characters are checked.
    pub fn new(value: &[u8]) -> Result<Self, TokenError> {
        if value.len() > MAX_TOKEN {
            return Err(TokenError::TooLarge);
        }
        let allowed = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
        match std::str::from_utf8(value) {
            Ok(text) if !text.is_empty() && value.iter().all(allowed) => Ok(Self(text.into())),
            _ => Err(TokenError::NotCompact),
        }
    }

    /// Returns the SHA-256 digest of the token, by which caches know it.
    pub(crate) fn digest(&self) -> TokenDigest {
        let mut bytes = [0; SHA256_OUTPUT_LEN];
        bytes.copy_from_slice(digest(&SHA256, self.text().as_bytes()).as_ref());
        bytes
    }

    /// Returns the text of the token.
    pub(crate) fn text(&self) -> &str {
        self.0.expose_secret()
    }
}

impl fmt::Debug for BearerToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("BearerToken([redacted])")
    }
}
