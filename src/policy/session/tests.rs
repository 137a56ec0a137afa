use super::*;

#[test]
fn tag_values_are_valid_for_sts() {
    for (text, expected) in [
        ("web-0", "web-0"),
        ("", ""),
        ("a b_c.d:e/f=g+h-i@j", "a b_c.d:e/f=g+h-i@j"),
        ("a*b\nc\"d", "a-b-c-d"),
        ("w\u{e9}b", "w-b"),
        (&"x".repeat(300), &"x".repeat(256)),
    ] {
        assert_eq!(RequestTag::new(SessionTag::Cluster, text).value(), expected, "{text:?}");
    }
}

#[test]
fn keys_are_distinct_and_not_reserved() {
    let keys: std::collections::HashSet<_> = SessionTag::NAMES.iter().map(|(_, tag)| tag.key()).collect();
    assert_eq!(keys.len(), SessionTag::NAMES.len());
    assert!(keys.iter().all(|key| !key.starts_with("aws:") && key.len() <= 128));
}

fn name(template: &str, namespace: &str, pod: &str, role: &str) -> String {
    let template: SessionTemplate = template.parse().unwrap();
    let rules = SessionRules {
        name: template.clone(),
        source_identity: Some(template),
        pod_may_name: false,
        node: "node-a".to_owned(),
        ..SessionRules::default()
    };
    let pod = Pod::for_test(namespace, pod);
    let role = format!("arn:aws:iam::111122223333:role/{role}").parse().unwrap();
    let name = rules.name(&pod, &role, &mut super::super::trace::Silent);
    let identity = rules.source_identity(&pod, &role, &mut super::super::trace::Silent).unwrap();
    assert_eq!(identity.as_str(), name.as_str(), "the same template gives both the same text, even if it is cut");
    name.as_str().to_owned()
}

#[test]
fn the_namespace_is_never_cut_from_a_name_that_is_too_long() {
    const TEMPLATE: &str = "{namespace}.{pod}";
    assert_eq!(name(TEMPLATE, "shop", "web-0", "web"), "shop.web-0");
    // Exactly the maximum length, and one character more.
    let pod = format!("{}-0", "w".repeat(57));
    assert_eq!(name(TEMPLATE, "shop", &pod, "web"), format!("shop.{pod}"));
    assert_eq!(name(TEMPLATE, "shop", &format!("x{pod}"), "web"), format!("shop.{pod}"), "the end of a pod's name distinguishes it");
    // The last 64 characters of this name are the name of a pod in another namespace.
    let victim = "kube-system.coredns-5d78c9869d-abcde";
    let forged = format!("{}.{victim}", "x".repeat(100));
    let shown = name(TEMPLATE, "evil", &forged, "web");
    assert!(shown.len() == 64 && shown.starts_with("evil.") && shown.ends_with(victim), "{shown}");
    let padded = format!("{}{victim}", "x".repeat(64));
    assert!(name(TEMPLATE, "evil", &padded, "web").starts_with("evil."));
    let namespace = "n".repeat(63);
    assert_eq!(name(TEMPLATE, &namespace, "web-0", "web"), format!("{namespace}."));
}

#[test]
fn the_pods_name_is_cut_first_then_other_names_of_its_author() {
    assert_eq!(name("{pod}", "shop", &format!("{}-0", "w".repeat(100)), "web"), format!("{}-0", "w".repeat(62)));
    let (namespace, role) = ("n".repeat(30), "r".repeat(64));
    assert_eq!(name("{role}@{namespace}/{pod}", &namespace, "web-0", &role), format!("{}@{namespace}-", "r".repeat(32)));
    // Nothing of it is a pod's: its end is kept.
    assert_eq!(name(&format!("{}{{node}}", "t".repeat(100)), "shop", "web-0", "web"), format!("{}node-a", "t".repeat(58)));
    assert_eq!(name("{pod}", "shop", "x", "web"), "pod-x");
}

proptest::proptest! {
    #[test]
    fn a_pod_name_cannot_imitate_another_namespace(namespace in "[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?", pod in "[a-z0-9]([a-z0-9.-]{0,250}[a-z0-9])?") {
        let shown = name("{namespace}.{pod}", &namespace, &pod, "web");
        proptest::prop_assert_eq!(shown.split_once('.').map(|(first, _)| first), Some(namespace.as_str()));
        proptest::prop_assert!(pod.ends_with(&shown[namespace.len() + 1..]));
    }
}
