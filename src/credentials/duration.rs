//! Session durations that fall back to one hour if a role does not allow the requested duration.
//!
//! A role has a maximum session duration (`MaxSessionDuration`). Role chaining limits a session to one hour (IAM User Guide,
//! "Roles terms and concepts"). STS reports both with a `ValidationError`. The next request for the role, and all later ones,
//! are then for one hour. The role may be changed later, so after 12 hours the full duration is tried again.

use std::collections::HashMap;
use std::future::Future;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;
use tracing::warn;

use super::AssumeRoleError;
use crate::role::RoleArn;

/// The duration that every role allows to every caller.
pub(super) const ALWAYS_ALLOWED: Duration = Duration::from_secs(3600);
/// How long a role's limit is remembered.
const REMEMBERED: Duration = Duration::from_secs(12 * 3600);
/// The most roles whose limit is remembered. Authors of pods name roles. For one that is forgotten, STS refuses one more request.
const MOST: usize = 1024;
/// The text that both STS messages have in common: "The requested DurationSeconds exceeds the MaxSessionDuration set for this
/// role.", and "... exceeds the 1 hour session limit for roles assumed by role chaining".
const TOO_LONG: &str = "DurationSeconds exceeds";

/// The roles that are known to allow at most one hour.
#[derive(Debug, Default)]
pub(super) struct Durations(Mutex<HashMap<RoleArn, Instant>>);

impl Durations {
    /// Requests a session of this role once, for the `wanted` duration, or for one hour if that is known to be too long. Returns the
    /// result and the duration requested. Returns [`AssumeRoleError::TooLong`] when a new limit is discovered.
    pub(super) async fn ask<T, F>(
        &self,
        role: &RoleArn,
        wanted: Duration,
        ask: impl FnOnce(Duration) -> F,
    ) -> Result<(T, Duration), AssumeRoleError>
    where
        F: Future<Output = Result<T, AssumeRoleError>>,
    {
        let of = async move |duration| Ok((ask(duration).await?, duration));
        if wanted <= ALWAYS_ALLOWED {
            return of(wanted).await;
        }
        if self.is_short(role) {
            return of(ALWAYS_ALLOWED).await;
        }
        match of(wanted).await {
            Err(AssumeRoleError::Invalid { message }) if message.contains(TOO_LONG) => {
                if self.remember(role) {
                    warn!(
                        event = "session-duration-limited", %role, session_duration = %humantime::format_duration(wanted), error = message,
                        "STS rejects --session-duration for this role; using sessions of 1 hour for it; raise the role's maximum session \
                         duration to at least --session-duration, or lower --session-duration (with --assume-role-arn, STS allows 1 hour \
                         at most)"
                    );
                }
                Err(AssumeRoleError::TooLong { message })
            }
            answer => answer,
        }
    }

    /// Remembers the limit of a role, and returns whether it is new. Forgets those that have expired and, if there are too many, the oldest.
    fn remember(&self, role: &RoleArn) -> bool {
        let now = Instant::now();
        let mut known = self.lock();
        let is_new = known.get(role).is_none_or(|until| *until <= now);
        known.retain(|of, until| now < *until && of != role);
        if known.len() >= MOST
            && let Some(oldest) = known.iter().min_by_key(|(_, until)| **until).map(|(role, _)| role.clone())
        {
            known.remove(&oldest);
        }
        known.insert(role.clone(), now + REMEMBERED);
        is_new
    }

    fn is_short(&self, role: &RoleArn) -> bool {
        self.lock().get(role).is_some_and(|until| Instant::now() < *until)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<RoleArn, Instant>> {
        // No writer leaves the map inconsistent, so poisoning is harmless.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test says loudly what failed")]
    use tokio::time::advance;

    use super::*;

    const HOURS: fn(u64) -> Duration = |hours| Duration::from_secs(hours * 3600);

    fn role(name: &str) -> RoleArn {
        format!("arn:aws:iam::111122223333:role/{name}").parse().unwrap()
    }

    /// Requests a session from an STS whose roles allow `most`. Returns the outcome and the duration requested.
    async fn ask(durations: &Durations, name: &str, wanted: Duration, most: Duration) -> (Result<(), &'static str>, Duration) {
        let mut asked = Vec::new();
        let role = role(name);
        let answer = durations.ask(&role, wanted, |duration| {
            asked.push(duration);
            let message = "ValidationError: The requested DurationSeconds exceeds the MaxSessionDuration set for this role.".to_owned();
            std::future::ready(if duration > most { Err(AssumeRoleError::Invalid { message }) } else { Ok(()) })
        });
        let answer = answer.await.map(|((), asked_for)| assert_eq!(asked_for, asked[0])).map_err(|error| error.name());
        assert_eq!(asked.len(), 1, "one request");
        (answer, asked[0])
    }

    #[tokio::test(start_paused = true)]
    async fn too_long_a_duration_is_requested_once_then_one_hour() {
        let durations = Durations::default();
        let (twelve, one) = (HOURS(12), HOURS(1));
        assert_eq!(ask(&durations, "web", twelve, one).await, (Err("too-long"), twelve));
        assert_eq!(ask(&durations, "web", twelve, one).await, (Ok(()), one));
        assert_eq!(ask(&durations, "web", twelve, one).await, (Ok(()), one));
        assert_eq!(ask(&durations, "db", twelve, twelve).await, (Ok(()), twelve), "another role");
        advance(REMEMBERED).await;
        assert_eq!(ask(&durations, "web", twelve, twelve).await, (Ok(()), twelve), "the role's limit was raised");
    }

    /// Pods may name any number of roles.
    #[tokio::test(start_paused = true)]
    async fn ten_thousand_roles_keep_no_more_than_the_latest() {
        let durations = Durations::default();
        let (twelve, one) = (HOURS(12), HOURS(1));
        for number in 0..10_000 {
            advance(Duration::from_millis(1)).await;
            assert_eq!(ask(&durations, &format!("web-{number}"), twelve, one).await, (Err("too-long"), twelve));
        }
        assert_eq!(durations.lock().len(), MOST);
        let latest = |number: usize| format!("web-{}", 10_000 - number);
        assert_eq!(ask(&durations, &latest(MOST), twelve, one).await, (Ok(()), one));
        assert_eq!(ask(&durations, &latest(MOST + 1), twelve, one).await, (Err("too-long"), twelve), "the oldest are forgotten");
        advance(REMEMBERED).await;
        assert_eq!(ask(&durations, "db", twelve, one).await, (Err("too-long"), twelve));
        assert_eq!(durations.lock().len(), 1, "those that have expired are dropped");
    }

    #[tokio::test(start_paused = true)]
    async fn other_refusals_and_short_sessions_are_not_retried() {
        let durations = Durations::default();
        let (half, one) = (HOURS(1) / 2, HOURS(1));
        assert_eq!(ask(&durations, "web", one, half).await, (Err("invalid"), one));
        let message = "ValidationError: the tags are too large".to_owned();
        let refused = AssumeRoleError::Invalid { message };
        let role = role("db");
        let answer = durations.ask(&role, HOURS(2), |_| std::future::ready(Err::<(), _>(refused.clone())));
        assert_eq!(answer.await, Err(refused));
    }
}
