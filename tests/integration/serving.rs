//! Tests of the main task: each pod gets its own role, in the protocol of the metadata service, and nothing else.

use rolegate_lab::imds::Imds;
use rolegate_lab::sts::Role;

use crate::world::{Fakes, ROLES, TOKEN, TOKEN_TTL, World, arn, ip, pod};

#[test]
fn each_pod_gets_the_credentials_of_its_own_role() {
    let world = World::start();
    for (pod, from, role) in [("web", ip(2), "web-role"), ("db", ip(3), "db-role")] {
        assert_eq!(world.get(from, ROLES).text(), role);
        assert_eq!(world.get(from, ROLES.trim_end_matches('/')).text(), role);
        let document = world.document(from, role);
        let issued = world.fakes.sts.issued();
        let issued = issued.iter().find(|issued| issued.role_arn == arn(role)).unwrap();
        assert_eq!(issued.session_name, pod);
        assert_eq!(document["AccessKeyId"], *issued.access_key_id);
        assert_eq!(document["SecretAccessKey"], *issued.secret_access_key);
        assert_eq!(document["Token"], *issued.session_token);
        assert_eq!(document["Expiration"], issued.expires_at.strftime("%Y-%m-%dT%H:%M:%SZ").to_string());
        assert_eq!(document["Code"], "Success");
        assert_eq!(document["Type"], "AWS-HMAC");
        let info: serde_json::Value = serde_json::from_slice(&world.get(from, "/latest/meta-data/iam/info").body).unwrap();
        assert_eq!(info["InstanceProfileArn"], format!("arn:aws:iam::111122223333:instance-profile/{role}"));
    }
    assert_eq!(world.fakes.sts.assume_role_calls(), 2, "each session is requested once");
}

#[test]
fn answers_look_like_those_of_the_metadata_service() {
    let world = World::start();
    let token = world.new_token(ip(2));
    assert_eq!((token.status, token.header(TOKEN_TTL)), (200, Some("21600")));
    let list = world.request(ip(2), "GET", ROLES, &[(TOKEN, &token.text())]);
    assert_eq!(list.header("server"), Some("EC2ws"));
    assert_eq!(list.header("content-type"), Some("text/plain"));
    assert_eq!(list.header("content-length"), Some("8"));
    let head = world.request(ip(2), "HEAD", ROLES, &[(TOKEN, &token.text())]);
    assert_eq!((head.status, head.header("content-length"), head.body.len()), (200, Some("8"), 0));
    let refused = world.request(ip(2), "GET", "/latest/user-data", &[(TOKEN, &token.text())]);
    assert_eq!((refused.status, refused.header("content-length"), refused.body.len()), (404, Some("0"), 0));
}

#[test]
fn pods_without_a_role_and_unknown_addresses_get_nothing() {
    let world = World::start_with(|setup| setup.argument("--backoff-max-elapsed-time=100ms"));
    assert_eq!(world.new_token(ip(4)).status, 200, "the pod is known, so its SDK must report that it has no role");
    for target in [ROLES, "/latest/meta-data/iam/security-credentials/web-role", "/latest/meta-data/iam/info"] {
        let answer = world.get(ip(4), target);
        assert_eq!((answer.status, answer.body.len()), (404, 0), "{target}");
        let answer = world.request(ip(200), "GET", target, &[]);
        assert_eq!((answer.status, answer.body.len()), (404, 0), "{target}");
    }
    assert_eq!(world.new_token(ip(200)).status, 500);
    assert_eq!(world.fakes.sts.assume_role_calls(), 0);
    assert_eq!(world.metric(r#"rolegate_denials_total{reason="no-role"}"#), 3.0);
    assert_eq!(world.metric(r#"rolegate_denials_total{reason="unknown-pod"}"#), 4.0);
    world.daemon.wait_for_log(|line| line["reason"] == "no-role" && line["pod"] == "plain" && line["namespace"] == "shop").unwrap();
}

#[test]
fn a_pod_gets_no_role_but_its_own() {
    let world = World::start();
    for role in ["db-role", "WEB-ROLE", "web-role2", "web-rol", "NODE-ROLE-MUST-NEVER-LEAK"] {
        let answer = world.credentials(ip(2), role);
        assert_eq!((answer.status, answer.body.len()), (404, 0), "{role}");
    }
    let token = world.new_token(ip(2)).text();
    assert_eq!(world.request(ip(3), "GET", ROLES, &[(TOKEN, &token)]).status, 401, "another pod's token");
    assert_eq!(world.fakes.sts.assume_role_calls(), 0);
}

#[test]
fn imdsv1_is_served_only_if_the_operator_allows_it() {
    let strict = World::start();
    assert_eq!(strict.request(ip(2), "GET", ROLES, &[]).status, 401);
    let lenient = World::start_with(|setup| setup.argument("--imds-tokens=optional"));
    assert_eq!(lenient.request(ip(2), "GET", ROLES, &[]).text(), "web-role");
    assert_eq!(lenient.request(ip(2), "GET", ROLES, &[(TOKEN, "wrong")]).status, 401, "a token that is sent must be valid");
    assert_eq!(lenient.get(ip(2), ROLES).text(), "web-role");
}

#[test]
fn nothing_of_the_node_is_served_or_requested() {
    let world = World::start();
    let node_role = format!("{ROLES}NODE-ROLE-MUST-NEVER-LEAK");
    for target in [
        node_role.as_str(),
        "/latest/user-data",
        "/latest/dynamic/instance-identity/pkcs7",
        "/latest/meta-data/identity-credentials/ec2/security-credentials/ec2-instance",
        "/latest/meta-data/iam/security-credentials-extended/NODE-ROLE-MUST-NEVER-LEAK",
        "/latest/meta-data/public-keys/",
        "/latest/meta-data/ami-id",
        "/latest/meta-data/tags/instance/cluster",
        "/latest/meta-data/iam%2fsecurity-credentials%2fNODE-ROLE-MUST-NEVER-LEAK",
        "/latest/../latest/user-data",
        "//latest//user-data",
        "/LATEST/meta-data/iam/security-credentials/",
    ] {
        let answer = world.get(ip(2), target);
        assert!([400, 404].contains(&answer.status) && answer.body.is_empty(), "{target}: {} {:?}", answer.status, answer.text());
        assert_eq!(Imds::node_credentials_leaked_in(answer.text().as_bytes()), None);
    }
    world.assert_that_the_table_alone_was_asked_for();
}

#[test]
fn requests_include_the_external_id_and_the_session_name() {
    let fakes = Fakes::new();
    fakes.sts.add_role(Role::new(arn("partner")).external_id("shop-42"));
    let annotated = pod("with-id", ip(2), Some("partner")).annotation("iam.amazonaws.com/external-id", "shop-42");
    fakes.api.apply(rolegate_lab::kube::Resource::Pods, annotated.annotation("iam.amazonaws.com/session-name", "billing").build());
    fakes.api.apply(rolegate_lab::kube::Resource::Pods, pod("without-id", ip(3), Some("partner")).build());
    let setup = fakes.setup();
    let world = fakes.into_world(&setup);
    world.document(ip(2), "partner");
    let refused = world.credentials(ip(3), "partner");
    assert_eq!((refused.status, refused.body.len()), (500, 0), "another pod's session is not served without its external id");
    let calls = world.fakes.sts.calls();
    let calls: Vec<_> = calls.iter().filter(|call| call.action == "AssumeRole").collect();
    assert_eq!(calls[0].session_name.as_deref(), Some("billing"));
    assert_eq!(calls[0].external_id.as_deref(), Some("shop-42"));
    assert_eq!(calls[0].duration_seconds, Some(3600));
    assert_eq!(calls[0].region.as_deref(), Some("eu-central-1"));
    assert_eq!((calls[1].session_name.as_deref(), calls[1].external_id.as_deref()), (Some("without-id"), None));
}

#[test]
fn only_known_pods_without_an_annotation_get_the_default() {
    let fakes = Fakes::new();
    fakes.sts.add_role(Role::new(arn("default-role")));
    fakes.pod("plain", ip(2), None);
    fakes.pod("broken", ip(3), Some("not a role"));
    fakes.pod("empty", ip(4), Some(""));
    fakes.pod("web", ip(5), Some("web-role"));
    let setup = fakes.setup().argument("--default-role=default-role").argument("--backoff-max-elapsed-time=50ms");
    let world = fakes.into_world(&setup);
    assert_eq!(world.get(ip(2), ROLES).text(), "default-role");
    for from in [ip(3), ip(4), ip(6)] {
        assert_eq!(world.get(from, ROLES).status, 404, "{from}");
    }
    assert_eq!(world.get(ip(5), ROLES).text(), "web-role", "one pod's annotation does not affect another");
    let log = world.daemon.wait_for_log(|line| line["pod"] == "broken").unwrap();
    assert_eq!(log["reason"], "role-spaces");
    assert!(log["advice"].as_str().unwrap().contains("white space"), "{log}");
}
