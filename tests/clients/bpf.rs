//! Real SDKs with `--redirect=bpf`: in a pod with a network of its own and in a pod of the node's network, in one run, without any
//! netfilter rule, on a node whose network plugin sends the packets of pods past netfilter.

use std::os::unix::fs::symlink;
use std::process::Output;

use rolegate_lab::daemon::Daemon;
use rolegate_lab::imds::Imds;
use rolegate_lab::kube::{KubeApi, PodBuilder, Resource};
use rolegate_lab::node::bpf::{BpfMount, bpf_or_skip};
use rolegate_lab::node::{Cgroup, Cgroups, NODE_IP, Netns, Node, PodNs, available_or_skip, find_program, programs_or_skip, skip};
use tempfile::TempDir;
use tokio::runtime::Runtime;

use crate::bed::{ACCOUNT, METADATA, assert_untouched};
use crate::kit;
use crate::moto::Moto;

/// The SDKs, by the kits that contain them.
const CLIENTS: [(&str, &str); 6] =
    [("python", "boto3"), ("python", "awscli"), ("node", "node"), ("go", "go"), ("go", "go-v1"), ("java", "java")];
/// The pods: with a network of its own, of the node's network, and of the node's network with another role.
const PODS: [(&str, &str); 3] = [("web-0", "team-a-web"), ("agent-x2x4z", "team-b-agent"), ("exporter-9k2lp", "team-c-exporter")];

/// The node and everything on it. Fields are dropped in this order.
struct Bed {
    daemon: Daemon,
    moto: Moto,
    imds: Imds,
    pod: PodNs,
    groups: Vec<Cgroup>,
    node: Node,
    home: TempDir,
    _cgroups: Cgroups,
    _mount: BpfMount,
    _runtime: Runtime,
    _api: KubeApi,
}

impl Bed {
    fn new() -> Bed {
        let node = Node::with_imds().unwrap();
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let guard = runtime.enter();
        let api = KubeApi::start(node.ns().tcp_listener((NODE_IP, 0).into()).unwrap()).unwrap();
        let imds = Imds::start(node.imds().unwrap().tcp_listener(METADATA).unwrap()).unwrap();
        drop(guard);
        imds.set_tokens_required(false);
        let (cgroups, mount, home) = (Cgroups::new().unwrap(), BpfMount::new().unwrap(), tempfile::tempdir().unwrap());
        let pod = node.add_pod(PODS[0].0).unwrap();
        node.bypass_netfilter(&pod).unwrap();
        let groups = PODS.iter().enumerate().map(|(number, (name, role))| {
            let object =
                PodBuilder::new("team-a", name).annotation("iam.amazonaws.com/role", &format!("arn:aws:iam::{ACCOUNT}:role/{role}"));
            let object = if number == 0 { object.ip(&pod.ip.to_string()) } else { object.host_network(true).host_ip(&NODE_IP.to_string()) };
            api.apply(Resource::Pods, object.build());
            let stored = api.get(Resource::Pods, Some("team-a"), name).unwrap();
            cgroups.group(format!("kubepods/burstable/pod{}/{number:064x}", stored["metadata"]["uid"].as_str().unwrap())).unwrap()
        });
        let groups = groups.collect();
        let moto = Moto::start(&node, &PODS.map(|(_, role)| role));
        let programs = home.path().join("programs");
        std::fs::create_dir(&programs).unwrap();
        symlink(find_program("nft").unwrap(), programs.join("nft")).unwrap();
        let own = cgroups.group("kubepods/besteffort/podd1e1c0de-0000-4000-8000-000000000001/rolegate").unwrap();
        let kubepods = cgroups.group("kubepods").unwrap();
        let daemon = moto
            .setup(&node, &api)
            .by_way_of(mount.words().into_iter().chain(own.words()))
            .env("PATH", programs.display().to_string())
            .argument("--redirect=bpf")
            .argument(format!("--bpf-cgroup={}", kubepods.path().display()))
            .argument(format!("--bpf-pins={}/rolegate", BpfMount::PATH))
            .argument("--bpf-interfaces=imds")
            .argument("--host-network-pods=serve")
            .start()
            .unwrap();
        daemon.wait_ready(Some(node.ns())).unwrap();
        std::fs::remove_file(programs.join("nft")).unwrap();
        node.ns().sh("nft flush ruleset").unwrap();
        let bed = Bed { daemon, moto, imds, pod, groups, node, home, _cgroups: cgroups, _mount: mount, _runtime: runtime, _api: api };
        assert_eq!(bed.netfilter_rules(), "");
        bed
    }

    fn netfilter_rules(&self) -> String {
        self.node.ns().sh("nft list ruleset").unwrap()
    }

    fn run(&self, number: usize, client: &str) -> Output {
        let ns: &Netns = if number == 0 { self.pod.ns() } else { self.node.ns() };
        let mut command = kit::command_in(&self.groups[number], ns, "timeout");
        let command = command.args(kit::TIME_LIMIT).args([kit::run_script().as_str(), client]);
        command.env("HOME", self.home.path()).env("TMPDIR", self.home.path()).env("STS_ENDPOINT", Moto::url()).output().unwrap()
    }
}

#[test]
fn sdks_get_the_roles_of_pods_of_both_kinds_through_ebpf_programs() {
    if !available_or_skip() || !bpf_or_skip() || !programs_or_skip(&["nft", "bash", "timeout"]) {
        return;
    }
    if let Some(reason) = kit::missing("python") {
        return skip(reason);
    }
    let bed = Bed::new();
    for (kit, client) in CLIENTS {
        if let Some(reason) = kit::missing(kit) {
            skip(reason);
            continue;
        }
        for (number, (name, role)) in PODS.iter().enumerate() {
            let answer = kit::answer(&bed.run(number, client), || format!("{client} in {name}: {}", bed.daemon.log()));
            bed.moto.assert_identity(&bed.node, &answer, role, name);
        }
    }
    assert_eq!(bed.netfilter_rules(), "");
    assert_untouched(&bed.imds);
}
