//! A future beside another one in the same task, which is polled only when it has a reason.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Wake, Waker};

/// A future that is polled only after it was woken. A task that is woken for another reason does not touch its timers and notifications,
/// some of which are shared by all connections and have a lock.
#[derive(Debug)]
pub(crate) struct Seldom<F> {
    future: F,
    flag: Option<(Arc<WakeFlag>, Waker)>,
}

/// Wakes the task, and remembers that it did.
#[derive(Debug)]
struct WakeFlag {
    is_woken: AtomicBool,
    task: Waker,
}

impl Wake for WakeFlag {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.is_woken.store(true, Ordering::Release);
        self.task.wake_by_ref();
    }
}

impl<F: Future + Unpin> Seldom<F> {
    /// Wraps a future. Its first poll always polls it.
    pub(crate) fn new(future: F) -> Self {
        Self { future, flag: None }
    }

    /// Polls the future if it was woken since its last poll, if it was never polled by this task, or if `now` is true.
    pub(crate) fn poll(&mut self, context: &mut Context<'_>, now: bool) -> Poll<F::Output> {
        let is_current = self.flag.as_ref().is_some_and(|(flag, _)| flag.task.will_wake(context.waker()));
        if !is_current {
            let flag = Arc::new(WakeFlag { is_woken: AtomicBool::new(true), task: context.waker().clone() });
            self.flag = Some((flag.clone(), flag.into()));
        }
        let Some((flag, waker)) = &self.flag else { return Poll::Pending };
        // Cleared before the poll, so that a wake during the poll is not lost.
        let is_woken = flag.is_woken.load(Ordering::Acquire) && flag.is_woken.swap(false, Ordering::AcqRel);
        if !is_woken && !now {
            return Poll::Pending;
        }
        Pin::new(&mut self.future).poll(&mut Context::from_waker(waker))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::sync::Notify;

    use super::*;

    /// Counts how often a future is polled.
    fn counted<F: Future + Unpin>(future: F) -> (Seldom<impl Future<Output = F::Output> + Unpin>, Arc<std::sync::atomic::AtomicUsize>) {
        let polls = Arc::new(std::sync::atomic::AtomicUsize::new(0));
        let (counter, mut future) = (polls.clone(), future);
        let counted = std::future::poll_fn(move |context| {
            counter.fetch_add(1, Ordering::Relaxed);
            Pin::new(&mut future).poll(context)
        });
        (Seldom::new(counted), polls)
    }

    #[tokio::test(start_paused = true)]
    async fn it_is_polled_once_and_then_when_it_is_woken() {
        let (mut seldom, polls) = counted(Box::pin(tokio::time::sleep(Duration::from_secs(5))));
        let mut turns = 0;
        std::future::poll_fn(|context| {
            turns += 1;
            if turns < 10 {
                // Something else wakes the task.
                context.waker().wake_by_ref();
            }
            seldom.poll(context, false)
        })
        .await;
        assert_eq!(polls.load(Ordering::Relaxed), 2, "at first, and when the time is over");
    }

    #[tokio::test]
    async fn a_wake_during_a_poll_is_not_lost() {
        let mut left = 3;
        let mut seldom = Seldom::new(std::future::poll_fn(move |context| {
            left -= 1;
            context.waker().wake_by_ref();
            if left == 0 { Poll::Ready(()) } else { Poll::Pending }
        }));
        tokio::time::timeout(Duration::from_secs(5), std::future::poll_fn(|context| seldom.poll(context, false))).await.unwrap();
    }

    #[tokio::test]
    async fn it_is_polled_without_a_wake_if_the_caller_says_so() {
        let (mut seldom, polls) = counted(std::future::pending::<()>());
        for (now, expected) in [(false, 1), (false, 1), (true, 2), (false, 2)] {
            assert!(futures_util::poll!(std::future::poll_fn(|context| seldom.poll(context, now))).is_pending());
            assert_eq!(polls.load(Ordering::Relaxed), expected);
        }
    }

    #[tokio::test]
    async fn it_wakes_the_task_that_polls_it_now() {
        let notify = Arc::new(Notify::new());
        let mut seldom = Seldom::new(Box::pin(notify.clone().notified_owned()));
        assert!(futures_util::poll!(std::future::poll_fn(|context| seldom.poll(context, false))).is_pending());
        let moved = tokio::spawn(async move { std::future::poll_fn(|context| seldom.poll(context, false)).await });
        tokio::task::yield_now().await;
        notify.notify_one();
        tokio::time::timeout(Duration::from_secs(5), moved).await.unwrap().unwrap();
    }
}
