//! The daemon's own identity becomes known while pods ask already.

use super::*;

const FOREIGN: &str = "arn:aws-cn:iam::111122223333:role/web";

/// What a pod with this role is answered if the node's identity becomes known while STS is asked.
async fn asked_early(role: &str, path: &str, becomes_known: bool) -> (Answer, Node) {
    let identity = NodeIdentity::default();
    let node = node_of(identity.clone(), TokenMode::Optional, &[("web-1", "10.0.0.1", Some(role))], |rules| rules.base = None);
    if becomes_known {
        *node.sts.meanwhile.lock().unwrap() = Some(Box::new(move || assert!(identity.set_caller(NODE.parse().unwrap()))));
    }
    (node.ask("10.0.0.1", "GET", &format!("{LIST}{path}"), &[]).await, node)
}

#[tokio::test(start_paused = true)]
async fn what_was_decided_before_the_node_was_known_is_decided_again() {
    for (role, path, reason) in [("arn:aws:iam::111122223333:role/nodes", "nodes", "node-role"), (FOREIGN, "web", "other-partition")] {
        let (answer, node) = asked_early(role, path, true).await;
        assert_eq!((answer.status, answer.body.as_str()), (404, ""), "{role}");
        assert!(node.counted(&format!(r#"rolegate_denials_total{{reason="{reason}"}} 1"#)), "{role}");
        // And before STS from then on.
        assert_eq!(node.ask("10.0.0.1", "GET", &format!("{LIST}{path}"), &[]).await.status, 404);
        assert_eq!(node.sts.calls.load(Ordering::SeqCst), 1, "{role}");
    }
    let (answer, _) = asked_early("arn:aws:iam::111122223333:role/web", "web", true).await;
    assert_eq!(answer.status, 200, "{answer:?}");
}

#[tokio::test(start_paused = true)]
async fn a_failure_of_sts_is_told_as_one_while_the_node_is_not_known() {
    let (answer, _) = asked_early("arn:aws:iam::111122223333:role/broken", "broken", false).await;
    assert_eq!(answer.status, 500, "an SDK tries again: {answer:?}");
}

#[tokio::test(start_paused = true)]
async fn nothing_is_handed_out_while_the_node_is_not_known() {
    let (answer, node) = asked_early("arn:aws:iam::111122223333:role/web", "web", false).await;
    assert_eq!((answer.status, answer.body.as_str()), (500, ""));
    assert_eq!(node.sts.calls.load(Ordering::SeqCst), 1);
}

/// The daemon's keys become those of another role while STS is asked for that role, or its instance's role becomes known.
#[tokio::test(start_paused = true)]
async fn what_was_decided_by_an_older_identity_is_decided_by_the_newer() {
    for of_instance in [false, true] {
        let identity = NodeIdentity::from(NODE.parse::<CallerIdentity>().unwrap());
        let web = [("web-1", "10.0.0.1", Some("web"))];
        let node = node_of(identity.clone(), TokenMode::Optional, &web, |_| {});
        *node.sts.meanwhile.lock().unwrap() = Some(Box::new(move || match of_instance {
            true => assert!(identity.set_instance_role(Some("arn:aws:iam::111122223333:role/web".parse().unwrap()))),
            false => assert!(identity.set_caller("arn:aws:sts::111122223333:assumed-role/web/s".parse().unwrap())),
        }));
        let answer = node.ask("10.0.0.1", "GET", &format!("{LIST}web"), &[]).await;
        assert_eq!((answer.status, answer.body.as_str()), (404, ""), "{of_instance}");
        assert!(node.counted(r#"rolegate_denials_total{reason="node-role"} 1"#), "{of_instance}");
    }
}
