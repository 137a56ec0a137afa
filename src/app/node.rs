//! What the daemon learns of its node at AWS while it serves: who it is itself, and which role the instance has. Both are
//! refused to pods; both may change.

use std::time::Duration;

use tracing::{debug, info, warn};

use crate::credentials::sts::{Aws, Sts};
use crate::policy::node::NodeIdentity;
use crate::readiness::Step;

/// How long the role of the instance is not asked for again: its profile may be replaced.
const INSTANCE_ROLE_KNOWN: Duration = Duration::from_secs(3600);
/// How soon it is asked for again where there was none.
const NO_ROLE_AGAIN: Duration = Duration::from_secs(60);
/// The pause after the first failure; it doubles with each more.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
/// The longest pause.
const LAST_PAUSE: Duration = Duration::from_secs(300);

/// Asks who the daemon is to AWS until it is known, and each hour then. Says so when it is another. `step` is done when it is
/// known first: before, no pod gets anything.
pub(super) async fn follow_identity(sts: Sts, step: Step) {
    let mut step = Some(step);
    let mut told = None;
    loop {
        let (asked, pause) = sts.renew_identity().await;
        if asked.is_ok()
            && let Some(step) = step.take()
        {
            step.done();
        }
        match asked {
            Ok(identity) if told.as_ref() == Some(&identity) => debug!("the daemon's own AWS identity is the same"),
            Ok(identity) => {
                info!(arn = identity.as_str(), "the daemon's own AWS identity");
                told = Some(identity);
            }
            Err(error) if told.is_none() => warn!("the daemon's own AWS identity is not known yet: {error}"),
            Err(error) => warn!("the daemon's own AWS identity could not be asked for anew: {error}"),
        }
        tokio::time::sleep(pause).await;
    }
}

/// Learns the role of the instance. The daemon may be another (by a token of its service account, or keys of its own):
/// pods do not get the instance's role then either.
pub(super) async fn follow_instance_role(aws: Aws, node: NodeIdentity) {
    let mut failed = FIRST_PAUSE;
    let (mut told, mut missing) = (false, 0_u8);
    loop {
        match aws.instance_role().await {
            // While a profile is replaced there is none for a moment. What was known is refused to pods until there
            // was none for some time.
            Ok(None) if missing < 2 && node.known().instance_role.is_some() => {
                missing += 1;
                tokio::time::sleep(NO_ROLE_AGAIN).await;
            }
            Ok(role) => {
                if node.set_instance_role(role.clone()) || !told {
                    info!(role = role.as_ref().map_or("none", |role| role.as_str()), "the role of this instance");
                }
                let again = if role.is_some() { INSTANCE_ROLE_KNOWN } else { NO_ROLE_AGAIN };
                (failed, told) = (FIRST_PAUSE, true);
                if role.is_some() {
                    missing = 0;
                }
                tokio::time::sleep(again).await;
            }
            Err(error) => {
                // Nothing is wrong with a node that is not on EC2, or that keeps its daemon from the metadata service.
                if failed == FIRST_PAUSE {
                    info!("{error}")
                } else {
                    debug!("{error}")
                }
                tokio::time::sleep(failed).await;
                failed = (failed * 2).min(LAST_PAUSE);
            }
        }
    }
}
