#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test says loudly what failed")]
use super::*;
use crate::credentials::not_asked::NotAsked;
use crate::pods::{HostNetworkTreatment, PodUid};
use crate::policy::denial::{NamespaceList, RoleMistake, RoleSource};
use crate::policy::patterns::Mistake;
use crate::role::ParseError;

pub(super) fn pod(name: &str) -> Pod {
    Pod { uid: PodUid(format!("uid-of-{name}").into()), ..Pod::for_test("shop", name) }
}

const FORMS: [ParseError; 9] = [
    ParseError::NotARoleArn,
    ParseError::UnknownPartition,
    ParseError::Account,
    ParseError::Path,
    ParseError::RoleName,
    ParseError::SessionName,
    ParseError::ExternalId,
    ParseError::TooLong,
    ParseError::NotAnIdentity,
];

/// Every denial. A missing variant is a compile error.
macro_rules! denials {
    ($($variant:pat => $all:expr;)*) => {
        fn denials() -> Vec<Denial> {
            let _: fn(Denial) = |denial| match denial { $($variant => {})* };
            [$(Vec::from_iter($all)),*].concat()
        }
    };
}

denials! {
    Denial::NoRole => [Denial::NoRole];
    Denial::BadRole(..) => bad_roles();
    Denial::TargetWithoutRole(_) => [RoleSource::PodTarget, RoleSource::ServiceAccountTarget].map(Denial::TargetWithoutRole);
    Denial::TargetRole(_) => OF_TARGET;
    Denial::ServiceAccountUnknown => [Denial::ServiceAccountUnknown];
    Denial::ServiceAccountsForbidden => [Denial::ServiceAccountsForbidden];
    Denial::ContradictedAccount => [Denial::ContradictedAccount];
    Denial::ForeignAccount => [Denial::ForeignAccount];
    Denial::OtherPartition => [Denial::OtherPartition];
    Denial::NodeRole => [Denial::NodeRole];
    Denial::NotAllowedOnNode => [Denial::NotAllowedOnNode];
    Denial::BadExternalId(_) => FORMS.map(Denial::BadExternalId);
    Denial::NamespaceUnknown => [Denial::NamespaceUnknown];
    Denial::NamespaceHasNoList => [Denial::NamespaceHasNoList];
    Denial::BadNamespaceList(..) => bad_lists();
    Denial::NotAllowedInNamespace => [Denial::NotAllowedInNamespace];
}

const OF_TARGET: [Denial; 5] = [
    Denial::TargetRole(&Denial::ForeignAccount),
    Denial::TargetRole(&Denial::OtherPartition),
    Denial::TargetRole(&Denial::NodeRole),
    Denial::TargetRole(&Denial::NotAllowedOnNode),
    Denial::TargetRole(&Denial::NotAllowedInNamespace),
];

fn bad_roles() -> Vec<Denial> {
    let sources = [
        RoleSource::Pod,
        RoleSource::ServiceAccount,
        RoleSource::EksServiceAccount,
        RoleSource::PodTarget,
        RoleSource::ServiceAccountTarget,
    ];
    let mistakes = [RoleMistake::Empty, RoleMistake::Spaces, RoleMistake::ControlCharacters, RoleMistake::NoBaseArn];
    let mistakes: Vec<_> = mistakes.into_iter().chain(FORMS.map(RoleMistake::Form)).collect();
    sources.into_iter().flat_map(|source| mistakes.iter().map(move |mistake| Denial::BadRole(source, *mistake))).collect()
}

fn bad_lists() -> Vec<Denial> {
    let lists = [NamespaceList::Allowed, NamespaceList::Permitted].into_iter();
    lists.flat_map(|list| [Mistake::NotAList, Mistake::TooLarge, Mistake::BadPattern].map(|m| Denial::BadNamespaceList(list, m))).collect()
}

/// Returns every STS failure, with a message in the style of STS.
pub(super) fn failures() -> Vec<AssumeRoleError> {
    let message = || "User: arn:aws:sts::111122223333:assumed-role/nodes/i-0f1e is not authorized to perform: sts:AssumeRole".to_owned();
    vec![
        AssumeRoleError::Denied { message: message() },
        AssumeRoleError::Invalid { message: message() },
        AssumeRoleError::Throttled,
        AssumeRoleError::OwnIdentity { message: message(), advice: "look there".into() },
        AssumeRoleError::Unreachable { message: message() },
        AssumeRoleError::Failed { message: message() },
        AssumeRoleError::OtherRole { message: message() },
        AssumeRoleError::NotAsked(NotAsked::TooManyChanges),
        AssumeRoleError::NotAsked(NotAsked::QueueFull),
        AssumeRoleError::NotAsked(NotAsked::Queued { others: 7 }),
        AssumeRoleError::NotAsked(NotAsked::Superseded),
        AssumeRoleError::IdentityUnknown(Box::new(AssumeRoleError::Unreachable { message: message() })),
    ]
}

fn failed_by(error: &AssumeRoleError, by_default: bool) -> Option<EventCause> {
    EventCause::assume_role_failed(error, &crate::credentials::tests::request("web"), by_default)
}

fn causes() -> Vec<EventCause> {
    let denied = denials()
        .into_iter()
        .flat_map(|denial| [EventCause::denied(denial, false), EventCause::denied(denial, true), EventCause::would_be_denied(denial)])
        .flatten();
    let failed = failures();
    let failed = failed.iter().flat_map(|error| [false, true].map(|by_default| failed_by(error, by_default))).flatten();
    let closed = EventCause::MetadataClosed { setting: "--node-info-namespaces" };
    let others = [EventCause::AddressAmbiguous, EventCause::Unreadable, EventCause::TokenRequired, closed, EventCause::Forwarded];
    let host = [HostNetworkTreatment::Ignored, HostNetworkTreatment::Denied, HostNetworkTreatment::Exempt].map(EventCause::HostNetwork);
    let objections = [Objection::LinkChanged, Objection::OtherPodAttached, Objection::OtherPodConnected, Objection::NotInHostNetwork]
        .map(EventCause::objected);
    denied.chain(failed).chain(others).chain(host).chain(objections.into_iter().flatten()).collect()
}

#[test]
fn every_note_has_its_stable_name_and_fits_the_limit() {
    for cause in causes() {
        let note = cause.note();
        assert!(note.len() <= MAX_NOTE, "{} bytes: {note}", note.len());
        let sentence = note.strip_prefix(cause.name()).and_then(|rest| rest.strip_prefix(": "));
        assert!(sentence.is_some_and(|sentence| sentence.len() > 30), "{note}");
        assert!(cause.reason().chars().all(|c| c.is_ascii_alphabetic()) && cause.reason().len() <= 128);
        assert!(!cause.action().is_empty() && cause.action().len() <= 128);
    }
}

#[test]
fn owners_get_events_only_for_what_they_can_change() {
    for denial in denials() {
        let passes = matches!(denial, Denial::NamespaceUnknown | Denial::ServiceAccountUnknown);
        assert_eq!(
            (EventCause::denied(denial, false).is_none(), EventCause::would_be_denied(denial).is_none()),
            (passes, passes),
            "{denial:?}"
        );
    }
    let told: Vec<_> = failures().iter().filter_map(|error| failed_by(error, false)).map(EventCause::name).collect();
    assert_eq!(told, ["denied", "invalid", "too-many-changes", "queue-full"]);
}

/// Otherwise, anyone who can write annotations could discover the node's role, partition and ceiling.
#[test]
fn an_event_does_not_reveal_the_node() {
    let of_node = [Denial::NodeRole, Denial::ContradictedAccount, Denial::ForeignAccount, Denial::OtherPartition, Denial::NotAllowedOnNode]
        .map(|denial| EventCause::denied(denial, false));
    for cause in of_node {
        assert_eq!(
            cause,
            Some(EventCause::RefusedOnNode { by_default: false }),
            "one cause, so that a change from one to the other is no new Event"
        );
    }
    let note = EventCause::RefusedOnNode { by_default: false }.note();
    for denial in [Denial::NodeRole, Denial::ContradictedAccount, Denial::ForeignAccount, Denial::OtherPartition, Denial::NotAllowedOnNode]
    {
        assert!(!note.contains(denial.name()) && !note.contains(&denial.to_string()), "{note}");
    }
}

#[test]
fn an_event_about_a_default_role_says_that_the_pod_names_none() {
    let refused = failures().into_iter().filter(AssumeRoleError::is_refusal);
    let failed = refused.filter_map(|error| failed_by(&error, true)).chain(EventCause::denied(Denial::NodeRole, true));
    let notes: Vec<_> = failed.map(EventCause::note).collect();
    assert_eq!(notes.len(), 3);
    for note in notes {
        assert!(note.contains("the pod names no role") && note.contains("--default-role"), "{note}");
    }
    let changes = AssumeRoleError::NotAsked(NotAsked::TooManyChanges);
    assert_eq!(failed_by(&changes, true), failed_by(&changes, false), "this does not depend on the role");
}

/// The STS message names the caller: the session of the node's role.
#[test]
fn sts_messages_are_not_repeated() {
    for cause in failures().iter().filter_map(|error| failed_by(error, false)) {
        let note = cause.note();
        assert!(!note.contains("arn:") && !note.contains("111122223333") && !note.contains("i-0f1e"), "{note}");
    }
}

#[test]
fn equal_causes_have_equal_hashes() {
    let hash =
        |cause: EventCause| std::hash::BuildHasher::hash_one(&std::hash::BuildHasherDefault::<std::hash::DefaultHasher>::default(), cause);
    for (a, b) in causes().into_iter().zip(causes()) {
        assert_eq!((a, hash(a)), (b, hash(b)));
    }
}

#[tokio::test]
async fn a_full_queue_drops_records_and_counts_them_without_waiting() {
    let metrics = Metrics::new();
    let (reporter, mut records) = Reporter::new(metrics.clone());
    let web = Arc::new(pod("web"));
    for _ in 0..QUEUE + 3 {
        reporter.tell(&web, EventCause::AddressAmbiguous);
    }
    assert!(String::from_utf8_lossy(&metrics.render()).contains(r#"rolegate_events_total{outcome="dropped"} 3"#));
    assert_eq!(records.recv().await.unwrap().pod.uid, web.uid);
    Reporter::off(metrics.clone()).tell(&web, EventCause::AddressAmbiguous);
    assert_eq!(records.len(), QUEUE - 1);
}
