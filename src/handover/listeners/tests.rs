use std::net::TcpListener;
use std::os::fd::AsFd as _;

use socket2::{Domain, Socket, Type};

use super::*;

/// Creates a listening socket whose port others can share.
fn shared(address: &str) -> Socket {
    let address: SocketAddr = address.parse().unwrap();
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, None).unwrap();
    socket.set_reuse_port(true).unwrap();
    socket.bind(&address.into()).unwrap();
    socket.listen(1).unwrap();
    socket
}

fn inode(socket: &Socket) -> u64 {
    std::fs::File::from(socket.as_fd().try_clone_to_owned().unwrap()).metadata().unwrap().ino()
}

fn others_of(socket: &Socket) -> Vec<u64> {
    others(&socket.as_fd().try_clone_to_owned().unwrap()).unwrap().1
}

#[test]
fn a_second_socket_at_the_port_is_seen_until_it_closes() {
    let own = shared("127.0.0.1:0");
    let address = own.local_addr().unwrap().as_socket().unwrap();
    assert!(has(inode(&own)));
    assert!(others_of(&own).is_empty());
    // A duplicate of the descriptor, as a successor has one, is the same socket.
    let _copy = own.try_clone().unwrap();
    let elsewhere = TcpListener::bind(("127.0.0.2", address.port()));
    assert!(others_of(&own).is_empty());
    let second = shared(&address.to_string());
    assert_eq!(others_of(&own), [inode(&second)]);
    assert_eq!(others_of(&second), [inode(&own)]);
    let gone = inode(&second);
    drop((second, elsewhere));
    assert!(others_of(&own).is_empty());
    assert!(!has(gone));
}

#[test]
fn the_kernels_table_is_read_in_both_families() {
    // As written by a little-endian machine.
    let table = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n   \
                 0: 0100007F:1FF5 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 4711 1 0 100 0 0 10 0\n   \
                 1: 0100007F:1FF5 0100007F:8001 01 00000000:00000000 00:00000000 00000000     0        0 4712 1 0 20 4 30 10 -1\n   \
                 2: 00000000000000000000000001000000:0050 00000000000000000000000000000000:0000 0A 00000000:00000000 00:00000000 \
                 00000000     0        0 4713 1 0 100 0 0 10 0\n   3: 1234:0050\nnonsense\n";
    if cfg!(target_endian = "little") {
        let expected = [
            ListeningSocket { address: "127.0.0.1:8181".parse().unwrap(), inode: 4711 },
            ListeningSocket { address: "[::1]:80".parse().unwrap(), inode: 4713 },
        ];
        assert_eq!(parse(table), expected);
    }
    assert_eq!(parse(""), []);
}

#[test]
fn the_more_specific_address_takes_connections() {
    for (other, own, expected) in [
        ("[::]:80", "[::]:80", true),
        ("10.0.0.1:80", "[::]:80", true),
        ("10.0.0.1:80", "10.0.0.1:80", true),
        ("[::ffff:10.0.0.1]:80", "10.0.0.1:80", true),
        ("10.0.0.2:80", "10.0.0.1:80", false),
        ("0.0.0.0:80", "10.0.0.1:80", false),
        ("[::]:81", "[::]:80", false),
    ] {
        assert_eq!(takes_from(other.parse().unwrap(), own.parse().unwrap()), expected, "{other} from {own}");
    }
}
