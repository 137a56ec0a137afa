//! Tests of what a node runs before its kubelet: the script, the unit and the user data of `iptables/`, and the daemon that
//! takes over their guard.

use std::fs;
use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use rolegate_lab::node::{NODE_IP, NODE_IP6, find_program, programs_or_skip, skip};

use crate::bed::{Bed, METADATA, METADATA6, PATIENCE, Pod, fetch, image, is_refusal};
use crate::iptables_packets::datagram;
use crate::kinds::{Kind, on_node};

/// The path of the script in the unit and the user data.
const INSTALLED: &str = "/usr/local/sbin/rolegate-guard";
/// The share of EC2's limit on user data (16 KiB before encoding) that may be used, because the cluster needs some of it as well.
const USER_DATA_SHARE: usize = 9 * 1024;
/// The number of clients in a pod at the same time.
const CLIENTS_OF_POD: usize = 3;
/// How many times a client is served before it stops.
const SERVED: usize = 20;

/// Returns the path of a file in the repository.
pub(crate) fn shipped(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("iptables").join(name)
}

fn read(name: &str) -> String {
    fs::read_to_string(shipped(name)).unwrap()
}

pub(crate) fn guard(bed: &Bed, path: &str) -> Output {
    on_node(bed, path, &shipped("rolegate-guard")).output().unwrap()
}

#[track_caller]
fn boot(bed: &Bed, kind: &Kind) {
    let output = guard(bed, kind.path());
    assert!(output.status.success() && output.stderr.is_empty(), "{}: {output:?}", kind.name);
}

#[track_caller]
fn assert_ends(output: &Output, code: i32, words: &str) {
    let said = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.code() == Some(code) && said.contains(words), "{:?}: {said}", output.status);
}

/// Sends a request, and tries another port and another protocol, in both families.
fn try_everything(pod: &Pod) -> bool {
    try_everything_for(pod, PATIENCE)
}

/// Sends what [`try_everything`] sends, with this timeout for a connection.
pub(crate) fn try_everything_for(pod: &Pod, patience: Duration) -> bool {
    let served = [METADATA, METADATA6].map(|address| {
        let _ = pod.connect(SocketAddr::new(address.ip(), 443), patience);
        let any: IpAddr = if address.is_ipv4() { "0.0.0.0" } else { "::" }.parse().unwrap();
        let socket = pod.run(move || UdpSocket::bind((any, 0))).unwrap().unwrap();
        let _ = socket.send_to(b"?", SocketAddr::new(address.ip(), 53));
        pod.connect(address, patience).is_ok() && fetch(pod, address).is_ok()
    });
    served == [true; 2]
}

#[test]
fn a_node_with_the_boot_guard_is_closed_to_pods_and_open_to_itself() {
    for kind in Kind::all() {
        let Some(bed) = Bed::new() else { return };
        let (pod, imds) = (bed.pod("web", "veth"), bed.node.imds().unwrap());
        bed.assert_not_redirected(&pod);
        let servers = [METADATA, METADATA6].map(|address| {
            let (tcp, udp) = (SocketAddr::new(address.ip(), 443), SocketAddr::new(address.ip(), 53));
            (imds.tcp_listener(tcp).unwrap(), imds.run(move || UdpSocket::bind(udp)).unwrap().unwrap())
        });
        for (listener, socket) in &servers {
            pod.connect(listener.local_addr().unwrap(), PATIENCE).unwrap();
            assert_eq!(datagram(&pod, socket), Ok(()), "{}", kind.name);
        }
        bed.count_packets_of_pods();
        let mut listed = Vec::new();
        for _time in 0..2 {
            boot(&bed, &kind);
            for address in [METADATA, METADATA6] {
                assert_eq!(pod.connect(address, PATIENCE).unwrap_err().kind(), ErrorKind::ConnectionRefused, "{} {address}", kind.name);
                assert!(fetch(bed.node.ns(), address).is_ok(), "{}: the node's own process, {address}", kind.name);
            }
            for (listener, socket) in &servers {
                let address = listener.local_addr().unwrap();
                assert_eq!(pod.connect(address, PATIENCE).unwrap_err().kind(), ErrorKind::ConnectionRefused, "{} {address}", kind.name);
                assert_eq!(datagram(&pod, socket), Err(ErrorKind::ConnectionRefused), "{} {address}", kind.name);
            }
            assert_ends(&kind.status(&bed, &["--guard"]), 0, "only the guard is installed");
            // Without packet counters.
            let rules = bed.node.ns().sh(kind.list).unwrap();
            listed.push(
                rules.split("packets").map(|part| part.trim_start_matches(|c: char| !c.is_alphabetic()).to_owned()).collect::<String>(),
            );
        }
        assert_eq!(listed[0], listed[1], "{}", kind.name);
        assert_eq!(bed.packets_of_pods(), 0, "{}", kind.name);
    }
}

#[test]
fn the_daemon_takes_over_the_guard_under_load() {
    for kind in Kind::all() {
        let Some(bed) = Bed::new() else { return };
        let pods = [bed.pod("web", "veth"), bed.pod("worker", "cali")];
        bed.count_packets_of_pods();
        assert!(!pods.iter().any(|pod| !try_everything(pod)), "{}: nothing blocks the pod yet", kind.name);
        assert!(bed.packets_of_pods() >= 12, "{}: packets are not counted", kind.name);
        boot(&bed, &kind);
        let before = bed.packets_of_pods();
        let refused_at_first = !pods.iter().any(try_everything);
        // Attempts by clients that were refused before, and still are.
        let tries = AtomicUsize::new(0);
        let daemon = std::thread::scope(|scope| {
            let load: Vec<_> = pods
                .iter()
                .flat_map(|pod| [pod; CLIENTS_OF_POD])
                .map(|pod| {
                    scope.spawn(|| {
                        let mut served = 0;
                        while served < SERVED {
                            served += usize::from(try_everything(pod));
                            tries.fetch_add(1, Ordering::SeqCst);
                        }
                    })
                })
                .collect();
            while tries.load(Ordering::SeqCst) < load.len() {
                std::thread::sleep(Duration::from_millis(1));
            }
            let daemon = bed.start(&kind.setup(&bed));
            load.into_iter().for_each(|client| client.join().unwrap());
            daemon
        });
        assert!(refused_at_first, "{}", kind.name);
        assert_eq!(bed.packets_of_pods(), before, "{}: a packet of a pod got through", kind.name);
        for pod in &pods {
            bed.assert_served(pod, METADATA);
            bed.assert_served(pod, METADATA6);
        }

        let (port, ips) = (format!("--app-port={}", daemon.metadata_address().port()), format!("--host-ip={NODE_IP},{NODE_IP6}"));
        let wanted = [port.as_str(), ips.as_str()];
        assert_ends(&kind.status(&bed, &wanted), 0, "port 80 is redirected to the daemon");
        let rules = bed.node.ns().sh(kind.list).unwrap();
        let guards = if kind.backend == "nftables" { ("chain guard {", 1) } else { ("-j ROLEGATE-GUARD", 2) };
        if kind.name != "iptables-nft" {
            assert_eq!(rules.matches(guards.0).count(), guards.1, "{}: {rules}", kind.name);
        }
        // The script is run once more.
        boot(&bed, &kind);
        assert_ends(&kind.status(&bed, &wanted), 0, "port 80 is redirected to the daemon");
        pods.iter().for_each(|pod| bed.assert_served(pod, METADATA));
        assert_eq!(bed.packets_of_pods(), before, "{}", kind.name);
    }
}

#[test]
fn the_daemon_restores_a_flushed_guard_at_its_start() {
    for kind in Kind::all() {
        let Some(bed) = Bed::new() else { return };
        let pod = bed.pod("web", "veth");
        boot(&bed, &kind);
        bed.assert_refused(&pod);
        bed.node.ns().sh(kind.flush).unwrap();
        bed.assert_not_redirected(&pod);
        // It gets no further than its guard, because its API cannot be reached.
        let mut daemon = kind.setup(&bed).argument("--api-server=http://127.0.0.1:9").start().unwrap();
        bed.assert_refused(&pod);
        daemon.terminate().unwrap();
        daemon.wait().unwrap();
        bed.node.ns().sh(kind.flush).unwrap();
        boot(&bed, &kind);
        bed.assert_refused(&pod);
        let _daemon = bed.start(&kind.setup(&bed));
        bed.assert_served(&pod, METADATA);
        bed.assert_served(&pod, METADATA6);
    }
}

#[test]
fn a_failed_guard_is_not_reported_as_closed() {
    let (Some(bed), Some(image)) = (Bed::new(), image("nft")) else { return };
    let pod = bed.pod("web", "veth");
    assert_ends(&guard(&bed, "/does/not/exist"), 1, "THE NODE IS OPEN: there is no nft that works here, and no iptables");
    // An nft that the kernel rejects is no reason to do nothing.
    symlink(find_program("false").unwrap(), image.path().join("nft")).unwrap();
    fs::remove_file(image.path().join("ip6tables-restore")).unwrap();
    assert_ends(&guard(&bed, image.path().to_str().unwrap()), 1, "THE NODE IS OPEN: iptables did not take the rules for  IPv6");
    bed.assert_refused(&pod);
    symlink(find_program("ip6tables-nft-restore").unwrap(), image.path().join("ip6tables-restore")).unwrap();
    assert_ends(&guard(&bed, image.path().to_str().unwrap()), 0, "by iptables");
    assert_eq!(pod.connect(METADATA6, PATIENCE).unwrap_err().kind(), ErrorKind::ConnectionRefused);
}

/// Returns the single entry of `bootcmd` in the YAML file.
fn boot_command() -> String {
    let text = read("cloud-init.yaml");
    assert!(text.starts_with("#cloud-config\n"), "{text}");
    let (head, block) = text.split_once("bootcmd:\n  - |\n").unwrap();
    assert!(!head.contains("runcmd:") && !head.contains("write_files:"), "{head}");
    let line =
        |line: &str| if line.is_empty() { String::new() } else { line.strip_prefix("    ").expect("a line of the block").to_owned() };
    block.lines().map(line).map(|line| line + "\n").collect()
}

#[test]
fn the_user_data_holds_the_files_and_leaves_room() {
    let command = boot_command();
    for (name, path) in [("rolegate-guard", INSTALLED), ("rolegate-guard.service", "/etc/systemd/system/rolegate-guard.service")] {
        let written = format!("cat >{path} <<'END-OF-FILE'\n{}END-OF-FILE\n", read(name));
        assert!(command.contains(&written), "{name} differs in cloud-init.yaml");
        assert!(!read(name).contains("END-OF-FILE"));
    }
    assert!(command.ends_with(&format!("\n{INSTALLED}\n")), "the script comes last, so that its exit status is the command's");
    assert!(read("cloud-init.yaml").len() < USER_DATA_SHARE);
}

/// Run as cloud-init does, in namespaces of its own for the files that it writes.
#[test]
fn the_user_data_closes_the_node_before_the_kubelet() {
    if !programs_or_skip(&["nft", "systemctl", "unshare", "mount"]) {
        return;
    }
    let Some(bed) = Bed::new() else { return };
    let pod = bed.pod("web", "veth");
    bed.assert_not_redirected(&pod);
    let script = format!(
        "mount --make-rprivate / && mount -t tmpfs tmpfs /usr/local && mount -t tmpfs tmpfs /etc/systemd/system\n({})\necho status $?\n\
         cat {INSTALLED}\nls -l {INSTALLED}\nls /etc/systemd/system/*.requires",
        boot_command()
    );
    let mut command = bed.node.ns().command("unshare");
    let output = command.args(["--mount", "sh", "-c", &script]).env("SYSTEMD_OFFLINE", "1").output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && said.contains("status 0\n"), "{output:?}");
    assert!(said.contains(&read("rolegate-guard")) && said.contains("-rwxr-xr-x"), "{said}");
    for unit in ["kubelet", "k3s", "k3s-agent", "rke2-server", "rke2-agent"] {
        assert!(said.contains(&format!("/etc/systemd/system/{unit}.service.requires:\nrolegate-guard.service")), "{said}");
    }
    bed.assert_refused(&pod);
    let error = pod.connect(METADATA6, PATIENCE).unwrap_err();
    assert!(is_refusal(&error), "{error}");
}

/// Returns the values of a key in the unit, in order.
fn values<'a>(unit: &'a str, section: &str, key: &str) -> Vec<&'a str> {
    let (_, rest) = unit.split_once(&format!("[{section}]\n")).expect("the section");
    let section = rest.split("\n[").next().unwrap();
    let lines = section.lines().filter_map(|line| line.split_once('=')).filter(|(name, _)| *name == key);
    lines.flat_map(|(_, value)| value.split_whitespace()).collect()
}

#[test]
fn the_unit_precedes_every_kubelet_that_requires_it() {
    let unit = read("rolegate-guard.service");
    let (before, required) = (values(&unit, "Unit", "Before"), values(&unit, "Install", "RequiredBy"));
    assert!(required.contains(&"kubelet.service"), "{required:?}");
    // Without the order, a failure would come too late.
    assert!(required.iter().all(|kubelet| before.contains(kubelet)), "{required:?} {before:?}");
    let after = values(&unit, "Unit", "After");
    for firewall in ["nftables.service", "firewalld.service"] {
        assert!(after.contains(&firewall), "{after:?}");
    }
    assert!(!before.contains(&"network-pre.target"), "cloud-init and this would wait for each other");
    assert_eq!((values(&unit, "Service", "Type"), values(&unit, "Service", "RemainAfterExit")), (vec!["oneshot"], vec!["yes"]));
    assert_eq!((values(&unit, "Service", "ExecStart"), values(&unit, "Service", "ExecReload")), (vec![INSTALLED], vec![INSTALLED]));
    assert!(values(&unit, "Service", "ExecStop").is_empty() && values(&unit, "Service", "ExecStopPost").is_empty());
    assert_eq!(values(&unit, "Unit", "RefuseManualStop"), ["yes"]);
}

/// With a kubelet that requires it, as after `systemctl enable`.
#[test]
fn systemd_accepts_the_unit() {
    let Some(analyze) = find_program("systemd-analyze") else { return skip("the program `systemd-analyze` is not installed") };
    let units = tempfile::tempdir().unwrap();
    let at = |name: &str| units.path().join(name);
    // The script is not installed on this machine.
    let text = read("rolegate-guard.service").replace(INSTALLED, shipped("rolegate-guard").to_str().unwrap());
    fs::write(at("rolegate-guard.service"), text).unwrap();
    let kubelet = "[Unit]\nAfter=network-online.target containerd.service\nWants=network-online.target\n[Service]\nExecStart=/bin/sh\n";
    fs::write(at("kubelet.service"), kubelet).unwrap();
    fs::create_dir(at("kubelet.service.requires")).unwrap();
    symlink("../rolegate-guard.service", at("kubelet.service.requires/rolegate-guard.service")).unwrap();
    let mut command = Command::new(analyze);
    command.args(["--man=no", "verify"]).args([at("kubelet.service"), at("rolegate-guard.service")]);
    let output = command.env("SYSTEMD_UNIT_PATH", format!("{}:", units.path().display())).output().unwrap();
    assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
}
