#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test says loudly what failed")]
use std::collections::{BTreeSet, HashMap};
use std::path::Path;

use clap::Command;
use secrecy::ExposeSecret as _;
use tracing::Level;

use super::redirect::{Action, RedirectCommand};
use super::*;

mod roles;

/// The configuration of a program that was started with these arguments and this environment.
fn read(arguments: &[&str], env: &[(&str, &str)]) -> Result<Config, ConfigError> {
    let command = flags::add_to(Command::new("rolegate"));
    let matches = command.try_get_matches_from([&["rolegate"], arguments].concat()).expect("clap takes the arguments");
    let env: HashMap<String, String> = env.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
    Config::from_source(&matches, &|name| env.get(name).cloned())
}

fn config(arguments: &[&str]) -> Config {
    read(&[&["--node=node-a"], arguments].concat(), &[]).unwrap_or_else(|error| panic!("{arguments:?}: {error}"))
}

fn mistakes(arguments: &[&str]) -> Vec<String> {
    read(&[&["--node=node-a"], arguments].concat(), &[]).expect_err("there is a mistake").mistakes
}

/// The only mistake there is.
fn mistake(arguments: &[&str]) -> String {
    let mistakes = mistakes(arguments);
    assert_eq!(mistakes.len(), 1, "{arguments:?}: {mistakes:#?}");
    mistakes[0].clone()
}

/// A flag, a value that is not its default, what else must be given, and what the value does.
type Case = (&'static str, &'static str, &'static [&'static str], fn(&Config) -> bool);

fn warned(config: &Config, text: &str) -> bool {
    config.warnings.iter().any(|warning| warning.text.contains(text))
}

fn warned_for(config: &Config, reason: &str) -> bool {
    config.warnings.iter().any(|warning| warning.reason == reason)
}

fn interface_names(config: &Config) -> Vec<(&str, bool)> {
    config.redirect.interfaces.iter().map(|interface| (interface.name.as_str(), interface.negated)).collect()
}

fn ips(texts: &[&str]) -> Vec<IpAddr> {
    texts.iter().map(|text| text.parse().unwrap()).collect()
}

fn identity(config: &Config) -> &PodIdentityConfig {
    config.pod_identity.as_ref().expect("--pod-identity is on")
}

#[test]
fn addresses_of_pod_identity_are_checked() {
    for wrong in [
        "0.0.0.0:80",
        "[::]:80",
        "169.254.170.23",
        "example:80",
        "224.0.0.1:80",
        "255.255.255.255:80",
        "169.254.169.254:80",
        "[fd00:ec2::254]:80",
    ] {
        let mistake = mistake(&["--pod-identity", &format!("--pod-identity-addresses=127.0.0.1:80,{wrong}")]);
        assert!(mistake.contains(wrong), "{mistake}");
    }
    let config = config(&["--pod-identity", "--pod-identity-host-port=0"]);
    let listens: Vec<_> = identity(&config).listen_addresses().map(|(address, _)| address.to_string()).collect();
    assert_eq!(listens, ["169.254.170.23:80", "[fd00:ec2::23]:80"]);
    let config = self::config(&["--pod-identity", "--pod-identity-relative-uri"]);
    assert_eq!(identity(&config).assigned(), ips(&["169.254.170.2", "169.254.170.23", "fd00:ec2::23"]));
    assert!(mistake(&["--pod-identity-issuer=https://a b"]).contains("visible"));
}

const BASE: &str = "arn:aws:iam::111122223333:role/";

const CASES: &[Case] = &[
    ("max-staleness", "5m", &[], |config| config.pods.max_staleness == Some(Duration::from_secs(300))),
    ("node", "node-b", &[], |config| config.pods.node == "node-b"),
    ("kubeconfig", "/etc/kube/config", &[], |config| config.pods.api.kubeconfig == Some("/etc/kube/config".into())),
    ("api-server", "https://10.0.0.1:6443", &[], |config| config.pods.api.server.as_deref() == Some("https://10.0.0.1:6443")),
    ("api-token", "abc", &["--api-server=https://10.0.0.1"], |config| {
        config.pods.api.token.as_ref().is_some_and(|token| token.expose_secret() == "abc")
    }),
    ("migrate", "true", &[], |config| config.migrate.is_some()),
    ("insecure", "true", &[], |config| config.pods.api.insecure),
    ("backoff-max-elapsed-time", "700ms", &[], |config| config.pods.wait == Duration::from_millis(700)),
    ("cni-results", "/var/lib/cni/results", &[], |config| config.pods.cni_results == Some("/var/lib/cni/results".into())),
    ("events", "false", &[], |config| !config.pods.events),
    ("startup-taint", "example.com/rolegate", &[], |config| config.pods.startup_taint.as_deref() == Some("example.com/rolegate")),
    ("host-network-pods", "serve", &[], |config| {
        config.pods.host_network.pods == HostNetworkMode::Serve && config.redirect.bpf.host_network_pods == HostNetworkMode::Serve
    }),
    ("host-network-exempt", "static-pods,team/*,kube-system/aws-node", &[], |config| {
        let items: Vec<_> = config.pods.host_network.exempt.iter().map(ToString::to_string).collect();
        items == ["static-pods", "team/*", "kube-system/aws-node"]
    }),
    ("backoff-max-interval", "2s", &[], |config| warned(config, "--backoff-max-interval has no effect")),
    ("cache-resync-period", "1h", &[], |config| warned(config, "--cache-resync-period has no effect")),
    ("resolve-duplicate-cache-ips", "true", &[], |config| warned(config, "--resolve-duplicate-cache-ips has no effect")),
    ("iam-role-key", "example.com/role", &[], |config| config.pods.annotations.role == "example.com/role"),
    ("iam-target-role-key", "example.com/target", &[], |config| config.pods.annotations.target_role == "example.com/target"),
    ("iam-external-id", "example.com/id", &[], |config| config.pods.annotations.external_id == "example.com/id"),
    ("base-role-arn", BASE, &[], |config| config.roles.base == BaseRole::Given(BASE.parse().unwrap())),
    ("auto-discover-base-arn", "true", &[], |config| config.roles.base == BaseRole::Discover),
    ("default-role", "arn:aws:iam::111122223333:role/web", &[], |config| {
        config.roles.default == DefaultRole::Given("arn:aws:iam::111122223333:role/web".to_owned())
    }),
    ("auto-discover-default-role", "true", &["--allow-node-role"], |config| config.roles.default == DefaultRole::NodeRole),
    ("allow-node-role", "true", &[], |config| config.roles.allow_node_role),
    ("allowed-roles", "arn:aws:iam::111122223333:role/web*", &[], |config| {
        config.roles.allowed == Some(vec!["arn:aws:iam::111122223333:role/web*".to_owned()])
    }),
    ("service-account-roles", "true", &[], |config| config.roles.service_accounts == ServiceAccountRoles::Own),
    ("eks-role-annotation", "true", &["--service-account-roles"], |config| config.roles.service_accounts == ServiceAccountRoles::OwnAndEks),
    ("namespace-restrictions", "true", &[], |config| config.roles.restrictions == Restrictions::Enforce),
    ("namespace-key", "example.com/allowed", &[], |config| config.pods.annotations.allowed_roles == "example.com/allowed"),
    ("namespace-restriction-format", "regexp", &[], |config| config.roles.patterns == PatternFormat::Regexp),
    ("session-duration", "2h", &[], |config| config.sessions.duration == Duration::from_secs(7200)),
    ("session-name-template", "{namespace}.{pod}", &[], |config| config.sessions.name == "{namespace}.{pod}".parse().unwrap()),
    ("source-identity", "{namespace}.{pod}", &[], |config| config.sessions.source_identity == Some("{namespace}.{pod}".parse().unwrap())),
    ("session-scope", "role", &[], |config| config.sessions.scope == SessionScope::Role),
    ("session-tags", "pod,namespace", &[], |config| config.sessions.tags == [SessionTag::Namespace, SessionTag::Pod]),
    ("session-tags-transitive", "true", &["--session-tags=pod"], |config| config.sessions.transitive_tags),
    ("cluster-name", "prod", &[], |config| config.sessions.cluster.as_deref() == Some("prod")),
    ("iam-role-session-ttl", "15m", &[], |config| {
        config.sessions.duration == Duration::from_secs(1800) && warned(config, "--iam-role-session-ttl is doubled")
    }),
    ("prefetch", "false", &[], |config| !config.sessions.prefetch),
    ("prefetch-spread", "0", &[], |config| config.sessions.prefetch_spread.is_zero()),
    ("sts-timeout", "2s", &[], |config| config.sessions.timeout == Duration::from_secs(2)),
    ("sts-rate", "7", &[], |config| config.sessions.rate == 7 && config.sessions.max_rate == 35),
    ("sts-max-rate", "20", &[], |config| config.sessions.max_rate == 20),
    ("sts-concurrency", "3", &[], |config| config.sessions.concurrency == 3),
    ("assume-role-arn", "arn:aws:iam::111122223333:role/between", &[], |config| {
        config.sessions.intermediate.as_ref().is_some_and(|role| role.name() == "between")
    }),
    ("iam-role-error-ttl", "5s", &[], |config| config.sessions.error_ttl == Duration::from_secs(5)),
    ("use-regional-sts-endpoint", "true", &[], |config| warned(config, "--use-regional-sts-endpoint has no effect")),
    ("app-port", "8888", &[], |config| config.server.port == 8888),
    ("metadata-bind-address", "10.0.0.1", &[], |config| config.server.address == Some("10.0.0.1".parse().unwrap())),
    ("metrics-port", "9999", &[], |config| config.admin.port == 9999),
    ("metrics-bind-address", "::1", &[], |config| config.admin.address == Some("::1".parse().unwrap())),
    ("metrics-namespace-labels", "true", &[], |config| config.admin.namespace_labels),
    ("metrics-role-label", "true", &[], |config| config.admin.role_label),
    ("status-page", "true", &[], |config| config.admin.status_page),
    ("accept-direct-connections", "true", &[], |config| config.server.accept_direct),
    ("imds-tokens", "optional", &[], |config| config.server.tokens == TokenMode::Optional),
    ("metadata-addr", "127.0.0.1:1338", &[], |config| config.metadata.address == "127.0.0.1:1338"),
    ("metadata-profile", "node-info", &[], |config| config.metadata.profile == MetadataProfile::NodeInfo),
    ("node-info-namespaces", "kube-system,monitoring-*", &[], |config| {
        config.metadata.node_info_namespaces == ["kube-system", "monitoring-*"]
    }),
    ("handover-socket", "/run/handover", &[], |config| config.server.handover_socket.as_deref() == Some(Path::new("/run/handover"))),
    ("probe-socket", "/run/probe", &[], |config| config.admin.probe_socket.as_deref() == Some(Path::new("/run/probe"))),
    ("startup-grace", "5m", &[], |config| config.server.startup_grace == Duration::from_secs(300)),
    ("token-key-file", "/run/keys", &[], |config| config.server.token_key_file.as_deref() == Some(Path::new("/run/keys"))),
    ("limits-connections", "100000", &[], |config| config.server.limits.connections == 100_000),
    ("limits-connections-per-pod", "7", &[], |config| config.server.limits.connections_per_pod == 7),
    ("limits-connection-rate", "9", &[], |config| config.server.limits.connection_rate == 9),
    ("limits-head-timeout", "700ms", &[], |config| config.server.limits.head_timeout == Duration::from_millis(700)),
    ("limits-idle-timeout", "3m", &[], |config| config.server.limits.idle_timeout == Duration::from_secs(180)),
    ("iptables", "true", &[], |config| config.redirect.backend == RedirectBackend::Auto),
    ("redirect", "iptables", &[], |config| config.redirect.backend == RedirectBackend::Iptables),
    ("redirect-interval", "5s", &[], |config| config.redirect.interval == Duration::from_secs(5)),
    ("redirect-on-exit", "remove", &[], |config| config.redirect.remove_on_exit),
    ("redirect-routing-rules", "false", &[], |config| !config.redirect.routing_rules),
    ("bpf-cgroup", "/sys/fs/cgroup/pods", &[], |config| config.redirect.bpf.cgroup.as_deref() == Some(Path::new("/sys/fs/cgroup/pods"))),
    ("bpf-pins", "/sys/fs/bpf/other", &[], |config| config.redirect.bpf.pins == Path::new("/sys/fs/bpf/other")),
    ("bpf-interfaces", "eth+", &[], |config| config.redirect.bpf.interfaces.iter().any(|one| one.name == "eth+")),
    ("host-interface", "cali+", &[], |config| interface_names(config) == [("cali+", false)]),
    ("host-ip", "10.0.0.1,fd00::1", &[], |config| config.redirect.host_ips == ips(&["10.0.0.1", "fd00::1"])),
    ("pod-identity", "true", &[], |config| config.pod_identity.is_some()),
    ("pod-identity-addresses", "10.9.8.7:80", &["--pod-identity"], |config| identity(config).assigned() == ips(&["10.9.8.7"])),
    ("pod-identity-host-port", "99", &["--pod-identity"], |config| identity(config).host_address.is_some_and(|host| host.port() == 99)),
    ("pod-identity-audience", "sts.amazonaws.com", &["--pod-identity"], |config| identity(config).audience == "sts.amazonaws.com"),
    ("pod-identity-relative-uri", "true", &["--pod-identity"], |config| identity(config).relative_address.is_some()),
    ("pod-identity-token-review", "true", &["--pod-identity"], |config| identity(config).token_review),
    ("pod-identity-issuer", "https://a,https://b", &["--pod-identity"], |config| identity(config).issuers == ["https://a", "https://b"]),
    ("self-test", "on", &[], |config| config.self_test.mode == SelfTestMode::On),
    ("self-test-interval", "5s", &[], |config| config.self_test.interval == Duration::from_secs(5)),
    ("log-format", "json", &[], |config| config.log.json),
    ("log-level", "warn", &[], |config| config.log.level == Level::WARN),
    ("verbose", "true", &[], |config| config.log.level == Level::DEBUG && !config.admin.debug),
    ("debug", "true", &[], |config| config.log.level == Level::DEBUG && config.admin.debug),
];

/// What the case sets up beside its own flag; a node has to be named always.
fn beside(case: &Case) -> Vec<&'static str> {
    [&["--node=node-a"], case.2].concat()
}

#[test]
fn every_flag_is_read() {
    let tested: BTreeSet<_> = CASES.iter().map(|(name, ..)| *name).collect();
    let existing: BTreeSet<_> = flags::all().map(|flag| flag.name).collect();
    assert_eq!(tested, existing, "each flag has a case in this test");
    for case @ (name, value, _, works) in CASES {
        let flag = format!("--{name}={value}");
        let given = read(&[beside(case), vec![&flag]].concat(), &[]).unwrap_or_else(|error| panic!("{flag}: {error}"));
        assert!(works(&given), "{flag}");
        let without = read(&beside(case), &[]);
        assert!(!without.is_ok_and(|config| works(&config)), "{flag} is what --{name} does, not the default");
    }
}

#[test]
fn every_flag_is_an_environment_variable_too() {
    for case @ (name, value, ..) in CASES {
        // Not --node, which would win over its variable.
        let arguments: Vec<_> = beside(case).into_iter().filter(|argument| *name != "node" || *argument != "--node=node-a").collect();
        let variable = flags::all().find(|flag| flag.name == *name).unwrap().env();
        let given = read(&arguments, &[(&variable, value)]).unwrap_or_else(|error| panic!("{variable}: {error}"));
        assert!(case.3(&given), "{variable}={value}");
    }
    assert_eq!(flags::all().find(|flag| flag.name == "app-port").unwrap().env(), "ROLEGATE_APP_PORT");
}

#[test]
fn a_flag_wins_over_its_variable() {
    for case @ (name, value, ..) in CASES {
        let flag = format!("--{name}={value}");
        let variable = flags::all().find(|flag| flag.name == *name).unwrap().env();
        // What stands in the variable would be a mistake, or another value.
        let given = read(&[beside(case), vec![&flag]].concat(), &[(&variable, "other ?")]);
        assert!(case.3(&given.unwrap_or_else(|error| panic!("{flag}: {error}"))), "{flag}");
    }
}

#[test]
fn a_switch_is_on_alone_and_off_on_request() {
    for case @ (name, ..) in CASES {
        if flags::all().any(|flag| flag.name == *name && flag.value.is_none() && flag.default == "false") {
            let (on, off) = (format!("--{name}"), format!("--{name}=false"));
            assert!(case.3(&read(&[beside(case), vec![&on]].concat(), &[]).unwrap()), "{on}");
            let given = read(&[beside(case), vec![&off]].concat(), &[]);
            let without_effect = given.as_ref().is_ok_and(|config| warned(config, &format!("--{name} has no effect")));
            assert!(without_effect || !given.is_ok_and(|config| case.3(&config)), "{off}");
        }
    }
    for (text, expected) in [("1", true), ("t", true), ("TRUE", true), ("0", false), ("F", false), ("False", false)] {
        assert_eq!(config(&[&format!("--insecure={text}")]).pods.api.insecure, expected, "{text}");
    }
    for (argument, expected) in [("--events", true), ("--events=true", true), ("--events=false", false), ("--debug", true)] {
        assert_eq!(config(&[argument]).pods.events, expected, "{argument}");
    }
    assert_eq!(mistake(&["--insecure=yes"]), r#"--insecure="yes": expected true or false"#);
}

#[test]
fn without_flags_the_defaults_are_those_that_help_prints() {
    let config = config(&[]);
    assert_eq!((config.server.port, config.admin.port), (8181, 9543));
    assert_eq!((config.server.address, config.admin.address), (None, None));
    assert_eq!(config.server.tokens, TokenMode::Required);
    assert!(!config.server.accept_direct && !config.admin.debug && !config.pods.api.insecure);
    assert_eq!(config.metadata.address, "169.254.169.254");
    assert_eq!(config.sessions.duration, Duration::from_secs(3600));
    assert_eq!(config.sessions.error_ttl, Duration::from_secs(30));
    assert!(config.sessions.prefetch && config.sessions.intermediate.is_none());
    assert_eq!(config.sessions.prefetch_spread, Duration::from_secs(600));
    assert_eq!((config.sessions.timeout, config.sessions.rate, config.sessions.concurrency), (Duration::from_secs(5), 20, 16));
    assert_eq!(config.pods.wait, Duration::from_secs(2));
    assert_eq!(config.pods.annotations.role, "iam.amazonaws.com/role");
    assert_eq!(config.pods.annotations.external_id, "iam.amazonaws.com/external-id");
    assert_eq!(config.pods.annotations.allowed_roles, "iam.amazonaws.com/allowed-roles");
    assert_eq!((config.roles.base, config.roles.default), (BaseRole::None, DefaultRole::None));
    assert_eq!((config.roles.restrictions, config.roles.patterns), (Restrictions::Off, PatternFormat::Glob));
    assert_eq!((config.roles.allowed, config.roles.allow_node_role), (None, false));
    assert_eq!(config.roles.service_accounts, ServiceAccountRoles::Off);
    assert_eq!((config.sessions.name, config.sessions.scope), ("{pod}".parse().unwrap(), SessionScope::Pod));
    assert_eq!((config.sessions.tags, config.sessions.cluster, config.sessions.source_identity), (vec![], None, None));
    assert_eq!(config.redirect.backend, RedirectBackend::None);
    assert_eq!((config.redirect.interfaces, config.redirect.host_ips), (vec![], vec![]));
    assert_eq!((config.redirect.interval, config.redirect.remove_on_exit), (Duration::from_secs(30), false));
    assert!(config.redirect.routing_rules);
    let (mode, interval) = (SelfTestMode::Auto, Duration::from_secs(60));
    assert_eq!(config.self_test, SelfTestConfig { mode, interval });
    assert_eq!((config.log.json, config.log.level), (false, Level::INFO));
}

/// Every default that the table names, given as a value, changes nothing.
#[test]
fn the_defaults_of_the_table_are_the_defaults() {
    let without = config(&[]);
    for flag in flags::all().filter(|flag| !flag.default.is_empty()) {
        let mut given = config(&[&format!("--{}={}", flag.name, flag.default)]);
        given.warnings.retain(|warning| !warning.text.contains(&format!("--{} has no effect", flag.name)));
        assert_eq!(format!("{given:?}"), format!("{without:?}"), "--{}={}", flag.name, flag.default);
    }
}

#[test]
fn the_arguments_of_a_kube2iam_daemonset_are_taken_as_they_are() {
    let config = read(
        &[
            "--auto-discover-base-arn",
            "--iptables=true",
            "--host-ip=10.0.0.1",
            "--node=node-a",
            "--host-interface=eni+",
            "--use-regional-sts-endpoint",
            "--iam-role-session-ttl=900s",
            "--app-port=8181",
            "--namespace-restrictions",
            "--cache-resync-period=5m",
            "--backoff-max-elapsed-time=1s",
            "--backoff-max-interval=500ms",
            "--resolve-duplicate-cache-ips",
            "--log-format=json",
            "--log-level=warning",
            "--verbose",
        ],
        &[],
    );
    let config = config.unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(config.roles.base, BaseRole::Discover);
    assert_eq!(config.roles.restrictions, Restrictions::Enforce);
    assert_eq!(config.redirect.backend, RedirectBackend::Auto);
    assert_eq!(config.redirect.host_ips, ips(&["10.0.0.1"]));
    assert_eq!(interface_names(&config), [("eni+", false)]);
    assert_eq!(config.pods.node, "node-a");
    assert_eq!(config.pods.wait, Duration::from_secs(1));
    assert_eq!(config.sessions.duration, Duration::from_secs(1800));
    assert_eq!((config.log.json, config.log.level), (true, Level::DEBUG));
    insta::assert_snapshot!(
        "kube2iam_warnings",
        config.warnings.iter().map(|warning| format!("{}: {warning}", warning.reason)).collect::<Vec<_>>().join("\n")
    );
}

#[test]
fn every_mistake_is_told_at_once() {
    let error = read(
        &[
            "--app-port=70000",
            "--metrics-bind-address=localhost",
            "--session-duration=soon",
            "--iam-role-key=two words",
            "--base-role-arn=arn:aws:iam::1:role/",
            "--namespace-restrictions=maybe",
            "--namespace-restriction-format=perl",
            "--imds-tokens=never",
            "--log-level=loud",
            "--host-interface=eth0,!eth1",
            "--cache-resync-period=often",
            "--metadata-addr=user@host",
        ],
        &[("ROLEGATE_HOST_IP", "10.0.0.256")],
    )
    .unwrap_err();
    assert_eq!(error.mistakes.len(), 13, "{error}");
    // A line of its own for each of them.
    let text = error.to_string();
    assert!(error.mistakes.iter().all(|mistake| text.contains(&format!("\n  {mistake}"))), "{text}");
    insta::assert_snapshot!("every_mistake", text);
}

#[test]
fn the_start_up_taint_is_a_key_as_kubernetes_has_them() {
    let longest = format!("{0}.{0}.{0}.{1}/{2}", "a".repeat(63), "b".repeat(61), "C".repeat(63));
    for key in ["rolegate", "a", "startup-taint.cluster-autoscaler.kubernetes.io/rolegate", "example.com/Not_Ready.1", &longest] {
        let config = config(&[&format!("--startup-taint={key}")]);
        assert_eq!(config.pods.startup_taint.as_deref(), Some(key));
    }
    assert_eq!(config(&["--startup-taint="]).pods.startup_taint, None, "manifests leave variables empty");
    let (long_prefix, long_name) = (format!("a{longest}"), format!("{longest}c"));
    for key in [
        "example.com/rolegate=true:NoSchedule",
        "rolegate:NoSchedule",
        "two words",
        "/rolegate",
        "example.com/",
        "a/b/c",
        "-rolegate",
        "rolegate-",
        "Example.com/rolegate",
        "example..com/rolegate",
        "-example.com/rolegate",
        "r\u{f6}legate",
        &long_prefix,
        &long_name,
    ] {
        let mistake = mistake(&[&format!("--startup-taint={key}")]);
        assert!(mistake.contains("expected a taint key"), "{mistake}");
    }
    for key in ["node.kubernetes.io/not-ready", "node.cloudprovider.kubernetes.io/uninitialized", "karpenter.sh/unregistered"] {
        let mistake = mistake(&[&format!("--startup-taint={key}")]);
        assert!(mistake.contains("does not remove taints"), "{mistake}");
    }
}

#[test]
fn the_node_is_named_by_its_flag_or_by_node_name() {
    assert_eq!(read(&[], &[("NODE_NAME", "node-b")]).unwrap().pods.node, "node-b");
    assert_eq!(read(&[], &[("NODE_NAME", "node-b"), ("ROLEGATE_NODE", "node-c")]).unwrap().pods.node, "node-c");
    assert_eq!(read(&["--node="], &[("NODE_NAME", "node-b")]).unwrap().pods.node, "node-b");
    // Then it is found by the daemon's own pod.
    assert_eq!(read(&[], &[("NODE_NAME", "")]).unwrap().pods.node, "");
    let unexpanded = read(&["--node=$(NODE_NAME)"], &[]).unwrap();
    assert!(unexpanded.pods.node.is_empty() && warned_for(&unexpanded, "variable-not-expanded"));
    assert_eq!(read(&["--node=$(NODE_NAME)"], &[("NODE_NAME", "node-b")]).unwrap().pods.node, "node-b");
    // It becomes a field selector.
    for name in ["node-a,metadata.name=x", "node-a\n", "$(NODE NAME)", "a=b"] {
        assert!(read(&["--node", name], &[]).unwrap_err().mistakes[0].contains("--node: expected a node name"), "{name:?}");
    }
}

#[test]
fn metrics_are_never_on_the_port_of_the_pods() {
    // As the chart of kube2iam renders it.
    let same = config(&["--app-port=8181", "--metrics-port=8181"]);
    assert_eq!((same.server.port, same.admin.port), (8181, 9543));
    assert!(warned_for(&same, "metrics-port-moved"));
    let taken = config(&["--app-port=9543"]);
    assert_eq!((taken.server.port, taken.admin.port), (9543, 9544));
    assert!(!warned_for(&config(&[]), "metrics-port-moved"));
    let free = config(&["--app-port=0", "--metrics-port=0"]);
    assert_eq!((free.server.port, free.admin.port), (0, 0));
}

#[test]
fn sessions_last_from_15_minutes_to_12_hours() {
    for (argument, seconds) in [
        ("--session-duration=15m", 900),
        ("--session-duration=12h", 43_200),
        ("--iam-role-session-ttl=15m", 1800),
        ("--iam-role-session-ttl=450s", 900),
        ("--iam-role-session-ttl=6h", 43_200),
        ("--iam-role-session-ttl=", 3600),
    ] {
        assert_eq!(config(&[argument]).sessions.duration, Duration::from_secs(seconds), "{argument}");
    }
    for (argument, told) in [
        ("--session-duration=899s", "--session-duration is 14m 59s: expected 15m to 12h"),
        ("--session-duration=0", "--session-duration is 0s: expected 15m to 12h"),
        ("--session-duration=12h1s", "--session-duration is 12h 1s: expected 15m to 12h"),
        ("--iam-role-session-ttl=7m", "twice --iam-role-session-ttl is 14m: expected 15m to 12h"),
        ("--iam-role-session-ttl=7h", "twice --iam-role-session-ttl is 14h: expected 15m to 12h"),
        (
            "--iam-role-session-ttl=18446744073709551615s",
            "--iam-role-session-ttl=\"18446744073709551615s\": expected a duration of at most 24h",
        ),
    ] {
        let found = mistake(&[argument]);
        assert!(found.starts_with(told), "{argument}: {found}");
    }
    assert!(mistake(&["--session-duration=1h", "--iam-role-session-ttl=30m"]).contains("exclude each other"));
}

#[test]
fn short_sessions_are_warned_of_whichever_flag_sets_them() {
    for (argument, short) in [
        ("--session-duration=15m", true),
        ("--session-duration=2999s", true),
        ("--session-duration=50m", false),
        ("--session-duration=1h", false),
        ("--iam-role-session-ttl=15m", true),
        ("--iam-role-session-ttl=1499s", true),
        ("--iam-role-session-ttl=25m", false),
    ] {
        assert_eq!(warned(&config(&[argument]), "which is less than 50m"), short, "{argument}");
    }
    assert!(!warned(&config(&[]), "less than"));
}

#[test]
fn a_failure_of_sts_is_remembered_for_a_second_at_least() {
    for (value, expected, raised) in [("0", 1000, true), ("999ms", 1000, true), ("1s", 1000, false), ("1500ms", 1500, false)] {
        let config = config(&[&format!("--iam-role-error-ttl={value}")]);
        assert_eq!(config.sessions.error_ttl, Duration::from_millis(expected), "{value}");
        assert_eq!(warned(&config, "--iam-role-error-ttl is"), raised, "{value}: {:?}", config.warnings);
    }
}

/// A Service named `rolegate-metrics` gives such variables to every pod of its namespace.
#[test]
fn the_variables_of_a_service_are_no_settings() {
    let links = [
        ("NODE_NAME", "node-a"),
        ("ROLEGATE_PORT", "tcp://10.0.0.1:8181"),
        ("ROLEGATE_APP_PORT", "tcp://10.0.0.1:8181"),
        ("ROLEGATE_METRICS_PORT", "tcp://10.0.0.1:9543"),
    ];
    let config = read(&[], &links).unwrap_or_else(|error| panic!("{error}"));
    assert_eq!((config.server.port, config.admin.port), (DEFAULT_APP_PORT, DEFAULT_METRICS_PORT));
    for (arguments, env) in [
        (vec!["--metrics-port=tcp://10.0.0.1:9543"], ("NODE_NAME", "node-a")),
        (vec!["--node=node-a"], ("ROLEGATE_METRICS_PORT", "10.0.0.1:9543")),
        (vec!["--node=node-a"], ("ROLEGATE_METADATA_ADDR", "tcp://10.0.0.1:80")),
    ] {
        assert!(read(&arguments, &[("NODE_NAME", "node-a"), env]).is_err(), "{arguments:?} {env:?}");
    }
}

#[test]
fn the_addresses_of_the_rules_are_at_most_one_of_each_family() {
    for (arguments, expected) in [
        (vec!["--host-ip=10.0.0.1"], vec!["10.0.0.1"]),
        (vec!["--host-ip=fd00::1, 10.0.0.1"], vec!["fd00::1", "10.0.0.1"]),
        (vec!["--host-ip=10.0.0.1", "--host-ip=fd00::1"], vec!["10.0.0.1", "fd00::1"]),
        (vec!["--host-ip=::ffff:10.0.0.1"], vec!["10.0.0.1"]),
        (vec!["--host-ip="], vec![]),
    ] {
        assert_eq!(config(&[vec!["--iptables"], arguments.clone()].concat()).redirect.host_ips, ips(&expected), "{arguments:?}");
    }
    for list in ["10.0.0.1,10.0.0.2", "fd00::1,10.0.0.1,fd00::2", "10.0.0.1,10.0.0.1", "10.0.0.1,::ffff:10.0.0.2"] {
        assert!(mistake(&["--host-ip", list]).contains("at most one IPv4 and one IPv6"), "{list}");
    }
    assert_eq!(mistake(&["--host-ip=10.0.0.1,here"]), r#"--host-ip="here": expected an IP address"#);
}

#[test]
fn a_rule_that_leads_nowhere_is_refused() {
    for (arguments, told) in [
        (vec!["--metadata-bind-address=127.0.0.1"], "--metadata-bind-address=127.0.0.1: packet rules cannot redirect to a loopback"),
        (vec!["--metadata-bind-address=::1"], "--metadata-bind-address=::1: packet rules cannot redirect to a loopback"),
        (vec!["--host-ip=10.0.0.1", "--metadata-bind-address=10.0.0.2"], "--host-ip=10.0.0.1 and --metadata-bind-address=10.0.0.2 differ"),
        (vec!["--host-ip=10.0.0.1,fd00::1", "--metadata-bind-address=fd00::2"], "--host-ip=fd00::1 and"),
    ] {
        for backend in ["--iptables", "--redirect=auto", "--redirect=nftables", "--redirect=iptables"] {
            let found = mistake(&[vec![backend], arguments.clone()].concat());
            assert!(found.starts_with(told), "{arguments:?}: {found}");
        }
        config(&arguments);
        config(&[vec!["--redirect=none"], arguments].concat());
    }
    for (given, kept) in [
        ("127.0.0.1", &[][..]),
        ("0.0.0.0", &[]),
        ("10.0.0.1,::1", &["10.0.0.1"]),
        ("::", &[]),
        ("::ffff:127.0.0.1", &[]),
        ("$(HOST_IP)", &[]),
    ] {
        let given = format!("--host-ip={given}");
        assert_eq!(config(&[&given]).redirect.host_ips, ips(kept), "{given}");
        let config = config(&["--iptables", &given]);
        let reason = if given.contains('$') { "variable-not-expanded" } else { "host-ip-ignored" };
        assert!(warned_for(&config, reason), "{given}: {:?}", config.warnings);
        assert_eq!(config.redirect.host_ips, ips(kept), "{given}");
    }
    for good in [
        vec!["--host-ip=10.0.0.1", "--metadata-bind-address=10.0.0.1"],
        vec!["--host-ip=10.0.0.1", "--metadata-bind-address=::ffff:10.0.0.1"],
        vec!["--host-ip=10.0.0.1", "--metadata-bind-address=0.0.0.0"],
        vec!["--host-ip=10.0.0.1,fd00::1", "--metadata-bind-address=::"],
        vec!["--host-ip=10.0.0.1,fd00::1", "--metadata-bind-address=10.0.0.1"],
        vec!["--metadata-bind-address=10.0.0.1"],
    ] {
        config(&[vec!["--iptables"], good].concat());
    }
}

#[test]
fn the_api_token_is_in_no_message() {
    let arguments = ["--api-token=s3cr3t", "--app-port=x"];
    let error = read(&arguments, &[]).unwrap_err();
    assert!(!format!("{error} {error:?}").contains("s3cr3t"), "{error}");
    // As in kube2iam.
    let alone = config(&["--api-token=s3cr3t"]);
    assert!(alone.pods.api.token.is_none() && warned_for(&alone, "api-token-unused"));
    let config = config(&["--api-token=s3cr3t", "--api-server=https://10.0.0.1"]);
    assert!(!format!("{config:?}").contains("s3cr3t"), "{config:?}");
}

#[test]
fn the_api_server_is_a_url() {
    for url in ["10.0.0.1", "10.0.0.1:6443", "/path", "https://", "not a url"] {
        assert!(mistake(&["--api-server", url]).contains("expected a URL"), "{url}");
    }
}

#[test]
fn the_nodes_own_role_is_the_default_only_where_it_is_said_twice() {
    let withheld = config(&["--auto-discover-default-role"]);
    assert_eq!((&withheld.roles.default, &withheld.roles.base), (&DefaultRole::None, &BaseRole::Discover));
    assert!(warned_for(&withheld, "node-role-withheld"));
    assert_eq!(config(&["--allow-node-role"]).roles.default, DefaultRole::None);
    assert_eq!(config(&["--allow-node-role", "--auto-discover-default-role"]).roles.default, DefaultRole::NodeRole);
    let both = mistake(&["--auto-discover-default-role", "--allow-node-role", &format!("--default-role={BASE}web")]);
    assert!(both.contains("exclude each other"), "{both}");
}

#[test]
fn a_default_role_can_be_completed() {
    let base = format!("--base-role-arn={BASE}");
    assert_eq!(config(&[&base, "--default-role=web"]).roles.default, DefaultRole::Given("web".to_owned()));
    assert_eq!(config(&["--auto-discover-base-arn", "--default-role=team/web"]).roles.default, DefaultRole::Given("team/web".to_owned()));
    assert_eq!(config(&["--default-role="]).roles.default, DefaultRole::None);
    for (arguments, told) in [
        (vec!["--default-role=web"], r#"--default-role="web" is a short name"#),
        (vec!["--auto-discover-base-arn", "--default-role=we b"], r#"--default-role="we b": a role name has"#),
        (vec![&base, "--default-role=a//b"], r#"--default-role="a//b": the path"#),
        (vec!["--default-role=arn:aws:iam::1:role/x"], r#"--default-role="arn:aws:iam::1:role/x": the account"#),
    ] {
        let found = mistake(&arguments);
        assert!(found.starts_with(told), "{found}");
    }
    assert!(mistake(&["--auto-discover-base-arn", &base]).contains("exclude each other"));
}

#[test]
fn namespace_restrictions_are_a_switch_with_a_third_position() {
    for (arguments, expected) in [
        (vec!["--namespace-restrictions"], Restrictions::Enforce),
        (vec!["--namespace-restrictions", "--debug"], Restrictions::Enforce),
        (vec!["--namespace-restrictions=true"], Restrictions::Enforce),
        (vec!["--namespace-restrictions=1"], Restrictions::Enforce),
        (vec!["--namespace-restrictions=audit"], Restrictions::Audit),
        (vec!["--namespace-restrictions=false"], Restrictions::Off),
        (vec![], Restrictions::Off),
    ] {
        let config = config(&arguments);
        assert_eq!(config.roles.restrictions, expected, "{arguments:?}");
        assert_eq!(warned(&config, "--namespace-restrictions is off"), expected == Restrictions::Off, "{arguments:?}");
    }
}

#[test]
fn interfaces_are_a_list() {
    for (arguments, expected) in [
        (vec!["--host-interface=cni0,eni+"], vec![("cni0", false), ("eni+", false)]),
        (vec!["--host-interface=cni0", "--host-interface=eni+, vlan+"], vec![("cni0", false), ("eni+", false), ("vlan+", false)]),
        (vec!["--host-interface=!eth0,!eth1"], vec![("eth0", true), ("eth1", true)]),
        (vec!["--host-interface="], vec![]),
        (vec!["--host-interface=a.b:c-d_e"], vec![("a.b:c-d_e", false)]),
    ] {
        assert_eq!(interface_names(&config(&arguments)), expected, "{arguments:?}");
    }
    for name in ["!", "-i", "!-i", "a b", "a/b", "sixteencharacter", "!!eth0", "eth0\n-j ACCEPT", "\u{e9}th0"] {
        let found = mistake(&[&format!("--host-interface={name}")]);
        assert!(found.contains("expected the name of an interface"), "{name:?}: {found}");
    }
    assert!(mistake(&["--host-interface=eth0,!eth1"]).contains("not both in one list"));
}

#[test]
fn a_backend_is_one_of_those_that_are_there() {
    for (given, backend) in [
        (&["--redirect=auto"][..], RedirectBackend::Auto),
        (&["--redirect=nftables"], RedirectBackend::Nftables),
        (&["--iptables", "--redirect=iptables"], RedirectBackend::Iptables),
        (&["--redirect=none", "--iptables"], RedirectBackend::None),
        (&["--iptables"], RedirectBackend::Auto),
    ] {
        assert_eq!(config(given).redirect.backend, backend, "{given:?}");
    }
    assert_eq!(mistake(&["--redirect=ebtables"]), r#"--redirect="ebtables": expected one of auto, nftables, iptables, bpf, none"#);
    for interval in ["0", "999ms", "61m"] {
        assert_eq!(mistake(&["--redirect-interval", interval]), "--redirect-interval: expected 1s to 1h");
    }
    assert_eq!(mistake(&["--redirect-on-exit=drop"]), r#"--redirect-on-exit="drop": expected one of keep, remove"#);
}

/// What `rolegate redirect` reads of these arguments.
fn redirect_command(action: Action, arguments: &[&str], env: &[(&str, &str)]) -> Result<RedirectCommand, String> {
    let command = flags::add_to_redirect(Command::new("redirect"));
    let matches = command.try_get_matches_from([&["redirect"], arguments].concat()).unwrap();
    let env = |name: &str| env.iter().find(|(set, _)| *set == name).map(|(_, value)| (*value).to_owned());
    RedirectCommand::from_source(action, &matches, &env).map_err(|error| error.to_string())
}

#[test]
fn the_rules_by_hand_are_told_by_the_daemons_flags() {
    let by_hand = redirect_command(Action::Install, &[], &[]).unwrap();
    assert_eq!((by_hand.redirect.backend, by_hand.port, by_hand.refuse_direct), (RedirectBackend::Auto, DEFAULT_APP_PORT, true));
    assert!(!by_hand.guard && !by_hand.peers);
    let variables = [("ROLEGATE_REDIRECT", "nftables"), ("ROLEGATE_HOST_IP", "10.0.0.1"), ("ROLEGATE_APP_PORT", "1234")];
    let of_container = redirect_command(Action::Status, &["--guard", "--accept-direct-connections"], &variables).unwrap();
    assert_eq!((of_container.redirect.backend, of_container.port), (RedirectBackend::Nftables, 1234));
    assert_eq!(of_container.redirect.host_ips, ips(&["10.0.0.1"]));
    assert!(of_container.guard && !of_container.refuse_direct);
    let mode = |arguments: &[&str]| redirect_command(Action::Install, arguments, &[]).unwrap().redirect.bpf.host_network_pods;
    assert_eq!(mode(&["--redirect=bpf"]), HostNetworkMode::Ignore);
    assert_eq!(mode(&["--redirect=bpf", "--host-network-pods=deny"]), HostNetworkMode::Deny);
    assert!(redirect_command(Action::Remove, &["--peers"], &[]).unwrap().peers);
    assert!(redirect_command(Action::Remove, &["--force"], &[]).unwrap().force);
    for (action, arguments, told) in [
        (Action::Install, &["--redirect=none"][..], "--redirect=none: expected"),
        (Action::Install, &["--app-port=0"], "--app-port=0: expected"),
        (Action::Status, &["--peers"], "--peers is for remove only"),
        (Action::Install, &["--force"], "--force is for remove only"),
        (Action::Install, &["--host-ip=127.0.0.1"], "--host-ip=127.0.0.1: pods cannot reach"),
    ] {
        let mistake = redirect_command(action, arguments, &[]).unwrap_err();
        assert!(mistake.contains(told), "{arguments:?}: {mistake}");
    }
}

#[test]
fn the_metadata_service_is_a_host_and_a_port() {
    for good in ["169.254.169.254", "127.0.0.1:1338", "[fd00:ec2::254]", "[::1]:80", "imds.test:80"] {
        assert_eq!(config(&["--metadata-addr", good]).metadata.address, good);
    }
    for bad in ["", "http://169.254.169.254", "a/b", "a?b", "u@h", "host:", "host:port", "host:99999", ":80", "a b", "fd00:ec2::254"] {
        assert!(mistake(&[&format!("--metadata-addr={bad}")]).ends_with("expected HOST or HOST:PORT"), "{bad:?}");
    }
}

#[test]
fn pods_have_no_metadata_service_if_the_sdk_has_none_and_no_address() {
    let disabled = |arguments: &[&str]| {
        let mut all = vec!["--node=node-a"];
        all.extend(arguments);
        read(&all, &[("AWS_EC2_METADATA_DISABLED", "TRUE")]).unwrap()
    };
    let config = disabled(&["--node-info-namespaces=x"]);
    assert_eq!((config.metadata.profile, config.metadata.node_info_namespaces.len()), (MetadataProfile::None, 0));
    assert!(warned(&config, "AWS_EC2_METADATA_DISABLED is set"));
    let config = disabled(&["--metadata-addr=127.0.0.1:1338"]);
    assert_eq!(config.metadata.profile, MetadataProfile::Base);
    assert!(mistake(&["--node-info-namespaces=Kube_System"]).contains("expected the name of a namespace"));
    assert!(mistake(&["--metadata-profile=all"]).contains("expected one of base, node-info, none"));
}

#[test]
fn limits_are_numbers_that_make_sense_together() {
    for bad in ["0", "-1", "many", "1000001", "1e3"] {
        assert!(mistake(&[&format!("--limits-connections-per-pod={bad}")]).ends_with("expected a number from 1 to 1000000"), "{bad:?}");
    }
    assert!(
        mistake(&["--limits-connections=10", "--limits-connections-per-pod=11"])
            .contains("--limits-connections-per-pod must be less than --limits-connections")
    );
    assert!(
        mistake(&["--limits-connections=10", "--limits-connections-per-pod=10"])
            .contains("--limits-connections-per-pod must be less than --limits-connections")
    );
    for (all, per_pod) in [(1, 1), (2, 1), (7, 1), (10, 2), (100, 25), (512, 128), (100_000, 128)] {
        let limits = config(&[&format!("--limits-connections={all}")]).server.limits;
        assert_eq!((limits.connections, limits.connections_per_pod), (all, per_pod), "the default fits in");
    }
    assert!(mistake(&["--limits-head-timeout=0s"]).contains("100ms to 1m"));
    assert!(mistake(&["--limits-idle-timeout=2h"]).contains("100ms to 1h"));
}

#[test]
fn no_more_connections_than_files_may_be_open() {
    let limits = |connections, connections_per_pod| LimitsConfig { connections, connections_per_pod, ..LimitsConfig::default() };
    for (asked, descriptors, given) in [
        (limits(4096, 128), 4608 + 512, limits(4096, 128)),
        (limits(4096, 128), u64::MAX, limits(4096, 128)),
        (limits(4096, 128), 4608 + 511, limits(4095, 128)),
        (limits(4096, 128), 1024, limits(455, 128)),
        (limits(4096, 1024), 1024, limits(455, 113)),
        (limits(4096, 128), 300, limits(66, 16)),
        (limits(4096, 128), 0, limits(1, 1)),
        (limits(1, 1), 1024, limits(1, 1)),
    ] {
        assert_eq!(asked.within(descriptors), given, "{descriptors}");
        let all = given.connections + given.unknown() + given.waiting();
        assert!(descriptors < 1000 || all as u64 + 512 <= descriptors, "{given:?} of {descriptors}");
    }
}

#[test]
fn tokens_that_end_with_the_process_are_warned_of_where_they_are_needed() {
    let warning = "--token-key-file is missing";
    assert!(warned(&config(&[]), warning));
    assert!(!warned(&config(&["--imds-tokens=optional"]), warning));
    assert!(!warned(&config(&["--token-key-file=/run/rolegate/keys"]), warning));
    let of_each = "--handover-socket without --token-key-file";
    assert!(warned(&config(&["--handover-socket=/run/rolegate/handover"]), of_each));
    assert!(!warned(&config(&["--handover-socket=/run/rolegate/handover", "--token-key-file=/run/rolegate/keys"]), of_each));
}

#[test]
fn the_level_of_the_log_is_the_most_detailed_one_asked_for() {
    for (arguments, expected) in [
        (vec!["--log-level=ERROR"], Level::ERROR),
        (vec!["--log-level=fatal"], Level::ERROR),
        (vec!["--log-level=panic"], Level::ERROR),
        (vec!["--log-level=warning"], Level::WARN),
        (vec!["--log-level=Info"], Level::INFO),
        (vec!["--log-level=debug"], Level::DEBUG),
        (vec!["--log-level=trace"], Level::TRACE),
        (vec!["--log-level=error", "--verbose"], Level::DEBUG),
        (vec!["--log-level=error", "--debug"], Level::DEBUG),
        (vec!["--log-level=trace", "--verbose"], Level::TRACE),
    ] {
        assert_eq!(config(&arguments).log.level, expected, "{arguments:?}");
    }
}

#[test]
fn the_last_of_two_values_counts() {
    assert_eq!(config(&["--app-port=1", "--app-port=2"]).server.port, 2);
}

#[test]
fn without_an_address_every_address_is_listened_on() {
    assert_eq!(listen_address(None, 80), "[::]:80".parse().unwrap());
    assert_eq!(listen_address(Some("10.0.0.1".parse().unwrap()), 80), "10.0.0.1:80".parse().unwrap());
}

#[test]
fn what_is_asked_of_sts_has_its_bounds() {
    for (argument, said) in [
        ("--sts-timeout=99ms", "100ms to 1m"),
        ("--sts-timeout=61s", "100ms to 1m"),
        ("--prefetch-spread=25h", "at most 24h"),
        ("--iam-role-error-ttl=1000y", "at most 24h"),
        ("--sts-rate=0", "a number from 1"),
        ("--sts-max-rate=19", "less than --sts-rate"),
        ("--sts-concurrency=0", "a number from 1"),
        ("--sts-concurrency=many", "a number from 1"),
        ("--assume-role-arn=between", "the ARN of a role"),
    ] {
        let mistake = mistake(&[argument]);
        assert!(mistake.contains(said), "{mistake}");
    }
}

#[test]
fn by_a_role_between_sessions_last_an_hour_at_most() {
    let intermediate = "--assume-role-arn=arn:aws:iam::111122223333:role/between";
    for (duration, seconds, told) in [("12h", 3600, true), ("1h", 3600, false), ("30m", 1800, false)] {
        let config = config(&[intermediate, &format!("--session-duration={duration}")]);
        assert_eq!(config.sessions.duration, Duration::from_secs(seconds));
        assert_eq!(warned(&config, "role chaining"), told, "{duration}");
    }
}

#[test]
fn staleness_may_have_no_bound_and_a_short_one_is_warned_about() {
    assert_eq!(config(&[]).pods.max_staleness, Some(DEFAULT_MAX_STALENESS));
    assert_eq!(config(&["--max-staleness=0"]).pods.max_staleness, None);
    assert!(!warned(&config(&["--max-staleness=0"]), "--max-staleness"));
    assert!(!warned(&config(&["--max-staleness=3m"]), "--max-staleness"));
    assert!(warned(&config(&["--max-staleness=2m"]), "--max-staleness"));
}

#[test]
fn the_directory_of_cni_results_is_an_absolute_path() {
    assert_eq!(config(&["--cni-results="]).pods.cni_results, None, "manifests leave variables empty");
    for path in ["results", "./results", "../var/lib/cni/results", "file:///var/lib/cni/results"] {
        let mistake = mistake(&[&format!("--cni-results={path}")]);
        assert!(mistake.starts_with(&format!("--cni-results={path:?}: expected an absolute path")), "{mistake}");
    }
}

#[test]
fn the_daemons_own_pod_is_known_by_variables() {
    let env = [("POD_NAME", "rolegate-x"), ("POD_NAMESPACE", "kube-system"), ("POD_UID", "$(POD_UID)"), ("HOST_IP", "10.0.0.1")];
    let config = read(&[], &env).unwrap();
    let own = &config.pods.own_pod;
    assert_eq!((own.name.as_deref(), own.namespace.as_deref(), own.uid.as_deref()), (Some("rolegate-x"), Some("kube-system"), None));
    assert_eq!((&own.host_ips, config.redirect.host_ip_hint), (&ips(&["10.0.0.1"]), Some("10.0.0.1".parse().unwrap())));
    // A flag wins, and what pods cannot reach is no address of the node.
    assert_eq!(read(&["--host-ip=10.0.0.2"], &env).unwrap().pods.own_pod.host_ips, ips(&["10.0.0.2"]));
    assert_eq!(read(&[], &[("HOST_IP", "127.0.0.1")]).unwrap().redirect.host_ip_hint, None);
    assert_eq!(read(&[], &[("POD_NAME", "a,b"), ("HOSTNAME", "a b")]).unwrap().pods.own_pod, OwnPodHints::default());
}
