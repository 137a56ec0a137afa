//! The current state of the fake STS, and the record of its calls.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use http::request::Parts;
use jiff::{SignedDuration, Timestamp};
use tokio::sync::watch;

use super::answer::{Fault, elements};
use super::assume::{Form, Request};
use super::issue::Session;
use super::model::{Behaviour, Call, Caller, Identity, Issued, Role, account_of};
use super::signature::{Presented, header};

/// The shared state of one service.
#[derive(Debug, Default)]
pub(super) struct State {
    known: Mutex<Known>,
    changed: watch::Sender<()>,
}

/// Everything behind the lock.
#[derive(Debug, Default)]
pub(super) struct Known {
    pub(super) callers: HashMap<String, Caller>,
    pub(super) roles: HashMap<String, Role>,
    pub(super) unknown_roles_allowed: bool,
    pub(super) behaviour: Behaviour,
    pub(super) role_behaviours: HashMap<String, Behaviour>,
    pub(super) skew: SignedDuration,
    pub(super) calls: Vec<Call>,
    pub(super) issued: Vec<Issued>,
    pub(super) in_flight: usize,
    pub(super) max_in_flight: usize,
}

/// A call from its arrival to its end. If it is dropped before [`OpenCall::finish`], its client abandoned it.
pub(super) struct OpenCall {
    state: Arc<State>,
    index: usize,
}

impl State {
    pub(super) fn lock(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A channel that changes at every arrival and every end of a call.
    pub(super) fn changes(&self) -> watch::Receiver<()> {
        self.changed.subscribe()
    }

    pub(super) fn open(self: &Arc<State>, call: Call) -> OpenCall {
        let mut known = self.lock();
        known.calls.push(call);
        known.in_flight += 1;
        known.max_in_flight = known.max_in_flight.max(known.in_flight);
        let index = known.calls.len() - 1;
        drop(known);
        self.changed.send_replace(());
        OpenCall { state: Arc::clone(self), index }
    }
}

impl OpenCall {
    /// The number of the call, counted from one.
    pub(super) fn number(&self) -> usize {
        self.index + 1
    }

    pub(super) fn caller_is(&self, identity: &Identity) {
        let mut known = self.state.lock();
        known.calls[self.index].caller_arn = Some(identity.arn.clone());
    }

    pub(super) fn finish(self, outcome: &str, access_key_id_issued: Option<String>) {
        let mut known = self.state.lock();
        let call = &mut known.calls[self.index];
        call.outcome = outcome.to_owned();
        call.access_key_id_issued = access_key_id_issued;
    }
}

impl Drop for OpenCall {
    fn drop(&mut self) {
        let mut known = self.state.lock();
        known.in_flight -= 1;
        let call = &mut known.calls[self.index];
        if call.outcome == Call::PENDING {
            call.outcome = Call::ABANDONED.to_owned();
        }
        drop(known);
        self.state.changed.send_replace(());
    }
}

impl Known {
    /// The service's clock.
    pub(super) fn now(&self) -> Timestamp {
        Timestamp::now().checked_add(self.skew).unwrap_or(Timestamp::MAX)
    }

    /// Returns the identity that signed this request, or why the signature is not accepted.
    pub(super) fn authenticate(&self, presented: &Presented, parts: &Parts, body: &[u8]) -> Result<Identity, Fault> {
        let caller = self.callers.get(&presented.access_key_id).ok_or_else(Fault::invalid_client_token_id)?;
        if !caller.token.accepts(header(parts, "x-amz-security-token")) {
            return Err(Fault::invalid_client_token_id());
        }
        presented.verify(&caller.secret, parts, body, self.now())?;
        if caller.expires_at.is_some_and(|end| end <= self.now()) {
            return Err(Fault::expired_token());
        }
        Ok(caller.identity.clone())
    }

    /// Returns the behaviour of this call, and advances a sequence.
    pub(super) fn take_behaviour(&mut self, role_arn: Option<&str>) -> Behaviour {
        let of_role = role_arn
            .and_then(|arn| self.role_behaviours.get_mut(arn))
            .map(Behaviour::take)
            .filter(|behaviour| !matches!(behaviour, Behaviour::Normal));
        of_role.unwrap_or_else(|| self.behaviour.take())
    }

    /// Returns the result element of an action, and the access key ID that it issues.
    pub(super) fn answer(&mut self, form: &Form, caller: &Identity, changed: Changed<'_>) -> Result<(String, Option<String>), Fault> {
        match form.get("Action").unwrap_or_default() {
            "AssumeRole" => self.assume_role(form, caller, changed),
            "GetCallerIdentity" => Ok((caller_identity(caller), None)),
            "" => Err(Fault::new(400, "MissingAction", "The request must contain the parameter Action.")),
            action => {
                let message = format!("Could not find operation {action} for version 2011-06-15");
                Err(Fault::new(400, "InvalidAction", message))
            }
        }
    }

    fn assume_role(&mut self, form: &Form, caller: &Identity, changed: Changed<'_>) -> Result<(String, Option<String>), Fault> {
        let request = Request::parse(form)?;
        let unknown = self.unknown_roles_allowed.then(|| Role::new(&request.role_arn));
        let role = self.roles.get(&request.role_arn).or(unknown.as_ref());
        request.authorize(caller, role)?;
        let asked = SignedDuration::from_secs(request.duration_seconds.into());
        let (role, lifetime) = (changed.role_arn.unwrap_or(&request.role_arn), changed.lifetime.unwrap_or(asked));
        let session = Session::new(role, &request.session_name, self.issued.len() as u64 + 1, self.now(), lifetime);
        let (tags, transitive) = request.tags_of_session(caller);
        let Session { issued, caller } = session.identified(request.source_identity_of_session(caller)).tagged(tags, transitive);
        let user = elements(&[("AssumedRoleId", &caller.identity.user_id), ("Arn", &caller.identity.arn)]);
        let credentials = elements(&[
            ("AccessKeyId", &issued.access_key_id),
            ("SecretAccessKey", &issued.secret_access_key),
            ("SessionToken", &issued.session_token),
            ("Expiration", &issued.expires_at.to_string()),
        ]);
        let source_identity = issued.source_identity.as_deref().map(|identity| elements(&[("SourceIdentity", identity)]));
        let source_identity = source_identity.unwrap_or_default();
        let result = format!("{source_identity}<AssumedRoleUser>{user}</AssumedRoleUser><Credentials>{credentials}</Credentials>");
        let access_key_id = issued.access_key_id.clone();
        self.callers.insert(access_key_id.clone(), caller);
        self.issued.push(issued);
        Ok((result, Some(access_key_id)))
    }
}

/// How a behaviour changes the requested session.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Changed<'a> {
    pub(super) lifetime: Option<SignedDuration>,
    pub(super) role_arn: Option<&'a str>,
}

fn caller_identity(caller: &Identity) -> String {
    elements(&[("Arn", &caller.arn), ("UserId", &caller.user_id), ("Account", account_of(&caller.arn))])
}
