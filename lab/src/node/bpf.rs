//! What tests of eBPF programs need: a BPF file system of their own, and a data plane that bypasses netfilter.

use std::fs;
use std::io::{self, BufRead as _, BufReader};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use super::privilege::{find_program, path_variable, skip};
use super::{Cgroups, IMDS_INTERFACE, Node, NodeError, PodNs};

/// The compiled form of `lab/bpf/bypass.c`.
const BYPASS: &[u8] = include_bytes!("../../bpf/bypass.o");
/// The number in it that stands for the index of the uplink.
const UPLINK: u32 = 0x5eed_1f5a;
/// Programs that load and mount.
const PROGRAMS: [&str; 4] = ["tc", "mount", "unshare", "sh"];

/// Distinguishes the temporary files of one process.
static NUMBER: AtomicU32 = AtomicU32::new(0);

/// A mount namespace with a BPF file system at [`BpfMount::PATH`]. The kernel takes it away, with what is pinned in it, when it is
/// dropped or when this process ends, however it ends.
#[derive(Debug)]
pub struct BpfMount {
    holder: Child,
}

impl BpfMount {
    /// Where the BPF file system is mounted.
    pub const PATH: &str = "/sys/fs/bpf";

    /// Creates one.
    ///
    /// # Errors
    /// If this process is not permitted to, or a program is missing.
    pub fn new() -> io::Result<BpfMount> {
        let script = format!("mount -t bpf bpf {} && echo mounted && exec cat", Self::PATH);
        let mut command = Command::new("unshare");
        command.env("PATH", path_variable()).args(["--mount", "--", "sh", "-c", &script]);
        // The holder ends at the end of its standard input.
        let mut holder = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
        let mut line = String::new();
        if let Some(output) = &mut holder.stdout {
            BufReader::new(output).read_line(&mut line)?;
        }
        if line != "mounted\n" {
            let output = holder.wait_with_output()?;
            return Err(io::Error::other(format!(
                "a BPF file system cannot be mounted: {}",
                String::from_utf8_lossy(&output.stderr).trim_end()
            )));
        }
        Ok(BpfMount { holder })
    }

    /// Returns the words that precede a command line which is to see the BPF file system.
    pub fn words(&self) -> [String; 3] {
        let program = find_program("nsenter").unwrap_or_else(|| "nsenter".into());
        [program.display().to_string(), format!("--mount=/proc/{}/ns/mnt", self.holder.id()), "--".to_owned()]
    }

    /// Returns a command that will see the BPF file system.
    pub fn command(&self, program: &str) -> Command {
        let [enter, words @ ..] = self.words();
        let mut command = Command::new(enter);
        command.env("PATH", path_variable()).args(words).arg(program);
        command
    }
}

impl Drop for BpfMount {
    fn drop(&mut self) {
        let _ = self.holder.kill();
        let _ = self.holder.wait();
    }
}

impl Node {
    /// Sends the pod's packets to the metadata addresses past netfilter, as network plugins with eBPF host routing do.
    ///
    /// # Errors
    /// If the node has no metadata service, or the program cannot be loaded.
    pub fn bypass_netfilter(&self, pod: &PodNs) -> Result<(), NodeError> {
        let index = self.ns.sh(&format!("ip -o link show {IMDS_INTERFACE}"))?;
        let failed = |source| NodeError::Namespace { label: "node".to_owned(), action: "prepare the bypass".to_owned(), source };
        let index: u32 = index.split(':').next().and_then(|index| index.parse().ok()).unwrap_or_default();
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let file = std::env::temp_dir().join(format!("rolegate-bypass-{}-{number}.o", std::process::id()));
        fs::write(&file, bypass_to(index)).map_err(failed)?;
        let (interface, object) = (pod.host_interface(), file.display());
        let loaded = self.ns.sh(&format!(
            "tc qdisc add dev {interface} clsact\n\
             tc filter add dev {interface} ingress bpf direct-action object-file {object} section classifier"
        ));
        fs::remove_file(&file).map_err(failed)?;
        loaded.map(drop)
    }
}

/// Returns the program with the index of the uplink in it.
fn bypass_to(interface: u32) -> Vec<u8> {
    let mut object = BYPASS.to_vec();
    let placeholder = UPLINK.to_le_bytes();
    let places: Vec<usize> = (0..object.len()).filter(|&at| object[at..].starts_with(&placeholder)).collect();
    for at in places {
        object[at..at + placeholder.len()].copy_from_slice(&interface.to_le_bytes());
    }
    object
}

/// Returns `true` if tests may create control groups and load eBPF programs here. Otherwise calls [`skip`] and returns `false`.
pub fn bpf_or_skip() -> bool {
    if !super::programs_or_skip(&PROGRAMS) {
        return false;
    }
    let checked = Cgroups::new().and_then(|_| BpfMount::new()).map_err(|error| error.to_string()).and_then(|_| {
        let node = Node::with_imds().map_err(|error| error.to_string())?;
        let pod = node.add_pod("probe").map_err(|error| error.to_string())?;
        node.bypass_netfilter(&pod).map_err(|error| error.to_string())
    });
    checked.map_err(|error| skip(format!("eBPF programs cannot be tested: {error}"))).is_ok()
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;
    use std::time::Duration;

    use super::*;
    use crate::node::{IMDS_IP, IMDS_IP6, available_or_skip, programs_or_skip};

    #[test]
    fn the_committed_object_is_what_the_source_compiles_to() {
        if !programs_or_skip(&["clang"]) {
            return;
        }
        let directory = concat!(env!("CARGO_MANIFEST_DIR"), "/bpf");
        let version = Command::new("clang").arg("--version").output().unwrap();
        let version = String::from_utf8_lossy(&version.stdout).into_owned();
        if !version.contains("clang version 14.") {
            return skip(format!("the object was compiled by clang 14, not by {version}"));
        }
        let output = Command::new("sh").args(["compile.sh", "-"]).current_dir(directory).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        assert!(output.stdout == BYPASS, "run lab/bpf/compile.sh");
        assert_eq!(bypass_to(7).len(), BYPASS.len());
        assert!(!bypass_to(7).windows(4).any(|bytes| bytes == UPLINK.to_le_bytes()));
    }

    #[test]
    fn a_bypass_leads_past_every_netfilter_hook_of_the_node() {
        if !available_or_skip() || !bpf_or_skip() || !programs_or_skip(&["nft"]) {
            return;
        }
        let node = Node::with_imds().unwrap();
        let pod = node.add_pod("a").unwrap();
        node.ns()
            .sh("nft -f - <<'END'\n\
                 table inet closed {\n\
                 chain before { type filter hook prerouting priority -300\n\
                 iif != imds ip daddr 169.254.169.254 counter drop\n\
                 iif != imds ip6 daddr fd00:ec2::254 counter drop; }\n\
                 chain forward { type filter hook forward priority 0; oif imds counter drop; }\n\
                 }\nEND")
            .unwrap();
        for ip in [IMDS_IP.into(), IMDS_IP6.into()] {
            let address = SocketAddr::new(ip, 80);
            let listener = node.imds().unwrap().tcp_listener(address).unwrap();
            assert!(pod.connect(address, Duration::from_millis(300)).is_err(), "{ip}: without the bypass");
            listener.set_nonblocking(true).unwrap();
            assert!(listener.accept().is_err());
        }
        node.bypass_netfilter(&pod).unwrap();
        for ip in [IMDS_IP.into(), IMDS_IP6.into()] {
            let address = SocketAddr::new(ip, 80);
            let listener = node.imds().unwrap().tcp_listener(address).unwrap();
            let client = pod.connect(address, Duration::from_secs(10)).unwrap();
            assert_eq!(listener.accept().unwrap().1, client.local_addr().unwrap());
        }
    }

    #[test]
    fn a_mount_is_visible_only_to_its_own_commands() {
        if !bpf_or_skip() {
            return;
        }
        let mount = BpfMount::new().unwrap();
        let kind = |command: &mut Command| {
            let output = command.args(["-f", "-c", "%T", BpfMount::PATH]).output().unwrap();
            String::from_utf8_lossy(&output.stdout).trim().to_owned()
        };
        assert_eq!(kind(&mut mount.command("stat")), "bpf_fs");
        assert!(mount.command("mkdir").arg(format!("{}/mine", BpfMount::PATH)).status().unwrap().success());
        let other = BpfMount::new().unwrap();
        assert!(!other.command("ls").arg(format!("{}/mine", BpfMount::PATH)).output().unwrap().status.success());
    }
}
