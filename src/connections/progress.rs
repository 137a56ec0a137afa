//! The progress of a connection, as its bytes show it: it waits for a request, receives one, or answers one.
//!
//! hyper has one timeout for both the wait between two requests and the arrival of a request's head. Clients that poll
//! on a kept connection need a long wait, and a head that trickles in must be given up soon, so the two are told apart
//! here: by the first byte of a request.
//!
//! The bytes also show what hyper hides: a `Content-Length` beside `Transfer-Encoding`, and how exactly a chunked body was
//! written. And they show whether a request is the same as the one before, byte for byte: clients that poll send the same request again
//! and again.

use std::fmt;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::time::{Instant, Sleep};

/// A chunked body without content, in the form that clients write (RFC 9112, section 7.1).
const EMPTY_CHUNKED: [u8; 5] = *b"0\r\n\r\n";

const CONTENT_LENGTH: &[u8] = b"content-length";

/// The longest request that is remembered, in bytes. Requests of SDKs have about 250.
const MAX_REMEMBERED: usize = 1024;

/// How long a connection may wait.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Timeouts {
    /// For the first byte of a request.
    pub idle: Duration,
    /// For the rest of the request, counted from its first byte.
    pub head: Duration,
}

/// The timeout that a connection exceeded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Overdue {
    /// No request began in time.
    Idle,
    /// A request began and did not arrive in time.
    Head,
}

impl Overdue {
    /// Returns the stable name, which is a metric's label.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Idle => "idle",
            Self::Head => "timeout",
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Idle,
    Receiving,
    Answering,
}

/// The progress of one connection; cheap to clone. The stream reports bytes to it, and the service requests.
#[derive(Clone, Debug)]
pub(crate) struct Progress {
    timeouts: Timeouts,
    shared: Arc<SharedProgress>,
}

#[derive(Debug)]
struct SharedProgress {
    state: Mutex<State>,
    /// Whether a part of a request has arrived and the rest is awaited.
    is_receiving: AtomicBool,
}

#[derive(Debug)]
struct State {
    phase: Phase,
    /// When the phase began. While a request is answered: when its first byte arrived.
    since: Instant,
    /// The body of the request that is being answered is awaited.
    waits_for_body: bool,
    scan: Scan,
    /// `None` if requests are not compared.
    last: Option<LastRequest>,
}

/// The last request that arrived alone and in one piece. Its bytes include a session token.
#[derive(Default)]
struct LastRequest {
    /// Its bytes; empty if there is none.
    bytes: Vec<u8>,
    /// Whether the request that arrived last has the same bytes as the one before.
    is_repeated: bool,
}

impl fmt::Debug for LastRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("LastRequest(..)")
    }
}

impl Progress {
    /// Creates the progress of a connection that was just opened. With `compares`, repeated requests are recognized.
    pub(crate) fn new(timeouts: Timeouts, compares: bool) -> Self {
        let (scan, last) = (Scan::default(), compares.then(LastRequest::default));
        let state = State { phase: Phase::Idle, since: Instant::now(), waits_for_body: false, scan, last };
        Self { timeouts, shared: Arc::new(SharedProgress { state: Mutex::new(state), is_receiving: AtomicBool::new(false) }) }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.shared.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn set_receiving(&self, is_receiving: bool) {
        // Read and written by the task of the connection alone.
        self.shared.is_receiving.store(is_receiving, Ordering::Relaxed);
    }

    /// Returns whether a part of a request has arrived and the rest is awaited: the connection's timer must be polled now, because
    /// it may end earlier than it was set to.
    pub(crate) fn is_receiving(&self) -> bool {
        self.shared.is_receiving.load(Ordering::Relaxed)
    }

    /// Records bytes that arrived.
    pub(super) fn received(&self, bytes: &[u8]) {
        if bytes.is_empty() {
            return;
        }
        let mut state = self.state();
        let state = &mut *state;
        let is_alone = state.phase == Phase::Idle && state.scan.is_at_rest();
        if state.phase == Phase::Idle {
            (state.phase, state.since) = (Phase::Receiving, Instant::now());
            self.set_receiving(true);
        }
        let Some(last) = &mut state.last else { return state.scan.feed(bytes, state.phase == Phase::Answering) };
        // hyper has read everything before, so the same bytes are the same request.
        if is_alone && last.bytes == bytes {
            last.is_repeated = true;
            return state.scan.skip_head();
        }
        last.is_repeated = false;
        state.scan.feed(bytes, state.phase == Phase::Answering);
        last.bytes.clear();
        if is_alone && bytes.len() <= MAX_REMEMBERED && state.scan.is_one_head() {
            last.bytes.extend_from_slice(bytes);
        }
    }

    /// Records that the head of a request has arrived and that the request is being answered. Returns whether it arrived alone, in one
    /// piece, and with exactly the same bytes as the one before, which also did.
    pub(crate) fn request_begins(&self) -> bool {
        let mut state = self.state();
        state.phase = Phase::Answering;
        state.scan.heads = state.scan.heads.saturating_sub(1);
        self.set_receiving(false);
        // Bytes that arrive while this request is answered are not part of it.
        state.last.as_mut().is_some_and(|last| std::mem::take(&mut last.is_repeated))
    }

    /// Records that a request was answered. If bytes of the next one have arrived, that one must be complete in time.
    pub(crate) fn request_ends(&self) {
        let mut state = self.state();
        let has_more = state.scan.next_request();
        (state.phase, state.since) = (if has_more { Phase::Receiving } else { Phase::Idle }, Instant::now());
        self.set_receiving(has_more);
    }

    /// Returns until when a request that is being answered must have arrived, its body included.
    pub(crate) fn request_deadline(&self) -> Instant {
        self.state().since + self.timeouts.head
    }

    /// Records that the body of the request that is being answered is awaited.
    pub(crate) fn body_begins(&self) {
        self.state().waits_for_body = true;
    }

    /// Records that the body has arrived, or is awaited no longer.
    pub(crate) fn body_ends(&self) {
        self.state().waits_for_body = false;
    }

    /// Whether the client has yet to send the body of a request.
    pub(crate) fn waits_for_body(&self) -> bool {
        self.state().waits_for_body
    }

    /// Whether the request that is being answered has no `Content-Length`, and all that followed its head is an empty chunked
    /// body without extension or trailer. `false` on a connection whose client did not wait for its earlier answers.
    pub(crate) fn has_empty_chunked_body(&self) -> bool {
        self.state().scan.has_empty_chunked_body()
    }

    /// Returns a timer that ends when the connection has waited too long.
    pub(crate) fn timer(&self) -> ProgressTimer {
        let armed = self.state().since + self.timeouts.idle;
        ProgressTimer { progress: self.clone(), sleep: Box::pin(tokio::time::sleep_until(armed)) }
    }

    /// Returns when the connection has waited too long; `None` while it answers.
    fn deadline(&self) -> Option<(Instant, Overdue)> {
        let state = self.state();
        match state.phase {
            Phase::Idle => Some((state.since + self.timeouts.idle, Overdue::Idle)),
            Phase::Receiving => Some((state.since + self.timeouts.head, Overdue::Head)),
            Phase::Answering => None,
        }
    }
}

/// A timer of a connection. It must be polled when it wakes its task, and whenever [`Progress::is_receiving`]: only then may the connection
/// have to end earlier than the timer is set to.
#[derive(Debug)]
pub(crate) struct ProgressTimer {
    progress: Progress,
    sleep: Pin<Box<Sleep>>,
}

impl ProgressTimer {
    /// Returns when the connection has waited too long.
    pub(crate) async fn overdue(&mut self) -> Overdue {
        std::future::poll_fn(|context| self.poll(context)).await
    }

    fn poll(&mut self, context: &mut Context<'_>) -> Poll<Overdue> {
        let deadline = self.progress.deadline();
        // A deadline moves with each request. A later one is looked at when the timer fires. An answer has all the time that it takes.
        // Never later than an idle connection may end, because nothing polls the timer when a request ends.
        let at_latest = Instant::now() + self.progress.timeouts.idle;
        let until = deadline.map_or(at_latest, |(deadline, _)| deadline.min(at_latest));
        if until < self.sleep.deadline() || self.sleep.is_elapsed() {
            self.sleep.as_mut().reset(until);
        }
        while self.sleep.as_mut().poll(context).is_ready() {
            if let Some((deadline, overdue)) = deadline
                && Instant::now() >= deadline
            {
                return Poll::Ready(overdue);
            }
            self.sleep.as_mut().reset(until);
        }
        Poll::Pending
    }
}

/// Finds the ends of heads in the bytes of a connection, as httparse does: an empty line, ended by LF or CRLF. Empty lines
/// before a request are skipped.
#[derive(Debug)]
struct Scan {
    /// The number of complete heads that are not answered yet.
    heads: usize,
    /// A line of a head has begun.
    in_head: bool,
    line_is_empty: bool,
    /// How much of a line is the beginning of `content-length`; `None` if it is not.
    length_name: Option<usize>,
    has_length: bool,
    /// The first bytes behind the first head.
    after: [u8; EMPTY_CHUNKED.len()],
    /// The number of bytes behind the first head.
    after_count: usize,
    /// Nothing of the current request arrived before the previous one was answered.
    is_alone: bool,
}

impl Default for Scan {
    fn default() -> Self {
        Self {
            heads: 0,
            in_head: false,
            line_is_empty: true,
            length_name: Some(0),
            has_length: false,
            after: [0; EMPTY_CHUNKED.len()],
            after_count: 0,
            is_alone: true,
        }
    }
}

impl Scan {
    fn feed(&mut self, mut bytes: &[u8], is_answering: bool) {
        while !bytes.is_empty() {
            let end = memchr::memchr(b'\n', bytes);
            let (line, rest) = bytes.split_at(end.map_or(bytes.len(), |at| at + 1));
            if is_answering || self.heads > 0 {
                self.record(line);
            }
            self.part_of_line(&line[..end.unwrap_or(line.len())]);
            if end.is_some() {
                self.line_ends();
            }
            bytes = rest;
        }
    }

    /// Records bytes behind the first head.
    fn record(&mut self, bytes: &[u8]) {
        let free = self.after.get_mut(self.after_count..).unwrap_or_default();
        for (place, byte) in free.iter_mut().zip(bytes) {
            *place = *byte;
        }
        self.after_count = self.after_count.saturating_add(bytes.len());
    }

    fn part_of_line(&mut self, bytes: &[u8]) {
        for byte in bytes.iter().copied().filter(|byte| *byte != b'\r') {
            (self.in_head, self.line_is_empty) = (true, false);
            let Some(at) = self.length_name else { return };
            self.length_name = (CONTENT_LENGTH.get(at) == Some(&byte.to_ascii_lowercase())).then_some(at + 1);
            self.has_length |= self.length_name == Some(CONTENT_LENGTH.len());
        }
    }

    fn line_ends(&mut self) {
        if self.line_is_empty && self.in_head {
            self.heads = self.heads.saturating_add(1);
            self.in_head = false;
        }
        (self.line_is_empty, self.length_name) = (true, Some(0));
    }

    /// Whether everything that arrived belongs to requests that were answered.
    fn is_at_rest(&self) -> bool {
        self.heads == 0 && !self.in_head && self.line_is_empty && self.after_count == 0
    }

    /// Whether exactly one head arrived, and nothing else, since the scan was at rest.
    fn is_one_head(&self) -> bool {
        self.heads == 1 && !self.in_head && self.after_count == 0 && !self.has_length
    }

    /// Passes over the bytes of a head after which [`Self::is_one_head`] was true, since the scan was at rest.
    fn skip_head(&mut self) {
        self.heads = 1;
    }

    fn has_empty_chunked_body(&self) -> bool {
        self.is_alone && !self.has_length && self.after_count == EMPTY_CHUNKED.len() && self.after == EMPTY_CHUNKED
    }

    /// Forgets an answered request. Returns whether bytes of the next one have arrived.
    fn next_request(&mut self) -> bool {
        let has_more = self.heads > 0 || self.in_head;
        self.is_alone = self.after_count == 0 && !has_more;
        (self.after_count, self.has_length) = (0, false);
        has_more
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test says loudly what failed")]
mod tests {
    use super::*;

    const TIMEOUTS: Timeouts = Timeouts { idle: Duration::from_secs(75), head: Duration::from_secs(5) };
    const GET: &[u8] = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n";

    /// Returns which timeout ends a connection on which nothing more happens, and after how long.
    async fn ends(progress: &Progress) -> (Overdue, Duration) {
        let began = Instant::now();
        (progress.timer().overdue().await, began.elapsed())
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_without_a_byte_has_the_idle_timeout() {
        let progress = Progress::new(TIMEOUTS, true);
        assert_eq!(ends(&progress).await, (Overdue::Idle, TIMEOUTS.idle));
        let progress = Progress::new(TIMEOUTS, true);
        progress.received(GET);
        progress.request_begins();
        tokio::time::advance(Duration::from_secs(100)).await;
        progress.request_ends();
        assert_eq!(ends(&progress).await, (Overdue::Idle, TIMEOUTS.idle), "from the answer on");
    }

    #[tokio::test(start_paused = true)]
    async fn a_head_has_the_head_timeout_from_its_first_byte() {
        let progress = Progress::new(TIMEOUTS, true);
        tokio::time::advance(Duration::from_secs(70)).await;
        progress.received(b"G");
        for byte in b"ET" {
            tokio::time::advance(Duration::from_secs(2)).await;
            progress.received(&[*byte]);
        }
        assert_eq!(ends(&progress).await, (Overdue::Head, Duration::from_secs(1)), "more bytes do not prolong it");
    }

    #[tokio::test(start_paused = true)]
    async fn a_part_of_the_next_request_has_the_head_timeout() {
        for more in [&b"G"[..], b"GET / HTTP/1.1\r\n\r", GET] {
            let progress = Progress::new(TIMEOUTS, true);
            progress.received(&[GET, more].concat());
            progress.request_begins();
            progress.request_ends();
            assert_eq!(ends(&progress).await, (Overdue::Head, TIMEOUTS.head), "{more:?}");
        }
    }

    /// Sends these pieces, each as one request after the one before was answered. Returns for each whether it repeats the one before.
    fn repetitions(pieces: &[&[u8]]) -> Vec<bool> {
        let progress = Progress::new(TIMEOUTS, true);
        let one = |piece: &&[u8]| {
            progress.received(piece);
            let is_repeated = progress.request_begins();
            progress.request_ends();
            is_repeated
        };
        pieces.iter().map(one).collect()
    }

    #[test]
    fn the_same_request_again_is_recognized_by_its_bytes() {
        let other = b"GET / HTTP/1.1\r\nHost: y\r\n\r\n";
        assert_eq!(repetitions(&[GET, GET, GET, other, other, GET]), [false, true, true, false, true, false]);
        let with_length = b"GET / HTTP/1.1\r\nContent-Length: 0\r\n\r\n";
        assert_eq!(repetitions(&[with_length, with_length]), [false, false], "a body may follow");
        let long = [b"GET / HTTP/1.1\r\nX: ", "x".repeat(MAX_REMEMBERED).as_bytes(), b"\r\n\r\n"].concat();
        assert_eq!(repetitions(&[&long, &long]), [false, false]);
    }

    /// What hyper reads as a request is then not the same as these bytes.
    #[test]
    fn bytes_beside_a_request_are_never_taken_for_a_repetition() {
        let two = [GET, GET].concat();
        assert_eq!(repetitions(&[GET, &two, GET]), [false, false, false], "the second request of two has yet to be answered");
        let (head, tail) = GET.split_at(9);
        let progress = Progress::new(TIMEOUTS, true);
        for pieces in [&[GET][..], &[head, tail], &[head, GET], &[GET, tail]] {
            pieces.iter().for_each(|piece| progress.received(piece));
            assert!(!progress.request_begins(), "{pieces:?}");
            progress.request_ends();
        }
        // A request that arrives while another one is answered is not compared.
        let progress = Progress::new(TIMEOUTS, true);
        progress.received(GET);
        progress.request_begins();
        progress.received(GET);
        progress.request_ends();
        assert!(!progress.request_begins());
        progress.request_ends();
        progress.received(GET);
        assert!(!progress.request_begins(), "the one before did not arrive alone");
    }

    #[tokio::test(start_paused = true)]
    async fn a_repeated_head_leaves_the_same_state_as_a_first_one() {
        let progress = Progress::new(TIMEOUTS, true);
        for _ in 0..3 {
            progress.received(GET);
            assert!(progress.is_receiving());
            progress.request_begins();
            assert!(!progress.is_receiving());
            progress.received(b"G");
            progress.request_ends();
            assert!(progress.is_receiving());
            progress.received(b"ET / HTTP/1.1\r\n\r\n");
            progress.request_begins();
            progress.request_ends();
            assert!(!progress.is_receiving());
            assert_eq!(ends(&progress).await, (Overdue::Idle, TIMEOUTS.idle));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_timer_follows_the_progress_while_it_runs() {
        let progress = Progress::new(TIMEOUTS, true);
        let mut timer = progress.timer();
        let mut overdue = Box::pin(timer.overdue());
        let mut is_over = async |after: u64| {
            tokio::time::advance(Duration::from_secs(after)).await;
            futures_util::poll!(&mut overdue)
        };
        assert_eq!(is_over(60).await, Poll::Pending);
        progress.received(GET);
        progress.request_begins();
        assert_eq!(is_over(100).await, Poll::Pending, "an answer has all the time that it takes");
        progress.request_ends();
        assert_eq!(is_over(74).await, Poll::Pending);
        progress.received(b"GET");
        assert_eq!(is_over(4).await, Poll::Pending);
        assert_eq!(is_over(1).await, Poll::Ready(Overdue::Head));
    }

    /// The timer was set to the end of a slow head, which arrived before it.
    #[tokio::test(start_paused = true)]
    async fn a_long_head_timeout_does_not_prolong_the_idle_timeout() {
        let progress = Progress::new(Timeouts { idle: Duration::from_secs(1), head: Duration::from_secs(60) }, true);
        let mut timer = progress.timer();
        let mut seldom = crate::connections::Seldom::new(Box::pin(timer.overdue()));
        let mut is_over = |now| {
            futures_util::FutureExt::now_or_never(std::future::poll_fn(|context| {
                let polled = seldom.poll(context, now);
                Poll::Ready(polled.is_ready())
            }))
        };
        progress.received(b"GET");
        assert_eq!(is_over(progress.is_receiving()), Some(false));
        tokio::time::sleep(Duration::from_secs(2)).await;
        assert_eq!(is_over(progress.is_receiving()), Some(false), "a head has a minute");
        progress.received(b" / HTTP/1.1\r\n\r\n");
        progress.request_begins();
        progress.request_ends();
        assert_eq!(is_over(progress.is_receiving()), Some(false));
        tokio::time::timeout(Duration::from_secs(3), std::future::poll_fn(|context| seldom.poll(context, false))).await.unwrap();
    }

    #[test]
    fn requests_are_compared_only_where_that_is_of_use_and_never_shown() {
        let progress = Progress::new(TIMEOUTS, false);
        for _ in 0..3 {
            progress.received(GET);
            assert!(!progress.request_begins());
            progress.request_ends();
        }
        let progress = Progress::new(TIMEOUTS, true);
        progress.received(b"GET / HTTP/1.1\r\nX-Token: abc\r\n\r\n");
        let shown = format!("{progress:?}");
        assert!(shown.contains("LastRequest(..)") && !shown.contains("97, 98, 99"), "{shown}");
    }

    /// What the scan says of a request after it has arrived in pieces of this many bytes.
    fn has_empty_chunked_body(bytes: &[u8], size: usize) -> bool {
        let mut scan = Scan::default();
        for piece in bytes.chunks(size) {
            scan.feed(piece, false);
        }
        scan.has_empty_chunked_body()
    }

    #[test]
    fn only_an_empty_chunk_behind_a_head_without_length_is_an_empty_body() {
        for (head, body, expected) in [
            ("PUT / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n", "0\r\n\r\n", true),
            ("\r\nPUT / HTTP/1.1\r\nX: content-length\r\n\r\n", "0\r\n\r\n", true),
            ("PUT / HTTP/1.1\r\n\r\n", "", false),
            ("PUT / HTTP/1.1\r\n\r\n", "0\r\n", false),
            ("PUT / HTTP/1.1\r\n\r\n", "0\r\n\r\nG", false),
            ("PUT / HTTP/1.1\r\n\r\n", "00\r\n\r\n", false),
            ("PUT / HTTP/1.1\r\n\r\n", "0\n\n", false),
            ("PUT / HTTP/1.1\r\n\r\n", "0;a=b\r\n\r\n", false),
            ("PUT / HTTP/1.1\r\n\r\n", "0\r\nX: y\r\n\r\n", false),
            ("PUT / HTTP/1.1\r\n\r\n", "1\r\na\r\n0\r\n\r\n", false),
            ("PUT / HTTP/1.1\r\nContent-Length: 0\r\n\r\n", "0\r\n\r\n", false),
            ("PUT / HTTP/1.1\r\ncontent-LENGTH:5\r\nTransfer-Encoding: chunked\r\n\r\n", "0\r\n\r\n", false),
        ] {
            let bytes = [head.as_bytes(), body.as_bytes()].concat();
            for size in [1, 3, 7, bytes.len()] {
                assert_eq!(has_empty_chunked_body(&bytes, size), expected, "{head:?} {body:?} by {size}");
            }
        }
    }

    #[test]
    fn a_client_that_does_not_wait_for_answers_sends_no_body() {
        let progress = Progress::new(TIMEOUTS, true);
        let put = b"PUT / HTTP/1.1\r\n\r\n0\r\n\r\n";
        progress.received(&[GET, put].concat());
        progress.request_begins();
        progress.request_ends();
        progress.request_begins();
        assert!(!progress.has_empty_chunked_body());
        let progress = Progress::new(TIMEOUTS, true);
        for expected in [true, false] {
            progress.received(GET);
            progress.request_begins();
            progress.request_ends();
            progress.received(put);
            progress.request_begins();
            assert_eq!(progress.has_empty_chunked_body(), expected, "a body is the last thing on a connection");
            progress.request_ends();
        }
    }
}
