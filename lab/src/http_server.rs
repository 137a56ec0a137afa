//! What both fake AWS services stand on: a listener that hands each connection to a future, and ends all of them with it.
//!
//! The listener is a plain std one, so that it may have been bound in another network namespace.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Handle;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// After a failed accept (out of file descriptors, mostly) the listener waits this long.
const ACCEPT_PAUSE: Duration = Duration::from_millis(10);

/// A running listener and its connections; dropping it stops both.
#[derive(Debug)]
pub(crate) struct Server {
    addr: SocketAddr,
    stop: CancellationToken,
    stopped: CancellationToken,
}

impl Server {
    /// Serves `listener` on the current tokio runtime; `connection` makes the future of one connection.
    pub(crate) fn start<C, F>(listener: std::net::TcpListener, connection: C) -> io::Result<Server>
    where
        C: Fn(TcpStream, SocketAddr) -> F + Send + 'static,
        F: Future<Output = ()> + Send + 'static,
    {
        let runtime = Handle::try_current().map_err(io::Error::other)?;
        let addr = listener.local_addr()?;
        listener.set_nonblocking(true)?;
        let listener = TcpListener::from_std(listener)?;
        let stop = CancellationToken::new();
        let stopped = CancellationToken::new();
        let until = stop.clone();
        let done = stopped.clone().drop_guard();
        runtime.spawn(async move {
            accept(listener, connection, until).await;
            drop(done);
        });
        Ok(Server { addr, stop, stopped })
    }

    pub(crate) fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Closes the listener and all connections, soon.
    pub(crate) fn stop(&self) {
        self.stop.cancel();
    }

    /// Returns when the listener and all connections are closed.
    pub(crate) async fn stopped(&self) {
        self.stopped.cancelled().await;
    }

    /// Cancelled when the listener and all connections are closed; outlives the server.
    #[cfg(test)]
    pub(crate) fn stopped_token(&self) -> CancellationToken {
        self.stopped.clone()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop();
    }
}

async fn accept<C, F>(listener: TcpListener, connection: C, until: CancellationToken)
where
    C: Fn(TcpStream, SocketAddr) -> F,
    F: Future<Output = ()> + Send + 'static,
{
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            biased;
            () = until.cancelled() => break,
            Some(_) = connections.join_next() => {}
            accepted = listener.accept() => match accepted {
                Ok((stream, peer)) => {
                    // Answers are small: without this each would wait for the acknowledgement of the one before.
                    if let Err(error) = stream.set_nodelay(true) {
                        tracing::debug!(%error, "no TCP_NODELAY");
                    }
                    connections.spawn(connection(stream, peer));
                }
                Err(error) => {
                    tracing::warn!(%error, "accept failed");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            },
        }
    }
    drop(listener);
    connections.shutdown().await;
}
