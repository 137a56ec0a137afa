#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a failed unwrap fails the test")]

mod verdict;

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use super::*;

const GET: &[u8] = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n";

/// What a canned server does after its answer.
#[derive(Clone, Copy, PartialEq)]
enum Then {
    Close,
    /// Closes the connection without reading the rest, which resets it.
    Reset,
    /// Waits until the client closes its side.
    Wait,
    /// Neither closes nor reads.
    Sleep,
}

/// Connects to a server that reads some bytes, sends pieces with pauses, and then does one thing.
fn canned(pieces: &[&[u8]], then: Then) -> TcpStream {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let (mut server, _) = listener.accept().unwrap();
    let pieces: Vec<Vec<u8>> = pieces.iter().map(|piece| piece.to_vec()).collect();
    std::thread::spawn(move || {
        let mut buffer = [0; 4096];
        let _ = server.read(&mut buffer);
        for piece in pieces {
            server.write_all(&piece).unwrap();
            std::thread::sleep(Duration::from_millis(5));
        }
        match then {
            Then::Close => server.shutdown(Shutdown::Write).unwrap(),
            Then::Reset => return,
            Then::Wait | Then::Sleep => {}
        }
        if then == Then::Sleep {
            std::thread::sleep(Duration::from_secs(3));
        }
        while server.read(&mut buffer).is_ok_and(|length| length > 0) {}
    });
    client
}

fn limits(max_responses: usize) -> PlayLimits {
    PlayLimits { max_responses, answer: Duration::from_secs(20), quiet: Duration::from_millis(200) }
}

fn played(sent: &[u8], answer: &[u8], then: Then, max_responses: usize) -> Transcript {
    play(canned(&[answer], then), sent, limits(max_responses)).unwrap()
}

fn bodies(transcript: &Transcript) -> Vec<String> {
    transcript.responses.iter().map(Response::text).collect()
}

fn entry(request: &str, expect: Expect, also_ok: &[Expect]) -> Entry {
    Entry {
        id: "x-01".to_owned(),
        category: "x".to_owned(),
        raw_request: request.to_owned(),
        expect,
        also_ok: also_ok.to_vec(),
        mode: Mode::Any,
        max_responses: 1,
        why: "because".to_owned(),
        evidence: "none".to_owned(),
    }
}

/// Returns what [`played`] would give for this answer on a connection that is then closed.
fn transcript(raw: &str) -> Transcript {
    let (responses, consumed) = answer::responses(raw.as_bytes(), &[], true);
    Transcript { raw: raw.into(), rest: raw.as_bytes()[consumed..].to_vec(), responses, closed: true, closed_after_our_end: false }
}

fn answer_of(status: &str, body: &str) -> String {
    format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\n\r\n{body}", body.len())
}

#[test]
fn a_length_ends_a_body() {
    let got = played(GET, b"HTTP/1.1 200 OK\r\nX: a: b \r\ncontent-LENGTH: 2\r\n\r\nhi", Then::Wait, 1);
    assert_eq!(bodies(&got), ["hi"]);
    assert_eq!((got.responses[0].status, got.responses[0].header("x")), (200, Some("a: b")));
    assert!(got.rest.is_empty() && !got.closed && !got.closed_after_our_end);
}

#[test]
fn chunks_make_a_body() {
    let head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";
    let pieces: [&[u8]; 5] = [head, b"3;a=b\r\nab", b"c\r", b"\nA\r\n0123456789\r\n0\r\n", b"T: x\r\n\r\n"];
    let got = play(canned(&pieces, Then::Wait), GET, limits(1)).unwrap();
    assert_eq!(bodies(&got), ["abc0123456789"]);
    assert!(got.rest.is_empty());
}

#[test]
fn closing_the_connection_ends_a_body_without_a_length() {
    let got = played(GET, b"HTTP/1.0 200 OK\r\n\r\nall of it", Then::Close, 1);
    assert_eq!(bodies(&got), ["all of it"]);
    assert!(got.closed);
}

#[test]
fn an_answer_to_head_has_no_body() {
    let sent = b"HEAD / HTTP/1.1\r\nHost: x\r\n\r\nGET / HTTP/1.1\r\nHost: x\r\n\r\n";
    let answers = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi";
    assert_eq!(bodies(&played(sent, answers, Then::Wait, 2)), ["", "hi"]);
}

#[test]
fn statuses_without_a_body_and_interim_answers() {
    let answers = b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 204 No Content\r\n\r\nHTTP/1.1 304 \r\nContent-Length: 9\r\n\r\n";
    let got = played(GET, answers, Then::Wait, 2);
    assert_eq!(got.responses.iter().map(|response| response.status).collect::<Vec<_>>(), [204, 304]);
    assert!(got.rest.is_empty());
}

#[test]
fn methods_are_found_behind_bodies() {
    let methods = answer::methods(
        b"PUT / HTTP/1.1\r\nContent-Length: 3\r\n\r\nabcPOST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n\
          1\r\nx\r\n0\r\n\r\nHEAD / HTTP/1.1\r\n\r\nGET /cut",
    );
    assert_eq!(methods, ["PUT", "POST", "HEAD"]);
    assert!(answer::methods(b"no request at all").is_empty());
}

#[test]
fn an_excess_answer_is_detected_at_once() {
    let one = answer_of("200 OK", "x");
    let patient = PlayLimits { quiet: Duration::from_secs(60), ..limits(1) };
    let started = Instant::now();
    let got = play(canned(&[one.repeat(3).as_bytes()], Then::Sleep), GET, patient).unwrap();
    assert_eq!(got.responses.len(), 3);
    // It is also detected if it arrives later, within the quiet time.
    let late = play(canned(&[one.as_bytes(), one.as_bytes()], Then::Sleep), GET, patient).unwrap();
    assert_eq!(late.responses.len(), 2);
    assert!(started.elapsed() < patient.quiet);
}

#[test]
fn the_player_closes_its_side_if_the_server_waits_for_more() {
    let impatient = PlayLimits { answer: Duration::from_millis(100), ..limits(1) };
    let waiting = PlayLimits { quiet: Duration::from_secs(20), ..impatient };
    let waits = play(canned(&[], Then::Wait), b"GET /half", waiting).unwrap();
    assert!(waits.closed_after_our_end && !waits.closed && waits.raw.is_empty());
    let sleeps = play(canned(&[], Then::Sleep), GET, impatient).unwrap();
    assert!(!sleeps.closed_after_our_end && !sleeps.closed);
}

#[test]
fn an_answer_before_a_reset_is_not_lost() {
    let mut long = GET.to_vec();
    long.resize(100_000, b'a');
    let got = played(&long, b"HTTP/1.1 431 Too large\r\nContent-Length: 0\r\n\r\n", Then::Reset, 1);
    assert_eq!(got.responses[0].status, 431);
    assert!(got.closed);
}

#[test]
fn bytes_that_are_no_answer_are_the_rest() {
    for junk in [
        "hello",
        "HTTP/2 200 OK\r\n\r\n",
        "HTTP/1.1 2000 OK\r\n\r\n",
        "HTTP/1.1 +20 OK\r\n\r\n",
        "HTTP/1.1 200 OK\r\nno colon\r\n\r\n",
        "HTTP/1.1 200 OK\r\nbad name: x\r\n\r\n",
        "HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n",
        "HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 1\r\n\r\nx",
        "HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nshort",
        "HTTP/1.1 200 OK\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabcd\r\n0\r\n\r\n",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nffffffffffffffff\r\na",
    ] {
        let got = transcript(junk);
        assert!(got.responses.is_empty() && got.rest == junk.as_bytes(), "{junk:?}");
    }
}

#[test]
fn one_request_and_its_answer() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let stream = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let (mut server, _) = listener.accept().unwrap();
    let server = std::thread::spawn(move || {
        let mut heard = String::new();
        for _ in 0..2 {
            let mut byte = [0];
            let start = heard.len();
            while !heard[start..].ends_with("\r\n\r\n") {
                server.read_exact(&mut byte).unwrap();
                heard.push(byte[0].into());
            }
            server.write_all(answer_of("200 OK", "hi").as_bytes()).unwrap();
        }
        heard
    });
    assert_eq!(request(&stream, "GET", "/a", &[("X-A", "b")]).unwrap().text(), "hi");
    assert_eq!(request(&stream, "PUT", "/b", &[("host", "y")]).unwrap().status, 200);
    let heard = server.join().unwrap();
    assert_eq!(heard, "GET /a HTTP/1.1\r\nHost: 169.254.169.254\r\nX-A: b\r\n\r\nPUT /b HTTP/1.1\r\nhost: y\r\n\r\n");
    assert!(request(canned(&[b"HTTP/1.1 2"], Then::Close), "GET", "/", &[]).is_err());
    let two = answer_of("200 OK", "").repeat(2);
    assert!(request(canned(&[two.as_bytes()], Then::Wait), "GET", "/", &[]).is_err());
}

#[test]
fn placeholders_are_replaced_once_and_characters_are_bytes() {
    let subs =
        Substitutions { token: "{OWN_ROLE}".into(), own_role: "My-Role9".into(), node_ip: "10.42.0.1".into(), ..Substitutions::default() };
    let entry = entry("{TOKEN}|{OWN_ROLE_SWAPCASE}|{{NODE_IP}}|{json:1}|{\u{c4}\u{ff}\0", Expect::Denied, &[]);
    assert_eq!(render(&entry, &subs), b"{OWN_ROLE}|mY-rOLE9|{10.42.0.1}|{json:1}|{\xc4\xff\0");
}

#[test]
fn a_corpus_is_checked_when_it_is_loaded() {
    let line = |id: &str, request: &str| {
        format!(
            r#"{{"id":"{id}","category":"c","raw_request":"{request}","expect":"credentials-of-own-role","also_ok":["bad-request"],"mode":"v2","max_responses":2,"why":"w","evidence":"e"}}"#
        )
    };
    let load_text = |text: String| {
        let file = std::env::temp_dir().join(format!("rolegate-lab-corpus-{}", std::process::id()));
        std::fs::write(&file, text).unwrap();
        let loaded = load(&file);
        std::fs::remove_file(&file).unwrap();
        loaded
    };
    let good = load_text(format!("{}\n\n{}\n", line("a", "{TOKEN}"), line("b", "{OWN_ROLE_SWAPCASE}"))).unwrap();
    assert_eq!(good.len(), 2);
    assert_eq!(good[0].right().collect::<Vec<_>>(), [Expect::CredentialsOfOwnRole, Expect::BadRequest]);
    assert!(good[0].applies(true) && !good[0].applies(false));
    for (second, why) in [
        (line("a", ""), "there already"),
        (line("b", "{TOKENS}"), "unknown placeholder"),
        (line("b", "\u{131}"), "not latin-1"),
        (line("b", "").replace("\"v2\"", "\"v3\""), "unknown variant"),
        (line("b", "").replace("category", "categories"), "unknown field"),
    ] {
        let error = load_text(format!("{}\n{second}", line("a", ""))).unwrap_err().to_string();
        assert!(error.contains("line 2") && error.contains(why), "{error}");
    }
}
