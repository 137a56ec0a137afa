use super::*;

#[test]
fn values_of_tags_are_what_sts_takes() {
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
    let name = rules.name(&pod, &role, &mut super::super::trace::Silent).unwrap();
    let identity = rules.source_identity(&pod, &role, &mut super::super::trace::Silent).unwrap();
    assert_eq!(identity.as_str(), name.as_str(), "one template gives both the same text, also where it is cut");
    name.as_str().to_owned()
}

#[test]
fn of_a_name_that_is_too_long_the_namespace_is_left_whole() {
    const TEMPLATE: &str = "{namespace}.{pod}";
    assert_eq!(name(TEMPLATE, "shop", "web-0", "web"), "shop.web-0");
    // Exactly as long as a name may be, and one longer.
    let pod = format!("{}-0", "w".repeat(57));
    assert_eq!(name(TEMPLATE, "shop", &pod, "web"), format!("shop.{pod}"));
    assert_eq!(name(TEMPLATE, "shop", &format!("x{pod}"), "web"), format!("shop.{pod}"), "the end of a pod's name tells it from others");
    // The last 64 characters of this one are the name of another namespace's pod.
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
fn the_pods_name_gives_way_first_then_what_else_its_author_chooses() {
    assert_eq!(name("{pod}", "shop", &format!("{}-0", "w".repeat(100)), "web"), format!("{}-0", "w".repeat(62)));
    let (namespace, role) = ("n".repeat(30), "r".repeat(64));
    assert_eq!(name("{role}@{namespace}/{pod}", &namespace, "web-0", &role), format!("{}@{namespace}-", "r".repeat(32)));
    // Nothing of it is a pod's: its end is kept.
    assert_eq!(name(&format!("{}{{node}}", "t".repeat(100)), "shop", "web-0", "web"), format!("{}node-a", "t".repeat(58)));
    assert_eq!(name("{pod}", "shop", "x", "web"), "pod-x");
}

proptest::proptest! {
    #[test]
    fn whoever_names_pods_cannot_name_another_namespace(namespace in "[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?", pod in "[a-z0-9]([a-z0-9.-]{0,250}[a-z0-9])?") {
        let shown = name("{namespace}.{pod}", &namespace, &pod, "web");
        proptest::prop_assert_eq!(shown.split_once('.').map(|(first, _)| first), Some(namespace.as_str()));
        proptest::prop_assert!(pod.ends_with(&shown[namespace.len() + 1..]));
    }
}
