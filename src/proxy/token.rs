//! IMDSv2 session tokens. A client requests one with PUT, and sends it with every later request.
//!
//! Tokens are stateless: 42 bytes in base64, as long as those of the real service. A token holds its expiry and a MAC over the expiry,
//! the pod's UID and its address. It is therefore worthless to another pod, even to one that has the address later. (Protocol: EC2
//! user guide, "Use IMDSv2".)
//!
//! The SDK for Rust keeps sending a token that has become invalid, for up to six hours. The keys therefore outlive the process, in a
//! [`KeyFile`]. They change each day, and tokens of the earlier key stay valid.

use std::net::IpAddr;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jiff::Timestamp;
use ring::hmac;
use tracing::warn;

use crate::advice::{Advise as _, chain};
use crate::clock::Clock;
use crate::generation::Generation;
use crate::log_once::Condition;
use crate::pods::PodUid;

mod file;
mod keys;

pub use file::{KeyFile, KeyFileError};
use keys::Keys;
pub use keys::NoRandomness;

/// The first byte of a token, which tells the form of the rest.
const FORM: u8 = 1;
const MAC_AT: usize = 10;
const LENGTH: usize = MAC_AT + 32;
/// How often the key file is read: often enough to learn of a key before another daemon uses it.
const LOOK_AGAIN: Duration = Duration::from_secs(60);

/// Issues and checks tokens; cheap to clone.
#[derive(Clone)]
pub struct Tokens {
    keys: Arc<RwLock<Arc<Keys>>>,
    /// Advances when the keys change.
    generation: Arc<Generation>,
    clock: Clock,
}

impl Tokens {
    /// Creates tokens with a new random key.
    pub fn new(clock: Clock) -> Result<Self, NoRandomness> {
        let keys = Keys::random(clock.now())?;
        Ok(Self { keys: Arc::new(RwLock::new(Arc::new(keys))), generation: Arc::default(), clock })
    }

    /// Loads the keys of the file. The file is created or brought up to date if necessary. This blocks for as long as a small file
    /// takes, at most about a second. If it fails, the keys stay unchanged.
    pub fn sync(&self, file: &KeyFile) -> Result<(), KeyFileError> {
        let keys = file.sync(&self.keys(), self.clock.now())?;
        *self.keys.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(keys);
        self.generation.advance();
        Ok(())
    }

    /// Keeps the keys and the file in sync, forever.
    pub async fn keep(self, file: KeyFile) {
        let failing = Condition::default();
        loop {
            tokio::time::sleep(LOOK_AGAIN).await;
            let (tokens, file) = (self.clone(), file.clone());
            let synced = match tokio::task::spawn_blocking(move || tokens.sync(&file)).await {
                Ok(synced) => synced,
                // A panic ends the process, as in every task.
                Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
                // The process is ending.
                Err(_) => return std::future::pending().await,
            };
            match synced {
                Ok(()) => {
                    failing.ends();
                }
                Err(error) if failing.begins() => {
                    warn!(
                        event = "token-keys-not-synced",
                        error = chain(&error),
                        advice = error.advice().as_deref(),
                        "cannot synchronize the keys of session tokens with --token-key-file; retrying, using the last known keys"
                    );
                }
                Err(_) => {}
            }
        }
    }

    fn keys(&self) -> Arc<Keys> {
        self.keys.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Issues a token to this pod at this address.
    pub fn issue(&self, uid: &PodUid, ip: IpAddr, lives: Duration) -> String {
        let (now, keys) = (self.clock.now(), self.keys());
        let key = keys.in_use(now);
        let expires_at = now.as_second().saturating_add(i64::try_from(lives.as_secs()).unwrap_or(i64::MAX));
        let mut token = [0; LENGTH];
        (token[0], token[1]) = (FORM, key.id());
        token[2..MAC_AT].copy_from_slice(&expires_at.to_be_bytes());
        let mac = hmac::sign(key.signing_key(), &message(&token[..MAC_AT], uid, ip));
        token[MAC_AT..].copy_from_slice(mac.as_ref());
        URL_SAFE_NO_PAD.encode(token)
    }

    /// Returns a number that grows whenever the keys may have changed. Cheap: it is read for each request.
    pub(super) fn generation(&self) -> u64 {
        self.generation.now()
    }

    /// Whether `token` was issued to this pod at this address and has not expired.
    pub fn is_valid(&self, token: &[u8], uid: &PodUid, ip: IpAddr) -> bool {
        self.valid_until(token, uid, ip).is_some()
    }

    /// Returns when `token` expires, if it was issued to this pod at this address and has not expired.
    pub(super) fn valid_until(&self, token: &[u8], uid: &PodUid, ip: IpAddr) -> Option<Timestamp> {
        let mut bytes = [0; LENGTH];
        // The slice has exactly the length of a token, and the decoder rejects all that is not canonical.
        if !matches!(URL_SAFE_NO_PAD.decode_slice(token, &mut bytes), Ok(LENGTH)) {
            return None;
        }
        let (head, mac) = bytes.split_at(MAC_AT);
        let keys = self.keys();
        let key = keys.by_id(head[1]).filter(|_| head[0] == FORM)?;
        // This compares in constant time.
        hmac::verify(key.signing_key(), &message(head, uid, ip), mac).ok()?;
        let mut expires_at = [0; 8];
        expires_at.copy_from_slice(&head[2..]);
        Timestamp::from_second(i64::from_be_bytes(expires_at)).ok().filter(|expires_at| self.clock.now() < *expires_at)
    }
}

impl std::fmt::Debug for Tokens {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Tokens(..)")
    }
}

/// Returns what is signed. Every part but the last has a fixed length.
fn message(head: &[u8], uid: &PodUid, ip: IpAddr) -> Vec<u8> {
    let ip = match ip {
        IpAddr::V4(ip) => ip.to_ipv6_mapped(),
        IpAddr::V6(ip) => ip,
    };
    let mut message = Vec::with_capacity(head.len() + 16 + uid.0.len());
    message.extend_from_slice(head);
    message.extend_from_slice(&ip.octets());
    message.extend_from_slice(uid.0.as_bytes());
    message
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test says loudly what failed")]
mod tests;
