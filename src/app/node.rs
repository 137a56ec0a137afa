//! What the daemon learns of its node at AWS while it serves: who it is itself, and which role the instance has. Both are
//! refused to pods; both may change.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;
use tracing::{debug, error, info, warn};

use crate::advice::{Advise as _, chain};
use crate::backoff::Backoff;
use crate::credentials::AssumeRoleError;
use crate::credentials::sts::{Aws, Sts};
use crate::log_once::{Changes, Condition};
use crate::metrics::Metrics;
use crate::policy::Policy;
use crate::policy::discovered::ForeignAccount;
use crate::policy::node::{KnownNode, NodeIdentity};
use crate::readiness::{ONE_ACCOUNT, OWN_ACCOUNT, OWN_CREDENTIALS, Readiness, ReadinessStep};
use crate::role::CallerIdentity;

/// How long STS must have refused the daemon's own credentials before the daemon is not ready.
const REFUSED_FOR_LONG: Duration = Duration::from_secs(300);
/// How soon after an answer it is asked anew at the earliest, whatever comes of assuming roles.
const DOUBTED_AGAIN: Duration = Duration::from_secs(10);

/// How long the role of the instance is not asked for again: its profile may be replaced.
const INSTANCE_ROLE_KNOWN: Duration = Duration::from_secs(3600);
/// How soon it is asked for again where there was none.
const NO_ROLE_AGAIN: Duration = Duration::from_secs(60);
/// The pause after the first failure; it doubles with each more.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
/// The longest pause.
const LAST_PAUSE: Duration = Duration::from_secs(300);

/// Who tells the daemon who it is: STS, or a test's idea of it.
pub(super) trait IdentitySource: Send + Sync + 'static {
    /// See [`Sts::renew_identity`].
    fn renew_identity(&self) -> impl Future<Output = (Result<Arc<KnownNode>, AssumeRoleError>, Duration)> + Send;
    /// See [`Sts::doubted`].
    fn doubted(&self) -> impl Future<Output = ()> + Send;
}

impl IdentitySource for Sts {
    async fn renew_identity(&self) -> (Result<Arc<KnownNode>, AssumeRoleError>, Duration) {
        Self::renew_identity(self).await
    }

    async fn doubted(&self) {
        Self::doubted(self).await;
    }
}

/// Asks who the daemon is to AWS until it is known, and each hour then, or when a role could not be assumed for the sake of the
/// daemon's own credentials. Says so when it is another. `step` is done when it is known first: before, no pod gets anything.
pub(super) async fn follow_identity(sts: impl IdentitySource, policy: Arc<Policy>, step: ReadinessStep, readiness: Readiness) {
    let mut step = Some(step);
    let mut logged = Changes::default();
    let mut account = AccountReadiness { readiness: readiness.clone(), refused: None };
    let mut trust = Trust { readiness, refused_since: None, lost: None };
    loop {
        let (asked, pause) = sts.renew_identity().await;
        // Even if the intermediate role is not known: it does not count for this.
        account.compare(policy.foreign_account());
        if asked.is_ok()
            && let Some(step) = step.take()
        {
            step.done();
        }
        // Before it is known first, the step says so.
        if step.is_none() {
            trust.heard(asked.as_ref().err());
        }
        match &asked {
            Ok(known) => {
                let callers = (known.caller.clone(), known.intermediate.clone());
                if !logged.is_new(callers) {
                    debug!("the daemon's own AWS identity is the same");
                } else {
                    if let Some(intermediate) = known.caller().filter(|caller| known.caller.as_ref() != Some(caller)) {
                        info!(
                            event = "intermediate-identity",
                            arn = intermediate.as_str(),
                            "AWS confirmed the intermediate role's session"
                        );
                    }
                    info!(
                        event = "own-identity",
                        arn = known.caller.as_ref().map_or("", CallerIdentity::as_str),
                        "AWS confirmed the daemon's own identity"
                    );
                }
            }
            Err(error) if logged.is_empty() => {
                warn!(
                    event = "own-identity-unknown",
                    error = chain(error),
                    advice = error.advice().as_deref(),
                    "cannot determine the daemon's own AWS identity; retrying, refusing all pods until it is known; check the daemon's AWS \
                     credentials and its connection to STS"
                )
            }
            Err(error) => {
                warn!(
                    event = "own-identity-renewal-failed",
                    error = chain(error),
                    advice = error.advice().as_deref(),
                    "cannot confirm the daemon's own AWS identity; retrying, using the last known one; check the daemon's AWS credentials \
                     and its connection to STS"
                )
            }
        }
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = async { tokio::time::sleep(DOUBTED_AGAIN).await; sts.doubted().await }, if asked.is_ok() => {}
        }
    }
}

/// Tracks for readiness whether the account that the metadata service named is the daemon's own. A rollout must not continue with
/// daemons that refuse roles which the previous ones served.
#[derive(Debug)]
struct AccountReadiness {
    readiness: Readiness,
    /// The account that is refused at present, and the readiness step that is held meanwhile.
    refused: Option<(ForeignAccount, ReadinessStep)>,
}

impl AccountReadiness {
    fn compare(&mut self, foreign: Option<ForeignAccount>) {
        match (foreign, self.refused.take()) {
            (Some(foreign), Some((before, step))) if foreign == before => self.refused = Some((foreign, step)),
            (Some(foreign), before) => {
                error!(
                    event = "foreign-account",
                    account = &*foreign.account,
                    partition = foreign.partition.name(),
                    identity = foreign.identity.as_str(),
                    "the account from the metadata service (account) is not the account of the daemon's own identity (identity); not \
                     ready, refusing every role of that account; give --base-role-arn and --default-role instead of \
                     --auto-discover-..., or check what answers at --metadata-addr"
                );
                let step = before.map_or_else(|| self.readiness.step(OWN_ACCOUNT), |(_, step)| step);
                self.refused = Some((foreign, step));
            }
            (None, Some((_, step))) => {
                info!(
                    event = "own-account",
                    "the account from the metadata service is again the account of the daemon's own identity; serving the roles of that \
                     account"
                );
                step.done();
            }
            (None, None) => {}
        }
    }
}

/// Follows whether STS and the metadata service agree about the account of this node. While they do not, every role is refused, and
/// the daemon is not ready.
pub(super) async fn follow_contradictions(node: NodeIdentity, metrics: Metrics, readiness: Readiness) {
    let mut changes = node.changes();
    let (mut logged, mut held) = (Changes::default(), None);
    loop {
        let contradiction = changes.borrow_and_update().contradiction();
        metrics.account_contradicted(contradiction.is_some());
        match contradiction {
            Some(contradiction) => {
                held.get_or_insert_with(|| readiness.step(ONE_ACCOUNT));
                if logged.is_new(contradiction.clone()) {
                    error!(
                        event = "account-contradicted", %contradiction,
                        "STS and the metadata service contradict each other, or themselves, about the AWS account of this node; something \
                         else answers at the metadata address, or did; not ready, refusing every role; find out what answers there \
                         ('rolegate redirect status'), then restart the daemon; --base-role-arn does not depend on the metadata service"
                    );
                }
            }
            None => {
                if let Some(step) = held.take() {
                    logged.forget();
                    info!(event = "account-consistent", "STS and the metadata service agree about the AWS account of this node again");
                    ReadinessStep::done(step);
                }
            }
        }
        // The sender lives in `node`, so waiting cannot fail.
        let _ = changes.changed().await;
    }
}

/// Whether the daemon's own credentials serve, for readiness. An outage of STS says nothing of them, and neither does
/// throttling: only what is said against them counts.
#[derive(Debug)]
struct Trust {
    readiness: Readiness,
    /// When they were refused first, with no good answer since.
    refused_since: Option<Instant>,
    /// Held for as long as that keeps the daemon from being ready.
    lost: Option<ReadinessStep>,
}

impl Trust {
    fn heard(&mut self, error: Option<&AssumeRoleError>) {
        match error {
            None => {
                self.refused_since = None;
                if let Some(step) = self.lost.take() {
                    info!(event = "own-credentials-accepted", "AWS accepts the daemon's own credentials again");
                    step.done();
                }
            }
            Some(error @ AssumeRoleError::OwnIdentity { .. }) => {
                let since = *self.refused_since.get_or_insert_with(Instant::now);
                if self.lost.is_none() && since.elapsed() >= REFUSED_FOR_LONG {
                    let minutes = since.elapsed().as_secs() / 60;
                    error!(
                        event = "own-credentials-refused",
                        minutes,
                        error = chain(error),
                        advice = error.advice().as_deref(),
                        "AWS has rejected the daemon's own credentials for several minutes; not ready, retrying; check the daemon's \
                         credentials and their role"
                    );
                    self.lost = Some(self.readiness.step(OWN_CREDENTIALS));
                }
            }
            Some(_) => {}
        }
    }
}

/// Learns the role of the instance. The daemon may be another (by a token of its service account, or keys of its own):
/// pods do not get the instance's role then either.
pub(super) async fn follow_instance_role(aws: Aws, node: NodeIdentity) {
    let mut failures = 0_u32;
    let (known, failing, mut missing) = (Condition::default(), Condition::default(), 0_u8);
    loop {
        match aws.instance_role().await {
            // While a profile is replaced there is none for a moment. What was known is refused to pods until there
            // was none for some time.
            Ok(None) if missing < 2 && node.known().instance_role.is_some() => {
                missing += 1;
                tokio::time::sleep(NO_ROLE_AGAIN).await;
            }
            Ok(role) => {
                let is_another = node.set_instance_role(role.clone());
                if known.begins() || is_another {
                    info!(
                        event = "instance-role",
                        role = role.as_ref().map_or("none", |role| role.as_str()),
                        "read the role of this instance from the metadata service"
                    );
                }
                let again = if role.is_some() { INSTANCE_ROLE_KNOWN } else { NO_ROLE_AGAIN };
                failures = 0;
                failing.ends();
                if role.is_some() {
                    missing = 0;
                }
                tokio::time::sleep(again).await;
            }
            Err(error) => {
                // Nothing is wrong with a node that is not on EC2, or that keeps its daemon from the metadata service.
                if failing.begins() {
                    info!(
                        event = "instance-role-unknown", %error,
                        "cannot read the role of this instance; retrying; while it is not known, pods that name it are not refused for \
                         that reason; this is normal on a node that is not on EC2, or if the daemon cannot reach the metadata service"
                    )
                } else {
                    debug!(%error, "still cannot read the role of this instance")
                }
                tokio::time::sleep(Backoff::new(FIRST_PAUSE, LAST_PAUSE).pause(failures)).await;
                failures = failures.saturating_add(1);
            }
        }
    }
}

#[cfg(test)]
mod tests;
