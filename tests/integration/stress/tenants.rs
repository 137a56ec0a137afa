//! What a tenant may do to its own pods, and how that affects others.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rolegate_lab::kube::Resource;
use tokio::task::JoinHandle;

use super::driver::Stage;
use super::moves::Move;
use super::{ADDRESSES, FORGER, LOOPER};

/// Between two patches: 45 in a second, where the machine can.
const BETWEEN_PATCHES: Duration = Duration::from_millis(22);
/// After this time it is not worth the loop's while to wait on.
const IMPATIENCE: Duration = Duration::from_secs(1);

/// A pod whose annotations are changed again and again, and which asks for what they name each time. How often it gets that
/// is between the daemon and it; what it gets is its own, and the others are served as ever.
#[derive(Default)]
pub(super) struct AnnotationLoop {
    stop: Arc<AtomicBool>,
    running: Option<JoinHandle<u64>>,
}

impl Move for AnnotationLoop {
    fn begin(&mut self, stage: &mut Stage<'_>) {
        // Each is another session, of one of three roles that are this pod's alone.
        let objects: Vec<_> = (0..30).map(|number| stage.cluster.with_annotations(LOOPER, number)).collect();
        let (api, client, stop) = (stage.cluster.api.clone(), stage.clients.of(LOOPER), self.stop.clone());
        self.running = Some(stage.world.fakes.runtime.spawn(async move {
            let mut patches = 0;
            for mut object in objects.into_iter().cycle() {
                if stop.load(Ordering::SeqCst) {
                    break;
                }
                patches += 1;
                object["metadata"]["annotations"]["iam.amazonaws.com/session-name"] = format!("session-{patches}").into();
                api.apply(Resource::Pods, object);
                // Given up in the middle, it has seen nothing.
                let mut client = client.lock().await;
                let _ = tokio::time::timeout(IMPATIENCE, client.try_for_credentials()).await;
                drop(client);
                tokio::time::sleep(BETWEEN_PATCHES).await;
            }
            patches
        }));
    }

    fn end(&mut self, stage: &mut Stage<'_>) {
        self.stop.store(true, Ordering::SeqCst);
        let patches = self.running.take().map(|running| stage.world.fakes.runtime.block_on(running).unwrap());
        assert!(patches > Some(0));
        stage.prove();
    }
}

/// A pod that says in its status that it has the address of another: one that is known to run, and any one.
#[derive(Default)]
pub(super) struct ForgedStatus {
    any: usize,
}

impl Move for ForgedStatus {
    fn begin(&mut self, stage: &mut Stage<'_>) {
        self.any = stage.cluster.any_of(ADDRESSES.into());
        stage.cluster.forge(FORGER, self.any);
    }

    fn end(&mut self, stage: &mut Stage<'_>) {
        stage.clients.ask(stage.world, &[self.any]);
        stage.cluster.mend(FORGER, self.any);
        stage.prove();
        let running = stage.cluster.undisputed(ADDRESSES.into());
        let Some(victim) = running.into_iter().find(|slot| stage.cluster.slots[*slot].current.is_some()) else { return };
        stage.cluster.forge(FORGER, victim);
        // While it may be known or not, and when it is.
        stage.clients.ask(stage.world, &[victim, FORGER]);
        stage.prove();
        stage.clients.ask(stage.world, &[victim]);
        stage.clients.get_credentials(stage.world, &[FORGER]);
        stage.cluster.mend(FORGER, victim);
        stage.prove();
        stage.clients.get_credentials(stage.world, &[FORGER, victim]);
    }
}
