//! What connections may take: how many there are, how many of them one source has, and how long an answer may stay unread.
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
use tokio::time::Sleep;
use tracing::debug;

/// How long the kernel keeps what a peer does not take: that its window is shut is no reason to wait, nor that it says so
/// again and again (tcp(7), TCP_USER_TIMEOUT). It ends also what was written before the process was done with it.
const UNREAD_TIMEOUT: Duration = Duration::from_secs(15);

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
    /// At most `all` connections, and `per_source` of each source.
    pub fn new(all: usize, per_source: usize) -> Self {
        Self { all, per_source, open: Arc::default() }
    }

    /// One more connection of this source, if there may be one.
    pub fn admit(&self, source: IpAddr) -> Result<Permit, Exceeded> {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        // Its own limit first: that is the one that tells who takes too much.
        if open.by_source.get(&source).is_some_and(|count| *count >= self.per_source) {
            return Err(Exceeded::Source);
        }
        if open.all >= self.all {
            return Err(Exceeded::All);
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
    use tokio::time::Instant;

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
