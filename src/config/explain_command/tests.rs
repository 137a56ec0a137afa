#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test says loudly what failed")]
use super::*;

fn read(arguments: &[&str], env: &[(&str, &str)]) -> Result<ExplainConfig, ConfigError> {
    let command = crate::cli::command();
    let matches = command.try_get_matches_from([&["rolegate", "explain"], arguments].concat()).unwrap();
    let (_, matches) = matches.subcommand().unwrap();
    let env: std::collections::HashMap<_, _> = env.iter().copied().collect();
    ExplainConfig::from_source(matches, &|name| env.get(name).map(|text| (*text).to_owned()), b"")
}

#[test]
fn names_of_pods_are_read_as_kubernetes_writes_them() {
    let good: PodReference = "shop/web-0.a".parse().unwrap();
    assert_eq!((good.namespace(), good.name(), good.to_string().as_str()), ("shop", "web-0.a", "shop/web-0.a"));
    let long = format!("shop/{}", "x".repeat(254));
    for bad in ["", "web", "shop/", "/web", "shop/web/0", "Shop/web", "shop/we b", "shop/../x", "shop/%2e", "shop/web&assume=true", &long] {
        assert_eq!(bad.parse::<PodReference>(), Err(NotAPodName), "{bad}");
    }
}

#[test]
fn the_command_line_chooses_who_is_asked() {
    let asked = |arguments: &[&str], env: &[(&str, &str)]| match read(&[&["shop/web"], arguments].concat(), env).unwrap().asked {
        ExplainTarget::Daemon(authority) => authority.to_string(),
        ExplainTarget::Cluster(_) => "cluster".to_owned(),
    };
    let daemon = |authority: &str| authority.to_owned();
    assert_eq!(asked(&[], &[]), daemon("127.0.0.1:9543"));
    assert_eq!(asked(&["--metrics-port=1234"], &[]), daemon("127.0.0.1:1234"));
    assert_eq!(asked(&[], &[("ROLEGATE_METRICS_PORT", "1235")]), daemon("127.0.0.1:1235"));
    assert_eq!(asked(&["--admin-url=http://localhost:1/"], &[]), daemon("localhost:1"));
    // In the daemon's own container its variables are there for itself.
    assert_eq!(asked(&[], &[("ROLEGATE_API_SERVER", "https://10.0.0.1"), ("ROLEGATE_KUBECONFIG", "/k")]), daemon("127.0.0.1:9543"));
    assert_eq!(asked(&["--kubeconfig=/k"], &[("NODE_NAME", "a")]), "cluster");
    assert_eq!(asked(&["--api-server=https://10.0.0.1"], &[]), "cluster");
}

/// `kubectl exec` has the variables of the daemon's container, which may be for another version of it than this.
#[test]
fn variables_of_the_daemon_do_not_keep_it_from_being_asked() {
    let variables = [
        ("ROLEGATE_SESSION_DURATION", "1 parsec"),
        ("ROLEGATE_APP_PORT", "many"),
        ("ROLEGATE_DEFAULT_ROLE", "short"),
        ("ROLEGATE_LOG_LEVEL", "loud"),
    ];
    assert!(matches!(read(&["shop/web"], &variables).unwrap().asked, ExplainTarget::Daemon(_)));
    assert_eq!(read(&["shop/web", "--kubeconfig=/k"], &variables).unwrap_err().mistakes.len(), 4);
    // Those by which it is asked count.
    for variable in ["ROLEGATE_METRICS_PORT", "ROLEGATE_OUTPUT", "ROLEGATE_ASSUME", "ROLEGATE_ADMIN_URL"] {
        let error = read(&["shop/web"], &[(variable, "x y")]).unwrap_err();
        assert!(error.mistakes.len() == 1 && error.to_string().contains(variable), "{error}");
    }
}

#[test]
fn mistakes_are_reported_at_once() {
    let error = read(&["nonsense", "--admin-url=https://x", "--output=xml", "--assume=perhaps", "--kubeconfig=/k"], &[]).unwrap_err();
    for wanted in
        ["expected NAMESPACE/POD", "give one of them", "http://127.0.0.1:9543", "expected one of text, json", "expected true or false"]
    {
        assert!(error.to_string().contains(wanted), "{wanted}: {error}");
    }
    assert_eq!(error.mistakes.len(), 5, "{error}");
}

#[test]
fn the_node_is_not_needed_and_counts_only_where_it_is_an_argument() {
    let cluster = |asked| match asked {
        ExplainTarget::Cluster(cluster) => cluster,
        ExplainTarget::Daemon(daemon) => panic!("{daemon} is asked"),
    };
    let of_environment = cluster(read(&["shop/web", "--kubeconfig=/k"], &[("NODE_NAME", "node-a")]).unwrap().asked);
    assert_eq!((of_environment.node, of_environment.config.pods.node.as_str()), (None, "node-a"));
    let given = read(&["shop/web", "--kubeconfig=/k", "--node=node-b", "--assume", "--output=json"], &[]).unwrap();
    assert_eq!((given.assume, given.output), (true, Output::Json));
    assert_eq!(cluster(given.asked).node.as_deref(), Some("node-b"));
}
