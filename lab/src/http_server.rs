//! The listener that both fake AWS services use. It passes each connection to a future, and ends all of them when it stops.
//!
//! The listener is a plain std one, so that it can be bound in another network namespace.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Handle;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// The pause after a failed accept, usually because there are no file descriptors left.
const ACCEPT_PAUSE: Duration = Duration::from_millis(10);

/// A running listener and its connections; dropping it stops both.
#[derive(Debug)]
pub(crate) struct Server {
    addr: SocketAddr,
    stop: CancellationToken,
    stopped: CancellationToken,
}

impl Server {
    /// Serves `listener` on the current tokio runtime. `connection` creates the future of one connection.
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

    /// Requests that the listener and all connections close, without waiting for it.
    pub(crate) fn stop(&self) {
        self.stop.cancel();
    }

    /// Returns when the listener and all connections are closed.
    pub(crate) async fn stopped(&self) {
        self.stopped.cancelled().await;
    }

    /// Returns a token that is cancelled once the listener and all connections are closed. It outlives the server.
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
                    // Answers are small. Without this, each would wait for the acknowledgement of the previous one.
                    if let Err(error) = stream.set_nodelay(true) {
                        tracing::debug!(%error, "cannot set TCP_NODELAY");
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
