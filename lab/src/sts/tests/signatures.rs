//! Signatures: the signer, what is signed, and the time.

use super::*;

async fn raw(sts: &Sts, change: impl FnOnce(&mut Request<Full<Bytes>>)) -> Answer {
    let mut request = Client::node(sts).signed(&assume(APP));
    change(&mut request);
    exchange(sts.addr(), request).await.unwrap()
}

fn authorization(request: &Request<Full<Bytes>>) -> String {
    let value = request.headers()["authorization"].to_str().unwrap();
    value.to_owned()
}

#[tokio::test]
async fn no_signature() {
    let sts = start();
    let answer = raw(&sts, |request| {
        request.headers_mut().remove("authorization");
    });
    answer.await.refused(403, "MissingAuthenticationToken");
    assert_eq!(sts.calls()[0].region, None);
    assert_eq!(sts.calls()[0].outcome, "MissingAuthenticationToken");
}

#[tokio::test]
async fn an_incomplete_signature() {
    let sts = start();
    let cuts = [
        ("AWS4-HMAC-SHA256", "AWS4-HMAC-SHA1"),
        ("Credential=", "Kredential="),
        ("SignedHeaders=", "Headers="),
        ("Signature=", "Sig="),
        ("/aws4_request", ""),
        ("/aws4_request", "/aws5_request"),
    ];
    for (from, to) in cuts {
        let answer = raw(&sts, |request| {
            let value = authorization(request).replacen(from, to, 1);
            let headers = request.headers_mut();
            headers.insert("authorization", value.parse().unwrap());
        });
        answer.await.refused(400, "IncompleteSignature");
    }
    for date in [None, Some("yesterday"), Some("2026"), Some("")] {
        let answer = raw(&sts, |request| {
            request.headers_mut().remove("x-amz-date");
            if let Some(date) = date {
                let headers = request.headers_mut();
                headers.insert("x-amz-date", date.parse().unwrap());
            }
        });
        answer.await.refused(400, "IncompleteSignature");
    }
}

#[tokio::test]
async fn a_wrong_secret() {
    let sts = start();
    let mut client = Client::node(&sts);
    client.secret.push('x');
    client.assume(APP).await.refused(403, "SignatureDoesNotMatch");
    assert_eq!(sts.calls()[0].caller_arn, None);
    assert!(sts.issued().is_empty());
}

#[tokio::test]
async fn a_changed_request() {
    let sts = start();
    let mut form = assume(APP);
    form[3].1 = "pod-2";
    let other = Client::node(&sts).signed(&form).into_body();
    let answer = raw(&sts, |request| *request.body_mut() = other).await;
    answer.refused(403, "SignatureDoesNotMatch");

    let answer = raw(&sts, |request| {
        let headers = request.headers_mut();
        headers.insert("x-amz-lab", "a c".parse().unwrap());
    });
    answer.await.refused(403, "SignatureDoesNotMatch");

    let answer = raw(&sts, |request| *request.uri_mut() = "/?a=b".parse().unwrap());
    answer.await.refused(403, "SignatureDoesNotMatch");

    let answer = raw(&sts, |request| {
        let headers = request.headers_mut();
        headers.insert("host", "sts.amazonaws.com".parse().unwrap());
    });
    answer.await.refused(403, "SignatureDoesNotMatch");
}

#[tokio::test]
async fn what_is_not_part_of_the_signature_may_change() {
    let sts = start();
    let answer = raw(&sts, |request| {
        let headers = request.headers_mut();
        headers.insert("user-agent", "another".parse().unwrap());
        // Runs of spaces collapse into one.
        headers.insert("x-amz-lab", "a b".parse().unwrap());
    });
    assert_eq!(answer.await.status, 200);
}

#[tokio::test]
async fn an_amazon_header_outside_of_the_signature() {
    let sts = start();
    let answer = raw(&sts, |request| {
        let headers = request.headers_mut();
        headers.insert("x-amz-added", "later".parse().unwrap());
    });
    let answer = answer.await;
    let message = answer.refused(403, "SignatureDoesNotMatch");
    assert!(message.contains("x-amz-added"), "{message}");
}

#[tokio::test]
async fn another_service_and_another_region() {
    let sts = start();
    let mut client = Client::node(&sts);
    client.region = "us-gov-west-1";
    assert_eq!(client.who().await.status, 200);
    assert_eq!(sts.calls()[0].region.as_deref(), Some("us-gov-west-1"));
    client.service = "s3";
    let answer = client.who().await;
    let message = answer.refused(403, "SignatureDoesNotMatch");
    assert!(message.contains("correct service"), "{message}");
}

#[tokio::test]
async fn an_unknown_key() {
    let sts = start();
    let mut client = Client::node(&sts);
    client.key = "AKIAUNKNOWN000000000".to_owned();
    client.who().await.refused(403, "InvalidClientTokenId");
    sts.add_caller(&client.key, &client.secret, None, "arn:aws:iam::1:user/u");
    assert_eq!(client.who().await.text("Arn"), Some("arn:aws:iam::1:user/u"));
}

#[tokio::test]
async fn a_session_needs_its_own_token() {
    let sts = start();
    let node = Client::node(&sts);
    node.assume(APP).await;
    node.assume(APP).await;
    let issued = sts.issued();
    let mut session = Client::session(&sts, &issued[0]);
    assert_eq!(session.who().await.status, 200);
    session.token = Some(issued[1].session_token.clone());
    session.who().await.refused(403, "InvalidClientTokenId");
    session.token = None;
    session.who().await.refused(403, "InvalidClientTokenId");

    sts.add_caller("ASIATOKEN", "secret", Some("token"), "arn:aws:iam::1:user/u");
    let mut caller = Client::node(&sts);
    (caller.key, caller.secret) = ("ASIATOKEN".to_owned(), "secret".to_owned());
    caller.who().await.refused(403, "InvalidClientTokenId");
    caller.token = Some("token".to_owned());
    assert_eq!(caller.who().await.status, 200);
}

#[tokio::test]
async fn a_session_ends() {
    let sts = start();
    Client::node(&sts).assume(APP).await;
    let issued = &sts.issued()[0];
    let mut session = Client::session(&sts, issued);
    sts.set_clock_skew(3500);
    session.time = SystemTime::now() + Duration::from_secs(3500);
    assert_eq!(session.who().await.status, 200);
    sts.set_clock_skew(3601);
    session.time = SystemTime::now() + Duration::from_secs(3601);
    session.who().await.refused(403, "ExpiredToken");

    sts.set_clock_skew(0);
    let session = Client::session(&sts, issued);
    assert_eq!(session.who().await.status, 200);
    sts.expire(&issued.access_key_id);
    session.who().await.refused(403, "ExpiredToken");
    assert_eq!(sts.calls().last().unwrap().outcome, "ExpiredToken");
}

#[tokio::test]
async fn a_wrong_clock() {
    let sts = start();
    // A minute away from the bound, because the machine's clock advances between signing and checking.
    for (skew, fine) in [(840, true), (-840, true), (960, false), (-960, false)] {
        sts.set_clock_skew(skew);
        let answer = Client::node(&sts).assume(APP).await;
        let date = answer.headers["date"].to_str().unwrap();
        let date = jiff::fmt::rfc2822::parse(date).unwrap().timestamp();
        let ahead = date.as_second() - jiff::Timestamp::now().as_second();
        assert!((skew - 10..=skew).contains(&ahead), "{ahead} for {skew}");
        if fine {
            let end = sts.issued().last().unwrap().expires_at.as_second();
            let left = end - jiff::Timestamp::now().as_second() - skew;
            assert!((3590..=3600).contains(&left), "{left} for {skew}");
            continue;
        }
        let message = answer.refused(403, "SignatureDoesNotMatch");
        let expected = if skew > 0 { "Signature expired: " } else { "Signature not yet current: " };
        assert!(message.starts_with(expected), "{message}");
    }
}
