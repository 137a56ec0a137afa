use std::sync::Mutex;
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use rolegate_lab::kube::{SigningKey, TokenIssuer};
use serde_json::{Value, json};
use std::sync::Arc;
use tokio::sync::watch;
use tokio::time::Instant;

use super::*;
use crate::metrics::Metrics;
use crate::pod_identity::token::{MAX_KEY_ID, TokenError, UnusableKey};
use crate::pods::PodUid;

const ISSUER: &str = "https://kubernetes.default.svc";

/// Serves the documents of an issuer, and counts the fetches of keys.
pub(crate) struct FakeSource {
    pub(crate) issuer: TokenIssuer,
    /// When fetches of keys began.
    fetches: Mutex<Vec<Instant>>,
    is_down: watch::Sender<bool>,
    is_held: watch::Sender<bool>,
}

impl FakeSource {
    pub(crate) fn new(key: SigningKey) -> Arc<Self> {
        let issuer = TokenIssuer::new(ISSUER, key);
        Arc::new(Self { issuer, fetches: Mutex::default(), is_down: watch::Sender::new(false), is_held: watch::Sender::new(false) })
    }

    pub(crate) fn set_down(&self, is_down: bool) {
        self.is_down.send_replace(is_down);
    }

    /// While on, fetches read the document and do not return.
    pub(crate) fn hold(&self, is_held: bool) {
        self.is_held.send_replace(is_held);
    }

    pub(crate) fn fetches(&self) -> Vec<Instant> {
        self.fetches.lock().unwrap().clone()
    }

    async fn answer(&self, document: Value) -> Result<Bytes, KeySourceError> {
        let _ = self.is_held.subscribe().wait_for(|is_held| !is_held).await;
        if *self.is_down.borrow() { Err(KeySourceError::Slow) } else { Ok(document.to_string().into()) }
    }
}

impl KeySource for FakeSource {
    fn keys(&self) -> BoxFuture<'_, Result<Bytes, KeySourceError>> {
        self.fetches.lock().unwrap().push(Instant::now());
        self.answer(self.issuer.jwks()).boxed()
    }

    fn configuration(&self) -> BoxFuture<'_, Result<Bytes, KeySourceError>> {
        self.answer(self.issuer.configuration()).boxed()
    }
}

/// Starts the refresher, and waits for the first fetch.
pub(crate) async fn start(source: &Arc<FakeSource>) -> IssuerKeys {
    let (keys, refresher) = issuer_keys(Arc::clone(source) as Arc<dyn KeySource>, Vec::new(), Metrics::new());
    tokio::spawn(refresher.run());
    keys.any().await.unwrap();
    keys
}

/// A sender of tokens.
pub(crate) fn web() -> KeyRequester {
    requester("shop")
}

fn requester(namespace: &str) -> KeyRequester {
    KeyRequester::Pod { namespace: namespace.to_owned(), uid: PodUid(format!("{namespace}-1").into()) }
}

fn set(keys: &[Value]) -> KeySet {
    KeySet::parse(json!({ "keys": keys }).to_string().as_bytes()).unwrap()
}

fn changed(mut key: Value, member: &str, value: impl Into<Value>) -> Value {
    key[member] = value.into();
    key
}

#[test]
fn keys_that_cannot_be_used_are_left_out() {
    let (rsa, ec) = (SigningKey::rs256().jwk(), SigningKey::es256().with_id("ec").jwk());
    let text = |key: &Value, member: &str| key[member].as_str().unwrap().to_owned();
    let small = text(&rsa, "n")[..340].to_owned();
    for (key, reason) in [
        (changed(rsa.clone(), "kid", Value::Null), UnusableKey::NoId),
        (changed(rsa.clone(), "kid", ""), UnusableKey::NoId),
        (changed(rsa.clone(), "kid", "k".repeat(MAX_KEY_ID + 1)), UnusableKey::NoId),
        (changed(rsa.clone(), "use", "enc"), UnusableKey::OtherUse),
        (changed(rsa.clone(), "kty", "oct"), UnusableKey::Unsupported),
        (changed(rsa.clone(), "kty", "rsa"), UnusableKey::Unsupported),
        (changed(rsa.clone(), "alg", "RS512"), UnusableKey::Unsupported),
        (changed(rsa.clone(), "alg", "HS256"), UnusableKey::Unsupported),
        (changed(rsa.clone(), "alg", "ES256"), UnusableKey::Unsupported),
        (changed(ec.clone(), "alg", "ES384"), UnusableKey::Unsupported),
        (changed(ec.clone(), "crv", "P-521"), UnusableKey::Unsupported),
        (changed(ec.clone(), "crv", "secp256k1"), UnusableKey::Unsupported),
        (changed(ec.clone(), "crv", Value::Null), UnusableKey::Unsupported),
        (changed(ec.clone(), "crv", "P-384"), UnusableKey::Malformed),
        (changed(rsa.clone(), "n", small), UnusableKey::RsaSize),
        (changed(rsa.clone(), "n", "_".repeat(1368)), UnusableKey::RsaSize),
        (changed(rsa.clone(), "n", format!("AAAA{}", text(&rsa, "n"))), UnusableKey::Malformed),
        (changed(rsa.clone(), "n", format!("{}==", text(&rsa, "n"))), UnusableKey::Malformed),
        (changed(rsa.clone(), "n", ""), UnusableKey::Malformed),
        (changed(rsa.clone(), "n", Value::Null), UnusableKey::Malformed),
        (changed(rsa.clone(), "e", "AQ"), UnusableKey::Malformed),
        (changed(rsa.clone(), "e", "AQAA"), UnusableKey::Malformed),
        (changed(rsa.clone(), "e", "AQAAAAAB"), UnusableKey::Malformed),
        (changed(rsa.clone(), "e", 65537), UnusableKey::Malformed),
        (changed(ec.clone(), "x", text(&ec, "x")[..40].to_owned()), UnusableKey::Malformed),
        (changed(ec.clone(), "y", Value::Null), UnusableKey::Malformed),
        (json!(null), UnusableKey::Malformed),
        (json!("key"), UnusableKey::Malformed),
    ] {
        let with_other = set(&[key.clone(), SigningKey::other_rs256().jwk()]);
        assert_eq!((with_other.len(), with_other.unusable()), (1, &[reason][..]), "{key}");
    }
    assert!(set(&[]).is_empty());
    let without = |mut key: Value| {
        key.as_object_mut().unwrap().retain(|name, _| !matches!(name.as_str(), "use" | "alg"));
        key
    };
    assert_eq!(set(&[without(rsa), without(ec)]).len(), 2, "use and alg are optional");
}

#[test]
fn a_key_id_that_two_different_keys_have_belongs_to_neither() {
    let (one, other) = (SigningKey::rs256().with_id("same"), SigningKey::es256().with_id("same"));
    let (good, third) = (SigningKey::es256(), SigningKey::es384().with_id("same"));
    let keys = set(&[one.jwk(), good.jwk(), other.jwk(), third.jwk(), one.jwk()]);
    assert!(keys.get("same").is_none() && keys.get(good.id()).is_some(), "{keys:?}");
    assert_eq!(set(&[good.jwk(), good.jwk()]).unusable(), &[], "the same key twice is one key");
}

#[test]
fn documents_that_are_too_large_or_malformed_are_refused() {
    let parse = |text: &str| KeySet::parse(text.as_bytes()).map(|keys| keys.len());
    for odd in ["", "null", "[]", "{}", r#"{"keys":null}"#, r#"{"keys":{}}"#, r#"{"keys":[]}x"#, r#"{"keys":[],"keys":[]}"#, "<html>"] {
        assert_eq!(parse(odd), Err(DocumentError::Keys), "{odd}");
    }
    assert_eq!(parse(&format!(r#"{{"keys":[]{}}}"#, " ".repeat(MAX_DOCUMENT))), Err(DocumentError::TooLarge));
    let many = |count| json!({ "keys": vec![SigningKey::rs256().jwk(); count] }).to_string();
    assert_eq!((parse(&many(64)), parse(&many(65))), (Ok(1), Err(DocumentError::TooManyKeys)));
    let issuer = |document: &str| issuer_of(document.as_bytes());
    assert_eq!(issuer(&TokenIssuer::new(ISSUER, SigningKey::rs256()).configuration().to_string()), Ok(ISSUER.to_owned()));
    let long = format!(r#"{{"issuer":"{}"}}"#, "a".repeat(2049));
    for odd in ["", "[]", "{}", r#"{"issuer":""}"#, r#"{"issuer":1}"#, r#"{"issuer":"a b"}"#, r#"{"issuer":"a","issuer":"a"}"#, &long] {
        assert_eq!(issuer(odd), Err(DocumentError::Issuer), "{odd}");
    }
    assert_eq!(issuer(&" ".repeat(MAX_DOCUMENT + 1)), Err(DocumentError::TooLarge));
}

#[tokio::test(start_paused = true)]
async fn keys_are_fetched_again_every_few_minutes() {
    let source = FakeSource::new(SigningKey::es256());
    let keys = start(&source).await;
    let (old, new) = (source.issuer.signing_key(), SigningKey::es256());
    source.issuer.rotate(new.clone());
    source.issuer.withdraw(old.id());
    assert!(keys.known().unwrap().keys.get(old.id()).is_some());
    tokio::time::sleep(REFRESH_EVERY + Duration::from_millis(1)).await;
    let known = keys.known().unwrap();
    assert!(known.keys.get(old.id()).is_none() && known.keys.get(new.id()).is_some(), "{known:?}");
    assert_eq!(keys.with_key(old.id(), &web()).await, Err(TokenError::UnknownKey));
}

#[tokio::test(start_paused = true)]
async fn a_new_issuer_replaces_the_old_one_unless_issuers_are_given() {
    let source = FakeSource::new(SigningKey::es256());
    let discovered = start(&source).await;
    let given = ["https://old", "https://new"].map(str::to_owned).to_vec();
    let (fixed, refresher) = issuer_keys(Arc::clone(&source) as Arc<dyn KeySource>, given.clone(), Metrics::new());
    tokio::spawn(refresher.run());
    assert_eq!(fixed.any().await.unwrap().issuers, given);
    assert_eq!(discovered.known().unwrap().issuers, [ISSUER]);
    source.issuer.rename("https://other");
    tokio::time::sleep(REFRESH_EVERY + Duration::from_millis(1)).await;
    assert_eq!(discovered.known().unwrap().issuers, ["https://other"]);
    assert_eq!(fixed.known().unwrap().issuers, given);
}

#[tokio::test(start_paused = true)]
async fn many_tokens_with_a_new_key_share_one_fetch() {
    let source = FakeSource::new(SigningKey::es256());
    let keys = start(&source).await;
    tokio::time::sleep(LEAST_BETWEEN).await;
    let new = SigningKey::es256();
    source.issuer.rotate(new.clone());
    let web = web();
    let waiting: Vec<_> = (0..200).map(|_| keys.with_key(new.id(), &web)).collect();
    let found = futures_util::future::join_all(waiting).await;
    assert!(found.iter().all(Result::is_ok), "{found:?}");
    assert_eq!(source.fetches().len(), 2, "the first one, and one for all");
    tokio::time::sleep(LEAST_BETWEEN * 2).await;
    assert_eq!(source.fetches().len(), 2, "nothing is left over from them");
}

#[tokio::test(start_paused = true)]
async fn a_fetch_that_began_before_the_token_came_does_not_refuse_it() {
    let source = FakeSource::new(SigningKey::es256());
    let keys = start(&source).await;
    tokio::time::sleep(LEAST_BETWEEN).await;
    source.hold(true);
    let early = tokio::spawn({
        let keys = keys.clone();
        async move { keys.with_key("unknown", &web()).await }
    });
    while source.fetches().len() < 2 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    // The fetch that is under way has read the keys already.
    let new = SigningKey::es256();
    source.issuer.rotate(new.clone());
    let late = tokio::spawn({
        let (keys, id) = (keys.clone(), new.id().to_owned());
        async move { keys.with_key(&id, &requester("bank")).await }
    });
    tokio::time::sleep(Duration::from_millis(1)).await;
    source.hold(false);
    assert_eq!(early.await.unwrap(), Err(TokenError::UnknownKey));
    // The next fetch is not due before the patience ends, so the client must retry, and is not refused for good.
    assert_eq!(late.await.unwrap(), Err(TokenError::KeysOutdated));
    tokio::time::sleep(LEAST_BETWEEN).await;
    assert!(keys.with_key(new.id(), &web()).await.is_ok());
}

/// Sends 20 tokens with unknown keys every tenth of a second, for this time, and returns the longest wait of one of them.
async fn flood(keys: &IssuerKeys, requester: &KeyRequester, time: Duration) -> Duration {
    let (began, mut waits) = (Instant::now(), tokio::task::JoinSet::new());
    while began.elapsed() < time {
        for number in 0..20 {
            let (keys, requester, id) = (keys.clone(), requester.clone(), format!("{number}-{:?}", Instant::now()));
            waits.spawn(async move {
                let began = Instant::now();
                let result = keys.with_key(&id, &requester).await;
                let refused = [TokenError::UnknownKey, TokenError::KeysOutdated, TokenError::FetchesLimited].map(Err);
                assert!(refused.contains(&result), "{result:?}");
                began.elapsed()
            });
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    waits.join_all().await.into_iter().max().unwrap()
}

#[tokio::test(start_paused = true)]
async fn a_flood_of_unknown_keys_causes_ever_fewer_fetches_and_short_waits() {
    let source = FakeSource::new(SigningKey::es256());
    let keys = start(&source).await;
    let began = Instant::now();
    let longest = flood(&keys, &web(), Duration::from_secs(600)).await;
    assert!(longest <= PATIENCE + Duration::from_millis(1), "{longest:?}");
    // Besides that at the start, two regular ones.
    let fetches = source.fetches();
    let of_flood: Vec<_> = fetches.iter().map(|fetch| *fetch - began).collect();
    assert!((4..=13).contains(&fetches.len()), "{of_flood:?}");
}

#[tokio::test(start_paused = true)]
async fn a_flood_delays_no_other_namespace_that_gets_a_new_key() {
    let source = FakeSource::new(SigningKey::es256());
    let keys = start(&source).await;
    flood(&keys, &web(), Duration::from_secs(60)).await;
    while keys.with_key("unknown", &web()).await != Err(TokenError::FetchesLimited) {}
    tokio::time::sleep(LEAST_BETWEEN).await;
    let new = SigningKey::es256();
    source.issuer.rotate(new.clone());
    assert_eq!(keys.with_key(new.id(), &web()).await, Err(TokenError::FetchesLimited), "the pod itself must retry");
    assert!(keys.with_key(new.id(), &requester("bank")).await.is_ok());
    assert!(keys.with_key(new.id(), &web()).await.is_ok());
    // The keys have changed, so this pod may cause a fetch again.
    tokio::time::sleep(LEAST_BETWEEN).await;
    assert_eq!(keys.with_key("unknown", &web()).await, Err(TokenError::UnknownKey));
}

#[tokio::test(start_paused = true)]
async fn a_token_waits_for_a_fetch_that_another_one_caused() {
    let source = FakeSource::new(SigningKey::es256());
    let keys = start(&source).await;
    assert_eq!(keys.with_key("unknown", &web()).await, Err(TokenError::UnknownKey));
    let new = SigningKey::es256();
    source.issuer.rotate(new.clone());
    tokio::time::sleep(LEAST_BETWEEN - PATIENCE / 2).await;
    let (bank, web) = (requester("bank"), web());
    let (first, second) = tokio::join!(keys.with_key(new.id(), &bank), keys.with_key(new.id(), &web));
    assert!(first.is_ok() && second.is_ok(), "{first:?} {second:?}");
    let fetches = source.fetches();
    assert!(fetches.len() == 3 && fetches[2] - fetches[1] >= LEAST_BETWEEN, "{fetches:?}");
}

#[tokio::test(start_paused = true)]
async fn tokens_cause_no_fetches_while_the_api_fails() {
    let source = FakeSource::new(SigningKey::es256());
    let keys = start(&source).await;
    source.set_down(true);
    assert_eq!(keys.with_key("unknown", &web()).await, Err(TokenError::KeysOutdated));
    tokio::time::sleep(Duration::from_secs(120)).await;
    let before = source.fetches().len();
    flood(&keys, &web(), Duration::from_secs(120)).await;
    assert!(source.fetches().len() - before <= 6, "{:?}", source.fetches());
}

#[tokio::test(start_paused = true)]
async fn known_keys_work_for_as_long_as_the_api_is_down() {
    let source = FakeSource::new(SigningKey::es256());
    let keys = start(&source).await;
    let known = source.issuer.signing_key();
    source.set_down(true);
    let new = SigningKey::es256();
    source.issuer.rotate(new.clone());
    for _ in 0..60 {
        tokio::time::sleep(Duration::from_secs(60)).await;
        assert!(keys.with_key(known.id(), &web()).await.is_ok());
    }
    assert_eq!(keys.with_key(new.id(), &web()).await, Err(TokenError::KeysOutdated), "a client must retry");
    let during = source.fetches().len();
    assert!((60..200).contains(&during), "{during} fetches in an hour");
    source.set_down(false);
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert!(keys.with_key(new.id(), &web()).await.is_ok());
}

#[tokio::test(start_paused = true)]
async fn without_any_keys_tokens_wait_for_a_moment() {
    let source = FakeSource::new(SigningKey::es256());
    source.hold(true);
    let (keys, refresher) = issuer_keys(Arc::clone(&source) as Arc<dyn KeySource>, Vec::new(), Metrics::new());
    tokio::spawn(refresher.run());
    let began = Instant::now();
    assert_eq!(keys.any().await, Err(TokenError::NoKeys));
    assert!(began.elapsed() <= PATIENCE + Duration::from_millis(1), "{:?}", began.elapsed());
    source.hold(false);
    assert!(keys.any().await.is_ok());
}

#[tokio::test(start_paused = true)]
async fn a_source_that_never_answers_is_asked_again() {
    let source = FakeSource::new(SigningKey::es256());
    source.hold(true);
    let (keys, refresher) = issuer_keys(Arc::clone(&source) as Arc<dyn KeySource>, Vec::new(), Metrics::new());
    tokio::spawn(refresher.run());
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert!(source.fetches().len() > 2, "{:?}", source.fetches());
    assert_eq!(keys.known(), None);
}
