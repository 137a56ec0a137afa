//! Runs one flight: a request to STS in its own task, from its place in the queue to its result.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use jiff::Timestamp;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use tracing::{info, warn};

use super::Sessions;
use super::flight::{Before, Flight, FlightState, Landed, is_usable, pause, remembered_for};
use crate::credentials::caller::Caller;
use crate::credentials::chain::{ChainCall, called_role};
use crate::credentials::gate::{Application, CallCause, TurnedAwayCall};
use crate::credentials::not_asked::NotAsked;
use crate::credentials::{AssumeRole, AssumeRoleError, Credentials};
use crate::policy::RoleRequest;
use crate::role::{RoleArn, SourceIdentity};

impl<A: AssumeRole> Sessions<A> {
    /// Starts a request to STS in its own task. Fails if the gate turns it away.
    pub(super) fn depart(
        &self,
        request: Arc<RoleRequest>,
        Before { earlier, failures, lapsed }: Before,
        cause: CallCause,
        callers: &[Arc<Caller>],
        is_new: bool,
    ) -> Result<Flight, TurnedAwayCall> {
        let (sts, metrics, clock) = (self.sts.clone(), self.metrics.clone(), self.clock.clone());
        let (settings, follower) = (self.settings, self.follower.get().cloned());
        let left = earlier.as_ref().map(|earlier| earlier.remaining(self.clock.now()));
        // The first of the pods that need the session, for the log.
        let (first_pod, pods) = (callers.first().cloned(), callers.len());
        let role_meters = self.metrics.role_meters(request.role().as_str());
        let (ticket, turn) = self.gate.queue(&Application { cause, left, callers, is_new })?;
        let (land, state) = watch::channel(FlightState { earlier, lapsed, landed: None });
        // Not a background task: it ends with its result, and a panic in it drops `land`, which its callers notice.
        tokio::spawn(async move {
            let (namespace, pod) = (first_pod.as_ref().map(|pod| &*pod.namespace), first_pod.as_ref().map(|pod| &*pod.name));
            // Notifies the follower even after a panic.
            let _told = follower.map(|follower| NotifyOnDrop { follower, request: request.clone() });
            // Dropped before `_told`, so that callers know by then that no result will come.
            let land = land;
            let mut permit = match turn.await {
                Ok(Ok(permit)) => permit,
                Ok(Err(why)) => return not_asked(&land, why),
                // The gate is gone.
                Err(_) => return,
            };
            let (first, mut questions) = (Instant::now(), 0);
            // The credentials of the source role, if there is a target role. They end with this flight.
            let mut source: Option<Credentials> = None;
            let (began, cause, call, answer) = loop {
                questions += 1;
                let call = ChainCall::of(&request, source.is_some());
                let (began, in_flight, cause) = (Instant::now(), metrics.sts_request(), permit.cause().name());
                let answer = sts.assume_role(&request, source.as_ref()).await;
                drop(in_flight);
                permit.answered(called_role(&request, call), &answer);
                let is_needed = failures == 0 && land.borrow().earlier.as_ref().is_none_or(|kept| !is_usable(kept, clock.now()));
                let is_late = first.elapsed() >= settings.timeout;
                match answer {
                    Ok(credentials) if call == Some(ChainCall::Source) => {
                        if let Err(error) = check_usable(&credentials, clock.now()) {
                            break (began, cause, call, Err(error));
                        }
                        metrics.sts_answered("ok", cause, began.elapsed());
                        if land.is_closed() {
                            // No pod needs the session any more.
                            return;
                        }
                        (source, questions) = (Some(credentials), 0);
                        permit = match permit.again().await {
                            Ok(Ok(permit)) => permit,
                            Ok(Err(why)) => return not_asked(&land, why),
                            Err(_) => return,
                        };
                    }
                    Err(error) if !is_late && permit.is_asked_again(&error, questions, is_needed) => {
                        metrics.sts_answered(error.name(), cause, began.elapsed());
                        metrics.sts_failed(error.name(), called_role(&request, call).as_str());
                        info!(
                            event = "sts-retry", namespace, pod, role = called_role(&request, call).as_str(), cause, outcome = error.name(),
                            %error,
                            "a request to STS failed; retrying it"
                        );
                        permit = match permit.again().await {
                            Ok(Ok(permit)) => permit,
                            Ok(Err(why)) => return not_asked(&land, why),
                            Err(_) => return,
                        };
                    }
                    answer => break (began, cause, call, answer),
                }
            };
            drop(permit);
            let source_access_key_id = source.as_ref().map(|source| source.access_key_id.clone());
            drop(source);
            // A failure like others: it is remembered, and cached credentials are kept.
            let landing = answer.and_then(|credentials| check_usable(&credentials, clock.now()).map(|()| Arc::new(credentials)));
            let (role, session) = (request.role().as_str(), request.session_name().as_str());
            let source_role = request.source_role().map(RoleArn::as_str);
            let source_identity = request.source_identity().map(SourceIdentity::as_str);
            match &landing {
                Ok(credentials) => {
                    metrics.sts_answered("ok", cause, began.elapsed());
                    info!(
                        event = "role-assumed",
                        namespace,
                        pod,
                        pods,
                        role,
                        source_role,
                        session,
                        source_identity,
                        cause,
                        access_key_id = %credentials.access_key_id,
                        source_access_key_id,
                        expires_at = %credentials.expires_at,
                        "assumed a role"
                    );
                }
                Err(error) => {
                    metrics.sts_answered(error.name(), cause, began.elapsed());
                    metrics.sts_failed(error.name(), called_role(&request, call).as_str());
                    // An unknown identity of the daemon is reported by the task that determines it.
                    if error.is_remembered() {
                        let kept_until =
                            land.borrow().earlier.as_ref().filter(|kept| is_usable(kept, clock.now())).map(|kept| kept.expires_at);
                        let meanwhile = match kept_until {
                            Some(_) => "retrying, serving the earlier credentials until kept_until",
                            None => "answering pods with an error until a retry succeeds",
                        };
                        warn!(
                            event = "assume-role-failed", namespace, pod, pods, role, source_role, call = call.map(ChainCall::name),
                            session, cause, outcome = error.name(),
                            kept_until = kept_until.map(tracing::field::display), %error, advice = error.advice_for(&request).as_deref(),
                            "cannot assume a role; {meanwhile}"
                        );
                    }
                }
            }
            land.send_modify(|FlightState { earlier, lapsed, landed }| {
                let held = earlier.as_ref().filter(|held| is_usable(held, clock.now()));
                let remembered = match (&landing, held) {
                    (Ok(_), _) => Duration::ZERO,
                    (Err(AssumeRoleError::Throttled), Some(held)) => pause(held, clock.now(), failures, settings.error_ttl),
                    (Err(error), _) => remembered_for(error, failures, settings.error_ttl),
                };
                if landing.is_ok() {
                    (*earlier, *lapsed) = (None, false);
                } else if held.is_none() {
                    *lapsed |= earlier.take().is_some();
                }
                *landed = Some(Landed { landing, until: Instant::now() + remembered });
            });
        });
        Ok(Flight { state, failures, ticket, role_meters, patient_until: OnceLock::new() })
    }
}

fn check_usable(credentials: &Credentials, now: Timestamp) -> Result<(), AssumeRoleError> {
    if is_usable(credentials, now) { Ok(()) } else { Err(AssumeRoleError::Expired { at: credentials.expires_at }) }
}

/// The flight ends without a request to STS. This is not remembered as a failure.
fn not_asked(land: &watch::Sender<FlightState>, why: NotAsked) {
    land.send_modify(|state| state.landed = Some(Landed { landing: Err(AssumeRoleError::NotAsked(why)), until: Instant::now() }));
}

/// Notifies the follower that the flight has completed when dropped.
struct NotifyOnDrop {
    follower: mpsc::UnboundedSender<Arc<RoleRequest>>,
    request: Arc<RoleRequest>,
}

impl Drop for NotifyOnDrop {
    fn drop(&mut self) {
        // The receiver is gone only at the end of the process.
        let _ = self.follower.send(self.request.clone());
    }
}
