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
    for (arguments, wanted, unwanted) in [
        (&["--help"][..], "--base-role-arn", "ROLEGATE_SELF_TEST"),
        (&["-h"], "--base-role-arn", "ROLEGATE_SELF_TEST"),
        (&["--help-all"], "ROLEGATE_SELF_TEST", "nothing of the kind"),
        (&["help"], "--base-role-arn", "ROLEGATE_SELF_TEST"),
        (&["help", "redirect", "status"], "rolegate redirect status", "Commands:"),
        (&["explain", "--help"], "rolegate explain shop/web-0", "ROLEGATE_SELF_TEST"),
        (&["explain", "--help-all"], "ROLEGATE_SELF_TEST", "nothing of the kind"),
    ] {
        let help = run(arguments, &[]);
        let text = all_text(&help);
        assert!(help.status.success() && text.contains(wanted) && !text.contains(unwanted), "{arguments:?}: {text}");
    }
    let version = run(&["--version"], &[]);
    assert!(version.status.success() && all_text(&version).contains(env!("CARGO_PKG_VERSION")));
    assert_eq!(run(&["help", "nonsense"], &[]).status.code(), Some(2));
}

#[test]
fn the_nearest_flag_or_command_is_suggested() {
    for (arguments, nearest) in [
        (&["--base-role-arm=x"][..], "--base-role-arn"),
        (&["--namespace-restriction"], "--namespace-restrictions"),
        // Not in the short help.
        (&["--session-tag=pod"], "--session-tags"),
        (&["report", "--all-node"], "--all-nodes"),
        (&["iam-policy", "--node-rolle=x"], "--node-role"),
        (&["exlain", "shop/web"], "explain"),
        (&["redirect", "instal"], "install"),
        (&["completions", "bsh"], "bash"),
    ] {
        let output = run(arguments, &[]);
        let text = all_text(&output);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {text}");
        assert!(text.contains(&format!("'{nearest}'")), "{arguments:?}: {text}");
    }
}

/// Completes the last of these words with the script in a real bash.
fn completed(script: &str, words: &[&str]) -> Vec<String> {
    let command = format!(
        "source {script}; complete -p rolegate >/dev/null || exit 9; COMP_WORDS=({}); COMP_CWORD={}; _rolegate rolegate \
         \"${{COMP_WORDS[COMP_CWORD]}}\" \"${{COMP_WORDS[COMP_CWORD-1]}}\"; printf '%s\\n' \"${{COMPREPLY[@]}}\"",
        words.iter().map(|word| format!("'{word}'")).collect::<Vec<_>>().join(" "),
        words.len() - 1
    );
    let output = Command::new("bash").args(["--norc", "-c", &command]).env_clear().env("PATH", "/usr/bin:/bin").output().unwrap();
    assert!(output.status.success() && output.stderr.is_empty(), "{}", all_text(&output));
    String::from_utf8(output.stdout).unwrap().lines().map(str::to_owned).collect()
}

#[test]
fn bash_completes_commands_flags_and_values() {
    let files = tempfile::tempdir().unwrap();
    let script = files.path().join("rolegate.bash").display().to_string();
    let output = run(&["completions", "bash"], &[]);
    assert!(output.status.success() && output.stderr.is_empty());
    std::fs::write(&script, output.stdout).unwrap();
    for (words, wanted) in [
        (&["rolegate", "exp"][..], &["explain"][..]),
        (&["rolegate", "--imds-t"], &["--imds-tokens"]),
        (&["rolegate", "--redirect-r"], &["--redirect-routing-rules"]),
        (&["rolegate", "iam-policy", "--node-r"], &["--node-role"]),
        (&["rolegate", "redirect", "st"], &["status"]),
        (&["rolegate", "redirect", "remove", "--pe"], &["--peers"]),
        (&["rolegate", "--log-format", ""], &["text", "json"]),
        (&["rolegate", "completions", "f"], &["fish"]),
        (&["rolegate", "--no-such-flag"], &[""]),
    ] {
        assert_eq!(completed(&script, words), wanted, "{words:?}");
    }
}

/// Whether a program is on this machine.
fn is_installed(program: &str) -> bool {
    Command::new("sh").args(["-c", &format!("command -v {program}")]).output().is_ok_and(|output| output.status.success())
}

#[test]
fn zsh_and_fish_load_their_scripts() {
    let files = tempfile::tempdir().unwrap();
    for (shell, check) in [
        ("zsh", "autoload -U compinit && compinit -u -d $PWD/dump && source ./script && (( $+functions[_rolegate] ))"),
        ("fish", "source ./script; complete -C 'rolegate exp' | string match -q 'explain*'"),
    ] {
        let output = run(&["completions", shell], &[]);
        assert!(output.status.success() && output.stdout.len() > 10_000, "{shell}: {}", all_text(&output));
        if !is_installed(shell) {
            eprintln!("{shell} is not installed: its script is not loaded");
            continue;
        }
        std::fs::write(files.path().join("script"), &output.stdout).unwrap();
        let output = Command::new(shell).args(["-c", check]).current_dir(files.path()).env("HOME", files.path()).output().unwrap();
        assert!(output.status.success() && output.stderr.is_empty(), "{shell}: {}", all_text(&output));
    }
}

#[test]
fn man_pages_are_written_and_correct() {
    let files = tempfile::tempdir().unwrap();
    let directory = files.path().join("share/man1");
    let output = run(&["man", directory.to_str().unwrap()], &[]);
    assert!(output.status.success() && all_text(&output).is_empty(), "{}", all_text(&output));
    let mut pages: Vec<_> = std::fs::read_dir(&directory).unwrap().map(|entry| entry.unwrap().path()).collect();
    pages.sort();
    let names: Vec<_> = pages.iter().map(|page| page.file_stem().unwrap().to_str().unwrap().to_owned()).collect();
    for wanted in ["rolegate", "rolegate-iam-policy", "rolegate-redirect-status", "rolegate-pod-identity-render"] {
        assert!(names.iter().any(|name| name == wanted), "{names:?}");
    }
    assert_eq!(run(&["man"], &[]).stdout, std::fs::read(directory.join("rolegate.1")).unwrap());
    for page in &pages {
        let path = page.to_str().unwrap();
        for (program, arguments) in [
            ("groff", &["-man", "-ww", "-K", "utf8", "-T", "utf8", "-rLL=100n", path][..]),
            ("mandoc", &["-T", "lint", "-W", "warning", path]),
        ] {
            if !is_installed(program) {
                eprintln!("{program} is not installed: it does not check {path}");
                continue;
            }
            let output = Command::new(program).args(arguments).output().unwrap();
            assert!(output.status.success() && output.stderr.is_empty(), "{program} {path}: {}", all_text(&output));
        }
    }
    // A file in the place of the directory.
    let file = files.path().join("file");
    std::fs::write(&file, "").unwrap();
    assert_eq!(run(&["man", file.to_str().unwrap()], &[]).status.code(), Some(1));
}
