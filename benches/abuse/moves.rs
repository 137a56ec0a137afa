//! What happens at the Kubernetes API and at STS while an attack runs.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rolegate_lab::kube::{KubeApi, PodBuilder, Resource};
use rolegate_lab::sts::{Behaviour, Sts};
use serde_json::json;

use super::common::pods::with_role;
use super::common::world::arn;
use super::world::{CROWD, GHOST, MISLED, crowd_ip, neighbour_ip, pod};

/// The interval between two changes of a session name: 45 a second.
const RENAME: Duration = Duration::from_micros(22_222);
/// The interval between two changes of a pod that is as large as etcd allows.
const FATTEN: Duration = Duration::from_millis(500);
/// The size of that pod. The API server writes `<` as `\u003c`, so the pod is a line of 8.7 MB in a watch.
const FAT: usize = 1_450_000;
/// How long the pods of a crowd live before the next ones start.
const CROWD_LIVES: Duration = Duration::from_secs(5);
/// The time that STS takes for each of them.
const SLOW: Duration = Duration::from_millis(150);
/// The interval at which the end of the attack is checked.
const LOOK: Duration = Duration::from_millis(5);

/// The fakes that are changed.
pub(super) struct Moves<'a> {
    pub(super) api: &'a KubeApi,
    pub(super) sts: &'a Sts,
}

impl Moves<'_> {
    /// Sets up what the attack needs.
    pub(super) fn prepare(&self, attack: &str) {
        match attack {
            "fat-pod" => self.annotate("attacker", "example.com/notes", &"<".repeat(FAT)),
            "api-outage" => {
                self.api.refuse_connections(true);
                self.api.cut_connections();
                assert!(self.api.delete(Resource::Pods, Some("shop"), "ghost"));
            }
            "other-role" => {
                self.sts.set_role_behaviour(&arn("misled-role"), Behaviour::AnswersFor(arn("web-role")));
                self.api.apply(Resource::Pods, pod("misled", MISLED, "misled-role").build());
            }
            "crowd" => self.sts.set_role_behaviour(&arn("crowd-role"), Behaviour::Slow(SLOW)),
            _ => {}
        }
    }

    /// Makes the changes of the attack until it is over.
    pub(super) fn run(&self, attack: &str, is_over: &AtomicBool) {
        let is_over = || is_over.load(Ordering::Relaxed);
        let wait_until = |moment: Instant| {
            while !is_over() && Instant::now() < moment {
                std::thread::sleep(LOOK.min(moment.saturating_duration_since(Instant::now())));
            }
        };
        let began = Instant::now();
        for number in 1_u32.. {
            if is_over() {
                break;
            }
            let change = number.to_string();
            match attack {
                "annotations" => {
                    self.annotate("attacker", "iam.amazonaws.com/session-name", &format!("session-{change}"));
                    wait_until(began + RENAME * number);
                }
                "fat-pod" => {
                    self.annotate("attacker", "example.com/change", &change);
                    wait_until(began + FATTEN * number);
                }
                "crowd" => {
                    let names: Vec<_> = (0..CROWD).map(|n| format!("crowd-{change}-{n}")).collect();
                    for (n, name) in names.iter().enumerate() {
                        self.api.apply(Resource::Pods, pod(name, crowd_ip(n), "crowd-role").build());
                    }
                    wait_until(Instant::now() + CROWD_LIVES);
                    for name in &names {
                        self.api.delete(Resource::Pods, Some("shop"), name);
                    }
                }
                _ => break,
            }
        }
    }

    /// Restores the previous state, so that the next attack is measured on its own.
    pub(super) fn restore(&self, attack: &str) {
        match attack {
            "annotations" | "fat-pod" => {
                let mut pod = self.api.get(Resource::Pods, Some("shop"), "attacker").unwrap();
                pod["metadata"]["annotations"] = json!({ "iam.amazonaws.com/role": "attacker-role" });
                self.api.apply(Resource::Pods, pod);
            }
            "api-outage" => {
                self.api.apply(Resource::Pods, pod("ghost", GHOST, "ghost-role").build());
                self.api.refuse_connections(false);
                // The watch reconnects after its backoff.
                let deadline = Instant::now() + Duration::from_secs(60);
                while self.api.watchers(Resource::Pods) == 0 {
                    assert!(Instant::now() < deadline, "the watch of pods did not come back");
                    std::thread::sleep(LOOK);
                }
            }
            "other-role" => assert!(self.api.delete(Resource::Pods, Some("shop"), "misled")),
            "crowd" => self.sts.set_role_behaviour(&arn("crowd-role"), Behaviour::Normal),
            _ => {}
        }
    }

    fn annotate(&self, name: &str, key: &str, value: &str) {
        let mut pod = self.api.get(Resource::Pods, Some("shop"), name).unwrap();
        pod["metadata"]["annotations"][key] = value.into();
        self.api.apply(Resource::Pods, pod);
    }
}

/// Returns a pod of this node in a namespace of its own, so that metrics have many namespaces.
pub(super) fn neighbour(number: u8) -> PodBuilder {
    with_role(&format!("team-{number}"), "app", neighbour_ip(number), "team-role")
}
