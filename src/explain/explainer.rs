//! The end that explains and, where it is told to, asks STS.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Mutex;
use tokio::time::Instant;
use tracing::{info, warn};

use super::{By, Report, Session, look};
use crate::config::explain::PodName;
use crate::credentials::{AssumeRoleError, StsOfNode};
use crate::metrics::Metrics;
use crate::pods::Pods;
use crate::policy::{Policy, RoleRequest};

/// The least time from one question to STS to the next.
pub const ASK_AGAIN: Duration = Duration::from_secs(1);

/// Explains by one policy and one set of pods.
#[derive(Debug)]
pub struct Explainer<A> {
    /// The node of the pods.
    pub node: String,
    /// Who says so.
    pub by: By,
    /// What pods may have.
    pub policy: Arc<Policy>,
    /// What is known of pods.
    pub pods: Pods,
    /// What is asked with `--assume`.
    pub sts: A,
    /// Where questions to STS are counted.
    pub metrics: Metrics,
    /// When STS was asked last; held while it is asked.
    pub asked: Mutex<Option<Instant>>,
}

/// STS is being asked for another explanation, or was a moment ago.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("STS is asked for one explanation a second, and one at a time; ask again in a second")]
pub struct Busy;

impl<A: StsOfNode> Explainer<A> {
    /// Explains, and asks nobody.
    pub fn explain(&self, pod: &PodName) -> Report {
        self.look(pod).0
    }

    /// Explains and, where the pod may have its role, asks STS for it once. The session cache is passed by, so that what STS
    /// says is what it says now; the credentials are dropped before this returns.
    pub async fn assume(&self, pod: &PodName) -> Result<Report, Busy> {
        // A pod that is refused costs STS nothing.
        let (report, request) = self.look(pod);
        if request.is_none() {
            return Ok(report);
        }
        let mut asked = self.asked.try_lock().map_err(|_| Busy)?;
        if asked.is_some_and(|last| last.elapsed() < ASK_AGAIN) {
            return Err(Busy);
        }
        *asked = Some(Instant::now());
        let who = self.sts.own_identity().await;
        // Who asks is part of the decision: it is made again with what is known now.
        let (mut report, request) = self.look(pod);
        let Some(request) = request else { return Ok(report) };
        let answer = match &who {
            Ok(_) => self.ask(&request).await,
            Err(error) => Err(error.clone()),
        };
        report.asked(&request, who.ok(), answer);
        *asked = Some(Instant::now());
        Ok(report)
    }

    fn look(&self, pod: &PodName) -> (Report, Option<RoleRequest>) {
        look(pod, &self.node, self.by, &self.pods, &self.policy)
    }

    async fn ask(&self, request: &RoleRequest) -> Result<Session, AssumeRoleError> {
        let (began, _in_flight) = (Instant::now(), self.metrics.sts_request());
        let answer = self.sts.assume_role(request).await;
        let (role, session) = (request.role().as_str(), request.session_name().as_str());
        match answer {
            Ok(credentials) => {
                self.metrics.sts_answered("ok", "explain", began.elapsed());
                info!(role, session, access_key_id = %credentials.access_key_id, expires_at = %credentials.expires_at,
                    "assumed a role for an explanation; its credentials are dropped");
                let (access_key_id, expires_at) = (credentials.access_key_id.clone(), credentials.expires_at.to_string());
                Ok(Session { access_key_id, expires_at, life: credentials.life() })
            }
            Err(error) => {
                self.metrics.sts_answered(error.name(), "explain", began.elapsed());
                warn!(role, session, outcome = error.name(), "cannot assume a role for an explanation: {error}");
                Err(error)
            }
        }
    }
}
