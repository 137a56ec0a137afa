#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test says loudly what failed")]
use super::*;

fn read(arguments: &[&str], env: &[(&str, &str)]) -> Result<ExplainConfig, ConfigError> {
    let command = crate::cli::command();
    let matches = command.try_get_matches_from([&["rolegate", "explain"], arguments].concat()).unwrap();
    let (_, matches) = matches.subcommand().unwrap();
    let env: std::collections::HashMap<_, _> = env.iter().copied().collect();
    ExplainConfig::from_source(matches, &|name| env.get(name).map(|text| (*text).to_owned()))
}

#[test]
fn names_of_pods_are_read_as_kubernetes_writes_them() {
    let good: PodName = "shop/web-0.a".parse().unwrap();
    assert_eq!((good.namespace(), good.name(), good.to_string().as_str()), ("shop", "web-0.a", "shop/web-0.a"));
    let long = format!("shop/{}", "x".repeat(254));
    for bad in ["", "web", "shop/", "/web", "shop/web/0", "Shop/web", "shop/we b", "shop/../x", "shop/%2e", "shop/web&assume=true", &long] {
        assert_eq!(bad.parse::<PodName>(), Err(NotAPodName), "{bad}");
    }
}

#[test]
fn the_command_line_chooses_who_is_asked() {
    let asked = |arguments: &[&str], env: &[(&str, &str)]| read(&[&["shop/web"], arguments].concat(), env).unwrap().asked;
    let daemon = |authority: &'static str| Asked::Daemon(Authority::from_static(authority));
    assert_eq!(asked(&[], &[]), daemon("127.0.0.1:9543"));
    assert_eq!(asked(&["--metrics-port=1234"], &[]), daemon("127.0.0.1:1234"));
    assert_eq!(asked(&[], &[("ROLEGATE_METRICS_PORT", "1235")]), daemon("127.0.0.1:1235"));
    assert_eq!(asked(&["--admin-url=http://localhost:1/"], &[]), daemon("localhost:1"));
    // In the daemon's own container its variables are there for itself.
    assert_eq!(asked(&[], &[("ROLEGATE_API_SERVER", "https://10.0.0.1"), ("ROLEGATE_KUBECONFIG", "/k")]), daemon("127.0.0.1:9543"));
    assert_eq!(asked(&["--kubeconfig=/k"], &[("NODE_NAME", "a")]), Asked::Cluster);
    assert_eq!(asked(&["--api-server=https://10.0.0.1"], &[]), Asked::Cluster);
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
    let of_environment = read(&["shop/web"], &[("NODE_NAME", "node-a")]).unwrap();
    assert_eq!((of_environment.node, of_environment.config.pods.node.as_str()), (None, "node-a"));
    let given = read(&["shop/web", "--node=node-b", "--assume", "--output=json"], &[]).unwrap();
    assert_eq!((given.node.as_deref(), given.assume, given.output), (Some("node-b"), true, Output::Json));
}
