//! Requests that wait for what is not known yet.

use super::*;

#[tokio::test(start_paused = true)]
async fn before_the_list_of_pods_a_refusal_says_so() {
    let (writer, pods) = pods();
    let policy = Policy::new(Rules::default(), NODE.parse::<CallerIdentity>().unwrap().into()).unwrap();
    let (proxy, sts, records) = proxy_with(policy, TokenMode::Optional, pods);
    let node = Node { proxy, writer: Arc::new(writer), sts, records: Mutex::new(records) };
    for (method, target) in [("GET", LIST), ("PUT", "/latest/api/token")] {
        assert_eq!(node.ask("10.0.0.1", method, target, &[(TTL, "60")]).await.status, 500, "it may be known a moment later");
    }
    assert!(node.counted(r#"rolegate_denials_total{reason="pods-not-listed"} 2"#));
    node.writer.write(|index| index.reset([]));
    assert_eq!(node.ask("10.0.0.1", "GET", LIST, &[]).await.status, 404);
    assert!(node.counted(r#"rolegate_denials_total{reason="unknown-pod"} 1"#));
}

/// A pod whose namespace is not known, on a node that needs it.
fn enforcing(known: &[(&str, &str, Option<&str>)]) -> Node {
    node_with(TokenMode::Optional, known, |rules| rules.restrictions = Restrictions::Enforce)
}

fn allowing_all() -> Namespace {
    Namespace { name: "default".to_owned(), allowed_roles: None, permitted: Some(".*".to_owned()) }
}

#[tokio::test(start_paused = true)]
async fn a_pod_that_takes_the_address_during_a_wait_gets_nothing_from_it() {
    let node = enforcing(&[WEB]);
    let later = async {
        tokio::time::sleep(WAIT / 2).await;
        node.writer.write(|index| {
            index.delete(&PodUid("uid-of-web-1".into()));
            index.apply(pod("next", "10.0.0.1", Some("next")));
            index.apply_namespace(allowing_all());
        });
    };
    let (answer, ()) = tokio::join!(node.ask("10.0.0.1", "GET", LIST, &[]), later);
    assert_eq!((answer.status, &*answer.body), (500, ""));
    assert!(node.counted(r#"rolegate_denials_total{reason="changed"} 1"#));
    assert_eq!(node.ask("10.0.0.1", "GET", LIST, &[]).await.body, "next", "its own is answered");
}

#[tokio::test(start_paused = true)]
async fn a_pod_and_what_is_around_it_are_waited_for_in_one_time() {
    for in_time in [true, false] {
        let node = enforcing(&[]);
        let later = async {
            tokio::time::sleep(WAIT * 3 / 4).await;
            node.writer.write(|index| index.apply(pod("web-1", "10.0.0.1", Some("web"))));
            tokio::time::sleep(if in_time { WAIT / 8 } else { WAIT / 2 }).await;
            node.writer.write(|index| index.apply_namespace(allowing_all()));
        };
        let asked = async {
            let began = tokio::time::Instant::now();
            let answer = node.ask("10.0.0.1", "GET", LIST, &[]).await;
            (answer.status, began.elapsed() <= WAIT + Duration::from_millis(10))
        };
        let (answer, ()) = tokio::join!(asked, later);
        assert_eq!(answer, (if in_time { 200 } else { 500 }, true));
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_not_known_yet_is_tried_again_and_what_is_denied_is_not() {
    let paths = ["", "web"].map(|role| format!("{LIST}{role}"));
    let accounts = node_with(TokenMode::Optional, &[("web-1", "10.0.0.1", None)], |rules| {
        rules.service_accounts = crate::config::ServiceAccountRoles::Own;
    });
    for (reason, node) in [("namespace-unknown", enforcing(&[WEB])), ("service-account-unknown", accounts)] {
        for path in &paths {
            assert_eq!(node.ask("10.0.0.1", "GET", path, &[]).await.status, 500, "{reason} {path}");
        }
        assert!(node.counted(&format!(r#"rolegate_denials_total{{reason="{reason}"}} 2"#)), "{reason}");
    }
    let denied = enforcing(&[WEB]);
    denied.writer.write(|index| index.apply_namespace(Namespace { name: "default".to_owned(), allowed_roles: None, permitted: None }));
    for path in &paths {
        assert_eq!(denied.ask("10.0.0.1", "GET", path, &[]).await.status, 404, "{path}");
    }
}
