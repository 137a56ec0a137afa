//! What is expensive to make for a request, made at most once a second.

use std::time::Duration;

use bytes::Bytes;
use tokio::sync::Mutex;
use tokio::time::Instant;

/// How long a rendering is reused.
const FRESH: Duration = Duration::from_secs(1);

/// The last rendering. Requests that arrive while it is being made wait for it and share it.
#[derive(Debug)]
pub(crate) struct Rendered<T = Bytes>(Mutex<Option<(Instant, T)>>);

impl<T> Default for Rendered<T> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<T: Clone> Rendered<T> {
    pub(super) async fn get(&self, render: impl Future<Output = T>) -> T {
        let mut last = self.0.lock().await;
        if let Some((at, text)) = &*last
            && at.elapsed() < FRESH
        {
            return text.clone();
        }
        let text = render.await;
        *last = Some((Instant::now(), text.clone()));
        text
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use futures_util::future::join_all;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn requests_within_a_second_get_the_same_text() {
        let (rendered, count) = (Rendered::default(), AtomicUsize::new(0));
        let ask = || rendered.get(async { Bytes::from(count.fetch_add(1, Ordering::SeqCst).to_string()) });
        assert!(join_all((0..8).map(|_| ask())).await.iter().all(|text| text == "0"));
        for _ in 0..30 {
            tokio::time::advance(Duration::from_millis(100)).await;
            ask().await;
        }
        assert_eq!(count.load(Ordering::SeqCst), 4);
        assert_eq!(ask().await, "3");
    }
}
