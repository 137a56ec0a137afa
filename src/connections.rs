//! What connections may take: how many there are, how many of them one source has and how often it makes one, and how long
//! an answer may stay unread.
//! A pod that takes all it can get must leave the others theirs.

use std::collections::HashMap;
use std::io::{self, IoSlice};
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::{Instant, Sleep};
use tracing::debug;

/// How long the kernel keeps what a peer does not take: that its window is shut is no reason to wait, nor that it says so
/// again and again (tcp(7), TCP_USER_TIMEOUT). It ends also what was written before the process was done with it.
const UNREAD_TIMEOUT: Duration = Duration::from_secs(15);

/// What a source may have also when most connections are in use.
const FEW: usize = 4;

/// How many connections may be open; cheap to clone.
#[derive(Clone, Debug)]
pub struct Limits {
    all: usize,
    per_source: usize,
    open: Arc<Mutex<Open>>,
}

#[derive(Debug, Default)]
struct Open {
    all: usize,
    /// Without zeros: an entry goes with its last connection.
    by_source: HashMap<IpAddr, usize>,
}

/// Which limit a connection does not fit in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exceeded {
    /// That of all sources together.
    All,
    /// What is left is for sources that have few.
    Room,
    /// That of its own source.
    Source,
}

/// The right to be open, until dropped.
#[derive(Debug)]
pub struct Permit {
    open: Arc<Mutex<Open>>,
    source: IpAddr,
}

impl Limits {
    /// At most `all` connections, and `per_source` of each source. The last quarter of all is for sources with fewer than
    /// four, so that some sources together cannot keep the others out.
    pub fn new(all: usize, per_source: usize) -> Self {
        Self { all, per_source, open: Arc::default() }
    }

    /// One more connection of this source, if there may be one.
    pub fn admit(&self, source: IpAddr) -> Result<Permit, Exceeded> {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        // Its own limit first: that is the one that tells who takes too much.
        let own = open.by_source.get(&source).copied().unwrap_or(0);
        if own >= self.per_source {
            return Err(Exceeded::Source);
        }
        if open.all >= self.all {
            return Err(Exceeded::All);
        }
        if own >= FEW && open.all > self.all - self.all.div_ceil(4) {
            return Err(Exceeded::Room);
        }
        open.all += 1;
        *open.by_source.entry(source).or_default() += 1;
        Ok(Permit { open: self.open.clone(), source })
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        open.all -= 1;
        if let Some(count) = open.by_source.get_mut(&self.source) {
            *count -= 1;
            if *count == 0 {
                open.by_source.remove(&self.source);
            }
        }
    }
}

/// How often a source may connect: bursts of `burst`, and `per_second` in the long run.
#[derive(Debug)]
pub struct Rates {
    per_second: f64,
    burst: f64,
    buckets: Mutex<HashMap<IpAddr, Bucket>>,
}

/// What a source has left, as of a time.
#[derive(Clone, Copy, Debug)]
struct Bucket {
    left: f64,
    at: Instant,
}

/// Sources that are remembered; with more, those that have not connected lately are forgotten, or all.
const MAX_BUCKETS: usize = 4096;

impl Rates {
    /// Connections a second of each source; twice that at once.
    pub fn new(per_second: u32) -> Self {
        let per_second = f64::from(per_second);
        Self { per_second, burst: 2.0 * per_second, buckets: Mutex::default() }
    }

    /// Whether this source may connect now. It counts.
    pub fn admits(&self, source: IpAddr) -> bool {
        let now = Instant::now();
        let mut buckets = self.buckets.lock().unwrap_or_else(PoisonError::into_inner);
        let left = |bucket: &Bucket| (bucket.left + (now - bucket.at).as_secs_f64() * self.per_second).min(self.burst);
        if buckets.len() >= MAX_BUCKETS && !buckets.contains_key(&source) {
            buckets.retain(|_, bucket| left(bucket) < self.burst);
            if buckets.len() >= MAX_BUCKETS {
                // So many at once are no pods of one node; whoever makes them up must not keep the others out.
                buckets.clear();
            }
        }
        let bucket = buckets.entry(source).or_insert(Bucket { left: self.burst, at: now });
        *bucket = Bucket { left: left(bucket), at: now };
        let admitted = bucket.left >= 1.0;
        if admitted {
            bucket.left -= 1.0;
        }
        admitted
    }
}

/// A stream that fails when what was written to it could not be flushed in time.
#[derive(Debug)]
pub struct Timely<S> {
    stream: S,
    timeout: Duration,
    /// Runs from the first write that had to wait to the next flush, however little the peer takes meanwhile.
    late: Option<Pin<Box<Sleep>>>,
}

impl Timely<TcpStream> {
    /// A connection whose peer must take an answer within `timeout`.
    pub fn connection(stream: TcpStream, timeout: Duration) -> Self {
        if let Err(error) = SockRef::from(&stream).set_tcp_user_timeout(Some(UNREAD_TIMEOUT)) {
            debug!(%error, "the kernel does not limit how long a peer may read nothing");
        }
        // A small answer should not wait for the acknowledgement of the last one.
        let _ = stream.set_nodelay(true);
        Self::new(stream, timeout)
    }
}

impl<S> Timely<S> {
    fn new(stream: S, timeout: Duration) -> Self {
        Self { stream, timeout, late: None }
    }

    fn in_time<T>(&mut self, context: &mut Context<'_>, result: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if result.is_ready() {
            return result;
        }
        let timeout = self.timeout;
        let late = self.late.get_or_insert_with(|| Box::pin(tokio::time::sleep(timeout)));
        late.as_mut().poll(context).map(|()| Err(io::ErrorKind::TimedOut.into()))
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Timely<S> {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Timely<S> {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(context, bytes);
        self.in_time(context, written)
    }

    fn poll_write_vectored(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(context, bytes);
        self.in_time(context, written)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    /// Asked for when everything is written, so that this is the end of an answer.
    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = Pin::new(&mut self.stream).poll_flush(context);
        if flushed.is_ready() {
            self.late = None;
        }
        self.in_time(context, flushed)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    fn source(last: u8) -> IpAddr {
        IpAddr::from([10, 0, 0, last])
    }

    #[test]
    fn a_source_has_its_limit_and_all_have_one_together() {
        let limits = Limits::new(5, 3);
        let mut permits: Vec<_> = (0..3).map(|_| limits.admit(source(1)).unwrap()).collect();
        assert_eq!(limits.admit(source(1)).unwrap_err(), Exceeded::Source);
        permits.extend((0..2).map(|_| limits.admit(source(2)).unwrap()));
        assert_eq!(limits.admit(source(2)).unwrap_err(), Exceeded::All);
        assert_eq!(limits.admit(source(1)).unwrap_err(), Exceeded::Source, "the one who takes too much is told apart");
        permits.remove(0);
        permits.push(limits.admit(source(1)).unwrap());
        assert_eq!(limits.admit(source(1)).unwrap_err(), Exceeded::Source);
        permits.clear();
        assert!(limits.open.lock().unwrap().by_source.is_empty(), "sources that are gone are forgotten");
        assert_eq!(limits.open.lock().unwrap().all, 0);
    }

    #[test]
    fn sources_that_take_all_they_can_get_together_leave_room_for_those_with_few() {
        let limits = Limits::new(4096, 128);
        // More than all by their own limits alone.
        let mut taken: Vec<_> = (0..32 * 128).filter_map(|n: usize| limits.admit(source((n / 128) as u8)).ok()).collect();
        assert_eq!(limits.admit(source(0)).unwrap_err(), Exceeded::Source);
        assert_eq!(limits.admit(source(31)).unwrap_err(), Exceeded::Room);
        for other in 100..200 {
            taken.extend((0..FEW).map(|_| limits.admit(source(other)).unwrap()));
            assert_eq!(limits.admit(source(other)).unwrap_err(), Exceeded::Room, "{other}");
        }
        // With room again, there is no difference.
        taken.drain(..1500);
        taken.push(limits.admit(source(31)).unwrap());
    }

    #[tokio::test(start_paused = true)]
    async fn a_source_that_connects_again_and_again_is_slowed_and_no_other_is() {
        let rates = Rates::new(10);
        let taken = |source| (0..100).filter(|_| rates.admits(source)).count();
        assert_eq!(taken(source(1)), 20);
        assert_eq!(taken(source(2)), 20);
        tokio::time::advance(Duration::from_millis(1500)).await;
        assert_eq!(taken(source(1)), 15);
        tokio::time::advance(Duration::from_secs(3600)).await;
        assert_eq!(taken(source(1)), 20);
    }

    #[tokio::test(start_paused = true)]
    async fn sources_are_forgotten_when_they_are_quiet() {
        let rates = Rates::new(10);
        let many = |from: u32| (from..from + 4096).map(|last| IpAddr::from((0x0a00_0000 + last).to_be_bytes()));
        assert!(many(0).all(|source| rates.admits(source)));
        for _ in 0..20 {
            rates.admits(source(1));
        }
        assert!(!rates.admits(source(1)));
        tokio::time::advance(Duration::from_millis(500)).await;
        assert!(rates.admits(IpAddr::from([11, 0, 0, 1])), "a newcomer has room");
        assert_eq!(rates.buckets.lock().unwrap().len(), 2, "the quiet ones are forgotten, and the busy one is not");
        assert!(many(0).all(|source| source == IpAddr::from([10, 0, 0, 1]) || rates.admits(source)));
        assert!(rates.buckets.lock().unwrap().len() <= MAX_BUCKETS);
    }

    #[tokio::test]
    async fn the_kernel_is_told_how_long_a_peer_may_read_nothing() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let stream = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let connection = Timely::connection(stream, Duration::from_secs(5));
        assert_eq!(SockRef::from(&connection.stream).tcp_user_timeout().unwrap(), Some(UNREAD_TIMEOUT));
    }

    #[tokio::test(start_paused = true)]
    async fn a_peer_that_takes_an_answer_too_slowly_is_not_waited_for() {
        for (pause, ends) in [(Duration::from_secs(60), true), (Duration::from_secs(1), true), (Duration::from_millis(100), false)] {
            let (near, mut far) = tokio::io::duplex(10);
            let mut near = Timely::new(near, Duration::from_secs(5));
            let reader = tokio::spawn(async move {
                // Ten bytes at a time, of a hundred.
                while far.read(&mut [0; 10]).await.is_ok_and(|count| count > 0) {
                    tokio::time::sleep(pause).await;
                }
            });
            for _ in 0..10 {
                let began = Instant::now();
                let answered = async {
                    near.write_all(&[0; 100]).await?;
                    near.flush().await
                };
                let error = answered.await.err().map(|error| error.kind());
                assert_eq!(error, ends.then_some(io::ErrorKind::TimedOut), "{pause:?}");
                assert!(began.elapsed() <= Duration::from_secs(6), "{pause:?}: {:?}", began.elapsed());
                if ends {
                    break;
                }
            }
            drop(near);
            reader.await.unwrap();
        }
    }
}
