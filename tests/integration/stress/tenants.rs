//! What a tenant can do to its own pods, and how that affects others.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rolegate_lab::kube::Resource;
use rolegate_lab::sts::Behaviour;
use serde_json::{Value, json};
use tokio::task::JoinHandle;

use super::driver::Stage;
use super::ledger::State;
use super::moves::Move;
use super::{ADDRESSES, FAT, FORGER, LOOPER, MISLED};
use crate::world::{World, arn};

/// The interval between two patches: 45 in a second, if the machine is fast enough.
const BETWEEN_PATCHES: Duration = Duration::from_millis(22);
/// The time after which the loop stops waiting.
const IMPATIENCE: Duration = Duration::from_secs(1);

/// A pod whose annotations are changed constantly, and which requests what they name each time. How often it succeeds does not
/// matter. What it gets is its own, and other pods are served as usual.
#[derive(Default)]
pub(super) struct AnnotationLoop {
    stop: Arc<AtomicBool>,
    running: Option<JoinHandle<u64>>,
}

impl Move for AnnotationLoop {
    fn begin(&mut self, stage: &mut Stage<'_>) {
        // Each is another session, of one of three roles that only this pod has.
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
                // If it is cancelled in the middle, it has seen nothing.
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

/// A pod that claims another pod's address in its status: first of a pod that is known to run, then of any pod.
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
        // Both while the claim may be unknown, and when it is known.
        stage.clients.ask(stage.world, &[victim, FORGER]);
        stage.prove();
        stage.clients.ask(stage.world, &[victim]);
        stage.clients.get_credentials(stage.world, &[FORGER]);
        stage.cluster.mend(FORGER, victim);
        stage.prove();
        stage.clients.get_credentials(stage.world, &[FORGER, victim]);
    }
}

/// A size within etcd's limit. The API server writes `<` as `\u003c`, so a line of a watch is 8.7 MB.
const WITHIN_ETCD: usize = 1_450_000;
/// More addresses than are read for any pod.
const TOO_MANY_ADDRESSES: u32 = 100_000;
/// The number of pods that must get their credentials while one pod cannot be read.
const CREDENTIALS_BESIDE_A_LARGE_POD: usize = 8;

/// A pod that is patched constantly with as much as the API accepts, and finally with more than is read of any pod. That
/// affects only the pod itself: the watch, on which everything known about other pods depends, continues.
#[derive(Default)]
pub(super) struct LargePod {
    before: [f64; 2],
    patches: usize,
}

impl LargePod {
    fn patch(&mut self, stage: &mut Stage<'_>) {
        self.patches += 1;
        let notes = format!("{}{}", self.patches, "<".repeat(WITHIN_ETCD));
        let is_large = |object: &mut Value| object["metadata"]["annotations"]["example.com/notes"] = notes.into();
        stage.cluster.tell(FAT, State::Running, "patched with 8.7 MB", is_large);
    }

    /// Returns the failures of the watch, and the objects that it could not read.
    fn counted(world: &World) -> [f64; 2] {
        ["rolegate_watch_errors_total", "rolegate_watch_undecodable_total"]
            .map(|name| world.metric(&format!(r#"{name}{{resource="pods"}}"#)))
    }
}

impl Move for LargePod {
    fn begin(&mut self, stage: &mut Stage<'_>) {
        self.before = Self::counted(stage.world);
        self.patch(stage);
        stage.clients.get_credentials(stage.world, &[FAT]);
    }

    fn amid(&mut self, stage: &mut Stage<'_>) {
        self.patch(stage);
    }

    fn end(&mut self, stage: &mut Stage<'_>) {
        stage.clients.get_credentials(stage.world, &[FAT]);
        let is_too_large = |object: &mut Value| {
            let own = object["status"]["podIP"].clone();
            let many = (0..TOO_MANY_ADDRESSES).map(|number| json!(std::net::Ipv4Addr::from(0x0A00_0000 + number)));
            object["status"]["podIPs"] = [own].into_iter().chain(many).map(|ip| json!({ "ip": ip })).collect();
        };
        stage.cluster.tell(FAT, State::Refused, "patched with more than is read", is_too_large);
        stage.clients.ask(stage.world, &[FAT]);
        stage.prove();
        // According to the ledger, it is not served.
        stage.clients.ask(stage.world, &[FAT]);
        stage.serve_some(CREDENTIALS_BESIDE_A_LARGE_POD);
        stage.cluster.tell(FAT, State::Running, "patched to be small", |_| {});
        stage.prove();
        stage.clients.get_credentials(stage.world, &[FAT]);
        let [errors, unread] = self.before;
        assert_eq!(Self::counted(stage.world), [errors, unread + 1.0], "a large pod ended the watch, or kept objects from being read");
    }
}

/// STS answers the requests for a tenant's role with a session of another pod's role. No pod may get it.
pub(super) struct OtherRole;

impl OtherRole {
    /// Puts another pod in the tenant's place, which is published once `before` is done with its role.
    fn come(stage: &mut Stage<'_>, before: impl FnOnce(&Stage<'_>, &str)) {
        let role = arn(&format!("r-{}", stage.cluster.replace(MISLED)));
        before(stage, &role);
        stage.cluster.tell(MISLED, State::Running, "started", |_| {});
        stage.prove();
    }

    fn ask(stage: &Stage<'_>) {
        let client = stage.clients.of(MISLED);
        stage.world.fakes.runtime.block_on(async { client.lock().await.get_no_credentials().await });
    }
}

impl Move for OtherRole {
    fn begin(&mut self, stage: &mut Stage<'_>) {
        let other = stage.cluster.slots[LOOPER].ledger.must_be_now().unwrap_or_default();
        let other = Behaviour::AnswersFor(arn(&format!("r-{other}")));
        Self::come(stage, |stage, role| stage.world.fakes.sts.set_role_behaviour(role, other));
        Self::ask(stage);
    }

    fn amid(&mut self, stage: &mut Stage<'_>) {
        Self::ask(stage);
    }

    fn end(&mut self, stage: &mut Stage<'_>) {
        Self::ask(stage);
        Self::come(stage, |_, _| {});
        stage.clients.get_credentials(stage.world, &[MISLED]);
    }
}
