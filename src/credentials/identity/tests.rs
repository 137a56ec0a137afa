#![allow(clippy::unwrap_used, reason = "a test says loudly what failed")]
use std::collections::VecDeque;
use std::sync::Arc;

use futures_util::future::join_all;
use tokio::time::advance;

use super::*;

const NODES: &str = "arn:aws:sts::111122223333:assumed-role/nodes/i-0";
const OTHERS: &str = "arn:aws:sts::111122223333:assumed-role/others/i-0";

/// Answers what the test says, each after a second; beyond that it fails.
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

fn inquiry(answers: &[&'static str]) -> (Inquiry<Arc<Fake>>, Arc<Fake>, NodeIdentity) {
    let fake = Arc::new(Fake { answers: std::sync::Mutex::new(answers.iter().copied().collect()), ..Fake::default() });
    let node = NodeIdentity::default();
    (Inquiry::new(fake.clone(), node.clone()), fake, node)
}

fn calls(fake: &Fake) -> usize {
    fake.calls.lock().unwrap().len()
}

fn caller(node: &NodeIdentity) -> Option<String> {
    node.known().caller.as_ref().map(|caller| caller.as_str().to_owned())
}

#[tokio::test(start_paused = true)]
async fn a_hundred_who_need_it_are_one_question() {
    let (inquiry, fake, node) = inquiry(&[NODES]);
    let answers = join_all((0..100).map(|_| inquiry.known())).await;
    assert!(answers.iter().all(Result::is_ok), "{answers:?}");
    assert_eq!((calls(&fake), caller(&node).as_deref()), (1, Some(NODES)));
}

#[tokio::test(start_paused = true)]
async fn a_failure_is_the_answer_at_once_until_its_pause_is_over() {
    let (inquiry, fake, _) = inquiry(&[]);
    let answers = join_all((0..100).map(|_| inquiry.known())).await;
    assert!(answers.iter().all(|answer| *answer == Err(AssumeRoleError::Throttled)), "{answers:?}");
    let began = Instant::now();
    assert_eq!((inquiry.known().await, inquiry.renew().await.0), (Err(AssumeRoleError::Throttled), Err(AssumeRoleError::Throttled)));
    assert_eq!((began.elapsed(), calls(&fake)), (Duration::ZERO, 1));
    advance(Duration::from_millis(1001)).await;
    assert!(inquiry.known().await.is_err());
    assert_eq!(calls(&fake), 2);
}

/// However many ask, and however often: an hour without an answer is some 65 questions.
#[tokio::test(start_paused = true)]
async fn pauses_grow_from_a_second_to_a_minute() {
    let (inquiry, fake, _) = inquiry(&[]);
    let began = Instant::now();
    while began.elapsed() < Duration::from_secs(3600) {
        let _ = inquiry.known().await;
        advance(Duration::from_millis(50)).await;
    }
    let calls = fake.calls.lock().unwrap();
    // The question itself takes a second.
    let pauses: Vec<_> = calls.windows(2).map(|two| two[1] - two[0] - Duration::from_secs(1)).collect();
    assert!((1.0..1.2).contains(&pauses[0].as_secs_f64()) && pauses[3] > pauses[1], "{pauses:?}");
    assert!(pauses[10..].iter().all(|pause| (45.0..60.2).contains(&pause.as_secs_f64())), "{pauses:?}");
    assert!(pauses[10..].windows(2).any(|two| two[0].abs_diff(two[1]) > Duration::from_millis(200)), "they differ: {pauses:?}");
    assert!((55..90).contains(&calls.len()), "{}", calls.len());
}

#[tokio::test(start_paused = true)]
async fn an_asker_that_goes_away_leaves_the_question_to_the_next() {
    let (inquiry, fake, _) = inquiry(&[NODES]);
    assert!(tokio::time::timeout(Duration::from_millis(10), inquiry.known()).await.is_err());
    assert_eq!(inquiry.known().await, Ok(()));
    assert_eq!(calls(&fake), 2);
}

#[tokio::test(start_paused = true)]
async fn what_is_known_is_asked_anew_and_stays_when_that_fails() {
    let (inquiry, fake, node) = inquiry(&[NODES, OTHERS]);
    let (first, pause) = inquiry.renew().await;
    assert_eq!(first, Ok(NODES.parse().unwrap()));
    assert!((KNOWN.mul_f64(0.75)..=KNOWN).contains(&pause), "{pause:?}");
    let version = node.known().version;
    assert_eq!(inquiry.renew().await.0, Ok(OTHERS.parse().unwrap()));
    assert_eq!(caller(&node).as_deref(), Some(OTHERS));
    assert_ne!(node.known().version, version);
    let (failed, pause) = inquiry.renew().await;
    assert!(failed.is_err() && pause <= FIRST_PAUSE, "{pause:?}");
    // Nobody is kept waiting, nor told of it.
    let began = Instant::now();
    assert_eq!((inquiry.known().await, began.elapsed()), (Ok(()), Duration::ZERO));
    assert_eq!((calls(&fake), caller(&node).as_deref()), (3, Some(OTHERS)));
}
