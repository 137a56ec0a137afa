#![allow(clippy::unwrap_used, reason = "a test says loudly what failed")]
use std::sync::Mutex;

use tokio::sync::Notify;

use super::*;
use crate::policy::Discovered;
use crate::policy::Rules;
use crate::readiness::OWN_IDENTITY;

/// STS, which answers all who ask the same until a test says otherwise.
#[derive(Debug, Default)]
struct Fake {
    error: Mutex<Option<AssumeRoleError>>,
    calls: Mutex<Vec<Instant>>,
    doubt: Notify,
}

impl IdentitySource for Arc<Fake> {
    async fn renew_identity(&self) -> (Result<Arc<KnownNode>, AssumeRoleError>, Duration) {
        self.calls.lock().unwrap().push(Instant::now());
        match self.error.lock().unwrap().clone() {
            Some(error) => (Err(error), Duration::from_secs(60)),
            None => (Ok(Arc::default()), Duration::from_secs(3600)),
        }
    }

    async fn doubted(&self) {
        self.doubt.notified().await;
    }
}

impl Fake {
    fn answers(&self, error: Option<AssumeRoleError>) {
        *self.error.lock().unwrap() = error;
    }

    fn calls(&self) -> usize {
        self.calls.lock().unwrap().len()
    }
}

fn refused() -> Option<AssumeRoleError> {
    Some(AssumeRoleError::OwnIdentity { message: "ExpiredToken".to_owned(), advice: "look".into() })
}

fn start() -> (Arc<Fake>, Readiness) {
    let (fake, readiness) = (Arc::new(Fake::default()), Readiness::default());
    tokio::spawn(follow_identity(fake.clone(), policy(&NodeIdentity::default()), readiness.step(OWN_IDENTITY), readiness.clone()));
    (fake, readiness)
}

/// Short names are completed with what the metadata service named.
fn policy(node: &NodeIdentity) -> Arc<Policy> {
    let rules = Rules {
        base: Some("arn:aws:iam::999999999999:role/".parse().unwrap()),
        discovered: Discovered { base: true, default_role: false },
        ..Rules::default()
    };
    Arc::new(Policy::new(rules, node.clone()).unwrap())
}

/// So much later, with all done that is due until then.
async fn pass(minutes: u64) {
    tokio::time::sleep(Duration::from_secs(60 * minutes) + Duration::from_millis(1)).await;
}

#[tokio::test(start_paused = true)]
async fn credentials_that_are_refused_for_long_end_readiness_until_they_serve() {
    let (fake, readiness) = start();
    pass(1).await;
    assert!(readiness.pending().is_empty());
    // A role could not be assumed for it.
    fake.answers(refused());
    fake.doubt.notify_one();
    pass(7).await;
    assert_eq!(readiness.pending(), [OWN_CREDENTIALS]);
    // An outage now says nothing new.
    fake.answers(Some(AssumeRoleError::Throttled));
    pass(5).await;
    assert_eq!(readiness.pending(), [OWN_CREDENTIALS]);
    fake.answers(None);
    pass(1).await;
    assert!(readiness.pending().is_empty());
}

#[tokio::test(start_paused = true)]
async fn readiness_lasts_until_they_were_refused_for_minutes() {
    let (fake, readiness) = start();
    pass(59).await;
    fake.answers(refused());
    // Asked and refused first at the whole hour.
    pass(5).await;
    assert!(fake.calls() > 2 && readiness.pending().is_empty());
    pass(2).await;
    assert_eq!(readiness.pending(), [OWN_CREDENTIALS]);
}

#[tokio::test(start_paused = true)]
async fn an_outage_of_sts_does_not_end_readiness() {
    let (fake, readiness) = start();
    pass(1).await;
    let message = || "x".to_owned();
    use AssumeRoleError::*;
    for outage in [Throttled, Unreachable { message: message() }, Failed { message: message() }] {
        fake.answers(Some(outage));
        pass(180).await;
        assert!(readiness.pending().is_empty());
    }
    fake.answers(None);
    pass(2).await;
    // One good answer, and the minutes count anew.
    for _ in 0..3 {
        fake.answers(refused());
        fake.doubt.notify_one();
        pass(4).await;
        assert!(readiness.pending().is_empty());
        fake.answers(None);
        pass(2).await;
        assert!(readiness.pending().is_empty());
    }
}

#[tokio::test(start_paused = true)]
async fn before_the_first_success_the_start_is_what_is_pending() {
    let (fake, readiness) = (Arc::new(Fake::default()), Readiness::default());
    fake.answers(refused());
    tokio::spawn(follow_identity(fake.clone(), policy(&NodeIdentity::default()), readiness.step(OWN_IDENTITY), readiness.clone()));
    pass(60).await;
    assert_eq!(readiness.pending(), [OWN_IDENTITY]);
    fake.answers(None);
    pass(1).await;
    assert!(readiness.pending().is_empty());
}

#[tokio::test(start_paused = true)]
async fn failing_own_credentials_are_checked_every_ten_seconds_at_most() {
    let (fake, _readiness) = start();
    pass(30).await;
    assert_eq!(fake.calls(), 1);
    for _ in 0..600 {
        fake.doubt.notify_one();
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    assert!((55..=62).contains(&fake.calls()), "{}", fake.calls());
}

#[tokio::test(start_paused = true)]
async fn a_daemon_is_not_ready_while_its_account_is_not_the_discovered_one() {
    let (fake, readiness, node) = (Arc::new(Fake::default()), Readiness::default(), NodeIdentity::default());
    let of = |account: &str| format!("arn:aws:sts::{account}:assumed-role/nodes/i-0f1e2d3c").parse().unwrap();
    node.set_caller(of("111122223333"));
    tokio::spawn(follow_identity(fake.clone(), policy(&node), readiness.step(OWN_IDENTITY), readiness.clone()));
    // It is never ready in between.
    let ready = readiness.clone();
    let never = tokio::spawn(async move { ready.ready().await });
    pass(1).await;
    assert_eq!(readiness.pending(), [OWN_ACCOUNT]);
    assert!(!never.is_finished());
    // Other keys, of another account that is not the discovered one either.
    for account in ["444455556666", "999999999999"] {
        node.set_caller(of(account));
        fake.doubt.notify_one();
        pass(1).await;
        let pending: &[&str] = if account == "999999999999" { &[] } else { &[OWN_ACCOUNT] };
        assert_eq!(readiness.pending(), pending);
    }
    assert!(never.is_finished());
    node.set_caller(of("111122223333"));
    fake.doubt.notify_one();
    pass(1).await;
    assert_eq!(readiness.pending(), [OWN_ACCOUNT]);
}
