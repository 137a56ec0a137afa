use super::*;
use crate::app::failure;

fn config_with(port: u16, arguments: &[&str]) -> ServerConfig {
    let all = ["rolegate", "--node=a", "--metadata-bind-address=127.0.0.1", &format!("--app-port={port}")];
    let matches = config::flags::add_to(clap::Command::new("rolegate")).try_get_matches_from(all.iter().chain(arguments)).unwrap();
    config::Config::from_source(&matches, &|_| None).unwrap().server
}

fn config(port: u16) -> ServerConfig {
    config_with(port, &[])
}

/// A daemon that may overlap with another, and finds nobody who offers a socket.
fn overlapping(port: u16) -> ServerConfig {
    config_with(port, &["--handover-socket=/nonexistent/handover"])
}

/// What another process of this user would bind to get a share of a port's connections.
fn thief(address: SocketAddr) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, None)?;
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(true)?;
    socket.bind(&address.into())?;
    Ok(socket)
}

fn connects(address: SocketAddr) -> bool {
    std::net::TcpStream::connect(address).is_ok()
}

#[tokio::test]
async fn a_port_that_nobody_has_listens_at_once() {
    let listener = PodListener::find(&config(0)).await.unwrap();
    assert!(connects(listener.address().unwrap()));
    assert!(listens(listener.address().unwrap()));
    listener.open(std::future::pending()).await.unwrap();
}

#[tokio::test]
async fn beside_another_daemon_nothing_is_taken_before_it_can_be_served() {
    let first = PodListener::find(&overlapping(0)).await.unwrap();
    let address = first.address().unwrap();
    let PodListener::Own(socket) = &first else { panic!("{first:?}") };
    let mut second = PodListener::find(&overlapping(address.port())).await.unwrap();
    assert!(matches!(second, PodListener::Beside(..)), "{second:?}");
    for _ in 0..50 {
        assert!(connects(address));
        socket.accept().expect("each of them is for the first");
    }
    assert!(futures_util::poll!(std::pin::pin!(second.listen_when_alone())).is_pending());
    let (listener, _) = second.open(std::future::ready(())).await.unwrap();
    drop(first);
    assert!(connects(address));
    listener.accept().await.unwrap();
}

#[tokio::test]
async fn when_the_other_daemon_ends_early_connections_wait_for_this_one() {
    let first = PodListener::find(&overlapping(0)).await.unwrap();
    let address = first.address().unwrap();
    let mut second = PodListener::find(&overlapping(address.port())).await.unwrap();
    drop(first);
    assert!(!connects(address));
    second.listen_when_alone().await.unwrap();
    assert!(connects(address));
    let (listener, _) = second.open(std::future::pending()).await.unwrap();
    listener.accept().await.unwrap();
}

#[tokio::test]
async fn a_program_that_does_not_share_its_port_is_an_error() {
    let other = StdListener::bind("127.0.0.1:0").unwrap();
    let port = other.local_addr().unwrap().port();
    for config in [config(port), overlapping(port)] {
        let error = failure::text(&PodListener::find(&config).await.unwrap_err());
        assert!(error.contains(&format!("cannot listen on 127.0.0.1 port {port}")) && error.contains("To fix: "), "{error}");
        assert_eq!(error.contains("--handover-socket"), config.handover_socket.is_some(), "{error}");
    }
    let error = listen_for_operators(Some([127, 0, 0, 1].into()), port).unwrap_err();
    assert!(is_in_use(&error) && failure::text(&error).contains("--metrics-port"), "{error}");
    let elsewhere = listen_for_operators(Some([192, 0, 2, 1].into()), port).unwrap_err();
    assert!(!is_in_use(&elsewhere), "{elsewhere}");
}

#[tokio::test]
async fn nobody_listens_beside_a_daemon_that_was_not_told_to_share() {
    let listener = PodListener::find(&config(0)).await.unwrap();
    let address = listener.address().unwrap();
    assert_eq!(thief(address).unwrap_err().kind(), io::ErrorKind::AddrInUse);
    // Not by way of every address either, nor as a daemon that may share.
    assert_eq!(thief(SocketAddr::new([0, 0, 0, 0].into(), address.port())).unwrap_err().kind(), io::ErrorKind::AddrInUse);
    for config in [config(address.port()), overlapping(address.port())] {
        assert!(is_in_use(&PodListener::find(&config).await.unwrap_err()));
    }
    let metrics = listen_for_operators(Some([127, 0, 0, 1].into()), 0).unwrap();
    assert_eq!(thief(metrics.local_addr().unwrap()).unwrap_err().kind(), io::ErrorKind::AddrInUse);
}

#[tokio::test]
async fn only_a_daemon_that_may_overlap_shares_its_port() {
    let listener = PodListener::find(&overlapping(0)).await.unwrap();
    thief(listener.address().unwrap()).unwrap();
}
