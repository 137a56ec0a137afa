//! The cookie of the network namespace of this process, by which the programs recognize the node's own network.
//!
//! The kernel tells it by a socket option (SO_NETNS_COOKIE), for which no crate has a safe function. A BPF program that sees a message of
//! one of our own sockets knows it as well (`network.c`; Linux 5.15).

use std::io::Write as _;
use std::net::{Ipv4Addr, TcpListener, TcpStream};

use aya::EbpfLoader;
use aya::maps::{Array, SockMap};
use aya::programs::SkMsg;

use super::error::BpfError;

/// The compiled program. `scripts/build-bpf` makes it.
static OBJECT: &[u8] = aya::include_bytes_aligned!("network.o");
/// The only index of both maps.
const INDEX: u32 = 0;

/// Returns the cookie of this process's network namespace.
pub(super) fn cookie() -> Result<u64, BpfError> {
    let failed = |what: &str| format!("learn the network namespace of this process: {what}");
    macro_rules! done {
        ($what:expr, $result:expr) => {
            $result.map_err(|error| BpfError::kernel(failed($what), error))?
        };
    }
    let missing = || BpfError::Kernel { what: failed("find the program"), source: "the build is wrong".into() };
    let mut ebpf = done!("create the maps", EbpfLoader::new().btf(None).load(OBJECT));
    let mut sockets: SockMap<_> = done!("use the sockets", ebpf.take_map("sockets").ok_or_else(missing)?.try_into());
    let cookie: Array<_, u64> = done!("use the result", ebpf.take_map("cookie").ok_or_else(missing)?.try_into());
    let program = ebpf.program_mut("tell_network").ok_or_else(missing)?;
    let program: &mut SkMsg = done!("use the program", program.try_into());
    done!("load the program", program.load());
    done!("attach the program", program.attach(sockets.fd()));
    let listener = done!("listen", TcpListener::bind((Ipv4Addr::LOCALHOST, 0)));
    let mut client = done!("connect", listener.local_addr().and_then(TcpStream::connect));
    done!("watch the socket", sockets.set(INDEX, &client, 0));
    done!("send", client.write_all(b"?"));
    let cookie: u64 = done!("read the result", cookie.get(&INDEX, 0));
    match cookie {
        0 => Err(BpfError::Kernel { what: failed("read the result"), source: "the program did not run".into() }),
        cookie => Ok(cookie),
    }
}
