//! The issuer of service account tokens: what kube-apiserver does with its `--service-account-signing-key-file`.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jiff::Timestamp;
use serde_json::{Value, json};

pub use self::attack::Attack;
pub use self::key::SigningKey;
pub use self::pod_token::PodToken;

mod attack;
mod key;
mod pod_token;

/// The path of the key set.
pub(super) const KEYS: &str = "/openid/v1/jwks";
/// The path of the configuration.
pub(super) const CONFIGURATION: &str = "/.well-known/openid-configuration";

/// An issuer of tokens; cheap to clone.
#[derive(Clone, Debug)]
pub struct TokenIssuer(Arc<Mutex<Issuing>>);

#[derive(Debug)]
struct Issuing {
    url: String,
    signing: SigningKey,
    /// Keys that verify tokens; usually that which signs is one of them.
    published: Vec<SigningKey>,
    /// Tokens that are no longer valid.
    revoked: HashSet<String>,
}

impl TokenIssuer {
    /// Creates an issuer of this name (the claim `iss`) that signs with this key, and publishes it.
    #[must_use]
    pub fn new(url: &str, signing: SigningKey) -> TokenIssuer {
        let published = vec![signing.clone()];
        TokenIssuer(Arc::new(Mutex::new(Issuing { url: url.to_owned(), signing, published, revoked: HashSet::new() })))
    }

    /// The name of the issuer.
    #[must_use]
    pub fn url(&self) -> String {
        self.issuing().url.clone()
    }

    /// Changes the name of the issuer.
    pub fn rename(&self, url: &str) {
        url.clone_into(&mut self.issuing().url);
    }

    /// The key that signs.
    #[must_use]
    pub fn signing_key(&self) -> SigningKey {
        self.issuing().signing.clone()
    }

    /// Signs with another key from now on, and publishes it besides the earlier ones.
    pub fn rotate(&self, signing: SigningKey) {
        let mut issuing = self.issuing();
        issuing.published.push(signing.clone());
        issuing.signing = signing;
    }

    /// Removes a key from those that are published.
    pub fn withdraw(&self, id: &str) {
        self.issuing().published.retain(|key| key.id() != id);
    }

    /// Issues a token.
    #[must_use]
    pub fn issue(&self, token: &PodToken) -> String {
        let issuing = self.issuing();
        issuing.signing.sign(&issuing.signing.header(), &token.claims(&issuing.url))
    }

    /// Withdraws a token: TokenReviews do not confirm it any more. The API server does this when the pod, the service account or the
    /// Secret of a token is deleted.
    pub fn revoke(&self, token: &str) {
        self.issuing().revoked.insert(token.to_owned());
    }

    /// Returns the claims of a token that a published key has signed, that is valid now and was not revoked.
    pub(super) fn verify(&self, token: &str) -> Result<Value, &'static str> {
        let issuing = self.issuing();
        let (signed, signature) = token.rsplit_once('.').ok_or("not a token")?;
        let (header, payload) = signed.split_once('.').ok_or("not a token")?;
        let decoded = |part: &str| URL_SAFE_NO_PAD.decode(part).map_err(|_| "not base64url");
        let json = |part: &str| serde_json::from_slice::<Value>(&decoded(part)?).map_err(|_| "not JSON");
        let (header, claims) = (json(header)?, json(payload)?);
        let key =
            issuing.published.iter().find(|key| header["kid"] == key.id() && header["alg"] == key.algorithm()).ok_or("unknown key")?;
        if !key.has_signed(signed, &decoded(signature)?) {
            return Err("wrong signature");
        }
        let now = Timestamp::now().as_second();
        if claims["iss"] != issuing.url.as_str() || claims["exp"].as_i64().is_none_or(|end| end <= now) {
            return Err("wrong issuer, or expired");
        }
        if issuing.revoked.contains(token) { Err("revoked") } else { Ok(claims) }
    }

    /// Makes a token that must be refused.
    #[must_use]
    pub fn forge(&self, attack: Attack, token: &PodToken) -> String {
        let issuing = self.issuing();
        attack.token(&issuing.signing, &token.claims(&issuing.url))
    }

    /// The key set (JWKS) as the API server publishes it.
    #[must_use]
    pub fn jwks(&self) -> Value {
        let keys: Vec<Value> = self.issuing().published.iter().map(SigningKey::jwk).collect();
        json!({ "keys": keys })
    }

    /// The configuration as the API server publishes it.
    #[must_use]
    pub fn configuration(&self) -> Value {
        let issuing = self.issuing();
        let mut algorithms: Vec<&str> = issuing.published.iter().map(SigningKey::algorithm).collect();
        algorithms.sort_unstable();
        algorithms.dedup();
        json!({
            "issuer": issuing.url,
            "jwks_uri": format!("https://10.0.0.1:6443{KEYS}"),
            "response_types_supported": ["id_token"],
            "subject_types_supported": ["public"],
            "id_token_signing_alg_values_supported": algorithms,
        })
    }

    fn issuing(&self) -> MutexGuard<'_, Issuing> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
