use super::*;

fn config(port: u16) -> ServerConfig {
    let matches = config::flags::add_to(clap::Command::new("rolegate"))
        .try_get_matches_from(["rolegate", "--node=a", "--metadata-bind-address=127.0.0.1", &format!("--app-port={port}")])
        .unwrap();
    config::Config::from_source(&matches, &|_| None).unwrap().server
}

fn connects(address: SocketAddr) -> bool {
    std::net::TcpStream::connect(address).is_ok()
}

#[tokio::test]
async fn a_port_that_nobody_has_listens_at_once() {
    let door = Door::find(&config(0)).await.unwrap();
    assert!(connects(door.address().unwrap()));
    assert!(listens(door.address().unwrap()));
    door.open(std::future::pending()).await.unwrap();
}

#[tokio::test]
async fn beside_another_daemon_nothing_is_taken_before_it_can_be_served() {
    let first = Door::find(&config(0)).await.unwrap();
    let address = first.address().unwrap();
    let Door::Own(socket) = &first else { panic!("{first:?}") };
    let mut second = Door::find(&config(address.port())).await.unwrap();
    assert!(matches!(second, Door::Beside(..)), "{second:?}");
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
    let first = Door::find(&config(0)).await.unwrap();
    let address = first.address().unwrap();
    let mut second = Door::find(&config(address.port())).await.unwrap();
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
    let error = Door::find(&config(port)).await.unwrap_err();
    assert!(error.to_string().contains(&format!("cannot listen on 127.0.0.1 port {port}; choose another --app-port")), "{error}");
    let error = listen_for_operators(Some([127, 0, 0, 1].into()), port).unwrap_err();
    assert!(is_in_use(&error) && error.to_string().contains("--metrics-port"), "{error}");
    let elsewhere = listen_for_operators(Some([192, 0, 2, 1].into()), port).unwrap_err();
    assert!(!is_in_use(&elsewhere), "{elsewhere}");
}
