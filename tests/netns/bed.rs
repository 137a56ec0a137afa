//! A node with the daemon's surroundings: the Kubernetes API and STS on the node, and the metadata service behind it.

use std::io;
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::ops::Deref;
use std::time::Duration;

use rolegate_lab::daemon::{Daemon, Setup};
use rolegate_lab::imds::Imds;
use rolegate_lab::kube::{KubeApi, PodBuilder, Resource};
use rolegate_lab::node::{
    Bridge, IMDS_IP, IMDS_IP6, NODE_IP, NODE_IP6, Netns, Node, PodNs, PodOptions, available_or_skip, find_program, programs_or_skip, skip,
};
use rolegate_lab::player::{self, Response};
use rolegate_lab::sts::{Role, Sts};
use serde_json::Value;
use tempfile::TempDir;
use tokio::runtime::Runtime;

/// The port of the metadata service.
const METADATA_PORT: u16 = 80;
/// The timeout of a connection.
pub(crate) const PATIENCE: Duration = Duration::from_secs(10);
/// The metadata service's address, as pods use it.
pub(crate) const METADATA: SocketAddr = SocketAddr::new(IpAddr::V4(IMDS_IP), METADATA_PORT);
/// The metadata service's IPv6 address.
pub(crate) const METADATA6: SocketAddr = SocketAddr::new(IpAddr::V6(IMDS_IP6), METADATA_PORT);
/// The argument that turns the routing rules on, as they are without any argument.
pub(crate) const ROUTED: &str = "--redirect-routing-rules=true";
/// Programs that the rules need.
const PROGRAMS: [&str; 6] = ["iptables", "iptables-restore", "iptables-save", "ip6tables", "ip6tables-restore", "ip6tables-save"];

/// The node, and everything that the daemon on it talks to.
#[derive(Debug)]
pub(crate) struct Bed {
    /// The node.
    pub(crate) node: Node,
    /// Its Kubernetes API.
    pub(crate) api: KubeApi,
    sts: Sts,
    imds: [Imds; 2],
    runtime: Runtime,
}

/// A pod with a role of its own.
#[derive(Debug)]
pub(crate) struct Pod {
    ns: PodNs,
    role: String,
}

/// The results of one round of IMDSv2: a token, the role's name, its credentials.
#[derive(Debug)]
pub(crate) struct Fetched {
    /// The name in the list.
    pub(crate) role: String,
    /// The `AccessKeyId` of the document.
    pub(crate) access_key_id: String,
}

impl Deref for Pod {
    type Target = PodNs;

    fn deref(&self) -> &PodNs {
        &self.ns
    }
}

impl Pod {
    /// The name of its role.
    pub(crate) fn role(&self) -> &str {
        &self.role
    }
}

impl Bed {
    /// Creates a bed. Returns `None` and reports why if this machine cannot have one.
    pub(crate) fn new() -> Option<Bed> {
        if !available_or_skip() || !programs_or_skip(&PROGRAMS) {
            return None;
        }
        let node = Node::with_imds().unwrap();
        for program in ["iptables", "ip6tables"] {
            if let Err(error) = node.ns().sh(&format!("{program} -t nat -S")) {
                skip(format!("this kernel has no NAT rules: {error}"));
                return None;
            }
        }
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let guard = runtime.enter();
        let on_node = || node.ns().tcp_listener((NODE_IP, 0).into()).unwrap();
        let (api, sts) = (KubeApi::start(on_node()).unwrap(), Sts::start(on_node()).unwrap());
        // As lenient as a metadata service can be: it answers every request that reaches it.
        let imds = [METADATA, METADATA6].map(|address| Imds::start(node.imds().unwrap().tcp_listener(address).unwrap()).unwrap());
        imds.iter().for_each(|imds| imds.set_tokens_required(false));
        drop(guard);
        Some(Bed { node, api, sts, imds, runtime })
    }

    /// Adds a pod whose veth on the node is named `interface_prefix` and a number.
    pub(crate) fn pod(&self, name: &str, interface_prefix: &str) -> Pod {
        self.pod_with(PodOptions { name, interface_prefix, ..PodOptions::default() })
    }

    /// Returns the set-up of a daemon that manages the packet rules, without an address for them. The routing rules are off, because
    /// they would hide a packet rule that fails: see [`ROUTED`].
    pub(crate) fn setup(&self) -> Setup {
        Setup::new(env!("CARGO_BIN_EXE_rolegate"))
            .inside(self.node.ns())
            .env("AWS_ENDPOINT_URL_STS", self.sts_url())
            .argument("--node=node-a")
            .argument(format!("--api-server={}", self.api.url()))
            .argument("--redirect=iptables")
            .argument("--redirect-routing-rules=false")
    }

    /// Returns the set-up with the node's address.
    pub(crate) fn setup_with_ip(&self) -> Setup {
        self.setup().argument(format!("--host-ip={NODE_IP}"))
    }

    /// Starts the daemon, and waits until it is ready: its rules are installed, and it knows its pods.
    pub(crate) fn start(&self, setup: &Setup) -> Daemon {
        let daemon = setup.start().unwrap();
        daemon.wait_ready(Some(self.node.ns())).unwrap();
        daemon
    }

    /// Starts the daemon, which has to give up, and returns the one error that it logged.
    pub(crate) fn start_in_vain(&self, setup: &Setup) -> String {
        let mut daemon = setup.spawn().unwrap();
        let status = daemon.wait().unwrap();
        let log = daemon.log();
        assert_eq!(status.code(), Some(1), "{log}");
        let lines = log.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
        let errors: Vec<Value> = lines.filter(|line| line["level"] == "ERROR").collect();
        let [error] = errors.as_slice() else { panic!("not exactly one error:\n{log}") };
        assert_eq!(error["event"], "fatal", "{log}");
        error["error"].as_str().unwrap().to_owned()
    }

    /// Checks that the pod gets its own role at `address` through the daemon, with credentials that STS issued for it.
    #[track_caller]
    pub(crate) fn assert_served(&self, pod: &Pod, address: SocketAddr) {
        let before = self.metadata_requests_of(pod);
        let fetched = fetch(pod, address).unwrap_or_else(|error| panic!("{}: {error}", pod.name));
        assert_eq!(fetched.role, pod.role);
        let arn = arn(&pod.role);
        let issued = self.sts.issued();
        let session = issued.iter().find(|issued| issued.access_key_id == fetched.access_key_id).expect("STS did not issue this key");
        assert_eq!((&session.role_arn, session.session_name.as_str()), (&arn, pod.name.as_str()));
        assert_eq!(self.metadata_requests_of(pod), before, "the pod reached the metadata service");
    }

    /// Checks that STS issued this key for this role.
    #[track_caller]
    pub(crate) fn assert_issued(&self, access_key_id: &str, role: &str) {
        let issued = self.sts.issued();
        let session = issued.iter().find(|issued| issued.access_key_id == access_key_id).expect("STS did not issue this key");
        assert_eq!(session.role_arn, arn(role));
    }

    /// Checks that the pod's request reaches the metadata service itself.
    #[track_caller]
    pub(crate) fn assert_not_redirected(&self, pod: &Pod) {
        let before = self.metadata_requests_of(pod);
        let fetched = fetch(pod, METADATA).unwrap();
        assert_eq!(fetched.role, rolegate_lab::imds::NODE_ROLE_NAME);
        assert_eq!(self.metadata_requests_of(pod), before + 3);
    }

    /// Checks that the node refuses a new connection of the pod to the metadata address, and that it never reaches the service.
    #[track_caller]
    pub(crate) fn assert_refused(&self, pod: &Pod) {
        let before = self.metadata_requests_of(pod);
        let error = pod.connect(METADATA, PATIENCE).unwrap_err();
        assert!(is_refusal(&error), "{error}");
        assert_eq!(self.metadata_requests_of(pod), before);
    }

    /// Adds a role to STS.
    pub(crate) fn add_role(&self, name: &str) {
        self.sts.add_role(Role::new(arn(name)));
    }

    /// The URL of its STS.
    pub(crate) fn sts_url(&self) -> String {
        self.sts.url()
    }

    /// The runtime of the fakes.
    pub(crate) fn runtime(&self) -> &Runtime {
        &self.runtime
    }

    /// The number of requests that the metadata service received from anyone.
    pub(crate) fn metadata_requests(&self) -> usize {
        self.imds.iter().map(|imds| imds.requests().len()).sum()
    }

    /// The number of requests that the metadata service received from the pod's addresses.
    pub(crate) fn metadata_requests_of(&self, pod: &Pod) -> usize {
        let own = [IpAddr::from(pod.ip), IpAddr::from(pod.ip6)];
        let requests = self.imds.iter().flat_map(Imds::requests);
        requests.filter(|request| own.contains(&request.peer.ip())).count()
    }

    /// Adds a pod whose veth is a port of this bridge.
    pub(crate) fn pod_at(&self, name: &str, bridge: &Bridge) -> Pod {
        self.pod_with(PodOptions { name, bridge: Some(bridge), ..PodOptions::default() })
    }

    /// Adds a pod with these options, also to the API.
    pub(crate) fn pod_with(&self, options: PodOptions<'_>) -> Pod {
        let (name, ns) = (options.name, self.node.add_pod_with(options).unwrap());
        let role = format!("role-of-{name}");
        let arn = arn(&role);
        self.add_role(&role);
        let (ip, ip6) = (ns.ip.to_string(), ns.ip6.to_string());
        let object = PodBuilder::new("team-a", name).ips([ip.as_str(), ip6.as_str()]).annotation("iam.amazonaws.com/role", &arn);
        self.api.apply(Resource::Pods, object.build());
        Pod { ns, role }
    }

    /// Makes the metadata service's kernel count the packets that arrive from pods or neighbours, on any port and protocol.
    pub(crate) fn count_packets_of_pods(&self) {
        let rules = format!(
            "nft -f - <<'END'\ntable inet seen {{\nchain of_others {{\ntype filter hook prerouting priority -300;\n\
             ip saddr 10.42.0.0/16 ip saddr != {NODE_IP} counter\nip6 saddr fd00:42::/64 ip6 saddr != {NODE_IP6} counter\n}}\n}}\nEND"
        );
        self.node.imds().unwrap().sh(&rules).unwrap();
    }

    /// The number of these packets so far, of both families together.
    pub(crate) fn packets_of_pods(&self) -> u64 {
        let listed = self.node.imds().unwrap().sh("nft list table inet seen").unwrap();
        let counts = listed.split("counter packets ").skip(1).map(|rest| rest.split(' ').next().unwrap().parse::<u64>().unwrap());
        let counts: Vec<u64> = counts.collect();
        assert_eq!(counts.len(), 2, "{listed}");
        counts.iter().sum()
    }

    /// Returns the rules of PREROUTING, and where ours send requests.
    pub(crate) fn rules(&self, program: &str) -> Rules {
        let table = self.node.ns().sh(&format!("{program} -t nat -S")).unwrap();
        let lines = table.lines().map(str::to_owned);
        let (prerouting, rest): (Vec<_>, Vec<_>) =
            lines.filter(|line| line.starts_with("-A ")).partition(|line| line.starts_with("-A PREROUTING "));
        let redirects = rest.iter().filter(|line| line.starts_with("-A ROLEGATE "));
        let targets = redirects.filter_map(|line| Some(line.split_once("--to-destination ")?.1.trim().to_owned())).collect();
        Rules { prerouting, targets }
    }
}

/// Creates a directory with the programs of one flavour under their plain names, and those of both under their own, as in an
/// image. Returns `None` and reports why if this machine lacks one.
pub(crate) fn image(flavour: &str) -> Option<TempDir> {
    let image = tempfile::tempdir().unwrap();
    for family in ["iptables", "ip6tables"] {
        for part in ["", "-restore", "-save"] {
            for (name, of_flavour) in [
                (format!("{family}{part}"), format!("{family}-{flavour}{part}")),
                (format!("{family}-nft{part}"), format!("{family}-nft{part}")),
                (format!("{family}-legacy{part}"), format!("{family}-legacy{part}")),
            ] {
                let Some(program) = find_program(&of_flavour) else {
                    skip(format!("the program `{of_flavour}` is not installed"));
                    return None;
                };
                std::os::unix::fs::symlink(program, image.path().join(name)).unwrap();
            }
        }
    }
    Some(image)
}

/// The contents of the table `nat`.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Rules {
    /// The rules of PREROUTING.
    pub(crate) prerouting: Vec<String>,
    /// The targets in our chain.
    pub(crate) targets: Vec<String>,
}

impl Rules {
    /// The number of rules in PREROUTING that jump to our chain.
    pub(crate) fn jumps(&self) -> usize {
        self.prerouting.iter().filter(|rule| rule.ends_with("-j ROLEGATE")).count()
    }
}

/// Returns whether the node refused a connection: by a packet rule, or by a routing rule of IPv4 or IPv6.
pub(crate) fn is_refusal(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::ConnectionRefused | io::ErrorKind::HostUnreachable | io::ErrorKind::PermissionDenied)
}

/// Returns the ARN of a role with this name.
pub(crate) fn arn(role: &str) -> String {
    format!("arn:aws:iam::123456789012:role/{role}")
}

/// Does what an SDK does, on one connection.
pub(crate) fn fetch(client: &Netns, address: SocketAddr) -> io::Result<Fetched> {
    fetch_on(&client.connect(address, PATIENCE)?, address)
}

/// Does what an SDK does, on this connection to the address.
pub(crate) fn fetch_on(stream: &TcpStream, address: SocketAddr) -> io::Result<Fetched> {
    const LIST: &str = "/latest/meta-data/iam/security-credentials/";
    let host = if address.port() == METADATA_PORT { address.ip().to_string() } else { address.to_string() };
    let host = if address.is_ipv6() && address.port() == METADATA_PORT { format!("[{host}]") } else { host };
    let ask = |method: &str, path: &str, header: (&str, &str)| -> io::Result<Response> {
        let answer = player::request(stream, method, path, &[("Host", &host), header])?;
        match answer.status {
            200 => Ok(answer),
            status => Err(io::Error::other(format!("{method} {path}: {status} {:?}", answer.text()))),
        }
    };
    let token = ask("PUT", "/latest/api/token", ("X-aws-ec2-metadata-token-ttl-seconds", "21600"))?.text();
    let with_token = ("X-aws-ec2-metadata-token", token.as_str());
    let role = ask("GET", LIST, with_token)?.text();
    let document: Value = serde_json::from_slice(&ask("GET", &format!("{LIST}{role}"), with_token)?.body)?;
    Ok(Fetched { role, access_key_id: document["AccessKeyId"].as_str().unwrap_or_default().to_owned() })
}
