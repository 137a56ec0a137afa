//! Tests of what an operator sees after a mistake on the command line.

use std::io::Write as _;
use std::process::{Command, Output, Stdio};

use crate::world::{Fakes, loopback};

fn run(arguments: &[&str], env: &[(&str, &str)]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_rolegate"));
    command.args(arguments).env_clear().envs(env.iter().copied());
    // Whatever happens, no packet may go to the metadata address.
    command.envs([("AWS_EC2_METADATA_DISABLED", "true"), ("AWS_REGION", "eu-central-1")]).output().unwrap()
}

fn all_text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned() + &String::from_utf8_lossy(&output.stdout)
}

#[test]
fn wrong_arguments_end_with_2_and_one_message() {
    for (arguments, wanted) in [
        (&["--bogus"][..], "unexpected argument '--bogus'"),
        (&["--node=a", "--base-role-arn=foo"], "not a role ARN"),
        (&["--node=a", "--default-role=arn:aws:iam::1:role/x"], "12 digits"),
        (&["--node=a", "--app-port=seven"], "expected a port number"),
        (&["--node=a", "--session-duration=13h"], "expected 15m to 12h"),
        (&["--node=a", "--redirect=ebtables"], "expected one of auto, nftables, iptables, bpf, none"),
        (&["run", "--node=a", "--app-port=seven"], "expected a port number"),
        (&["server", "--json-log"], "rolegate has no server"),
        (&["agent", "--port=seven"], "--app-port=\"seven\": expected a port number"),
    ] {
        let output = run(arguments, &[]);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}");
        let text = all_text(&output);
        assert!(text.contains(wanted), "{arguments:?}: {text}");
    }
}

/// Gives a manifest to `rolegate migrate`.
fn migrate(project: &str, manifest: &str) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_rolegate"));
    command.args(["migrate", project]).env_clear();
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    child.stdin.take().unwrap().write_all(manifest.as_bytes()).unwrap();
    child.wait_with_output().unwrap()
}

#[test]
fn migrate_prints_manifests_and_tells_by_its_exit_code() {
    let good = include_str!("../../src/migrate/tests/kube2iam_chart.yaml");
    let output = migrate("kube2iam", good);
    assert_eq!(output.status.code(), Some(0), "{}", all_text(&output));
    assert!(String::from_utf8_lossy(&output.stdout).contains("kind: DaemonSet"));
    assert!(String::from_utf8_lossy(&output.stderr).lines().all(|line| line.starts_with("rolegate: warning: ")));
    for (project, manifest, code) in [
        ("kiam", good, 1),
        ("kube2iam", "", 1),
        ("kube2iam", "a: [", 2),
        ("kube2iam", &good.replace("--auto-discover-base-arn", "--base-role-arn=nonsense"), 2),
        ("kube3iam", "", 2),
    ] {
        let output = migrate(project, manifest);
        assert_eq!(output.status.code(), Some(code), "{project}: {}", all_text(&output));
        assert!(output.stdout.is_empty() && !output.stderr.is_empty(), "{project}: {}", all_text(&output));
    }
}

#[test]
fn every_mistake_is_reported_at_once() {
    let output = run(&["--app-port=x", "--log-level=loud", "--base-role-arn=y"], &[("ROLEGATE_SESSION_DURATION", "1 parsec")]);
    let text = all_text(&output);
    for wanted in ["4 errors", "--app-port", "--log-level", "--base-role-arn", "ROLEGATE_SESSION_DURATION"] {
        assert!(text.contains(wanted), "{wanted} is not in {text}");
    }
}

#[test]
fn errors_outside_the_arguments_end_with_1() {
    let taken = loopback();
    let port = format!("--app-port={}", taken.local_addr().unwrap().port());
    let base = ["--node=a", "--metrics-port=0", "--metadata-bind-address=127.0.0.1", "--metrics-bind-address=127.0.0.1"];
    for (more, wanted) in [
        (&["--app-port=0", "--kubeconfig=/does/not/exist"][..], "cannot use the kubeconfig /does/not/exist"),
        (&["--app-port=0"], "outside a pod, give --kubeconfig or --api-server"),
        (&[port.as_str()], "choose another --app-port"),
    ] {
        let output = run(&[&base[..], more].concat(), &[]);
        let text = all_text(&output);
        assert_eq!(output.status.code(), Some(1), "{more:?}: {text}");
        assert_eq!(text.matches("ERROR").count(), 1, "{text}");
        assert!(text.contains(wanted), "{more:?}: {text}");
    }
}

#[test]
fn an_invalid_kubeconfig_is_reported() {
    let fakes = Fakes::new();
    let file = fakes.file("broken", "clusters: [");
    let output = run(&["--node=a", "--app-port=0", "--metrics-port=0", &format!("--kubeconfig={file}")], &[]);
    assert_eq!(output.status.code(), Some(1));
    assert!(all_text(&output).contains("To fix: check the file of --kubeconfig"));
}

#[test]
fn help_and_version_are_no_errors() {
    let help = run(&["--help"], &[]);
    assert!(help.status.success() && all_text(&help).contains("--base-role-arn"));
    let version = run(&["--version"], &[]);
    assert!(version.status.success() && all_text(&version).contains(env!("CARGO_PKG_VERSION")));
}
