//! Attacks that consist of many sockets or many requests.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::attacker::{Counts, PAUSE};
use super::http;
use super::world::ATTACKER;

/// The number of addresses that one pod invents.
pub(super) const STRANGERS: usize = 1100;

async fn stream(address: SocketAddr, counts: &Counts) -> io::Result<TcpStream> {
    stream_from(ATTACKER, address, counts).await
}

async fn stream_from(from: IpAddr, address: SocketAddr, counts: &Counts) -> io::Result<TcpStream> {
    let stream = http::connect(from, address).await?;
    counts.connections.fetch_add(1, Ordering::Relaxed);
    Ok(stream)
}

/// Sends a request from one of many addresses, and reconnects when the connection is closed.
pub(super) async fn stranger(address: SocketAddr, n: usize, counts: Arc<Counts>) {
    let from = IpAddr::from([127, 9, (n >> 8) as u8, (n & 255) as u8]);
    let request = b"PUT /latest/api/token HTTP/1.1\r\nHost: 169.254.169.254\r\nX-aws-ec2-metadata-token-ttl-seconds: 60\r\n\r\n";
    loop {
        if let Ok(mut stream) = stream_from(from, address, &counts).await {
            let _ = stream.write_all(request).await;
            while stream.read(&mut [0; 1024]).await.is_ok_and(|length| length > 0) {}
        }
        tokio::time::sleep(PAUSE).await;
    }
}

pub(super) async fn scrape(metrics: SocketAddr, counts: Arc<Counts>) {
    loop {
        if let Ok(mut stream) = stream(metrics, &counts).await {
            let mut buffer = vec![0; 64 * 1024];
            // Ten at a time, as fast as they are read.
            while stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n".repeat(10).as_slice()).await.is_ok() {
                let Ok(length @ 1..) = stream.read(&mut buffer).await else { break };
                let answers = buffer[..length].windows(13).filter(|bytes| *bytes == b"HTTP/1.1 200 ").count();
                counts.served.fetch_add(answers as u64, Ordering::Relaxed);
            }
        }
        tokio::time::sleep(PAUSE).await;
    }
}

pub(super) async fn idle(address: SocketAddr, counts: Arc<Counts>) {
    loop {
        if let Ok(mut stream) = stream(address, &counts).await {
            // Waits until the daemon closes the connection.
            let _ = stream.read(&mut [0]).await;
        }
        tokio::time::sleep(PAUSE).await;
    }
}

pub(super) async fn slow(address: SocketAddr, counts: Arc<Counts>) {
    let head = format!("GET / HTTP/1.1\r\nHost: 169.254.169.254\r\nX-Slow: {}\r\n\r\n", "x".repeat(1000));
    loop {
        if let Ok(mut stream) = stream(address, &counts).await {
            for byte in head.bytes() {
                if stream.write_all(&[byte]).await.is_err() {
                    break;
                }
                let closed = tokio::time::timeout(Duration::from_secs(1), stream.read(&mut [0])).await;
                if closed.is_ok() {
                    break;
                }
            }
        }
        tokio::time::sleep(PAUSE).await;
    }
}

pub(super) async fn connect_and_reset(address: SocketAddr, counts: Arc<Counts>) {
    let mut ticks = tokio::time::interval(Duration::from_millis(2));
    loop {
        ticks.tick().await;
        // The connection is opened and dropped.
        let _ = stream(address, &counts).await;
    }
}

pub(super) async fn pipeline(address: SocketAddr, token: String, counts: Arc<Counts>) {
    let path = "/latest/meta-data/iam/security-credentials/attacker-role";
    let request = format!("GET {path} HTTP/1.1\r\nHost: 169.254.169.254\r\nX-aws-ec2-metadata-token: {token}\r\n\r\n");
    let requests = request.repeat(200);
    loop {
        if let Ok(stream) = stream(address, &counts).await {
            let (mut read, mut write) = stream.into_split();
            let writes = async { while write.write_all(requests.as_bytes()).await.is_ok() {} };
            let reads = async {
                let mut buffer = vec![0; 64 * 1024];
                while let Ok(length @ 1..) = read.read(&mut buffer).await {
                    let answers = buffer[..length].windows(13).filter(|bytes| *bytes == b"HTTP/1.1 200 ").count();
                    counts.served.fetch_add(answers as u64, Ordering::Relaxed);
                }
            };
            tokio::select! { () = writes => {}, () = reads => {} }
        }
        tokio::time::sleep(PAUSE).await;
    }
}
