use std::sync::atomic::{AtomicUsize, Ordering};

use futures_util::FutureExt as _;
use futures_util::future::{BoxFuture, join_all};
use tokio::sync::watch;

use super::api::ReviewedUser;
use super::gate::{MAX_OF_POD, MAX_REVIEWS};
use super::*;
use crate::pods::PodUid;

const AUDIENCE: &str = "pods.eks.amazonaws.com";

/// Answers every review with the same.
struct FakeReviewer {
    answer: Mutex<Option<ReviewedToken>>,
    is_down: watch::Sender<bool>,
    is_held: watch::Sender<bool>,
    reviews: AtomicUsize,
    under_way: AtomicUsize,
}

/// A review, until it ends or is given up.
struct UnderWay<'a>(&'a AtomicUsize);

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

impl FakeReviewer {
    fn reviews(&self) -> usize {
        self.reviews.load(Ordering::SeqCst)
    }

    fn set_answer(&self, answer: Option<ReviewedToken>) {
        *self.answer.lock().unwrap() = answer;
    }
}

impl TokenReviewer for FakeReviewer {
    fn review<'a>(&'a self, _: &'a BearerToken, _: &'a str) -> BoxFuture<'a, Result<Option<ReviewedToken>, ReviewError>> {
        async move {
            self.reviews.fetch_add(1, Ordering::SeqCst);
            self.under_way.fetch_add(1, Ordering::SeqCst);
            let _under_way = UnderWay(&self.under_way);
            let _ = self.is_held.subscribe().wait_for(|is_held| !is_held).await;
            if *self.is_down.borrow() { Err(ReviewError::Slow) } else { Ok(self.answer.lock().unwrap().clone()) }
        }
        .boxed()
    }
}

fn setup() -> (Arc<FakeReviewer>, TokenReviews) {
    let reviewer = Arc::new(FakeReviewer {
        answer: Mutex::new(Some(reviewed())),
        is_down: watch::Sender::new(false),
        is_held: watch::Sender::new(false),
        reviews: AtomicUsize::new(0),
        under_way: AtomicUsize::new(0),
    });
    let reviews = TokenReviews::new(Arc::clone(&reviewer) as Arc<dyn TokenReviewer>, AUDIENCE, Metrics::new());
    (reviewer, reviews)
}

fn token(text: &str) -> BearerToken {
    BearerToken::new(text.as_bytes()).unwrap()
}

fn claims() -> Claims {
    claims_of("shop", "pod-1")
}

fn claims_of(namespace: &str, uid: &str) -> Claims {
    let time = jiff::Timestamp::UNIX_EPOCH;
    Claims {
        namespace: namespace.to_owned(),
        pod: "web".to_owned(),
        pod_uid: PodUid(uid.into()),
        service_account: "web".to_owned(),
        service_account_uid: "account-1".to_owned(),
        node: None,
        token_id: None,
        issued: time,
        expires: time,
    }
}

fn reviewed() -> ReviewedToken {
    let extra = [("authentication.kubernetes.io/pod-uid".to_owned(), vec!["pod-1".to_owned()])].into();
    let user = ReviewedUser { username: "system:serviceaccount:shop:web".to_owned(), uid: "account-1".to_owned(), extra };
    ReviewedToken { user, audiences: vec![AUDIENCE.to_owned()] }
}

#[test]
fn what_the_api_says_must_match_the_claims() {
    assert!(reviewed().confirms(&claims(), AUDIENCE));
    let changes: [fn(&mut ReviewedToken); 7] = [
        |token| token.user.username = "system:serviceaccount:shop:other".to_owned(),
        |token| token.user.username = "web".to_owned(),
        |token| token.user.uid = "account-2".to_owned(),
        |token| token.user.extra.clear(),
        |token| token.user.extra.values_mut().for_each(|uids| *uids = vec!["pod-2".to_owned()]),
        |token| token.user.extra.values_mut().for_each(|uids| uids.push("pod-2".to_owned())),
        |token| token.audiences = vec!["vault".to_owned()],
    ];
    for (number, change) in changes.iter().enumerate() {
        let mut other = reviewed();
        change(&mut other);
        assert!(!other.confirms(&claims(), AUDIENCE), "{number}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_withdrawn_token_is_refused_within_five_minutes() {
    let (reviewer, reviews) = setup();
    assert_eq!(reviews.confirm(&token("a"), &claims()).await, Ok(()));
    reviewer.set_answer(None);
    assert_eq!(reviews.confirm(&token("a"), &claims()).await, Ok(()));
    assert_eq!(reviewer.reviews(), 1, "the first review counts");
    tokio::time::sleep(REVIEW_EVERY).await;
    for _ in 0..3 {
        assert_eq!(reviews.confirm(&token("a"), &claims()).await, Err(TokenError::ReviewRefused));
    }
    assert_eq!(reviewer.reviews(), 2, "the refusal is remembered, too");
    reviewer.set_answer(Some(reviewed()));
    tokio::time::sleep(REFUSED_FOR).await;
    assert_eq!(reviews.confirm(&token("a"), &claims()).await, Ok(()));
}

#[tokio::test(start_paused = true)]
async fn without_the_api_only_tokens_that_it_confirmed_before_are_used() {
    let (reviewer, reviews) = setup();
    assert_eq!(reviews.confirm(&token("old"), &claims()).await, Ok(()));
    reviewer.is_down.send_replace(true);
    for _ in 0..12 {
        tokio::time::sleep(REVIEW_EVERY).await;
        let began = Instant::now();
        assert_eq!(reviews.confirm(&token("old"), &claims()).await, Ok(()));
        assert_eq!(reviews.confirm(&token("new"), &claims()).await, Err(TokenError::ReviewUnavailable));
        assert_eq!(began.elapsed(), Duration::ZERO);
    }
    assert!(reviewer.reviews() <= 13, "{}", reviewer.reviews());
    reviewer.is_down.send_replace(false);
    tokio::time::sleep(AFTER_FAILURE).await;
    assert_eq!(reviews.confirm(&token("new"), &claims()).await, Ok(()));
    reviewer.set_answer(None);
    assert_eq!(reviews.confirm(&token("old"), &claims()).await, Err(TokenError::ReviewRefused), "it is reviewed again soon");
}

#[tokio::test(start_paused = true)]
async fn an_api_that_does_not_answer_delays_few_requests() {
    let (reviewer, reviews) = setup();
    reviewer.is_held.send_replace(true);
    let began = Instant::now();
    for number in 0..20 {
        assert_eq!(reviews.confirm(&token(&format!("t{number}")), &claims()).await, Err(TokenError::ReviewUnavailable));
    }
    assert_eq!(began.elapsed().as_secs(), PATIENCE.as_secs(), "the first one waited");
    assert_eq!(reviewer.reviews(), 1);
}

#[tokio::test(start_paused = true)]
async fn requests_with_one_token_share_one_review() {
    let (reviewer, reviews) = setup();
    let (token, claims) = (token("a"), claims());
    let confirmed = join_all((0..50).map(|_| reviews.confirm(&token, &claims))).await;
    assert!(confirmed.iter().all(Result::is_ok), "{confirmed:?}");
    assert_eq!(reviewer.reviews(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_request_that_ends_early_leaves_the_review_to_the_next_one() {
    let (reviewer, reviews) = setup();
    reviewer.is_held.send_replace(true);
    let (token, claims) = (token("a"), claims());
    assert!(timeout(Duration::from_millis(10), reviews.confirm(&token, &claims)).await.is_err());
    reviewer.is_held.send_replace(false);
    assert_eq!(reviews.confirm(&token, &claims).await, Ok(()));
}

#[tokio::test(start_paused = true)]
async fn the_reviews_of_one_namespace_delay_no_other() {
    let (reviewer, reviews) = setup();
    reviewer.is_held.send_replace(true);
    let mut flood = tokio::task::JoinSet::new();
    for number in 0..4 * MAX_REVIEWS {
        let (reviews, claims) = (reviews.clone(), claims_of("flood", &format!("flood-{}", number / 4)));
        flood.spawn(async move { reviews.confirm(&token(&format!("f{number}")), &claims).await });
    }
    tokio::time::sleep(Duration::from_millis(1)).await;
    assert_eq!(reviewer.under_way.load(Ordering::SeqCst), MAX_REVIEWS);
    assert!(reviewer.reviews() <= 4 * MAX_REVIEWS / 4 * MAX_OF_POD);
    let other = tokio::spawn({
        let reviews = reviews.clone();
        async move { reviews.confirm(&token("a"), &claims()).await }
    });
    tokio::time::sleep(Duration::from_millis(1)).await;
    reviewer.is_held.send_replace(false);
    assert_eq!(other.await.unwrap(), Ok(()));
    while let Some(result) = flood.join_next().await {
        // The answer is about another pod.
        assert!(matches!(result.unwrap(), Err(TokenError::ReviewUnavailable | TokenError::ReviewRefused)));
    }
}

#[tokio::test(start_paused = true)]
async fn a_pod_cannot_keep_a_withdrawn_token_by_too_many_reviews() {
    let (reviewer, reviews) = setup();
    assert_eq!(reviews.confirm(&token("withdrawn"), &claims()).await, Ok(()));
    reviewer.set_answer(None);
    tokio::time::sleep(REVIEW_EVERY).await;
    reviewer.is_held.send_replace(true);
    let mut others = tokio::task::JoinSet::new();
    for number in 0..MAX_OF_POD {
        let reviews = reviews.clone();
        others.spawn(async move { reviews.confirm(&token(&format!("t{number}")), &claims()).await });
    }
    tokio::time::sleep(Duration::from_millis(1)).await;
    assert_eq!(reviewer.under_way.load(Ordering::SeqCst), MAX_OF_POD);
    assert_eq!(reviews.confirm(&token("withdrawn"), &claims()).await, Err(TokenError::ReviewUnavailable));
    reviewer.is_held.send_replace(false);
    others.join_all().await;
    assert_eq!(reviews.confirm(&token("withdrawn"), &claims()).await, Err(TokenError::ReviewRefused));
}

#[tokio::test(start_paused = true)]
async fn a_token_that_had_to_wait_is_still_used_without_the_api() {
    let (reviewer, reviews) = setup();
    assert_eq!(reviews.confirm(&token("old"), &claims()).await, Ok(()));
    tokio::time::sleep(REVIEW_EVERY).await;
    reviewer.is_held.send_replace(true);
    reviewer.is_down.send_replace(true);
    let mut others = tokio::task::JoinSet::new();
    for number in 0..MAX_OF_POD {
        let reviews = reviews.clone();
        others.spawn(async move { reviews.confirm(&token(&format!("t{number}")), &claims()).await });
    }
    tokio::time::sleep(Duration::from_millis(1)).await;
    assert_eq!(reviews.confirm(&token("old"), &claims()).await, Err(TokenError::ReviewUnavailable));
    reviewer.is_held.send_replace(false);
    others.join_all().await;
    assert_eq!(reviews.confirm(&token("old"), &claims()).await, Ok(()));
}
