//! moto, the independent STS of these tests.

use std::net::SocketAddr;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use rolegate_lab::daemon::Setup;
use rolegate_lab::kube::KubeApi;
use rolegate_lab::node::{NODE_IP, Node};
use rolegate_lab::player::{self, Response};
use serde_json::Value;

use crate::bed::{ACCOUNT, METADATA};
use crate::kit;

/// A port that is free in every namespace of the tests.
const PORT: u16 = 5000;
/// The time that moto may take to start.
const PATIENCE: Duration = Duration::from_secs(60);
/// The interval at which its start is checked.
const POLL_INTERVAL: Duration = Duration::from_millis(20);

/// moto on the node, checking signatures and identity policies. It is ended when dropped.
#[derive(Debug)]
pub(crate) struct Moto {
    process: Child,
    /// The node's access key ID.
    pub(crate) node_access_key_id: String,
    /// The node's secret key.
    pub(crate) node_secret_access_key: String,
}

/// A session that moto issued.
#[derive(Debug)]
pub(crate) struct Issued {
    /// The session's ARN: `arn:aws:sts::ACCOUNT:assumed-role/ROLE/SESSION`.
    pub(crate) arn: String,
    /// The access key ID.
    pub(crate) access_key_id: String,
    /// The secret key.
    pub(crate) secret_access_key: String,
    /// The session token.
    pub(crate) session_token: String,
}

impl Moto {
    /// Starts moto with these roles.
    pub(crate) fn start(node: &Node, roles: &[&str]) -> Moto {
        let mut command = kit::command(node.ns(), &kit::run_script());
        command.args(["moto", "-H", &NODE_IP.to_string(), "-p", &PORT.to_string()]).stdout(Stdio::null()).stderr(Stdio::null());
        let process = command.spawn().unwrap();
        let mut moto = Moto { process, node_access_key_id: String::new(), node_secret_access_key: String::new() };
        moto.wait_until_it_answers(node);
        let python = kit::directory().join("python/bin/python");
        let script = format!("{}/python/setup_moto.py", kit::SOURCES);
        let mut setup = kit::command(node.ns(), python.to_str().unwrap());
        let output = setup.arg(script).arg(Moto::url()).args(roles).env("AWS_EC2_METADATA_DISABLED", "true").output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let key: Value = serde_json::from_slice(&output.stdout).unwrap();
        moto.node_access_key_id = key["access_key_id"].as_str().unwrap().to_owned();
        moto.node_secret_access_key = key["secret_access_key"].as_str().unwrap().to_owned();
        moto
    }

    /// Returns the set-up of a daemon on the node that uses it.
    pub(crate) fn setup(&self, node: &Node, api: &KubeApi) -> Setup {
        Setup::new(env!("CARGO_BIN_EXE_rolegate"))
            .inside(node.ns())
            .without_env("AWS_SESSION_TOKEN")
            .env("AWS_ACCESS_KEY_ID", &self.node_access_key_id)
            .env("AWS_SECRET_ACCESS_KEY", &self.node_secret_access_key)
            .env("AWS_REGION", kit::REGION)
            .env("AWS_ENDPOINT_URL_STS", Moto::url())
            .argument("--node=node-a")
            .argument(format!("--api-server={}", api.url()))
            .argument(format!("--host-ip={NODE_IP}"))
            .argument(format!("--metadata-addr={}", METADATA.ip()))
    }

    /// Fails if a client's answer does not have a session of this role, named after the pod, that moto issued and recognized.
    #[track_caller]
    pub(crate) fn assert_identity(&self, node: &Node, answer: &Value, role: &str, pod: &str) {
        self.assert_session(node, &answer["access_key_id"], role, pod);
        assert_eq!(answer["arn"], session_arn(role, pod), "{answer}");
    }

    /// Fails if moto did not issue this access key ID for a session of this role, named after the pod.
    #[track_caller]
    pub(crate) fn assert_session(&self, node: &Node, access_key_id: &Value, role: &str, pod: &str) {
        let issued = self.issued(node);
        let session = issued.iter().find(|issued| *access_key_id == *issued.access_key_id);
        assert_eq!(session.map(|session| session.arn.clone()), Some(session_arn(role, pod)), "{access_key_id}");
    }

    /// Returns its endpoint on the node.
    pub(crate) fn url() -> String {
        format!("http://{}", Moto::address())
    }

    /// Returns every session that moto says it issued.
    pub(crate) fn issued(&self, node: &Node) -> Vec<Issued> {
        let data: Value = serde_json::from_slice(&Moto::get(node, "/moto-api/data.json").unwrap().body).unwrap();
        let text = |session: &Value, name: &str| session[name].as_str().unwrap().to_owned();
        let sessions = data["sts"]["AssumedRole"].as_array().unwrap().iter();
        let issued = sessions.map(|session| Issued {
            arn: text(session, "arn"),
            access_key_id: text(session, "access_key_id"),
            secret_access_key: text(session, "secret_access_key"),
            session_token: text(session, "session_token"),
        });
        issued.collect()
    }

    fn address() -> SocketAddr {
        (NODE_IP, PORT).into()
    }

    fn get(node: &Node, path: &str) -> std::io::Result<Response> {
        let stream = node.ns().connect(Moto::address(), PATIENCE)?;
        player::request(stream, "GET", path, &[("Host", "localhost"), ("Connection", "close")])
    }

    fn wait_until_it_answers(&mut self, node: &Node) {
        let deadline = Instant::now() + PATIENCE;
        while !Moto::get(node, "/moto-api/").is_ok_and(|answer| answer.status == 200) {
            let ended = self.process.try_wait().unwrap();
            assert!(ended.is_none() && Instant::now() < deadline, "moto does not answer: {ended:?}");
            std::thread::sleep(POLL_INTERVAL);
        }
    }
}

impl Drop for Moto {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Returns the ARN of a pod's session.
pub(crate) fn session_arn(role: &str, pod: &str) -> String {
    format!("arn:aws:sts::{ACCOUNT}:assumed-role/{role}/{pod}")
}
