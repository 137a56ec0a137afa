//! How long a response may stay unread.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::Sleep;
use tracing::debug;

use super::progress::Progress;

/// Limits how long the kernel keeps data that a peer does not read, even if the peer keeps announcing a zero window (tcp(7),
/// TCP_USER_TIMEOUT). This also covers data that is still unsent when the process closes the socket.
const UNREAD_TIMEOUT: Duration = Duration::from_secs(15);

/// A stream that fails if what was written to it cannot be flushed in time.
#[derive(Debug)]
pub(crate) struct Timely<S> {
    stream: S,
    timeout: Duration,
    /// Runs from the first write that blocks until the next flush, however little the peer reads meanwhile.
    late: Option<Pin<Box<Sleep>>>,
    progress: Option<Progress>,
}

impl Timely<TcpStream> {
    /// Wraps a connection whose peer must read a response within `timeout`.
    pub(crate) fn connection(stream: TcpStream, timeout: Duration) -> Self {
        if let Err(error) = SockRef::from(&stream).set_tcp_user_timeout(Some(UNREAD_TIMEOUT)) {
            debug!(%error, "cannot set TCP_USER_TIMEOUT on a connection");
        }
        // A small response must not wait for the acknowledgement of the previous one.
        let _ = stream.set_nodelay(true);
        Self::new(stream, timeout)
    }
}

impl<S> Timely<S> {
    /// Wraps a stream other than TCP.
    pub(crate) fn new(stream: S, timeout: Duration) -> Self {
        Self { stream, timeout, late: None, progress: None }
    }

    /// Reports the bytes that arrive.
    #[must_use]
    pub(crate) fn reporting_to(self, progress: Progress) -> Self {
        Self { progress: Some(progress), ..self }
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
        let before = buffer.filled().len();
        let read = Pin::new(&mut self.stream).poll_read(context, buffer);
        if let Some(progress) = &self.progress {
            progress.received(&buffer.filled()[before..]);
        }
        read
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

    /// Called when everything is written, which is the end of a response.
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
