//! A node whose daemon is a pod of its cluster: with a service account, the API over TLS, and the permissions of a manifest.

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use rolegate_lab::daemon::{Daemon, Setup};
use rolegate_lab::kube::{KubeApi, PodBuilder, Resource, Verb, namespace};
use rolegate_lab::node::{NODE_IP, PodOptions, find_program, skip};
use rolegate_lab::player;

use crate::bed::{Bed, METADATA, PATIENCE, Pod};

/// The name of the daemon's own pod.
pub(crate) const OWN_POD: &str = "kube2iam-x7k2p";
/// Its UID.
pub(crate) const OWN_UID: &str = "6f1c1d0e-7c7b-4b52-9f0c-0a8f3f3a7e11";
/// Its namespace.
pub(crate) const NAMESPACE: &str = "kube-system";
/// The name of its node.
pub(crate) const NODE: &str = "node-a";
/// The port that kube2iam's probes ask.
const APP_PORT: u16 = 8181;

/// What a manifest lets the daemon do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Rbac {
    /// get, list and watch of pods and namespaces, as every manifest of kube2iam with RBAC.
    Kube2iam,
    /// Nothing: kiam's agent asks its server.
    Nothing,
}

/// What becomes of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// It becomes ready, and a pod gets its role.
    Serves,
    /// It becomes ready. Pods' requests do not arrive: the manifest leaves the packet rules to others.
    Ready,
    /// It becomes ready, and the guard refuses a pod behind an interface that the arguments do not name.
    Guards,
    /// It starts, and does not become ready. The guard keeps pods from the real service.
    Waits,
    /// Exit code 2. The guard keeps pods from the real service.
    Refused,
    /// Exit code 2, and nothing says that there are to be rules.
    RefusedOpen,
}

/// A manifest, as far as it matters to a daemon.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Manifest {
    /// The arguments, with `$(VARIABLE)` as in the manifest.
    pub(crate) arguments: &'static [&'static str],
    /// The variables; `HOST_IP` and `NODE_NAME` have the values of the node.
    pub(crate) variables: &'static [&'static str],
    /// What pods' interfaces are called on the node.
    pub(crate) interfaces: &'static str,
    /// Whether there is a liveness probe for `/healthz` on 8181.
    pub(crate) probe: bool,
    /// Its permissions.
    pub(crate) rbac: Rbac,
    /// What becomes of it.
    pub(crate) verdict: Verdict,
    /// The reasons of the warnings about its settings, sorted, without those that every manifest gets.
    pub(crate) warnings: &'static [&'static str],
}

/// The warnings that all these manifests get: they come from kube2iam's and kiam's time.
const OF_ALL: [&str; 2] = ["namespace-restrictions-off", "token-keys-in-memory"];

impl Manifest {
    pub(crate) const KUBE2IAM: Self = Self {
        arguments: &[],
        variables: &["HOST_IP", "NODE_NAME"],
        interfaces: "eni",
        probe: false,
        rbac: Rbac::Kube2iam,
        verdict: Verdict::Serves,
        warnings: &[],
    };
}

/// A cluster with one node.
pub(crate) struct Cluster {
    pub(crate) bed: Bed,
    /// The API that the service account is for.
    pub(crate) api: KubeApi,
    files: tempfile::TempDir,
}

impl Cluster {
    /// Creates one; `None`, with the reason said, where this machine cannot have it.
    pub(crate) fn new() -> Option<Cluster> {
        if find_program("unshare").is_none() {
            skip("the program `unshare` is not installed");
            return None;
        }
        let bed = Bed::new()?;
        let _inside = bed.runtime().enter();
        let api = KubeApi::start_tls(bed.node.ns().tcp_listener((NODE_IP, 0).into()).unwrap()).unwrap();
        drop(_inside);
        let cluster = Cluster { bed, api, files: tempfile::tempdir().unwrap() };
        cluster.service_account(&cluster.token(r#","node":{"name":"node-a"}"#));
        cluster.own_pod(own_pod());
        Some(cluster)
    }

    /// A token of the daemon's own pod, with these claims of Kubernetes besides.
    pub(crate) fn token(&self, more: &str) -> String {
        let pod = format!(r#"{{"namespace":"{NAMESPACE}","pod":{{"name":"{OWN_POD}","uid":"{OWN_UID}"}}{more}}}"#);
        let claims = URL_SAFE_NO_PAD.encode(format!(r#"{{"iss":"lab","kubernetes.io":{pod}}}"#));
        format!("e30.{claims}.c2lnbmF0dXJl")
    }

    /// Puts the files of the service account in place.
    pub(crate) fn service_account(&self, token: &str) {
        self.api.require_token(Some(token));
        for (name, text) in [("token", token), ("ca.crt", &self.api.ca_pem().unwrap()), ("namespace", NAMESPACE)] {
            std::fs::write(self.files.path().join(name), text).unwrap();
        }
    }

    /// Takes the files of the service account away, and returns the path of a kubeconfig instead.
    pub(crate) fn without_service_account(&self) -> String {
        ["token", "ca.crt", "namespace"].iter().for_each(|name| std::fs::remove_file(self.files.path().join(name)).unwrap());
        self.api.require_token(None);
        let path = self.files.path().join("kubeconfig");
        std::fs::write(&path, self.api.kubeconfig()).unwrap();
        path.display().to_string()
    }

    /// Makes this the daemon's own pod.
    pub(crate) fn own_pod(&self, pod: PodBuilder) {
        self.api.apply(Resource::Pods, pod.build());
    }

    /// A pod with a role, behind an interface of this name.
    pub(crate) fn pod(&self, interface_prefix: &str) -> Pod {
        let pod = self.bed.pod_with(PodOptions { name: "web", interface_prefix, ..PodOptions::default() });
        self.api.apply(Resource::Pods, self.bed.api.get(Resource::Pods, Some("team-a"), "web").unwrap());
        let all = [("iam.amazonaws.com/allowed-roles", r#"["arn:*"]"#)];
        self.api.apply(Resource::Namespaces, namespace("team-a", &all));
        pod
    }

    pub(crate) fn grant(&self, rbac: Rbac) {
        for resource in ["events", "nodes", "serviceaccounts"] {
            [Verb::Get, Verb::List, Verb::Watch, Verb::Create, Verb::Patch].iter().for_each(|verb| self.api.deny(*verb, resource));
        }
        if rbac == Rbac::Nothing {
            for resource in ["pods", "namespaces"] {
                [Verb::Get, Verb::List, Verb::Watch].iter().for_each(|verb| self.api.deny(*verb, resource));
            }
        }
    }

    /// A daemon in a container of this cluster, without arguments.
    pub(crate) fn setup(&self) -> Setup {
        let script = format!(
            "mount -t tmpfs none /run && mkdir -p /run/secrets/kubernetes.io && ln -s {} /run/secrets/kubernetes.io/serviceaccount && \
             exec \"$@\"",
            self.files.path().display()
        );
        Setup::without_arguments(env!("CARGO_BIN_EXE_rolegate"))
            .inside(self.bed.node.ns())
            .by_way_of(["unshare", "--mount", "sh", "-c", &script, "sh"])
            .env("KUBERNETES_SERVICE_HOST", NODE_IP.to_string())
            .env("KUBERNETES_SERVICE_PORT", self.api.addr().port().to_string())
            .env("AWS_ENDPOINT_URL_STS", self.bed.sts_url())
            // The metadata service of the lab, in a network of its own.
            .without_env("AWS_EC2_METADATA_DISABLED")
    }

    /// The daemon of a manifest, as Kubernetes starts it.
    pub(crate) fn of(&self, manifest: &Manifest) -> Setup {
        let known = [("HOST_IP", NODE_IP.to_string()), ("NODE_NAME", NODE.to_owned()), ("API_SERVER", self.api.url())];
        let variables = || known.iter().filter(|(name, _)| manifest.variables.contains(name));
        let setup = variables().fold(self.setup(), |setup, (name, value)| setup.env(*name, value));
        let expand =
            |argument: &str| variables().fold(argument.to_owned(), |text, (name, value)| text.replace(&format!("$({name})"), value));
        manifest.arguments.iter().fold(setup, |setup, argument| setup.argument(expand(argument)))
    }

    /// What a probe of `/healthz` on the app port is answered.
    pub(crate) fn probe(&self, port: u16) -> std::io::Result<u16> {
        let stream = self.bed.node.ns().connect(SocketAddr::new(IpAddr::V4(NODE_IP), port), Duration::from_secs(1))?;
        stream.set_read_timeout(Some(PATIENCE))?;
        Ok(player::request(stream, "GET", "/healthz", &[("Host", "node"), ("Connection", "close")])?.status)
    }

    /// Waits until this is so.
    pub(crate) fn eventually(&self, daemon: &Daemon, is_so: impl Fn() -> bool) {
        let deadline = Instant::now() + PATIENCE;
        while !is_so() {
            assert!(Instant::now() < deadline, "{}\n{}", self.readiness(daemon), daemon.log());
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// What `/readyz` says.
    pub(crate) fn readiness(&self, daemon: &Daemon) -> String {
        daemon.get(Some(self.bed.node.ns()), "/readyz").unwrap().text()
    }
}

/// The daemon's own pod, as a DaemonSet makes it.
pub(crate) fn own_pod() -> PodBuilder {
    PodBuilder::new(NAMESPACE, OWN_POD).uid(OWN_UID).node(NODE).host_ip(&NODE_IP.to_string()).host_network(true)
}

/// The reasons of warnings about settings, sorted.
fn warnings(daemon: &Daemon) -> Vec<String> {
    let reasons = daemon.events("configuration").into_iter().map(|line| line["reason"].as_str().unwrap().to_owned());
    let mut reasons: Vec<_> = reasons.filter(|reason| !OF_ALL.contains(&reason.as_str())).collect();
    reasons.sort();
    reasons.dedup();
    reasons
}

/// Starts the daemon of a manifest, and compares what becomes of it with the verdict.
pub(crate) fn judge(manifest: &Manifest) {
    let Some(cluster) = Cluster::new() else { return };
    cluster.grant(manifest.rbac);
    let pod = cluster.pod(manifest.interfaces);
    let setup = cluster.of(manifest);
    if matches!(manifest.verdict, Verdict::Refused | Verdict::RefusedOpen) {
        let mut daemon = setup.spawn().unwrap();
        assert_eq!(daemon.wait().unwrap().code(), Some(2), "{}", daemon.log());
        match manifest.verdict {
            Verdict::Refused => {
                assert_eq!(daemon.events("arguments-refused").len(), 1, "{}", daemon.log());
                cluster.bed.assert_refused(&pod);
            }
            _ => cluster.bed.assert_not_redirected(&pod),
        }
        return;
    }
    let daemon = setup.start().unwrap();
    assert_eq!(warnings(daemon_ready(&cluster, manifest, &daemon)), manifest.warnings, "{}", daemon.log());
    match manifest.verdict {
        Verdict::Serves => cluster.bed.assert_served(&pod, METADATA),
        Verdict::Ready => cluster.bed.assert_not_redirected(&pod),
        Verdict::Guards | Verdict::Waits => cluster.bed.assert_refused(&pod),
        Verdict::Refused | Verdict::RefusedOpen => unreachable!("see above"),
    }
    if manifest.probe {
        assert_eq!(cluster.probe(APP_PORT).unwrap(), 200, "{}", daemon.log());
    }
}

/// Waits until the daemon has come as far as it is to come.
fn daemon_ready<'a>(cluster: &Cluster, manifest: &Manifest, daemon: &'a Daemon) -> &'a Daemon {
    if manifest.verdict == Verdict::Waits {
        daemon.wait_for_log(|line| line["level"] == "WARN" && line["event"] != "configuration").unwrap();
        assert!(cluster.readiness(daemon).starts_with("waiting for: "), "{}", daemon.log());
    } else {
        daemon.wait_ready(Some(cluster.bed.node.ns())).unwrap();
    }
    daemon
}
