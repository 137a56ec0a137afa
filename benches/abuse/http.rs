//! Requests for credentials over tokio's sockets, from an address of the caller's choice.

use std::io;
use std::net::{IpAddr, SocketAddr};

use serde_json::Value;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpSocket, TcpStream};

/// The path of the role list. A role's document is at this path followed by its name.
const ROLES: &str = "/latest/meta-data/iam/security-credentials/";

/// An answer.
pub(super) struct Answer {
    pub(super) status: u16,
    pub(super) body: String,
    /// Whether the daemon closes the connection.
    pub(super) closes: bool,
}

/// Connects from an address. The connection ends with a reset, because many closed connections would use up the ports.
pub(super) async fn connect(from: IpAddr, to: SocketAddr) -> io::Result<TcpStream> {
    let socket = TcpSocket::new_v4()?;
    socket.bind(SocketAddr::new(from, 0))?;
    let stream = socket.connect(to).await?;
    stream.set_nodelay(true)?;
    stream.set_zero_linger()?;
    Ok(stream)
}

pub(super) async fn token(stream: &mut TcpStream) -> io::Result<Answer> {
    exchange(stream, "PUT", "/latest/api/token", "X-aws-ec2-metadata-token-ttl-seconds: 21600").await
}

/// Requests the document of a role, or the role list if the name is empty.
pub(super) async fn role(stream: &mut TcpStream, role: &str, token: &str) -> io::Result<Answer> {
    exchange(stream, "GET", &format!("{ROLES}{role}"), &format!("X-aws-ec2-metadata-token: {token}")).await
}

/// Returns the access key and the secret key of a credential document.
pub(super) fn keys(document: &str) -> Option<(String, String)> {
    let document: Value = serde_json::from_str(document).ok()?;
    let text = |field: &str| document[field].as_str().map(str::to_owned);
    (document["Code"] == "Success").then(|| Some((text("AccessKeyId")?, text("SecretAccessKey")?)))?
}

async fn exchange(stream: &mut TcpStream, method: &str, path: &str, header: &str) -> io::Result<Answer> {
    let request = format!("{method} {path} HTTP/1.1\r\nHost: 169.254.169.254\r\n{header}\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let (mut answer, mut chunk) = (Vec::new(), [0; 4096]);
    loop {
        match stream.read(&mut chunk).await? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            count => answer.extend_from_slice(&chunk[..count]),
        }
        let text = String::from_utf8_lossy(&answer);
        let Some((head, body)) = text.split_once("\r\n\r\n") else { continue };
        let head = head.to_ascii_lowercase();
        let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")?.parse::<usize>().ok());
        let Some(length) = length else { return Err(io::Error::other(head)) };
        if body.len() >= length {
            let status = head.split(' ').nth(1).and_then(|status| status.parse().ok());
            let status = status.ok_or_else(|| io::Error::other("no status"))?;
            return Ok(Answer { status, body: body.to_owned(), closes: head.contains("connection: close") });
        }
    }
}
