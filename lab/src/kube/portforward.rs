//! `pods/portforward` over WebSockets, as kubelets serve it (protocol `v4.channel.k8s.io`): two channels for each port, one of data
//! and one of errors, whose first message is the port's number.

use std::net::SocketAddr;

use bytes::Bytes;
use futures_util::{SinkExt as _, StreamExt as _};
use http::header::{CONNECTION, HeaderName, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_PROTOCOL, UPGRADE};
use http::{Response, StatusCode};
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::Role;

use super::request::Call;
use super::status::ApiError;
use crate::serve::{Body, full};

const PROTOCOL: &str = "v4.channel.k8s.io";
/// The channels of the only port.
const DATA: u8 = 0;
const ERROR: u8 = 1;
const CHUNK: usize = 16 << 10;

/// Upgrades the connection, and forwards it in a task that ends with either side.
pub(super) fn answer(call: &Call, upgrade: OnUpgrade, to: Option<SocketAddr>) -> Result<Response<Body>, ApiError> {
    let bad = |what: &str| ApiError::bad_request(what.to_owned());
    let port =
        call.number("ports")?.and_then(|port| u16::try_from(port).ok()).ok_or_else(|| bad("query parameter \"ports\" is required"))?;
    let header = |name: &HeaderName| call.header(name).unwrap_or_default();
    if !header(&UPGRADE).eq_ignore_ascii_case("websocket") || !header(&SEC_WEBSOCKET_PROTOCOL).split(',').any(|one| one.trim() == PROTOCOL)
    {
        return Err(bad("unable to upgrade: expected a WebSocket of v4.channel.k8s.io"));
    }
    let accept = derive_accept_key(header(&SEC_WEBSOCKET_KEY).as_bytes());
    tokio::spawn(async move {
        match upgrade.await {
            Ok(upgraded) => {
                let socket = WebSocketStream::from_raw_socket(TokioIo::new(upgraded), Role::Server, None).await;
                if let Err(error) = forward(socket, port, to).await {
                    tracing::debug!(%error, "a port-forward ended early");
                }
            }
            Err(error) => tracing::debug!(%error, "no upgrade"),
        }
    });
    let mut response = Response::new(full(""));
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    for (name, value) in
        [(CONNECTION, "Upgrade"), (UPGRADE, "websocket"), (SEC_WEBSOCKET_ACCEPT, &accept), (SEC_WEBSOCKET_PROTOCOL, PROTOCOL)]
    {
        response.headers_mut().insert(name, value.parse().map_err(|_| bad("the key of the WebSocket"))?);
    }
    Ok(response)
}

type Failure = Box<dyn std::error::Error + Send + Sync>;

async fn forward(mut socket: WebSocketStream<TokioIo<hyper::upgrade::Upgraded>>, port: u16, to: Option<SocketAddr>) -> Result<(), Failure> {
    let [low, high] = port.to_le_bytes();
    for channel in [DATA, ERROR] {
        socket.send(message(channel, &[low, high])).await?;
    }
    let connected = match to {
        Some(to) => TcpStream::connect(to).await,
        None => Err(std::io::ErrorKind::ConnectionRefused.into()),
    };
    let mut stream = match connected {
        Ok(stream) => stream,
        Err(error) => {
            let why = format!("error forwarding port {port} to pod, uid : failed to connect to localhost:{port} inside namespace: {error}");
            socket.send(message(ERROR, why.as_bytes())).await?;
            return Ok(socket.close(None).await?);
        }
    };
    let mut chunk = vec![0; CHUNK];
    loop {
        tokio::select! {
            read = stream.read(&mut chunk) => match read? {
                0 => return Ok(socket.close(None).await?),
                length => socket.send(message(DATA, &chunk[..length])).await?,
            },
            received = socket.next() => match received.transpose()? {
                Some(Message::Binary(bytes)) if bytes.first() == Some(&DATA) => stream.write_all(&bytes[1..]).await?,
                Some(Message::Close(_)) | None => return Ok(()),
                Some(_) => {}
            },
        }
    }
}

fn message(channel: u8, data: &[u8]) -> Message {
    Message::Binary(Bytes::from([&[channel], data].concat()))
}
