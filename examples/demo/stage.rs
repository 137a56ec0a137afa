//! The lab and the daemon: a cluster's API, STS, the node's metadata service, and the pods.

use std::error::Error;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};

use rolegate_lab::daemon::{Daemon, Setup};
use rolegate_lab::imds::Imds;
use rolegate_lab::kube::{self, KubeApi, PodBuilder, Resource};
use rolegate_lab::node::{self, IMDS_IP, NODE_IP, Netns, Node};
use rolegate_lab::sts::{NODE_ACCOUNT, Role, Sts};
use tempfile::TempDir;

use crate::ask::{Answer, Ask, Pod};
use crate::story::Story;

pub(crate) type Failure = Box<dyn Error + Send + Sync>;

/// The node's name in the cluster.
const NODE: &str = "node-1";
/// The annotation that names a pod's role.
pub(crate) const ANNOTATION: &str = "iam.amazonaws.com/role";
/// The annotation with the roles that a namespace's pods may have.
const ALLOWED_ROLES: &str = "iam.amazonaws.com/allowed-roles";

/// How pods are represented.
#[derive(Debug)]
pub(crate) enum Ground {
    /// Network namespaces, with the daemon's packet rules in front of the metadata address.
    Namespaces(Node),
    /// Addresses of the loopback interface, and the reason for it.
    Loopback(String),
}

/// The clients in the story.
#[derive(Debug)]
pub(crate) struct Cast {
    /// Annotated with `web-role`.
    pub(crate) web: Pod,
    /// Annotated with `db-role`.
    pub(crate) db: Pod,
    /// Without an annotation.
    pub(crate) plain: Pod,
    /// Annotated with something that is not a role.
    pub(crate) typo: Pod,
    /// A client that is not a pod of the cluster.
    pub(crate) stranger: Pod,
}

/// Everything behind the pods.
#[derive(Debug)]
pub(crate) struct Stage {
    /// The STS that issues credentials.
    pub(crate) sts: Sts,
    /// The metadata service that holds the node's own credentials.
    pub(crate) imds: Imds,
    /// The address that pods send their requests to.
    pub(crate) metadata: SocketAddr,
    /// The daemon's log.
    pub(crate) log: PathBuf,
    /// All bytes that pods received.
    pub(crate) received: Vec<u8>,
    /// The number of requests that the daemon answered.
    pub(crate) asked: usize,
    let_through: usize,
    node: Option<Node>,
    program: PathBuf,
    setup: Setup,
    daemon: Option<Daemon>,
    _kube: KubeApi,
    _scratch: TempDir,
}

impl Ground {
    /// Chooses namespaces if they are possible. It may replace this process by one that can create them, so it is called first.
    pub(crate) fn choose() -> Ground {
        if std::env::var_os("DEMO_LOOPBACK").is_some_and(|value| value == "1") {
            return Ground::Loopback("DEMO_LOOPBACK=1 asks for it".to_owned());
        }
        namespaces().map_or_else(|why| Ground::Loopback(format!("namespaces not possible: {why}")), Ground::Namespaces)
    }
}

fn namespaces() -> Result<Node, Failure> {
    for program in ["iptables", "iptables-restore"] {
        node::find_program(program).ok_or_else(|| format!("the program {program} is not installed"))?;
    }
    node::reexec_in_user_namespace_if_needed()?;
    node::available()?;
    let node = Node::with_imds()?;
    node.ns().sh("iptables -t nat -n -L PREROUTING")?;
    Ok(node)
}

/// Returns the prefix of a command that runs it in the namespaces of this process; empty if it has none of its own.
pub(crate) fn enter_own_namespace() -> String {
    let id = std::process::id();
    if node::in_user_namespace() { format!("nsenter --user --preserve-credentials -t {id} --net=/proc/{id}/ns/net") } else { String::new() }
}

impl Stage {
    /// Sets up everything except the daemon itself.
    pub(crate) fn set(ground: Ground, daemon: &Path) -> Result<(Stage, Cast), Failure> {
        let node = match ground {
            Ground::Namespaces(node) => Some(node),
            Ground::Loopback(_) => None,
        };
        let loopback = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        let inside = node.as_ref().map(Node::ns);
        let kube = KubeApi::start(listen(inside, loopback)?)?;
        let sts = Sts::start(listen(inside, loopback)?)?;
        let imds = match node.as_ref().and_then(Node::imds) {
            Some(ns) => Imds::start(listen(Some(ns), SocketAddr::from((IMDS_IP, 80)))?)?,
            None => Imds::start(listen(None, loopback)?)?,
        };
        for role in ["web-role", "db-role"] {
            sts.add_role(Role::new(format!("arn:aws:iam::{NODE_ACCOUNT}:role/{role}")));
        }
        kube.apply(Resource::Namespaces, kube::namespace("shop", &[(ALLOWED_ROLES, r#"["web-*", "db-*"]"#)]));
        kube.apply(Resource::Nodes, kube::node(NODE, &[&NODE_IP.to_string()]));
        let cast = Cast {
            web: pod(&kube, node.as_ref(), "web", 2, Some("web-role"))?,
            db: pod(&kube, node.as_ref(), "db", 3, Some("db-role"))?,
            plain: pod(&kube, node.as_ref(), "plain", 4, None)?,
            typo: pod(&kube, node.as_ref(), "typo", 5, Some("arn:aws:iam::1111-2222-3333:role/typo-role"))?,
            stranger: place(node.as_ref(), "a stranger", 6)?,
        };

        // These pods send no requests. The story explains them.
        let told = [("report", 7, "billing-role"), ("twin-a", 8, "web-role"), ("twin-b", 8, "web-role")];
        for (name, host, role) in told {
            let ip = Ipv4Addr::from_octets([cast.web.ip.octets()[0], cast.web.ip.octets()[1], cast.web.ip.octets()[2], host]);
            let builder = PodBuilder::new("shop", name).node(NODE).ip(&ip.to_string());
            kube.apply(Resource::Pods, builder.annotation(ANNOTATION, role).build());
        }

        let scratch = tempfile::Builder::new().prefix("rolegate-demo-").tempdir()?;
        let log = scratch.path().join("rolegate.log");
        let setup = ["AWS_REGION", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_EC2_METADATA_DISABLED"]
            .iter()
            .fold(Setup::new(daemon), |setup, name| setup.without_env(name))
            .argument(format!("--node={NODE}"))
            .argument(format!("--api-server={}", kube.url()))
            .argument("--auto-discover-base-arn")
            .argument("--namespace-restrictions")
            .env("AWS_ENDPOINT_URL_STS", sts.url())
            .log_file(&log);
        let setup = match &node {
            Some(node) => setup.inside(node.ns()).argument("--app-port=8181").argument("--metrics-port=9543").argument("--iptables"),
            None => setup
                .argument("--metadata-bind-address=127.0.0.1")
                .argument("--metrics-bind-address=127.0.0.1")
                .argument("--accept-direct-connections")
                .argument(format!("--metadata-addr={}", imds.addr()))
                // The SDK must not look for the metadata service at its real address.
                .env("AWS_EC2_METADATA_SERVICE_ENDPOINT", imds.url()),
        };
        // Without namespaces, the address is known once the daemon has bound its port.
        let metadata = if node.is_some() { SocketAddr::from((IMDS_IP, 80)) } else { loopback };
        let stage = Stage {
            sts,
            imds,
            metadata,
            log,
            received: Vec::new(),
            asked: 0,
            let_through: 0,
            node,
            program: daemon.to_owned(),
            setup,
            daemon: None,
            _kube: kube,
            _scratch: scratch,
        };
        Ok((stage, cast))
    }

    /// Returns whether pods are network namespaces.
    pub(crate) fn has_namespaces(&self) -> bool {
        self.node.is_some()
    }

    /// Returns the prefix of a command that runs it on the node.
    pub(crate) fn enter_node(&self) -> String {
        self.node.as_ref().map_or_else(enter_own_namespace, |node| node.ns().enter())
    }

    /// Starts the daemon, and returns once it can serve.
    pub(crate) fn start_daemon(&mut self) -> Result<(), Failure> {
        let daemon = self.setup.start()?;
        daemon.wait_ready(self.node.as_ref().map(Node::ns))?;
        if self.node.is_none() {
            self.metadata = daemon.metadata_address();
        }
        self.daemon = Some(daemon);
        Ok(())
    }

    /// Ends the daemon as Kubernetes would.
    pub(crate) fn stop_daemon(&mut self) -> Result<(), Failure> {
        let mut daemon = self.daemon.take().ok_or("the daemon does not run")?;
        daemon.terminate()?;
        let status = daemon.wait()?;
        if status.success() { Ok(()) } else { Err(format!("the daemon ended with {status}").into()) }
    }

    /// The running daemon.
    pub(crate) fn daemon(&self) -> Result<&Daemon, Failure> {
        self.daemon.as_ref().ok_or_else(|| "the daemon does not run".into())
    }

    /// Returns the URL of its metrics.
    pub(crate) fn metrics_url(&self) -> String {
        let address = self.daemon.as_ref().map(Daemon::metrics_address);
        address.map_or_else(String::new, |address| format!("http://{address}/metrics"))
    }

    /// Returns its metrics.
    pub(crate) fn metrics(&self) -> Result<String, Failure> {
        Ok(self.daemon()?.get(self.node.as_ref().map(Node::ns), "/metrics")?.text())
    }

    /// Asks the daemon, on the node, why a pod gets what it gets, and shows the answer. Returns what is printed, and the exit
    /// code.
    pub(crate) fn explain(&self, story: &Story, pod: &str, more: &[&str]) -> Result<(String, i32), Failure> {
        let url = format!("--admin-url=http://{}", self.daemon()?.metrics_address());
        let program = self.program.display().to_string();
        let arguments = [&["explain", pod, url.as_str()], more].concat();
        let enter = self.enter_node();
        let shown = enter.split(' ').chain([program.as_str()]).chain(arguments.iter().copied()).filter(|word| !word.is_empty());
        story.command(&shown.map(str::to_owned).collect::<Vec<_>>());
        let mut command = match &self.node {
            Some(node) => node.ns().command(&program),
            None => std::process::Command::new(&program),
        };
        let output = command.args(&arguments).output()?;
        let text = String::from_utf8(output.stdout)? + &String::from_utf8(output.stderr)?;
        story.printed(&text);
        Ok((text, output.status.code().unwrap_or(-1)))
    }

    /// Sends a request, and shows it with its answer.
    pub(crate) fn ask(&mut self, story: &Story, ask: &Ask<'_>) -> Answer {
        story.command(&ask.command(self.metadata, false));
        let answer = self.send(ask);
        story.output(&answer.shown());
        answer
    }

    /// Requests a session token, which is `$TOKEN` in the commands from here on.
    pub(crate) fn take_token(&mut self, story: &Story, pod: &Pod) -> Answer {
        let ask = Ask::token(pod);
        story.command(&ask.command(self.metadata, true));
        let answer = self.send(&ask);
        if !answer.is_ok() {
            story.output(&answer.shown());
        }
        answer
    }

    /// Starts counting anew: from here on, no pod's request may reach the node's metadata service.
    pub(crate) fn forget_what_was(&mut self) {
        self.let_through = self.requests_of_pods();
        self.received.clear();
    }

    /// Returns how many requests did.
    pub(crate) fn leaks(&self) -> usize {
        self.requests_of_pods() - self.let_through
    }

    /// Returns the number of requests that reached it from anywhere except the node itself.
    pub(crate) fn requests_of_pods(&self) -> usize {
        let node = if self.node.is_some() { NODE_IP } else { Ipv4Addr::LOCALHOST };
        self.imds.requests().iter().filter(|request| request.peer.ip() != IpAddr::V4(node)).count()
    }

    fn send(&mut self, ask: &Ask<'_>) -> Answer {
        let answer = ask.send(self.metadata);
        self.asked += usize::from(self.daemon.is_some() && answer.status.is_ok());
        self.received.extend_from_slice(&answer.raw);
        answer
    }
}

fn listen(ns: Option<&Netns>, address: SocketAddr) -> Result<TcpListener, Failure> {
    Ok(match ns {
        Some(ns) => ns.tcp_listener(address)?,
        None => TcpListener::bind(address)?,
    })
}

/// Creates a pod of the cluster.
fn pod(kube: &KubeApi, node: Option<&Node>, name: &str, host: u8, role: Option<&str>) -> Result<Pod, Failure> {
    let pod = place(node, &format!("shop/{name}"), host)?;
    let builder = PodBuilder::new("shop", name).node(NODE).ip(&pod.ip.to_string());
    let builder = role.into_iter().fold(builder, |builder, role| builder.annotation(ANNOTATION, role));
    kube.apply(Resource::Pods, builder.build());
    Ok(pod)
}

/// Creates a place to send requests from.
fn place(node: Option<&Node>, name: &str, host: u8) -> Result<Pod, Failure> {
    let ns = node.map(|node| node.add_pod(name)).transpose()?;
    let ip = ns.as_ref().map_or(Ipv4Addr::new(127, 0, 0, host), |ns| ns.ip);
    Ok(Pod { name: name.to_owned(), ip, ns })
}
