//! Keys that sign tokens.

use std::fmt;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ring::digest::{SHA256, digest};
use ring::rand::SystemRandom;
use ring::rsa::PublicKeyComponents;
use ring::signature::{
    ECDSA_P256_SHA256_FIXED, ECDSA_P256_SHA256_FIXED_SIGNING, ECDSA_P384_SHA384_FIXED, ECDSA_P384_SHA384_FIXED_SIGNING, EcdsaKeyPair,
    EcdsaSigningAlgorithm, KeyPair as _, RSA_PKCS1_2048_8192_SHA256, RSA_PKCS1_SHA256, RsaKeyPair, UnparsedPublicKey,
    VerificationAlgorithm,
};
use serde_json::{Value, json};

/// RSA keys for tests, 2048 bits, in PKCS #8: ring cannot generate any. They are in a public repository, and protect nothing.
const RSA: [&[u8]; 2] = [include_bytes!("test-only-rsa-1.pk8"), include_bytes!("test-only-rsa-2.pk8")];

/// A key that signs tokens; cheap to clone.
#[derive(Clone)]
pub struct SigningKey {
    id: String,
    pair: Arc<Pair>,
}

enum Pair {
    Rsa(RsaKeyPair),
    P256(EcdsaKeyPair),
    P384(EcdsaKeyPair),
}

#[allow(clippy::expect_used, reason = "the lab cannot go on without randomness, or with test keys that are broken")]
impl SigningKey {
    /// Returns the first RSA key, which signs with RS256. It is always the same.
    #[must_use]
    pub fn rs256() -> SigningKey {
        SigningKey::rsa(RSA[0])
    }

    /// Returns the second RSA key.
    #[must_use]
    pub fn other_rs256() -> SigningKey {
        SigningKey::rsa(RSA[1])
    }

    /// Generates a key on P-256, which signs with ES256.
    #[must_use]
    pub fn es256() -> SigningKey {
        SigningKey::of(Pair::P256(generated(&ECDSA_P256_SHA256_FIXED_SIGNING)))
    }

    /// Generates a key on P-384, which signs with ES384.
    #[must_use]
    pub fn es384() -> SigningKey {
        SigningKey::of(Pair::P384(generated(&ECDSA_P384_SHA384_FIXED_SIGNING)))
    }

    fn rsa(pkcs8: &[u8]) -> SigningKey {
        SigningKey::of(Pair::Rsa(RsaKeyPair::from_pkcs8(pkcs8).expect("a test key")))
    }

    fn of(pair: Pair) -> SigningKey {
        // The API server hashes the key, too, but with its type in DER.
        let id = URL_SAFE_NO_PAD.encode(digest(&SHA256, pair.public()));
        SigningKey { id, pair: Arc::new(pair) }
    }

    /// Gives the key another ID.
    #[must_use]
    pub fn with_id(self, id: &str) -> SigningKey {
        SigningKey { id: id.to_owned(), ..self }
    }

    /// The ID (`kid`).
    #[must_use]
    pub fn id(&self) -> &str {
        &self.id
    }

    /// The algorithm (`alg`).
    #[must_use]
    pub fn algorithm(&self) -> &'static str {
        match *self.pair {
            Pair::Rsa(_) => "RS256",
            Pair::P256(_) => "ES256",
            Pair::P384(_) => "ES384",
        }
    }

    /// The header of a token. Kubernetes writes no `typ`.
    #[must_use]
    pub fn header(&self) -> Value {
        json!({ "alg": self.algorithm(), "kid": self.id })
    }

    /// The public key as a JSON Web Key.
    #[must_use]
    pub fn jwk(&self) -> Value {
        let text = |bytes: &[u8]| URL_SAFE_NO_PAD.encode(bytes);
        let mut key = match &*self.pair {
            Pair::Rsa(pair) => {
                let PublicKeyComponents { n, e } = PublicKeyComponents::<Vec<u8>>::from(pair.public());
                json!({ "kty": "RSA", "n": text(&n), "e": text(&e) })
            }
            Pair::P256(pair) | Pair::P384(pair) => {
                let point = &pair.public_key().as_ref()[1..];
                let (x, y) = point.split_at(point.len() / 2);
                let curve = if x.len() == 32 { "P-256" } else { "P-384" };
                json!({ "kty": "EC", "crv": curve, "x": text(x), "y": text(y) })
            }
        };
        for (name, value) in [("use", "sig"), ("kid", &self.id), ("alg", self.algorithm())] {
            key[name] = value.into();
        }
        key
    }

    /// The public key as the key itself knows it.
    pub(super) fn public(&self) -> &[u8] {
        self.pair.public()
    }

    /// Signs any header and payload: the result is a token in compact form.
    #[must_use]
    pub fn sign(&self, header: &Value, payload: &Value) -> String {
        self.sign_text(&header.to_string(), &payload.to_string())
    }

    /// Signs any text in the places of header and payload.
    #[must_use]
    pub fn sign_text(&self, header: &str, payload: &str) -> String {
        let signed = format!("{}.{}", URL_SAFE_NO_PAD.encode(header), URL_SAFE_NO_PAD.encode(payload));
        let random = SystemRandom::new();
        let signature = match &*self.pair {
            Pair::Rsa(pair) => {
                let mut signature = vec![0; pair.public().modulus_len()];
                pair.sign(&RSA_PKCS1_SHA256, &random, signed.as_bytes(), &mut signature).expect("randomness");
                signature
            }
            Pair::P256(pair) | Pair::P384(pair) => pair.sign(&random, signed.as_bytes()).expect("randomness").as_ref().to_vec(),
        };
        format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature))
    }
}

impl SigningKey {
    /// Returns whether this key has signed the text.
    #[must_use]
    pub(super) fn has_signed(&self, text: &str, signature: &[u8]) -> bool {
        let algorithm: &'static dyn VerificationAlgorithm = match *self.pair {
            Pair::Rsa(_) => &RSA_PKCS1_2048_8192_SHA256,
            Pair::P256(_) => &ECDSA_P256_SHA256_FIXED,
            Pair::P384(_) => &ECDSA_P384_SHA384_FIXED,
        };
        UnparsedPublicKey::new(algorithm, self.pair.public()).verify(text.as_bytes(), signature).is_ok()
    }
}

impl Pair {
    fn public(&self) -> &[u8] {
        match self {
            Pair::Rsa(pair) => pair.public_key().as_ref(),
            Pair::P256(pair) | Pair::P384(pair) => pair.public_key().as_ref(),
        }
    }
}

#[allow(clippy::expect_used, reason = "the lab cannot go on without randomness")]
fn generated(algorithm: &'static EcdsaSigningAlgorithm) -> EcdsaKeyPair {
    let random = SystemRandom::new();
    let pkcs8 = EcdsaKeyPair::generate_pkcs8(algorithm, &random).expect("randomness");
    EcdsaKeyPair::from_pkcs8(algorithm, pkcs8.as_ref(), &random).expect("a key that was just made")
}

impl fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SigningKey").field("id", &self.id).field("algorithm", &self.algorithm()).finish_non_exhaustive()
    }
}
