//! The documents that an issuer publishes: its keys (JWKS, RFC 7517) and its configuration (OpenID Connect Discovery 1.0).

use std::collections::HashMap;
use std::collections::hash_map::Entry;

use serde::Deserialize;
use serde_json::value::RawValue;

use crate::pod_identity::token::{Jwk, PublicKey, UnusableKey, is_strict_object};

/// The largest document, in bytes. A key takes at most about 1,500 bytes.
pub const MAX_DOCUMENT: usize = 256 << 10;
/// The most keys of an issuer.
const MAX_KEYS: usize = 64;
/// The longest name of an issuer, in bytes.
const MAX_ISSUER: usize = 2048;

/// The reason why a document of the issuer is not used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DocumentError {
    /// It is too large.
    #[error("the issuer's document is larger than {MAX_DOCUMENT} bytes")]
    TooLarge,
    /// The key set is malformed.
    #[error("the issuer's key set is malformed")]
    Keys,
    /// There are too many keys.
    #[error("the issuer has more than {MAX_KEYS} keys")]
    TooManyKeys,
    /// The configuration names no valid issuer.
    #[error("the issuer's configuration names no valid issuer")]
    Issuer,
}

/// The usable keys of an issuer, by their IDs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KeySet {
    keys: HashMap<String, PublicKey>,
    unusable: Vec<UnusableKey>,
}

#[derive(Deserialize)]
struct Jwks<'a> {
    #[serde(borrow)]
    keys: Vec<&'a RawValue>,
}

#[derive(Deserialize)]
struct Configuration {
    issuer: String,
}

impl KeySet {
    /// Parses a key set. Keys that rolegate cannot use are left out. If two different keys have one ID, both are left out.
    pub fn parse(document: &[u8]) -> Result<Self, DocumentError> {
        if document.len() > MAX_DOCUMENT {
            return Err(DocumentError::TooLarge);
        }
        if !is_strict_object(document) {
            return Err(DocumentError::Keys);
        }
        let Jwks { keys } = serde_json::from_slice(document).map_err(|_| DocumentError::Keys)?;
        if keys.len() > MAX_KEYS {
            return Err(DocumentError::TooManyKeys);
        }
        let (mut known, mut unusable) = (HashMap::new(), Vec::new());
        let mut ambiguous = Vec::new();
        for key in keys {
            let read = serde_json::from_str::<Jwk>(key.get()).map_err(|_| UnusableKey::Malformed).and_then(Jwk::read);
            match read {
                Ok((id, key)) => match known.entry(id) {
                    Entry::Vacant(place) => drop(place.insert(key)),
                    Entry::Occupied(place) if *place.get() == key => {}
                    Entry::Occupied(place) => ambiguous.push(place.key().clone()),
                },
                Err(reason) => unusable.push(reason),
            }
        }
        for id in ambiguous {
            known.remove(&id);
            unusable.push(UnusableKey::Ambiguous);
        }
        Ok(Self { keys: known, unusable })
    }

    /// Returns the key with exactly this ID.
    pub fn get(&self, id: &str) -> Option<&PublicKey> {
        self.keys.get(id)
    }

    /// Returns the number of usable keys.
    pub fn len(&self) -> usize {
        self.keys.len()
    }

    /// Returns whether there is no usable key.
    pub fn is_empty(&self) -> bool {
        self.keys.is_empty()
    }

    /// Returns one reason for each key of the document that is not used.
    pub fn unusable(&self) -> &[UnusableKey] {
        &self.unusable
    }
}

/// Returns the issuer that a configuration document names.
pub fn issuer_of(document: &[u8]) -> Result<String, DocumentError> {
    if document.len() > MAX_DOCUMENT {
        return Err(DocumentError::TooLarge);
    }
    if !is_strict_object(document) {
        return Err(DocumentError::Issuer);
    }
    let Configuration { issuer } = serde_json::from_slice(document).map_err(|_| DocumentError::Issuer)?;
    let is_valid = (1..=MAX_ISSUER).contains(&issuer.len()) && issuer.bytes().all(|byte| byte.is_ascii_graphic());
    if is_valid { Ok(issuer) } else { Err(DocumentError::Issuer) }
}
