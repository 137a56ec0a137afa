//! Tests of metadata besides credentials: who may read what, and that failures of the real service do not affect pods.

use std::time::{Duration, Instant};

use rolegate_lab::imds::{Imds, ImdsBehaviour};
use rolegate_lab::kube::{PodBuilder, Resource};

use crate::world::{Fakes, NODE, ROLES, World, ip};

const REGION: &str = "/latest/meta-data/placement/region";
const MAC: &str = "/latest/meta-data/network/interfaces/macs/0a:1b:2c:3d:4e:5f";

fn text(world: &World, path: &str) -> (u16, String) {
    let answer = world.get(ip(2), path);
    assert_eq!(Imds::node_credentials_leaked_in(&answer.body), None, "{path}");
    (answer.status, answer.text())
}

#[test]
fn node_info_is_for_its_namespaces_and_never_has_the_nodes_secrets() {
    let fakes = Fakes::new();
    fakes.pod("web", ip(2), Some("web-role"));
    fakes.api.apply(Resource::Pods, PodBuilder::new("tools", "agent").node(NODE).ip(&ip(3).to_string()).build());
    for odd in ["with space", "a/b", "..", "semi;colon", "per%cent"] {
        fakes.imds.set(&format!("meta-data/tags/instance/{odd}"), "ODD");
    }
    fakes.imds.set("meta-data/tags/instance/kubernetes.io:cluster", "owned");
    let setup = fakes.setup().argument("--node-info-namespaces=sh*p,other");
    let world = fakes.into_world(&setup);
    world.eventually(|world| text(world, "/latest/meta-data/mac"), |answer| *answer == (200, "0a:1b:2c:3d:4e:5f".to_owned()));
    // It belongs to another group of values, which may be read later.
    world.eventually(|world| text(world, "/latest/meta-data/spot/instance-action").0, |status| *status == 200);
    for (path, value) in [
        ("/latest/meta-data/tags/instance/kubernetes.io:cluster", "owned"),
        ("/latest/meta-data/tags/instance/", "Name\ncluster\nkubernetes.io:cluster"),
        (&format!("{MAC}/vpc-id/"), "vpc-0123456789abcdef0"),
        ("/latest/meta-data/network/interfaces/macs", "0a:1b:2c:3d:4e:5f/"),
        ("/latest/meta-data/spot/instance-action", r#"{"action":"terminate","time":"2030-01-01T00:00:00Z"}"#),
        ("/latest/meta-data/iam", "info\nsecurity-credentials/"),
    ] {
        assert_eq!(text(&world, path), (200, value.to_owned()), "{path}");
        let of_agent = world.get(ip(3), path);
        assert_eq!((of_agent.status, of_agent.body.len()), (404, 0), "{path} for another namespace");
    }
    // node-info does not include everything about the node.
    for path in ["user-data", "meta-data/public-keys/", "dynamic/instance-identity/pkcs7", "meta-data/identity-credentials/ec2/info"] {
        assert_eq!(text(&world, &format!("/latest/{path}")), (404, String::new()), "{path}");
    }
    let asked: Vec<String> = world.fakes.imds.requests().into_iter().map(|request| request.target).collect();
    assert!(asked.iter().any(|target| target.ends_with("/tags/instance/Name")), "{asked:#?}");
    for never in ["iam", "user-data", "public-keys", "pkcs7", "identity-credentials", "space", "..", ";", "%", "instance/a"] {
        assert!(!asked.iter().any(|target| target.contains(never)), "{never}: {asked:#?}");
    }
    assert_eq!(world.get(ip(3), REGION).text(), "eu-central-1", "every pod gets the base set");
}

#[test]
fn a_dead_metadata_service_affects_no_credentials() {
    let fakes = Fakes::new();
    fakes.pod("web", ip(2), Some("web-role"));
    fakes.imds.set_behaviour(ImdsBehaviour::Hang);
    let setup = fakes.setup();
    let world = fakes.into_world(&setup);
    // Every SDK waits longer than this answer takes.
    let began = Instant::now();
    assert_eq!(text(&world, ROLES), (200, "web-role".to_owned()));
    world.document(ip(2), "web-role");
    let took = began.elapsed();
    let began = Instant::now();
    assert_eq!(text(&world, REGION), (500, String::new()), "the value exists, but is not known yet");
    let waited = began.elapsed();
    assert!(took < Duration::from_secs(2) && waited < Duration::from_secs(2), "{took:?}, {waited:?}");
    assert_eq!(world.metric(r#"rolegate_denials_total{reason="metadata"}"#), 1.0);

    world.fakes.imds.set_behaviour(ImdsBehaviour::Normal);
    world.eventually(|world| text(world, REGION), |answer| *answer == (200, "eu-central-1".to_owned()));
    let asked = world.fakes.imds.requests().len();
    for behaviour in [ImdsBehaviour::Hang, ImdsBehaviour::Close, ImdsBehaviour::Status(500)] {
        world.fakes.imds.set_behaviour(behaviour);
        assert_eq!(text(&world, REGION), (200, "eu-central-1".to_owned()));
        assert_eq!(text(&world, "/latest/meta-data/placement/"), (200, "availability-zone\navailability-zone-id\nregion".to_owned()));
    }
    assert_eq!(world.fakes.imds.requests().len(), asked, "no pod's request causes one to the real service");
}

#[test]
fn without_a_profile_nothing_is_read_or_served() {
    let world = World::start_with(|setup| setup.argument("--metadata-profile=none"));
    world.document(ip(2), "web-role");
    for path in [REGION, "/latest/dynamic/instance-identity/document", "/latest/dynamic/", "/latest/meta-data/mac"] {
        assert_eq!(text(&world, path), (404, String::new()), "{path}");
    }
    assert_eq!(text(&world, "/latest/meta-data/"), (200, "iam/".to_owned()));
    assert_eq!(text(&world, "/latest"), (200, "meta-data".to_owned()));
    assert_eq!(world.get(ip(4), "/latest/meta-data/").status, 404, "a pod without a role gets nothing");
    assert_eq!(world.fakes.imds.requests(), [], "the real service got no request");
}
