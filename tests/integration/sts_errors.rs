//! Each error of STS, through the real SDK: what the operator's log, the owner's Event and `rolegate explain` say of it.

use rolegate_lab::sts::Behaviour;
use serde_json::Value;

use crate::world::{Fakes, World, arn, ip};

/// One error: its status, code and message, the outcome, a part of the advice in the log, and a part of the Event (empty: none).
type Case = (u16, &'static str, &'static str, &'static str, &'static str, &'static str);

const CALLER: &str = "111122223333";

/// Errors about one role, which change nothing for other roles.
const OF_ROLE: &[Case] = &[
    (
        403,
        "AccessDenied",
        "User: arn:aws:sts::111122223333:assumed-role/n/i is not authorized to perform: sts:AssumeRole on resource: R",
        "denied",
        "no external ID was sent",
        "The pod sets no external ID",
    ),
    (
        403,
        "AccessDenied",
        "User: arn:aws:sts::111122223333:assumed-role/n/i is not authorized to perform: sts:TagSession on resource: R",
        "denied",
        "must allow sts:TagSession",
        "allow sts:TagSession",
    ),
    (
        403,
        "AccessDenied",
        "User: arn:aws:sts::111122223333:assumed-role/n/i is not authorized to perform: sts:SetSourceIdentity on resource: R",
        "denied",
        "must allow sts:SetSourceIdentity",
        "allow sts:SetSourceIdentity",
    ),
    (
        403,
        "AccessDenied",
        "User: arn:aws:sts::111122223333:assumed-role/n/i is not authorized to perform: sts:AssumeRole on resource: R with an explicit deny in a service control policy",
        "denied",
        "of the organization",
        "ask the cluster's operators which policy",
    ),
    (
        403,
        "RegionDisabledException",
        "STS is not activated in this region for account:111122223333",
        "invalid",
        "activate STS for this region",
        "activate it there",
    ),
    (
        400,
        "ValidationError",
        "Request ARN is invalid",
        "invalid",
        "check the role that the pod names",
        "check the partition, the account and the path",
    ),
    (
        400,
        "ValidationError",
        "1 validation error detected: Value 'x' at 'externalId' failed",
        "invalid",
        "external-id annotation",
        "external-id annotation",
    ),
    (
        400,
        "ValidationError",
        "1 validation error detected: Value 'x' at 'roleSessionName' failed",
        "invalid",
        "--session-name-template",
        "session-name annotation",
    ),
    (
        400,
        "ValidationError",
        "The requested DurationSeconds exceeds the MaxSessionDuration set for this role.",
        "invalid",
        "MaxSessionDuration",
        "maximum session duration",
    ),
    (
        400,
        "PackedPolicyTooLarge",
        "Packed size of session tags consumes 110% of allotted space.",
        "invalid",
        "fewer --session-tags",
        "session tags are too long",
    ),
    (400, "MalformedPolicyDocument", "Syntax errors in policy.", "invalid", "sends no session policy", ""),
    (400, "SomethingNew", "nobody knows it", "invalid", "compare the error", "rolegate's log"),
];

/// Errors about the daemon's own credentials, or about STS itself.
const OF_NODE: &[Case] = &[
    (403, "SignatureDoesNotMatch", "Signature expired: A is now earlier than B", "own-identity", "time synchronization", ""),
    (
        403,
        "RequestTimeTooSkewed",
        "The difference between the request time and the current time is too large.",
        "own-identity",
        "time synchronization",
        "",
    ),
    (400, "RequestExpired", "Request has expired.", "own-identity", "time synchronization", ""),
    (400, "IncompleteSignature", "Authorization header requires 'Signature' parameter.", "own-identity", "Authorization header", ""),
    (403, "MissingAuthenticationToken", "Request is missing Authentication Token", "own-identity", "Authorization header", ""),
    (403, "OptInRequired", "The AWS Access Key Id needs a subscription for the service", "own-identity", "enable the region", ""),
    (403, "ExpiredToken", "The security token included in the request is expired", "own-identity", "renews the credentials", ""),
    (403, "InvalidClientTokenId", "The security token included in the request is invalid.", "own-identity", "access key exists", ""),
    (400, "InvalidIdentityToken", "No OpenIDConnect provider found in your account", "own-identity", "OIDC provider", ""),
    (400, "IDPCommunicationError", "The identity provider could not be reached", "failed", "OIDC issuer", ""),
    (503, "ServiceUnavailable", "Service Unavailable", "failed", "AWS Health Dashboard", ""),
    (400, "Throttling", "Rate exceeded", "throttled", "who calls STS so often", ""),
];

fn role(number: u8) -> String {
    format!("role-{number}")
}

fn world(cases: &[Case]) -> World {
    let fakes = Fakes::new();
    for (number, (status, code, message, ..)) in (2..).zip(cases) {
        fakes.pod(&format!("web-{number}"), ip(number), Some(&role(number)));
        fakes.sts.set_role_behaviour(&arn(&role(number)), Behaviour::Error(*status, code, message));
    }
    let setup = fakes.setup();
    fakes.into_world(&setup)
}

/// The lines about a pod's failed session.
fn lines_of(world: &World, pod: &str) -> [Value; 2] {
    ["assume-role-failed", "credentials-unavailable"]
        .map(|event| world.daemon.wait_for_log(|line| line["event"] == event && line["pod"] == pod).unwrap())
}

fn check(cases: &[Case]) {
    let world = world(cases);
    for (number, (_, code, message, outcome, advice, owner)) in (2..).zip(cases) {
        let pod = format!("web-{number}");
        assert_eq!(world.credentials(ip(number), &role(number)).status, 500, "{code}");
        let [failed, unavailable] = lines_of(&world, &pod);
        assert_eq!((&failed["outcome"], &unavailable["reason"]), (&(*outcome).into(), &(*outcome).into()), "{code}: {message}");
        assert_eq!((&failed["namespace"], &unavailable["namespace"]), (&"shop".into(), &"shop".into()));
        for line in [&failed, &unavailable] {
            assert!(line["advice"].as_str().unwrap().contains(advice), "{code}: {message}: {line}");
            assert!(!line.to_string().contains("Some("), "debug output: {line}");
        }
        // The explanation has the same advice: the pod's last failure is remembered.
        let url = format!("--admin-url=http://{}", world.daemon.metrics_address());
        let explained = std::process::Command::new(env!("CARGO_BIN_EXE_rolegate"))
            .args(["explain", &format!("shop/{pod}"), &url])
            .env_clear()
            .env("AWS_EC2_METADATA_DISABLED", "true")
            .output()
            .unwrap();
        let explained = String::from_utf8(explained.stdout).unwrap();
        assert!(explained.contains(failed["advice"].as_str().unwrap()), "{code}: {explained}");
        if owner.is_empty() {
            continue;
        }
        let events = world.events_of(&pod, 1);
        let note = events[0]["note"].as_str().unwrap();
        assert!(note.starts_with(&format!("{outcome}: ")) && note.contains(owner), "{code}: {message}: {note}");
        for foreign in ["arn:", CALLER, message] {
            assert!(!note.contains(foreign), "{foreign} is in {note}");
        }
    }
    let told: std::collections::BTreeSet<_> = world.fakes.api.events().iter().map(|event| event["regarding"]["name"].to_string()).collect();
    assert_eq!(told.len(), cases.iter().filter(|(.., owner)| !owner.is_empty()).count(), "{told:?}");
}

#[test]
fn an_error_about_a_role_is_told_to_its_owner_and_to_the_operator() {
    check(OF_ROLE);
}

#[test]
fn an_error_about_the_node_is_told_to_the_operator_alone() {
    check(OF_NODE);
}

#[test]
fn a_line_about_a_session_names_the_pod() {
    let world = World::start();
    world.document(ip(2), "web-role");
    let line = world.daemon.wait_for_event("role-assumed").unwrap();
    assert_eq!((&line["namespace"], &line["pod"], &line["pods"]), (&"shop".into(), &"web".into(), &1.into()), "{line}");
}

#[test]
fn a_default_role_that_fails_is_told_as_one() {
    let fakes = Fakes::new();
    fakes.pod("plain", ip(2), None);
    fakes.sts.set_role_behaviour(&arn("common"), Behaviour::AccessDenied);
    let setup = fakes.setup().argument("--default-role=common");
    let world = fakes.into_world(&setup);
    assert_eq!(world.credentials(ip(2), "common").status, 500);
    let line = world.daemon.wait_for_event("credentials-unavailable").unwrap();
    assert!(line["advice"].as_str().unwrap().contains("the pod names no role, so it gets that of --default-role"), "{line}");
    let events = world.events_of("plain", 1);
    let note = events[0]["note"].as_str().unwrap();
    assert!(note.starts_with("denied: the pod names no role") && note.contains("--default-role"), "{note}");
}
