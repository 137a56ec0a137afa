#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test says loudly what failed")]

use futures_util::FutureExt as _;

use super::slot::FRESH_GRACE;
use super::*;

const SETTINGS: ConnectionSettings =
    ConnectionSettings { all: 4096, per_source: 128, node: 64, unknown: 128, per_unknown: 64, waiting: 256 };

fn nobody(ip: IpAddr) -> Source {
    Source::unknown(ip)
}

fn open(limits: &ConnectionLimits, source: &Source) -> ConnectionPermit {
    match limits.admit(source, nobody) {
        Admitted::Open(permit) => permit,
        other => panic!("{source:?}: {other:?}"),
    }
}

fn wait(limits: &ConnectionLimits, source: &Source) -> ConnectionWait {
    match limits.admit(source, nobody) {
        Admitted::Wait(waiting) => waiting,
        other => panic!("{source:?}: {other:?}"),
    }
}

/// Returns the limit that would make a connection wait, or refuse it.
fn limit(limits: &ConnectionLimits, source: &Source) -> Option<Limit> {
    match limits.admit(source, nobody) {
        Admitted::Open(_) => None,
        Admitted::Wait(waiting) => Some(waiting.limit),
        Admitted::Refused(limit) => Some(limit),
    }
}

fn pod(namespace: &str, name: impl ToString) -> Source {
    Source::pod(namespace, &name.to_string())
}

fn unknown(last: u32) -> Source {
    Source::unknown(IpAddr::from((0x0a00_0000 + last).to_be_bytes()))
}

fn unknown_v6(last: u128) -> Source {
    Source::unknown(IpAddr::from(std::net::Ipv6Addr::from_bits((0xfd00 << 112) + last)))
}

fn all(limits: &ConnectionLimits) -> usize {
    limits.0.lock().all
}

fn unknown_open(limits: &ConnectionLimits) -> usize {
    limits.0.lock().unknown.len()
}

fn closing(permit: &ConnectionPermit) -> Option<Closing> {
    permit.closing().now_or_never()
}

#[tokio::test(start_paused = true)]
async fn a_source_has_its_limit_and_all_have_one_together() {
    let limits = ConnectionLimits::new(ConnectionSettings { all: 5, per_source: 3, waiting: 0, ..SETTINGS });
    let (one, other) = (pod("shop", 1), pod("shop", 2));
    let mut permits: Vec<_> = (0..3).map(|_| open(&limits, &one)).collect();
    assert_eq!(limit(&limits, &one), Some(Limit::Source));
    permits.extend((0..2).map(|_| open(&limits, &other)));
    assert_eq!(limit(&limits, &other), Some(Limit::All));
    assert_eq!(limit(&limits, &one), Some(Limit::Source), "the one who takes too much is told apart");
    let _node = open(&limits, &Source::Node);
    permits.remove(0);
    permits.push(open(&limits, &one));
    assert_eq!(limit(&limits, &one), Some(Limit::Source));
    permits.clear();
    drop(_node);
    let state = limits.0.lock();
    assert!(state.accounts.is_empty() && state.all == 0, "sources that are gone are forgotten");
}

#[tokio::test(start_paused = true)]
async fn greedy_pods_together_leave_room_for_those_with_few_connections() {
    let limits = ConnectionLimits::new(SETTINGS);
    let mut taken: Vec<_> = (0..32)
        .flat_map(|n| (0..128).map(move |_| n))
        .filter_map(|n| match limits.admit(&pod(&format!("ns{n}"), n), nobody) {
            Admitted::Open(permit) => Some(permit),
            _ => None,
        })
        .collect();
    assert_eq!(limit(&limits, &pod("ns0", 0)), Some(Limit::Source));
    assert_eq!(limit(&limits, &pod("ns31", 31)), Some(Limit::Room));
    for other in 100..200 {
        let other = pod(&format!("ns{other}"), other);
        taken.extend((0..FEW).map(|_| open(&limits, &other)));
        assert_eq!(limit(&limits, &other), Some(Limit::Room), "{other:?}");
    }
    // With room again, there is no difference.
    taken.drain(..1500);
    taken.push(open(&limits, &pod("ns31", 31)));
}

/// A namespace may have any number of pods, each of which has few connections.
#[tokio::test(start_paused = true)]
async fn many_pods_of_one_namespace_leave_room_for_other_namespaces() {
    let limits = ConnectionLimits::new(SETTINGS);
    let mut taken = Vec::new();
    for (namespace, pods) in [("greedy", 1000), ("greedy-too", 400)] {
        for n in 0..pods {
            for _ in 0..FEW {
                if let Admitted::Open(permit) = limits.admit(&pod(namespace, n), nobody) {
                    taken.push(permit);
                }
            }
        }
    }
    assert!(taken.len() < 4096, "{}", taken.len());
    assert_eq!(limit(&limits, &pod("greedy", "new")), Some(Limit::Namespace));
    for n in 0..60 {
        taken.extend((0..FEW).map(|_| open(&limits, &pod("shop", n))));
    }
}

#[tokio::test(start_paused = true)]
async fn all_addresses_of_a_pod_count_together() {
    let limits = ConnectionLimits::new(ConnectionSettings { per_source: 2, waiting: 0, ..SETTINGS });
    // The server asks who an address is: both of a pod's are the same source.
    let web = pod("shop", "web");
    let _permits = [open(&limits, &web), open(&limits, &web.clone())];
    assert_eq!(limit(&limits, &web), Some(Limit::Source));
}

#[tokio::test(start_paused = true)]
async fn unknown_addresses_have_one_small_budget_and_take_nothing_of_pods() {
    let limits = ConnectionLimits::new(SETTINGS);
    let flood: Vec<_> = (0..1100).map(|last| open(&limits, &unknown(last))).collect();
    let displaced = flood.iter().filter(|permit| closing(permit) == Some(Closing::Displaced)).count();
    assert_eq!((displaced, unknown_open(&limits)), (1100 - 128, 128));
    let web = pod("shop", "web");
    let pods: Vec<_> = (0..128).map(|_| open(&limits, &web)).collect();
    assert!(pods.iter().all(|permit| closing(permit).is_none()));
    drop(flood);
    assert!(limits.0.lock().unknown.is_empty());
}

#[tokio::test(start_paused = true)]
async fn one_unknown_address_does_not_keep_the_others_out() {
    let limits = ConnectionLimits::new(SETTINGS);
    let greedy: Vec<_> = [1, 2].into_iter().flat_map(|last| (0..64).map(move |_| last)).map(|last| open(&limits, &unknown(last))).collect();
    assert_eq!(limit(&limits, &unknown(1)), Some(Limit::Unknown));
    let honest: Vec<_> = (10..40).map(|last| open(&limits, &unknown(last))).collect();
    assert!(honest.iter().all(|permit| closing(permit).is_none()));
    assert_eq!(greedy.iter().filter(|permit| closing(permit).is_some()).count(), honest.len());
}

#[tokio::test(start_paused = true)]
async fn an_idle_connection_of_an_unknown_address_gives_way_before_a_request() {
    let limits = ConnectionLimits::new(ConnectionSettings { unknown: 3, ..SETTINGS });
    let [asks, idle, silent] = [1, 2, 3].map(|last| open(&limits, &unknown(last)));
    [&asks, &idle].into_iter().for_each(ConnectionPermit::request_begins);
    idle.request_ends();
    tokio::time::advance(IDLE_GRACE).await;
    let _fourth = open(&limits, &unknown(4));
    assert_eq!([&asks, &idle, &silent].map(closing), [None, Some(Closing::MadeRoom), None]);
    tokio::time::advance(FRESH_GRACE).await;
    let _fifth = open(&limits, &unknown(5));
    assert_eq!([&asks, &silent].map(closing), [None, Some(Closing::Displaced)]);
    assert_eq!(unknown_open(&limits), 3);
}

/// IPv6 addresses can be forged in any number; they count as one network.
#[tokio::test(start_paused = true)]
async fn a_flood_from_an_ipv6_network_displaces_no_other_network() {
    let limits = ConnectionLimits::new(SETTINGS);
    let honest: Vec<_> = (0..100).map(|last| open(&limits, &unknown(last))).collect();
    let _flood: Vec<_> = (0..1100).map(|last| open(&limits, &unknown_v6(last))).collect();
    assert!(honest.iter().all(|permit| closing(permit).is_none()));
}

#[tokio::test(start_paused = true)]
async fn an_address_that_becomes_a_pods_is_counted_for_the_pod() {
    let limits = ConnectionLimits::new(ConnectionSettings { unknown: 2, per_source: 3, waiting: 0, ..SETTINGS });
    let web = pod("shop", "web");
    let early = [open(&limits, &unknown(1)), open(&limits, &unknown(2))];
    assert!(early[0].is_unknown());
    early[0].settle(&web);
    assert!(!early[0].is_unknown());
    assert_eq!((unknown_open(&limits), all(&limits)), (1, 1));
    let third = open(&limits, &unknown(3));
    assert_eq!(closing(&third), None);
    // The second one was not looked at since its pod is known. It is not displaced, but counted for the pod.
    let fourth = match limits.admit(&unknown(4), |ip| if unknown(2) == Source::unknown(ip) { web.clone() } else { nobody(ip) }) {
        Admitted::Open(permit) => permit,
        other => panic!("{other:?}"),
    };
    assert_eq!(early.iter().chain([&third, &fourth]).filter_map(closing).count(), 0);
    assert_eq!(all(&limits), 2);
    let _own = open(&limits, &web);
    assert_eq!(limit(&limits, &web), Some(Limit::Source));
    drop(early);
    assert_eq!(all(&limits), 1);
}

#[tokio::test(start_paused = true)]
async fn a_connection_beyond_the_pods_limit_waits_for_one_to_end() {
    let limits = ConnectionLimits::new(ConnectionSettings { per_source: 2, ..SETTINGS });
    let web = pod("shop", "web");
    let mut permits = vec![open(&limits, &web), open(&limits, &web)];
    permits.iter().for_each(ConnectionPermit::request_begins);
    let mut waiting = std::pin::pin!(wait(&limits, &web).place());
    tokio::time::advance(Duration::from_millis(900)).await;
    assert!(waiting.as_mut().now_or_never().is_none());
    assert_eq!(limits.waiting(), 1);
    permits.pop();
    let permit = waiting.now_or_never().unwrap().unwrap();
    assert_eq!((limits.waiting(), all(&limits)), (0, 2));
    drop((permit, permits));
    assert_eq!(all(&limits), 0);
}

#[tokio::test(start_paused = true)]
async fn the_wait_ends_after_a_second() {
    let limits = ConnectionLimits::new(ConnectionSettings { per_source: 1, ..SETTINGS });
    let web = pod("shop", "web");
    let busy = open(&limits, &web);
    busy.request_begins();
    let began = Instant::now();
    assert_eq!(wait(&limits, &web).place().await.unwrap_err(), Limit::Source);
    assert_eq!((began.elapsed(), limits.waiting()), (WAIT, 0));
    assert_eq!(closing(&busy), None);
}

#[tokio::test(start_paused = true)]
async fn the_longest_idle_connection_of_the_pod_makes_room() {
    let limits = ConnectionLimits::new(ConnectionSettings { per_source: 3, ..SETTINGS });
    let (web, db) = (pod("shop", "web"), pod("shop", "db"));
    let permits = [open(&limits, &web), open(&limits, &web), open(&limits, &web)];
    let other = open(&limits, &db);
    permits.iter().chain([&other]).for_each(ConnectionPermit::request_begins);
    for answered in [&other, &permits[1], &permits[0]] {
        assert!(!answered.request_ends());
        tokio::time::advance(Duration::from_secs(1)).await;
    }
    let newer = [open(&limits, &web), open(&limits, &web)];
    newer.iter().for_each(ConnectionPermit::request_begins);
    let _waiting = wait(&limits, &web);
    assert_eq!(permits.each_ref().map(closing), [Some(Closing::MadeRoom), Some(Closing::MadeRoom), None], "the third one is busy");
    assert_eq!(closing(&other), None, "it is another pod's");
    assert!(permits[2].request_ends(), "its answer says that it ends, as somebody waits");
    other.request_begins();
    assert!(!other.request_ends());
}

/// A connection that was answered a moment ago is likely to be used again, so it is not closed yet.
#[tokio::test(start_paused = true)]
async fn a_connection_is_not_closed_before_it_is_idle_for_a_while() {
    let limits = ConnectionLimits::new(ConnectionSettings { per_source: 1, ..SETTINGS });
    let web = pod("shop", "web");
    let first = open(&limits, &web);
    first.request_begins();
    first.request_ends();
    let mut waiting = std::pin::pin!(wait(&limits, &web).place());
    assert!(waiting.as_mut().now_or_never().is_none());
    assert_eq!(closing(&first), None);
    tokio::time::advance(IDLE_GRACE).await;
    let permit = waiting.now_or_never().unwrap().unwrap();
    assert_eq!(closing(&first), Some(Closing::MadeRoom));
    assert_eq!((all(&limits), limits.waiting()), (1, 0), "the place is counted once");
    drop(first);
    assert_eq!(all(&limits), 1);
    drop(permit);
    assert_eq!(all(&limits), 0);
}

#[tokio::test(start_paused = true)]
async fn an_idle_connection_is_closed_at_once_if_its_place_is_needed() {
    let limits = ConnectionLimits::new(ConnectionSettings { per_source: 1, ..SETTINGS });
    let web = pod("shop", "web");
    let silent = open(&limits, &web);
    tokio::time::advance(FRESH_GRACE).await;
    let _newer = open(&limits, &web);
    assert_eq!(closing(&silent), Some(Closing::Displaced), "half a head would keep it open");
    silent.request_begins();
    assert_eq!(closing(&silent), Some(Closing::MadeRoom), "a request that has just arrived is answered");
}

#[tokio::test(start_paused = true)]
async fn where_all_places_are_taken_the_largest_namespace_and_pod_make_room() {
    let limits = ConnectionLimits::new(ConnectionSettings { all: 8, per_source: 4, ..SETTINGS });
    let (a1, a2, b) = (pod("a", 1), pod("a", 2), pod("b", 1));
    let of_a1: Vec<_> = (0..3).map(|_| open(&limits, &a1)).collect();
    let of_a2 = [open(&limits, &a2), open(&limits, &a2)];
    // The last place would not be for the larger namespace.
    let of_b = [open(&limits, &b), open(&limits, &b), open(&limits, &b)];
    of_b.iter().chain(&of_a1).chain(&of_a2).for_each(ConnectionPermit::request_begins);
    for permit in of_b.iter().chain(&of_a1).chain(&of_a2) {
        permit.request_ends();
        tokio::time::advance(IDLE_GRACE).await;
    }
    let newcomer = pod("c", 1);
    // It is the first one of its namespace, and so opens beyond the limit.
    let first = open(&limits, &newcomer);
    assert_eq!(of_a1.iter().map(closing).collect::<Vec<_>>(), [Some(Closing::MadeRoom), None, None]);
    let second = open(&limits, &newcomer);
    assert_eq!(of_a1.iter().map(closing).collect::<Vec<_>>(), [Some(Closing::MadeRoom), Some(Closing::MadeRoom), None]);
    assert_eq!(of_b.iter().chain(&of_a2).filter_map(closing).count(), 0);
    drop(of_a1);
    assert_eq!(all(&limits), 7, "a place that was taken over is not given back");
    drop((first, second));
}

/// Opens connections of as many pods of this namespace, and answers a request on each.
async fn kept(limits: &ConnectionLimits, namespace: &str, pods: usize, each: usize) -> Vec<ConnectionPermit> {
    let permits: Vec<_> = (0..pods * each).map(|n| open(limits, &pod(namespace, n / each))).collect();
    permits.iter().for_each(ConnectionPermit::request_begins);
    for permit in &permits {
        permit.request_ends();
    }
    tokio::time::advance(IDLE_GRACE).await;
    permits
}

/// Clients keep connections for minutes.
#[tokio::test(start_paused = true)]
async fn idle_connections_keep_nobody_out_whatever_the_limit() {
    for all_places in [16, 64, 4096] {
        let limits = ConnectionLimits::new(ConnectionSettings { all: all_places, per_source: all_places, ..SETTINGS });
        let busy: Vec<_> = (0..FEW).map(|_| open(&limits, &pod("shop", "web"))).collect();
        busy.iter().for_each(ConnectionPermit::request_begins);
        let pods = (all_places - FEW) / 2;
        let others = [kept(&limits, "a", pods, 1).await, kept(&limits, "b", pods, 1).await];
        assert!(all(&limits) >= all_places - all_places / 8);
        // Most other pods have fewer connections, and their namespaces have more.
        let more: Vec<_> = (0..4).map(|_| open(&limits, &pod("shop", "web"))).collect();
        let new = open(&limits, &pod("new", "pod"));
        let second = open(&limits, &pod("new", "pod"));
        assert!(all(&limits) <= all_places + 1, "{}", all(&limits));
        assert_eq!(busy.iter().chain(&more).chain([&new, &second]).filter_map(closing).count(), 0);
        assert!(others.iter().flatten().filter_map(closing).count() > 0);
    }
}

/// A place that is taken from an idle connection is used all the time from then on. The reserve for small pods must outlive that.
#[tokio::test(start_paused = true)]
async fn large_pods_never_take_the_reserve_through_idle_connections() {
    let limits = ConnectionLimits::new(ConnectionSettings { all: 64, per_source: 64, ..SETTINGS });
    let mut taken = Vec::new();
    let greedy = |limits: &ConnectionLimits, taken: &mut Vec<ConnectionPermit>| {
        for _ in 0..3 {
            for n in 0..4 {
                while let Admitted::Open(permit) = limits.admit(&pod(&format!("greedy-{n}"), n), nobody) {
                    permit.request_begins();
                    taken.push(permit);
                }
            }
        }
    };
    greedy(&limits, &mut taken);
    for round in 0..20 {
        let small = (0..16).map(|n| (n, limits.admit(&pod(&format!("small-{n}"), n), nobody)));
        let small: Vec<_> =
            small.filter_map(|(n, admitted)| if let Admitted::Open(permit) = admitted { Some((n, permit)) } else { None }).collect();
        assert_eq!(small.len(), 16, "in round {round}");
        small.iter().for_each(|(_, permit)| permit.request_begins());
        for (_, permit) in &small {
            permit.request_ends();
        }
        tokio::time::advance(IDLE_GRACE).await;
        greedy(&limits, &mut taken);
        let beyond: usize = (0..4).map(|n| limits.0.lock().of(&pod(&format!("greedy-{n}"), n).key().unwrap()).saturating_sub(FEW)).sum();
        assert!(beyond <= 48, "{beyond} in round {round}");
    }
}

/// A connection that waits looks again for one that is idle by now.
#[tokio::test(start_paused = true)]
async fn a_waiting_connection_takes_a_place_as_soon_as_one_is_idle() {
    let limits = ConnectionLimits::new(ConnectionSettings { all: 8, per_source: 8, ..SETTINGS });
    let busy: Vec<_> = (0..7).map(|n| open(&limits, &pod(&n.to_string(), n))).collect();
    let own = open(&limits, &pod("shop", "web"));
    busy.iter().chain([&own]).for_each(ConnectionPermit::request_begins);
    let mut waiting = std::pin::pin!(wait(&limits, &pod("shop", "web")).place());
    assert!(waiting.as_mut().now_or_never().is_none());
    assert!(!busy[3].request_ends(), "a pod with few connections keeps them");
    assert!(waiting.as_mut().now_or_never().is_none());
    tokio::time::advance(IDLE_GRACE).await;
    assert!(waiting.as_mut().now_or_never().unwrap().is_ok());
    assert_eq!(closing(&busy[3]), Some(Closing::MadeRoom));
}

#[tokio::test(start_paused = true)]
async fn the_wait_for_a_place_does_not_count_as_idle() {
    let limits = ConnectionLimits::new(ConnectionSettings { per_source: 2, ..SETTINGS });
    let web = pod("shop", "web");
    let held = [open(&limits, &web), open(&limits, &web)];
    let (first, second) = (wait(&limits, &web), wait(&limits, &web));
    let (first, second) = tokio::join!(first.place(), second.place());
    let new = [first.unwrap(), second.unwrap()];
    let displaced = Some(Closing::Displaced);
    assert_eq!([&held[0], &held[1], &new[0], &new[1]].map(closing), [displaced, displaced, None, None]);
    new[1].request_begins();
    let (third, fourth) = (wait(&limits, &web), wait(&limits, &web));
    let (third, fourth) = tokio::join!(third.place(), fourth.place());
    // One of them has the only place that is idle, and keeps it.
    let (Ok(newest), Err(Limit::Source)) = (if third.is_ok() { (third, fourth) } else { (fourth, third) }) else { panic!("both") };
    assert_eq!((closing(&new[0]), closing(&newest)), (displaced, None));
}

#[tokio::test(start_paused = true)]
async fn an_unknown_address_at_its_limit_makes_room_for_itself() {
    let limits = ConnectionLimits::new(ConnectionSettings { unknown: 8, per_unknown: 2, ..SETTINGS });
    let (first, other) = ([open(&limits, &unknown(1)), open(&limits, &unknown(1))], open(&limits, &unknown(2)));
    first[0].request_begins();
    tokio::time::advance(FRESH_GRACE).await;
    let _newer = open(&limits, &unknown(1));
    assert_eq!([closing(&first[0]), closing(&first[1]), closing(&other)], [None, Some(Closing::Displaced), None]);
    assert_eq!((unknown_open(&limits), limit(&limits, &unknown(1))), (3, Some(Limit::Unknown)));
}

#[tokio::test(start_paused = true)]
async fn the_queue_is_bounded_for_each_pod_and_shared_fairly() {
    let limits = ConnectionLimits::new(ConnectionSettings { per_source: 2, waiting: 8, ..SETTINGS });
    let mut open_ones = Vec::new();
    let mut waiting = Vec::new();
    for name in ["a", "b", "c", "d"] {
        let pod = pod("greedy", name);
        open_ones.extend([open(&limits, &pod), open(&limits, &pod)]);
        waiting.extend([wait(&limits, &pod), wait(&limits, &pod)]);
        assert_eq!(limit(&limits, &pod), Some(Limit::Source));
    }
    open_ones.iter().for_each(ConnectionPermit::request_begins);
    let web = pod("shop", "web");
    let of_web = [open(&limits, &web), open(&limits, &web)];
    let last = wait(&limits, &web);
    assert_eq!(limits.waiting(), 8);
    assert_eq!(waiting.remove(0).place().now_or_never().unwrap().unwrap_err(), Limit::Source, "the oldest of the largest gave way");
    drop(of_web);
    assert!(last.place().now_or_never().unwrap().is_ok());
    drop(waiting);
    assert_eq!(limits.waiting(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_place_that_was_granted_to_one_who_is_gone_is_free_again() {
    let limits = ConnectionLimits::new(ConnectionSettings { per_source: 1, ..SETTINGS });
    let web = pod("shop", "web");
    let first = open(&limits, &web);
    let gone = wait(&limits, &web);
    drop(first);
    assert_eq!(all(&limits), 1, "it is granted");
    drop(gone);
    assert_eq!((all(&limits), limits.waiting()), (0, 0));
    open(&limits, &web);
}

/// Whose address it is is looked up under another lock, and others must not wait for both.
#[tokio::test(start_paused = true)]
async fn an_address_is_looked_up_without_the_lock() {
    let limits = ConnectionLimits::new(ConnectionSettings { unknown: 2, ..SETTINGS });
    let _early = [open(&limits, &unknown(1)), open(&limits, &unknown(2))];
    let free = std::cell::Cell::new(None);
    let admitted = limits.admit(&unknown(3), |ip| {
        free.set(Some(limits.0.state.try_lock().is_ok()));
        nobody(ip)
    });
    assert!(matches!(admitted, Admitted::Open(_)));
    assert_eq!(free.get(), Some(true));
    assert_eq!(closing(&_early[0]), Some(Closing::Displaced));
}

/// A displaced connection may end, or be counted for its pod, before it is known whose its address is.
#[tokio::test(start_paused = true)]
async fn a_displaced_connection_that_ends_meanwhile_is_counted_once_at_most() {
    let web = pod("shop", "web");
    for ends in [true, false] {
        let limits = ConnectionLimits::new(ConnectionSettings { unknown: 1, ..SETTINGS });
        let early = std::cell::RefCell::new(Some(open(&limits, &unknown(1))));
        let newcomer = limits.admit(&unknown(2), |_| {
            if limits.0.state.try_lock().is_err() {
                return web.clone();
            }
            if ends {
                early.take();
            } else {
                early.borrow().as_ref().unwrap().settle(&web);
            }
            web.clone()
        });
        assert!(matches!(newcomer, Admitted::Open(_)));
        assert_eq!(all(&limits), usize::from(!ends));
        assert_eq!(early.borrow().as_ref().and_then(closing), None);
        drop((early, newcomer));
        let state = limits.0.lock();
        assert!(state.accounts.is_empty() && state.displaced.is_empty() && state.unknown.is_empty() && state.all == 0);
    }
}

/// Where nobody can wait, kept connections must not shut out a source that has none.
#[tokio::test(start_paused = true)]
async fn an_idle_connection_without_a_queue_gives_way_to_a_new_source() {
    let limits = ConnectionLimits::new(ConnectionSettings { all: 32, per_source: 4, waiting: 0, ..SETTINGS });
    let greedy = (0..8).map(|n| pod(if n < 7 { "a" } else { "b" }, n));
    let kept: Vec<_> = greedy.clone().flat_map(|pod| (0..4).map(move |_| pod.clone())).map(|pod| open(&limits, &pod)).collect();
    kept.iter().for_each(ConnectionPermit::request_begins);
    let scraper = pod("b", "prometheus");
    tokio::time::advance(IDLE_GRACE).await;
    assert_eq!(limit(&limits, &scraper), Some(Limit::All), "each has a request under way");
    kept[5].request_ends();
    assert_eq!(limit(&limits, &scraper), Some(Limit::All), "it was answered just now");
    tokio::time::advance(IDLE_GRACE).await;
    assert_eq!(limit(&limits, &pod("a", 0)), Some(Limit::Source));
    let own = open(&limits, &scraper);
    assert_eq!(kept.iter().filter_map(closing).collect::<Vec<_>>(), [Closing::MadeRoom]);
    assert_eq!((closing(&kept[5]), all(&limits)), (Some(Closing::MadeRoom), 32));
    // Who has one already waits for one of the others to end.
    kept[6].request_ends();
    tokio::time::advance(IDLE_GRACE).await;
    assert_eq!(limit(&limits, &scraper), Some(Limit::All));
    assert_eq!((closing(&kept[6]), closing(&own)), (None, None));
    drop(kept);
    assert_eq!(all(&limits), 1, "the one that gave way is not counted twice");
    drop(own);
    assert!(limits.0.lock().accounts.is_empty());
}

/// Each of sixteen namespaces may use a sixteenth of all places, and so together all of them.
#[tokio::test(start_paused = true)]
async fn a_namespace_without_any_connection_gets_one_whatever_others_hold() {
    let limits = ConnectionLimits::new(SETTINGS);
    let mut taken = Vec::new();
    for namespace in 0..16 {
        for (n, _) in (0..64).flat_map(|n| (0..FEW).map(move |place| (n, place))) {
            taken.push(open(&limits, &pod(&format!("greedy-{namespace}"), n)));
        }
    }
    taken.iter().for_each(ConnectionPermit::request_begins);
    assert_eq!((all(&limits), limit(&limits, &pod("greedy-0", "new"))), (4096, Some(Limit::All)));
    let mut newcomers: Vec<_> = (0..20).map(|n| open(&limits, &pod(&format!("new-{n}"), 0))).collect();
    assert_eq!(limit(&limits, &pod("new-0", 1)), Some(Limit::All), "one for each namespace");
    let disputed = [1, 2].map(|last| Source::Disputed(IpAddr::from([10, 0, 0, last])));
    let _of_each = disputed.each_ref().map(|source| open(&limits, source));
    assert_eq!(limit(&limits, &disputed[0]), Some(Limit::All), "one for each address");
    assert_eq!(taken.iter().filter_map(closing).count(), 0, "each has a request under way");
    // One that is idle goes, as there is one more than there should be.
    taken[5].request_ends();
    tokio::time::advance(IDLE_GRACE).await;
    newcomers.push(open(&limits, &pod("last", 0)));
    assert_eq!(closing(&taken[5]), Some(Closing::MadeRoom));
    // Before the limit counts again, those beyond it have to end.
    drop(newcomers);
    assert_eq!(limit(&limits, &pod("greedy-0", "new")), Some(Limit::All));
}

fn behind(port: u32, last: u32) -> Source {
    Source::Unknown(IpAddr::from((0x0a00_0000 + last).to_be_bytes()), Network::Port(port))
}

/// A pod may invent any number of addresses, which are all behind its port of a bridge.
#[tokio::test(start_paused = true)]
async fn addresses_that_a_pod_invents_displace_no_pod_at_another_port() {
    let limits = ConnectionLimits::new(SETTINGS);
    let new_pods: Vec<_> = (0..30).map(|port| open(&limits, &behind(port, port))).collect();
    let flood: Vec<_> = (1000..3000).map(|last| open(&limits, &behind(77, last))).collect();
    assert!(new_pods.iter().all(|permit| closing(permit).is_none()));
    let late: Vec<_> = (30..50).map(|port| open(&limits, &behind(port, port))).collect();
    assert!(late.iter().all(|permit| closing(permit).is_none()));
    assert_eq!(flood.iter().filter(|permit| closing(permit).is_none()).count(), 128 - 50);
}
