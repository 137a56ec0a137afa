//! Public keys that verify signatures.
//!
//! kube-apiserver signs with RS256 if its key is RSA, and with ES256, ES384 or ES512 if it is on P-256, P-384 or P-521
//! (`pkg/serviceaccount/jwt.go`); external signers are limited to these as well. ring does not support P-521, so ES512 is not accepted.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ring::signature::{
    ECDSA_P256_SHA256_FIXED, ECDSA_P384_SHA384_FIXED, RSA_PKCS1_2048_8192_SHA256, RsaPublicKeyComponents, UnparsedPublicKey,
};
use serde::Deserialize;

/// The longest ID of a key, in bytes, as Kubernetes allows it for external signers. The IDs of Kubernetes itself have 43 bytes.
pub const MAX_KEY_ID: usize = 1024;
/// The smallest RSA key, in bits.
const MIN_RSA_BITS: usize = 2048;
/// The largest RSA key, in bits.
const MAX_RSA_BITS: usize = 8192;
/// The longest exponent of an RSA key, in bytes. It usually has three bytes. ring refuses values of 2^33 and above.
const MAX_EXPONENT: usize = 5;

/// A signature algorithm (RFC 7518, section 3.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Algorithm {
    /// RSASSA-PKCS1-v1_5 with SHA-256.
    Rs256,
    /// ECDSA on P-256 with SHA-256.
    Es256,
    /// ECDSA on P-384 with SHA-384.
    Es384,
}

impl Algorithm {
    /// Returns the algorithm of this name (`alg`), if rolegate accepts it.
    pub(super) fn named(name: &str) -> Option<Self> {
        [Self::Rs256, Self::Es256, Self::Es384].into_iter().find(|algorithm| algorithm.name() == name)
    }

    /// Returns the name (`alg`).
    pub fn name(self) -> &'static str {
        match self {
            Self::Rs256 => "RS256",
            Self::Es256 => "ES256",
            Self::Es384 => "ES384",
        }
    }
}

/// A public key for one algorithm.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PublicKey(Material);

#[derive(Clone, Debug, PartialEq, Eq)]
enum Material {
    Rsa {
        modulus: Vec<u8>,
        exponent: Vec<u8>,
    },
    /// Uncompressed points (SEC 1, section 2.3.3).
    P256(Vec<u8>),
    P384(Vec<u8>),
}

/// The members of a JSON Web Key (RFC 7517) that are used.
#[derive(Deserialize)]
pub(crate) struct Jwk {
    kty: String,
    kid: Option<String>,
    alg: Option<String>,
    r#use: Option<String>,
    crv: Option<String>,
    n: Option<String>,
    e: Option<String>,
    x: Option<String>,
    y: Option<String>,
}

/// The reason why a key of the issuer is not used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum UnusableKey {
    /// It has no ID, or one that is too long.
    #[error("it has no valid key ID")]
    NoId,
    /// It is not for signatures.
    #[error("it is not for signatures")]
    OtherUse,
    /// Its type, curve or algorithm is one that rolegate does not support.
    #[error("its type or algorithm is not supported")]
    Unsupported,
    /// It is an RSA key with fewer than 2048 bits, or more than 8192.
    #[error("it is an RSA key of an unsupported size")]
    RsaSize,
    /// It is malformed.
    #[error("it is malformed")]
    Malformed,
    /// Two different keys have its ID.
    #[error("two different keys have its ID")]
    Ambiguous,
}

impl Jwk {
    /// Returns the ID and the key.
    pub(crate) fn read(self) -> Result<(String, PublicKey), UnusableKey> {
        let (kid, used_for, algorithm) = (self.kid.clone(), self.r#use.clone(), self.alg.clone());
        let kid = kid.filter(|kid| (1..=MAX_KEY_ID).contains(&kid.len())).ok_or(UnusableKey::NoId)?;
        if used_for.is_some_and(|purpose| purpose != "sig") {
            return Err(UnusableKey::OtherUse);
        }
        let key = self.key()?;
        match algorithm {
            Some(name) if name != key.algorithm().name() => Err(UnusableKey::Unsupported),
            _ => Ok((kid, key)),
        }
    }

    fn key(self) -> Result<PublicKey, UnusableKey> {
        match (self.kty.as_str(), self.crv.as_deref()) {
            ("RSA", _) => rsa(self.n.as_deref(), self.e.as_deref()),
            ("EC", Some("P-256")) => Ok(PublicKey(Material::P256(point(32, self.x.as_deref(), self.y.as_deref())?))),
            ("EC", Some("P-384")) => Ok(PublicKey(Material::P384(point(48, self.x.as_deref(), self.y.as_deref())?))),
            _ => Err(UnusableKey::Unsupported),
        }
    }
}

fn rsa(modulus: Option<&str>, exponent: Option<&str>) -> Result<PublicKey, UnusableKey> {
    let (modulus, exponent) = (number(modulus)?, number(exponent)?);
    let bits = modulus.len() * 8 - modulus.first().map_or(0, |byte| byte.leading_zeros() as usize);
    if !(MIN_RSA_BITS..=MAX_RSA_BITS).contains(&bits) {
        return Err(UnusableKey::RsaSize);
    }
    let is_odd = exponent.last().is_some_and(|byte| byte % 2 == 1);
    if exponent.len() > MAX_EXPONENT || !is_odd || exponent == [1] {
        return Err(UnusableKey::Malformed);
    }
    Ok(PublicKey(Material::Rsa { modulus, exponent }))
}

/// Reads a positive number in its shortest form (RFC 7518, section 6.3.1).
fn number(text: Option<&str>) -> Result<Vec<u8>, UnusableKey> {
    let bytes = decoded(text)?;
    if matches!(bytes.first(), None | Some(0)) { Err(UnusableKey::Malformed) } else { Ok(bytes) }
}

/// Reads a point, each of whose coordinates has this number of bytes (RFC 7518, section 6.2.1). ring checks that it is on the curve.
fn point(length: usize, x: Option<&str>, y: Option<&str>) -> Result<Vec<u8>, UnusableKey> {
    let (x, y) = (decoded(x)?, decoded(y)?);
    if x.len() != length || y.len() != length {
        return Err(UnusableKey::Malformed);
    }
    Ok([&[4], &*x, &*y].concat())
}

fn decoded(text: Option<&str>) -> Result<Vec<u8>, UnusableKey> {
    URL_SAFE_NO_PAD.decode(text.unwrap_or_default()).map_err(|_| UnusableKey::Malformed)
}

impl PublicKey {
    /// Returns the only algorithm that the key is used with.
    pub fn algorithm(&self) -> Algorithm {
        match self.0 {
            Material::Rsa { .. } => Algorithm::Rs256,
            Material::P256(_) => Algorithm::Es256,
            Material::P384(_) => Algorithm::Es384,
        }
    }

    /// Returns whether the key signed this message.
    pub(super) fn has_signed(&self, message: &[u8], signature: &[u8]) -> bool {
        let verified = match &self.0 {
            Material::Rsa { modulus: n, exponent: e } => {
                RsaPublicKeyComponents { n, e }.verify(&RSA_PKCS1_2048_8192_SHA256, message, signature)
            }
            Material::P256(point) => UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, point).verify(message, signature),
            Material::P384(point) => UnparsedPublicKey::new(&ECDSA_P384_SHA384_FIXED, point).verify(message, signature),
        };
        verified.is_ok()
    }
}
