//! Credentials by service account token: which pods get them, and what becomes of tokens that others send.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use jiff::{SignedDuration, Timestamp};
use rolegate::clock::Clock;
use rolegate_lab::kube::{Attack, PodBuilder, PodToken, Resource, SigningKey, Verb, service_account};
use rolegate_lab::player::{self, Response};
use rolegate_lab::sts::Role;
use serde_json::{Value, json};

use crate::world::{Fakes, NODE, World, arn, connect, ip, pod};

/// The node's own address, from which pods in the node's network connect.
const NODE_IP: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

/// The UID of the pod with this number.
fn uid(number: u8) -> String {
    format!("5b1c7a90-2f4e-4d36-9a8b-0000000000{number:02x}")
}

fn now() -> Timestamp {
    Clock::system().now()
}

/// A daemon with two pods and two pods in the node's network, which have a role each.
struct Identity {
    world: World,
    address: SocketAddr,
}

impl Identity {
    fn start(arguments: &[&str]) -> Self {
        let fakes = Fakes::new();
        for (number, name, role, host_network) in
            [(2, "web", "web-role", false), (3, "db", "db-role", false), (4, "agent", "agent-role", true), (5, "proxy", "proxy-role", true)]
        {
            fakes.sts.add_role(Role::new(arn(role)));
            let address = if host_network { NODE_IP } else { ip(number) };
            let mut object = pod(name, address, Some(role)).uid(&uid(number)).host_network(host_network).build();
            let token = json!({ "serviceAccountToken": { "audience": "pods.eks.amazonaws.com", "path": "token" } });
            object["spec"]["volumes"] = json!([{ "name": "token", "projected": { "sources": [token] } }]);
            fakes.api.apply(Resource::Pods, object);
        }
        let mut setup = fakes
            .setup()
            .argument("--pod-identity")
            .argument("--pod-identity-addresses=127.0.0.1:0")
            .argument("--pod-identity-host-port=0")
            .argument("--backoff-max-elapsed-time=200ms");
        for argument in arguments {
            setup = setup.argument(*argument);
        }
        let world = fakes.into_world(&setup);
        let line = world.daemon.wait_for_event("pod-identity-listening").unwrap();
        let address = line["address"].as_str().unwrap().parse().unwrap();
        Self { world, address }
    }

    fn token(&self, number: u8, name: &str) -> String {
        self.world.fakes.api.token_issuer().issue(&PodToken::new("shop", name, &uid(number)))
    }

    fn request(&self, from: IpAddr, headers: &[(&str, &str)]) -> Response {
        let host = self.address.to_string();
        let default = if headers.iter().any(|(name, _)| *name == "Host") { None } else { Some(("Host", host.as_str())) };
        let headers: Vec<_> = default.into_iter().chain(headers.iter().copied()).collect();
        player::request(connect(from, self.address).unwrap(), "GET", "/v1/credentials", &headers).unwrap()
    }

    fn send(&self, from: IpAddr, token: &str) -> Response {
        self.request(from, &[("Authorization", token)])
    }

    /// Returns how often the daemon has fetched the keys of the issuer.
    fn key_fetches(&self) -> usize {
        self.world.fakes.api.requests().iter().filter(|request| request.path == "/openid/v1/jwks").count()
    }

    /// Returns a token that names a key which no issuer has.
    fn of_unknown_key(&self, token: &PodToken) -> String {
        let key = SigningKey::es256();
        key.sign(&key.header(), &token.claims(&self.world.fakes.api.token_issuer().url()))
    }

    /// Returns the document for this token.
    fn document(&self, from: IpAddr, token: &str) -> Value {
        let response = self.send(from, token);
        assert_eq!(response.status, 200, "{}\n{}", response.text(), self.world.daemon.log());
        serde_json::from_slice(&response.body).unwrap()
    }

    /// Checks that a token is refused with this status, code and reason, and that STS is not asked.
    #[track_caller]
    fn assert_refused(&self, from: IpAddr, token: &str, expected: (u16, &str), reason: &str) {
        let (metric, asked) = (format!(r#"rolegate_denials_total{{reason="{reason}"}}"#), self.world.fakes.sts.calls().len());
        let before = self.world.daemon.metric(None, &metric).unwrap_or_default();
        let response = self.send(from, token);
        let error: Value = serde_json::from_slice(&response.body).unwrap();
        assert_eq!((response.status, error["Code"].as_str().unwrap()), expected, "{error}");
        assert_eq!(error.as_object().unwrap().keys().collect::<Vec<_>>(), ["Code", "Message"]);
        assert!(!response.text().contains("shop") && !response.text().contains("role"), "{error}");
        assert!((self.world.metric(&metric) - before - 1.0).abs() < f64::EPSILON, "{reason}\n{}", self.world.daemon.log());
        let asked_for_pods = self.world.fakes.sts.calls().len() - asked;
        assert_eq!(asked_for_pods, 0, "STS was asked for a refused token");
    }

    fn role_of(&self, document: &Value) -> String {
        let issued = self.world.fakes.sts.issued();
        let key = document["AccessKeyId"].as_str().unwrap();
        issued.iter().find(|issued| issued.access_key_id == key).unwrap().role_arn.clone()
    }
}

const DENIED: (u16, &str) = (403, "AccessDeniedException");
const UNAVAILABLE: (u16, &str) = (503, "ServiceUnavailableException");

#[test]
fn each_pod_gets_its_own_role_and_one_session_for_both_protocols() {
    let identity = Identity::start(&[]);
    for (number, name, role) in [(2, "web", "web-role"), (3, "db", "db-role")] {
        let document = identity.document(ip(number), &identity.token(number, name));
        assert_eq!(
            document.as_object().unwrap().keys().map(String::as_str).collect::<Vec<_>>(),
            ["AccessKeyId", "AccountId", "Expiration", "SecretAccessKey", "Token"]
        );
        assert_eq!(document["AccountId"], "111122223333");
        assert!(document["Expiration"].as_str().unwrap().parse::<Timestamp>().unwrap() > now());
        assert_eq!(identity.role_of(&document), arn(role));
        let metadata = identity.world.document(ip(number), role);
        for field in ["AccessKeyId", "SecretAccessKey", "Token", "Expiration"] {
            assert_eq!(metadata[field], document[field], "one session serves both");
        }
    }
    assert_eq!(identity.world.metric(r#"rolegate_http_requests_total{code="200",route="pod-identity"}"#), 2.0);
}

/// The document is that of the target role, in another account, and the metadata service serves the same session.
#[test]
fn a_pod_with_a_target_role_gets_its_session() {
    const PARTNER: &str = "arn:aws:iam::444455556666:role/partner";
    let identity = Identity::start(&[]);
    let fakes = &identity.world.fakes;
    fakes.sts.add_role(Role::new(PARTNER).trusted_by([arn("web-role")]));
    let mut object = pod("web", ip(2), Some("web-role")).uid(&uid(2)).annotation("iam.amazonaws.com/target-role", PARTNER).build();
    let token = json!({ "serviceAccountToken": { "audience": "pods.eks.amazonaws.com", "path": "token" } });
    object["spec"]["volumes"] = json!([{ "name": "token", "projected": { "sources": [token] } }]);
    fakes.api.apply(Resource::Pods, object);
    identity.world.eventually(|world| world.get(ip(2), crate::world::ROLES).text(), |text| text == "partner");
    let document = identity.document(ip(2), &identity.token(2, "web"));
    assert_eq!(document["AccountId"], "444455556666");
    assert_eq!(identity.role_of(&document), PARTNER);
    assert_eq!(identity.world.document(ip(2), "partner")["AccessKeyId"], document["AccessKeyId"]);
    assert_eq!(identity.world.fakes.sts.assume_role_calls(), 2, "both protocols share the session");
}

#[test]
fn the_report_names_the_protocols_that_a_workload_used() {
    let identity = Identity::start(&["--imds-tokens=optional"]);
    identity.document(ip(2), &identity.token(2, "web"));
    identity.assert_refused(ip(2), &identity.token(3, "db"), DENIED, "token-other-pod");
    identity.world.document(ip(2), "web-role");
    assert_eq!(identity.world.request(ip(3), "GET", "/latest/meta-data/iam/security-credentials/db-role", &[]).status, 200);
    assert_eq!(identity.world.request(ip(3), "GET", "/latest/user-data", &[]).status, 404);
    identity.document(NODE_IP, &identity.token(4, "agent"));
    let report = identity.world.daemon.get(None, "/report?format=json").unwrap();
    let report: Value = serde_json::from_slice(&report.body).unwrap();
    let used = |one: &Value| {
        let text = |name: &str| one[name].as_str().unwrap().to_owned();
        (text("name"), text("protocol"), one["requests"].as_u64().unwrap(), one["credentials"].as_u64().unwrap())
    };
    let used: Vec<_> = report["protocols"].as_array().unwrap().iter().map(used).collect();
    let wanted = [("agent", "pod-identity", 1, 1), ("db", "imdsv1", 2, 1), ("web", "imdsv2", 2, 1), ("web", "pod-identity", 1, 1)];
    assert_eq!(used, wanted.map(|(name, protocol, requests, credentials)| (name.to_owned(), protocol.to_owned(), requests, credentials)));
}

#[test]
fn pods_in_the_nodes_network_are_told_apart_by_their_tokens() {
    let identity = Identity::start(&["--namespace-restrictions=false"]);
    for (number, name, role) in [(4, "agent", "agent-role"), (5, "proxy", "proxy-role")] {
        let document = identity.document(NODE_IP, &identity.token(number, name));
        assert_eq!(identity.role_of(&document), arn(role));
    }
    // Neither may use the token of the other kind of pod.
    identity.assert_refused(NODE_IP, &identity.token(2, "web"), DENIED, "token-other-pod");
    identity.assert_refused(ip(2), &identity.token(4, "agent"), DENIED, "token-other-pod");
}

#[test]
fn pods_in_the_nodes_network_can_be_denied() {
    let identity = Identity::start(&["--host-network-pods=deny", "--host-network-exempt=shop/exempt"]);
    identity.assert_refused(NODE_IP, &identity.token(4, "agent"), DENIED, "host-network");
    identity.document(ip(2), &identity.token(2, "web"));
}

#[test]
fn a_stolen_token_is_of_no_use_in_another_pod() {
    let identity = Identity::start(&[]);
    let token = identity.token(2, "web");
    identity.document(ip(2), &token);
    identity.assert_refused(ip(3), &token, DENIED, "token-other-pod");
    // No pod has this address.
    identity.assert_refused(ip(77), &token, DENIED, "unknown-pod");
    let line = identity.world.daemon.events("service-account-token-refused").pop().unwrap();
    assert_eq!((line["pod"].as_str(), line["reason"].as_str()), (Some("db"), Some("token-other-pod")), "the thief is named: {line}");
    assert_eq!((line["token_namespace"].as_str(), line["token_pod"].as_str()), (Some("shop"), Some("web")), "and the victim: {line}");
    assert!(!identity.world.daemon.log().contains(&token));
}

#[test]
fn forged_tokens_are_refused() {
    let identity = Identity::start(&[]);
    let issuer = identity.world.fakes.api.token_issuer();
    let claims = PodToken::new("shop", "web", &uid(2));
    for attack in Attack::ALL {
        let response = identity.send(ip(2), &issuer.forge(attack, &claims));
        assert!(matches!(response.status, 400 | 403), "{attack:?}: {} {}", response.status, response.text());
    }
    assert_eq!(identity.world.fakes.sts.issued().len(), 0);
    // The pod's own token still works.
    identity.document(ip(2), &identity.token(2, "web"));
}

#[test]
fn tokens_of_another_time_place_or_purpose_are_refused() {
    let identity = Identity::start(&[]);
    let issuer = identity.world.fakes.api.token_issuer();
    let web = || PodToken::new("shop", "web", &uid(2));
    let hours = |hours| now() - SignedDuration::from_hours(hours);
    let cases = [
        (web().issued_at(hours(2)), (400, "ExpiredTokenException"), "token-expired"),
        (web().issued_at(hours(-2)), (400, "ExpiredTokenException"), "token-not-yet-valid"),
        (web().audiences(&["https://kubernetes.default.svc"]), DENIED, "token-wrong-audience"),
        (web().audiences(&["pods.eks.amazonaws.com.attacker.example"]), DENIED, "token-wrong-audience"),
        (web().issuer("https://other.example"), DENIED, "token-wrong-issuer"),
        (web().not_of_pod(), DENIED, "token-not-of-pod"),
        (web().node("node-b", None), DENIED, "token-other-node"),
    ];
    for (token, expected, reason) in cases {
        identity.assert_refused(ip(2), &issuer.issue(&token), expected, reason);
    }
    // Before Kubernetes 1.30, tokens do not name the node.
    identity.document(ip(2), &issuer.issue(&web().before_node_info()));
    identity.document(ip(2), &issuer.issue(&web().node(NODE, None).audiences(&["other", "pods.eks.amazonaws.com"])));
}

#[test]
fn requests_that_no_sdk_sends_are_refused() {
    let identity = Identity::start(&[]);
    let token = identity.token(2, "web");
    let status = |headers: &[(&str, &str)]| {
        let response = identity.request(ip(2), headers);
        let error: Value = serde_json::from_slice(&response.body).unwrap();
        (response.status, error["Code"].as_str().unwrap().to_owned())
    };
    assert_eq!(status(&[]), (400, "InvalidTokenException".to_owned()));
    assert_eq!(identity.world.metric(r#"rolegate_denials_total{reason="token-missing"}"#), 1.0);
    assert_eq!(identity.world.metric(r#"rolegate_denials_total{reason="token-not-compact"}"#), 0.0);
    // An SDK whose token file is empty.
    assert_eq!(status(&[("Authorization", "")]), (400, "InvalidTokenException".to_owned()));
    assert_eq!(identity.world.metric(r#"rolegate_denials_total{reason="token-not-compact"}"#), 1.0);
    assert_eq!(status(&[("Authorization", "Bearer"), ("Authorization", &token)]), (400, "InvalidTokenException".to_owned()));
    assert_eq!(status(&[("Authorization", &format!("Bearer {token}"))]), (400, "InvalidTokenException".to_owned()));
    assert_eq!(status(&[("Authorization", &"a".repeat(9000))]), (400, "InvalidTokenException".to_owned()));
    assert_eq!(status(&[("Authorization", &token), ("Host", "attacker.example")]), (403, "AccessDeniedException".to_owned()));
    assert_eq!(status(&[("Authorization", &token), ("X-Forwarded-For", "10.0.0.1")]), (403, "AccessDeniedException".to_owned()));
    assert_eq!(status(&[("Authorization", &token), ("Transfer-Encoding", "chunked")]).0, 400);
    // The other protocol is not served here, and this one not there.
    let metadata = player::request(connect(ip(2), identity.address).unwrap(), "PUT", "/latest/api/token", &[("Host", "169.254.169.254")]);
    assert_eq!(metadata.unwrap().status, 403);
    let elsewhere = identity.world.request(ip(2), "GET", "/v1/credentials", &[("Authorization", &token)]);
    assert_eq!(elsewhere.status, 401);
    assert_eq!(identity.world.fakes.sts.issued().len(), 0);
}

#[test]
fn a_token_ends_with_its_pod() {
    let identity = Identity::start(&[]);
    let token = identity.token(2, "web");
    identity.document(ip(2), &token);
    identity.world.fakes.delete_pod("web");
    identity.world.eventually(|_| identity.send(ip(2), &token).status, |status| *status == 403);
    // The next pod at this address does not get the role of the first one by its token.
    identity.world.fakes.api.apply(Resource::Pods, pod("web", ip(2), Some("web-role")).uid(&uid(9)).build());
    identity.world.eventually(|world| world.credentials(ip(2), "web-role").status, |status| *status == 200);
    identity.assert_refused(ip(2), &token, DENIED, "token-other-pod");
    identity.document(ip(2), &identity.token(9, "web"));
}

#[test]
fn keys_are_rotated_without_a_failed_request() {
    let identity = Identity::start(&[]);
    let issuer = identity.world.fakes.api.token_issuer();
    let (old, first) = (issuer.signing_key(), identity.token(2, "web"));
    identity.document(ip(2), &first);
    issuer.rotate(SigningKey::es256());
    identity.document(ip(2), &identity.token(2, "web"));
    identity.document(ip(2), &first);
    assert_ne!(old.id(), issuer.signing_key().id());
}

#[test]
fn tokens_of_unknown_keys_cause_few_fetches() {
    let identity = Identity::start(&["--namespace-restrictions=false"]);
    let web = || PodToken::new("shop", "web", &uid(2));
    let began = identity.key_fetches();
    // None of these is even claimed to be the sender's.
    let of_other_node = identity.of_unknown_key(&web().node("node-b", None));
    identity.assert_refused(ip(2), &of_other_node, DENIED, "token-unknown-key");
    identity.assert_refused(ip(3), &identity.of_unknown_key(&web()), DENIED, "token-unknown-key");
    identity.assert_refused(ip(77), &identity.of_unknown_key(&web()), DENIED, "unknown-pod");
    identity.assert_refused(NODE_IP, &identity.of_unknown_key(&web()), DENIED, "token-unknown-key");
    let unknown = PodToken::new("shop", "nobody", &uid(99));
    identity.assert_refused(NODE_IP, &identity.of_unknown_key(&unknown), UNAVAILABLE, "token-keys-outdated");
    assert_eq!(identity.key_fetches(), began);
    identity.assert_refused(ip(2), &identity.of_unknown_key(&web()), DENIED, "token-unknown-key");
    assert_eq!(identity.key_fetches(), began + 1);
    for _ in 0..3 {
        identity.assert_refused(ip(2), &identity.of_unknown_key(&web()), UNAVAILABLE, "token-fetches-limited");
    }
    assert_eq!(identity.key_fetches(), began + 1);
    // A pod of another namespace gets a token of a key that the cluster begins to use.
    identity.world.fakes.sts.add_role(Role::new(arn("vault-role")));
    let vault = PodBuilder::new("bank", "vault").node(NODE).ip(&ip(6).to_string()).uid(&uid(6));
    identity.world.fakes.api.apply(Resource::Pods, vault.annotation("iam.amazonaws.com/role", "vault-role").build());
    let issuer = identity.world.fakes.api.token_issuer();
    issuer.rotate(SigningKey::es256());
    let token = issuer.issue(&PodToken::new("bank", "vault", &uid(6)));
    identity.world.eventually(|_| identity.send(ip(6), &token).status, |status| *status == 200);
    identity.document(ip(2), &identity.token(2, "web"));
    assert_eq!(identity.key_fetches(), began + 2);
}

const REVIEWS: &str = "/apis/authentication.k8s.io/v1/tokenreviews";

#[test]
fn with_reviews_the_api_must_confirm_each_token() {
    let identity = Identity::start(&["--pod-identity-token-review"]);
    let issuer = identity.world.fakes.api.token_issuer();
    let reviews = || identity.world.fakes.api.requests().into_iter().filter(|request| request.path == REVIEWS).collect::<Vec<_>>();
    // Tokens of one second differ in their lifetime.
    let web = |seconds| issuer.issue(&PodToken::new("shop", "web", &uid(2)).valid_for(SignedDuration::from_secs(seconds)));
    let first = web(3600);
    for _ in 0..3 {
        identity.document(ip(2), &first);
    }
    let asked = reviews();
    assert_eq!(asked.len(), 1, "what the API said is remembered");
    assert_eq!(asked[0].body["spec"], json!({ "token": first, "audiences": ["pods.eks.amazonaws.com"] }));
    // Tokens that cannot be right are not reviewed.
    identity.assert_refused(ip(3), &first, DENIED, "token-other-pod");
    identity.assert_refused(
        ip(2),
        &issuer.forge(Attack::NoSignature, &PodToken::new("shop", "web", &uid(2))),
        (400, "InvalidTokenException"),
        "token-unsupported-algorithm",
    );
    assert_eq!(reviews().len(), 1);
    let revoked = web(3000);
    issuer.revoke(&revoked);
    for _ in 0..2 {
        identity.assert_refused(ip(2), &revoked, DENIED, "token-review-refused");
    }
    assert_eq!(reviews().len(), 2);
    // The service account was replaced, which the token does not show.
    identity.world.fakes.api.apply(Resource::ServiceAccounts, service_account("shop", "default", &[]));
    identity.assert_refused(ip(2), &web(2000), DENIED, "token-review-refused");
    assert_eq!(identity.world.metric(r#"rolegate_token_reviews_total{outcome="refused"}"#), 2.0);
    assert!(!identity.world.daemon.log().contains(&revoked));
}

#[test]
fn without_reviews_only_tokens_that_were_confirmed_before_work() {
    let identity = Identity::start(&["--pod-identity-token-review"]);
    let known = identity.token(2, "web");
    identity.document(ip(2), &known);
    identity.world.fakes.api.deny(Verb::Create, "tokenreviews");
    identity.assert_refused(ip(3), &identity.token(3, "db"), UNAVAILABLE, "token-review-unavailable");
    identity.document(ip(2), &known);
    let line = identity.world.daemon.wait_for_event("token-reviews-failed").unwrap();
    assert!(line["advice"].as_str().unwrap().contains("pod-identity-token-review"), "{line}");
    identity.world.fakes.api.allow(Verb::Create, "tokenreviews");
    identity.world.eventually(|_| identity.send(ip(3), &identity.token(3, "db")).status, |status| *status == 200);
    identity.world.daemon.wait_for_event("token-reviews-work-again").unwrap();
}

#[test]
fn tokens_are_verified_while_the_api_is_gone() {
    let identity = Identity::start(&[]);
    let known = identity.token(2, "web");
    identity.document(ip(2), &known);
    identity.world.fakes.api.refuse_connections(true);
    identity.world.fakes.api.cut_connections();
    identity.world.eventually(|world| world.metric(r#"rolegate_watch_errors_total{resource="pods"}"#), |errors| *errors > 0.0);
    identity.document(ip(2), &known);
    // The daemon has not seen this token before, and no request of this pod.
    let document = identity.document(ip(3), &identity.token(3, "db"));
    assert_eq!(identity.role_of(&document), arn("db-role"));
    identity.assert_refused(ip(3), &known, DENIED, "token-other-pod");
}

#[test]
fn policy_applies_as_for_metadata() {
    let identity = Identity::start(&["--allowed-roles=arn:aws:iam::111122223333:role/web-*"]);
    identity.document(ip(2), &identity.token(2, "web"));
    identity.assert_refused(ip(3), &identity.token(3, "db"), DENIED, "not-allowed-on-node");
}
