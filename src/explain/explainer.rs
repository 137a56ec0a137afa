//! The end that explains and, where it is told to, asks STS.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Mutex;
use tokio::time::Instant;
use tracing::{info, warn};

use super::look::look;
use super::{By, Report, Session};
use crate::backoff::Backoff;
use crate::config::explain_command::PodReference;
use crate::connections::ConnectionRecord;
use crate::credentials::cache::Sessions;
use crate::credentials::{AssumeRoleError, StsOfNode};
use crate::metrics::Metrics;
use crate::pods::Pods;
use crate::policy::{Policy, RoleRequest};
use crate::readiness::Readiness;

/// The least time from one question to STS to the next. It doubles with each failure.
pub(crate) const ASK_AGAIN: Duration = Duration::from_secs(1);
/// The longest.
pub(crate) const LAST_PAUSE: Duration = Duration::from_secs(60);
/// The watch is told to be silent after this. The API is heard of each minute, also where nothing happens.
const SILENT: Duration = Duration::from_secs(180);

/// Explains by one policy and one set of pods.
#[derive(Debug)]
pub(crate) struct Explainer<A> {
    /// The node of the pods.
    pub node: String,
    /// Who says so.
    pub by: By,
    /// What pods may have.
    pub policy: Arc<Policy>,
    /// What is known of pods.
    pub pods: Pods,
    /// What is asked with `--assume`, once each time.
    pub sts: A,
    /// Where questions to STS are counted.
    pub metrics: Metrics,
    /// When STS may be asked again.
    pub pace: ExplainRate,
    /// What a daemon knows besides; `None` where the Kubernetes API is asked.
    pub daemon: Option<OfDaemon<A>>,
}

/// What a daemon knows besides, of itself.
#[derive(Debug)]
pub(crate) struct OfDaemon<A> {
    /// What is still to be done.
    pub readiness: Readiness,
    /// The sessions, of which failures are told.
    pub sessions: Arc<Sessions<A>>,
    /// Which limits closed connections of pods.
    pub limits: ConnectionRecord,
}

/// When STS may be asked for explanations: one at a time, and more and more rarely while it gives nothing.
#[derive(Debug, Default)]
pub(crate) struct ExplainRate(Mutex<Paced>);

#[derive(Debug, Default)]
struct Paced {
    not_before: Option<Instant>,
    failures: u32,
}

impl Paced {
    fn answered(&mut self, gave: bool) {
        self.failures = if gave { 0 } else { self.failures.saturating_add(1) };
        let pause = Backoff::new(ASK_AGAIN, LAST_PAUSE).pause(self.failures);
        self.not_before = Some(Instant::now() + pause);
    }
}

/// STS is being asked for another explanation, or was a moment ago.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "STS is asked for one explanation at a time, one a second, and more rarely while it gives nothing; ask again in {} s",
    .0.as_secs_f64().ceil()
)]
pub(crate) struct Busy(Duration);

impl<A: StsOfNode> Explainer<A> {
    /// Explains, and asks nobody.
    pub(crate) async fn explain(&self, pod: &PodReference) -> Report {
        let (mut report, request) = self.look(pod);
        self.note_state(&mut report, pod, request.as_ref()).await;
        report
    }

    /// What keeps a pod that may have its role from getting it all the same.
    async fn note_state(&self, report: &mut Report, name: &PodReference, request: Option<&RoleRequest>) {
        let Some(daemon) = &self.daemon else { return };
        let pending = daemon.readiness.pending();
        if !pending.is_empty() {
            report.notes.push(format!("the daemon is not ready; it waits for: {}", pending.join(", ")));
        }
        let silence = self.metrics.watch_silence();
        if silence >= SILENT {
            let silence = humantime::format_duration(Duration::from_secs(silence.as_secs()));
            report.notes.push(format!(
                "the watch of this node's pods has not heard from the Kubernetes API for {silence}: what has changed since is not known"
            ));
        }
        if let Some((pod, _)) = self.pods.named(&report.namespace, &report.pod) {
            report.notes.extend(daemon.limits.of(&pod).iter().map(ToString::to_string));
            report.notes.extend(self.pods.waits_turned_away_of(&pod).map(|waits| waits.to_string()));
        }
        if let Some(request) = request
            && let Some((pod, _)) = self.pods.named(name.namespace(), name.name())
            && let Some(error) = daemon.sessions.remembered_failure(request, &pod).await
        {
            report.notes.push(match error {
                AssumeRoleError::NotAsked(why) => {
                    format!("requests of this pod for a session are turned away at present: {why}; {}", why.advice())
                }
                error => {
                    format!(
                        "STS returned no credentials for this session at the last attempt, and pods get the same error until the \
                         next attempt: {error}"
                    )
                }
            });
        }
    }

    /// Explains and, where the pod may have its role, asks STS for it once. The session cache is passed by, so that what STS
    /// says is what it says now; the credentials are dropped before this returns.
    pub(crate) async fn assume(&self, pod: &PodReference) -> Result<Report, Busy> {
        // A pod that is refused costs STS nothing.
        let (_, request) = self.look(pod);
        if request.is_none() {
            return Ok(self.explain(pod).await);
        }
        let mut pace = self.pace.0.try_lock().map_err(|_| Busy(ASK_AGAIN))?;
        let wait = pace.not_before.map_or(Duration::ZERO, |at| at.saturating_duration_since(Instant::now()));
        if !wait.is_zero() {
            return Err(Busy(wait));
        }
        let failures = pace.failures;
        // Where the asker goes away meanwhile, it counts as a failure.
        pace.answered(false);
        let who = self.sts.own_identity().await;
        // Who asks is part of the decision: it is made again with what is known now.
        let (mut report, request) = self.look(pod);
        self.note_state(&mut report, pod, request.as_ref()).await;
        let Some(request) = request else { return Ok(report) };
        let answer = match &who {
            Ok(_) => self.ask(&request).await,
            Err(error) => Err(error.clone()),
        };
        pace.failures = failures;
        pace.answered(answer.is_ok());
        report.asked(&request, who.ok(), answer);
        Ok(report)
    }

    fn look(&self, pod: &PodReference) -> (Report, Option<RoleRequest>) {
        look(pod, &self.node, self.by, &self.pods, &self.policy)
    }

    async fn ask(&self, request: &RoleRequest) -> Result<Session, AssumeRoleError> {
        let mut answer = self.sts.assume_role(request).await;
        if let Err(error @ AssumeRoleError::TooLong { .. }) = &answer {
            self.metrics.explained(error.name());
            answer = self.sts.assume_role(request).await;
        }
        let (role, session) = (request.role().as_str(), request.session_name().as_str());
        match answer {
            Ok(credentials) => {
                self.metrics.explained("ok");
                info!(
                    event = "explain-role-assumed",
                    role,
                    session,
                    access_key_id = %credentials.access_key_id,
                    expires_at = %credentials.expires_at,
                    "assumed a role for 'rolegate explain'; discarding its credentials"
                );
                let (access_key_id, expires_at) = (credentials.access_key_id.clone(), credentials.expires_at.to_string());
                Ok(Session { access_key_id, expires_at, life: credentials.life() })
            }
            Err(error) => {
                self.metrics.explained(error.name());
                warn!(
                    event = "explain-assume-role-failed", role, session, outcome = error.name(), %error,
                    "cannot assume a role for 'rolegate explain'; pods are not affected"
                );
                Err(error)
            }
        }
    }
}
