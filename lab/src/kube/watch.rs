//! The answer to a watch: a stream of one JSON document per line, until the client or `timeoutSeconds` ends it.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream;
use http::header::{CACHE_CONTROL, CONTENT_TYPE};
use http::{HeaderValue, Response};
use http_body_util::{BodyExt as _, StreamBody};
use hyper::body::Frame;
use serde::Serialize;
use serde_json::Value;
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, Interval, MissedTickBehavior};

use super::json::encode;
use super::list;
use super::objects::{Resource, Shape};
use super::request::Call;
use super::selector::Selector;
use super::stall::unstalled;
use super::state::State;
use super::status::ApiError;
use super::subscription::{Item, Start};
use crate::serve::{Body, full};

impl State {
    /// Begins a watch.
    pub(super) fn open_watch(
        self: &Arc<State>,
        call: &Call,
        resource: Resource,
        namespace: Option<&str>,
    ) -> Result<Response<Body>, ApiError> {
        let shape = Shape::negotiate(&call.headers, false)?;
        let selector = Selector::parse(resource, namespace, call.parameter("fieldSelector"), call.parameter("labelSelector"))?;
        let bookmarks = call.flag("allowWatchBookmarks") == Some(true);
        let timeout = call.number("timeoutSeconds")?.filter(|&seconds| seconds > 0);
        let (streaming_lists, interval) = {
            let behaviour = self.behaviour();
            (behaviour.streaming_lists, behaviour.bookmark_interval)
        };
        let start = list::watch_start(call, streaming_lists)?;
        let opened = self.store().watch(resource, selector, start, bookmarks);
        let (watch, receiver) = match opened {
            Ok(opened) => opened,
            Err(error) if matches!(start, Start::After(_)) => return Ok(error_response(&error)),
            Err(error) => return Err(error),
        };
        self.changed();
        let stream = WatchStream {
            resource,
            shape,
            receiver,
            registration: Registration { state: Arc::clone(self), watch },
            stall: self.stall.subscribe(),
            deadline: timeout.map(|seconds| Instant::now() + Duration::from_secs(seconds)),
            bookmarks: bookmarks.then(|| bookmark_timer(interval)),
        };
        Ok(stream.response())
    }
}

/// An open watch.
pub(super) struct WatchStream {
    pub(super) resource: Resource,
    pub(super) shape: Shape,
    pub(super) receiver: mpsc::UnboundedReceiver<Item>,
    pub(super) registration: Registration,
    pub(super) stall: watch::Receiver<bool>,
    pub(super) deadline: Option<Instant>,
    pub(super) bookmarks: Option<Interval>,
}

/// The store's side of a watch, which ends with the client's side.
pub(super) struct Registration {
    pub(super) state: Arc<State>,
    pub(super) watch: u64,
}

impl Drop for Registration {
    fn drop(&mut self) {
        self.state.store().close_watch(self.watch);
        self.state.changed();
    }
}

/// Returns the timer of periodic bookmarks, whose first tick is one interval away.
pub(super) fn bookmark_timer(every: Duration) -> Interval {
    let mut timer = tokio::time::interval_at(Instant::now() + every, every);
    timer.set_missed_tick_behavior(MissedTickBehavior::Delay);
    timer
}

impl WatchStream {
    pub(super) fn response(self) -> Response<Body> {
        let lines = stream::unfold(self, |mut watch| async move {
            let line = watch.next().await?;
            Some((line.map(Frame::data), watch))
        });
        stream_response(StreamBody::new(lines).boxed_unsync())
    }

    async fn next(&mut self) -> Option<io::Result<Bytes>> {
        loop {
            unstalled(&mut self.stall).await;
            let item = tokio::select! {
                biased;
                () = at(self.deadline) => return None,
                item = self.receiver.recv() => item,
                () = tick(&mut self.bookmarks) => {
                    // Sent through the queue, so that no bookmark overtakes an event that it covers.
                    self.registration.state.store().bookmark(self.registration.watch);
                    continue;
                }
            };
            let Some(item) = item else {
                // The server removed the watch because it is cutting the connection. If the stream ended now, the client could
                // still receive a clean end. A connection that was too new to be cut must not stay open without its watch.
                return Some(Err(io::ErrorKind::ConnectionReset.into()));
            };
            unstalled(&mut self.stall).await;
            return Some(Ok(self.line(item)));
        }
    }

    fn line(&self, item: Item) -> Bytes {
        let (kind, object) = match item {
            Item::Event(kind, object) => (kind, self.shape.object(&object)),
            Item::Bookmark { version, initial_end } => {
                let object = self.shape.bookmark(self.resource, version, initial_end);
                ("BOOKMARK", object)
            }
            Item::Raw(line) => return Bytes::from(line + "\n"),
        };
        event_line(kind, &object)
    }
}

/// Returns the answer to a watch that could not begin: status 200 and the error as the only event, as from a real server's
/// watch cache.
pub(super) fn error_response(error: &ApiError) -> Response<Body> {
    stream_response(full(event_line("ERROR", &error.object())))
}

fn event_line(kind: &str, object: &Value) -> Bytes {
    #[derive(Serialize)]
    struct Event<'a> {
        r#type: &'a str,
        object: &'a Value,
    }
    Bytes::from(encode(&Event { r#type: kind, object }) + "\n")
}

fn stream_response(body: Body) -> Response<Body> {
    let mut response = Response::new(body);
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-cache, private"));
    response
}

async fn at(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}

async fn tick(timer: &mut Option<Interval>) {
    match timer {
        Some(timer) => drop(timer.tick().await),
        None => std::future::pending().await,
    }
}
