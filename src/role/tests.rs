#![allow(clippy::unwrap_used, reason = "a test that fails to parse its own input should say so loudly")]
use super::*;

#[test]
fn a_role_arn_knows_its_parts() {
    let arn: RoleArn = "arn:aws-us-gov:iam::111122223333:role/team/a/web-1".parse().unwrap();
    assert_eq!(arn.partition(), Partition::AwsUsGov);
    assert_eq!(arn.account(), "111122223333");
    assert_eq!(arn.name(), "web-1");
    assert_eq!(arn.to_string(), "arn:aws-us-gov:iam::111122223333:role/team/a/web-1");
}

#[test]
fn a_text_that_is_no_role_arn_is_refused_with_the_reason() {
    use ParseError::*;
    let long = format!("arn:aws:iam::111122223333:role/{}/x", "p".repeat(2048));
    let long_name = format!("arn:aws:iam::111122223333:role/{}", "n".repeat(65));
    for (text, error) in [
        ("", NotARoleArn),
        ("web", NotARoleArn),
        ("arn:aws:iam::111122223333:user/web", NotARoleArn),
        ("arn:aws:iam::111122223333:role", NotARoleArn),
        ("arn:aws:sts::111122223333:assumed-role/web/session", NotARoleArn),
        ("arn:aws:iam:eu-central-1:111122223333:role/web", NotARoleArn),
        ("ARN:aws:iam::111122223333:role/web", NotARoleArn),
        (" arn:aws:iam::111122223333:role/web", NotARoleArn),
        ("arn:aws-mars:iam::111122223333:role/web", UnknownPartition),
        ("arn:*:iam::111122223333:role/web", UnknownPartition),
        ("arn:aws:iam::11112222333:role/web", Account),
        ("arn:aws:iam::1111222233334:role/web", Account),
        ("arn:aws:iam::11112222333x:role/web", Account),
        ("arn:aws:iam::١١١١٢٢:role/web", Account),
        ("arn:aws:iam::111122223333:role/", RoleName),
        ("arn:aws:iam::111122223333:role/team/", RoleName),
        ("arn:aws:iam::111122223333:role/we b", RoleName),
        ("arn:aws:iam::111122223333:role/web\n", RoleName),
        ("arn:aws:iam::111122223333:role/web*", RoleName),
        ("arn:aws:iam::111122223333:role/wéb", RoleName),
        ("arn:aws:iam::111122223333:role//web", Path),
        ("arn:aws:iam::111122223333:role/te am/web", Path),
        ("arn:aws:iam::111122223333:role/te\tam/web", Path),
        // Other resources than roles, and texts that only resemble a role ARN.
        ("arn:aws:iam::111122223333:instance-profile/web", NotARoleArn),
        ("arn:aws:iam::111122223333:assumed-role/web/session", NotARoleArn),
        ("arn:aws:iam::111122223333:root", NotARoleArn),
        ("arn:aws:sts::111122223333:role/web", NotARoleArn),
        ("arn:aws:s3:::role/web", NotARoleArn),
        ("arn:aws:s3::111122223333:role/web", NotARoleArn),
        ("arn:aws:iam::111122223333:ROLE/web", NotARoleArn),
        ("arn:aws:iam::111122223333: role/web", NotARoleArn),
        ("arn:aws:iam::111122223333:role/web:db", RoleName),
        ("xarn:aws:iam::111122223333:role/web", NotARoleArn),
        // Line breaks and NUL characters, at every position.
        ("\narn:aws:iam::111122223333:role/web", NotARoleArn),
        ("arn:aws\n:iam::111122223333:role/web", UnknownPartition),
        ("arn:aws:iam::111122223333\n:role/web", Account),
        ("arn:aws:iam::111122223333:role\n/web", NotARoleArn),
        ("arn:aws:iam::111122223333:role/te\nam/web", Path),
        ("arn:aws:iam::111122223333:role/team/\nweb", RoleName),
        ("arn:aws:iam::111122223333:role/web\r\n", RoleName),
        ("arn:aws:iam::111122223333:role/we\0b", RoleName),
        ("arn:aws:iam::111122223333:role/web\narn:aws:iam::111122223333:role/db", Path),
        // Wildcards.
        ("arn:aws:iam::*:role/web", Account),
        ("arn:aws:iam::11112222333?:role/web", Account),
        ("arn:aws:iam::111122223333:role/*", RoleName),
        ("arn:aws:iam::111122223333:role/we?", RoleName),
        ("arn:aws*:iam::111122223333:role/web", UnknownPartition),
        ("arn::iam::111122223333:role/web", UnknownPartition),
        ("arn:AWS:iam::111122223333:role/web", UnknownPartition),
        ("arn:aws-:iam::111122223333:role/web", UnknownPartition),
        ("arn:aws-iso-c:iam::111122223333:role/web", UnknownPartition),
        ("*", NotARoleArn),
        (&long, TooLong),
        (&long_name, RoleName),
    ] {
        assert_eq!(text.parse::<RoleArn>().unwrap_err(), error, "{text:?}");
    }
}

#[test]
fn a_base_arn_ends_in_a_slash_and_completes_names() {
    let base: BaseArn = "arn:aws:iam::111122223333:role/k8s".parse().unwrap();
    assert_eq!(base.as_str(), "arn:aws:iam::111122223333:role/k8s/");
    assert_eq!(base, "arn:aws:iam::111122223333:role/k8s/".parse().unwrap());
    assert_eq!(base.complete("web").unwrap().as_str(), "arn:aws:iam::111122223333:role/k8s/web");
    assert_eq!(base.complete("/team/web").unwrap().as_str(), "arn:aws:iam::111122223333:role/k8s/team/web");
    assert_eq!(base.complete("//web").unwrap_err(), ParseError::Path);
    assert_eq!(base.complete("").unwrap_err(), ParseError::RoleName);
    assert!("arn:aws:iam::111122223333:user/".parse::<BaseArn>().is_err());
    let of_account = BaseArn::of_account(Partition::AwsCn, "111122223333").unwrap();
    assert_eq!(of_account.as_str(), "arn:aws-cn:iam::111122223333:role/");
}

#[test]
fn session_names_are_derived_from_any_text() {
    assert_eq!(SessionName::derived_from("web-7f9c-abcde").as_str(), "web-7f9c-abcde");
    assert_eq!(SessionName::derived_from("a b/c\n").as_str(), "a-b-c-");
    assert_eq!(SessionName::derived_from("x").as_str(), "pod-x");
    assert_eq!(SessionName::derived_from("").as_str(), "pod-");
    let long = format!("{}-abcde", "n".repeat(100));
    let derived = SessionName::derived_from(&long);
    assert_eq!(derived.as_str().len(), 64);
    assert!(derived.as_str().ends_with("-abcde"));
}

#[test]
fn source_identities_never_have_the_reserved_prefix() {
    for (text, expected) in [("shop.web-0", "shop.web-0"), ("aws:web", "aws-web"), ("AWS:", "AWS-"), ("a b/c", "a-b-c"), ("x", "pod-x")] {
        assert_eq!(SourceIdentity::derived_from(text).as_str(), expected, "{text:?}");
    }
    let longest = "n".repeat(64);
    assert_eq!(SourceIdentity::derived_from(&format!("aws:{longest}")).as_str(), longest);
}

#[test]
fn session_names_and_external_ids_are_bounded() {
    assert!("x".parse::<SessionName>().is_err());
    assert!("x".repeat(65).parse::<SessionName>().is_err());
    assert!("a b".parse::<SessionName>().is_err());
    assert!("ok-1".parse::<SessionName>().is_ok());
    assert!("x".parse::<ExternalId>().is_err());
    assert!("x".repeat(1225).parse::<ExternalId>().is_err());
    assert!("a:b/c".parse::<ExternalId>().is_ok());
    assert!("a\nb".parse::<ExternalId>().is_err());
}

#[test]
fn an_identity_is_a_session_of_its_role_regardless_of_path() {
    let identity: CallerIdentity = "arn:aws:sts::111122223333:assumed-role/nodes/i-0f1e2d3c".parse().unwrap();
    assert_eq!((identity.partition(), identity.as_str()), (Partition::Aws, "arn:aws:sts::111122223333:assumed-role/nodes/i-0f1e2d3c"));
    for (role, expected) in [
        ("arn:aws:iam::111122223333:role/nodes", true),
        ("arn:aws:iam::111122223333:role/cluster/a/nodes", true),
        ("arn:aws:iam::111122223333:role/Nodes", true),
        ("arn:aws:iam::111122223333:role/nodes2", false),
        ("arn:aws:iam::111122223333:role/nodes/web", false),
        ("arn:aws:iam::444455556666:role/nodes", false),
        ("arn:aws-cn:iam::111122223333:role/nodes", false),
    ] {
        assert_eq!(identity.is_session_of(&role.parse().unwrap()), expected, "{role}");
    }
    for other in
        ["arn:aws:iam::111122223333:user/nodes", "arn:aws:iam::111122223333:root", "arn:aws:sts::111122223333:federated-user/nodes"]
    {
        let other: CallerIdentity = other.parse().unwrap();
        assert!(!other.is_session_of(&"arn:aws:iam::111122223333:role/nodes".parse().unwrap()), "{other:?}");
    }
}

#[test]
fn the_session_of_a_role_is_what_sts_would_name() {
    let role: RoleArn = "arn:aws-cn:iam::111122223333:role/cluster/a/nodes".parse().unwrap();
    let session = role.session("i-0f1e");
    assert_eq!("arn:aws-cn:sts::111122223333:assumed-role/nodes/i-0f1e".parse(), Ok(session.clone()));
    assert!(session.is_session_of(&role));
}

#[test]
fn a_text_that_is_no_identity_is_refused() {
    use ParseError::*;
    for (text, error) in [
        ("", NotAnIdentity),
        ("nodes", NotAnIdentity),
        ("arn:aws:sts::111122223333", NotAnIdentity),
        ("arn:aws:ec2::111122223333:assumed-role/nodes/s", NotAnIdentity),
        ("arn:aws:sts:eu-central-1:111122223333:assumed-role/nodes/s", NotAnIdentity),
        ("arn:aws:sts::111122223333:assumed-role/nodes", NotAnIdentity),
        ("arn:aws:sts::111122223333:assumed-role//s", NotAnIdentity),
        ("arn:aws:sts::1:assumed-role/nodes/s", Account),
        ("arn:aws-mars:sts::111122223333:assumed-role/nodes/s", UnknownPartition),
    ] {
        assert_eq!(text.parse::<CallerIdentity>().unwrap_err(), error, "{text:?}");
    }
}

#[test]
fn a_base_is_in_the_partition_of_its_roles() {
    for partition in ["aws", "aws-cn", "aws-us-gov", "aws-eusc", "aws-iso", "aws-iso-b", "aws-iso-e", "aws-iso-f"] {
        let base: BaseArn = format!("arn:{partition}:iam::111122223333:role/").parse().unwrap();
        assert_eq!(base.partition().name(), partition);
    }
}

/// Each partition has its own name, and is not mistaken for another one whose name starts with it.
#[test]
fn every_aws_partition_is_recognized_by_its_name() {
    let names = ["aws", "aws-cn", "aws-us-gov", "aws-eusc", "aws-iso", "aws-iso-b", "aws-iso-e", "aws-iso-f"];
    let mut known = std::collections::HashSet::new();
    for name in names {
        let role: RoleArn = format!("arn:{name}:iam::111122223333:role/web").parse().unwrap();
        let caller: CallerIdentity = format!("arn:{name}:sts::111122223333:assumed-role/web/session").parse().unwrap();
        assert_eq!((role.partition().name(), caller.partition()), (name, role.partition()));
        assert!(caller.is_session_of(&role));
        known.insert(role.partition());
        for other in names.iter().filter(|other| **other != name) {
            let elsewhere: RoleArn = format!("arn:{other}:iam::111122223333:role/web").parse().unwrap();
            assert!(!caller.is_session_of(&elsewhere) && !role.has_name_of(&elsewhere), "{name} and {other}");
        }
    }
    assert_eq!(known.len(), names.len());
}

/// The form of a role ARN, from the partitions and the patterns of IAM.
fn form() -> regex::Regex {
    let partition = "aws|aws-cn|aws-us-gov|aws-eusc|aws-iso|aws-iso-b|aws-iso-e|aws-iso-f";
    regex::Regex::new(&format!(r"\A(?-u)arn:({partition}):iam::[0-9]{{12}}:role(/[\x21-\x7e]+)*/[\w+=,.@-]{{1,64}}\z")).unwrap()
}

proptest::proptest! {
    /// Every accepted ARN has that form. The form also allows paths with empty segments, which are not accepted.
    #[test]
    fn a_role_arn_that_parses_has_the_form_of_iam(text in "arn:(aws|aws-cn|aws-iso|aws-mars|\\*|AWS)\n?:(iam|sts|s3):(|eu-west-1):([0-9]{12}|[0-9]{11}|\\*):(role|user|assumed-role)(/([a-z+=,.@_-]{1,8}|[*?: \n!~]|é)){1,4}\n?") {
        let (taken, has_form) = (text.parse::<RoleArn>().is_ok(), form().is_match(&text));
        proptest::prop_assert_eq!(taken, has_form && !text.contains("//"), "{:?}", text);
    }

    #[test]
    fn no_text_makes_a_parser_panic(text in proptest::prop_oneof![
        proptest::string::string_regex("\\PC{0,80}").unwrap(),
        proptest::string::string_regex("(arn|aws|aws-cn|iam|sts|role|assumed-role|[0-9]{12}|[:/ \n*-]|[a-z]){0,20}").unwrap(),
    ]) {
        let _ = (text.parse::<RoleArn>(), text.parse::<BaseArn>(), text.parse::<CallerIdentity>());
        let _ = (text.parse::<SessionName>(), text.parse::<ExternalId>(), text.parse::<Partition>());
    }

    #[test]
    fn a_derived_session_name_is_always_a_session_name(text in ".{0,200}") {
        let derived = SessionName::derived_from(&text);
        proptest::prop_assert!(derived.as_str().parse::<SessionName>().is_ok());
    }

    #[test]
    fn a_derived_source_identity_is_valid_for_sts(text in "(aws:)?.{0,100}") {
        let derived = SourceIdentity::derived_from(&text);
        let form = regex::Regex::new(r"\A(?-u)[\w+=,.@-]{2,64}\z").unwrap();
        proptest::prop_assert!(form.is_match(derived.as_str()) && !derived.as_str().starts_with("aws:"), "{:?}", derived);
    }

    #[test]
    fn a_role_arn_that_parses_is_printable_ascii_and_round_trips(text in "arn:aws(-cn)?:iam::[0-9]{11,13}:role/.{0,40}") {
        if let Ok(arn) = text.parse::<RoleArn>() {
            proptest::prop_assert!(arn.as_str().bytes().all(|byte| byte.is_ascii_graphic()));
            proptest::prop_assert!(arn.as_str().ends_with(arn.name()));
        }
    }
}

#[test]
fn a_path_has_512_characters_with_its_slashes() {
    let of_length = |length: usize| format!("arn:aws:iam::111122223333:role/{}/web", "a".repeat(length - 2));
    assert!(of_length(512).parse::<RoleArn>().is_ok());
    assert_eq!(of_length(513).parse::<RoleArn>(), Err(ParseError::Path));
}
