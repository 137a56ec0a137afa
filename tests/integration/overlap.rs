//! Tests of two daemons on one node: the later one takes over, and no request is lost.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{IpAddr, SocketAddr};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown, symlink};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use rolegate_lab::daemon::{Daemon, Setup};
use rolegate_lab::kube::{KubeApi, PodToken, Resource};
use rolegate_lab::load::{Connections, Load, ServiceAccountToken, Tally};
use rolegate_lab::node::{find_program, skip};
use serde_json::json;
use socket2::{Domain, SockRef, Socket, Type};

use crate::world::{Fakes, PATIENCE, arn, connect, ip, loopback, pod};

/// What the daemons of a node share.
struct Shared {
    fakes: Fakes,
    directory: tempfile::TempDir,
    probes: std::cell::Cell<usize>,
}

/// A daemon, and its probe socket.
struct Generation {
    daemon: Daemon,
    probe: PathBuf,
}

impl Shared {
    fn new() -> Shared {
        let fakes = Fakes::new();
        fakes.pod("web", ip(2), Some("web-role"));
        fakes.pod("db", ip(3), Some("db-role"));
        Shared { fakes, directory: tempfile::tempdir().unwrap(), probes: std::cell::Cell::default() }
    }

    fn handover(&self) -> PathBuf {
        self.directory.path().join("state").join("handover")
    }

    /// Returns a set-up on free ports, or on those of a running daemon.
    fn setup(&self, after: Option<&Generation>) -> (Setup, PathBuf) {
        self.probes.set(self.probes.get() + 1);
        let probe = self.directory.path().join(format!("probe-{}", self.probes.get()));
        let setup = self
            .fakes
            .setup()
            .argument(format!("--handover-socket={}", self.handover().display()))
            .argument(format!("--token-key-file={}", self.directory.path().join("state").join("keys").display()))
            .argument(format!("--probe-socket={}", probe.display()));
        let setup = match after {
            None => setup,
            Some(Generation { daemon, .. }) => setup
                .argument(format!("--app-port={}", daemon.metadata_address().port()))
                .argument(format!("--metrics-port={}", daemon.metrics_address().port())),
        };
        (setup, probe)
    }

    fn start(&self, after: Option<&Generation>) -> Generation {
        self.start_with(after, |setup| setup)
    }

    fn start_with(&self, after: Option<&Generation>, change: impl FnOnce(Setup) -> Setup) -> Generation {
        let (setup, probe) = self.setup(after);
        Generation { daemon: change(setup).start().unwrap(), probe }
    }

    /// Starts clients of both kinds for both pods.
    fn load(&self, address: SocketAddr) -> Load {
        let mut load = Load::default();
        for (last, role) in [(2, "web-role"), (3, "db-role")] {
            for connections in [Connections::New, Connections::New, Connections::Kept] {
                load.start(role, connections, move || {
                    let stream = connect(ip(last), address)?;
                    // Thousands of closed connections would use up the ports, so they end with a reset.
                    SockRef::from(&stream).set_linger(Some(Duration::ZERO))?;
                    Ok(stream)
                });
            }
        }
        load
    }

    /// Checks that nothing failed, and that STS issued every key for the role of the pod that got it.
    #[track_caller]
    fn assert_right(&self, tally: &Tally) {
        assert_eq!((tally.failed, tally.failures.as_slice()), (0, &[][..]), "{tally:#?}");
        let issued = self.fakes.sts.issued();
        for (key, role) in &tally.keys {
            let session = issued.iter().find(|issued| issued.access_key_id == *key).expect("STS did not issue this key");
            assert_eq!(session.role_arn, arn(role));
        }
        let roles = tally.keys.iter().map(|(_, role)| role.as_str());
        assert_eq!(roles.collect::<std::collections::BTreeSet<_>>(), ["db-role", "web-role"].into());
    }
}

impl Generation {
    fn probe(&self, question: &str) -> Output {
        probe(&self.probe, question)
    }

    fn wait_ready(&self) {
        eventually(|| self.probe("ready").status.success(), &self.daemon);
    }

    fn log_has(&self, event: &str) {
        self.daemon.wait_for_event(event).unwrap();
    }

    /// Waits until the daemon serves and offers its socket for a handover.
    fn wait_offered(&self) {
        self.wait_ready();
        self.log_has("handover-offered");
    }

    fn terminate(mut self) -> String {
        self.daemon.terminate().unwrap();
        assert!(self.daemon.wait().unwrap().success(), "{}", self.daemon.log());
        self.daemon.log()
    }
}

fn probe(socket: &Path, question: &str) -> Output {
    Command::new(env!("CARGO_BIN_EXE_rolegate")).args(["probe", question]).env("ROLEGATE_PROBE_SOCKET", socket).output().unwrap()
}

#[track_caller]
fn eventually(is_so: impl Fn() -> bool, daemon: &Daemon) {
    let deadline = Instant::now() + PATIENCE;
    while !is_so() {
        assert!(Instant::now() < deadline, "the socket was never offered\n{}", daemon.log());
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn served(from: IpAddr, address: SocketAddr) -> bool {
    let headers = [("X-aws-ec2-metadata-token-ttl-seconds", "60"), ("Connection", "close")];
    connect(from, address)
        .and_then(|stream| rolegate_lab::player::request(stream, "PUT", "/latest/api/token", &headers))
        .is_ok_and(|answer| answer.status == 200)
}

#[test]
fn three_generations_under_load_lose_no_request() {
    let node = Shared::new();
    let mut last = node.start(None);
    last.wait_offered();
    let address = last.daemon.metadata_address();
    let load = node.load(address);
    load.wait_for_more(300);
    for _ in 0..3 {
        let next = node.start(Some(&last));
        next.log_has("handover-received");
        next.wait_offered();
        last.log_has("handover-shared");
        // Both daemons serve.
        load.wait_for_more(300);
        last.terminate();
        load.wait_for_more(300);
        next.log_has("metrics-port-acquired");
        next.daemon.wait_ready(None).unwrap();
        assert!(next.daemon.metric(None, r#"rolegate_http_requests_total{code="200",route="credentials"}"#).unwrap() > 0.0);
        last = next;
    }
    node.assert_right(&load.finish());
    last.terminate();
    assert!(!served(ip(2), address), "the socket closes with the last daemon");
}

/// The sockets of Pod Identity are handed over as well.
#[test]
fn three_generations_lose_no_request_with_a_service_account_token() {
    let node = Shared::new();
    // Of this process alone, because each daemon must listen on the same port.
    let [.., high, low] = std::process::id().to_be_bytes();
    let address = SocketAddr::from(([127, 77, high, low], 8099));
    let pods = [("web", 2, ip(2), "web-role"), ("db", 3, ip(3), "db-role")].map(|(name, number, ip, role)| (name, number, ip, role, false));
    // A pod in the node's network connects from the address that it connects to.
    let agent = ("agent", 4, address.ip(), "web-role", true);
    let identity = format!("--pod-identity-addresses={address}");
    let with_identity = |setup: Setup| setup.argument("--pod-identity").argument(&identity).argument("--pod-identity-host-port=0");
    let mut load = Load::default();
    for (name, number, from, role, host_network) in pods.into_iter().chain([agent]) {
        let uid = format!("5b1c7a90-2f4e-4d36-9a8b-{number:012}");
        let mut object = pod(name, from, Some(role)).uid(&uid).host_network(host_network).build();
        let source = json!({ "serviceAccountToken": { "audience": "pods.eks.amazonaws.com", "path": "token" } });
        object["spec"]["volumes"] = json!([{ "name": "token", "projected": { "sources": [source] } }]);
        node.fakes.api.apply(Resource::Pods, object);
    }
    let mut last = node.start_with(None, with_identity);
    last.wait_offered();
    last.log_has("pod-identity-listening");
    for (name, number, from, role, _) in pods.into_iter().chain([agent]) {
        let uid = format!("5b1c7a90-2f4e-4d36-9a8b-{number:012}");
        let token = node.fakes.api.token_issuer().issue(&PodToken::new("shop", name, &uid));
        for connections in [Connections::New, Connections::New, Connections::Kept] {
            let bearer = ServiceAccountToken { host: address.to_string(), token: token.clone() };
            load.start_with_token(role, connections, bearer, move || {
                let stream = connect(from, address)?;
                SockRef::from(&stream).set_linger(Some(Duration::ZERO))?;
                Ok(stream)
            });
        }
    }
    load.wait_for_more(300);
    for _ in 0..3 {
        let next = node.start_with(Some(&last), with_identity);
        next.wait_offered();
        // Both daemons serve.
        load.wait_for_more(300);
        last.terminate();
        load.wait_for_more(300);
        let served = || next.daemon.metric(None, r#"rolegate_http_requests_total{code="200",route="pod-identity"}"#);
        next.daemon.wait_ready(None).unwrap();
        assert!(served().unwrap() > 0.0);
        last = next;
    }
    node.assert_right(&load.finish());
    last.terminate();
    assert!(connect(ip(2), address).is_err(), "the socket closes with the last daemon");
}

#[test]
fn a_killed_daemon_leaves_the_socket_to_another_one() {
    let node = Shared::new();
    let first = node.start(None);
    first.wait_offered();
    let address = first.daemon.metadata_address();
    let second = node.start(Some(&first));
    second.wait_offered();
    // Requests in progress in a killed process are lost; later requests are not.
    drop(first.daemon);
    let load = node.load(address);
    load.wait_for_more(300);
    node.assert_right(&load.finish());
}

/// The new daemon knows no pods, and would let requests wait.
#[test]
fn a_new_daemon_that_is_never_ready_accepts_no_request() {
    let node = Shared::new();
    let first = node.start(None);
    first.wait_offered();
    let address = first.daemon.metadata_address();
    let load = node.load(address);
    let silent = {
        let _inside = node.fakes.runtime.enter();
        KubeApi::start(loopback()).unwrap()
    };
    silent.stall(true);
    let kubeconfig = format!("--kubeconfig={}", node.fakes.file("silent", &silent.kubeconfig()));
    for ends_by_itself in [true, false] {
        let next = node.start_with(Some(&first), |setup| setup.argument(&kubeconfig));
        next.log_has("handover-received");
        load.wait_for_more(500);
        let answer = next.probe("ready");
        let text = String::from_utf8(answer.stdout).unwrap();
        assert_eq!(answer.status.code(), Some(1), "{text}");
        assert!(text.contains("waiting for:") && text.contains("the list of this node's pods"), "{text}");
        assert!(next.probe("live").status.success());
        assert!(first.daemon.get(None, "/readyz").unwrap().status == 200, "the first daemon keeps the port");
        match ends_by_itself {
            true => drop(next.terminate()),
            false => drop(next),
        }
        load.wait_for_more(500);
    }
    assert!(first.daemon.events("handover-shared").is_empty(), "{}", first.daemon.log());
    node.assert_right(&load.finish());
    // The first daemon can still be taken over from.
    let next = node.start(Some(&first));
    next.wait_offered();
    first.terminate();
    assert!(served(ip(2), address));
}

/// No daemon answers until the next one runs, and then everything is as before.
#[test]
fn after_a_kill_of_the_only_daemon_the_next_one_serves() {
    let node = Shared::new();
    let first = node.start(None);
    first.wait_offered();
    let address = first.daemon.metadata_address();
    let (setup, probe) = node.setup(Some(&first));
    drop(first.daemon);
    assert!(!served(ip(2), address), "refused");
    let next = Generation { daemon: setup.start().unwrap(), probe };
    assert_eq!(next.daemon.metadata_address(), address);
    next.wait_offered();
    let load = node.load(address);
    load.wait_for_more(100);
    node.assert_right(&load.finish());
}

/// Whatever is at the socket's path, a second daemon starts beside the running one, and gets no connection before it can serve.
#[test]
fn foreign_files_are_neither_used_nor_replaced() {
    let node = Shared::new();
    let first = node.start(None);
    first.wait_offered();
    let (path, state) = (node.handover(), node.handover().parent().unwrap().to_owned());
    // A link to the first daemon's socket: whoever follows the link gets the socket.
    let real = state.join("real");
    std::fs::hard_link(&path, &real).unwrap();
    let put = |make: &dyn Fn(&Path)| {
        let beside = state.join("beside");
        make(&beside);
        std::fs::rename(&beside, &path).unwrap();
    };
    let check = |expected: &str| {
        let before = std::fs::symlink_metadata(&path).unwrap();
        let next = node.start(Some(&first));
        next.log_has("handover-take-failed");
        assert!(next.daemon.log().contains(expected), "{expected}: {}", next.daemon.log());
        next.log_has("handover-missing");
        next.wait_ready();
        next.log_has("handover-offer-failed");
        assert!((0..20).all(|_| served(ip(2), first.daemon.metadata_address())), "{expected}");
        let after = std::fs::symlink_metadata(&path).unwrap();
        assert_eq!((after.ino(), after.mode()), (before.ino(), before.mode()), "{expected}: the file is unchanged");
        next.terminate();
    };
    put(&|beside| std::fs::write(beside, "precious").unwrap());
    check("is not a socket of the daemon's user");
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "precious");
    put(&|beside| symlink(&real, beside).unwrap());
    check("is not a socket of the daemon's user");
    std::fs::rename(&real, &path).unwrap();
    std::fs::set_permissions(&state, std::fs::Permissions::from_mode(0o777)).unwrap();
    check("other users may write to it");
}

#[test]
fn the_socket_of_another_port_is_not_taken_over() {
    let node = Shared::new();
    let first = node.start(None);
    first.wait_offered();
    let (setup, probe) = node.setup(None);
    let port = loopback().local_addr().unwrap().port();
    let next = Generation { daemon: setup.argument(format!("--app-port={port}")).start().unwrap(), probe };
    let (has, wanted) = (first.daemon.metadata_address(), SocketAddr::new(first.daemon.metadata_address().ip(), port));
    next.log_has("handover-take-failed");
    let line = &next.daemon.events("handover-take-failed")[0];
    let names_both = line["error"].as_str().is_some_and(|error| [has, wanted].iter().all(|address| error.contains(&address.to_string())));
    assert!(names_both, "{line}");
    next.wait_ready();
    assert!(served(ip(2), has) && served(ip(2), wanted));
}

#[test]
fn nothing_is_handed_over_between_users() {
    if !nix::unistd::geteuid().is_root() || find_program("setpriv").is_none() {
        return skip("this needs root and the program `setpriv`");
    }
    let node = Shared::new();
    let state = node.handover().parent().unwrap().to_owned();
    std::fs::create_dir(&state).unwrap();
    for directory in [node.directory.path(), state.as_path(), node.fakes.directory()] {
        chown(directory, Some(65534), None).unwrap();
    }
    let (setup, probe) = node.setup(None);
    chown(node.fakes.directory().join("kubeconfig"), Some(65534), None).unwrap();
    let setup = setup.by_way_of(["setpriv", "--reuid=65534", "--clear-groups", "--"]);
    let first = Generation { daemon: setup.start().unwrap(), probe };
    first.log_has("handover-offered");
    // Root can connect to every socket.
    let stream = UnixStream::connect(node.handover()).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    assert_eq!((&stream).read(&mut [0; 8]).unwrap(), 0, "nothing is handed over");
    first.log_has("handover-refused");
    // The daemon gives up root's privilege to bypass permissions: everything except the socket belongs to root again.
    for own in [node.directory.path(), node.fakes.directory(), &node.fakes.directory().join("kubeconfig")] {
        chown(own, Some(0), None).unwrap();
    }
    // Root takes nothing over from the other user either. Both cannot share a port: the kernel allows that to only one user.
    let port = loopback().local_addr().unwrap().port();
    let next = node.start_with(Some(&first), |setup| setup.argument(format!("--app-port={port}")));
    next.log_has("handover-take-failed");
    assert!(next.daemon.log().contains("belongs to another user, or other users may write to it"), "{}", next.daemon.log());
}

#[test]
fn another_programs_metrics_port_is_an_error_without_a_handover() {
    let node = Shared::new();
    let other = loopback();
    let port = other.local_addr().unwrap().port();
    let error = node.fakes.setup().argument(format!("--metrics-port={port}")).start().unwrap_err().to_string();
    assert!(error.contains("choose another --metrics-port"), "{error}");
    let daemon = node.start_with(None, |setup| setup.argument(format!("--metrics-port={port}")));
    daemon.log_has("metrics-port-in-use");
    daemon.wait_ready();
    assert_eq!(daemon.daemon.events("metrics-port-in-use").len(), 1);
    drop(other);
    daemon.log_has("metrics-port-acquired");
    daemon.daemon.wait_ready(None).unwrap();
}

/// Binds beside a port, as another process of the daemon's user would do to receive some of its connections.
fn bind_beside(address: SocketAddr) -> std::io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, None)?;
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(true)?;
    socket.bind(&address.into())?;
    socket.listen(16)?;
    Ok(socket)
}

#[test]
fn ports_are_not_shared_without_a_handover_socket() {
    let node = Shared::new();
    let daemon = node.fakes.setup().start().unwrap();
    daemon.wait_ready(None).unwrap();
    for address in [daemon.metadata_address(), daemon.metrics_address()] {
        assert_eq!(bind_beside(address).unwrap_err().kind(), ErrorKind::AddrInUse, "{address}");
    }
    // Not even a second daemon can share them, whatever its flags.
    let port = format!("--app-port={}", daemon.metadata_address().port());
    let error = node.fakes.setup().argument(&port).start().unwrap_err().to_string();
    assert!(error.contains("choose another --app-port"), "{error}");
    let (setup, _) = node.setup(None);
    let error = setup.argument(&port).start().unwrap_err().to_string();
    assert!(
        error.contains("by a daemon without --handover-socket") && error.contains("To fix: stop that program or daemon first"),
        "{error}"
    );
    assert!(served(ip(2), daemon.metadata_address()));
}

#[test]
fn a_listener_beside_a_daemon_with_handover_is_logged() {
    let node = Shared::new();
    let first = node.start(None);
    first.wait_offered();
    assert_eq!(bind_beside(first.daemon.metrics_address()).unwrap_err().kind(), ErrorKind::AddrInUse);
    let thief = bind_beside(first.daemon.metadata_address()).unwrap();
    // The listener is already there when this daemon first looks.
    let next = node.start(Some(&first));
    next.wait_offered();
    let line = next.daemon.wait_for_event("app-port-shared").unwrap();
    assert_eq!((&line["sockets"], &line["level"]), (&1.into(), &"WARN".into()), "{line}");
    drop(thief);
    let alone = node.start(Some(&next));
    alone.wait_offered();
    assert!(!alone.daemon.log().contains("app-port-shared"), "the socket that all daemons hold counts as one: {}", alone.daemon.log());
}

#[test]
fn a_probe_reports_by_its_exit_code() {
    let node = Shared::new();
    let daemon = node.start(None);
    daemon.wait_ready();
    assert_eq!(daemon.probe("ready").stdout, b"ready\n");
    assert_eq!((daemon.probe("live").status.code(), daemon.probe("live").stdout), (Some(0), b"ok\n".to_vec()));
    assert_eq!(daemon.probe("happy").status.code(), Some(2));
    let without = Command::new(env!("CARGO_BIN_EXE_rolegate")).arg("probe").output().unwrap();
    assert_eq!(without.status.code(), Some(2));
    let nowhere = probe(&node.directory.path().join("nowhere"), "live");
    let text = String::from_utf8(nowhere.stderr).unwrap();
    assert_eq!(nowhere.status.code(), Some(1));
    assert!(text.contains("no daemon answers at"), "{text}");
    // The probe socket does not serve pods' roles.
    for path in ["/metrics", "/debug/store", "/explain"] {
        let mut stream = UnixStream::connect(&daemon.probe).unwrap();
        write!(stream, "GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        assert!(answer.starts_with("HTTP/1.1 404 "), "{path}: {answer}");
    }
    let path = daemon.probe.clone();
    daemon.terminate();
    assert_eq!(probe(&path, "live").status.code(), Some(1), "no daemon answers");
}
