//! Tests of the start-up taint: it stays until the daemon can serve, and is then removed without any other change of the node.

use rolegate_lab::daemon::{Daemon, Setup};
use rolegate_lab::kube::{Fault, RecordedRequest, Resource, Verb, node};
use rolegate_lab::sts::Behaviour;
use serde_json::{Value, json};

use crate::world::{Fakes, NODE, World, ip};

const KEY: &str = "startup-taint.cluster-autoscaler.kubernetes.io/rolegate";

fn taint(key: &str, effect: &str) -> Value {
    json!({ "key": key, "effect": effect })
}

/// Returns a taint as the node life cycle controller writes it.
fn not_ready() -> Value {
    json!({ "key": "node.kubernetes.io/not-ready", "effect": "NoExecute", "timeAdded": "2026-01-02T03:04:05Z" })
}

impl Fakes {
    /// Returns fakes with this node and these taints on it.
    fn tainted(taints: &[Value]) -> Fakes {
        let fakes = Fakes::new();
        fakes.pod("web", ip(2), Some("web-role"));
        fakes.set_taints(NODE, taints);
        fakes
    }

    fn set_taints(&self, name: &str, taints: &[Value]) {
        let mut node = self.api.get(Resource::Nodes, None, name).unwrap_or_else(|| node(name, &["10.0.0.1"]));
        node["spec"]["taints"] = taints.into();
        self.api.apply(Resource::Nodes, node);
    }

    fn taints(&self) -> Vec<Value> {
        let node = self.api.get(Resource::Nodes, None, NODE).unwrap();
        node["spec"]["taints"].as_array().cloned().unwrap_or_default()
    }

    fn with_taint(&self) -> Setup {
        self.setup().argument(format!("--startup-taint={KEY}"))
    }

    fn of_node(&self) -> Vec<RecordedRequest> {
        self.api.requests().into_iter().filter(|request| request.path.starts_with("/api/v1/nodes")).collect()
    }

    fn patches(&self) -> usize {
        self.of_node().iter().filter(|request| request.verb == Some(Verb::Patch)).count()
    }
}

impl World {
    fn looks(&self, outcome: &str) -> f64 {
        self.metric(&format!(r#"rolegate_startup_taint_looks_total{{outcome="{outcome}"}}"#))
    }

    /// Waits until the taint has been removed and counted.
    fn wait_for_removal(&self) {
        self.eventually(|world| world.looks("removed"), |count| *count == 1.0);
    }
}

#[test]
fn only_the_taints_of_the_key_are_removed_from_the_node() {
    let others = [not_ready(), taint("dedicated", "NoSchedule"), taint(&format!("{KEY}-gpu"), "NoSchedule")];
    let mut ours = taint(KEY, "NoSchedule");
    ours["value"] = "true".into();
    let all = [others[0].clone(), ours, others[1].clone(), taint(KEY, "NoExecute"), others[2].clone()];
    let fakes = Fakes::tainted(&all);
    fakes.set_taints("node-b", &all);
    let (before, neighbour) = (fakes.api.get(Resource::Nodes, None, NODE), fakes.api.get(Resource::Nodes, None, "node-b"));
    let setup = fakes.with_taint();
    let world = fakes.into_world(&setup);
    world.wait_for_removal();
    let mut expected = before.unwrap();
    let after = world.fakes.api.get(Resource::Nodes, None, NODE).unwrap();
    expected["spec"]["taints"] = others.as_slice().into();
    expected["metadata"]["resourceVersion"] = after["metadata"]["resourceVersion"].clone();
    assert_eq!(after, expected);
    assert_eq!(world.fakes.api.get(Resource::Nodes, None, "node-b"), neighbour);
    assert_eq!(world.fakes.patches(), 1);
    let said = world.daemon.wait_for_event("startup-taint-removed").unwrap();
    assert_eq!((&said["level"], said["taints"].as_str().unwrap()), (&"INFO".into(), &*format!("{KEY}=true:NoSchedule, {KEY}:NoExecute")));
}

#[test]
fn a_node_that_loses_its_only_taints_has_none() {
    let fakes = Fakes::tainted(&[taint(KEY, "NoSchedule")]);
    let setup = fakes.with_taint();
    let world = fakes.into_world(&setup);
    world.wait_for_removal();
    assert_eq!(world.fakes.taints(), Vec::<Value>::new());
}

/// The list of the node's pods does not arrive, so the daemon is not ready.
#[test]
fn the_taint_stays_while_this_nodes_pods_are_unknown() {
    let fakes = Fakes::tainted(&[taint(KEY, "NoSchedule")]);
    fakes.api.fail_next(Fault { resource: Some(Resource::Pods), times: usize::MAX, ..Fault::default() });
    let daemon = fakes.with_taint().start().unwrap();
    let world = World { daemon, fakes };
    // Everything else is done: STS has returned the daemon's identity.
    world.daemon.wait_for_event("own-identity").unwrap();
    let waiting = |world: &World| world.daemon.get(None, "/readyz").unwrap().text();
    world.eventually(waiting, |text| text.contains("the list of this node's pods") && !text.contains("the daemon's start"));
    world.eventually(|world| world.metric(r#"rolegate_watch_errors_total{resource="pods"}"#), |count| *count >= 3.0);
    assert_eq!((world.fakes.of_node().len(), world.fakes.taints().len()), (0, 1));
}

/// Without its AWS identity the daemon serves no pod, although it is ready.
#[test]
fn the_taint_stays_while_the_own_identity_is_unknown() {
    let fakes = Fakes::tainted(&[taint(KEY, "NoSchedule")]);
    fakes.sts.set_behaviour(Behaviour::ServiceUnavailable);
    let setup = fakes.with_taint();
    let world = fakes.into_world_without_identity(&setup);
    world.daemon.wait_for_event("own-identity-unknown").unwrap();
    assert_eq!((world.fakes.of_node().len(), world.fakes.taints().len()), (0, 1));
    world.fakes.sts.set_behaviour(Behaviour::Normal);
    world.wait_for_removal();
    assert_eq!(world.fakes.taints(), Vec::<Value>::new());
}

#[test]
fn changes_between_read_and_patch_are_kept() {
    let fakes = Fakes::tainted(&[taint(KEY, "NoSchedule"), not_ready()]);
    fakes.api.hold_node_patches(true);
    let setup = fakes.with_taint();
    let world = fakes.into_world(&setup);
    world.eventually(|world| world.fakes.patches(), |count| *count == 1);
    world.fakes.set_taints(NODE, &[taint("maintenance", "NoSchedule"), taint(KEY, "NoSchedule")]);
    world.fakes.api.hold_node_patches(false);
    world.wait_for_removal();
    assert_eq!(world.fakes.taints(), [taint("maintenance", "NoSchedule")]);
    assert_eq!((world.looks("conflict"), world.looks("failed"), world.fakes.patches()), (1.0, 0.0, 2));
}

#[test]
fn a_missing_permission_is_logged_once_with_its_rule() {
    for verb in [Verb::Get, Verb::Patch] {
        let fakes = Fakes::tainted(&[taint(KEY, "NoSchedule")]);
        fakes.api.deny(verb, "nodes");
        let setup = fakes.with_taint();
        let world = fakes.into_world(&setup);
        world.eventually(|world| world.looks("forbidden"), |count| *count >= 2.0);
        world.document(ip(2), "web-role");
        let warning = world.daemon.wait_for_event("startup-taint-forbidden").unwrap();
        let text = format!("{}; {}", warning["message"].as_str().unwrap(), warning["error"].as_str().unwrap());
        for wanted in [&format!("cannot {} resource", verb.as_str()), "resources: [nodes], verbs: [get, patch]", "daemonset/startup-taint"]
        {
            assert!(text.contains(wanted), "{wanted} is not in {text}");
        }
        assert_eq!((&warning["level"], &warning["key"]), (&"WARN".into(), &KEY.into()));
        assert_eq!(world.daemon.events("startup-taint-forbidden").len(), 1);
        assert_eq!(world.fakes.taints(), [taint(KEY, "NoSchedule")]);
        world.fakes.api.allow(verb, "nodes");
        world.wait_for_removal();
        assert_eq!(world.fakes.taints(), Vec::<Value>::new());
    }
}

#[test]
fn the_read_is_retried_until_the_node_is_registered() {
    let fakes = Fakes::tainted(&[taint(KEY, "NoSchedule")]);
    assert!(fakes.api.delete(Resource::Nodes, None, NODE));
    for (verb, status, reason) in [(Verb::Get, 500, "InternalError"), (Verb::Patch, 503, "ServiceUnavailable")] {
        let (verb, reason) = (Some(verb), reason.to_owned());
        fakes.api.fail_next(Fault { resource: Some(Resource::Nodes), verb, status, reason, ..Fault::default() });
    }
    let setup = fakes.with_taint();
    let world = fakes.into_world(&setup);
    // The first failure is the fault, the second is because the node is not registered.
    world.eventually(|world| world.looks("failed"), |count| *count == 2.0);
    world.fakes.set_taints(NODE, &[taint(KEY, "NoSchedule"), not_ready()]);
    world.wait_for_removal();
    assert_eq!((world.fakes.taints(), world.fakes.patches(), world.looks("failed")), (vec![not_ready()], 2, 3.0));
}

/// As after a reboot, or with a new object of the same name.
#[test]
fn the_next_daemon_removes_the_taint_again() {
    let fakes = Fakes::tainted(&[taint(KEY, "NoSchedule")]);
    let setup = fakes.with_taint();
    let world = fakes.into_world(&setup);
    world.wait_for_removal();
    let World { mut daemon, fakes } = world;
    daemon.terminate().unwrap();
    daemon.wait().unwrap();
    assert!(fakes.api.delete(Resource::Nodes, None, NODE));
    fakes.set_taints(NODE, &[taint(KEY, "NoSchedule")]);
    let setup = fakes.with_taint();
    let world = fakes.into_world(&setup);
    world.wait_for_removal();
    assert_eq!(world.fakes.taints(), Vec::<Value>::new());
}

/// A second daemon with the flag, started once the first serves, proves that there was enough time for a request.
#[test]
fn without_the_flag_no_node_is_read() {
    let fakes = Fakes::tainted(&[taint(KEY, "NoSchedule")]);
    let setup = fakes.setup();
    let world = fakes.into_world(&setup);
    world.document(ip(2), "web-role");
    let second = world.fakes.with_taint().start().unwrap();
    second.wait_ready(None).unwrap();
    let removed = |daemon: &Daemon| daemon.metric(None, r#"rolegate_startup_taint_looks_total{outcome="removed"}"#).unwrap();
    world.eventually(|_| removed(&second), |count| *count == 1.0);
    let asked: Vec<_> = world.fakes.of_node().iter().map(|request| request.verb.unwrap()).collect();
    assert_eq!(asked, [Verb::Get, Verb::Patch], "the requests of the second daemon");
    let metrics = world.daemon.get(None, "/metrics").unwrap().text();
    let looks: Vec<_> = metrics.lines().filter(|line| line.starts_with("rolegate_startup_taint_looks_total{")).collect();
    assert!(looks.len() == 5 && looks.iter().all(|line| line.ends_with(" 0")), "{looks:?}");
}

/// The API's cache is enough for later reads, which rarely matter. The first read is of the current node.
#[test]
fn a_node_without_the_taint_is_read_once_and_not_written() {
    let fakes = Fakes::tainted(&[not_ready()]);
    let setup = fakes.with_taint();
    let world = fakes.into_world(&setup);
    world.eventually(|world| world.looks("absent"), |count| *count == 1.0);
    let requests = world.fakes.of_node();
    let [request] = &requests[..] else { panic!("{requests:#?}") };
    assert_eq!((&*request.path, request.verb, request.query("resourceVersion")), ("/api/v1/nodes/node-a", Some(Verb::Get), None));
    assert_eq!(world.fakes.taints(), [not_ready()]);
}
