//! Tests of the status page of the real daemon: who may read it, and that it has no secret.

use std::path::PathBuf;
use std::process::Command;

use rolegate_lab::kube::{PodBuilder, Resource};
use rolegate_lab::node::{find_program, skip};
use rolegate_lab::player::{self, Response};
use rolegate_lab::sts::{Behaviour, NODE_ACCESS_KEY_ID, NODE_SECRET_ACCESS_KEY, NODE_SESSION_TOKEN, Role};
use serde_json::Value;

use crate::world::{Fakes, NODE, ROLES, World, arn, connect, ip, pod};

const STATUS: &str = "/status";
const JSON: &str = "/status.json";
const LOCAL: &[(&str, &str)] = &[("Host", "localhost:9543")];
/// The path of a role may hold any of these characters.
const MARKUP: &str = "arn:aws:iam::111122223333:role/<b>bold</b>\"'&/web-role";

fn request(world: &World, method: &str, path: &str, headers: &[(&str, &str)]) -> Response {
    let stream = connect(ip(99), world.daemon.metrics_address()).unwrap();
    let headers: Vec<_> = headers.iter().copied().chain([("Connection", "close")]).collect();
    player::request(stream, method, path, &headers).unwrap()
}

fn json(world: &World) -> Value {
    let answer = request(world, "GET", JSON, LOCAL);
    assert_eq!(answer.status, 200, "{}", answer.text());
    serde_json::from_slice(&answer.body).unwrap()
}

fn of_pod(status: &Value, name: &str) -> Value {
    let pods = status["pods"].as_array().unwrap();
    pods.iter().find(|pod| pod["name"] == name).unwrap_or_else(|| panic!("no {name} in {pods:?}")).clone()
}

fn header<'a>(answer: &'a Response, name: &str) -> Option<&'a str> {
    answer.header(name)
}

/// A world with a session that is held, one that STS refuses, pods that are denied, and one in the node's network.
fn world() -> World {
    let fakes = Fakes::new();
    fakes.pod("web", ip(2), Some("web-role"));
    fakes.pod("db", ip(3), Some("db-role"));
    fakes.pod("plain", ip(4), None);
    fakes.sts.set_role_behaviour(&arn("db-role"), Behaviour::AccessDenied);
    fakes.sts.add_role(Role::new(MARKUP));
    fakes.api.apply(Resource::Pods, pod("markup", ip(5), None).annotation("iam.amazonaws.com/role", MARKUP).build());
    let agent = PodBuilder::new("tools", "agent").node(NODE).ip("127.0.0.1").host_network(true);
    fakes.api.apply(Resource::Pods, agent.annotation("iam.amazonaws.com/role", "agent-role").build());
    let setup = fakes.setup().argument("--status-page");
    let world = fakes.into_world(&setup);
    assert_eq!(world.credentials(ip(2), "web-role").status, 200);
    assert_eq!(world.credentials(ip(3), "db-role").status, 500);
    assert_eq!(world.get(ip(5), ROLES).status, 200);
    world
}

#[test]
fn the_status_tells_what_each_pod_gets_and_no_secret() {
    let world = world();
    let markup = world.credentials(ip(5), MARKUP.rsplit('/').next().unwrap());
    assert_eq!(markup.status, 200, "{}", world.daemon.log());
    let status =
        world.eventually(json, |status| status["pods"].as_array().unwrap().len() == 5 && !of_pod(status, "markup")["session"].is_null());
    assert_eq!((&status["daemon"]["node"], &status["daemon"]["ready"]), (&NODE.into(), &true.into()));
    let web = of_pod(&status, "web");
    assert_eq!((&web["decision"], &web["role"], &web["session"]["state"]), (&"allowed".into(), &arn("web-role").into(), &"valid".into()));
    assert!(web["session"]["expires_in_seconds"].as_u64().unwrap() > 3500, "{web}");
    let db = of_pod(&status, "db");
    assert_eq!((&db["session"]["state"], &db["session"]["error"]), (&"failed".into(), &"denied".into()));
    assert_eq!((&of_pod(&status, "plain")["decision"], &of_pod(&status, "plain")["reason"]), (&"denied".into(), &"no-role".into()));
    let agent = of_pod(&status, "agent");
    assert_eq!((&agent["host_network"], &agent["reason"]), (&true.into(), &"host-network".into()));
    assert_eq!((&status["sts_errors"][0]["code"], &status["sts_errors"][0]["role"]), (&"denied".into(), &arn("db-role").into()));
    assert_eq!(status["watch"]["listed"], true);
    assert_eq!(status["self_test"]["state"], "off");

    let page = request(&world, "GET", STATUS, LOCAL).text();
    assert!(page.contains("&lt;b&gt;bold&lt;/b&gt;&quot;&#39;&amp;/web-role") && !page.contains("<b>"), "{page}");
    let issued = world.fakes.sts.issued();
    assert_eq!(issued.len(), 2);
    let of_node = [NODE_ACCESS_KEY_ID, NODE_SECRET_ACCESS_KEY, NODE_SESSION_TOKEN].map(str::to_owned);
    let of_pods = issued.into_iter().flat_map(|session| [session.access_key_id, session.secret_access_key, session.session_token]);
    for secret in of_pods.chain(of_node).chain([world.new_token(ip(2)).text()]) {
        for text in [&page, &status.to_string()] {
            assert!(secret.len() > 15 && !text.contains(&secret), "{secret} in {text}");
        }
    }
}

#[test]
fn only_people_on_the_node_read_the_status() {
    let world = world();
    let headers_of_page = |answer: &Response| {
        let policy = header(answer, "content-security-policy").unwrap_or_default().to_owned();
        (policy.starts_with("default-src 'none';"), header(answer, "cache-control").map(str::to_owned))
    };
    let page = request(&world, "GET", STATUS, LOCAL);
    assert_eq!((page.status, header(&page, "content-type")), (200, Some("text/html; charset=utf-8")));
    assert_eq!(headers_of_page(&page), (true, Some("no-store".to_owned())));
    let data = request(&world, "GET", JSON, LOCAL);
    assert_eq!((data.status, header(&data, "content-type")), (200, Some("application/json")));
    assert_eq!(header(&data, "cache-control"), Some("no-store"));
    for path in [STATUS, JSON] {
        let head = request(&world, "HEAD", path, LOCAL);
        assert_eq!((head.status, head.body.len()), (200, 0), "{path}");
        for method in ["POST", "PUT", "DELETE", "OPTIONS"] {
            assert_eq!(request(&world, method, path, LOCAL).status, 405, "{method} {path}");
        }
        for headers in [
            &[("Host", "evil.example.com")][..],
            &[("Host", "127.0.0.1.nip.io")],
            &[("Host", "169.254.169.254")],
            &[],
            &[("Host", "localhost"), ("Origin", "http://evil.example.com")],
            &[("Host", "localhost"), ("X-Forwarded-For", "10.0.0.1")],
            &[("Host", "localhost"), ("Sec-Fetch-Site", "cross-site")],
            &[("Host", "localhost"), ("Sec-Fetch-Site", "same-site")],
        ] {
            let answer = request(&world, "GET", path, headers);
            assert!(answer.status == 404 || headers.is_empty() && answer.status == 400, "{path} {headers:?}: {}", answer.status);
            assert!(answer.body.is_empty(), "{path} {headers:?}");
        }
        let browser = [("Host", "127.0.0.1:9543"), ("Sec-Fetch-Site", "none"), ("Sec-Fetch-Mode", "navigate")];
        assert_eq!(request(&world, "GET", path, &browser).status, 200, "{path}");
        // Not on the port of the pods.
        assert_eq!(world.get(ip(2), path).status, 404, "{path}");
    }
    let off = World::start();
    for path in [STATUS, JSON] {
        assert_eq!(request(&off, "GET", path, LOCAL).status, 404, "{path}");
    }
}

/// Returns Chromium and Node.js, if this machine has both.
fn browser() -> Option<[PathBuf; 2]> {
    let chromium = ["chromium", "chromium-browser", "google-chrome"].into_iter().find_map(find_program)?;
    Some([chromium, find_program("node")?])
}

/// Draws the pictures of docs/status.md, of a daemon without packet rules: `cargo test … -- --ignored pictures_of_the_docs`.
#[test]
#[ignore = "writes to docs/images"]
fn pictures_of_the_docs() {
    let fakes = Fakes::new();
    for (number, (name, role)) in [("web-0", "shop-web"), ("web-1", "shop-web"), ("checkout-7d9f", "shop-checkout")].into_iter().enumerate()
    {
        fakes.pod(name, ip(u8::try_from(number).unwrap() + 2), Some(role));
    }
    fakes.pod("report-28511", ip(9), Some("shop-reports"));
    fakes.pod("plain", ip(10), None);
    fakes.sts.set_role_behaviour(&arn("shop-reports"), Behaviour::AccessDenied);
    let agent = PodBuilder::new("monitoring", "node-agent").node(NODE).ip("127.0.0.1").host_network(true);
    fakes.api.apply(Resource::Pods, agent.annotation("iam.amazonaws.com/role", "node-agent").build());
    let setup = fakes.setup().argument("--status-page").argument("--limits-connections-per-pod=2");
    let world = fakes.into_world(&setup);
    for (last, role, status) in [(2, "shop-web", 200), (3, "shop-web", 200), (4, "shop-checkout", 200), (9, "shop-reports", 500)] {
        assert_eq!(world.credentials(ip(last), role).status, status, "{role}");
    }
    let held: Vec<_> = (0..5).map(|_| world.connect(ip(2))).collect();
    world.eventually(json, |status| !status["limits"].as_array().unwrap().is_empty());
    drop(held);
    let root = env!("CARGO_MANIFEST_DIR");
    let script = format!("{root}/scripts/status-picture.mjs");
    let url = format!("http://{}/status", world.daemon.metrics_address());
    for width in [&[][..], &["360"]] {
        let target = format!("{root}/docs/images/status");
        assert!(Command::new("node").arg(&script).arg(&url).arg(target).args(width).status().unwrap().success());
    }
}

/// In a browser: light and dark, narrow and wide, by keyboard, and what a screen reader finds.
#[test]
fn the_page_works_in_a_browser() {
    let Some([chromium, node]) = browser() else {
        skip("the status page is not tested in a browser: Chromium or Node.js is not installed");
        return;
    };
    let look = |world: &World, rows: usize| {
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/browser/status-page.mjs");
        let url = format!("http://{}/status", world.daemon.metrics_address());
        let output = Command::new(&node).arg(script).arg(&chromium).arg(url).arg(rows.to_string()).output().unwrap();
        let text = [output.stdout, output.stderr].map(|text| String::from_utf8_lossy(&text).into_owned()).concat();
        assert!(output.status.success(), "{rows} pods: {text}");
    };
    let fakes = Fakes::new();
    let setup = fakes.setup().argument("--status-page");
    look(&fakes.into_world(&setup), 0);
    look(&world(), 5);
    let fakes = Fakes::new();
    for number in 0..250_u8 {
        fakes.api.apply(Resource::Pods, pod(&format!("web-{number}"), ip(number), Some("web-role")).build());
    }
    let setup = fakes.setup().argument("--status-page");
    let world = fakes.into_world(&setup);
    world.eventually(json, |status| status["pods"].as_array().unwrap().len() == 250);
    look(&world, 250);
}
