use std::sync::Arc;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use rolegate_lab::kube::{Attack, PodToken, SigningKey};
use tokio::time::Instant;

use super::*;
use crate::config::flags::DEFAULT_POD_IDENTITY_AUDIENCE as AUDIENCE;
use crate::pod_identity::keys::tests::{FakeSource, start, web};
use crate::pod_identity::keys::{LEAST_BETWEEN, PATIENCE, REFRESH_EVERY};

const UID: &str = "0d1c3e5a-7b64-4d0e-9a51-000000000001";

struct Setup {
    source: Arc<FakeSource>,
    verifier: Verifier,
    clock: Clock,
}

impl Setup {
    async fn new() -> Self {
        let start_time: Timestamp = "2026-11-30T12:00:00Z".parse().unwrap();
        let clock = Clock::following_tokio(start_time);
        let source = FakeSource::new(SigningKey::rs256());
        let verifier = Verifier::new(start(&source).await, AUDIENCE, clock.clone());
        Self { source, verifier, clock }
    }

    fn pod(&self) -> PodToken {
        PodToken::new("shop", "web-1", UID).issued_at(self.clock.now())
    }

    fn issue(&self) -> BearerToken {
        token(&self.source.issuer.issue(&self.pod()))
    }

    async fn remembered(&self) -> u64 {
        self.verifier.verified.run_pending_tasks().await;
        self.verifier.verified.entry_count()
    }
}

impl Verifier {
    /// Verifies a token that the pod sent which it names.
    pub(in crate::pod_identity) async fn verify(&self, token: &BearerToken) -> Result<Arc<Claims>, TokenError> {
        match self.examine(token).await? {
            Examined::Valid(claims) => Ok(claims),
            Examined::UnknownKey(token) => token.verify(&web()).await,
        }
    }
}

fn token(text: &str) -> BearerToken {
    BearerToken::new(text.as_bytes()).unwrap()
}

#[tokio::test(start_paused = true)]
async fn a_verified_token_is_remembered_until_it_expires() {
    let setup = Setup::new().await;
    let token = token(&setup.source.issuer.issue(&setup.pod().valid_for(SignedDuration::from_secs(600))));
    let first = setup.verifier.verify(&token).await.unwrap();
    assert_eq!(&*first.pod_uid.0, UID);
    let second = setup.verifier.verify(&token).await.unwrap();
    assert!(Arc::ptr_eq(&first, &second), "it was verified twice");
    tokio::time::sleep(Duration::from_secs(599)).await;
    assert!(setup.verifier.verify(&token).await.is_ok());
    tokio::time::sleep(Duration::from_secs(1)).await;
    for _ in 0..2 {
        assert_eq!(setup.verifier.verify(&token).await, Err(TokenError::Expired));
    }
    assert_eq!(setup.remembered().await, 0);
}

#[tokio::test(start_paused = true)]
async fn a_remembered_token_ends_with_its_key() {
    let setup = Setup::new().await;
    let token = setup.issue();
    let first = setup.verifier.verify(&token).await.unwrap();
    // Another key comes: what is remembered stays.
    setup.source.issuer.rotate(SigningKey::es256());
    tokio::time::sleep(REFRESH_EVERY).await;
    assert!(Arc::ptr_eq(&first, &setup.verifier.verify(&token).await.unwrap()));
    // Another key takes the ID, and then no key has it.
    let id = SigningKey::rs256().id().to_owned();
    setup.source.issuer.withdraw(&id);
    setup.source.issuer.rotate(SigningKey::other_rs256().with_id(&id));
    tokio::time::sleep(REFRESH_EVERY).await;
    assert_eq!(setup.verifier.verify(&token).await, Err(TokenError::BadSignature));
    setup.source.issuer.withdraw(&id);
    tokio::time::sleep(REFRESH_EVERY).await;
    assert_eq!(setup.verifier.verify(&token).await, Err(TokenError::UnknownKey));
}

#[tokio::test(start_paused = true)]
async fn a_remembered_token_ends_with_its_issuer() {
    let setup = Setup::new().await;
    let token = setup.issue();
    assert!(setup.verifier.verify(&token).await.is_ok());
    setup.source.issuer.rename("https://other");
    tokio::time::sleep(REFRESH_EVERY).await;
    assert_eq!(setup.verifier.verify(&token).await, Err(TokenError::WrongIssuer));
}

#[tokio::test(start_paused = true)]
async fn a_rotation_refuses_no_token() {
    let setup = Setup::new().await;
    let old = setup.issue();
    assert!(setup.verifier.verify(&old).await.is_ok());
    tokio::time::sleep(LEAST_BETWEEN).await;
    setup.source.issuer.rotate(SigningKey::es256());
    let new = setup.issue();
    assert!(setup.verifier.verify(&new).await.is_ok());
    assert!(setup.verifier.verify(&old).await.is_ok());
    assert_eq!(setup.source.fetches().len(), 2);
}

#[tokio::test(start_paused = true)]
async fn refused_tokens_are_not_remembered_and_cause_no_fetch() {
    let setup = Setup::new().await;
    for attack in Attack::ALL.into_iter().filter(|attack| *attack != Attack::PathAsId) {
        let forged = token(&setup.source.issuer.forge(attack, &setup.pod()));
        assert!(setup.verifier.verify(&forged).await.is_err(), "{attack:?}");
    }
    // Of another cluster: its key is unknown, too, but its issuer refuses it first.
    let foreign = SigningKey::es256();
    for claims in [
        setup.pod().issuer("https://other").claims(""),
        setup.pod().audiences(&["vault"]).claims(&setup.source.issuer.url()),
        setup.pod().valid_for(SignedDuration::ZERO).claims(&setup.source.issuer.url()),
    ] {
        let refused = setup.verifier.verify(&token(&foreign.sign(&foreign.header(), &claims))).await;
        assert!(refused.is_err_and(|error| error != TokenError::UnknownKey), "{claims}");
    }
    tokio::time::sleep(LEAST_BETWEEN * 2).await;
    assert_eq!((setup.remembered().await, setup.source.fetches().len()), (0, 1));
}

#[tokio::test(start_paused = true)]
async fn a_flood_of_forged_tokens_delays_no_valid_one() {
    let setup = Setup::new().await;
    let valid = setup.issue();
    let mut flood = tokio::task::JoinSet::new();
    for _ in 0..300 {
        let own = SigningKey::es256();
        let forged = token(&own.sign(&own.header(), &setup.pod().claims(&setup.source.issuer.url())));
        let verifier = setup.verifier.clone();
        flood.spawn(async move { verifier.verify(&forged).await });
    }
    tokio::task::yield_now().await;
    let began = Instant::now();
    assert!(setup.verifier.verify(&valid).await.is_ok());
    assert_eq!(began.elapsed(), Duration::ZERO);
    while let Some(result) = flood.join_next().await {
        assert!(matches!(result.unwrap(), Err(TokenError::UnknownKey | TokenError::KeysOutdated | TokenError::FetchesLimited)));
    }
    assert!(began.elapsed() <= PATIENCE + Duration::from_millis(1), "{:?}", began.elapsed());
    assert!(setup.source.fetches().len() <= 2);
    assert_eq!(setup.remembered().await, 1);
}

#[tokio::test(start_paused = true)]
async fn tokens_are_verified_through_an_hour_without_the_api() {
    let setup = Setup::new().await;
    setup.source.set_down(true);
    for _ in 0..12 {
        tokio::time::sleep(Duration::from_secs(5 * 60)).await;
        assert!(setup.verifier.verify(&setup.issue()).await.is_ok());
    }
}

#[tokio::test(start_paused = true)]
async fn an_unknown_key_alone_causes_no_fetch() {
    let setup = Setup::new().await;
    let foreign = SigningKey::es256();
    let token = token(&foreign.sign(&foreign.header(), &setup.pod().node("node-b", None).claims(&setup.source.issuer.url())));
    let Examined::UnknownKey(unknown) = setup.verifier.examine(&token).await.unwrap() else { panic!("its key is known") };
    assert_eq!((&*unknown.claimed().pod_uid.0, unknown.claimed().node.as_deref()), (UID, Some("node-b")));
    drop(unknown);
    tokio::time::sleep(LEAST_BETWEEN * 2).await;
    assert_eq!(setup.source.fetches().len(), 1);
}
