//! Parameters, trust and limits.

use super::*;

#[tokio::test]
async fn session_names() {
    let sts = start();
    let node = Client::node(&sts);
    let longest = "x".repeat(64);
    for name in ["ab", "A_z0+=,.@-", longest.as_str()] {
        let mut form = assume(APP);
        form[3].1 = name;
        assert_eq!(node.call(&form).await.status, 200, "{name}");
        assert_eq!(sts.issued().last().unwrap().session_name, name);
    }
    let too_long = "x".repeat(65);
    for name in ["", "a", "a b", "a/b", "a:b", "aé", "a\nb", too_long.as_str()] {
        let mut form = assume(APP);
        form[3].1 = name;
        let answer = node.call(&form).await;
        let message = answer.refused(400, "ValidationError");
        assert!(message.contains("roleSessionName"), "{message}");
    }
    let answer = node.call(&assume(APP)[..3]).await;
    let message = answer.refused(400, "ValidationError");
    assert!(message.contains("Value null at"), "{message}");
}

#[tokio::test]
async fn durations() {
    let sts = start();
    sts.add_role(Role::new(APP).max_session(Duration::from_secs(43_200)));
    let node = Client::node(&sts);
    for seconds in ["900", "3600", "43200"] {
        let answer = node.assume_with(APP, &[("DurationSeconds", seconds)]).await;
        assert_eq!(answer.status, 200);
        let end = sts.issued().last().unwrap().expires_at.as_second();
        let left = end - jiff::Timestamp::now().as_second();
        let asked: i64 = seconds.parse().unwrap();
        assert!((asked - 10..=asked).contains(&left), "{left}");
    }
    for seconds in ["899", "0", "-1", "43201", "99999999999"] {
        let answer = node.assume_with(APP, &[("DurationSeconds", seconds)]).await;
        answer.refused(400, "ValidationError");
    }
    let answer = node.assume_with(APP, &[("DurationSeconds", "1h")]);
    answer.await.refused(400, "MalformedInput");
}

#[tokio::test]
async fn the_roles_own_limit() {
    let sts = start();
    let node = Client::node(&sts);
    let answer = node.assume_with(APP, &[("DurationSeconds", "3601")]).await;
    assert_eq!(answer.refused(400, "ValidationError"), "The requested DurationSeconds exceeds the MaxSessionDuration set for this role.");
    sts.add_role(Role::new(APP).max_session(Duration::from_secs(7200)));
    let answer = node.assume_with(APP, &[("DurationSeconds", "7200")]);
    assert_eq!(answer.await.status, 200);
}

#[tokio::test]
async fn role_chaining() {
    let sts = start();
    let longest = Duration::from_secs(43_200);
    sts.add_role(Role::new(NEXT).max_session(longest).trusted_by([APP]));
    let node = Client::node(&sts);
    node.assume(NEXT).await.refused(403, "AccessDenied");
    node.assume(APP).await;
    let session = Client::session(&sts, &sts.issued()[0]);
    let answer = session.assume_with(NEXT, &[("DurationSeconds", "3601")]).await;
    assert_eq!(
        answer.refused(400, "ValidationError"),
        "The requested DurationSeconds exceeds the 1 hour session limit for roles assumed by role chaining"
    );
    let answer = session.assume_with(NEXT, &[("DurationSeconds", "3600")]).await;
    let arn = "arn:aws:sts::444455556666:assumed-role/next/pod-1";
    assert_eq!(answer.text("Arn"), Some(arn), "{answer:?}");
    session.assume(APP).await.refused(403, "AccessDenied");
}

#[tokio::test]
async fn external_ids() {
    let sts = start();
    sts.add_role(Role::new(APP).external_id("team:a/b@c"));
    let node = Client::node(&sts);
    node.assume(APP).await.refused(403, "AccessDenied");
    for (id, status) in [("team:a/b@c", 200), ("TEAM:a/b@c", 403), ("team", 403)] {
        let answer = node.assume_with(APP, &[("ExternalId", id)]).await;
        assert_eq!(answer.status, status, "{id}");
    }
    let longest = "e".repeat(1224);
    let too_long = "e".repeat(1225);
    sts.add_role(Role::new(APP).external_id(&longest));
    for (id, status) in [(longest.as_str(), 200), (too_long.as_str(), 400), ("", 400), ("x", 400), ("a b", 400), ("aé", 400)] {
        let answer = node.assume_with(APP, &[("ExternalId", id)]).await;
        assert_eq!(answer.status, status, "{id}");
    }
    // A role that requires none accepts any.
    sts.add_role(Role::new(APP));
    let answer = node.assume_with(APP, &[("ExternalId", "any")]).await;
    assert_eq!(answer.status, 200);
}

#[tokio::test]
async fn source_identities() {
    let sts = start();
    let node = Client::node(&sts);
    let (longest, too_long) = ("s".repeat(64), "s".repeat(65));
    for identity in ["ab", "A_z0+=,.@-", longest.as_str()] {
        let answer = node.assume_with(APP, &[("SourceIdentity", identity)]).await;
        assert_eq!((answer.status, answer.text("SourceIdentity")), (200, Some(identity)));
        assert_eq!(sts.issued().last().unwrap().source_identity.as_deref(), Some(identity));
        assert_eq!(sts.calls().last().unwrap().source_identity.as_deref(), Some(identity));
    }
    for identity in ["", "a", "a b", "aws:a", "a/b", "a\u{e9}", too_long.as_str()] {
        let answer = node.assume_with(APP, &[("SourceIdentity", identity)]).await;
        let message = answer.refused(400, "ValidationError");
        assert!(message.contains("sourceIdentity"), "{message}");
    }
    let answer = node.assume(APP).await;
    assert_eq!((answer.status, answer.text("SourceIdentity")), (200, None));
    assert_eq!(sts.issued().last().unwrap().source_identity, None);
}

#[tokio::test]
async fn source_identities_need_permission_and_stay_through_role_chaining() {
    let sts = start();
    let node = Client::node(&sts);
    let with = |identity| [("SourceIdentity", identity)];
    sts.add_role(Role::new(APP).without_source_identity());
    let answer = node.assume_with(APP, &with("one")).await;
    let denied = format!("User: {NODE_SESSION_ARN} is not authorized to perform: sts:SetSourceIdentity on resource: {APP}");
    assert_eq!(answer.refused(403, "AccessDenied"), denied);
    assert_eq!(node.assume(APP).await.status, 200);
    sts.add_role(Role::new(NEXT).trusted_by([APP]));
    let unset = Client::session(&sts, &sts.issued()[0]);
    assert_eq!(unset.assume_with(NEXT, &with("one")).await.status, 200, "it may be set in a later step");

    sts.add_role(Role::new(APP));
    node.assume_with(APP, &with("one")).await;
    let one = Client::session(&sts, sts.issued().last().unwrap());
    for same in [&[][..], &with("one")] {
        assert_eq!(one.assume_with(NEXT, same).await.text("SourceIdentity"), Some("one"));
    }
    one.assume_with(NEXT, &with("two")).await.refused(403, "AccessDenied");
    sts.add_role(Role::new(NEXT).trusted_by([APP]).without_source_identity());
    one.assume(NEXT).await.refused(403, "AccessDenied");
}

#[tokio::test]
async fn transitive_tags_stay_through_role_chaining_and_cannot_be_set_again() {
    let sts = start();
    let node = Client::node(&sts);
    let tags = [("Tags.member.1.Key", "a"), ("Tags.member.1.Value", "one"), ("Tags.member.2.Key", "b"), ("Tags.member.2.Value", "two")];
    let keys = |first: &'static str| [("TransitiveTagKeys.member.1", first)];
    node.assume_with(APP, &[&tags[..], &keys("c")].concat()).await.refused(400, "ValidationError");
    assert_eq!(node.assume_with(APP, &[&tags[..], &keys("a")].concat()).await.status, 200);
    assert_eq!(sts.calls().last().unwrap().transitive_tag_keys, ["a"]);
    let pairs = |tags: &[(&str, &str)]| tags.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect::<Vec<_>>();
    let first = sts.issued().pop().unwrap();
    assert_eq!(first.tags, pairs(&[("a", "one"), ("b", "two")]));

    sts.add_role(Role::new(NEXT).trusted_by([APP]));
    let session = Client::session(&sts, &first);
    assert_eq!(session.assume(NEXT).await.status, 200);
    assert_eq!(sts.issued().last().unwrap().tags, pairs(&[("a", "one")]), "the other tag is not inherited");
    assert_eq!(sts.calls().last().unwrap().caller_access_key_id, Some(first.access_key_id.clone()));
    session.assume_with(NEXT, &tags[..2]).await.refused(400, "InvalidParameterValue");
    assert_eq!(session.assume_with(NEXT, &[("Tags.member.1.Key", "b"), ("Tags.member.1.Value", "new")]).await.status, 200);
    assert_eq!(sts.issued().last().unwrap().tags, pairs(&[("b", "new"), ("a", "one")]));

    sts.add_role(Role::new(NEXT).trusted_by([APP]).without_tags());
    let denied = session.assume(NEXT).await;
    let denied = denied.refused(403, "AccessDenied");
    assert!(denied.contains("sts:TagSession"), "inherited tags need the permission, too: {denied}");
    sts.add_role(Role::new(APP).without_tags());
    node.assume_with(APP, &tags).await.refused(403, "AccessDenied");
    assert_eq!(node.assume(APP).await.status, 200);
}

#[tokio::test]
async fn role_arns() {
    let sts = start();
    sts.unknown_roles_allowed(true);
    let node = Client::node(&sts);
    for arn in
        ["arn:aws:iam::123456789012:role/r", "arn:aws-cn:iam::123456789012:role/a/b!/r+=,.@-_", "arn:aws-us-gov:iam::123456789012:role/r"]
    {
        assert_eq!(node.assume(arn).await.status, 200, "{arn}");
        let issued = sts.issued();
        assert_eq!(issued.last().unwrap().role_arn, arn);
    }
    let long = format!("arn:aws:iam::123456789012:role/{}/r", "p".repeat(2048));
    let name = format!("arn:aws:iam::123456789012:role/{}", "n".repeat(65));
    for arn in [
        "",
        "r",
        "arn:aws:iam::1:role/role-name-long-enough",
        "arn:aws:iam::12345678901x:role/r",
        "arn:aws:iam:eu-central-1:123456789012:role/r",
        "arn:aws:iam::123456789012:user/user-name",
        "arn:aws:iam::123456789012:role/",
        "arn:aws:iam::123456789012:role/r*",
        "arn:aws:iam::123456789012:role/r\n",
        "arn:aws:iam::123456789012:role/a b/r",
        "arn:aws:sts::123456789012:assumed-role/r/s",
        "arn:gcp:iam::123456789012:role/r",
        long.as_str(),
        name.as_str(),
    ] {
        node.assume(arn).await.refused(400, "ValidationError");
    }
}

#[tokio::test]
async fn unknown_and_denied_roles() {
    let sts = start();
    let node = Client::node(&sts);
    let denied = |arn: &str| format!("User: {NODE_SESSION_ARN} is not authorized to perform: sts:AssumeRole on resource: {arn}");
    let answer = node.assume(NEXT).await;
    assert_eq!(answer.refused(403, "AccessDenied"), denied(NEXT));
    assert_eq!(answer.text("Type"), Some("Sender"));
    assert_eq!(answer.headers["x-amzn-requestid"], answer.text("RequestId").unwrap());
    assert!(answer.body.starts_with("<ErrorResponse xmlns=\"https://sts.amazonaws.com/doc/2011-06-15/\"><Error>"));

    sts.unknown_roles_allowed(true);
    assert_eq!(node.assume(NEXT).await.status, 200);
    sts.unknown_roles_allowed(false);

    sts.add_role(Role::new(NEXT).trusted_by(["*"]).denied());
    node.assume(NEXT).await.refused(403, "AccessDenied");
    sts.remove_role(APP);
    node.assume(APP).await.refused(403, "AccessDenied");
}

#[tokio::test]
async fn trust() {
    let sts = start();
    let node = Client::node(&sts);
    for (principal, status) in [
        (NODE_ROLE_ARN, 200),
        (NODE_SESSION_ARN, 200),
        ("arn:aws:iam::111122223333:root", 200),
        ("*", 200),
        ("arn:aws:iam::444455556666:root", 403),
        ("arn:aws-cn:iam::111122223333:root", 403),
        ("arn:aws:iam::111122223333:role/other", 403),
    ] {
        sts.add_role(Role::new(APP).trusted_by([principal]));
        assert_eq!(node.assume(APP).await.status, status, "{principal}");
    }
    sts.add_role(Role::new(APP).trusted_by([NEXT, NODE_ROLE_ARN]));
    assert_eq!(node.assume(APP).await.status, 200);
}

#[tokio::test]
async fn other_actions_and_methods() {
    let sts = start();
    let node = Client::node(&sts);
    let answer = node.call(&[("Action", "GetFederationToken")]).await;
    answer.refused(400, "InvalidAction");
    node.call(&[]).await.refused(400, "MissingAction");
    let mut request = node.signed(&WHO);
    *request.method_mut() = http::Method::GET;
    let answer = exchange(sts.addr(), request).await.unwrap();
    answer.refused(400, "InvalidAction");
    let tags: Vec<(String, &str)> = (1..=51).map(|number| (format!("Tags.member.{number}.Key"), "k")).collect();
    let tags: Vec<(&str, &str)> = tags.iter().map(|(k, v)| (k.as_str(), *v)).collect();
    let answer = node.assume_with(APP, &tags).await;
    answer.refused(400, "ValidationError");
}

#[tokio::test]
async fn client_input_is_escaped_in_the_answer() {
    let sts = start();
    let arn = "arn:aws:iam::123456789012:role/<x>&\"'";
    let answer = Client::node(&sts).assume(arn).await;
    let message = answer.refused(400, "ValidationError");
    assert_eq!(message, "arn:aws:iam::123456789012:role/&lt;x&gt;&amp;&quot;&apos; is invalid");
}
