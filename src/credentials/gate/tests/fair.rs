//! No pod and no namespace can use up the turns of others.

use std::collections::HashMap;

use proptest::prelude::*;

use super::*;
use allowance::{BURST, PLACES, REFILL};
use queue::PLACES_IN_ALL;

/// One request at a time, at an unlimited rate.
const ONE: StsLimits = StsLimits { rate: 100_000, max_rate: 100_000, concurrency: 1 };

/// Grants the turns one by one, and returns the owner of each.
fn order<T>(first: StsPermit, turns: &mut Vec<(T, oneshot::Receiver<TurnResult>)>) -> Vec<T> {
    let (mut running, mut order) = (first, Vec::new());
    // Drops superseded requests.
    turns.retain_mut(|(_, turn)| !matches!(turn.try_recv(), Ok(Err(_))));
    while !turns.is_empty() {
        drop(running);
        let next = turns.iter_mut().enumerate().find_map(|(at, (_, turn))| Some((at, come(turn)?)));
        let (at, permit) = next.expect("no request got a turn");
        running = permit;
        order.push(turns.remove(at).0);
    }
    order
}

fn run<T>(test: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap().block_on(test)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Whatever other pods do, the first request of a pod waits for at most one turn of each namespace per pod of its own namespace.
    #[test]
    fn a_pod_waits_for_at_most_a_round(
        flood in proptest::collection::vec((0_usize..5, 0_usize..30), 1..300),
        own in 0_usize..10,
        is_demand in any::<bool>(),
    ) {
        run(async {
            let cause = if is_demand { CallCause::Demand } else { CallCause::Prefetch };
            let gate = gate(ONE);
            let running = place(&gate, CallCause::Demand).1.await.unwrap().unwrap();
            let mut turns = Vec::new();
            let mut namespaces = std::collections::BTreeSet::new();
            for (namespace, number) in flood {
                let caller = pod(&format!("tenant-{namespace}"), &number.to_string());
                if let Ok((_, turn)) = apply(&gate, cause, &caller) {
                    namespaces.insert(namespace);
                    turns.push((false, turn));
                }
            }
            for number in 0..own {
                turns.push((false, apply(&gate, cause, &pod("shop", &number.to_string())).unwrap().1));
            }
            turns.push((true, apply(&gate, cause, &pod("shop", "web")).unwrap().1));
            let waited = order(running, &mut turns).iter().position(|is_mine| *is_mine).unwrap();
            let round = (namespaces.len() + 1) * (own + 1);
            assert!(waited < round, "{waited} turns before it, with {} namespaces and {own} pods of its own", namespaces.len());
        });
    }

    /// Places, charges and gauges balance, whatever is queued, raised, withdrawn, granted and retried.
    #[test]
    fn completed_requests_leave_nothing_behind(steps in proptest::collection::vec((0_u8..6, 0_usize..4, 0_usize..4), 1..200)) {
        run(async {
            let gate = gate(StsLimits { concurrency: 3, ..ONE });
            let (mut tickets, mut turns, mut permits) = (Vec::new(), Vec::new(), Vec::new());
            for (step, namespace, number) in steps {
                let caller = pod(&format!("tenant-{namespace}"), &number.to_string());
                match step {
                    0 | 1 => {
                        let cause = if step == 0 { CallCause::Demand } else { CallCause::Prefetch };
                        // A session that pods of two namespaces share.
                        let callers = [caller, pod("shared", &number.to_string())];
                        let application = Application { cause, left: None, callers: &callers, is_new: number % 2 == 0 };
                        if let Ok((ticket, turn)) = gate.queue(&application) {
                            tickets.push(ticket);
                            turns.push(turn);
                        }
                    }
                    2 => turns.push(renewal(&gate, Duration::from_secs(60 * (number as u64 + 3))).1),
                    3 => tickets.iter().skip(number).step_by(3).for_each(|ticket| gate.raise(*ticket, &caller)),
                    4 => tickets.iter().skip(number).step_by(3).for_each(|ticket| gate.withdraw(*ticket)),
                    _ => {
                        permits.extend(turns.iter_mut().filter_map(come));
                        if let Some(permit) = permits.pop() {
                            turns.push(permit.again());
                        }
                        permits.clear();
                    }
                }
            }
            // Granted permits are returned at once.
            turns.clear();
            permits.clear();
            for _ in 0..1000 {
                pass(1).await;
            }
            let state = gate.lock();
            assert!(state.queue.is_empty(), "{:?}", state.queue);
            assert_eq!(state.under_way, 0);
            for namespace in ["tenant-0", "tenant-1", "tenant-2", "tenant-3", "shared"] {
                assert_eq!(state.queue.of_namespace(namespace), 0);
                for number in 0..4 {
                    let uid = &pod(namespace, &number.to_string()).uid;
                    assert!(state.allowances.wait(uid, false, Instant::now()).is_none(), "a place of {namespace}/{number} leaked");
                }
            }
            drop(state);
            for cause in CallCause::ALL {
                assert_eq!(gate.0.metrics.sts_queue(cause.name()).get(), 0, "{cause:?}");
            }
        });
    }
}

#[tokio::test(start_paused = true)]
async fn a_pod_has_two_places_and_a_new_request_supersedes_one() {
    let gate = gate(ONE);
    let running = place(&gate, CallCause::Demand).1.await.unwrap().unwrap();
    let web = pod("shop", "web");
    let (first, second) = (apply(&gate, CallCause::Prefetch, &web).unwrap().1, apply(&gate, CallCause::Demand, &web).unwrap().1);
    let mut third = apply(&gate, CallCause::Prefetch, &web).unwrap().1;
    assert_eq!(first.await.unwrap().unwrap_err(), NotAsked::Superseded);
    drop(running);
    let permit = second.await.unwrap().unwrap();
    // One request is in flight and one is queued. The queued one is superseded.
    let fourth = apply(&gate, CallCause::Prefetch, &web).unwrap().1;
    assert_eq!(third.try_recv().unwrap().unwrap_err(), NotAsked::Superseded);
    drop(permit);
    let _permit = fourth.await.unwrap().unwrap();
    assert_eq!(gate.0.metrics.sts_queue(CallCause::Prefetch.name()).get(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_request_in_flight_takes_a_place_until_its_response() {
    let gate = gate(StsLimits { concurrency: 10, ..ONE });
    let web = pod("shop", "web");
    let under_way: Vec<_> = (0..PLACES).map(|_| apply(&gate, CallCause::Demand, &web).unwrap().1.try_recv().unwrap().unwrap()).collect();
    let turned_away = apply(&gate, CallCause::Demand, &web).unwrap_err();
    assert_eq!(turned_away.why, NotAsked::TooManyChanges);
    drop(under_way);
    assert!(apply(&gate, CallCause::Demand, &web).is_ok());
}

#[tokio::test(start_paused = true)]
async fn a_pod_causes_5_new_sessions_at_once_then_1_each_10_seconds() {
    let gate = gate(ONE);
    let web = pod("shop", "web");
    let made = |gate: &Gate| apply(gate, CallCause::Demand, &web).map(|(_, mut turn)| assert!(come(&mut turn).is_some()));
    for _ in 0..BURST {
        made(&gate).unwrap();
    }
    let turned_away = made(&gate).unwrap_err();
    assert_eq!(turned_away.why, NotAsked::TooManyChanges);
    assert!((REFILL - Duration::from_millis(1)..=REFILL + Duration::from_millis(1)).contains(&turned_away.after), "{turned_away:?}");
    // A failed session is not a new one, and other pods have their own allowance.
    let again = gate.queue(&Application { cause: CallCause::Demand, left: None, callers: std::slice::from_ref(&web), is_new: false });
    drop(again.unwrap());
    assert!(apply(&gate, CallCause::Demand, &pod("shop", "db")).is_ok());
    let mut made_in_an_hour = 0;
    for _ in 0..3600 {
        pass(1000).await;
        made_in_an_hour += u32::from(made(&gate).is_ok());
    }
    assert!((359..=361).contains(&made_in_an_hour), "{made_in_an_hour}");
    pass(3600 * 1000).await;
    // Pods with their full allowance are forgotten when there are many.
    for number in 0..10_000 {
        let _ = apply(&gate, CallCause::Demand, &pod("shop", &number.to_string())).unwrap().1.try_recv();
        pass(100).await;
    }
    assert!(gate.lock().allowances.known() <= 2048, "{}", gate.lock().allowances.known());
}

#[tokio::test(start_paused = true)]
async fn a_request_withdrawn_from_the_queue_is_refunded() {
    let gate = gate(ONE);
    let _running = place(&gate, CallCause::Demand).1.await.unwrap().unwrap();
    for _ in 0..100 {
        let (ticket, _turn) = apply(&gate, CallCause::Prefetch, &pod("shop", "web")).unwrap();
        gate.withdraw(ticket);
    }
}

#[tokio::test(start_paused = true)]
async fn a_shared_session_uses_the_first_turn_of_its_pods() {
    let gate = gate(ONE);
    let running = place(&gate, CallCause::Demand).1.await.unwrap().unwrap();
    let (loud, quiet) = (pod("loud", "web"), pod("quiet", "web"));
    // The loud pod has used up its places, and many pods share its namespace.
    let mut turns: Vec<_> =
        (0..100).map(|number| ("loud", apply(&gate, CallCause::Prefetch, &pod("loud", &number.to_string())).unwrap().1)).collect();
    turns.extend((0..PLACES).map(|_| ("loud", apply(&gate, CallCause::Prefetch, &loud).unwrap().1)));
    let shared = [loud, quiet];
    turns.push(("shared", gate.queue(&Application { cause: CallCause::Prefetch, left: None, callers: &shared, is_new: true }).unwrap().1));
    let order = order(running, &mut turns);
    assert!(order.iter().position(|whose| *whose == "shared").unwrap() <= 1, "it did not use the quiet pod's turn");
}

#[tokio::test(start_paused = true)]
async fn a_full_queue_takes_from_the_namespace_with_the_most_places() {
    let gate = gate(ONE);
    let _running = place(&gate, CallCause::Demand).1.await.unwrap().unwrap();
    let mut turns: HashMap<String, Vec<_>> = HashMap::new();
    let mut fill = |namespace: &str, places: usize| {
        for number in 0..places {
            let turn = apply(&gate, CallCause::Prefetch, &pod(namespace, &number.to_string())).unwrap().1;
            turns.entry(namespace.to_owned()).or_default().push(turn);
        }
    };
    fill("loud", PLACES_OF_NAMESPACE);
    let turned_away = apply(&gate, CallCause::Demand, &pod("loud", "one more")).unwrap_err();
    assert_eq!(turned_away.why, NotAsked::QueueFull);
    for number in 0..4 {
        fill(&format!("other-{number}"), (PLACES_IN_ALL - PLACES_OF_NAMESPACE) / 4);
    }
    // All places are taken. A pod of another namespace takes the newest place of the loud namespace.
    assert!(apply(&gate, CallCause::Prefetch, &pod("quiet", "web")).is_ok());
    let last = turns.get_mut("loud").unwrap().pop().unwrap();
    assert_eq!(last.await.unwrap().unwrap_err(), NotAsked::QueueFull);
    let metrics = String::from_utf8(gate.0.metrics.render()).unwrap();
    assert!(metrics.contains("rolegate_sts_turned_away_total{reason=\"queue-full\"} 2"), "{metrics}");
    assert_eq!(gate.0.metrics.sts_queue(CallCause::Prefetch.name()).get(), i64::try_from(PLACES_IN_ALL).unwrap());
}

/// For an hour, a pod changes 45 times per second, others come and go, and pods wait constantly. Each session close to expiry is
/// renewed in time.
#[tokio::test(start_paused = true)]
async fn sessions_close_to_expiry_are_renewed_in_time_under_load() {
    let gate = gate(StsLimits { rate: 20, max_rate: 20, concurrency: 16 });
    let (mut waiting, mut renewals) = (Vec::new(), Vec::new());
    let (mut pods, mut latest) = (0_u64, Duration::ZERO);
    for second in 0..3600_u64 {
        // New pods of many namespaces, which all wait, at twice the rate of the gate.
        for _ in 0..45 {
            pods += 1;
            if let Ok((_, turn)) = apply(&gate, CallCause::Demand, &pod(&format!("tenant-{}", pods % 3), &pods.to_string())) {
                waiting.push(turn);
            }
        }
        waiting.retain_mut(|turn| matches!(turn.try_recv(), Err(oneshot::error::TryRecvError::Empty)));
        // Five per second is the load of a node with 18,000 one-hour sessions: a quarter of the rate, which is the reserved part.
        if second % 2 == 0 {
            renewals.extend((0..8).map(|_| (Instant::now(), renewal(&gate, NEARLY_ENDED).1)));
        }
        for _ in 0..4 {
            pass(250).await;
            renewals.retain_mut(|(since, turn)| match turn.try_recv() {
                Ok(permit) => {
                    drop(permit.unwrap());
                    latest = latest.max(since.elapsed());
                    false
                }
                Err(_) => true,
            });
        }
    }
    assert!(latest < Duration::from_secs(30), "one was renewed {latest:?} after it was close to expiry; it has 5 minutes");
    assert!(renewals.len() < 40, "{} wait", renewals.len());
}
