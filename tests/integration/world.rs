//! The lab's Kubernetes API, STS and IMDS, and the daemon in front of them, on loopback. The pods are addresses in 127.0.0.0/8,
//! from which their requests come.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use rolegate_lab::daemon::{Daemon, Setup};
use rolegate_lab::imds::Imds;
use rolegate_lab::kube::{KubeApi, PodBuilder, Resource};
use rolegate_lab::player::{self, Response};
use rolegate_lab::sts::{Role, Sts};
use serde_json::Value;
use socket2::{Domain, Socket, Type};
use tokio::runtime::Runtime;

pub(crate) const NODE: &str = "node-a";
pub(crate) const TOKEN: &str = "X-aws-ec2-metadata-token";
pub(crate) const TOKEN_TTL: &str = "X-aws-ec2-metadata-token-ttl-seconds";
pub(crate) const ROLES: &str = "/latest/meta-data/iam/security-credentials/";
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

pub(crate) struct World {
    pub(crate) daemon: Daemon,
    pub(crate) fakes: Fakes,
}

/// The services that the daemon talks to.
pub(crate) struct Fakes {
    pub(crate) api: KubeApi,
    pub(crate) sts: Sts,
    pub(crate) imds: Imds,
    pub(crate) runtime: Runtime,
    files: tempfile::TempDir,
}

pub(crate) fn arn(role: &str) -> String {
    format!("arn:aws:iam::111122223333:role/{role}")
}

pub(crate) fn loopback() -> TcpListener {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap()
}

impl Fakes {
    pub(crate) fn new() -> Fakes {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let _inside = runtime.enter();
        let api = KubeApi::start(loopback()).unwrap();
        let (sts, imds) = (Sts::start(loopback()).unwrap(), Imds::start(loopback()).unwrap());
        drop(_inside);
        Fakes { api, sts, imds, runtime, files: tempfile::tempdir().unwrap() }
    }

    /// Creates a file that exists as long as the fakes.
    pub(crate) fn file(&self, name: &str, text: &str) -> String {
        let path = self.files.path().join(name);
        std::fs::write(&path, text).unwrap();
        path.display().to_string()
    }

    /// The directory of these files.
    pub(crate) fn directory(&self) -> &std::path::Path {
        self.files.path()
    }

    /// Returns the set-up of a daemon for these fakes. It calls STS only when a pod sends a request, because tests count calls;
    /// those of prefetching enable it.
    pub(crate) fn setup(&self) -> Setup {
        Setup::new(env!("CARGO_BIN_EXE_rolegate"))
            .argument(format!("--node={NODE}"))
            .argument(format!("--kubeconfig={}", self.file("kubeconfig", &self.api.kubeconfig())))
            .argument("--base-role-arn=arn:aws:iam::111122223333:role/")
            .argument("--accept-direct-connections")
            .argument("--prefetch=false")
            .argument("--metadata-bind-address=127.0.0.1")
            .argument("--metrics-bind-address=127.0.0.1")
            .argument(format!("--metadata-addr={}", self.imds.addr()))
            .env("AWS_ENDPOINT_URL_STS", self.sts.url())
    }

    /// Adds a running pod with this role annotation, and its role in STS.
    pub(crate) fn pod(&self, name: &str, ip: IpAddr, role: Option<&str>) {
        if let Some(role) = role {
            self.sts.add_role(Role::new(arn(role)));
        }
        self.api.apply(Resource::Pods, pod(name, ip, role).build());
    }

    pub(crate) fn delete_pod(&self, name: &str) {
        assert!(self.api.delete(Resource::Pods, Some("shop"), name));
    }

    pub(crate) fn into_world(self, setup: &Setup) -> World {
        let daemon = setup.start().unwrap();
        daemon.wait_ready(None).unwrap();
        World { daemon, fakes: self }
    }

    /// Starts the daemon, and waits until only its own identity is pending.
    pub(crate) fn into_world_without_identity(self, setup: &Setup) -> World {
        let daemon = setup.start().unwrap();
        let world = World { daemon, fakes: self };
        let ready = |world: &World| world.daemon.get(None, "/readyz").map(|answer| (answer.status, answer.text()));
        let wanted = |(status, text): &(u16, String)| *status == 503 && text.trim() == "waiting for: the daemon's own AWS identity";
        world.eventually(|world| ready(world).unwrap_or_default(), wanted);
        world
    }
}

pub(crate) fn pod(name: &str, ip: IpAddr, role: Option<&str>) -> PodBuilder {
    let builder = PodBuilder::new("shop", name).node(NODE).ip(&ip.to_string());
    match role {
        Some(role) => builder.annotation("iam.amazonaws.com/role", role),
        None => builder,
    }
}

pub(crate) fn ip(last: u8) -> IpAddr {
    IpAddr::from([127, 0, 1, last])
}

impl World {
    /// Starts a world with two pods with a role each, one without, and a ready daemon.
    pub(crate) fn start() -> World {
        World::start_with(|setup| setup)
    }

    pub(crate) fn start_with(change: impl FnOnce(Setup) -> Setup) -> World {
        let fakes = World::pods();
        let setup = change(fakes.setup());
        fakes.into_world(&setup)
    }

    /// Starts a world whose daemon does not learn its own AWS identity.
    pub(crate) fn start_without_identity(change: impl FnOnce(Setup) -> Setup) -> World {
        let fakes = World::pods();
        let setup = change(fakes.setup());
        fakes.into_world_without_identity(&setup)
    }

    fn pods() -> Fakes {
        let fakes = Fakes::new();
        fakes.pod("web", ip(2), Some("web-role"));
        fakes.pod("db", ip(3), Some("db-role"));
        fakes.pod("plain", ip(4), None);
        fakes
    }

    /// Checks that no request of a pod causes or influences one to the real service.
    #[track_caller]
    pub(crate) fn assert_that_the_table_alone_was_asked_for(&self) {
        let others: Vec<_> = self.fakes.imds.requests().into_iter().filter(|request| !request.is_for_base()).collect();
        assert!(others.is_empty(), "{others:#?}");
    }

    /// Opens a connection from a pod's address.
    pub(crate) fn connect(&self, from: IpAddr) -> TcpStream {
        connect(from, self.daemon.metadata_address()).unwrap()
    }

    pub(crate) fn request(&self, from: IpAddr, method: &str, target: &str, headers: &[(&str, &str)]) -> Response {
        let headers: Vec<_> = headers.iter().copied().chain([("Connection", "close")]).collect();
        player::request(self.connect(from), method, target, &headers).unwrap()
    }

    pub(crate) fn new_token(&self, from: IpAddr) -> Response {
        self.request(from, "PUT", "/latest/api/token", &[(TOKEN_TTL, "21600")])
    }

    /// Sends a GET with a new token, or without one if the pod cannot get one.
    pub(crate) fn get(&self, from: IpAddr, target: &str) -> Response {
        let token = self.new_token(from);
        if token.status != 200 {
            // 404 would be "a service without tokens" to many SDKs.
            assert_eq!((token.status, token.text().as_str()), (500, "Internal Server Error"), "{}", self.daemon.log());
            return self.request(from, "GET", target, &[]);
        }
        self.request(from, "GET", target, &[(TOKEN, &token.text())])
    }

    pub(crate) fn credentials(&self, from: IpAddr, role: &str) -> Response {
        self.get(from, &format!("{ROLES}{role}"))
    }

    /// Returns the credential document of the pod.
    pub(crate) fn document(&self, from: IpAddr, role: &str) -> Value {
        let response = self.credentials(from, role);
        assert_eq!(response.status, 200, "{}", self.daemon.log());
        serde_json::from_slice(&response.body).unwrap()
    }

    /// Repeats a request until the answer is as wanted.
    pub(crate) fn eventually<T: std::fmt::Debug>(&self, mut ask: impl FnMut(&World) -> T, wanted: impl Fn(&T) -> bool) -> T {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let answer = ask(self);
            if wanted(&answer) {
                return answer;
            }
            assert!(Instant::now() < deadline, "the answer stays {answer:?}\n{}", self.daemon.log());
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    pub(crate) fn metric(&self, name_and_labels: &str) -> f64 {
        self.daemon.metric(None, name_and_labels).unwrap()
    }
}

pub(crate) fn connect(from: IpAddr, to: SocketAddr) -> std::io::Result<TcpStream> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
    socket.bind(&SocketAddr::new(from, 0).into())?;
    socket.connect_timeout(&to.into(), PATIENCE)?;
    let stream = TcpStream::from(socket);
    stream.set_read_timeout(Some(PATIENCE))?;
    Ok(stream)
}
