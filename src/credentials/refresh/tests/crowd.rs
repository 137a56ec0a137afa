//! Many pods that appear at once, and a pod that changes constantly.

use super::*;
use crate::credentials::not_asked::NotAsked;

/// How long STS takes.
const LATENCY: Duration = Duration::from_millis(150);

fn of_namespace(namespace: &str, name: &str, role: &str) -> Pod {
    Pod { namespace: namespace.to_owned(), ..pod(name, role) }
}

impl Node {
    async fn get(&self, pod: &Pod) -> Result<Arc<Credentials>, AssumeRoleError> {
        self.sessions.get(&self.request(pod), pod).await
    }

    /// Requests a pod's session as an SDK does, with attempts that time out after one second. Returns the number of attempts.
    async fn ask_as_sdk(&self, pod: &Pod, attempts: u32) -> Option<u32> {
        for attempt in 1..=attempts {
            match tokio::time::timeout(Duration::from_secs(1), self.get(pod)).await {
                Ok(Ok(_)) => return Some(attempt),
                Ok(Err(error)) => panic!("{} got {error}", pod.name),
                Err(_) => {}
            }
        }
        None
    }
}

/// 220 sessions at 20 per second, after a burst of 40, would take 9 seconds. With a rate that rises to 100, they take about 3.
#[tokio::test(start_paused = true)]
async fn all_of_220_pods_of_one_role_that_start_at_once_are_served() {
    let node = node().await;
    node.sts.set_latency(LATENCY);
    let pods: Vec<_> = (0..220).map(|number| pod(&format!("web-{number}"), "web")).collect();
    node.writer.write(|index| pods.iter().for_each(|pod| index.apply(pod.clone())));
    // The containers start as soon as the pods are bound, which is faster than any kubelet.
    let attempts = futures_util::future::join_all(pods.iter().map(|pod| node.ask_as_sdk(pod, 4))).await;
    assert!(attempts.iter().all(Option::is_some), "{:?} got nothing", attempts.iter().filter(|attempt| attempt.is_none()).count());
    assert_eq!(node.sts.calls(), 220);
}

/// Pods that request credentials 3 seconds after they were bound do not wait.
#[tokio::test(start_paused = true)]
async fn sessions_are_ready_some_seconds_after_pods_appear() {
    let node = node().await;
    node.sts.set_latency(LATENCY);
    let pods: Vec<_> = (0..220).map(|number| pod(&format!("web-{number}"), "web")).collect();
    node.writer.write(|index| pods.iter().for_each(|pod| index.apply(pod.clone())));
    tokio::time::sleep(Duration::from_secs(5)).await;
    for pod in &pods {
        node.ask(pod).await.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn a_request_that_times_out_in_the_queue_reports_it() {
    let node = node().await;
    node.sts.hold();
    let pods: Vec<_> = (0..40).map(|number| pod(&format!("web-{number}"), "web")).collect();
    node.writer.write(|index| pods.iter().for_each(|pod| index.apply(pod.clone())));
    settle().await;
    let answers = futures_util::future::join_all(pods.iter().map(|pod| node.get(pod))).await;
    let names: Vec<_> = answers.into_iter().map(|answer| answer.unwrap_err().name()).collect();
    assert_eq!(names.iter().filter(|name| **name == "unreachable").count(), 16, "{names:?}: these were sent");
    assert_eq!(names.iter().filter(|name| **name == "queued").count(), 24, "{names:?}");
}

#[tokio::test(start_paused = true)]
async fn a_request_that_its_pod_no_longer_needs_ends_at_once() {
    let node = node().await;
    node.sts.hold();
    // The concurrency limit is reached.
    let others: Vec<_> = (0..16).map(|number| pod(&format!("other-{number}"), "web")).collect();
    node.writer.write(|index| others.iter().for_each(|pod| index.apply(pod.clone())));
    let others = futures_util::future::join_all(others.iter().map(|pod| node.get(pod)));
    let web = pod("web", "web");
    node.writer.write(|index| index.apply(web.clone()));
    let began = Instant::now();
    let asks = async {
        settle().await;
        let (answer, ()) = tokio::join!(node.get(&web), async {
            settle().await;
            node.apply(Pod { session_name: Some("other".to_owned()), ..web.clone() }).await;
        });
        (answer.unwrap_err(), began.elapsed())
    };
    let (_, (error, waited)) = tokio::join!(others, asks);
    assert_eq!(error, AssumeRoleError::NotAsked(NotAsked::Superseded));
    assert_eq!(waited, Duration::ZERO);
}

/// One pod's session name changes 45 times per second, while every other session is renewed once.
#[tokio::test(start_paused = true)]
async fn a_constantly_changing_pod_starves_no_other() {
    const SECONDS: u64 = 40 * MINUTE;
    let node = node().await;
    node.sts.set_latency(Duration::from_millis(500));
    let held: Vec<_> = (0..30).map(|number| of_namespace("shop", &format!("held-{number}"), "web")).collect();
    node.writer.write(|index| held.iter().for_each(|pod| index.apply(pod.clone())));
    pass(30).await;
    let mut changes = 0_u64;
    for second in 0..SECONDS {
        for _ in 0..45 {
            changes += 1;
            let evil = Pod { session_name: Some(format!("session-{changes}")), ..of_namespace("evil", "evil", "evil") };
            node.writer.write(|index| index.apply(evil.clone()));
            if changes.is_multiple_of(15) {
                // The pod also requests its session, and gives up.
                let _ = tokio::time::timeout(Duration::ZERO, node.get(&evil)).await;
            }
            if changes.is_multiple_of(5) {
                tokio::task::yield_now().await;
            }
        }
        pass(1).await;
        if second.is_multiple_of(20) {
            for pod in &held {
                assert!(node.left(&node.ask(pod).await.unwrap()) > LEAST_REMAINING);
            }
        }
        if second.is_multiple_of(120) {
            let new = of_namespace("new", &format!("new-{second}"), "web");
            node.writer.write(|index| index.apply(new.clone()));
            assert_eq!(node.ask_as_sdk(&new, 1).await, Some(1), "a new pod");
        }
    }
    // Five at once, and one more every ten seconds.
    let of_evil = node.sts.calls_for("evil").len();
    let most = usize::try_from(5 + SECONDS / 10 + 10).unwrap();
    assert!((most / 2..=most).contains(&of_evil), "{of_evil} requests of a pod that changed {changes} times, at most {most}");
}

/// Pods of one role share a session. One pod that has used up its allowance does not affect the others.
#[tokio::test(start_paused = true)]
async fn a_shared_session_is_fetched_despite_one_pods_allowance() {
    let mut options = Options::default();
    options.rules.sessions.scope = crate::config::session::SessionScope::Role;
    options.rules.sessions.name = "{role}".parse().unwrap();
    let node = node_with(options).await;
    for number in 0..20 {
        node.apply(pod("loud", &format!("role-{number}"))).await;
    }
    assert_eq!(node.sts.calls(), 5);
    let last = pod("loud", "role-19");
    let told = node.sessions.remembered_failure(&node.request(&last), &last).await;
    assert_eq!(told, Some(AssumeRoleError::NotAsked(NotAsked::TooManyChanges)), "the failure that `explain` shows");
    node.writer.write(|index| {
        index.apply(pod("loud", "web"));
        index.apply(pod("quiet", "web"));
    });
    settle().await;
    node.ask(&pod("quiet", "web")).await.unwrap();
    node.ask(&pod("loud", "web")).await.unwrap();
    assert_eq!(node.sts.calls(), 6);
}
