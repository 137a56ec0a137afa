//! Failures on demand.

use super::*;

#[tokio::test]
async fn errors() {
    let sts = start();
    let node = Client::node(&sts);
    for (behaviour, status, code, kind) in [
        (Behaviour::AccessDenied, 403, "AccessDenied", "Sender"),
        (Behaviour::Throttling, 400, "Throttling", "Sender"),
        (Behaviour::ExpiredToken, 403, "ExpiredToken", "Sender"),
        (Behaviour::InvalidClientTokenId, 403, "InvalidClientTokenId", "Sender"),
        (Behaviour::RegionDisabled, 403, "RegionDisabledException", "Sender"),
        (Behaviour::ServiceUnavailable, 503, "ServiceUnavailable", "Receiver"),
        (Behaviour::InternalFailure, 500, "InternalFailure", "Receiver"),
        (Behaviour::Error(400, "OptInRequired", "no"), 400, "OptInRequired", "Sender"),
    ] {
        sts.set_behaviour(behaviour);
        let answer = node.assume(APP).await;
        answer.refused(status, code);
        assert_eq!(answer.text("Type"), Some(kind));
        assert_eq!(sts.calls().last().unwrap().outcome, code);
    }
    assert!(sts.issued().is_empty());
    sts.set_behaviour(Behaviour::Normal);
    assert_eq!(node.assume(APP).await.status, 200);
}

#[tokio::test]
async fn a_wrong_signature_is_refused_before_any_behaviour() {
    let sts = start();
    sts.set_behaviour(Behaviour::Then(vec![Behaviour::Throttling]));
    let mut client = Client::node(&sts);
    client.secret.clear();
    client.assume(APP).await.refused(403, "SignatureDoesNotMatch");
    let answer = Client::node(&sts).assume(APP).await;
    answer.refused(400, "Throttling");
}

#[tokio::test]
async fn a_role_may_have_its_own_behaviour() {
    let sts = start();
    sts.add_role(Role::new(NEXT));
    let node = Client::node(&sts);
    sts.set_role_behaviour(NEXT, Behaviour::InternalFailure);
    node.assume(NEXT).await.refused(500, "InternalFailure");
    assert_eq!(node.assume(APP).await.status, 200);
    sts.set_behaviour(Behaviour::Throttling);
    node.assume(NEXT).await.refused(500, "InternalFailure");
    node.assume(APP).await.refused(400, "Throttling");
    sts.set_role_behaviour(NEXT, Behaviour::Normal);
    node.assume(NEXT).await.refused(400, "Throttling");
}

#[tokio::test]
async fn sequences() {
    let sts = start();
    let node = Client::node(&sts);
    sts.set_behaviour(Behaviour::Then(vec![
        Behaviour::Throttling,
        Behaviour::Then(vec![Behaviour::InternalFailure, Behaviour::Normal]),
        Behaviour::Then(vec![]),
        Behaviour::ServiceUnavailable,
    ]));
    let mut statuses = Vec::new();
    for _ in 0..7 {
        statuses.push(node.assume(APP).await.status);
    }
    assert_eq!(statuses, [400, 500, 200, 200, 503, 200, 200]);
}

#[tokio::test]
async fn broken_answers() {
    let sts = start();
    let node = Client::node(&sts);
    sts.set_behaviour(Behaviour::Malformed);
    let answer = node.assume(APP).await;
    assert_eq!(answer.status, 200);
    assert!(answer.body.starts_with("<AssumeRoleResponse xmlns=\"https://sts.amazonaws.com/doc/2011-06-15/><"));

    sts.set_behaviour(Behaviour::Truncated);
    let answer = node.assume(APP).await;
    assert_eq!(answer.status, 200);
    let (_, token) = answer.body.split_once("<SessionToken>").unwrap();
    let issued = sts.issued();
    let whole = &issued.last().unwrap().session_token;
    assert!(token.len() < whole.len() && whole.starts_with(token));

    sts.set_behaviour(Behaviour::MissingFields);
    let answer = node.assume(APP).await;
    assert!(answer.text("AccessKeyId").is_some());
    for name in ["SecretAccessKey", "SessionToken", "Expiration"] {
        assert_eq!(answer.text(name), None);
    }
    assert!(answer.body.ends_with("</AssumeRoleResponse>\n"));

    sts.set_behaviour(Behaviour::MissingField("SessionToken"));
    let answer = node.assume(APP).await;
    assert_eq!(answer.text("SessionToken"), None);
    assert!(answer.text("SecretAccessKey").is_some());

    sts.set_behaviour(Behaviour::ExpiresIn(Duration::from_secs(5)));
    node.assume(APP).await;
    let end = sts.issued().last().unwrap().expires_at.as_second();
    assert!(end - jiff::Timestamp::now().as_second() <= 5);
}

#[tokio::test]
async fn closed_before_the_answer() {
    let sts = start();
    sts.set_behaviour(Behaviour::CloseBeforeAnswer);
    let result = Client::node(&sts).try_call(&assume(APP)).await;
    assert!(result.unwrap_err().is_incomplete_message());
    assert_eq!(sts.calls()[0].outcome, Call::CLOSED);
    assert_eq!(sts.in_flight(), 0);
}

#[tokio::test]
async fn closed_in_the_middle_of_the_body() {
    let sts = start();
    sts.set_behaviour(Behaviour::CloseMidBody);
    let client = Client::node(&sts);
    let stream = TcpStream::connect(sts.addr()).await.unwrap();
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
    let exchange = async {
        let answer = sender.send_request(client.signed(&assume(APP))).await;
        let mut answer = answer.unwrap();
        assert_eq!(answer.status(), 200);
        let half = answer.frame().await.unwrap().unwrap();
        let half = half.into_data().unwrap();
        assert!(half.starts_with(b"<AssumeRoleResponse "));
        assert!(answer.frame().await.unwrap().is_err());
    };
    let _ = soon(async { tokio::join!(exchange, connection) }).await;
    assert_eq!(sts.calls()[0].outcome, Call::CLOSED);
}

#[tokio::test]
async fn hanging_calls_stay_in_flight_until_the_client_leaves() {
    let sts = start();
    sts.set_behaviour(Behaviour::Hang);
    let clients: Vec<_> = (0..3)
        .map(|_| {
            let client = Client::node(&sts);
            tokio::spawn(async move { client.try_call(&assume(APP)).await.is_ok() })
        })
        .collect();
    soon(sts.wait_for_calls(3)).await;
    assert_eq!((sts.in_flight(), sts.max_in_flight()), (3, 3));
    assert_eq!(sts.calls()[2].outcome, Call::PENDING);
    for client in &clients {
        client.abort();
    }
    soon(sts.wait_for_answers(3)).await;
    assert_eq!((sts.in_flight(), sts.max_in_flight()), (0, 3));
    assert_eq!(sts.calls()[0].outcome, Call::ABANDONED);
    assert_eq!(sts.assume_role_calls(), 3);
}

#[tokio::test]
async fn slow_calls_are_eventually_answered() {
    let sts = start();
    let delay = Duration::from_millis(50);
    sts.set_behaviour(Behaviour::Slow(delay));
    let before = std::time::Instant::now();
    assert_eq!(Client::node(&sts).assume(APP).await.status, 200);
    assert!(before.elapsed() >= delay);
}
