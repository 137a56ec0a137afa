#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test says loudly what failed")]
//! A fake STS on tokio's clock, for the tests of the submodules.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::Semaphore;
use tokio::time::Instant;

use super::chain::called_role;
use super::*;
use crate::clock::Clock;
use crate::pods::{Pod, PodContext, PodUid};
use crate::policy::session::SessionRules;
use crate::policy::{Decision, Policy, Rules};

pub(super) const START: &str = "2026-01-01T00:00:00Z";
pub(super) const HOUR: i64 = 3600;

/// The response of STS to one call.
#[derive(Clone)]
pub(super) enum Answer {
    /// A session that expires after this many seconds.
    Session(i64),
    Error(AssumeRoleError),
    Panic,
}

/// An STS with the responses that the test sets. Its default response is a session of one hour.
#[derive(Clone)]
pub(super) struct FakeSts(Arc<State>);

struct State {
    clock: Clock,
    calls: Mutex<Vec<FakeCall>>,
    answers: Mutex<VecDeque<Answer>>,
    always: Mutex<Option<Answer>>,
    of_roles: Mutex<HashMap<String, Answer>>,
    /// Each call consumes one permit before it returns.
    gate: Semaphore,
    /// How long a response takes.
    latency: Mutex<Duration>,
}

/// One call that arrived.
struct FakeCall {
    at: Instant,
    request: RoleRequest,
    chain: Option<ChainCall>,
    /// The access key ID of the source role's session, if it signed the call.
    signed_by: Option<String>,
}

impl FakeCall {
    /// The name of the role that is assumed.
    fn role(&self) -> &str {
        called_role(&self.request, self.chain).name()
    }
}

impl FakeSts {
    pub(super) fn new() -> Self {
        Self(Arc::new(State {
            clock: Clock::following_tokio(START.parse().unwrap()),
            calls: Mutex::default(),
            answers: Mutex::default(),
            always: Mutex::default(),
            of_roles: Mutex::default(),
            gate: Semaphore::new(Semaphore::MAX_PERMITS / 2),
            latency: Mutex::default(),
        }))
    }

    pub(super) fn clock(&self) -> Clock {
        self.0.clock.clone()
    }

    pub(super) fn calls(&self) -> usize {
        self.0.calls.lock().unwrap().len()
    }

    pub(super) fn requests(&self) -> Vec<RoleRequest> {
        self.0.calls.lock().unwrap().iter().map(|call| call.request.clone()).collect()
    }

    /// Returns the role that each call assumes, with the access key that signs it if that is not the daemon's own.
    pub(super) fn steps(&self) -> Vec<(String, Option<String>)> {
        let calls = self.0.calls.lock().unwrap();
        calls.iter().map(|call| (call.role().to_owned(), call.signed_by.clone())).collect()
    }

    /// Returns the times of the calls for this role.
    pub(super) fn calls_for(&self, role: &str) -> Vec<Instant> {
        let calls = self.0.calls.lock().unwrap();
        calls.iter().filter(|call| call.role() == role).map(|call| call.at).collect()
    }

    /// Queues the response to one call. After the queued responses, `always` applies.
    pub(super) fn will(&self, answer: Answer) -> &Self {
        self.0.answers.lock().unwrap().push_back(answer);
        self
    }

    /// Sets the response to calls from now on.
    pub(super) fn always(&self, answer: Answer) -> &Self {
        *self.0.always.lock().unwrap() = Some(answer);
        self
    }

    /// Sets the response to calls for this role from now on.
    pub(super) fn for_role(&self, role: &str, answer: Answer) -> &Self {
        self.0.of_roles.lock().unwrap().insert(role.to_owned(), answer);
        self
    }

    /// Holds back the responses to calls from now on.
    pub(super) fn hold(&self) {
        self.0.gate.forget_permits(Semaphore::MAX_PERMITS);
    }

    pub(super) fn release(&self) {
        self.0.gate.add_permits(Semaphore::MAX_PERMITS / 2);
    }

    /// Sets the latency of calls from now on.
    pub(super) fn set_latency(&self, latency: Duration) {
        *self.0.latency.lock().unwrap() = latency;
    }

    fn answer(&self, role: &str) -> Answer {
        let of_role = self.0.of_roles.lock().unwrap_or_else(PoisonError::into_inner).get(role).cloned();
        let next = || self.0.answers.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
        let always = || self.0.always.lock().unwrap_or_else(PoisonError::into_inner).clone();
        of_role.or_else(next).or_else(always).unwrap_or(Answer::Session(HOUR))
    }
}

impl AssumeRole for FakeSts {
    async fn assume_role(&self, request: &RoleRequest, source: Option<&Credentials>) -> Result<Credentials, AssumeRoleError> {
        let chain = ChainCall::of(request, source.is_some());
        let number = {
            let mut calls = self.0.calls.lock().unwrap_or_else(PoisonError::into_inner);
            let signed_by = source.map(|source| source.access_key_id.clone());
            calls.push(FakeCall { at: Instant::now(), request: request.clone(), chain, signed_by });
            calls.len()
        };
        self.0.gate.acquire().await.unwrap().forget();
        let latency = *self.0.latency.lock().unwrap_or_else(PoisonError::into_inner);
        if !latency.is_zero() {
            tokio::time::sleep(latency).await;
        }
        match self.answer(called_role(request, chain).name()) {
            Answer::Session(seconds) => {
                let issued_at = self.0.clock.now();
                Ok(Credentials::new(
                    format!("ASIA{number}"),
                    "secret".to_owned().into(),
                    "token".to_owned().into(),
                    issued_at,
                    issued_at + jiff::SignedDuration::from_secs(seconds),
                ))
            }
            Answer::Error(error) => Err(error.in_chain(chain)),
            Answer::Panic => panic!("the test wants it"),
        }
    }
}

/// Returns the request of a pod that has this role.
pub(crate) fn request(role: &str) -> RoleRequest {
    request_by(role, SessionRules::default())
}

/// Returns the request of a pod that has this role, with a source identity from this template.
pub(super) fn request_with_source_identity(role: &str, template: &str) -> RoleRequest {
    request_by(role, SessionRules { source_identity: Some(template.parse().unwrap()), ..SessionRules::default() })
}

/// Returns the request of a pod that has this role and this external ID.
pub(super) fn request_with_external_id(role: &str, id: &str) -> RoleRequest {
    request_of(&Pod { external_id: Some(id.to_owned()), ..pod(role) }, SessionRules::default())
}

/// Returns the request of a pod whose role assumes this target role.
pub(super) fn chained_request(role: &str, target: &str) -> RoleRequest {
    request_of(&chained_pod(role, target), SessionRules::default())
}

/// Returns the one pod that has this role and this target role.
pub(super) fn chained_pod(role: &str, target: &str) -> Pod {
    Pod { target_role: Some(target.to_owned()), ..pod(role) }
}

fn request_by(role: &str, sessions: SessionRules) -> RoleRequest {
    request_of(&pod(role), sessions)
}

fn request_of(pod: &Pod, sessions: SessionRules) -> RoleRequest {
    let rules = Rules { base: Some("arn:aws:iam::111122223333:role/".parse().unwrap()), sessions, ..Rules::default() };
    let policy = Policy::new(rules, crate::policy::node::NodeIdentity::default()).unwrap();
    match policy.decide(pod, &PodContext::default()) {
        Decision::Allow { request, .. } => request,
        Decision::Deny(denial) => panic!("{denial}"),
    }
}

/// Returns the one pod that has this role.
pub(super) fn pod(role: &str) -> Pod {
    Pod { uid: PodUid(format!("uid-of-{role}").into()), role: Some(role.to_owned()), ..Pod::for_test("default", "pod") }
}

pub(super) fn denied() -> AssumeRoleError {
    AssumeRoleError::Denied { message: "no".to_owned() }
}

/// Runs everything else that can run, without time passing.
pub(super) async fn settle() {
    for _ in 0..50 {
        tokio::task::yield_now().await;
    }
}

#[tokio::test(start_paused = true)]
async fn neither_clock_changes_nor_sleep_extend_the_lifetime() {
    const LIFE: Duration = Duration::from_secs(3600);
    let noon: Timestamp = "2026-01-01T12:00:00Z".parse().unwrap();
    let minutes = |minutes: i64| noon + jiff::SignedDuration::from_mins(minutes);
    let credentials = Credentials::new("ASIA1".to_owned(), "secret".into(), "token".into(), noon, noon + LIFE);
    assert_eq!(credentials.remaining(noon), LIFE);
    assert_eq!(credentials.remaining(minutes(-10)), LIFE, "the wall clock was set back");
    assert_eq!(credentials.remaining(minutes(61)), Duration::ZERO, "the machine slept, or the clock was set forward");
    tokio::time::advance(Duration::from_secs(50 * 60)).await;
    assert_eq!(credentials.remaining(minutes(40)), Duration::from_secs(600), "the clock was set back ten minutes, after fifty");
    assert_eq!(credentials.remaining(minutes(55)), Duration::from_secs(300), "the clock was set forward five minutes");
}

#[test]
fn a_document_is_rendered_once() {
    let now: Timestamp = "2026-01-01T12:00:00Z".parse().unwrap();
    let credentials = Credentials::new("ASIA1".to_owned(), "secret".into(), "token".into(), now, now);
    let rendered = std::cell::Cell::new(0);
    let render = |text: &'static str| {
        rendered.set(rendered.get() + 1);
        Ok::<_, ()>(Zeroizing::new(text.as_bytes().to_vec()))
    };
    for _ in 0..2 {
        assert_eq!(credentials.document(|_| render("plain")).unwrap(), "plain");
        assert_eq!(credentials.extended_document(|_| render("extended")).unwrap(), "extended");
    }
    assert_eq!(rendered.get(), 2);
}
