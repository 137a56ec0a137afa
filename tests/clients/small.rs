//! A node of its own for a test, with the lab's STS, whose daemon can be stopped and started in other ways than in the bed.

use std::io::{BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use rolegate_lab::daemon::{Daemon, Setup};
use rolegate_lab::imds::Imds;
use rolegate_lab::kube::{KubeApi, PodBuilder, Resource};
use rolegate_lab::node::{NODE_IP, Node, PodNs, available_or_skip, programs_or_skip, skip};
use rolegate_lab::sts::{Role, Sts};
use serde_json::Value;
use tokio::runtime::Runtime;

use crate::bed::METADATA;
use crate::kit;

/// The role of the pod, unless a test names another one.
pub(crate) const ROLE_ARN: &str = "arn:aws:iam::111122223333:role/web-role";

/// A node with one pod that has a role.
#[derive(Debug)]
pub(crate) struct Small {
    /// The pod.
    pub(crate) pod: PodNs,
    /// The daemon's STS.
    pub(crate) sts: Sts,
    /// The metadata service behind the node.
    pub(crate) imds: Imds,
    /// The node.
    pub(crate) node: Node,
    files: tempfile::TempDir,
    api: KubeApi,
    _runtime: Runtime,
}

impl Small {
    /// Creates the node. Returns `None` and reports why if this machine cannot have it.
    pub(crate) fn new(programs: &[&str]) -> Option<Small> {
        let small = Small::with_unknown_pod(programs)?;
        small.create_pod(ROLE_ARN);
        Some(small)
    }

    /// Creates the node, where the pod runs but the API server does not know it yet.
    pub(crate) fn with_unknown_pod(programs: &[&str]) -> Option<Small> {
        if !available_or_skip() || !programs_or_skip(["iptables", "iptables-restore"].iter().chain(programs)) {
            return None;
        }
        let node = Node::with_imds().unwrap();
        if let Err(error) = node.ns().sh("iptables -t nat -S") {
            skip(format!("this kernel has no NAT rules: {error}"));
            return None;
        }
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let guard = runtime.enter();
        let on_node = || node.ns().tcp_listener((NODE_IP, 0).into()).unwrap();
        let (api, sts) = (KubeApi::start(on_node()).unwrap(), Sts::start(on_node()).unwrap());
        let imds = Imds::start(node.imds().unwrap().tcp_listener(METADATA).unwrap()).unwrap();
        drop(guard);
        let pod = node.add_pod("web").unwrap();
        // A node has other pods.
        api.apply(Resource::Pods, PodBuilder::new("kube-system", "other").ip("10.42.0.99").build());
        Some(Small { pod, sts, imds, node, files: tempfile::tempdir().unwrap(), api, _runtime: runtime })
    }

    /// Creates the role, and the pod's object with it.
    pub(crate) fn create_pod(&self, role_arn: &str) {
        self.sts.add_role(Role::new(role_arn));
        let object = PodBuilder::new("team-a", &self.pod.name).ip(&self.pod.ip.to_string());
        self.api.apply(Resource::Pods, object.annotation("iam.amazonaws.com/role", role_arn).build());
    }

    /// Starts the daemon as the manifests do, on its usual port.
    pub(crate) fn start(&self, arguments: &[&str]) -> Daemon {
        let setup = Setup::new(env!("CARGO_BIN_EXE_rolegate"))
            .inside(self.node.ns())
            .env("AWS_ENDPOINT_URL_STS", self.sts.url())
            .argument("--node=node-a")
            .argument(format!("--api-server={}", self.api.url()))
            .argument("--app-port=8181")
            .argument("--iptables")
            .argument(format!("--host-ip={NODE_IP}"))
            .argument(format!("--metadata-addr={}", METADATA.ip()));
        let daemon = arguments.iter().fold(setup, |setup, argument| setup.argument(*argument)).start().unwrap();
        daemon.wait_ready(Some(self.node.ns())).unwrap();
        daemon
    }

    pub(crate) fn directory(&self) -> &Path {
        self.files.path()
    }

    pub(crate) fn issued(&self, access_key_id: &Value) -> bool {
        self.sts.issued().iter().any(|issued| *access_key_id == *issued.access_key_id)
    }

    /// Returns what curl gets in the pod with these arguments: the status and the text.
    pub(crate) fn curl(&self, arguments: &[&str]) -> (String, String) {
        let mut curl = kit::command(self.pod.ns(), "curl");
        curl.args(["--silent", "--max-time", "10", "--noproxy", "*", "--write-out", "\n%{http_code}"]).args(arguments);
        let output = curl.output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        let (body, status) = text.rsplit_once('\n').unwrap();
        (status.to_owned(), body.to_owned())
    }

    /// Returns what a client that only supports IMDSv1 gets: the status and the text.
    pub(crate) fn version_one(&self, path: &str) -> (String, String) {
        self.curl(&[&format!("http://169.254.169.254{path}")])
    }

    /// Returns how many requests without a token had this outcome.
    pub(crate) fn imdsv1(&self, daemon: &Daemon, outcome: &str) -> f64 {
        let metric = format!(r#"rolegate_imdsv1_requests_total{{namespace="team-a",outcome="{outcome}"}}"#);
        daemon.metric(Some(self.node.ns()), &metric).unwrap()
    }

    /// Starts a client of run.sh in the pod. Its answer is on its standard output.
    pub(crate) fn spawn(&self, arguments: &[&str]) -> Child {
        let mut command = kit::command(self.pod.ns(), "timeout");
        command.args(["-k", "2", "60", &kit::run_script()]).args(arguments);
        command.env("HOME", self.directory()).env("TMPDIR", self.directory()).stdout(Stdio::piped()).spawn().unwrap()
    }
}

/// An SDK in the pod. It gets credentials for each line of its input.
#[derive(Debug)]
pub(crate) struct Asking {
    process: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl Asking {
    /// Starts a program in the pod.
    pub(crate) fn start(small: &Small, program: &str, arguments: &[&str], environment: &[(&str, &str)]) -> Asking {
        let mut command = kit::command(small.pod.ns(), "timeout");
        command.args(["-k", "2", "60", program]).args(arguments).envs(environment.iter().copied());
        Asking::spawn(command.env("HOME", small.directory()).env("TMPDIR", small.directory()))
    }

    /// Starts it by this command.
    pub(crate) fn spawn(command: &mut Command) -> Asking {
        let mut process = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let (input, output) = (process.stdin.take().unwrap(), BufReader::new(process.stdout.take().unwrap()));
        Asking { process, input, output }
    }

    /// Starts an SDK of run.sh in the pod.
    pub(crate) fn sdk(small: &Small, client: &str) -> Asking {
        Asking::start(small, &kit::run_script(), &[client, "ask"], &[])
    }

    /// Returns the SDK's answer.
    pub(crate) fn ask(&mut self) -> Value {
        self.send();
        self.receive()
    }

    /// Makes the SDK start.
    pub(crate) fn send(&mut self) {
        self.input.write_all(b"ask\n").unwrap();
    }

    /// Returns the answer to [`Asking::send`].
    pub(crate) fn receive(&mut self) -> Value {
        loop {
            let mut line = String::new();
            assert_ne!(self.output.read_line(&mut line).unwrap(), 0, "the client ended");
            if line.starts_with('{') {
                return serde_json::from_str(&line).unwrap();
            }
        }
    }
}

impl Drop for Asking {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
