//! The keys of session tokens, and when each is in use: pure data, no I/O.
//!
//! A new key exists for a while before the first token is issued with it, so that both daemons that share a file know it by then. An
//! old key is kept until its longest-lived token has expired.

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use jiff::Timestamp;
use ring::hmac;
use ring::rand::{SecureRandom, SystemRandom};
use zeroize::Zeroizing;

use crate::proxy::route::MAX_TOKEN_TTL;

/// The system has no randomness.
#[derive(Debug, thiserror::Error)]
#[error("the system's random number generator failed, so no session token keys can be created")]
pub struct NoRandomness;

/// How long tokens are issued with one key.
pub(super) const IN_USE: Duration = Duration::from_secs(24 * 3600);
/// How long a key exists before tokens are issued with it.
pub(super) const ANNOUNCED: Duration = Duration::from_secs(300);
/// The longest lifetime of a token, with a margin for clocks that differ.
const KEPT: Duration = Duration::from_secs(MAX_TOKEN_TTL as u64 + 600);
/// The most keys of a file that rolegate has written.
const MAX_KEYS: usize = 8;
const SECRET: usize = 32;
/// The valid times of a key, in seconds of Unix time: from 1970 to about 2500. rolegate writes no others.
const TIMES: std::ops::Range<i64> = 0..16_725_225_600;
/// The first line of the file.
const HEADER: &str = "rolegate token keys 1";

/// One key.
pub(super) struct TokenKey {
    id: u8,
    in_use_from: Timestamp,
    secret: Zeroizing<[u8; SECRET]>,
    mac: hmac::Key,
}

/// The keys, at least one, in the order of their creation.
pub(super) struct Keys(Vec<TokenKey>);

/// A file that does not hold keys.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("the file does not hold session token keys")]
pub(super) struct Damaged;

impl TokenKey {
    fn new(id: u8, in_use_from: Timestamp, secret: Zeroizing<[u8; SECRET]>) -> Self {
        let mac = hmac::Key::new(hmac::HMAC_SHA256, &*secret);
        Self { id, in_use_from, secret, mac }
    }

    fn random(id: u8, in_use_from: Timestamp) -> Result<Self, NoRandomness> {
        let mut secret = Zeroizing::new([0; SECRET]);
        SystemRandom::new().fill(&mut *secret).map_err(|_| NoRandomness)?;
        Ok(Self::new(id, in_use_from, secret))
    }

    /// The key's id, which is part of every token.
    pub(super) fn id(&self) -> u8 {
        self.id
    }

    /// Returns the signing key.
    pub(super) fn signing_key(&self) -> &hmac::Key {
        &self.mac
    }

    fn copied(&self) -> Self {
        Self::new(self.id, self.in_use_from, self.secret.clone())
    }
}

impl Keys {
    /// Creates one random key, which is in use at once.
    pub(super) fn random(now: Timestamp) -> Result<Self, NoRandomness> {
        Ok(Self(vec![TokenKey::random(0, now)?]))
    }

    /// Returns the key that tokens are issued with now.
    pub(super) fn in_use(&self, now: Timestamp) -> &TokenKey {
        // If the clock went back, none may be in use yet.
        self.0.iter().rev().find(|key| key.in_use_from <= now).unwrap_or(&self.0[0])
    }

    /// Returns the key that a token names.
    pub(super) fn by_id(&self, id: u8) -> Option<&TokenKey> {
        self.0.iter().find(|key| key.id == id)
    }

    /// Returns the keys as they should be now, or `None` if they already are.
    pub(super) fn rotated(&self, now: Timestamp) -> Result<Option<Self>, NoRandomness> {
        let last = &self.0[self.0.len() - 1];
        // A key from the future was created under a wrong clock.
        let due = last.in_use_from + IN_USE <= now || last.in_use_from > now + ANNOUNCED;
        // A key is removed when the next one has been in use for longer than a token lives.
        let keep_from = self.0.iter().rposition(|key| key.in_use_from + KEPT <= now).unwrap_or(0);
        if !due && keep_from == 0 {
            return Ok(None);
        }
        let mut keys: Vec<TokenKey> = self.0[keep_from..].iter().map(TokenKey::copied).collect();
        if due {
            let id = (0..=u8::MAX).map(|step| last.id.wrapping_add(1).wrapping_add(step)).find(|id| self.by_id(*id).is_none());
            keys.push(TokenKey::random(id.unwrap_or_default(), now + ANNOUNCED)?);
            let surplus = keys.len().saturating_sub(MAX_KEYS);
            keys.drain(..surplus);
        }
        Ok(Some(Self(keys)))
    }

    /// Returns the text of a file with these keys.
    pub(super) fn render(&self) -> Zeroizing<String> {
        // Large enough, so that growing leaves no copy of the secrets behind.
        let mut text = Zeroizing::new(String::with_capacity(4096));
        text.push_str(HEADER);
        for key in &self.0 {
            let secret = Zeroizing::new(STANDARD.encode(key.secret.as_slice()));
            text.push_str(&format!("\n{} {} ", key.id, key.in_use_from.as_second()));
            text.push_str(&secret);
        }
        text.push('\n');
        text
    }

    /// Parses the text of a file.
    pub(super) fn parse(text: &str) -> Result<Self, Damaged> {
        let mut lines = text.strip_suffix('\n').ok_or(Damaged)?.split('\n');
        if lines.next() != Some(HEADER) {
            return Err(Damaged);
        }
        let mut keys: Vec<TokenKey> = Vec::new();
        for line in lines {
            let mut fields = line.split(' ');
            let (Some(id), Some(from), Some(secret), None) = (fields.next(), fields.next(), fields.next(), fields.next()) else {
                return Err(Damaged);
            };
            let id = id.parse().map_err(|_| Damaged)?;
            let from = from.parse().ok().filter(|seconds| TIMES.contains(seconds));
            let from = from.and_then(|seconds| Timestamp::from_second(seconds).ok()).ok_or(Damaged)?;
            let mut bytes = Zeroizing::new([0; SECRET]);
            if !matches!(STANDARD.decode_slice(secret, &mut *bytes), Ok(SECRET)) || keys.iter().any(|key| key.id == id) {
                return Err(Damaged);
            }
            keys.push(TokenKey::new(id, from, bytes));
        }
        if keys.is_empty() || keys.len() > MAX_KEYS { Err(Damaged) } else { Ok(Self(keys)) }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test says loudly what failed")]
mod tests {
    use super::*;

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_second(1_800_000_000 + seconds).unwrap()
    }

    const DAY: i64 = 24 * 3600;

    fn ids(keys: &Keys) -> Vec<u8> {
        keys.0.iter().map(TokenKey::id).collect()
    }

    #[test]
    fn a_text_gives_the_same_keys_back() {
        let keys = Keys::random(at(0)).unwrap().rotated(at(DAY)).unwrap().unwrap();
        let again = Keys::parse(&keys.render()).unwrap();
        assert_eq!(ids(&again), [0, 1]);
        assert!(keys.0.iter().zip(&again.0).all(|(a, b)| a.secret == b.secret && a.in_use_from == b.in_use_from));
    }

    #[test]
    fn what_is_not_such_a_text_is_damaged() {
        let good = Keys::random(at(0)).unwrap().render();
        let line = good.lines().nth(1).unwrap();
        let many: String = (0..9).map(|id| format!("{id}{}\n", &line[1..])).collect();
        for text in [
            String::new(),
            HEADER.to_owned(),
            format!("{HEADER}\n"),
            good[..good.len() - 1].to_owned(),
            good[..good.len() - 4].to_owned() + "\n",
            good.replace(" 1\n", " 2\n"),
            format!("{HEADER}\n{line}\n{line}\n"),
            format!("{HEADER}\n{line} more\n"),
            format!("{HEADER}\n256{}\n", &line[1..]),
            good.replace(" 1800000000 ", " 253402207200 "),
            good.replace(" 1800000000 ", " -1 "),
            format!("{HEADER}\n{many}"),
        ] {
            assert_eq!(Keys::parse(&text).err(), Some(Damaged), "{text:?}");
        }
    }

    #[test]
    fn a_new_key_is_known_before_its_use_and_an_old_one_until_its_tokens_end() {
        let keys = Keys::random(at(0)).unwrap();
        assert!(keys.rotated(at(DAY - 1)).unwrap().is_none());
        let keys = keys.rotated(at(DAY)).unwrap().unwrap();
        assert_eq!(ids(&keys), [0, 1]);
        assert_eq!(keys.in_use(at(DAY + 299)).id(), 0, "others may not know it yet");
        assert_eq!(keys.in_use(at(DAY + 300)).id(), 1);
        let last_token_ends = DAY + 299 + i64::from(MAX_TOKEN_TTL);
        assert!(keys.rotated(at(last_token_ends)).unwrap().is_none(), "a token made with the old one may live");
        let later = keys.rotated(at(last_token_ends + 700)).unwrap().unwrap();
        assert_eq!(ids(&later), [1]);
        assert!(later.rotated(at(last_token_ends + 701)).unwrap().is_none());
    }

    #[test]
    fn after_a_long_time_or_a_wrong_clock_there_is_a_key_and_soon_a_new_one() {
        let keys = Keys::random(at(0)).unwrap();
        let after_a_year = keys.rotated(at(365 * DAY)).unwrap().unwrap();
        assert_eq!(ids(&after_a_year), [0, 1]);
        assert_eq!(after_a_year.in_use(at(365 * DAY)).id(), 0);
        let from_the_future = keys.rotated(at(-365 * DAY)).unwrap().unwrap();
        assert_eq!(from_the_future.in_use(at(-365 * DAY)).id(), 0);
        assert_eq!(from_the_future.in_use(at(-365 * DAY + 300)).id(), 1);
        assert!(from_the_future.rotated(at(-365 * DAY + 1)).unwrap().is_none(), "one is enough");
    }

    #[test]
    fn ids_go_round_and_the_keys_do_not_grow() {
        let mut keys = Keys::random(at(0)).unwrap();
        for day in 1..600 {
            keys = keys.rotated(at(day * DAY)).unwrap().unwrap();
            assert!(keys.0.len() <= 3, "{:?}", ids(&keys));
        }
        let mut jumping = Keys::random(at(0)).unwrap();
        for jump in 1..100 {
            jumping = jumping.rotated(at(-jump * DAY)).unwrap().unwrap();
            assert!(jumping.0.len() <= MAX_KEYS);
            let mut seen = ids(&jumping);
            seen.dedup();
            assert_eq!(seen.len(), jumping.0.len());
        }
    }
}
