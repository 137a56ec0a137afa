//! Tests of changes on disk to the daemon's identity at the Kubernetes API and to the API's own certificate: the daemon
//! continues without a restart. The API rejects the old identity first each time, so that the daemon cannot keep using it.

use std::path::Path;
use std::time::Duration;

use rolegate::clock::Clock;
use rolegate_lab::daemon::Setup;
use rolegate_lab::kube::{ClientIdentity, KubeApi, Resource};
use rolegate_lab::node::{find_program, skip};
use rolegate_lab::sts::Role;
use serde_json::{Value, json};

use crate::world::{Fakes, ROLES, World, arn, ip, loopback, pod};

/// An API with TLS that has one pod, and the daemon's other dependencies.
struct Cluster {
    api: KubeApi,
    fakes: Fakes,
}

impl Cluster {
    fn new() -> Cluster {
        let fakes = Fakes::new();
        let api = fakes.runtime.block_on(async { KubeApi::start_tls(loopback()).unwrap() });
        fakes.sts.add_role(Role::new(arn("web-role")));
        api.apply(Resource::Pods, pod("web", ip(2), Some("web-role")).build());
        Cluster { api, fakes }
    }

    fn put(&self, name: &str, text: &str) {
        put(&self.fakes, name, text);
    }

    /// Returns a daemon with a kubeconfig for this user, which trusts the certificate in the file `ca.crt`.
    fn setup(&self, user: Value) -> Setup {
        self.put("ca.crt", &self.api.ca_pem().unwrap());
        let mut kubeconfig: Value = serde_json::from_str(&self.api.kubeconfig()).unwrap();
        kubeconfig["clusters"][0]["cluster"] = json!({ "server": self.api.url(), "certificate-authority": "ca.crt" });
        kubeconfig["users"][0]["user"] = user;
        self.fakes.setup().argument(format!("--kubeconfig={}", self.fakes.file("rotating", &kubeconfig.to_string())))
    }

    fn start(self, setup: &Setup) -> (World, KubeApi) {
        let world = self.fakes.into_world(setup);
        assert_eq!(world.get(ip(2), ROLES).text(), "web-role");
        (world, self.api)
    }
}

/// Replaces a file atomically, as a careful writer does.
fn put(fakes: &Fakes, name: &str, text: &str) {
    let next = fakes.file(&format!("{name}.next"), text);
    std::fs::rename(next, fakes.directory().join(name)).unwrap();
}

/// Cuts the watch, and waits until the daemon's identity is rejected.
fn wait_for_rejection(world: &World, api: &KubeApi, why: &str) {
    let errors = |world: &World| world.metric(r#"rolegate_watch_errors_total{resource="pods"}"#);
    let before = errors(world);
    api.cut_connections();
    // The first error is that of the connection that was cut.
    world.eventually(errors, |errors| *errors >= before + 2.0);
    let said = world.daemon.wait_for_log(|line| line["error"].as_str().is_some_and(|text| text.contains(why)));
    said.unwrap();
}

/// Checks that a pod that appears after the change becomes known and is served.
fn assert_continues(world: &World, api: &KubeApi) {
    api.apply(Resource::Pods, pod("late", ip(9), Some("web-role")).build());
    world.eventually(|world| world.get(ip(9), ROLES).status, |status| *status == 200);
}

/// Writes a client identity as the kubelet does: certificate and key in one file, behind a link that is replaced.
fn put_kubelet_identity(directory: &Path, name: &str, identity: &ClientIdentity) {
    std::fs::write(directory.join(name), format!("{}{}", identity.certificate, identity.key)).unwrap();
    let next = directory.join("next-link");
    std::os::unix::fs::symlink(name, &next).unwrap();
    std::fs::rename(next, directory.join("kubelet-client-current.pem")).unwrap();
}

#[test]
fn the_kubelets_client_certificate_is_replaced() {
    let cluster = Cluster::new();
    cluster.api.require_client_certificate(true);
    let identity = cluster.api.client_identity("system:node:node-a, first").unwrap();
    put_kubelet_identity(cluster.fakes.directory(), "kubelet-client-1.pem", &identity);
    let user = json!({ "client-certificate": "kubelet-client-current.pem", "client-key": "kubelet-client-current.pem" });
    let setup = cluster.setup(user);
    let (world, api) = cluster.start(&setup);
    let clients = |api: &KubeApi| api.requests().into_iter().map(|request| request.client.unwrap_or_default()).collect::<Vec<_>>();
    assert!(clients(&api).iter().all(|client| client == "system:node:node-a, first"), "{:?}", clients(&api));

    api.replace_client_ca().unwrap();
    wait_for_rejection(&world, &api, "cannot be reached");
    api.clear_requests();
    let identity = api.client_identity("system:node:node-a, second").unwrap();
    put_kubelet_identity(world.fakes.directory(), "kubelet-client-2.pem", &identity);
    assert_continues(&world, &api);
    let clients = clients(&api);
    assert!(!clients.is_empty() && clients.iter().all(|client| client == "system:node:node-a, second"), "{clients:?}");
}

#[test]
fn a_token_file_is_replaced() {
    let cluster = Cluster::new();
    cluster.api.require_token(Some("first"));
    cluster.put("token", "first");
    let setup = cluster.setup(json!({ "tokenFile": "token" }));
    let (world, api) = cluster.start(&setup);
    api.require_token(Some("second"));
    wait_for_rejection(&world, &api, "401");
    put(&world.fakes, "token", "second");
    assert_continues(&world, &api);
}

#[test]
fn an_exec_plugin_returns_a_new_token() {
    let cluster = Cluster::new();
    cluster.api.require_token(Some("first"));
    let ends = Clock::system().now() + Duration::from_secs(30);
    let credential = |token: &str| {
        let status = json!({ "token": token, "expirationTimestamp": ends.to_string() });
        json!({ "apiVersion": "client.authentication.k8s.io/v1", "kind": "ExecCredential", "status": status }).to_string()
    };
    cluster.put("credential", &credential("first"));
    let file = cluster.fakes.directory().join("credential");
    let exec = json!({ "apiVersion": "client.authentication.k8s.io/v1", "command": "cat", "args": [file], "interactiveMode": "Never" });
    let setup = cluster.setup(json!({ "exec": exec }));
    let (world, api) = cluster.start(&setup);
    api.require_token(Some("second"));
    wait_for_rejection(&world, &api, "401");
    put(&world.fakes, "credential", &credential("second"));
    assert_continues(&world, &api);
    assert!(!world.daemon.log().contains("expirationTimestamp"), "what the plugin writes is not in the log");
}

/// The certificate from the plugin expires, and the API accepts only the next one.
#[test]
fn an_exec_plugin_returns_a_new_certificate() {
    let cluster = Cluster::new();
    cluster.api.require_client_certificate(true);
    let ends = Clock::system().now() + Duration::from_secs(30);
    let credential = |identity: ClientIdentity| {
        let ClientIdentity { certificate, key } = identity;
        let status = json!({ "clientCertificateData": certificate, "clientKeyData": key, "expirationTimestamp": ends.to_string() });
        json!({ "apiVersion": "client.authentication.k8s.io/v1", "kind": "ExecCredential", "status": status }).to_string()
    };
    cluster.put("credential", &credential(cluster.api.client_identity("first").unwrap()));
    let file = cluster.fakes.directory().join("credential");
    let exec = json!({ "apiVersion": "client.authentication.k8s.io/v1", "command": "cat", "args": [file], "interactiveMode": "Never" });
    let setup = cluster.setup(json!({ "exec": exec }));
    let (world, api) = cluster.start(&setup);
    api.replace_client_ca().unwrap();
    wait_for_rejection(&world, &api, "cannot be reached");
    put(&world.fakes, "credential", &credential(api.client_identity("second").unwrap()));
    assert_continues(&world, &api);
}

#[test]
fn the_certificate_of_the_api_is_from_another_ca() {
    let cluster = Cluster::new();
    cluster.api.require_token(Some("the-token"));
    let setup = cluster.setup(json!({ "token": "the-token" }));
    let (world, api) = cluster.start(&setup);
    api.replace_server_ca().unwrap();
    wait_for_rejection(&world, &api, "certificate");
    put(&world.fakes, "ca.crt", &api.ca_pem().unwrap());
    assert_continues(&world, &api);
}

/// Runs in a mount namespace of its own, with the files of a service account at the one path that Kubernetes uses for them.
#[test]
fn the_service_accounts_token_and_ca_are_replaced() {
    let allowed = |program| std::process::Command::new(program).args(["--user", "--map-root-user", "--mount", "true"]).status();
    if !find_program("unshare").is_some_and(|unshare| allowed(unshare).is_ok_and(|status| status.success())) {
        return skip("this machine allows no mount namespaces");
    }
    let cluster = Cluster::new();
    cluster.api.require_token(Some("first"));
    for (name, text) in [("token", "first"), ("ca.crt", &cluster.api.ca_pem().unwrap()), ("namespace", "kube-system")] {
        cluster.put(name, text);
    }
    let script = format!(
        "mount -t tmpfs none /run && mkdir -p /run/secrets/kubernetes.io && ln -s {} /run/secrets/kubernetes.io/serviceaccount && exec \"$@\"",
        cluster.fakes.directory().display()
    );
    let words = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", &script, "sh"];
    let setup = cluster.fakes.setup().argument("--kubeconfig=").by_way_of(words);
    let setup = setup.env("KUBERNETES_SERVICE_HOST", "127.0.0.1").env("KUBERNETES_SERVICE_PORT", cluster.api.addr().port().to_string());
    let (world, api) = cluster.start(&setup);
    api.require_token(Some("second"));
    wait_for_rejection(&world, &api, "401");
    put(&world.fakes, "token", "second");
    assert_continues(&world, &api);
    api.replace_server_ca().unwrap();
    wait_for_rejection(&world, &api, "certificate");
    put(&world.fakes, "ca.crt", &api.ca_pem().unwrap());
    api.apply(Resource::Pods, pod("later", ip(10), Some("web-role")).build());
    world.eventually(|world| world.get(ip(10), ROLES).status, |status| *status == 200);
}
