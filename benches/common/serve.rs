//! The daemon and a bare hyper server that returns the same bytes, each as a process of its own, and what clients send to them.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use rolegate_lab::daemon::Daemon;
use rolegate_lab::kube::{KubeApi, Resource};
use rolegate_lab::player;
use rolegate_lab::sts::{Role, Sts};
use tokio::runtime::Runtime;

use super::{pods, world};

/// The address of the pod.
pub(crate) const POD: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
/// The role of the pod.
pub(crate) const ROLE: &str = "web-role";
/// The path below which the credentials are.
pub(crate) const CREDENTIALS: &str = "/latest/meta-data/iam/security-credentials/";

/// The daemon, and the fakes that it depends on.
pub(crate) struct Served {
    pub(crate) daemon: Daemon,
    /// A session token of the pod.
    pub(crate) token: String,
    /// The credential document.
    pub(crate) document: String,
    /// The API, with one pod.
    pub(crate) api: KubeApi,
    /// The UID of the pod.
    pub(crate) uid: String,
    _sts: Sts,
}

impl Served {
    /// Starts the daemon with one pod, whose session is cached. `change` completes the set-up.
    pub(crate) fn start(runtime: &Runtime, change: impl FnOnce(rolegate_lab::daemon::Setup) -> rolegate_lab::daemon::Setup) -> Self {
        let (api, sts) = (world::start_api(runtime), world::start_sts(runtime));
        sts.add_role(Role::new(world::arn(ROLE)));
        let pod = api.apply(Resource::Pods, pods::with_role("shop", "web", POD, ROLE).build());
        let daemon = change(world::setup(&api.url(), &sts)).start().unwrap();
        daemon.wait_ready(None).unwrap();
        let connect = || std::net::TcpStream::connect(daemon.metadata_address()).unwrap();
        let ttl = [("X-aws-ec2-metadata-token-ttl-seconds", "21600")];
        let token = player::request(connect(), "PUT", "/latest/api/token", &ttl).unwrap().text();
        let path = format!("{CREDENTIALS}{ROLE}");
        let document = player::request(connect(), "GET", &path, &[("X-aws-ec2-metadata-token", &token)]).unwrap();
        assert_eq!(document.status, 200);
        let uid = pod["metadata"]["uid"].as_str().unwrap().to_owned();
        Self { token, document: document.text(), api, uid, daemon, _sts: sts }
    }

    /// Returns a request for this path, with the session token.
    pub(crate) fn request(&self, path: &str) -> Vec<u8> {
        format!("GET {path} HTTP/1.1\r\nHost: 169.254.169.254\r\nX-aws-ec2-metadata-token: {}\r\n\r\n", self.token).into_bytes()
    }
}

/// Returns a request for a session token.
pub(crate) fn token_request() -> Vec<u8> {
    b"PUT /latest/api/token HTTP/1.1\r\nHost: 169.254.169.254\r\nX-aws-ec2-metadata-token-ttl-seconds: 21600\r\n\r\n".to_vec()
}

/// Runs hyper on its own: no timeouts, no limits, no routes; the same status, headers and body. Prints its address.
pub(crate) fn bare_server(body: String, workers: usize) {
    use http_body_util::Full;
    use hyper::service::service_fn;
    use hyper_util::rt::TokioIo;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(workers).enable_all().build().unwrap();
    runtime.block_on(async move {
        let listener = tokio::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let address: SocketAddr = listener.local_addr().unwrap();
        println!("{address}");
        let body = bytes::Bytes::from(body);
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            stream.set_nodelay(true).unwrap();
            let body = body.clone();
            tokio::spawn(async move {
                let service = service_fn(move |_| {
                    let response = http::Response::builder()
                        .header("server", "EC2ws")
                        .header("content-type", "text/plain")
                        .body(Full::new(body.clone()));
                    std::future::ready(response)
                });
                // An error means that the client left.
                let _ = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
            });
        }
    });
}
