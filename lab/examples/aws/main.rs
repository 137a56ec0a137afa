//! AWS for a cluster of real programs: the fake metadata service or the fake STS on a given address, in a process of its own.
//!
//! ```text
//! aws imds 169.254.169.254:80     in the network namespace behind the node
//! aws sts 10.0.0.1:5000           on the node
//! ```
//!
//! The metadata service also answers without session tokens, as instances do whose `HttpTokens` is `optional`. Every role of the
//! node's account exists and trusts the node. Each request or call is a line of JSON on standard output, so that a test can see
//! what reached AWS. SIGTERM and Ctrl-C end the process.
#![forbid(unsafe_code)]
#![allow(clippy::print_stdout, reason = "standard output is its record")]

use std::future::Future;
use std::io::{self, Write as _};
use std::net::{SocketAddr, TcpListener};
use std::process::ExitCode;

use rolegate_lab::imds::Imds;
use rolegate_lab::sts::{Call, Sts};
use serde_json::json;
use tokio::signal::unix::{SignalKind, signal};

const USAGE: &str = "usage: aws imds|sts ADDRESS:PORT";

#[tokio::main]
async fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [service, address] = arguments.as_slice() else {
        return fail(USAGE);
    };
    let Ok(address) = address.parse::<SocketAddr>() else {
        return fail(USAGE);
    };
    let ended = match service.as_str() {
        "imds" => until_signal(imds(address)).await,
        "sts" => until_signal(sts(address)).await,
        _ => return fail(USAGE),
    };
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fail(&format!("cannot serve {address}: {error}")),
    }
}

/// Serves the metadata service, and prints each request.
async fn imds(address: SocketAddr) -> io::Result<()> {
    let imds = Imds::start(TcpListener::bind(address)?)?;
    imds.set_tokens_required(false);
    let mut printed = 0;
    loop {
        imds.wait_for_requests(printed + 1).await;
        let requests = imds.requests();
        for request in requests.iter().skip(printed) {
            print(&json!({ "peer": request.peer.to_string(), "method": request.method, "target": request.target }))?;
        }
        printed = requests.len();
    }
}

/// Serves STS, and prints each call once it is answered.
async fn sts(address: SocketAddr) -> io::Result<()> {
    let sts = Sts::start(TcpListener::bind(address)?)?;
    sts.unknown_roles_allowed(true);
    let mut printed = 0;
    loop {
        sts.wait_until(|calls| calls.get(printed).is_some_and(|call| call.outcome != Call::PENDING)).await;
        let calls = sts.calls();
        let answered = calls.iter().skip(printed).take_while(|call| call.outcome != Call::PENDING);
        for call in answered {
            print(&json!({
                "action": call.action,
                "caller": call.caller_arn,
                "role": call.role_arn,
                "session": call.session_name,
                "outcome": call.outcome,
            }))?;
            printed += 1;
        }
    }
}

/// Runs a service until SIGTERM or Ctrl-C.
async fn until_signal(service: impl Future<Output = io::Result<()>>) -> io::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    tokio::select! {
        ended = service => ended,
        _ = terminate.recv() => Ok(()),
        pressed = tokio::signal::ctrl_c() => pressed,
    }
}

fn print(line: &serde_json::Value) -> io::Result<()> {
    writeln!(io::stdout().lock(), "{line}")
}

fn fail(why: &str) -> ExitCode {
    // Nothing can be done about a standard error that is closed.
    let _ = writeln!(io::stderr(), "{why}");
    ExitCode::FAILURE
}
