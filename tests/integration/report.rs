//! `--migrate` and `rolegate report`: a lab of many workloads, of which the report names those that the strict settings would refuse
//! something; and, once its advice is followed, nothing is refused.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read as _, Write as _};
use std::net::IpAddr;
use std::process::Command;

use rolegate_lab::daemon::{Daemon, Setup};
use rolegate_lab::kube::{PodBuilder, Resource, Verb, namespace};
use rolegate_lab::player::{self, Response};
use rolegate_lab::sts::Role;
use serde_json::Value;

use crate::world::{Fakes, NODE, ROLES, TOKEN, TOKEN_TTL, World, arn, connect, loopback, pod};

const ROLE: &str = "iam.amazonaws.com/role";
const ALLOWED: &str = "iam.amazonaws.com/allowed-roles";
const REGION: &str = "/latest/meta-data/placement/region";
const MAC: &str = "/latest/meta-data/mac";
const SUBNET: &str = "/latest/meta-data/network/interfaces/macs/0a:1b:2c:3d:4e:5f/subnet-id";
const TAG: &str = "/latest/meta-data/tags/instance/Name";
const USER_DATA: &str = "/latest/user-data";

/// What a workload of the lab does, and what the report says of it.
struct LabWorkload {
    namespace: &'static str,
    /// The owner of its pods; none for a bare pod.
    owner: Option<(&'static str, &'static str)>,
    /// The kind and name in the report.
    reported: (&'static str, &'static str),
    role: Option<&'static str>,
    client: &'static str,
    /// Whether its client uses tokens.
    tokens: bool,
    paths: &'static [&'static str],
    /// The findings: kind, subject and reason.
    findings: Vec<(&'static str, String, &'static str)>,
}

impl LabWorkload {
    fn well(namespace: &'static str, kind: &'static str, name: &'static str, role: Option<&'static str>) -> Self {
        let owner = Some((kind, name));
        Self {
            namespace,
            owner,
            reported: (kind, name),
            role,
            client: "aws-cli/2.15",
            tokens: true,
            paths: &[ROLES, REGION],
            findings: Vec::new(),
        }
    }

    /// Without tokens.
    fn v1(mut self, client: &'static str, name: &str) -> Self {
        (self.client, self.tokens) = (client, false);
        self.findings.push(("imdsv1", name.to_owned(), "no-token"));
        self
    }

    fn reads(mut self, paths: &'static [&'static str], findings: &[(&'static str, &str, &'static str)]) -> Self {
        self.paths = paths;
        self.findings.extend(findings.iter().map(|(kind, subject, reason)| (*kind, (*subject).to_owned(), *reason)));
        self
    }

    fn restricted(mut self, reason: &'static str) -> Self {
        self.findings.push(("role", arn(self.role.unwrap()), reason));
        self
    }

    fn owned(mut self, owner: Option<(&'static str, &'static str)>, reported: (&'static str, &'static str)) -> Self {
        (self.owner, self.reported) = (owner, reported);
        self
    }

    fn pod(&self, number: u8, ip: IpAddr) -> PodBuilder {
        let name = if self.reported.0 == "Pod" { self.reported.1.to_owned() } else { format!("{}-{number}", self.reported.1) };
        let builder = PodBuilder::new(self.namespace, &name).node(NODE).ip(&ip.to_string());
        let builder = match self.owner {
            Some((kind, name)) => builder.owner(kind, name),
            None => builder.bare(),
        };
        self.role.into_iter().fold(builder, |builder, role| builder.annotation(ROLE, role))
    }
}

/// The workloads: `shop` has a list, `tools` has none, `open` allows everything, `kube` has node agents.
fn workloads() -> Vec<LabWorkload> {
    let mut all = Vec::new();
    // Nothing is wrong with these.
    for (kind, name) in [("StatefulSet", "ok-db"), ("DaemonSet", "ok-agent"), ("Job", "ok-import"), ("Workflow", "ok-flow")] {
        all.push(LabWorkload::well("shop", kind, name, Some("shop-web")));
        all.push(LabWorkload::well("open", kind, name, Some("anything")));
        all.push(LabWorkload::well("tools", kind, name, None));
    }
    // These only lack what no setting gives them: they probe, as many programs do.
    for name in ["probe-a", "probe-b"] {
        let probe = LabWorkload {
            tokens: false,
            paths: &[ROLES, "/latest/meta-data/iam/info"],
            ..LabWorkload::well("tools", "StatefulSet", name, None)
        };
        all.push(probe);
    }
    let web = |name, role| LabWorkload::well("shop", "StatefulSet", name, Some(role));
    all.push(web("old-cli", "shop-web").v1("aws-cli/1.16.0 Python/3.6 botocore/1.12", "aws-cli/1.16.0"));
    all.push(web("old-go", "shop-api").v1("aws-sdk-go/1.25.0 (go1.13; linux; amd64)", "aws-sdk-go/1.25.0"));
    all.push(web("script", "shop-web").v1("curl/7.68.0", "curl/7.68.0"));
    all.push(web("hostile", "shop-web").v1("=cmd|'/c'!A1,\"x\"", "cmd--/c--A1--x-"));
    all.push(LabWorkload::well("tools", "StatefulSet", "plain-v1", None).v1("curl/8.5.0", "curl/8.5.0").reads(&[REGION], &[]));
    all.push(web("billing", "billing").restricted("not-allowed-in-namespace"));
    all.push(web("billing-v1", "billing").v1("curl/8.5.0", "curl/8.5.0").restricted("not-allowed-in-namespace"));
    all.push(web("search", "search").restricted("not-allowed-in-namespace"));
    for name in ["backup", "deploy", "scan"] {
        all.push(LabWorkload::well("tools", "StatefulSet", name, Some(name)).restricted("no-namespace-list"));
    }
    all.push(LabWorkload::well("broken", "StatefulSet", "list", Some("shop-web")).restricted("bad-namespace-list"));
    let deployment = LabWorkload::well("tools", "ReplicaSet", "api", Some("api")).restricted("no-namespace-list");
    all.push(deployment.owned(Some(("ReplicaSet", "api-7d4b9c6f5")), ("Deployment", "api")));
    let cron = LabWorkload::well("tools", "Job", "night", Some("night")).restricted("no-namespace-list");
    all.push(cron.owned(Some(("Job", "night-29012345")), ("CronJob", "night")));
    all.push(LabWorkload::well("tools", "Pod", "bare", Some("bare")).restricted("no-namespace-list").owned(None, ("Pod", "bare")));
    let odd = LabWorkload::well("tools", "Pod", "odd", Some("odd")).restricted("no-namespace-list");
    all.push(odd.owned(Some(("Set\u{1b}[31m", "=1+1\n")), ("Pod", "odd-0")));
    let agent = |name| LabWorkload::well("kube", "DaemonSet", name, None);
    let mac = ("metadata", "meta-data/mac", "node-info");
    let subnet = ("metadata", "meta-data/network/interfaces/macs/*/subnet-id", "node-info");
    let tag = ("metadata", "meta-data/tags/instance/*", "node-info");
    all.push(agent("cni").reads(&[MAC, SUBNET], &[mac, subnet]));
    all.push(agent("tagger").reads(&[TAG], &[tag]));
    all.push(
        agent("drainer").reads(&["/latest/meta-data/spot/instance-action"], &[("metadata", "meta-data/spot/instance-action", "node-info")]),
    );
    all.push(
        agent("lister")
            .reads(&["/latest/meta-data/network/interfaces/macs/"], &[("metadata", "meta-data/network/interfaces/macs/", "node-info")]),
    );
    all.push(LabWorkload::well("open", "DaemonSet", "monitor", Some("anything")).reads(&[ROLES, MAC], &[mac]));
    all.push(agent("boot").reads(&[USER_DATA], &[("refused", "user-data", "path")]));
    all.push(agent("keys").reads(&["/latest/meta-data/public-keys/0/openssh-key"], &[("refused", "meta-data/public-keys", "path")]));
    all.push(
        agent("signer").reads(&["/latest/dynamic/instance-identity/pkcs7"], &[("refused", "dynamic/instance-identity/pkcs7", "path")]),
    );
    all.push(agent("curious").reads(&["/latest/meta-data/un=heard.of"], &[("refused", "another path", "path")]));
    let ceiling = |name, role| LabWorkload::well("open", "StatefulSet", name, Some(role));
    let refused = |role: &str, reason| vec![("refused", arn(role), reason)];
    all.push(LabWorkload { findings: refused("admin", "not-allowed-on-node"), ..ceiling("admin", "admin") });
    let malformed = vec![("refused", "has-space".to_owned(), "role-spaces")];
    all.push(LabWorkload { findings: malformed, ..ceiling("typing-error", "has space") });
    all.push(
        ceiling("curl-meta", "anything")
            .v1("curl/8.5.0", "curl/8.5.0")
            .reads(&[ROLES, TAG, USER_DATA], &[tag, ("refused", "user-data", "path")]),
    );
    assert!(all.len() >= 40, "{}", all.len());
    all
}

/// Which arguments kube2iam's users have, and a limit of roles for this node.
fn setup(fakes: &Fakes) -> Setup {
    let allowed = ["shop-*", "billing", "search", "anything", "backup", "deploy", "scan", "api", "night", "bare", "odd"];
    allowed.iter().fold(fakes.setup(), |setup, role| setup.argument(format!("--allowed-roles={role}")))
}

struct Lab {
    fakes: Fakes,
    workloads: Vec<LabWorkload>,
    /// The list of each namespace.
    lists: BTreeMap<&'static str, Option<String>>,
}

fn ip(number: usize) -> IpAddr {
    IpAddr::from([127, 0, 7, u8::try_from(number + 2).unwrap()])
}

impl Lab {
    fn new() -> Lab {
        let (fakes, workloads) = (Fakes::new(), workloads());
        let list = |text: &str| Some(text.to_owned());
        let lists = BTreeMap::from([
            ("shop", list(r#"["shop-*", "arn:aws:iam::111122223333:role/it's \u00e4"]"#)),
            ("open", list(r#"["*"]"#)),
            ("broken", list("shop-*")),
            ("tools", None),
            ("kube", None),
        ]);
        for (number, workload) in workloads.iter().enumerate() {
            if let Some(role) = workload.role.filter(|role| !role.contains(' ')) {
                fakes.sts.add_role(Role::new(arn(role)));
            }
            fakes.api.apply(Resource::Pods, workload.pod(0, ip(number)).build());
        }
        // The daemon never hears of it: it has the node's address.
        let on_host = PodBuilder::new("kube", "host-agent-0").node(NODE).host_network(true).owner("DaemonSet", "host-agent");
        fakes.api.apply(Resource::Pods, on_host.annotation(ROLE, "host-role").build());
        let plain = PodBuilder::new("kube", "host-plain-0").node(NODE).host_network(true).owner("DaemonSet", "host-plain");
        fakes.api.apply(Resource::Pods, plain.build());
        let lab = Lab { fakes, workloads, lists };
        lab.apply_lists();
        lab
    }

    fn apply_lists(&self) {
        for (name, list) in &self.lists {
            let annotations: Vec<_> = list.iter().map(|list| (ALLOWED, list.as_str())).collect();
            self.fakes.api.apply(Resource::Namespaces, namespace(name, &annotations));
        }
    }

    fn start(&self, setup: &Setup) -> Daemon {
        let daemon = setup.start().unwrap();
        daemon.wait_ready(None).unwrap();
        daemon
    }

    /// Every workload does what it does. Returns the answers that were not given, by workload and path.
    fn run(&self, daemon: &Daemon) -> Vec<(&'static str, &'static str, u16)> {
        let mut refused = Vec::new();
        for (number, workload) in self.workloads.iter().enumerate() {
            for path in workload.paths {
                let answer = ask(daemon, ip(number), workload, path);
                if answer.status != 200 {
                    refused.push((workload.reported.1, *path, answer.status));
                }
            }
        }
        refused
    }

    /// The findings that there are to be, with the pod in the host's network.
    fn expected(&self) -> BTreeMap<String, BTreeSet<(String, String, String)>> {
        let owned = |(kind, subject, reason): &(&str, String, &str)| ((*kind).to_owned(), subject.clone(), (*reason).to_owned());
        let with = self.workloads.iter().filter(|workload| !workload.findings.is_empty());
        let name = |workload: &LabWorkload| format!("{}/{}/{}", workload.namespace, workload.reported.0, workload.reported.1);
        let mut all: BTreeMap<_, _> = with.map(|workload| (name(workload), workload.findings.iter().map(owned).collect())).collect();
        let host = ("host-network".to_owned(), arn("host-role"), "host-network".to_owned());
        all.insert("kube/DaemonSet/host-agent".to_owned(), BTreeSet::from([host]));
        all
    }
}

fn ask(daemon: &Daemon, from: IpAddr, workload: &LabWorkload, path: &str) -> Response {
    let request = |method: &str, path: &str, headers: &[(&str, &str)]| {
        let stream = connect(from, daemon.metadata_address()).unwrap();
        let headers: Vec<_> = headers.iter().copied().chain([("Connection", "close"), ("User-Agent", workload.client)]).collect();
        player::request(stream, method, path, &headers).unwrap()
    };
    if workload.tokens {
        let token = request("PUT", "/latest/api/token", &[(TOKEN_TTL, "60")]).text();
        request("GET", path, &[(TOKEN, &token)])
    } else {
        request("GET", path, &[])
    }
}

/// What the command said, and its exit code.
fn report(arguments: &[&str]) -> (i32, String, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_rolegate"));
    command.arg("report").args(arguments).env_clear().env("AWS_EC2_METADATA_DISABLED", "true");
    let output = command.output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    (output.status.code().unwrap(), text(&output.stdout), text(&output.stderr))
}

fn of_daemon(daemon: &Daemon, format: &str) -> (i32, String) {
    let (code, text, error) = report(&[&format!("--admin-url=http://{}", daemon.metrics_address()), &format!("--format={format}")]);
    assert_eq!(error, "");
    (code, text)
}

fn json(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|error| panic!("{error}: {text}"))
}

fn findings(report: &Value) -> BTreeMap<String, BTreeSet<(String, String, String)>> {
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let of = |workload: &Value| {
        let findings = workload["findings"].as_array().unwrap();
        let findings = findings.iter().map(|one| (text(&one["finding"]), text(&one["subject"]), text(&one["reason"])));
        (format!("{}/{}/{}", text(&workload["namespace"]), text(&workload["kind"]), text(&workload["name"])), findings.collect())
    };
    report["workloads"].as_array().unwrap().iter().map(of).collect()
}

/// Reads the report until it has what is expected: namespaces become known after pods, and metadata is read after the start.
fn settle(lab: &Lab, daemon: &Daemon) {
    let deadline = std::time::Instant::now() + crate::world::PATIENCE;
    let last = lab.workloads.len() - 1;
    loop {
        let (_, text) = of_daemon(daemon, "json");
        let known = findings(&json(&text))
            .get("broken/StatefulSet/list")
            .is_some_and(|found| found.iter().any(|one| one.2 == "bad-namespace-list"));
        let probe = LabWorkload::well("open", "StatefulSet", "curl-meta", Some("anything"));
        if known && [MAC, TAG].iter().all(|path| ask(daemon, ip(last), &probe, path).status == 200) {
            return;
        }
        assert!(std::time::Instant::now() < deadline, "{text}\n{}", daemon.log());
    }
}

#[test]
fn a_report_names_what_would_break_and_its_advice_mends_it() {
    let mut lab = Lab::new();
    let setup = setup(&lab.fakes);
    let daemon = lab.start(&setup.clone().argument("--migrate"));
    let started = daemon.wait_for_event("migration-mode").unwrap();
    assert!(started["opened"].as_str().is_some_and(|opened| opened.contains("IMDSv1") && opened.contains("node-info")), "{started}");
    settle(&lab, &daemon);
    // The last workload asked for metadata while it was waited for.
    lab.workloads.last_mut().unwrap().findings.push(("metadata", "meta-data/mac".to_owned(), "node-info"));
    let refused: BTreeSet<_> = lab.run(&daemon).into_iter().map(|(workload, ..)| workload).collect();
    let without_role = ["probe-a", "probe-b", "ok-db", "ok-agent", "ok-import", "ok-flow"];
    let never = ["boot", "keys", "signer", "curious", "admin", "typing-error", "curl-meta"];
    assert_eq!(refused, without_role.into_iter().chain(never).collect(), "the rest is served, as kube2iam would do");

    let (code, text) = of_daemon(&daemon, "json");
    let reported = json(&text);
    assert_eq!((code, findings(&reported)), (1, lab.expected()));
    assert_eq!(daemon.metric(None, r#"rolegate_migration_findings{finding="metadata",namespace="kube"}"#).unwrap(), 4.0);
    assert_eq!(daemon.metric(None, r#"rolegate_migration_findings{finding="imdsv1",namespace="shop"}"#).unwrap(), 5.0);
    let (_, people) = of_daemon(&daemon, "text");
    assert!(people.contains("StatefulSet old-cli") && people.contains("to fix: update the client"), "{people}");
    let (_, table) = of_daemon(&daemon, "csv");
    assert!(table.starts_with("namespace,kind,name,finding,") && table.contains("\"cmd--/c--A1--x-\""), "{table}");
    for text in [&people, &table] {
        assert!(text.chars().all(|c| matches!(c, '\n' | '\r' | ' '..='~')), "nothing that a terminal acts on: {text}");
    }

    // The advice: annotations, a flag, and new clients. What rolegate never serves is no longer asked for.
    let before = lab.lists.clone();
    for namespace in reported["namespaces"].as_array().unwrap() {
        let value = namespace["value"].as_str().unwrap().to_owned();
        assert!(
            people.contains(&format!("kubectl annotate namespace {} --overwrite 'iam", namespace["name"].as_str().unwrap())),
            "{people}"
        );
        let name = *lab.lists.keys().find(|name| namespace["name"] == **name).unwrap();
        lab.lists.insert(name, Some(value));
    }
    let changed = lab.lists.iter().filter(|(name, list)| before[*name] != **list).map(|(name, _)| *name).collect::<Vec<_>>();
    assert_eq!(changed, ["broken", "shop", "tools"]);
    let shop: Vec<String> = serde_json::from_str(lab.lists["shop"].as_deref().unwrap()).unwrap();
    assert_eq!(shop, ["shop-*", "arn:aws:iam::111122223333:role/it's \u{e4}", &arn("billing"), &arn("search")], "the old list is kept");
    lab.apply_lists();
    let flag = people.lines().find_map(|line| line.trim().strip_prefix("--node-info-namespaces=")).unwrap().to_owned();
    assert_eq!(flag, "kube,open");
    let roles = |report: &Value| findings(report).into_values().flatten().filter(|finding| finding.0 == "role").count();
    let deadline = std::time::Instant::now() + crate::world::PATIENCE;
    while roles(&json(&of_daemon(&daemon, "json").1)) > 0 {
        assert!(std::time::Instant::now() < deadline, "{}", of_daemon(&daemon, "text").1);
    }
    drop(daemon);

    lab.fakes.api.delete(Resource::Pods, Some("kube"), "host-agent-0");
    lab.workloads.retain(|workload| !["admin", "typing-error"].contains(&workload.reported.1));
    for workload in &mut lab.workloads {
        workload.tokens = true;
        workload.paths = match workload.paths {
            [ROLES, TAG, USER_DATA] => &[ROLES, TAG],
            _ if workload.findings.iter().any(|finding| finding.2 == "path") => &[REGION],
            // It has no role to ask for.
            [ROLES, ..] if workload.role.is_none() => &[REGION],
            paths => paths,
        };
    }
    let fakes = Fakes::new();
    let strict = setup_again(&mut lab, fakes).argument("--namespace-restrictions").argument(format!("--node-info-namespaces={flag}"));
    let daemon = lab.start(&strict);
    let deadline = std::time::Instant::now() + crate::world::PATIENCE;
    // Metadata is read, and namespaces are listed, after the start.
    while !lab.run(&daemon).is_empty() {
        assert!(std::time::Instant::now() < deadline, "{:?}\n{}", lab.run(&daemon), daemon.log());
    }
    let denied = |daemon: &Daemon| {
        let metrics = daemon.get(None, "/metrics").unwrap().text();
        metrics.lines().filter(|line| line.starts_with("rolegate_denials_total{")).map(str::to_owned).collect::<Vec<_>>()
    };
    let before = denied(&daemon);
    assert_eq!(lab.run(&daemon), []);
    assert_eq!(denied(&daemon), before, "nothing is refused");
    let (code, _, error) = report(&[&format!("--admin-url=http://{}", daemon.metrics_address())]);
    assert!(code == 3 && error.contains("--migrate"), "{error}");
}

/// The lab again, with other workloads: their addresses are others.
fn setup_again(lab: &mut Lab, fakes: Fakes) -> Setup {
    lab.fakes = fakes;
    for (number, workload) in lab.workloads.iter().enumerate() {
        workload.role.into_iter().for_each(|role| lab.fakes.sts.add_role(Role::new(arn(role))));
        lab.fakes.api.apply(Resource::Pods, workload.pod(0, ip(number)).build());
    }
    lab.apply_lists();
    setup(&lab.fakes)
}

#[test]
fn what_the_operator_gave_is_the_strict_setting() {
    let world = World::start_with(|setup| {
        let given = ["--migrate", "--imds-tokens=optional", "--metadata-profile=node-info", "--namespace-restrictions=false"];
        given.into_iter().fold(setup, Setup::argument)
    });
    let started = world.daemon.wait_for_event("migration-mode").unwrap();
    assert!(started["opened"].as_str().is_some_and(|opened| opened.starts_with("nothing")), "{started}");
    let from = crate::world::ip(2);
    assert_eq!(world.request(from, "GET", ROLES, &[]).status, 200);
    world.eventually(|world| world.get(from, MAC).status, |status| *status == 200);
    assert_eq!(of_daemon(&world.daemon, "text").0, 0);
    assert!(of_daemon(&world.daemon, "text").1.ends_with("no findings\n"));
}

#[test]
fn a_ceiling_and_the_nodes_role_stay_closed() {
    let fakes = Fakes::new();
    fakes.pod("web", crate::world::ip(2), Some("admin"));
    fakes.api.apply(Resource::Pods, pod("node", crate::world::ip(3), Some(rolegate_lab::sts::NODE_ROLE_ARN)).build());
    let setup = fakes.setup().argument("--migrate").argument("--allowed-roles=shop-*");
    let world = fakes.into_world(&setup);
    for from in [2, 3] {
        assert_eq!(world.request(crate::world::ip(from), "GET", ROLES, &[]).status, 404);
    }
    let (code, text) = of_daemon(&world.daemon, "json");
    let reasons: Vec<_> = findings(&json(&text)).into_values().flatten().map(|finding| finding.2).collect();
    assert_eq!(code, 1);
    assert!(reasons.iter().all(|reason| ["node-role", "not-allowed-on-node"].contains(&reason.as_str())) && reasons.len() == 2, "{text}");
}

#[test]
fn refusals_that_no_setting_changes_are_named_by_pod() {
    let world = World::start_with(|setup| setup.argument("--migrate").argument("--namespace-restrictions=false"));
    let from = crate::world::ip(2);
    assert_eq!(world.request(from, "GET", ROLES, &[("Host", "evil.example.com")]).status, 403);
    assert_eq!(world.request(from, "GET", ROLES, &[("X-Forwarded-For", "10.0.0.1")]).status, 403);
    assert_eq!(world.credentials(from, "db-role").status, 404);
    assert_eq!(world.get(crate::world::ip(4), "/latest/meta-data/iam/").status, 404, "it only looks for a role");
    let (_, text) = of_daemon(&world.daemon, "json");
    let found: Vec<_> = findings(&json(&text)).into_iter().collect();
    let wanted = ["forwarded", "host", "other-role"].map(|reason| ("refused".to_owned(), String::new(), reason.to_owned()));
    assert_eq!(found, [("shop/Deployment/web".to_owned(), BTreeSet::from(wanted))]);
}

#[test]
fn only_loopback_clients_that_speak_for_themselves_read_the_report() {
    let world = World::start_with(|setup| setup.argument("--migrate"));
    let get = |path: &str, headers: &[(&str, &str)]| {
        let stream = std::net::TcpStream::connect(world.daemon.metrics_address()).unwrap();
        let headers: Vec<_> = headers.iter().copied().chain([("Connection", "close")]).collect();
        player::request(stream, "GET", path, &headers).unwrap().status
    };
    assert_eq!(get("/report", &[("Host", "localhost")]), 200);
    assert_eq!(get("/report?format=csv", &[("Host", "127.0.0.1:9543")]), 200);
    assert_eq!(get("/report?format=xml", &[("Host", "localhost")]), 400);
    assert_eq!(get("/report", &[("Host", "evil.example.com")]), 404);
    assert_eq!(get("/report", &[("Host", "localhost"), ("X-Forwarded-For", "10.0.0.1")]), 404);
    assert_eq!(get("/report", &[("Host", "localhost"), ("Origin", "http://evil.example.com")]), 404);
    let strict = World::start();
    let response = strict.daemon.get(None, "/report?format=json").unwrap();
    let report = json(&response.text());
    assert_eq!((response.status, &report["strict"], &report["nodes"][0]["findings_recorded"]), (200, &Value::Null, &false.into()));
}

/// Where no daemon listens, another program of the node may. People copy commands from a report.
#[test]
fn a_report_with_names_that_are_none_is_refused() {
    let namespace = |name: &str, key: &str| serde_json::json!({ "name": name, "annotation": key, "existing": null, "missing": ["x"], "value": "[\"x\"]", "note": null });
    let strict = |pattern: &str| {
        serde_json::json!({ "imds_tokens": "required", "metadata_profile": "base", "node_info_namespaces": [pattern],
            "namespace_restrictions": true })
    };
    let workload = |namespace: &str| serde_json::json!({ "namespace": namespace, "kind": "Pod", "name": "web", "findings": [] });
    let good = ("shop", "iam.amazonaws.com/allowed-roles", "kube-*", "shop");
    let evil = "x; touch /tmp/x #";
    for (name, key, pattern, of, code) in [
        (good.0, good.1, good.2, good.3, 1),
        (evil, good.1, good.2, good.3, 3),
        (good.0, "a'b", good.2, good.3, 3),
        (good.0, good.1, "$(x)", good.3, 3),
        (good.0, good.1, good.2, evil, 3),
    ] {
        let body = serde_json::json!({ "version": 1, "nodes": [], "strict": strict(pattern), "left_out": 0,
            "namespaces": [namespace(name, key)], "workloads": [workload(of)] });
        let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.to_string().len());
        let listener = loopback();
        let address = listener.local_addr().unwrap();
        let server = std::thread::spawn(move || {
            let (mut client, _) = listener.accept().unwrap();
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                let mut byte = [0; 1];
                client.read_exact(&mut byte).unwrap();
                head.push(byte[0]);
            }
            client.write_all(answer.as_bytes()).unwrap();
        });
        let (answered, text, error) = report(&[&format!("--admin-url=http://{address}")]);
        assert_eq!(answered, code, "{text}{error}");
        assert!(!text.contains("touch") && !error.contains("touch"), "{text}{error}");
        server.join().unwrap();
    }
}

/// Daemons of three nodes, of which one is away: their pods are in `kube-system`, and a stranger has the same labels.
#[test]
fn all_nodes_are_read_through_port_forwards_and_merged() {
    let fakes = Fakes::new();
    let daemon_pod = |namespace: &str, node: &str| {
        PodBuilder::new(namespace, &format!("rolegate-{node}")).label("app.kubernetes.io/name", "rolegate").node(node).host_network(true)
    };
    let mut daemons = Vec::new();
    for (number, node) in ["node-1", "node-2"].into_iter().enumerate() {
        let address = crate::world::ip(u8::try_from(number).unwrap() + 2);
        fakes.sts.add_role(Role::new(arn("web")));
        let web = pod(&format!("web-{number}"), address, Some("web")).node(node).owner("StatefulSet", "web");
        fakes.api.apply(Resource::Pods, web.build());
        fakes.api.apply(Resource::Pods, daemon_pod("kube-system", node).build());
        fakes.api.apply(Resource::Namespaces, namespace("shop", &[]));
        let daemon = fakes.setup().argument(format!("--node={node}")).argument("--migrate").start().unwrap();
        daemon.wait_ready(None).unwrap();
        fakes.api.forward_to("kube-system", &format!("rolegate-{node}"), daemon.metrics_address());
        let workload = LabWorkload { tokens: false, client: "curl/8.5.0", ..LabWorkload::well("shop", "StatefulSet", "web", Some("web")) };
        assert_eq!(ask(&daemon, address, &workload, ROLES).status, 200);
        daemons.push(daemon);
    }
    fakes.api.apply(Resource::Pods, daemon_pod("hostile", "node-9").build());
    let kubeconfig = format!("--kubeconfig={}", fakes.file("operator", &fakes.api.kubeconfig()));
    let all = || report(&["--all-nodes", &kubeconfig, "--format=json"]);
    let deadline = std::time::Instant::now() + crate::world::PATIENCE;
    let merged = loop {
        let (code, text, error) = all();
        let report = json(&text);
        assert_eq!((code, error.as_str(), report["nodes"].as_array().unwrap().len()), (1, "", 2), "{text}");
        // The list of the namespace may be read later.
        if report["namespaces"][0]["note"].is_null() && !report["namespaces"][0].is_null() {
            break report;
        }
        assert!(std::time::Instant::now() < deadline, "{text}");
    };
    let [workload] = &merged["workloads"].as_array().unwrap()[..] else { panic!("one: {merged}") };
    let v1 = workload["findings"].as_array().unwrap().iter().find(|finding| finding["finding"] == "imdsv1").unwrap();
    assert_eq!((v1["count"].as_u64(), v1["subject"].as_str()), (Some(2), Some("curl/8.5.0")));
    assert_eq!(merged["namespaces"][0]["value"], format!("[\"{}\"]", arn("web")));
    let asked: Vec<_> =
        fakes.api.requests().into_iter().filter(|request| request.path.ends_with("/portforward")).map(|request| request.path).collect();
    assert!(!asked.is_empty() && asked.iter().all(|path| path.starts_with("/api/v1/namespaces/kube-system/")), "{asked:?}");

    // A node whose daemon is away is named, and the exit code says that the report is not complete.
    fakes.api.apply(Resource::Pods, daemon_pod("kube-system", "node-3").build());
    fakes.api.apply(Resource::Pods, daemon_pod("kube-system", "node-4").phase("Pending").build());
    let (code, text, _) = report(&["--all-nodes", &kubeconfig]);
    assert_eq!(code, 3);
    assert!(text.contains("node node-3: no report: the port-forward ended") && text.contains("node node-4: no report"), "{text}");
    fakes.api.deny(Verb::Create, "pods/portforward");
    let (code, text, _) = all();
    assert!(code == 3 && text.contains("pods/portforward"), "{text}");
    fakes.api.deny(Verb::List, "pods");
    let (code, _, error) = all();
    assert!(code == 3 && error.contains("list of pods"), "{error}");
}
