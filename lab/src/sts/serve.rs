//! Serves one connection of the fake STS, and processes its calls.

use std::convert::Infallible;
use std::future::pending;
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use futures_util::{StreamExt as _, stream};
use http::header::{CONTENT_LENGTH, CONTENT_TYPE, DATE};
use http::{Method, Request, Response};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, Full, Limited, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use jiff::{SignedDuration, Timestamp};
use thiserror::Error;
use tokio::net::TcpStream;

use super::answer::{Fault, result_document, without_element};
use super::assume::Form;
use super::model::{Behaviour, Call, Identity};
use super::signature::{Presented, header};
use super::state::{Changed, OpenCall, State};

/// The maximum size of a body, in bytes: more than any request that AWS accepts.
const LARGEST_BODY: usize = 256 * 1024;

/// Makes hyper close the connection, without an answer or in the middle of one.
#[derive(Debug, Error)]
#[error("closed on purpose")]
pub(super) struct Closed;

type Body = UnsyncBoxBody<Bytes, Closed>;

/// Serves one connection until either side closes it.
pub(super) async fn connection(state: Arc<State>, stream: TcpStream) {
    let service = service_fn(move |request| call(Arc::clone(&state), request));
    let served = http1::Builder::new().timer(TokioTimer::new()).serve_connection(TokioIo::new(stream), service).await;
    if let Err(error) = served {
        tracing::debug!(%error, "connection ended");
    }
}

async fn call(state: Arc<State>, request: Request<Incoming>) -> Result<Response<Body>, Closed> {
    let (parts, body) = request.into_parts();
    let body = Limited::new(body, LARGEST_BODY).collect().await;
    let body = body.map_err(|_| Closed)?.to_bytes();
    let form = Form::parse(&body);
    let presented = Presented::parse(&parts);
    let open = state.open(record(&form, presented.as_ref().ok(), header(&parts, "user-agent")));

    let caller = presented.and_then(|presented| {
        if parts.method != Method::POST || parts.uri.path() != "/" {
            let message = "The service takes POST requests to / alone.";
            return Err(Fault::new(400, "InvalidAction", message));
        }
        state.lock().authenticate(&presented, &parts, &body)
    });
    let behaviour = match &caller {
        Ok(identity) => {
            open.caller_is(identity);
            state.lock().take_behaviour(form.get("RoleArn"))
        }
        Err(_) => Behaviour::Normal,
    };
    match &behaviour {
        Behaviour::CloseBeforeAnswer => {
            open.finish(Call::CLOSED, None);
            return Err(Closed);
        }
        Behaviour::Hang => pending::<()>().await,
        Behaviour::Held(release) => release.notified().await,
        Behaviour::Slow(delay) => tokio::time::sleep(*delay).await,
        _ => {}
    }
    Ok(answer(&state, open, &form, caller, &behaviour))
}

fn answer(state: &State, open: OpenCall, form: &Form, caller: Result<Identity, Fault>, behaviour: &Behaviour) -> Response<Body> {
    let request_id = format!("00000000-0000-4000-8000-{:012x}", open.number());
    let mut known = state.lock();
    let now = known.now();
    let result = caller.and_then(|caller| match forced(behaviour, &caller, form) {
        Some(fault) => Err(fault),
        None => known.answer(form, &caller, changed(behaviour)),
    });
    drop(known);
    match result {
        Ok((result, access_key_id)) => {
            let action = form.get("Action").unwrap_or_default();
            let document = result_document(action, &result, &request_id);
            let outcome = match behaviour {
                Behaviour::CloseMidBody => Call::CLOSED,
                _ => Call::OK,
            };
            open.finish(outcome, access_key_id);
            broken(behaviour, document, &request_id, now)
        }
        Err(fault) => {
            open.finish(fault.code, None);
            let document = fault.document(&request_id);
            let length = document.len();
            respond(fault.status, length, whole(document), &request_id, now)
        }
    }
}

/// Returns the error that a behaviour demands, if any.
fn forced(behaviour: &Behaviour, caller: &Identity, form: &Form) -> Option<Fault> {
    match behaviour {
        Behaviour::AccessDenied => {
            let role_arn = form.get("RoleArn").unwrap_or_default();
            Some(Fault::access_denied(&caller.arn, role_arn))
        }
        Behaviour::Throttling => Some(Fault::throttling()),
        Behaviour::ExpiredToken => Some(Fault::expired_token()),
        Behaviour::InvalidClientTokenId => Some(Fault::invalid_client_token_id()),
        Behaviour::RegionDisabled => Some(Fault::region_disabled()),
        Behaviour::ServiceUnavailable => Some(Fault::service_unavailable()),
        Behaviour::InternalFailure => Some(Fault::internal_failure()),
        Behaviour::Error(status, code, message) => Some(Fault::new(*status, code, *message)),
        _ => None,
    }
}

fn changed(behaviour: &Behaviour) -> Changed<'_> {
    match behaviour {
        Behaviour::ExpiresIn(lifetime) => Changed { lifetime: SignedDuration::try_from(*lifetime).ok(), ..Changed::default() },
        Behaviour::AnswersFor(role_arn) => Changed { role_arn: Some(role_arn), ..Changed::default() },
        _ => Changed::default(),
    }
}

/// Returns a successful answer, broken as the behaviour demands.
fn broken(behaviour: &Behaviour, document: String, request_id: &str, now: Timestamp) -> Response<Body> {
    let half = document.len() / 2;
    let document = match behaviour {
        Behaviour::Malformed => document.replacen("\">", ">", 1),
        Behaviour::Truncated => document[..half].to_owned(),
        Behaviour::MissingField(name) => without_element(&document, name),
        Behaviour::MissingFields => {
            ["SecretAccessKey", "SessionToken", "Expiration"].iter().fold(document, |document, name| without_element(&document, name))
        }
        _ => document,
    };
    let length = document.len();
    let body = match behaviour {
        Behaviour::CloseMidBody => cut(document[..half].to_owned()),
        _ => whole(document),
    };
    respond(200, length, body, request_id, now)
}

fn respond(status: u16, length: usize, body: Body, request_id: &str, now: Timestamp) -> Response<Body> {
    let date = now.strftime("%a, %d %b %Y %H:%M:%S GMT").to_string();
    let response = Response::builder()
        .status(status)
        .header("x-amzn-requestid", request_id)
        .header(CONTENT_TYPE, "text/xml")
        .header(CONTENT_LENGTH, length)
        .header(DATE, date)
        .body(body);
    // The statuses and header values are fixed above. A failure would be a bug here, and shows as an empty answer.
    response.unwrap_or_else(|error| {
        tracing::error!(%error, "bad answer");
        Response::new(whole(String::new()))
    })
}

fn whole(document: String) -> Body {
    let never = |never: Infallible| match never {};
    Full::from(document).map_err(never).boxed_unsync()
}

/// Returns a body after which the connection is closed. The data before that is sent, because hyper flushes when the next frame
/// is not ready.
fn cut(document: String) -> Body {
    let first = stream::once(async { Ok(Frame::data(Bytes::from(document))) });
    let end = stream::once(async {
        tokio::task::yield_now().await;
        Err(Closed)
    });
    UnsyncBoxBody::new(StreamBody::new(first.chain(end)))
}

fn record(form: &Form, presented: Option<&Presented>, user_agent: Option<&str>) -> Call {
    let text = |name: &str| form.get(name).map(str::to_owned);
    Call {
        action: text("Action").unwrap_or_default(),
        role_arn: text("RoleArn"),
        session_name: text("RoleSessionName"),
        duration_seconds: form.get("DurationSeconds").and_then(|seconds| seconds.parse().ok()),
        external_id: text("ExternalId"),
        source_identity: text("SourceIdentity"),
        tags: form.tags(),
        transitive_tag_keys: form.transitive_tag_keys(),
        caller_access_key_id: presented.map(|presented| presented.access_key_id.clone()),
        caller_arn: None,
        region: presented.map(|presented| presented.region.clone()),
        user_agent: user_agent.map(str::to_owned),
        at: Instant::now(),
        outcome: Call::PENDING.to_owned(),
        access_key_id_issued: None,
    }
}
