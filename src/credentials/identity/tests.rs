#![allow(clippy::unwrap_used, reason = "a test says loudly what failed")]
use std::collections::VecDeque;
use std::sync::Arc;

use futures_util::future::join_all;
use tokio::time::advance;

use super::*;

const NODES: &str = "arn:aws:sts::111122223333:assumed-role/nodes/i-0";
const OTHERS: &str = "arn:aws:sts::111122223333:assumed-role/others/i-0";

/// Returns the responses that the test sets, each after one second. Fails when there are no more.
#[derive(Debug, Default)]
struct Fake {
    answers: std::sync::Mutex<VecDeque<&'static str>>,
    calls: std::sync::Mutex<Vec<Instant>>,
}

impl AskIdentity for Arc<Fake> {
    async fn ask(&self) -> Result<CallerIdentity, AssumeRoleError> {
        self.calls.lock().unwrap().push(Instant::now());
        tokio::time::sleep(Duration::from_secs(1)).await;
        let answer = self.answers.lock().unwrap().pop_front();
        answer.map(|arn| arn.parse().unwrap()).ok_or(AssumeRoleError::Throttled)
    }
}

fn fake(answers: &[&'static str]) -> Arc<Fake> {
    Arc::new(Fake { answers: std::sync::Mutex::new(answers.iter().copied().collect()), ..Fake::default() })
}

fn inquiry(answers: &[&'static str]) -> (Inquiry<Arc<Fake>>, Arc<Fake>, NodeIdentity) {
    let (fake, node) = (fake(answers), NodeIdentity::default());
    (Inquiry::new(fake.clone(), None, node.clone()), fake, node)
}

fn calls(fake: &Fake) -> usize {
    fake.calls.lock().unwrap().len()
}

fn caller(node: &NodeIdentity) -> Option<String> {
    node.known().caller.as_ref().map(|caller| caller.as_str().to_owned())
}

#[tokio::test(start_paused = true)]
async fn a_hundred_concurrent_callers_share_one_request() {
    let (inquiry, fake, node) = inquiry(&[NODES]);
    let answers = join_all((0..100).map(|_| inquiry.known())).await;
    assert!(answers.iter().all(Result::is_ok), "{answers:?}");
    assert_eq!((calls(&fake), caller(&node).as_deref()), (1, Some(NODES)));
}

#[tokio::test(start_paused = true)]
async fn a_failure_is_returned_at_once_until_its_pause_is_over() {
    let (inquiry, fake, _) = inquiry(&[]);
    let answers = join_all((0..100).map(|_| inquiry.known())).await;
    assert!(answers.iter().all(|answer| *answer == Err(AssumeRoleError::Throttled)), "{answers:?}");
    let began = Instant::now();
    assert_eq!((inquiry.known().await, inquiry.renew().await.0), (Err(AssumeRoleError::Throttled), Err(AssumeRoleError::Throttled)));
    assert_eq!((began.elapsed(), calls(&fake)), (Duration::ZERO, 1));
    advance(Duration::from_millis(2001)).await;
    assert!(inquiry.known().await.is_err());
    assert_eq!(calls(&fake), 2);
}

/// Regardless of the number of callers, an hour of failures causes about 65 requests.
#[tokio::test(start_paused = true)]
async fn pauses_grow_from_a_second_to_a_minute() {
    let (inquiry, fake, _) = inquiry(&[]);
    let began = Instant::now();
    while began.elapsed() < Duration::from_secs(3600) {
        let _ = inquiry.known().await;
        advance(Duration::from_millis(50)).await;
    }
    let calls = fake.calls.lock().unwrap();
    // The request itself takes one second.
    let pauses: Vec<_> = calls.windows(2).map(|two| two[1] - two[0] - Duration::from_secs(1)).collect();
    assert!((1.0..2.2).contains(&pauses[0].as_secs_f64()) && pauses[3] > pauses[1], "{pauses:?}");
    assert!(pauses[10..].iter().all(|pause| (45.0..60.2).contains(&pause.as_secs_f64())), "{pauses:?}");
    assert!(
        pauses[10..].windows(2).any(|two| two[0].abs_diff(two[1]) > Duration::from_millis(200)),
        "the pauses have no jitter: {pauses:?}"
    );
    assert!((55..90).contains(&calls.len()), "{}", calls.len());
}

#[tokio::test(start_paused = true)]
async fn a_caller_that_gives_up_leaves_the_request_to_the_next() {
    let (inquiry, fake, _) = inquiry(&[NODES]);
    assert!(tokio::time::timeout(Duration::from_millis(10), inquiry.known()).await.is_err());
    assert_eq!(inquiry.known().await, Ok(()));
    assert_eq!(calls(&fake), 2);
}

#[tokio::test(start_paused = true)]
async fn a_known_identity_is_renewed_and_kept_if_that_fails() {
    let (inquiry, fake, node) = inquiry(&[NODES, OTHERS]);
    let (first, pause) = inquiry.renew().await;
    assert_eq!(first.unwrap().caller, Some(NODES.parse().unwrap()));
    assert!((KNOWN.mul_f64(0.75)..=KNOWN).contains(&pause), "{pause:?}");
    let version = node.generation();
    assert_eq!(inquiry.renew().await.0.unwrap().caller, Some(OTHERS.parse().unwrap()));
    assert_eq!(caller(&node).as_deref(), Some(OTHERS));
    assert_ne!(node.generation(), version);
    let (failed, pause) = inquiry.renew().await;
    assert!(failed.is_err() && pause <= 2 * FIRST_PAUSE, "{pause:?}");
    // Callers neither wait nor see the failure.
    let began = Instant::now();
    assert_eq!((inquiry.known().await, began.elapsed()), (Ok(()), Duration::ZERO));
    assert_eq!((calls(&fake), caller(&node).as_deref()), (3, Some(OTHERS)));
}

/// The retries of a fleet that starts at once are spread out.
#[tokio::test(start_paused = true)]
async fn no_two_nodes_retry_at_the_same_time() {
    let mut pauses = Vec::new();
    for _ in 0..100 {
        let (inquiry, _, _) = inquiry(&[]);
        pauses.push(inquiry.renew().await.1);
    }
    pauses.sort();
    assert!(pauses.iter().all(|pause| (FIRST_PAUSE..=2 * FIRST_PAUSE).contains(pause)), "{pauses:?}");
    assert!(pauses[75] - pauses[25] > FIRST_PAUSE / 4, "{pauses:?}");
    pauses.dedup();
    assert!(pauses.len() > 90, "{pauses:?}");
}

#[tokio::test(start_paused = true)]
async fn with_an_intermediate_role_both_identities_are_required() {
    let (own, intermediate, node) = (fake(&[NODES, NODES]), fake(&[]), NodeIdentity::default());
    let inquiry = Inquiry::new(own.clone(), Some(intermediate.clone()), node.clone());
    assert_eq!(inquiry.known().await, Err(AssumeRoleError::Throttled));
    assert_eq!((caller(&node).as_deref(), node.known().has_all_callers()), (Some(NODES), false), "the first identity applies already");
    advance(2 * FIRST_PAUSE).await;
    intermediate.answers.lock().unwrap().push_back(OTHERS);
    assert_eq!(inquiry.known().await, Ok(()));
    assert!(node.known().has_all_callers() && node.known().caller() == Some(&OTHERS.parse().unwrap()));
    assert_eq!((calls(&own), calls(&intermediate)), (2, 2));
    // The reverse: the intermediate role's identity is known, and that of the daemon's own credentials is not.
    let (own, intermediate, node) = (fake(&[]), fake(&[OTHERS]), NodeIdentity::default());
    let inquiry = Inquiry::new(own.clone(), Some(intermediate), node.clone());
    assert_eq!(inquiry.known().await, Err(AssumeRoleError::Throttled));
    node.set_intermediate(OTHERS.parse().unwrap());
    assert!(!node.known().has_all_callers() && inquiry.known().await.is_err());
}

#[tokio::test(start_paused = true)]
async fn a_new_base_identity_applies_while_the_intermediate_one_fails() {
    let (own, intermediate, node) = (fake(&[NODES, OTHERS]), fake(&[NODES]), NodeIdentity::default());
    let inquiry = Inquiry::new(own, Some(intermediate), node.clone());
    assert!(inquiry.renew().await.0.is_ok());
    assert_eq!(inquiry.renew().await.0, Err(AssumeRoleError::Throttled));
    assert_eq!(caller(&node).as_deref(), Some(OTHERS));
    assert!(node.known().has_all_callers(), "the intermediate identity is still known");
}
