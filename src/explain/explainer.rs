//! Explains pods and, with `--assume`, calls STS.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Mutex;
use tokio::time::Instant;
use tracing::{info, warn};

use super::look::look;
use super::modes::RequestModes;
use super::{AskedSts, By, Report, Session, pod_identity};
use crate::advice::join;
use crate::backoff::Backoff;
use crate::config::PodIdentityConfig;
use crate::config::explain_command::PodReference;
use crate::connections::ConnectionRecord;
use crate::credentials::cache::Sessions;
use crate::credentials::chain::{ChainCall, called_role};
use crate::credentials::{AssumeRoleError, Credentials, StsOfNode};
use crate::metrics::Metrics;
use crate::pods::{PodManifest, PodManifests, Pods};
use crate::policy::{Policy, RoleRequest};
use crate::readiness::Readiness;

/// The shortest time between two calls of STS. It doubles with each failure.
pub(crate) const ASK_AGAIN: Duration = Duration::from_secs(1);
/// The longest time between two calls of STS.
pub(crate) const LAST_PAUSE: Duration = Duration::from_secs(60);
/// The shortest time between two requests for manifests.
const READ_AGAIN: Duration = Duration::from_millis(100);
/// The watch counts as silent after this time. The API sends a bookmark about every minute, even if nothing changes.
const SILENT: Duration = Duration::from_secs(180);

/// Explains pods by one policy and one set of pods.
#[derive(Debug)]
pub(crate) struct Explainer<A> {
    /// The node of the pods.
    pub node: String,
    /// The source of the decision.
    pub by: By,
    /// The policy.
    pub policy: Arc<Policy>,
    /// The known pods.
    pub pods: Pods,
    /// STS, which `--assume` calls once each time.
    pub sts: A,
    /// Counts the calls of STS.
    pub metrics: Metrics,
    /// When STS may be called again.
    pub pace: ExplainRate,
    /// Where the manifests of pods are read.
    pub manifests: PacedManifests,
    /// The settings of Pod Identity; `None` if it is off.
    pub pod_identity: Option<PodIdentityConfig>,
    /// The daemon's own state; `None` if the Kubernetes API is the source.
    pub daemon: Option<OfDaemon<A>>,
}

/// The daemon's own state.
#[derive(Debug)]
pub(crate) struct OfDaemon<A> {
    /// The daemon's readiness.
    pub readiness: Readiness,
    /// The sessions, with their last failures.
    pub sessions: Arc<Sessions<A>>,
    /// The limits that closed connections of pods.
    pub limits: ConnectionRecord,
    /// What its settings mean for requests.
    pub modes: RequestModes,
}

/// Reads manifests one at a time, and not too often: everything in the node's network can ask for explanations.
#[derive(Debug)]
pub(crate) struct PacedManifests {
    source: Arc<dyn PodManifests>,
    last: Mutex<Option<Instant>>,
}

impl PacedManifests {
    /// Creates a limit for this source.
    pub(crate) fn new(source: Arc<dyn PodManifests>) -> Self {
        Self { source, last: Mutex::default() }
    }

    async fn read(&self, namespace: &str, pod: &str) -> Result<PodManifest, String> {
        let mut last = self.last.lock().await;
        if let Some(last) = *last {
            tokio::time::sleep_until(last + READ_AGAIN).await;
        }
        *last = Some(Instant::now());
        self.source.read(namespace, pod).await
    }
}

/// Limits the calls of STS for explanations: one at a time, and fewer while they fail.
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

/// Another explanation is calling STS, or did so a moment ago.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "too many requests with --assume: one at a time, at most one a second, and fewer while STS fails; try again in {} s",
    .0.as_secs_f64().ceil()
)]
pub(crate) struct Busy(Duration);

impl<A: StsOfNode> Explainer<A> {
    /// Explains a pod without calling STS.
    pub(crate) async fn explain(&self, pod: &PodReference) -> Report {
        let (mut report, request) = self.look(pod);
        self.note_state(&mut report, pod, request.as_ref()).await;
        self.note_pod_identity(&mut report).await;
        report
    }

    /// Adds what the pod's manifest says about Pod Identity.
    async fn note_pod_identity(&self, report: &mut Report) {
        // Of a pod that is not known there is nothing to explain.
        if self.pods.named(&report.namespace, &report.pod).is_some() {
            let manifest = self.manifests.read(&report.namespace, &report.pod).await;
            pod_identity::look(manifest, self.pod_identity.as_ref(), &self.pods, report);
        }
    }

    /// Notes what else keeps the pod from its credentials.
    async fn note_state(&self, report: &mut Report, name: &PodReference, request: Option<&RoleRequest>) {
        let Some(daemon) = &self.daemon else { return };
        let pending = daemon.readiness.pending();
        if !pending.is_empty() {
            report.notes.push(format!("the daemon is not ready, waiting for: {}", pending.join(", ")));
        }
        let silence = self.metrics.watch_silence();
        if silence >= SILENT {
            let silence = humantime::format_duration(Duration::from_secs(silence.as_secs()));
            report
                .notes
                .push(format!("the daemon has not heard from the Kubernetes API for {silence}, and does not know what changed since"));
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
                    format!("requests of this pod for a session are turned away now: {why}. To fix: {}", why.advice())
                }
                error => {
                    format!(
                        "the last request to STS for this session failed, and pods get this error until the next attempt: {}",
                        join(&error.to_string(), error.advice_for(request).as_deref())
                    )
                }
            });
        }
        if request.is_some() {
            report.notes.push(daemon.modes.note(&report.namespace));
        }
    }

    /// Explains a pod and, if it may have its role, calls AssumeRole once. This bypasses the session cache, so the answer is
    /// current. The credentials are dropped before this returns.
    pub(crate) async fn assume(&self, pod: &PodReference) -> Result<Report, Busy> {
        // STS is not called for a pod that is refused.
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
        // A client that disconnects before the call has finished counts as a failure.
        pace.answered(false);
        let who = self.sts.own_identity().await;
        // The caller's identity is part of the decision, so decide again with what is known now.
        let (mut report, request) = self.look(pod);
        self.note_state(&mut report, pod, request.as_ref()).await;
        self.note_pod_identity(&mut report).await;
        let Some(request) = request else { return Ok(report) };
        let asked = match &who {
            Ok(_) => self.ask(&request).await,
            Err(error) => AskedSts { source_access_key_id: None, answer: Err(error.clone()) },
        };
        pace.failures = failures;
        pace.answered(asked.answer.is_ok());
        report.asked(&request, who.ok(), asked);
        Ok(report)
    }

    fn look(&self, pod: &PodReference) -> (Report, Option<RoleRequest>) {
        look(pod, &self.node, self.by, &self.pods, &self.policy)
    }

    /// Assumes the role, after its source role if it is a target role.
    async fn ask(&self, request: &RoleRequest) -> AskedSts {
        if request.source_role().is_none() {
            return AskedSts { source_access_key_id: None, answer: self.ask_once(request, None).await.map(Session::of) };
        }
        match self.ask_once(request, None).await {
            Ok(source) => {
                let answer = self.ask_once(request, Some(&source)).await.map(Session::of);
                AskedSts { source_access_key_id: Some(source.access_key_id.clone()), answer }
            }
            Err(error) => AskedSts { source_access_key_id: None, answer: Err(error) },
        }
    }

    async fn ask_once(&self, request: &RoleRequest, source: Option<&Credentials>) -> Result<Credentials, AssumeRoleError> {
        let mut answer = self.sts.assume_role(request, source).await;
        if let Err(error @ AssumeRoleError::TooLong { .. }) = &answer {
            self.metrics.explained(error.name());
            answer = self.sts.assume_role(request, source).await;
        }
        let call = ChainCall::of(request, source.is_some());
        let (role, session) = (called_role(request, call).as_str(), request.session_name().as_str());
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
                Ok(credentials)
            }
            Err(error) => {
                self.metrics.explained(error.name());
                warn!(
                    event = "explain-assume-role-failed", role, session, outcome = error.name(), %error,
                    advice = error.advice_for(request).as_deref(),
                    "cannot assume a role for 'rolegate explain'; pods are not affected"
                );
                Err(error)
            }
        }
    }
}
