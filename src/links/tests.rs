#![allow(clippy::unwrap_used, reason = "a test says loudly what failed")]

use super::cni::Results;
use super::view::NodeView;
use super::witness::Witness as _;
use super::*;

#[test]
fn without_a_table_nothing_is_known() {
    let links = Links::none();
    let ip = "10.0.0.1".parse().unwrap();
    links.catch_up();
    links.keep_only(&|_| false);
    assert_eq!((links.of(ip), links.generation(), links.has_bridges()), (Reach::Unknown, 0, false));
    assert_eq!(links.changes().has_changed().ok(), Some(false), "no receiver is woken repeatedly");
    assert_eq!((links.named(Digest::of_name("lo")), links.master_of(1)), (None, None));
}

#[test]
fn the_node_itself_is_nowhere() {
    let links = Links::open().unwrap();
    let loopback = links.named(Digest::of_name("lo")).unwrap();
    assert_eq!(links.master_of(loopback), None);
    for ip in ["127.0.0.1", "::ffff:127.0.0.1", "::1", "0.0.0.0", "::", "224.0.0.1", "ff02::1"] {
        assert_eq!(links.of(ip.parse().unwrap()), Reach::Nowhere, "{ip}");
    }
}

/// The kernel may have to wait for other processes before it answers.
#[test]
fn a_query_to_the_kernel_does_not_block_other_tasks() {
    let links = Links::open().unwrap();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let (begun, begins) = std::sync::mpsc::channel();
    let (done, is_done) = std::sync::mpsc::channel();
    let shared = links.shared.clone().unwrap();
    let question = shared.netlink();
    let asks = runtime.spawn({
        let links = links.clone();
        async move {
            begun.send(()).unwrap();
            links.of([192, 0, 2, 1].into())
        }
    });
    begins.recv().unwrap();
    runtime.spawn(async move { done.send(()).unwrap() });
    let other = is_done.recv_timeout(Duration::from_secs(10));
    drop(question);
    runtime.block_on(asks).unwrap();
    assert_eq!(other, Ok(()));
}

#[test]
fn the_kernel_can_be_queried_with_and_without_a_runtime() {
    let one = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let many = tokio::runtime::Builder::new_multi_thread().worker_threads(1).build().unwrap();
    let nested = async { tokio::spawn(async { blocking(|| blocking(|| 3)) }).await.unwrap() };
    assert_eq!([blocking(|| 1), one.block_on(async { blocking(|| 2) }), many.block_on(nested)], [1, 2, 3]);
}

#[tokio::test(start_paused = true)]
async fn endless_changes_are_announced_in_batches_including_the_last() {
    let links = Links::none();
    let view = NodeView::new(links.clone(), Results::none(), None);
    let mut announced = view.changes();
    let keeper = tokio::spawn(view.keep());
    // After each change, lets the keeper run and a millisecond pass.
    let change = async |announced: &mut watch::Receiver<u64>| {
        links.changes.send_replace(0);
        tokio::time::sleep(Duration::from_millis(1)).await;
        let is_announced = announced.has_changed().unwrap();
        announced.mark_unchanged();
        usize::from(is_announced)
    };
    tokio::task::yield_now().await;
    assert_eq!(change(&mut announced).await, 1, "the first change is announced at once");
    let mut count = 0;
    for _ in 0..1000 {
        count += change(&mut announced).await;
    }
    assert!((40..=60).contains(&count), "{count}");
    tokio::time::sleep(Duration::from_millis(50)).await;
    announced.mark_unchanged();
    assert_eq!([change(&mut announced).await, change(&mut announced).await], [1, 0]);
    tokio::time::timeout(Duration::from_millis(50), announced.changed()).await.unwrap().unwrap();
    keeper.abort();
}

/// Waits until the condition holds.
#[track_caller]
fn until(is_so: impl Fn() -> bool) {
    let begun = std::time::Instant::now();
    while !is_so() {
        assert!(begun.elapsed() < Duration::from_secs(30), "the condition was not met in time");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Returns whether this ends although another caller is querying the kernel.
fn ends(run: impl FnOnce() + Send + 'static) -> bool {
    let (done, is_done) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        run();
        let _ = done.send(());
    });
    is_done.recv_timeout(Duration::from_secs(10)).is_ok()
}

/// Reading the interfaces again waits for processes that change them.
#[test]
fn after_a_loss_only_the_keeper_waits_for_the_kernel() {
    // Dropped last: the runtime waits for its threads, which wait for the query.
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let links = Links::open().unwrap();
    let shared = links.shared.clone().unwrap();
    let catch_up = || {
        let links = links.clone();
        ends(move || links.catch_up())
    };
    let question = shared.netlink();
    shared.feed().lose(NotificationQueue::Topology);
    assert!(catch_up());
    assert!(shared.feed().is_lost(NotificationQueue::Topology), "the loss has not been compensated for");

    runtime.spawn({
        let links = links.clone();
        async move { links.keep().await }
    });
    until(|| shared.table().is_behind(NotificationQueue::Topology));
    assert!(catch_up());
    let of_keeper = shared.clone();
    assert!(ends(move || drop(of_keeper.feed())), "the keeper queries the kernel without blocking readers of notifications");
    let (done, is_done) = std::sync::mpsc::channel();
    runtime.spawn(async move { done.send(()).unwrap() });
    assert_eq!(is_done.recv_timeout(Duration::from_secs(10)), Ok(()), "other tasks continue");
    drop(question);
    let is_complete = || !shared.feed().is_lost(NotificationQueue::Topology) && !shared.table().is_behind(NotificationQueue::Topology);
    until(is_complete);

    // Other readers may reach the end of the queue before the keeper learns of the loss.
    shared.feed().lose(NotificationQueue::Topology);
    shared.resync.notify_one();
    until(is_complete);
}
