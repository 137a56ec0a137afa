//! An HTTP/1.1 server on a given listener whose connections can be broken on command.
//!
//! The listener is a standard one, so that it can be bound in another network namespace: a socket belongs to the namespace in
//! which it was created, whichever process accepts on it.

use std::future::Future;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::combinators::UnsyncBoxBody;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use rustls::pki_types::CertificateDer;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

/// The body of an answer: complete, or a stream that ends when the handler ends it.
pub type Body = UnsyncBoxBody<Bytes, io::Error>;

/// Returns a body that is complete.
pub fn full(bytes: impl Into<Bytes>) -> Body {
    use http_body_util::BodyExt as _;
    let body = http_body_util::Full::new(bytes.into());
    body.map_err(|never| match never {}).boxed_unsync()
}

/// Answers the requests of a [`Server`].
pub trait Handler: Send + Sync + 'static {
    /// Answers one request of this client.
    fn handle(self: Arc<Self>, peer: Peer, request: Request<Incoming>) -> impl Future<Output = Response<Body>> + Send;
}

/// The other end of a connection.
#[derive(Clone, Debug)]
pub struct Peer {
    /// Its address.
    pub address: SocketAddr,
    /// The client certificate that the peer has proven to own, if any, without its chain.
    pub certificate: Option<CertificateDer<'static>>,
}

/// A running HTTP server. It stops when this is dropped.
#[derive(Debug)]
pub struct Server {
    address: SocketAddr,
    control: Arc<Control>,
}

#[derive(Default)]
struct Control {
    stop: CancellationToken,
    /// Cancelled and replaced by each cut.
    connections: Mutex<CancellationToken>,
    refuse: AtomicBool,
    /// The configuration of the next handshake.
    tls: Mutex<Option<TlsAcceptor>>,
}

impl std::fmt::Debug for Control {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Control").field("refuse", &self.refuse).finish_non_exhaustive()
    }
}

impl Server {
    /// Serves on `listener`, over TLS if a configuration is given, on the current tokio runtime.
    ///
    /// # Errors
    /// If the listener cannot be made non-blocking or has no address.
    pub fn start<H: Handler>(listener: TcpListener, tls: Option<Arc<rustls::ServerConfig>>, handler: Arc<H>) -> io::Result<Server> {
        listener.set_nonblocking(true)?;
        let address = listener.local_addr()?;
        let listener = tokio::net::TcpListener::from_std(listener)?;
        let control = Arc::new(Control { tls: Mutex::new(tls.map(TlsAcceptor::from)), ..Control::default() });
        tokio::spawn(accept(listener, handler, Arc::clone(&control)));
        Ok(Server { address, control })
    }

    /// The address of the listener.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Uses this configuration for handshakes from now on. Open connections are not affected.
    pub fn set_tls(&self, tls: Arc<rustls::ServerConfig>) {
        *self.control.tls() = Some(TlsAcceptor::from(tls));
    }

    /// Resets every open connection at once, even in the middle of an answer.
    pub fn cut(&self) {
        let mut connections = self.control.connections();
        std::mem::take(&mut *connections).cancel();
    }

    /// While on, new connections are accepted and reset at once. Open connections are not affected.
    pub fn refuse(&self, on: bool) {
        self.control.refuse.store(on, Ordering::SeqCst);
    }

    /// Closes the listener and resets the open connections.
    pub fn stop(&self) {
        self.control.stop.cancel();
        self.cut();
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop();
    }
}

impl Control {
    fn connections(&self) -> std::sync::MutexGuard<'_, CancellationToken> {
        self.connections.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn tls(&self) -> std::sync::MutexGuard<'_, Option<TlsAcceptor>> {
        self.tls.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn accept<H: Handler>(listener: tokio::net::TcpListener, handler: Arc<H>, control: Arc<Control>) {
    // Dropped when the loop ends, which drops every connection.
    let mut connections = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            biased;
            () = control.stop.cancelled() => return,
            Some(_) = connections.join_next() => continue,
            accepted = listener.accept() => accepted,
        };
        let (stream, peer) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                // Most likely there are no file descriptors left. The next attempt would fail at once and spin.
                tracing::warn!(%error, "accept failed");
                tokio::time::sleep(Duration::from_millis(20)).await;
                continue;
            }
        };
        if control.refuse.load(Ordering::SeqCst) {
            // An error means that the client has already gone.
            let _ = stream.set_zero_linger();
            continue;
        }
        let _ = stream.set_nodelay(true);
        let cut = control.connections().clone();
        let socket = Socket { stream, cut: cut.clone() };
        let (tls, handler) = (control.tls().clone(), Arc::clone(&handler));
        let peer = Peer { address: peer, certificate: None };
        connections.spawn(async move {
            let serve = async move {
                match tls {
                    None => serve(socket, peer, handler).await,
                    Some(tls) => match tls.accept(socket).await {
                        Ok(stream) => {
                            let certificate = stream.get_ref().1.peer_certificates().and_then(|chain| chain.first()).cloned();
                            serve(stream, Peer { certificate, ..peer }, handler).await;
                        }
                        Err(error) => tracing::debug!(peer = %peer.address, %error, "TLS handshake failed"),
                    },
                }
            };
            tokio::select! {
                biased;
                () = cut.cancelled() => {}
                () = serve => {}
            }
        });
    }
}

async fn serve<H: Handler>(stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static, peer: Peer, handler: Arc<H>) {
    let address = peer.address;
    let service = service_fn(move |request| {
        let (handler, peer) = (Arc::clone(&handler), peer.clone());
        async move { Ok::<_, std::convert::Infallible>(handler.handle(peer, request).await) }
    });
    let connection = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service).with_upgrades();
    if let Err(error) = connection.await {
        tracing::debug!(peer = %address, %error, "connection ended");
    }
}

/// A TCP stream that is reset instead of closed if it is dropped after a cut.
#[derive(Debug)]
struct Socket {
    stream: TcpStream,
    cut: CancellationToken,
}

impl Drop for Socket {
    fn drop(&mut self) {
        if self.cut.is_cancelled() {
            let _ = self.stream.set_zero_linger();
        }
    }
}

impl AsyncRead for Socket {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for Socket {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, buffer)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }

    fn poll_write_vectored(mut self: Pin<&mut Self>, context: &mut Context<'_>, buffers: &[io::IoSlice<'_>]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(context, buffers)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}
