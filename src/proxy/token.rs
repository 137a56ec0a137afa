//! IMDSv2 session tokens: a client PUTs for one, and sends it with every request after that.
//!
//! Ours are stateless: 42 bytes in base64, of the same length as the real ones. They hold their expiry and a MAC over it,
//! the pod's UID and its address, so that a token of one pod is nothing in the hands of another, and of a pod that has the
//! address next neither. (Protocol: EC2 user guide, "Use IMDSv2"; the answer's TTL header is what SDKs need of it.)

use std::net::IpAddr;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jiff::Timestamp;
use ring::hmac;
use ring::rand::SystemRandom;

use crate::credentials::Clock;
use crate::pods::PodUid;

/// First byte of a token: the form that follows.
const FORM: u8 = 1;
const MAC_AT: usize = 10;
const LENGTH: usize = MAC_AT + 32;

/// Makes and checks tokens with a key of this process.
pub struct Tokens {
    key: hmac::Key,
    clock: Clock,
}

/// The system has no randomness to give.
#[derive(Debug, thiserror::Error)]
#[error("the system's random number generator failed; session tokens cannot be made safely")]
pub struct NoRandomness;

impl Tokens {
    /// With a fresh random key.
    pub fn new(clock: Clock) -> Result<Self, NoRandomness> {
        let key = hmac::Key::generate(hmac::HMAC_SHA256, &SystemRandom::new()).map_err(|_| NoRandomness)?;
        Ok(Self { key, clock })
    }

    /// A token for this pod at this address.
    pub fn issue(&self, uid: &PodUid, ip: IpAddr, lives: Duration) -> String {
        let expires_at = self.clock.now().as_second().saturating_add(i64::try_from(lives.as_secs()).unwrap_or(i64::MAX));
        let mut token = [0; LENGTH];
        token[0] = FORM;
        token[2..MAC_AT].copy_from_slice(&expires_at.to_be_bytes());
        let mac = hmac::sign(&self.key, &message(&token[..MAC_AT], uid, ip));
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
        // In constant time.
        if hmac::verify(&self.key, &message(head, uid, ip), mac).is_err() {
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
mod tests {
    use super::*;

    fn uid(text: &str) -> PodUid {
        PodUid(text.into())
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[tokio::test(start_paused = true)]
    async fn a_token_is_good_for_its_pod_its_address_and_its_time() {
        let clock = Clock::following_tokio("2026-01-01T00:00:00Z".parse().unwrap());
        let tokens = Tokens::new(clock.clone()).unwrap();
        let token = tokens.issue(&uid("a"), ip("10.0.0.1"), Duration::from_secs(60));
        assert_eq!(token.len(), 56);
        let valid = |token: &str, of: &str, at: &str| tokens.is_valid(token.as_bytes(), &uid(of), ip(at));
        assert!(valid(&token, "a", "10.0.0.1"));
        assert!(!valid(&token, "b", "10.0.0.1"), "another pod");
        assert!(!valid(&token, "a", "10.0.0.2"), "another address");
        assert!(!Tokens::new(clock).unwrap().is_valid(token.as_bytes(), &uid("a"), ip("10.0.0.1")), "another key");
        tokio::time::advance(Duration::from_secs(59)).await;
        assert!(valid(&token, "a", "10.0.0.1"));
        tokio::time::advance(Duration::from_secs(1)).await;
        assert!(!valid(&token, "a", "10.0.0.1"), "expired");
    }

    #[tokio::test]
    async fn a_changed_token_is_nothing() {
        let tokens = Tokens::new(Clock::system()).unwrap();
        let token = tokens.issue(&uid("a"), ip("10.0.0.1"), Duration::from_secs(60));
        for at in 0..token.len() {
            let mut changed = token.clone().into_bytes();
            changed[at] = if changed[at] == b'A' { b'B' } else { b'A' };
            assert!(!tokens.is_valid(&changed, &uid("a"), ip("10.0.0.1")), "byte {at}");
        }
        for strange in [String::new(), "A".repeat(56), token[..55].to_owned(), format!("{token}A"), format!("{token}="), "\u{0}".repeat(56)]
        {
            assert!(!tokens.is_valid(strange.as_bytes(), &uid("a"), ip("10.0.0.1")), "{strange:?}");
        }
    }
}
