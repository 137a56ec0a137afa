//! IMDSv2 session tokens: a client PUTs for one, and sends it with every request after that.
//!
//! Ours are stateless: 42 bytes in base64, of the same length as the real ones. They hold their expiry and a MAC over it,
//! the pod's UID and its address, so that a token of one pod is nothing in the hands of another, and of a pod that has the
//! address next neither. (Protocol: EC2 user guide, "Use IMDSv2"; the answer's TTL header is what SDKs need of it.)
//!
//! A Rust client sends a token that has become worthless again and again, for up to six hours. So the keys outlive the
//! process, in a [`KeyFile`], and change each day without a token becoming worthless by it.

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
use crate::log_once::Condition;
use crate::pods::PodUid;

mod file;
mod keys;

pub use file::{KeyFile, KeyFileError};
use keys::Keys;
pub use keys::NoRandomness;

/// First byte of a token: the form that follows.
const FORM: u8 = 1;
const MAC_AT: usize = 10;
const LENGTH: usize = MAC_AT + 32;
/// How often the file of the keys is looked at: often enough to learn of a key before another daemon uses it.
const LOOK_AGAIN: Duration = Duration::from_secs(60);

/// Makes and checks tokens; cheap to clone.
#[derive(Clone)]
pub struct Tokens {
    keys: Arc<RwLock<Arc<Keys>>>,
    clock: Clock,
}

impl Tokens {
    /// With a fresh random key.
    pub fn new(clock: Clock) -> Result<Self, NoRandomness> {
        let keys = Keys::random(clock.now())?;
        Ok(Self { keys: Arc::new(RwLock::new(Arc::new(keys))), clock })
    }

    /// Takes the keys of the file, which is made, or brought up to date, where that is needed. Blocks for as long as a
    /// small file takes, at most about a second. If it fails, the keys stay as they are.
    pub fn sync(&self, file: &KeyFile) -> Result<(), KeyFileError> {
        let keys = file.sync(&self.keys(), self.clock.now())?;
        *self.keys.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(keys);
        Ok(())
    }

    /// Keeps the keys and the file together for ever.
    pub async fn keep(self, file: KeyFile) {
        let failing = Condition::default();
        loop {
            tokio::time::sleep(LOOK_AGAIN).await;
            let (tokens, file) = (self.clone(), file.clone());
            let synced = match tokio::task::spawn_blocking(move || tokens.sync(&file)).await {
                Ok(synced) => synced,
                // A mistake of ours is loud, as in every task.
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

    /// A token for this pod at this address.
    pub fn issue(&self, uid: &PodUid, ip: IpAddr, lives: Duration) -> String {
        let (now, keys) = (self.clock.now(), self.keys());
        let key = keys.in_use(now);
        let expires_at = now.as_second().saturating_add(i64::try_from(lives.as_secs()).unwrap_or(i64::MAX));
        let mut token = [0; LENGTH];
        (token[0], token[1]) = (FORM, key.id());
        token[2..MAC_AT].copy_from_slice(&expires_at.to_be_bytes());
        let mac = hmac::sign(key.mac(), &message(&token[..MAC_AT], uid, ip));
        token[MAC_AT..].copy_from_slice(mac.as_ref());
        URL_SAFE_NO_PAD.encode(token)
    }

    /// Whether `token` was issued to this pod at this address and has not expired.
    pub fn is_valid(&self, token: &[u8], uid: &PodUid, ip: IpAddr) -> bool {
        let mut bytes = [0; LENGTH];
        // The slice takes exactly the length of a token; the decoder refuses everything that is not canonical.
        if !matches!(URL_SAFE_NO_PAD.decode_slice(token, &mut bytes), Ok(LENGTH)) {
            return false;
        }
        let (head, mac) = bytes.split_at(MAC_AT);
        let keys = self.keys();
        let Some(key) = keys.by_id(head[1]).filter(|_| head[0] == FORM) else {
            return false;
        };
        // In constant time.
        if hmac::verify(key.mac(), &message(head, uid, ip), mac).is_err() {
            return false;
        }
        let mut expires_at = [0; 8];
        expires_at.copy_from_slice(&head[2..]);
        Timestamp::from_second(i64::from_be_bytes(expires_at)).is_ok_and(|expires_at| self.clock.now() < expires_at)
    }
}

impl std::fmt::Debug for Tokens {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Tokens(..)")
    }
}

/// What is signed; every part of a known length but the last.
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
