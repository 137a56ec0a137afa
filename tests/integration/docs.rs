//! Checks that the documentation describes what the code has, and nothing else. Each comparison works in both directions.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use rolegate::config::{self, flags};
use rolegate::metrics;
use rolegate::pods::watch::SESSION_NAME_KEY;
use rolegate::readiness;

/// Checks that `documented` and `real` are equal.
#[track_caller]
fn same(what: &str, documented: &BTreeSet<String>, real: &BTreeSet<String>) {
    let only = |a: &BTreeSet<String>, b: &BTreeSet<String>| a.difference(b).cloned().collect::<Vec<_>>();
    let (missing, invented) = (only(real, documented), only(documented, real));
    assert!(
        missing.is_empty() && invented.is_empty(),
        "{what}: not documented: {missing:#?}; documented, but missing in the code: {invented:#?}"
    );
    assert!(!real.is_empty(), "{what}: nothing was compared");
}

/// Reads a file of the repository.
fn read(path: &str) -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// Returns the paths of all documents: those at the top of the repository, in `docs/`, `charts/` and
/// their directories, and in `.github/`.
fn documents() -> Vec<String> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let (mut found, mut directories) = (Vec::new(), vec![root.join("docs"), root.join(".github"), root.join("charts"), root.to_owned()]);
    while let Some(directory) = directories.pop() {
        for entry in fs::read_dir(&directory).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                // The other directories at the top contain no documents.
                directories.extend((directory != root).then_some(path));
            } else if path.extension().is_some_and(|extension| extension == "md") {
                found.push(path.strip_prefix(root).unwrap().to_str().unwrap().to_owned());
            }
        }
    }
    found.sort();
    for expected in [
        "README.md",
        "charts/rolegate/README.md",
        "docs/README.md",
        "docs/flags.md",
        "docs/decisions/README.md",
        ".github/pull_request_template.md",
    ] {
        assert!(found.iter().any(|file| file == expected), "{expected} is not among {found:?}");
    }
    found
}

/// Returns the cells of a table row.
fn cells(line: &str) -> Vec<&str> {
    line.trim_matches('|').split(" | ").map(str::trim).collect()
}

/// Returns the text between the first occurrences of two marks.
fn between<'a>(text: &'a str, from: &str, to: &str) -> &'a str {
    let (_, rest) = text.split_once(from).unwrap_or_else(|| panic!("{from:?} is nowhere"));
    rest.split_once(to).unwrap_or_else(|| panic!("{to:?} is not after {from:?}")).0
}

/// Returns every string literal that directly follows `mark`.
fn literals_after(text: &str, mark: &str) -> BTreeSet<String> {
    text.split(mark).skip(1).filter_map(|rest| rest.strip_prefix('"')?.split_once('"')).map(|(literal, _)| literal.to_owned()).collect()
}

/// Returns every string literal in the code of a function that has no other ones.
fn literals_in(code: &str) -> BTreeSet<String> {
    code.split('"').skip(1).step_by(2).map(str::to_owned).collect()
}

/// Returns every flag that a text names: `--name` without a preceding word character.
fn flags_in(text: &str) -> BTreeSet<String> {
    let is_of_word = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_');
    let mut found = BTreeSet::new();
    for (at, _) in text.match_indices("--") {
        let name: String =
            text[at + 2..].chars().take_while(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '-')).collect();
        if !text[..at].ends_with(is_of_word) && name.starts_with(|c: char| c.is_ascii_lowercase()) {
            found.insert(name.trim_end_matches('-').to_owned());
        }
    }
    found
}

#[test]
fn every_flag_is_documented_correctly() {
    let text = read("docs/flags.md");
    let mut documented = BTreeSet::new();
    let mut group = "";
    for line in text.lines() {
        if let Some(heading) = line.strip_prefix("## ") {
            group = heading;
        } else if line.starts_with("| `--") {
            let cells = cells(line);
            assert!(cells.len() == 5 && !cells[4].is_empty(), "expected five non-empty columns: {line}");
            documented.insert(format!("{group}: {}", cells[..4].join(" | ")));
        }
    }
    let code = |text: &str| if text.is_empty() { "—".to_owned() } else { format!("`{text}`") };
    let row = |group: &str, flag: &flags::Flag| {
        let name = flag.value.map_or_else(|| format!("--{}", flag.name), |value| format!("--{} {value}", flag.name));
        format!("{group}: {} | {} | {} | {}", code(&name), code(&flag.env()), code(flag.default), flag.help)
    };
    let real = flags::GROUPS
        .iter()
        .chain([
            &flags::OF_EXPLAIN,
            &flags::OF_REPORT,
            &flags::OF_CHECK,
            &flags::OF_IAM_POLICY,
            &flags::OF_REDIRECT,
            &flags::OF_POD_IDENTITY_RENDER,
        ])
        .flat_map(|(group, flags)| flags.iter().map(move |flag| row(group, flag)))
        .collect();
    same("docs/flags.md", &documented, &real);
}

/// Returns the documented metrics and label values, one line of text each.
pub(crate) fn documented_metrics() -> (BTreeSet<String>, BTreeSet<String>) {
    let (mut metrics, mut values) = (BTreeSet::new(), BTreeSet::new());
    let text = read("docs/metrics.md");
    for section in text.split("\n## `").skip(1) {
        let (name, rest) = section.split_once('`').unwrap();
        let mut paragraphs = rest.trim().split("\n\n");
        let kind = paragraphs.next().unwrap();
        let help = paragraphs.next().unwrap().replace('\n', " ");
        metrics.insert(format!("{name}: {kind}: {help}"));
        let mut label = "";
        for line in rest.lines().filter(|line| line.starts_with("| `")) {
            let first = cells(line)[0].trim_matches('`');
            // The header row of a table names the label. The row below it has no backtick.
            let head = metrics::ALL.iter().any(|metric| metric.name == name && metric.labels.contains(&first));
            if head {
                label = first;
            } else {
                values.insert(format!("{name}{{{label}}} {first}"));
            }
        }
    }
    (metrics, values)
}

#[test]
fn every_metric_is_documented_correctly() {
    let (documented, _) = documented_metrics();
    let mut unknown = documented.clone();
    for metric in metrics::ALL {
        let labels: Vec<_> = metric.labels.iter().map(|label| format!("`{label}`")).collect();
        let labels = if labels.is_empty() { "no labels".to_owned() } else { format!("labels {}", labels.join(", ")) };
        let start = format!("{}: {}; {labels}: {}", metric.name, metric.kind, metric.help);
        let found = documented.iter().find(|line| line.starts_with(&start));
        let found = found.unwrap_or_else(|| panic!("docs/metrics.md has no section that begins {start:?}"));
        unknown.remove(found);
    }
    assert!(unknown.is_empty(), "documented, but missing in the code: {unknown:#?}");
}

/// The values are string literals in the source, next to the call that counts them.
#[test]
fn every_value_of_a_label_is_documented() {
    let (proxy, route, policy) = (read("src/proxy.rs"), read("src/proxy/route.rs"), read("src/policy/denial.rs"));
    let (metrics, credentials) = (read("src/metrics.rs"), read("src/credentials.rs"));
    let server = read("src/server.rs") + &read("src/server/resolve.rs");
    let (cache, probe) = (read("src/credentials/cache.rs"), read("src/self_test/outcome.rs"));
    let (watch, ambiguous) = (read("src/pods/watch.rs") + &read("src/pods/watch/context.rs"), read("src/pods/watch/ambiguous.rs"));
    let names = |text: &str, of: &str| literals_after(between(text, of, "\n}\n").split_once("-> &'static str {").unwrap().1, "=> ");

    let of_policy = names(&policy, "impl Denial {");
    let mut reasons: BTreeSet<String> = [of_policy.clone(), names(&route, "impl Rejection {")].concat_sets();
    reasons.extend(literals_after(&proxy, "metrics.denied("));
    reasons.extend(names(&read("src/proxy/refusal.rs"), "impl Refusal {"));
    reasons.extend(literals_after(between(&read("src/pod_identity/token/error.rs"), "pub fn name(self)", "\n    }\n"), "=> "));
    reasons.extend(names(&read("src/pods/witness.rs"), "impl Objection {"));
    reasons.extend(literals_after(between(&policy, "fn form_name(", "\n}\n"), "=> "));
    let namespace = read("src/policy/namespace.rs");
    let audited = between(&policy, "impl Denial {", "\n}\n").lines().filter(|line| {
        let denial = line.trim().split(['(', ' ']).next().unwrap_or_default();
        denial.strip_prefix("Self::").is_some_and(|name| namespace.contains(&format!("Denial::{name}")) && line.contains("=> \""))
    });
    let audited = audited.flat_map(|line| literals_after(line, "=> ")).collect();
    let mut outcomes = literals_after(between(between(&credentials, "impl AssumeRoleError {", "\n}\n"), "fn name(", "\n    }\n"), "=> ");
    outcomes.extend(literals_after(&read("src/credentials/cache/departure.rs"), "sts_answered("));
    let (events, writer) = (read("src/events.rs"), read("src/events/writer.rs"));
    let mut told = literals_after(&(events + &writer), "metrics.event(");
    told.extend(literals_after(between(&writer, "let outcome = match (&answer, &result) {", "};"), "=> "));
    let taint = read("src/startup_taint.rs");
    let mut looks = literals_after(&taint, "metrics.startup_taint(");
    looks.extend(literals_in(between(&taint, "let outcome = ", ";")));
    let mut lookups = literals_after(&cache, "session_lookups(");
    lookups.extend(literals_after(&cache, "session_lookups(if is_new { "));
    lookups.extend(literals_after(&cache, "} else { ").into_iter().filter(|word| word == "shared"));
    let causes = names(&read("src/credentials/gate/call.rs"), "impl CallCause {");
    let not_asked = read("src/credentials/not_asked.rs");
    let not_asked = literals_after(between(between(&not_asked, "impl NotAsked {", "\n}\n"), "fn name(", "\n    }\n"), "=> ");
    let waits =
        [literals_after(&metrics, "let outcome = if found { "), literals_after(between(&metrics, "fn pod_waited", "\n    }\n"), "else { ")];
    let codes = between(&read("src/metrics/handles.rs"), "const STATUSES", ";\n\nimpl")
        .split('(')
        .skip(1)
        .flat_map(|pair| literals_after(pair, ", "))
        .collect();

    let review = read("src/pod_identity/review.rs");
    let limits = literals_after(between(&read("src/connections/record.rs"), "pub(crate) fn name(self)", "\n    }\n"), "=> ");
    // A displaced connection had been open, so it counts among those that ended.
    let limits: BTreeSet<String> = limits.into_iter().filter(|limit| limit != "displaced").collect();
    let closing = read("src/connections/limits/slot.rs");
    let (connection, progress) = (read("src/server/connection.rs"), read("src/connections/progress.rs"));
    let ended = [
        between(&connection, "fn ended_by", "\n}\n"),
        between(&closing, "fn name(self)", "\n    }\n"),
        between(&progress, "fn name(self)", "\n    }\n"),
    ]
    .map(literals_in);

    let real = [
        ("rolegate_http_requests_total{route}", literals_after(&proxy, "metrics.route(")),
        ("rolegate_http_requests_total{code}", codes),
        ("rolegate_denials_total{reason}", reasons),
        ("rolegate_audit_denials_total{reason}", audited),
        ("rolegate_imdsv1_requests_total{outcome}", literals_in(between(&metrics, "fn without_token", "\n    }\n"))),
        ("rolegate_metadata_reads_total{outcome}", literals_after(&read("src/proxy/metadata.rs"), "metadata_read(")),
        ("rolegate_connections_refused_total{reason}", [literals_after(&server, "connection_refused("), limits.clone()].concat_sets()),
        ("rolegate_connections_ended_total{reason}", ended.concat_sets()),
        // No control group is looked for on that port, and a source has too few connections to be asked to leave the last ones to others.
        (
            "rolegate_metrics_port_refused_total{reason}",
            limits.into_iter().filter(|limit| !matches!(&**limit, "room" | "cgroup-limit")).collect(),
        ),
        ("rolegate_pod_wait_seconds{outcome}", waits.concat_sets()),
        ("rolegate_watch_errors_total{resource}", literals_after(&watch, "resource: ")),
        ("rolegate_watch_undecodable_total{resource}", literals_after(&watch, "resource: ")),
        ("rolegate_ambiguous_addresses_total{outcome}", names(&ambiguous, "impl AmbiguityAnswer {")),
        ("rolegate_session_lookups_total{result}", lookups),
        ("rolegate_sts_requests_total{cause}", causes.clone()),
        ("rolegate_sts_queue{cause}", causes),
        ("rolegate_sts_turned_away_total{reason}", not_asked),
        ("rolegate_sts_requests_total{outcome}", outcomes.clone()),
        ("rolegate_explain_sts_requests_total{outcome}", outcomes),
        ("rolegate_events_total{outcome}", told),
        ("rolegate_redirect_repairs_total{outcome}", literals_in(between(&metrics, "fn redirect_repaired", "\n    }\n"))),
        ("rolegate_self_test{state}", names(&probe, "impl SelfTestState {")),
        ("rolegate_self_test_failures_total{reason}", names(&probe, "impl SelfTestFailure {")),
        ("rolegate_cni_result_files{state}", literals_in(between(&metrics, "fn cni_results", "\n    }\n"))),
        (
            "rolegate_host_network_exemption_updates_total{outcome}",
            literals_in(between(&read("src/metrics/host_network.rs"), "fn exemptions_updated", "\n    }\n")),
        ),
        (
            "rolegate_issuer_key_fetches_total{outcome}",
            literals_in(between(&read("src/metrics/pod_identity.rs"), "fn keys_fetched", "\n    }\n")),
        ),
        (
            "rolegate_token_reviews_total{outcome}",
            [literals_after(&review, "token_reviewed("), literals_in(between(&review, "token_reviewed(if is_confirmed", ");"))]
                .concat_sets(),
        ),
        ("rolegate_startup_taint_looks_total{outcome}", looks),
        ("rolegate_not_ready{cause}", readiness::CONDITIONS.map(|(_, cause)| cause.to_owned()).into()),
        (
            "rolegate_role_credentials_total{outcome}",
            literals_in(between(&read("src/metrics/roles.rs"), "const OUTCOMES: [&str; 2] = ", ";")),
        ),
        ("rolegate_migration_findings{finding}", literals_in(between(&read("src/report.rs"), "pub(crate) const ALL", "];"))),
    ];
    let (_, documented) = documented_metrics();
    for (label, values) in &real {
        assert!(values.len() > 1, "{label}: this test cannot find the values in the source; found {values:?}");
    }
    let real = real.iter().flat_map(|(label, values)| values.iter().map(move |value| format!("{label} {value}"))).collect();
    same("docs/metrics.md, values of labels", &documented, &real);
}

/// Concatenates sets.
trait ConcatSets {
    fn concat_sets(self) -> BTreeSet<String>;
}

impl<const N: usize> ConcatSets for [BTreeSet<String>; N] {
    fn concat_sets(self) -> BTreeSet<String> {
        self.into_iter().flatten().collect()
    }
}

#[test]
fn ports_are_the_defaults() {
    let (app, metrics) = (config::DEFAULT_APP_PORT.to_string(), config::DEFAULT_METRICS_PORT.to_string());
    let ports = [app.clone(), metrics.clone()].into();
    let manifest = read("daemonset/without-surge/daemonset.yaml");
    for key in ["containerPort: ", "hostPort: "] {
        let found = manifest.lines().filter_map(|line| line.trim().strip_prefix(key)).map(str::to_owned).collect();
        same(&format!("without-surge, {key}"), &found, &ports);
    }
    for file in ["docs/install.md", "ARCHITECTURE.md"] {
        let text = read(file);
        let table = between(&text, "## Ports", "\n## ");
        let found = table.lines().filter_map(|line| line.strip_prefix("| ")?.split(' ').next()?.parse::<u16>().ok());
        same(file, &found.map(|port| port.to_string()).collect(), &ports);
    }
    assert!(read("README.md").contains(&format!(":{metrics}/metrics")), "the README names the metrics port");
    assert!(read("docs/metrics.md").contains(&format!("({metrics})")), "docs/metrics.md names the metrics port");
    assert!(read("docs/packet-rules.md").contains(&format!("NODE:{app}")), "the rule redirects to the app port");
}

#[test]
fn documented_annotations_are_those_that_the_code_reads() {
    let text = read("README.md");
    let table = between(&text, "## Annotations", "\n## ");
    // Other systems' annotations have no flag.
    let of_others = ["iam.amazonaws.com/permitted", "eks.amazonaws.com/role-arn"];
    let documented = table.lines().filter(|line| line.contains("| `")).map(|line| cells(line)[1].trim_matches('`').to_owned());
    let keys = ["iam-role-key", "iam-target-role-key", "iam-external-id", "namespace-key"];
    let mut real: BTreeSet<String> = flags::all().filter(|flag| keys.contains(&flag.name)).map(|flag| flag.default.to_owned()).collect();
    real.insert(SESSION_NAME_KEY.to_owned());
    real.extend(of_others.map(str::to_owned));
    same("the README's annotations", &documented.collect(), &real);
}

/// Flags of other programs that the documents name, and `--name` itself.
const OF_OTHERS: &[&str] = &[
    "name",
    "help",
    "help-all",
    "version",
    "tag",
    "target",
    "dport",
    "to-destination",
    "workspace",
    "show-output",
    "all-targets",
    "locked",
    "noflush",
    "namespace",
    "selector",
    "field-selector",
    "overwrite",
    "now",
    "register-with-taints",
    "ignore-taint",
    "output",
    "filename",
    "interactive",
    "patch-file",
    "all-namespaces",
    "ignore-daemonsets",
    // Those of cosign and gh.
    "certificate-identity",
    "certificate-oidc-issuer",
    "repo",
    // Those of aws iam.
    "role-name",
    "policy-name",
    "policy-document",
    "policy-arn",
    "permissions-boundary",
    // Those of the webhook of EKS.
    "watch-container-credentials-config",
    "container-credentials-audience",
    // kiam's.
    "port",
    "host",
    "iptables-remove",
    "no-iptables-remove",
    "whitelist-route-regexp",
    "allow-route-regexp",
    "allow-ip-query",
    "role-base-arn",
    "role-base-arn-autodetect",
    "session",
    "session-refresh",
    "region",
    "sync",
    "fetchers",
    "prefetch-buffer-size",
    "disable-strict-namespace-regexp",
    "json-log",
    "level",
    "prometheus-listen-addr",
    "prometheus-sync-interval",
    "statsd",
    "statsd-prefix",
    "statsd-interval",
    "cert",
    "key",
    "ca",
    "server-address",
    "gateway-timeout-creation",
    // Cargo, Git, Docker and other programs that contributors run.
    "check",
    "ff-only",
    "message",
    "offline",
    "profile",
    "release",
    "manifest-path",
    "rm",
    "sign",
    "lib",
    "test",
    "bins",
    "example",
    "bench",
    "nocapture",
    "bind",
    // Of sed, and of kubectl debug.
    "in-place",
    "attach",
    "image",
    // Of tests/cluster/run, and of scripts.
    "keep",
    "net",
    "write",
    // Of helm and kubectl.
    "raw",
    "values",
    "set",
    "reuse-values",
    "take-ownership",
    "server-side",
    "profile",
    "write",
    "functions",
];

#[test]
fn every_flag_in_the_documents_exists() {
    let real: BTreeSet<&str> = flags::of_all_commands().map(|flag| flag.name).collect();
    let components = ["bpf", "cilium", "startup-taint", "self-test-required", "without-self-test"]
        .map(|component| read(&format!("daemonset/{component}/daemonset.yaml")))
        .concat();
    let manifest = read("daemonset/daemonset.yaml") + &components;
    let arguments = flags_in(&manifest);
    assert!(arguments.len() > 4, "the manifest has no arguments: {arguments:?}");
    let unknown: Vec<_> = arguments.iter().filter(|name| !real.contains(name.as_str())).collect();
    assert!(unknown.is_empty(), "daemonset.yaml: {unknown:?}");
    let dockerfile = read("Dockerfile");
    let started: Vec<_> = dockerfile.lines().filter(|line| line.starts_with("ENTRYPOINT") || line.starts_with("CMD")).collect();
    assert!(started.len() == 2 && started.iter().all(|line| flags_in(line).iter().all(|name| real.contains(name.as_str()))), "{started:?}");
    let mut unknown = Vec::new();
    for file in documents() {
        let named = flags_in(&read(&file)).into_iter();
        let of_file = named.filter(|name| !real.contains(name.as_str()) && !OF_OTHERS.contains(&name.as_str()));
        unknown.extend(of_file.map(|name| format!("{file}: --{name}")));
    }
    assert!(unknown.is_empty(), "no such flags: {unknown:#?}");
}

/// Returns the arguments of a manifest, without comments, with values for the pod fields that the kubelet fills in.
fn arguments_of(manifest: &str) -> Vec<String> {
    let lines = manifest.lines().map(|line| line.trim().trim_start_matches("- ").trim_start_matches("value: "));
    let arguments = lines.filter(|line| line.starts_with("--"));
    arguments.map(|argument| argument.replace("$(NODE_NAME)", "node-a").replace("$(HOST_IP)", "10.0.0.1")).collect()
}

/// Parses the manifest's arguments. Panics if the daemon would not start with them.
fn configured(arguments: &[String]) -> config::Config {
    let all = std::iter::once("rolegate").chain(arguments.iter().map(String::as_str));
    let matches = flags::add_to(clap::Command::new("rolegate")).try_get_matches_from(all).unwrap();
    config::Config::from_source(&matches, &|_| None).unwrap()
}

#[test]
fn the_daemon_starts_with_the_arguments_of_the_manifests() {
    let base = arguments_of(&read("daemonset/daemonset.yaml"));
    assert!(base.len() > 5 && base.iter().any(|argument| argument == "--node=node-a"), "{base:?}");
    let config = configured(&base);
    assert!(config.warnings.is_empty(), "{:?}", config.warnings);
    assert_eq!(config.sessions.name, "{namespace}.{pod}".parse().unwrap());
    assert!(!config.sessions.pod_may_name, "CloudTrail shows which pod it was");
    assert!(config.server.handover_socket.is_some(), "two daemons overlap in a rolling update");
    assert_eq!(
        configured(&["--node=node-a".to_owned()]).sessions.name,
        "{pod}".parse().unwrap(),
        "the default without a manifest is unchanged"
    );
    let mut all = base;
    for component in ["startup-taint", "self-test-required", "pod-identity", "pod-identity-token-review"] {
        all.extend(arguments_of(&read(&format!("daemonset/{component}/daemonset.yaml"))));
        configured(&all);
    }
}

/// The daemon reads what the CNI plugin wrote, and must not be able to write it. The directory may be created after the daemon
/// has started.
#[test]
fn the_parent_of_the_cni_results_is_mounted_read_only() {
    let manifest = read("daemonset/daemonset.yaml");
    let mount = between(&manifest, "            - name: cni\n", "            - name: probe\n");
    assert_eq!(mount, "              mountPath: /var/lib/cni\n              readOnly: true\n");
    let volume = between(&manifest, "        - name: cni\n          hostPath:\n", "DirectoryOrCreate\n");
    assert_eq!(volume, "            path: /var/lib/cni\n            type: ");
    let results = arguments_of(&manifest).into_iter().find_map(|argument| argument.strip_prefix("--cni-results=").map(str::to_owned));
    assert_eq!(results.as_deref(), Some("/var/lib/cni/results"));
}

/// Where the programs of `--redirect=bpf` are pinned. Whoever takes the component away, or the daemon, needs them to remove the programs.
#[test]
fn the_pins_of_bpf_programs_are_mounted_with_and_without_the_component() {
    let (base, uninstall) = (read("daemonset/daemonset.yaml"), read("daemonset/uninstall/daemonset.yaml"));
    let pins = flags::of_all_commands().find(|flag| flag.name == "bpf-pins").unwrap().default;
    assert_eq!(Path::new(pins).parent(), Some(Path::new("/sys/fs/bpf")));
    let lines = |text: &str| text.lines().map(str::trim).map(str::to_owned).collect::<Vec<_>>();
    let (mount, volume) = (["- name: bpf", "mountPath: /sys/fs/bpf"], ["- name: bpf", "hostPath:", "path: /sys/fs/bpf", "type: Directory"]);
    for text in [&base, &uninstall] {
        let lines = lines(text);
        assert!(lines.windows(2).any(|two| two == mount) && lines.windows(4).any(|four| four == volume), "{text}");
    }
    assert!(!uninstall.contains("op: remove\n  path: /spec/template/spec/volumes\n"));
    assert!(!read("daemonset/bpf/daemonset.yaml").contains("/sys/fs/bpf"), "the base mounts it, and a volume has one name");
}

/// Every policy has a binding that denies, refuses both metadata addresses, and counts an evaluation that fails as a refusal. What the
/// expressions mean is up to the API server.
#[test]
fn the_admission_component_refuses_both_metadata_addresses() {
    let text = read("daemonset/admission/policy.yaml");
    let documents: Vec<_> = text.split("\n---\n").collect();
    let of_kind =
        |kind: &str| documents.iter().filter(|document| document.contains(&format!("\nkind: {kind}\n"))).copied().collect::<Vec<_>>();
    let name = |document: &str| between(document, "metadata:\n  name: ", "\n").to_owned();
    let (policies, bindings) = (of_kind("ValidatingAdmissionPolicy"), of_kind("ValidatingAdmissionPolicyBinding"));
    assert_eq!((policies.len(), bindings.len()), (2, 2));
    for (policy, binding) in policies.iter().zip(&bindings) {
        assert!(policy.contains("failurePolicy: Fail\n"), "{policy}");
        assert!(
            binding.contains(&format!("policyName: {}\n", name(policy))) && binding.contains("validationActions: [Deny, "),
            "{binding}"
        );
        let networks: Vec<_> = policy.split("cidr('").skip(1).map(|rest| rest.split('\'').next().unwrap()).collect();
        assert_eq!(networks, ["169.254.0.0/16", "fd00:ec2::/32"], "{policy}");
        // The metadata service's addresses are in these networks.
        let (v4, v6) = (rolegate::metadata_service::METADATA_IPV4, rolegate::metadata_service::METADATA_IPV6);
        assert!(v4.octets().starts_with(&[169, 254]) && v6.segments().starts_with(&[0xfd00, 0xec2]));
    }
    for resource in ["services, services/status", "endpoints", "endpointslices"] {
        assert_eq!(text.matches(&format!("resources: [{resource}]\n")).count(), 1, "{resource}");
    }
    assert!(read("daemonset/admission/kustomization.yaml").contains("kind: Component\nresources:\n  - policy.yaml\n"));
}

#[test]
fn the_manifests_grant_what_the_self_test_needs() {
    let base = read("daemonset/daemonset.yaml");
    assert!(base.contains("add: [NET_ADMIN, SYS_ADMIN]\n") && !flags_in(&base).contains("self-test"), "{base}");
    // Beside this setting, the API server rejects the names with CAP_.
    assert!(base.contains("allowPrivilegeEscalation: false") && !base.contains("[CAP_") && !base.contains(", CAP_"), "{base}");
    let without = read("daemonset/without-self-test/daemonset.yaml");
    assert!(without.contains("value: --self-test=off\n") && without.contains("op: remove\n"), "{without}");
}

#[test]
fn every_component_is_listed_and_described() {
    let listed = read("daemonset/kustomization.yaml");
    let components: BTreeSet<_> = fs::read_dir("daemonset")
        .unwrap()
        .filter_map(|entry| {
            let entry = entry.unwrap();
            entry.file_type().unwrap().is_dir().then(|| entry.file_name().into_string().unwrap())
        })
        .collect();
    for name in components {
        assert!(listed.contains(&format!("#   - {name}\n")), "daemonset/kustomization.yaml does not name {name}");
        assert!(read("docs/install.md").contains(&format!("| `daemonset/{name}/` |")), "docs/install.md does not describe {name}");
    }
}

#[test]
fn the_cluster_role_grants_exactly_what_the_daemon_uses() {
    let text = read("daemonset/rbac.yaml");
    let rules: String = text.lines().filter(|line| !line.trim_start().starts_with('#')).flat_map(|line| [line, "\n"]).collect();
    let value = |line: &str, key: &str| line.trim().strip_prefix(key).map(|list| list.trim_matches(['[', ']']).to_owned());
    let resources = rules.lines().filter_map(|line| value(line, "resources: "));
    let verbs = rules.lines().filter_map(|line| value(line, "verbs: "));
    let granted: BTreeSet<String> = resources.zip(verbs).map(|(resource, verbs)| format!("{resource}: {verbs}")).collect();
    assert_eq!(rules.matches("apiGroups: ").count(), granted.len(), "one line each for resources and verbs");
    // The permissions that the sources use.
    let sources = ["src/pods/watch.rs", "src/pods/watch/context.rs"].map(read).concat();
    let followed = literals_after(&sources, "resource: ").into_iter().map(|resource| format!("{resource}: list, watch"));
    assert!(read("src/kubernetes/nodes.rs").contains("/api/v1/nodes/{}"));
    let writer = read("src/events/writer.rs");
    assert!(
        writer.contains("/apis/events.k8s.io/v1/namespaces/{}/events")
            && writer.contains("self.post(")
            && writer.contains("self.merge_patch(")
    );
    assert!(text.contains("apiGroups: [events.k8s.io]"));
    // Permissions that only a flag needs are present as comments, and off by default.
    let (by_flag, followed): (Vec<_>, Vec<_>) = followed.partition(|rule| rule.starts_with("serviceaccounts: "));
    assert_eq!(by_flag, ["serviceaccounts: list, watch"]);
    assert!(text.contains("With --service-account-roles") && !read("daemonset/daemonset.yaml").contains("--service-account-roles"));
    for line in ["resources: [serviceaccounts]", "verbs: [list, watch]"] {
        assert!(
            text.lines().any(|of_file| of_file.trim_start_matches(['#', ' ']) == line && of_file.trim_start().starts_with('#')),
            "{line}"
        );
    }
    let asked = followed.into_iter().chain(["nodes: get".to_owned(), "events: create, patch".to_owned()]).collect();
    same("rbac.yaml", &granted, &asked);
}

#[test]
fn the_rule_of_the_start_up_taint_ships_with_its_flag() {
    let (base, rule) = (read("daemonset/rbac.yaml"), read("daemonset/startup-taint/rbac.yaml"));
    let lines = |text: &str| text.lines().map(|line| line.trim().trim_start_matches("- ").to_owned()).collect::<Vec<_>>();
    let of_rule = lines(&rule);
    assert_eq!(rule.matches("apiGroups: ").count(), 1);
    for line in ["apiGroups: [\"\"]", "resources: [nodes]", "verbs: [get, patch]", "name: rolegate-startup-taint"] {
        assert!(of_rule.iter().any(|of_file| of_file == line), "{line}");
    }
    assert!(!lines(&base).iter().any(|line| line == "verbs: [get, patch]"));
    // The warning about a missing permission names the same rule.
    let source = read("src/startup_taint.rs");
    assert!(source.contains("resources: [nodes], verbs: [get, patch]") && source.contains("daemonset/startup-taint"));
    assert!(!read("daemonset/daemonset.yaml").contains("--startup-taint"));
    // The documented key for nodes is the one that the component removes.
    let component = read("daemonset/startup-taint/daemonset.yaml");
    let key = between(&component, "--startup-taint=", "\n");
    assert!(read("docs/install.md").contains(&format!("`{key}:NoSchedule`")), "{key}");
    assert!(key.len() <= 63, "the key is longer than EKS accepts in node groups");
}

#[test]
fn the_rule_of_token_reviews_ships_with_its_flag() {
    let (component, rule) =
        (read("daemonset/pod-identity-token-review/daemonset.yaml"), read("daemonset/pod-identity-token-review/rbac.yaml"));
    for line in ["apiGroups: [authentication.k8s.io]", "resources: [tokenreviews]", "verbs: [create]"] {
        assert!(rule.lines().any(|of_file| of_file.trim().trim_start_matches("- ") == line), "{line}");
    }
    assert_eq!((rule.matches("apiGroups: ").count(), rule.matches("verbs: ").count()), (1, 1));
    assert_eq!(arguments_of(&component), ["--pod-identity-token-review"]);
    assert!(!read("daemonset/rbac.yaml").contains("tokenreviews"));
    for file in ["daemonset/daemonset.yaml", "daemonset/pod-identity/daemonset.yaml"] {
        assert!(!read(file).contains("token-review"), "it is off by default");
    }
}

#[test]
fn reasons_of_events_are_documented() {
    let events = read("src/events.rs");
    let real = literals_after(between(&events, "pub fn reason(self)", "\n    }\n"), "=> ");
    let text = read("docs/events.md");
    let table = between(&text, "## Reasons", "\n## ");
    let documented =
        table.lines().filter_map(|line| line.strip_prefix("| `")?.split_once('`')).map(|(reason, _)| reason.to_owned()).collect();
    same("docs/events.md", &documented, &real);
}

/// Returns the code of every source file, without its tests.
fn sources() -> Vec<String> {
    let (mut found, mut directories) = (Vec::new(), vec![Path::new(env!("CARGO_MANIFEST_DIR")).join("src")]);
    while let Some(directory) = directories.pop() {
        for entry in fs::read_dir(&directory).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                directories.extend((!path.ends_with("tests")).then_some(path));
            } else if !path.ends_with("tests.rs") && path.extension().is_some_and(|extension| extension == "rs") {
                let text = fs::read_to_string(&path).unwrap();
                found.push(text.split("#[cfg(test)]\nmod tests {").next().unwrap().to_owned());
            }
        }
    }
    found
}

#[test]
fn every_condition_of_readiness_has_advice() {
    let sources = sources();
    let constants = |text: &str, name: &str| literals_after(text, &format!("const {name}: &str = "));
    let mut real = BTreeSet::new();
    for text in &sources {
        for call in text.split("readiness.step(").skip(1) {
            let argument = call.split_once(')').unwrap().0;
            if let Some(literal) = argument.strip_prefix('"') {
                real.insert(literal.trim_end_matches('"').to_owned());
                continue;
            }
            // A constant in the same file, or one that the file imports.
            let mut values = constants(text, argument);
            if values.is_empty() {
                values = sources.iter().flat_map(|text| constants(text, argument)).collect();
            }
            assert!(!values.is_empty(), "{argument} is not the name of a constant");
            real.extend(values);
        }
    }
    assert!(real.contains("the self-test") && real.contains("the list of this node's pods"), "{real:?}");
    // Otherwise the daemon could be not ready without a cause in the metrics.
    same("CONDITIONS of src/readiness.rs", &readiness::CONDITIONS.map(|(text, _)| text.to_owned()).into(), &real);
    let text = read("docs/troubleshooting.md");
    let table = between(&text, "## By reason of `/readyz`", "\n## ");
    let rows = table.lines().filter(|line| line.starts_with("| `")).skip(1);
    let documented = rows.map(|row| cells(row)[0].trim_matches('`').to_owned()).collect();
    same("docs/troubleshooting.md, by reason of /readyz", &documented, &real);
}

#[test]
fn every_refusal_reason_has_advice_in_one_place() {
    let (_, values) = documented_metrics();
    let real = values.iter().filter_map(|value| value.strip_prefix("rolegate_denials_total{reason} ")).map(str::to_owned).collect();
    let text = read("docs/troubleshooting.md");
    let rows = between(&text, "## By reason of a refusal", "\n## ").lines().filter(|line| line.starts_with("| `"));
    let listed: Vec<String> = rows.flat_map(|row| cells(row)[0].split(", ")).map(|reason| reason.trim_matches('`').to_owned()).collect();
    let documented: BTreeSet<String> = listed.iter().cloned().collect();
    assert_eq!(listed.len(), documented.len(), "a reason is in several rows: {listed:?}");
    same("docs/troubleshooting.md, by reason of a refusal", &documented, &real);
}

#[test]
fn the_index_lists_every_page() {
    let index = read("docs/README.md");
    for page in documents().iter().filter_map(|path| path.strip_prefix("docs/")) {
        assert!(page == "README.md" || page.contains('/') || index.contains(&format!("]({page})")), "docs/README.md does not list {page}");
    }
}

#[test]
fn the_documents_list_exactly_what_pods_may_read() {
    let source = read("src/proxy/metadata/table.rs");
    let groups = between(&source, "const GROUPS", "\n];");
    let is_path = |text: &&str| text.starts_with("meta-data/") || text.starts_with("dynamic/");
    let real: Vec<&str> = groups.split('"').filter(is_path).collect();
    assert!(real.len() > 20, "{real:?}");
    let text = read("docs/metadata.md");
    let rows = between(&text, "## Metadata for pods", "\n## ")
        .lines()
        .filter(|line| line.starts_with("| base ") || line.starts_with("| node-info "));
    // The third column. A name without a directory is in the directory of the name before it.
    let words = rows.flat_map(|row| row.split(" | ").nth(2).unwrap().split('`').skip(1).step_by(2));
    let documented: Vec<&str> = words.map(|word| word.trim_start_matches("meta-data/").trim_end_matches('/')).collect();
    let is = |path: &str, word: &str| {
        let path = path.trim_start_matches("meta-data/");
        path == word || path.ends_with(&format!("/{word}")) || path.starts_with(&format!("{word}/"))
    };
    for path in &real {
        assert!(documented.iter().any(|word| is(path, word)), "{path} is not documented");
    }
    for word in documented {
        assert!(real.iter().any(|path| is(path, word)), "{word} is documented, but missing in the code");
    }
}

#[test]
fn the_limits_are_documented_correctly() {
    let (page, flags) = (read("docs/limits.md"), read("docs/flags.md"));
    let limits: Vec<(&str, &str)> = between(&page, "## The pod-facing port", "\n## ")
        .lines()
        .filter_map(|line| line.strip_prefix("| `--")?.split_once("` | ")?.1.split_once(" |").map(|(default, _)| (line, default)))
        .collect();
    let all = flags.lines().filter(|line| line.starts_with("| `--limits-")).count();
    assert_eq!(limits.len(), all);
    for (line, default) in limits {
        let name = line.split('`').nth(1).unwrap();
        let flag = flags.lines().find(|line| line.starts_with(&format!("| `{name} "))).unwrap();
        assert!(flag.contains(&format!("| `{default}` |")), "{line}");
    }
}

#[test]
fn the_manifest_disables_service_environment_variables() {
    let manifest = read("daemonset/daemonset.yaml");
    assert!(manifest.lines().any(|line| line == "      enableServiceLinks: false"), "a Service's variables would look like settings");
}

#[test]
fn paths_of_code_in_the_documents_exist() {
    let mut seen = 0;
    for document in documents().iter().filter(|document| *document != "CHANGELOG.md") {
        for code in read(document).split('`').skip(1).step_by(2) {
            let is_path = code.contains('/') && !code.contains([' ', '*', '$', '{']);
            if is_path
                && ["src/", "tests/", "lab/", "benches/", "scripts/", "daemonset/", "charts/"].iter().any(|top| code.starts_with(top))
            {
                assert!(Path::new(env!("CARGO_MANIFEST_DIR")).join(code).exists(), "{document} names {code}");
                seen += 1;
            }
        }
    }
    assert!(seen > 20, "{seen} paths");
}

#[test]
fn every_decision_is_in_the_index() {
    let index = read("docs/decisions/README.md");
    let records = documents().into_iter().filter_map(|file| file.strip_prefix("docs/decisions/").map(str::to_owned));
    for record in records.filter(|record| record != "README.md") {
        assert_eq!(index.matches(&format!("[{}]({record})", &record[..4])).count(), 1, "{record}");
        let text = read(&format!("docs/decisions/{record}"));
        let sections: Vec<_> = text.lines().filter_map(|line| line.strip_prefix("## ")).collect();
        assert_eq!(sections, ["Context", "Decision", "Consequences", "Alternatives"], "{record}");
    }
}

/// The minimum Rust version for Cargo equals that of the image, the workflows and the development container.
#[test]
fn the_compiler_version_is_the_same_everywhere() {
    let manifest = read("Cargo.toml");
    let oldest = between(&manifest, "\nrust-version = \"", "\"");
    let version = format!("{oldest}.0");
    let dockerfile = read("Dockerfile");
    assert_eq!(between(&dockerfile, "FROM rust:", "-"), oldest, "Dockerfile");
    let container = read(".devcontainer/devcontainer.json");
    assert_eq!(between(&container, "\"image\": \"rust:", "-"), version, ".devcontainer/devcontainer.json, image");
    assert_eq!(between(&container, "\"RUSTUP_TOOLCHAIN\": \"", "\""), version, ".devcontainer/devcontainer.json, RUSTUP_TOOLCHAIN");
    for workflow in ["test", "nightly"] {
        let file = format!(".github/workflows/{workflow}.yml");
        let text = read(&file);
        let named: Vec<_> = text.lines().filter_map(|line| line.trim().strip_prefix("RUSTUP_TOOLCHAIN: ")).collect();
        assert!(!named.is_empty() && named.iter().all(|name| *name == version), "{file}: {named:?}");
    }
}

#[test]
fn actions_of_workflows_are_pinned_to_a_full_version() {
    let workflows = fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join(".github/workflows")).unwrap();
    let texts = workflows.map(|entry| fs::read_to_string(entry.unwrap().path()).unwrap()).collect::<String>();
    let uses = texts.lines().filter_map(|line| line.trim().trim_start_matches("- ").strip_prefix("uses: "));
    let actions: Vec<_> = uses.filter(|action| !action.starts_with("./")).collect();
    assert!(actions.len() > 5, "{actions:?}");
    for action in actions {
        let (_, version) = action.split_once("@v").unwrap_or_else(|| panic!("{action} has no version"));
        let numbers = version.split('.').map(str::parse::<u32>);
        assert!(numbers.clone().count() == 3 && numbers.into_iter().all(|number| number.is_ok()), "{action}");
    }
}

/// The levels of the log lines that must have an event.
const LEVELS_WITH_EVENTS: [&str; 3] = ["error", "warn", "info"];

/// Returns each log line of the shipped code, as its level and its event, which is the first field.
fn log_lines() -> Vec<(&'static str, Option<String>)> {
    let mut lines = Vec::new();
    for code in sources() {
        for level in LEVELS_WITH_EVENTS.into_iter().chain(["debug", "trace"]) {
            for (at, call) in code.match_indices(&format!("{level}!(")) {
                let is_whole_name = !code[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_');
                let fields = code[at + call.len()..].trim_start();
                let event = fields.strip_prefix("event = \"").and_then(|rest| rest.split_once('"')).map(|(event, _)| event.to_owned());
                let needs_event = LEVELS_WITH_EVENTS.contains(&level);
                assert!(
                    event.is_some() || !needs_event || !is_whole_name,
                    "this line has no event as its first field: {level}!({fields:.150}"
                );
                if is_whole_name {
                    lines.push((level, event));
                }
            }
        }
    }
    lines
}

#[test]
fn every_log_event_is_documented_with_its_levels() {
    let mut levels = BTreeMap::<String, BTreeSet<&str>>::new();
    for (level, event) in log_lines() {
        if let Some(event) = event {
            levels.entry(event).or_default().insert(level);
        }
    }
    let real = levels.into_iter().map(|(event, levels)| format!("{event}: {}", levels.into_iter().collect::<Vec<_>>().join(", ")));
    let mut documented = BTreeSet::new();
    for line in read("docs/log-events.md").lines().filter(|line| line.starts_with("| `")) {
        let cells = cells(line);
        assert!(cells.len() == 4 && cells.iter().all(|cell| !cell.is_empty()), "expected four non-empty columns: {line}");
        assert!(documented.insert(format!("{}: {}", cells[0].trim_matches('`'), cells[1])), "documented twice: {line}");
    }
    same("docs/log-events.md", &documented, &real.collect());
}

/// An event that a document names exists.
#[test]
fn events_in_the_documents_exist() {
    let events: BTreeSet<_> = log_lines().into_iter().filter_map(|(_, event)| event).collect();
    for file in documents() {
        let text = read(&file);
        for mark in ["event=", "event=\"", "event: \""] {
            for rest in text.split(mark).skip(1) {
                let name: String = rest.chars().take_while(|c| c.is_ascii_lowercase() || matches!(c, '-')).collect();
                assert!(name.is_empty() || events.contains(&name), "{file} names the log event {name:?}, which does not exist");
            }
        }
    }
}

#[test]
fn links_lead_to_files() {
    for file in documents() {
        let text = read(&file);
        let here = Path::new(env!("CARGO_MANIFEST_DIR")).join(&file);
        for target in text.split("](").skip(1).filter_map(|rest| rest.split_once(')')).map(|(target, _)| target) {
            let (path, anchor) = target.split_once('#').map_or((target, None), |(path, anchor)| (path, Some(anchor)));
            if path.contains("://") {
                continue;
            }
            let path = if path.is_empty() { here.clone() } else { here.with_file_name(path) };
            assert!(path.is_file(), "{file}: {target} leads nowhere");
            // A picture has no headings.
            let headings = String::from_utf8_lossy(&fs::read(&path).unwrap()).into_owned();
            let stays = |c: &char| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_');
            let slug = |heading: &str| heading.to_lowercase().chars().filter(stays).collect::<String>().replace(' ', "-");
            let heading = |line: &'_ str| line.strip_prefix("### ").or_else(|| line.strip_prefix("## ")).map(slug);
            let found = headings.lines().filter_map(heading);
            assert!(
                anchor.is_none_or(|anchor| found.collect::<Vec<_>>().iter().any(|slug| slug == anchor)),
                "{file}: {target} has no such heading"
            );
        }
    }
}

#[test]
fn the_tested_sdks_have_the_versions_that_the_tests_install() {
    let installed = |path: &str, before: &str, after: &str| between(&read(path), before, after).to_owned();
    let clients = [
        ("Python (boto3)", installed("tests/clients/python/requirements.txt", "\nboto3==", "\n")),
        ("AWS CLI", installed("tests/clients/python/requirements.txt", "\nawscli==", "\n")),
        ("JavaScript v3", installed("tests/clients/node/package.json", "\"@aws-sdk/credential-providers\": \"", "\"")),
        ("Go v2 (`config`)", installed("tests/clients/go/go.mod", "aws-sdk-go-v2/config v", "\n")),
        ("Go v1", installed("tests/clients/go/go.mod", "aws/aws-sdk-go v", "\n")),
        ("Java v2", installed("tests/clients/java/pom.xml", "<artifactId>sts</artifactId>\n      <version>", "</version>")),
        ("Rust (`aws-config`)", installed("Cargo.lock", "name = \"aws-config\"\nversion = \"", "\"")),
        ("AWS CRT (Python `awscrt`)", installed("tests/clients/python/native-new.txt", "\nawscrt==", "\n")),
    ];
    let real = clients.iter().map(|(name, version)| format!("{name} {version}")).collect();
    let page = read("docs/pod-identity.md");
    let rows = between(&page, "| SDK | Version |", "\n\n").lines().skip(2).map(cells);
    same("tested SDKs", &rows.map(|row| format!("{} {}", row[0].trim_start_matches("| "), row[1])).collect(), &real);
}
