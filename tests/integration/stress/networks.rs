//! Changes of pods' networks that leave the addresses in the pods' status.

use super::cluster::set_started;
use super::driver::Stage;
use super::ledger::State;
use super::moves::Move;

/// The number of affected pods.
const PODS: usize = 8;
/// A time before any boot of the node.
const LONG_AGO: &str = "2001-01-01T00:00:00Z";

/// The API still shows pods as they were before the node was booted. Whose their addresses are is not known until the kubelet
/// has started their containers again.
#[derive(Default)]
pub(super) struct Reboot {
    slots: Vec<usize>,
}

impl Reboot {
    /// Returns those of these addresses whose pods have not started again.
    fn not_started(&self, stage: &Stage<'_>) -> Vec<usize> {
        let is_old = |slot: &usize| stage.cluster.slots[*slot].current.as_ref().is_some_and(|pod| pod.state == State::Refused);
        self.slots.iter().copied().filter(is_old).collect()
    }

    /// Starts these pods, as the kubelet does.
    fn start(stage: &mut Stage<'_>, slots: &[usize]) {
        for slot in slots {
            stage.cluster.restart_network(*slot);
            stage.cluster.tell(*slot, State::Running, "started since the boot", |_| {});
        }
        stage.clients.ask(stage.world, slots);
        stage.prove();
        let undisputed = |slot: &usize| stage.cluster.slots[*slot].ledger.must_be_now().is_some();
        let slots: Vec<_> = slots.iter().copied().filter(undisputed).collect();
        stage.clients.get_credentials(stage.world, &slots);
    }
}

impl Move for Reboot {
    fn begin(&mut self, stage: &mut Stage<'_>) {
        self.slots = stage.cluster.settled(PODS);
        for slot in &self.slots {
            stage.cluster.replace(*slot);
            stage.cluster.tell(*slot, State::Refused, "started before the boot", |object| set_started(object, LONG_AGO));
        }
        stage.clients.ask(stage.world, &self.slots);
        stage.prove();
        // According to the ledger, none of them is served.
        stage.clients.ask(stage.world, &self.slots);
        Self::start(stage, &self.slots[..self.slots.len() / 2]);
    }

    fn amid(&mut self, stage: &mut Stage<'_>) {
        stage.clients.ask(stage.world, &self.not_started(stage));
    }

    fn end(&mut self, stage: &mut Stage<'_>) {
        let slots = self.not_started(stage);
        stage.clients.ask(stage.world, &slots);
        Self::start(stage, &slots);
    }
}

/// The sandboxes of pods are restarted, and the addresses stay. On loopback no link distinguishes one network from another: a
/// running pod is served all the time, except while the API says that it has no network.
pub(super) struct SecondNetwork;

impl Move for SecondNetwork {
    fn begin(&mut self, stage: &mut Stage<'_>) {
        let slots = stage.cluster.settled(PODS);
        let (at_once, seen_without) = slots.split_at(slots.len() / 2);
        for slot in at_once {
            stage.cluster.restart_network(*slot);
            stage.cluster.tell(*slot, State::Running, "second network", |_| {});
        }
        // Both while the change may be unknown, and when it is known.
        stage.clients.get_credentials(stage.world, at_once);
        for slot in seen_without {
            let without = |object: &mut serde_json::Value| object["status"]["conditions"][0]["status"] = "False".into();
            stage.cluster.tell(*slot, State::Idle, "without a network", without);
        }
        stage.clients.ask(stage.world, seen_without);
        stage.prove();
        stage.clients.get_credentials(stage.world, at_once);
        stage.clients.ask(stage.world, seen_without);
        for slot in seen_without {
            stage.cluster.restart_network(*slot);
            stage.cluster.tell(*slot, State::Running, "second network", |_| {});
        }
        stage.clients.ask(stage.world, seen_without);
        stage.prove();
        stage.clients.get_credentials(stage.world, seen_without);
    }
}
