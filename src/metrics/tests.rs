use super::*;

#[tokio::test(start_paused = true)]
async fn watch_silence_grows_until_the_next_sign_of_life() {
    let metrics = Metrics::new();
    let told = |seconds| String::from_utf8_lossy(&metrics.render()).contains(&format!("last_sign_of_life_seconds {seconds}\n"));
    tokio::time::advance(Duration::from_secs(61)).await;
    assert!(told(61));
    metrics.watch_alive();
    assert!(told(0));
    tokio::time::advance(Duration::from_secs(7)).await;
    assert!(told(7));
}

#[test]
fn series_of_a_namespace_go_with_its_last_pod() {
    let metrics = Metrics::new();
    let keep = |names: &[&str]| metrics.keep_namespaces(&names.iter().map(|name| (*name).to_owned()).collect());
    let told = |name: &str| String::from_utf8_lossy(&metrics.render()).matches(&format!("namespace=\"{name}\"")).count();
    keep(&["shop", "tools"]);
    for name in ["shop", "tools"] {
        metrics.without_token(name, true);
        metrics.without_token(name, false);
    }
    keep(&["shop", "tools", "new"]);
    assert_eq!((told("shop"), told("tools")), (2, 2));
    keep(&["tools"]);
    assert_eq!((told("shop"), told("tools")), (0, 2));
    keep(&["shop", "tools"]);
    metrics.without_token("shop", true);
    assert_eq!(told("shop"), 1, "it begins anew");
}

#[test]
fn recorded_values_are_rendered() {
    let metrics = Metrics::new();
    metrics.route("credentials").answered(200, Duration::from_millis(3));
    metrics.route("credentials").answered(418, Duration::from_millis(3));
    metrics.denied("no-role");
    let open = metrics.connection();
    let text = String::from_utf8_lossy(&metrics.render()).into_owned();
    for line in [
        r#"rolegate_http_requests_total{code="200",route="credentials"} 1"#,
        r#"rolegate_http_requests_total{code="other",route="credentials"} 1"#,
        r#"rolegate_denials_total{reason="no-role"} 1"#,
        "rolegate_connections 1",
    ] {
        assert!(text.contains(line), "{line} is not in\n{text}");
    }
    drop(open);
    assert!(String::from_utf8_lossy(&metrics.render()).contains("rolegate_connections 0"));
}
