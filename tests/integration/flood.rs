//! Tests of floods: from addresses of no pod, of scrapes of the metrics, and of a legitimate burst.

use std::collections::BTreeSet;
use std::io::{Read as _, Write as _};
use std::net::{IpAddr, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use rolegate_lab::player;

use crate::world::{ROLES, TOKEN, World, connect, ip};

/// Returns an address that no pod has.
fn stranger(n: usize) -> IpAddr {
    IpAddr::from([127, 9, u8::try_from(n >> 8).unwrap(), u8::try_from(n & 255).unwrap()])
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn refused(world: &World) -> f64 {
    let of = |reason| world.daemon.metric(None, &format!("rolegate_connections_refused_total{{reason=\"{reason}\"}}")).unwrap_or(0.0);
    ["limit", "room", "namespace-room", "source-limit", "source-rate"].into_iter().map(of).sum()
}

/// One pod forges 1,100 addresses. Known and new pods are served, each with its own role.
#[test]
fn invented_addresses_starve_neither_known_pods_nor_new_ones() {
    // Unknown clients hold their places, and wait, for as long as this test takes.
    let patient = ["--limits-head-timeout=1m", "--backoff-max-elapsed-time=10m"];
    let world = World::start_with(|setup| patient.into_iter().fold(setup, |setup, argument| setup.argument(argument)));
    let address = world.daemon.metadata_address();
    let token = world.new_token(ip(2)).text();
    // Connections are accepted in order: the requests below come after all of these.
    let ask = "PUT /latest/api/token HTTP/1.1\r\nHost: 169.254.169.254\r\nX-aws-ec2-metadata-token-ttl-seconds: 60\r\n\r\n";
    let flood: Vec<TcpStream> = (0..1100)
        .map(|n| {
            let mut stream = connect(stranger(n), address).unwrap();
            // A connection that was displaced accepts nothing.
            let _ = stream.write_all(ask.as_bytes());
            stream
        })
        .collect();
    for _ in 0..20 {
        let answer = world.request(ip(2), "GET", &format!("{ROLES}web-role"), &[(TOKEN, &token)]);
        assert_eq!(answer.status, 200, "{}", world.daemon.log());
    }
    // A displaced connection whose request has been read is still answered: at most 256 of them wait.
    world.eventually(|world| world.metric("rolegate_connections"), |open| *open <= 2.0 * 256.0 + 1.0);
    // On a busy machine, some are displaced before their first request is read.
    let ended = |world: &World, reason| {
        world.daemon.metric(None, &format!("rolegate_connections_ended_total{{reason=\"{reason}\"}}")).unwrap_or(0.0)
    };
    let displaced = |world: &World| ended(world, "displaced") + ended(world, "made-room");
    world.eventually(displaced, |displaced| *displaced == 1100.0 - 256.0);

    let line = world.daemon.wait_for_log(|line| line["event"] == "connection-limit" && line["limit"] == "displaced").unwrap();
    let source = line["source"].as_str().unwrap();
    assert!(source.starts_with("127.9."), "{line}");
    assert_eq!(line["network"], format!("{source}/32"));

    // Pods that send requests before they are known, all at the same time, while unknown clients hold their places.
    thread::scope(|scope| {
        let asking: Vec<_> = (100..120)
            .map(|last| {
                let world = &world;
                scope.spawn(move || (last, world.document(ip(last), &format!("new-{last}"))))
            })
            .collect();
        world.eventually(displaced, |displaced| *displaced == 1100.0 - 256.0 + 20.0);
        for last in 100..120 {
            world.fakes.pod(&format!("new-{last}"), ip(last), Some(&format!("new-{last}")));
        }
        let keys: BTreeSet<String> = asking
            .into_iter()
            .map(|asking| {
                let (last, document) = asking.join().unwrap();
                assert_eq!(document["Code"], "Success", "{last}");
                document["AccessKeyId"].as_str().unwrap().to_owned()
            })
            .collect();
        assert_eq!(keys.len(), 20, "each pod has a session of its own");
    });
    assert_eq!(refused(&world), 0.0, "no limit of a pod was involved");
    drop(flood);
    world.eventually(|world| world.metric("rolegate_connections"), |open| *open == 0.0);
}

/// An unknown address that takes all the connections it can get does not exclude another one.
#[test]
fn an_unknown_address_with_many_connections_is_logged() {
    // Its connections stay open for as long as this test takes.
    let world = World::start_with(|setup| setup.argument("--limits-head-timeout=1m"));
    let address = world.daemon.metadata_address();
    let greedy: Vec<_> = (0..200).map(|_| connect(stranger(1), address).unwrap()).collect();
    world.document(ip(2), "web-role");
    assert_eq!(world.metric(r#"rolegate_connections_refused_total{reason="unknown-limit"}"#), 200.0 - 64.0);
    let lines = world.eventually(|world| world.daemon.events("connection-limit"), |lines| !lines.is_empty());
    assert!(lines.len() == 1 && lines[0]["limit"] == "unknown-limit" && lines[0]["source"] == "127.9.0.1", "{lines:?}");
    drop(greedy);
}

/// Eight connections of a pod scrape as fast as they can. They cost one rendering per second, at a limited rate of requests.
#[test]
fn constant_scraping_costs_one_rendering_a_second() {
    let world = World::start();
    let address = world.daemon.metrics_address();
    let scraped = |mut stream: TcpStream| -> BTreeSet<String> {
        let mut bodies = BTreeSet::new();
        let request = "GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n";
        // Five pipelined requests at a time, repeatedly.
        for _ in 0..3 {
            if stream.write_all(request.repeat(5).as_bytes()).is_err() {
                return bodies;
            }
            for _ in 0..5 {
                match answer(&mut stream) {
                    Some(body) => bodies.insert(body),
                    None => return bodies,
                };
            }
        }
        bodies
    };
    // The pod may have four connections there. The others are closed before they send a request.
    let streams: Vec<_> = (0..8).map(|_| connect(ip(2), address).unwrap()).collect();
    let closed = |world: &World| {
        let refused = r#"rolegate_metrics_port_refused_total{reason="source-limit"}"#;
        world.daemon.metric(None, refused).unwrap_or(0.0)
    };
    world.eventually(closed, |closed| *closed == 4.0);
    let began = Instant::now();
    let bodies: Vec<_> = thread::scope(|scope| {
        let scraping: Vec<_> = streams.into_iter().map(|stream| scope.spawn(move || scraped(stream))).collect();
        // Meanwhile, another pod and the node itself get answers, and the node's is current.
        let scraper = player::request(connect(ip(3), address).unwrap(), "GET", "/metrics", &[("Connection", "close")]).unwrap();
        assert_eq!(scraper.status, 200);
        world.document(ip(3), "db-role");
        assert!(text(&world.daemon.get(None, "/metrics").unwrap().body).contains(r#"route="credentials""#));
        scraping.into_iter().map(|scraping| scraping.join().unwrap()).collect()
    });
    let took = began.elapsed();
    assert_eq!(bodies.iter().filter(|bodies| !bodies.is_empty()).count(), 4, "{took:?}");
    let different: BTreeSet<_> = bodies.into_iter().flatten().collect();
    // Four connections with 15 requests each: 20 of them at once, and ten per second after that.
    assert!(took >= Duration::from_millis(3900), "{took:?}");
    let most = took.as_secs_f64().floor() + 1.0;
    assert!(different.len() as f64 <= most, "{} different answers in {took:?}", different.len());
    let renderings = world.metric("rolegate_metrics_renderings_total");
    assert!((1.0..=most + 1.0).contains(&renderings), "{renderings} renderings in {took:?}");
    assert_eq!(closed(&world), 4.0);
}

/// Reads one answer with `content-length`, and returns its body.
fn answer(stream: &mut TcpStream) -> Option<String> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        stream.read_exact(&mut byte).ok()?;
        head.push(byte[0]);
    }
    let head = text(&head).to_ascii_lowercase();
    assert!(head.starts_with("http/1.1 200 "), "{head}");
    let length: usize = head.lines().find_map(|line| line.strip_prefix("content-length: "))?.parse().ok()?;
    let mut body = vec![0; length];
    stream.read_exact(&mut body).ok()?;
    Some(text(&body))
}

#[test]
fn pods_see_no_namespaces_in_the_metrics() {
    let scrape = |world: &World, from| {
        text(
            &player::request(connect(from, world.daemon.metrics_address()).unwrap(), "GET", "/metrics", &[("Connection", "close")])
                .unwrap()
                .body,
        )
    };
    for (argument, shown) in [("--metrics-namespace-labels=false", false), ("--metrics-namespace-labels", true)] {
        let world = World::start_with(|setup| setup.argument(argument).argument("--imds-tokens=optional"));
        assert_eq!(world.request(ip(2), "GET", ROLES, &[]).status, 200);
        let (pod, elsewhere, node) =
            (scrape(&world, ip(3)), scrape(&world, stranger(1)), text(&world.daemon.get(None, "/metrics").unwrap().body));
        assert!(node.contains(r#"rolegate_imdsv1_requests_total{namespace="shop",outcome="served"} 1"#), "{node}");
        for of_others in [pod, elsewhere] {
            assert_eq!(of_others.contains("shop"), shown, "{argument}: {of_others}");
            let sum = r#"rolegate_imdsv1_requests_total{outcome="served"} 1"#;
            assert_eq!(of_others.contains(sum), !shown, "{argument}: {of_others}");
        }
    }
}

/// A Node.js process sends requests on 200 connections at the same time, and keeps all of them.
#[test]
fn a_burst_of_200_connections_of_one_pod_is_answered() {
    // With the daemon's default rate.
    let world = World::start_with(|setup| setup.argument("--limits-connection-rate=250").argument("--limits-head-timeout=1m"));
    let token = world.new_token(ip(2)).text();
    let request = format!("GET {ROLES}web-role HTTP/1.1\r\nHost: 169.254.169.254\r\nX-aws-ec2-metadata-token: {token}\r\n\r\n");
    let streams: Vec<_> = (0..200)
        .map(|_| {
            let mut stream = world.connect(ip(2));
            // A connection that was closed after waiting for a second accepts nothing.
            let _ = stream.write_all(request.as_bytes());
            stream
        })
        .collect();
    let bodies: Vec<_> = streams.into_iter().map(|mut stream| (answer(&mut stream), stream)).collect();
    let answered = bodies.iter().filter(|(body, _)| body.as_ref().is_some_and(|body| body.contains("AccessKeyId"))).count();
    // 128 have a place at once. The others wait up to a second for theirs, in which a busy machine may not answer all.
    assert!(answered > 128, "only {answered} were answered\n{}", world.daemon.log());
    assert!(refused(&world) <= (200 - answered) as f64, "{}", world.daemon.log());
    assert_eq!(refused(&world), refused_by_source_limit(&world));
    for _ in answered..200 {
        patiently(&world, &request);
    }
    assert_eq!(world.metric("rolegate_connections_waiting"), 0.0);
}

fn refused_by_source_limit(world: &World) -> f64 {
    world.daemon.metric(None, r#"rolegate_connections_refused_total{reason="source-limit"}"#).unwrap_or(0.0)
}

/// Sends a request of a pod on new connections until one is answered. Returns that connection, and how many were closed.
fn patiently(world: &World, request: &str) -> (TcpStream, usize) {
    for closed in 0..20 {
        let mut stream = world.connect(ip(2));
        let _ = stream.write_all(request.as_bytes());
        if answer(&mut stream).is_some() {
            return (stream, closed);
        }
    }
    panic!("no connection was answered\n{}", world.daemon.log());
}

/// Kept idle connections make room for new ones of their pod and, if all places are taken, for those of others.
#[test]
fn idle_connections_make_room() {
    let world = World::start_with(|setup| {
        setup.argument("--limits-connections=16").argument("--limits-connections-per-pod=10").argument("--limits-head-timeout=1m")
    });
    let token = world.new_token(ip(2)).text();
    let request = format!("GET {ROLES}web-role HTTP/1.1\r\nHost: 169.254.169.254\r\nX-aws-ec2-metadata-token: {token}\r\n\r\n");
    // From the eleventh on, an idle connection must make room within the second that a new one waits. A busy machine may be too
    // slow for some of the five, but not for all.
    let (kept, closed): (Vec<TcpStream>, Vec<usize>) = (0..15).map(|_| patiently(&world, &request)).unzip();
    assert_eq!(closed[..10], [0; 10], "each of these has a place");
    assert!(closed[10..].contains(&0), "{closed:?}\n{}", world.daemon.log());
    assert!(world.metric(r#"rolegate_connections_ended_total{reason="made-room"}"#) >= 1.0);
    // Another pod has few connections. It gets a place whatever the first one keeps.
    for _ in 0..8 {
        world.document(ip(3), "db-role");
    }
    assert_eq!(refused(&world), refused_by_source_limit(&world), "{}", world.daemon.log());
    assert!(refused(&world) <= closed.iter().sum::<usize>() as f64, "no connection of the other pod was closed");
    drop(kept);
}
