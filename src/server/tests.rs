#![allow(clippy::unwrap_used, reason = "a test says loudly what failed")]

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpSocket;
use tokio::sync::Semaphore;

use super::*;
use crate::links::witness::held::Held;
use crate::pods::pods_with;
use crate::proxy::tests::{pod, proxy_of};

#[test]
fn that_nothing_can_be_accepted_is_told_once_and_counted_each_time() {
    let metrics = Metrics::new();
    let accepting = Accepting::new(metrics.clone());
    let failed = || accepting.failed(&std::io::Error::from_raw_os_error(24));
    assert!(!accepting.worked(), "nothing was wrong");
    assert_eq!([failed(), failed(), failed()], [true, false, false]);
    assert_eq!([accepting.worked(), accepting.worked()], [true, false]);
    assert!(failed(), "it is news again");
    let text = String::from_utf8(metrics.render()).unwrap_or_default();
    assert!(text.contains(r#"rolegate_connections_refused_total{reason="accept-failed"} 4"#), "{text}");
}

const LIMIT: Duration = Duration::from_secs(20);

/// Sends a line that is no request from this address, and returns what the server answers.
async fn answer(from: [u8; 4], to: SocketAddr) -> String {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind((from, 0).into()).unwrap();
    let mut stream = socket.connect(to).await.unwrap();
    stream.write_all(b"no request\r\n\r\n").await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    answer
}

/// The kernel may have to wait for others before it answers whose address it is.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_that_waits_for_the_kernel_holds_up_no_other() {
    let node = Arc::new(Held::default());
    let (writer, pods) = pods_with(node.clone(), None);
    writer.write(|index| index.apply(pod("web", "127.0.0.2", None)));
    let (metrics, drain) = (Metrics::new(), Drain::default());
    let server = Server::new(proxy_of(pods), true, LimitsConfig::default(), metrics, drain, ConnectionRecord::default());
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let serving = tokio::spawn(async move { Arc::new(server).serve(listener, Service::Metadata, &AcceptQueue::default()).await });
    let asks = tokio::spawn(answer([127, 0, 0, 2], address));
    tokio::time::timeout(LIMIT, async {
        while node.asked() == 0 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    })
    .await
    .unwrap();
    let other = tokio::time::timeout(LIMIT, answer([127, 0, 0, 3], address)).await;
    assert!(!asks.is_finished());
    node.answers.add_permits(Semaphore::MAX_PERMITS);
    assert!(other.is_ok_and(|answer| answer.contains(" 400 ")));
    assert!(tokio::time::timeout(LIMIT, asks).await.unwrap().unwrap().contains(" 400 "));
    serving.abort();
}
