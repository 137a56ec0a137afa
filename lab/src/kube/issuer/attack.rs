//! Tokens that an attacker makes.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ring::hmac;
use serde_json::{Value, json};

use super::key::SigningKey;

/// A way to make a token that must be refused, from the claims of a valid one and the issuer's public key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Attack {
    /// `alg: none`, without a signature.
    NoSignature,
    /// The algorithm of the key, without a signature.
    EmptySignature,
    /// HS256 with the issuer's public key as the secret.
    PublicKeyAsSecret,
    /// Signed by the attacker's key, under the ID of the issuer's key.
    OwnKeySameId,
    /// Signed by the attacker's key on P-256, under the ID and algorithm of the issuer's key.
    OtherAlgorithmSameId,
    /// Signed by the attacker's key, which is in the header (`jwk`), under the ID of the issuer's key.
    EmbeddedKey,
    /// Signed by the attacker's key, under an ID that is unknown and reads like a path.
    PathAsId,
    /// The issuer's key, without an ID.
    NoId,
    /// The issuer's key, and an extension that must be understood (`crit`).
    CriticalExtension,
    /// The issuer's signature, and a claim that was changed after it.
    ChangedClaim,
    /// The header names two key IDs.
    TwoIds,
}

impl Attack {
    /// All of them.
    pub const ALL: [Attack; 11] = [
        Attack::NoSignature,
        Attack::EmptySignature,
        Attack::PublicKeyAsSecret,
        Attack::OwnKeySameId,
        Attack::OtherAlgorithmSameId,
        Attack::EmbeddedKey,
        Attack::PathAsId,
        Attack::NoId,
        Attack::CriticalExtension,
        Attack::ChangedClaim,
        Attack::TwoIds,
    ];

    pub(super) fn token(self, key: &SigningKey, claims: &Value) -> String {
        let own = || SigningKey::es256().with_id(key.id());
        match self {
            Attack::NoSignature => with_signature(&json!({ "alg": "none", "kid": key.id() }), claims, b""),
            Attack::EmptySignature => with_signature(&key.header(), claims, b""),
            Attack::PublicKeyAsSecret => {
                let header = json!({ "alg": "HS256", "kid": key.id() });
                let signed = with_signature(&header, claims, b"");
                let secret = hmac::Key::new(hmac::HMAC_SHA256, key.public());
                let mac = hmac::sign(&secret, signed.trim_end_matches('.').as_bytes());
                with_signature(&header, claims, mac.as_ref())
            }
            Attack::OwnKeySameId => SigningKey::other_rs256().sign(&json!({ "alg": "RS256", "kid": key.id() }), claims),
            Attack::OtherAlgorithmSameId => own().sign(&own().header(), claims),
            Attack::EmbeddedKey => {
                let own = own();
                let header = json!({ "alg": own.algorithm(), "kid": key.id(), "jwk": own.jwk(), "jku": "http://127.0.0.1:1/jwks" });
                own.sign(&header, claims)
            }
            Attack::PathAsId => {
                let own = own().with_id("../../../../dev/null");
                own.sign(&own.header(), claims)
            }
            Attack::NoId => key.sign(&json!({ "alg": key.algorithm() }), claims),
            Attack::CriticalExtension => {
                let header = json!({ "alg": key.algorithm(), "kid": key.id(), "crit": ["b64"], "b64": false });
                key.sign(&header, claims)
            }
            Attack::ChangedClaim => {
                let signed = key.sign(&key.header(), claims);
                let signature = signed.rsplit('.').next().unwrap_or_default();
                let mut changed = claims.clone();
                changed["kubernetes.io"]["pod"]["uid"] = "00000000-0000-4000-8000-000000000000".into();
                format!("{}{signature}", with_signature(&key.header(), &changed, b""))
            }
            Attack::TwoIds => {
                let header = format!(r#"{{"alg":"{}","kid":"{id}","kid":"{id}"}}"#, key.algorithm(), id = key.id());
                key.sign_text(&header, &claims.to_string())
            }
        }
    }
}

fn with_signature(header: &Value, claims: &Value, signature: &[u8]) -> String {
    let text = |bytes: &[u8]| URL_SAFE_NO_PAD.encode(bytes);
    format!("{}.{}.{}", text(header.to_string().as_bytes()), text(claims.to_string().as_bytes()), text(signature))
}
