//! One connection of the pod-facing port: its requests, its timeouts, and why it ends.

use std::convert::Infallible;
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicU32, Ordering};
use std::task::Poll;

use bytes::Bytes;
use http::header::{CONNECTION, HeaderValue};
use http::{Request, Response};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::{HttpService, service_fn};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tracing::debug;

use super::{Admission, MAX_HEAD, MAX_HEADERS, Server, probe};
use crate::connections::{Closing, ConnectionPermit, Limit, Overdue, Port, Progress, ProgressTimer, Seldom, Source, Timely};
use crate::credentials::AssumeRole;
use crate::proxy::Origin;
use crate::proxy::memory::Memory;
use crate::proxy::route::{Body, is_chunked_token_request};

impl<A: AssumeRole> Server<A> {
    /// Serves a connection until it ends.
    pub(super) async fn connection(&self, stream: TcpStream, admission: Admission, source: &Source, permit: &ConnectionPermit) {
        let admission = &admission;
        // The requests since the connection's last turn. A client that sends many at once gets one response in each turn, like others.
        let turn = &AtomicU32::new(0);
        let progress = &Progress::new(self.timeouts, matches!(admission, Admission::Pod(_)));
        let mut timer = progress.timer();
        let memory = &Memory::default();
        let service = service_fn(|request: Request<Incoming>| async move {
            if turn.fetch_add(1, Ordering::Relaxed) > 0 {
                tokio::task::yield_now().await;
            }
            let is_repeated = progress.request_begins();
            let again = match admission {
                Admission::Pod(origin) if is_repeated => {
                    permit.request_begins();
                    self.proxy.answer_again(origin, memory, request.method(), request.uri().path())
                }
                _ => {
                    memory.forget();
                    None
                }
            };
            let (mut response, is_last) = match again {
                Some(response) => (response, false),
                // In a place of its own: a connection that waits for a request, or repeats one, needs no memory for this.
                None => Box::pin(self.answer(admission, request, is_repeated.then_some(memory), progress, permit)).await,
            };
            progress.request_ends();
            let is_over = admission.origin().is_some_and(Origin::is_over);
            if permit.request_ends() || is_over || is_last || self.drain.has_begun() {
                response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
            }
            Ok::<_, Infallible>(response)
        });
        let stream = Timely::connection(stream, self.timeouts.head).reporting_to(progress.clone());
        let connection = http1::Builder::new()
            // `timer` has the timeouts: that of hyper does not tell an idle connection from a slow request.
            .header_read_timeout(None)
            .max_buf_size(MAX_HEAD)
            .max_headers(MAX_HEADERS)
            .half_close(false)
            .serve_connection(TokioIo::new(stream), service);
        let mut connection = pin!(connection);
        let ended = {
            let mut reason = pin!(async {
                tokio::select! {
                    biased;
                    overdue = timer.overdue() => Ended::Overdue(overdue),
                    closing = permit.closing() => Ended::Closing(closing),
                    () = self.drain.closing() => Ended::Drained,
                }
            });
            let mut reason = Seldom::new(reason.as_mut());
            std::future::poll_fn(|context| {
                turn.store(0, Ordering::Relaxed);
                if let Poll::Ready(ended) = connection.as_mut().poll(context) {
                    return Poll::Ready(Ended::ByItself(ended));
                }
                reason.poll(context, progress.is_receiving())
            })
            .await
        };
        let ended = match ended {
            Ended::ByItself(ended) => ended,
            Ended::Overdue(overdue) => return self.metrics.connection_ended(overdue.name()),
            Ended::Closing(closing) => {
                self.metrics.connection_ended(closing.name());
                if closing == Closing::Displaced || progress.waits_for_body() {
                    if matches!(source, Source::Unknown(..)) {
                        self.record.closed(source, Port::Metadata, Limit::Displaced);
                    }
                    return;
                }
                self.finish(connection.as_mut(), &mut timer).await
            }
            Ended::Drained => self.finish(connection.as_mut(), &mut timer).await,
        };
        if let Err(error) = ended {
            let reason = ended_by(&error);
            self.metrics.connection_ended(reason);
            let source = admission.origin().map(|origin| tracing::field::display(origin.ip));
            debug!(source, %error, reason, "a connection of a pod ended early");
        }
    }

    /// Answers a request that cannot be answered from memory. Returns the response, and whether it is the last one on its connection.
    async fn answer(
        &self,
        admission: &Admission,
        request: Request<Incoming>,
        memory: Option<&Memory>,
        progress: &Progress,
        permit: &ConnectionPermit,
    ) -> (Response<Full<Bytes>>, bool) {
        let (request, incoming) = request.into_parts();
        // A connection whose client holds back a body counts as idle: another one may need its place.
        let body = match admission {
            Admission::Pod(_) => read_body(&request, incoming, progress).await,
            Admission::PodIdentity(..) | Admission::RelativeUri(..) | Admission::Probe | Admission::Refused => Body::Unread,
        };
        permit.request_begins();
        self.settle(admission, permit);
        let response = match admission {
            Admission::Pod(origin) => self.proxy.handle_with(origin, &request, body, memory).await,
            Admission::PodIdentity(origin, local) => self.proxy.handle_pod_identity(origin, *local, &request).await,
            Admission::RelativeUri(origin, local) => self.proxy.handle_relative_uri(origin, *local, &request).await,
            Admission::Probe | Admission::Refused => probe(&request, &self.starting()),
        };
        self.settle(admission, permit);
        (response, body != Body::Unread)
    }

    /// Ends a connection gracefully. A request that has arrived is still answered.
    async fn finish<S>(&self, mut connection: Pin<&mut Connection<S>>, timer: &mut ProgressTimer) -> hyper::Result<()>
    where
        S: HttpService<Incoming, ResBody = Full<Bytes>, Error = Infallible>,
    {
        connection.as_mut().graceful_shutdown();
        tokio::select! {
            biased;
            ended = connection => ended,
            _ = timer.overdue() => Ok(()),
            () = self.drain.forced() => Ok(()),
        }
    }
}

/// Why a connection is served no longer.
enum Ended {
    /// Its client ended it, or an error.
    ByItself(hyper::Result<()>),
    Overdue(Overdue),
    Closing(Closing),
    /// The daemon stops.
    Drained,
}

type Connection<S> = http1::Connection<TokioIo<Timely<TcpStream>>, S>;

/// Returns the metric's reason of a connection that ended early.
fn ended_by(error: &hyper::Error) -> &'static str {
    // A response that is not read in time is an error of the stream.
    let source = std::error::Error::source(error).and_then(|source| source.downcast_ref::<std::io::Error>());
    if error.is_timeout() || source.is_some_and(|source| source.kind() == std::io::ErrorKind::TimedOut) {
        "timeout"
    } else if error.is_parse() {
        "malformed"
    } else {
        "peer"
    }
}

/// Reads the body of a request for a token, the only one that may have any. No other body is read: the request is refused, and
/// the connection ends.
async fn read_body(request: &http::request::Parts, mut incoming: Incoming, progress: &Progress) -> Body {
    if !is_chunked_token_request(&request.method, &request.uri, request.version, &request.headers) {
        return Body::Unread;
    }
    // hyper drops extensions, accepts other forms of 0, and hides a Content-Length. The bytes show all of these.
    progress.body_begins();
    let frame = tokio::time::timeout_at(progress.request_deadline(), incoming.frame()).await;
    progress.body_ends();
    match frame {
        Ok(None) if progress.has_empty_chunked_body() => Body::EmptyChunked,
        _ => Body::Unread,
    }
}
