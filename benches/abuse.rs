//! What one pod can do to another: the daemon is abused from one address, and the credential requests of another are timed.
//!
//! Each abuse runs for ten seconds, in a process of its own, against the real daemon with its default limits. Meanwhile a
//! second pod asks for its credentials, over a connection that it keeps and over a new one each time, in turn. Absolute
//! figures depend on the machine, which here has to do the abuse as well; the row without abuse is what to compare with.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stdout, reason = "a benchmark says loudly what failed")]

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use rolegate_lab::daemon::{Daemon, Setup};
use rolegate_lab::kube::{KubeApi, PodBuilder, Resource};
use rolegate_lab::player;
use rolegate_lab::sts::{Role, Sts};
use socket2::{Domain, Socket, Type};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpSocket;

/// Set in the process that abuses: which abuse, the daemon's address, a token, the metrics' address.
const ABUSE: &str = "ROLEGATE_BENCH_ABUSE";
const VICTIM: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 1, 2));
const ABUSER: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 1, 3));
/// Of each abuse.
const LASTS: Duration = Duration::from_secs(10);
/// Between two requests of the pod that is timed.
const PAUSE: Duration = Duration::from_millis(5);
/// Between two looks at the daemon's memory.
const LOOK: Duration = Duration::from_millis(20);
/// Addresses that one pod invents.
const STRANGERS: usize = 1100;
/// Between an abuser's connection that was closed and its next one, where it is not the connecting that hurts.
const AGAIN: Duration = Duration::from_millis(100);
const ROLE: &str = "/latest/meta-data/iam/security-credentials/web-role";

/// What the abuser does.
const ABUSES: [(&str, &str); 6] = [
    ("idle", "1,000 idle sockets"),
    ("slow", "1,000 slow heads, a byte a second"),
    ("connect", "10,000 new connections a second"),
    ("pipeline", "200 pipelined requests at a time, 128 connections"),
    ("addresses", "connections from 1,100 addresses that no pod has"),
    ("metrics", "8 connections that ask for the metrics"),
];

fn main() {
    if let Ok(abuse) = std::env::var(ABUSE) {
        return abuser(&abuse);
    }
    let world = World::start();
    println!("| one pod does | another's requests | p50 | p99 | max | failed | daemon's memory before, peak, after | abuse |");
    println!("|---|---|---|---|---|---|---|---|");
    let undisturbed = world.measure("nothing", None);
    let mut worst = Duration::ZERO;
    let mut ratios = String::new();
    for (name, title) in ABUSES {
        let p99 = world.measure(title, Some(name));
        worst = worst.max(p99);
        ratios.push_str(&format!("\n| {title} | {} | {:.1} |", millis(p99), p99.as_secs_f64() / undisturbed.as_secs_f64()));
    }
    println!("\n| one pod does | another's p99 | times the undisturbed {} |\n|---|---|---|{ratios}", millis(undisturbed));
    let verdict = if worst < Duration::from_millis(50) { "met" } else { "missed" };
    println!("\nworst p99 under abuse {}, undisturbed {}: the goal, below 50 ms, is {verdict}", millis(worst), millis(undisturbed));
}

/// The daemon, what it needs, and the token of the pod that abuses.
struct World {
    daemon: Daemon,
    token: String,
    abuser_token: String,
    _fakes: (KubeApi, Sts, tempfile::NamedTempFile, tokio::runtime::Runtime),
}

impl World {
    fn start() -> World {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let inside = runtime.enter();
        let listener = || TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let (api, sts) = (KubeApi::start(listener()).unwrap(), Sts::start(listener()).unwrap());
        drop(inside);
        for (name, ip, role) in [("web", VICTIM, "web-role"), ("abuser", ABUSER, "abuser-role")] {
            sts.add_role(Role::new(format!("arn:aws:iam::111122223333:role/{role}")));
            let pod = PodBuilder::new("shop", name).node("node-a").ip(&ip.to_string());
            api.apply(Resource::Pods, pod.annotation("iam.amazonaws.com/role", role).build());
        }
        let kubeconfig = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(&kubeconfig, api.kubeconfig()).unwrap();
        let daemon = Setup::new(env!("CARGO_BIN_EXE_rolegate"))
            .argument("--node=node-a")
            .argument(format!("--kubeconfig={}", kubeconfig.path().display()))
            .argument("--base-role-arn=arn:aws:iam::111122223333:role/")
            .argument("--accept-direct-connections")
            .argument("--metadata-bind-address=127.0.0.1")
            .argument("--metrics-bind-address=127.0.0.1")
            // The default again, which the lab takes away.
            .argument("--limits-connection-rate=250")
            .env("AWS_ENDPOINT_URL_STS", sts.url())
            .start()
            .unwrap();
        daemon.wait_ready(None).unwrap();
        let token = |from| {
            let stream = connect(from, daemon.metadata_address()).unwrap();
            player::request(stream, "PUT", "/latest/api/token", &[("X-aws-ec2-metadata-token-ttl-seconds", "21600")]).unwrap().text()
        };
        let (token, abuser_token) = (token(VICTIM), token(ABUSER));
        let world = World { daemon, token, abuser_token, _fakes: (api, sts, kubeconfig, runtime) };
        // The session is there before anything is timed.
        assert_eq!(world.ask(&connect(VICTIM, world.daemon.metadata_address()).unwrap()).unwrap(), 200);
        world
    }

    /// Times the pod's requests while the other one abuses, prints the rows, and returns the worse p99.
    fn measure(&self, title: &str, abuse: Option<&str>) -> Duration {
        let before = self.memory();
        let over = Arc::new(AtomicBool::new(false));
        let peak = Arc::new(AtomicU64::new(before));
        let watch = {
            let (pid, over, peak) = (self.daemon.pid(), over.clone(), peak.clone());
            std::thread::spawn(move || {
                while !over.load(Ordering::Relaxed) {
                    peak.fetch_max(memory(pid), Ordering::Relaxed);
                    std::thread::sleep(LOOK);
                }
            })
        };
        let abuser = abuse.map(|abuse| Abuser::start(abuse, &self.daemon, &self.abuser_token));
        let [kept, each] = self.requests();
        let did = abuser.map_or_else(|| "—".to_owned(), Abuser::end);
        over.store(true, Ordering::Relaxed);
        watch.join().unwrap();
        let (peak, after) = (peak.load(Ordering::Relaxed), self.memory());
        for (way, timed) in [("kept connection", &kept), ("new connection each", &each)] {
            println!(
                "| {title} | {way}, {} | {} | {} | {} | {} | {}, {}, {} MiB | {did} |",
                timed.took.len(),
                millis(timed.quantile(0.5)),
                millis(timed.quantile(0.99)),
                millis(timed.quantile(1.0)),
                timed.failed,
                before / 1024,
                peak / 1024,
                after / 1024,
            );
        }
        kept.quantile(0.99).max(each.quantile(0.99))
    }

    /// Requests for [`LASTS`], in turn over one connection and over a new one each.
    fn requests(&self) -> [Timed; 2] {
        let (mut kept, mut each) = (Timed::default(), Timed::default());
        let address = self.daemon.metadata_address();
        let mut connection: Option<TcpStream> = None;
        let ends = Instant::now() + LASTS;
        while Instant::now() < ends {
            let began = Instant::now();
            let answered = connection.take().map_or_else(|| connect(VICTIM, address), Ok).and_then(|stream| {
                let status = self.ask(&stream)?;
                connection = Some(stream);
                Ok(status)
            });
            kept.add(began.elapsed(), &answered);
            std::thread::sleep(PAUSE);
            let began = Instant::now();
            let answered = connect(VICTIM, address).and_then(|stream| self.ask(&stream));
            each.add(began.elapsed(), &answered);
            std::thread::sleep(PAUSE);
        }
        [kept, each]
    }

    fn ask(&self, stream: &TcpStream) -> std::io::Result<u16> {
        player::request(stream, "GET", ROLE, &[("X-aws-ec2-metadata-token", &self.token)]).map(|answer| answer.status)
    }

    fn memory(&self) -> u64 {
        memory(self.daemon.pid())
    }
}

/// How long requests took, and how many had no good answer.
#[derive(Default)]
struct Timed {
    took: Vec<Duration>,
    failed: usize,
}

impl Timed {
    fn add(&mut self, took: Duration, answered: &std::io::Result<u16>) {
        // One that failed counts with its time, too.
        self.took.push(took);
        self.failed += usize::from(!matches!(answered, Ok(200)));
    }

    fn quantile(&self, part: f64) -> Duration {
        let mut sorted = self.took.clone();
        sorted.sort_unstable();
        sorted[((sorted.len() - 1) as f64 * part).round() as usize]
    }
}

fn millis(took: Duration) -> String {
    format!("{:.1} ms", took.as_secs_f64() * 1000.0)
}

/// Resident memory of a process, in KiB.
fn memory(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

fn connect(from: IpAddr, to: SocketAddr) -> std::io::Result<TcpStream> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
    socket.bind(&SocketAddr::new(from, 0).into())?;
    socket.connect(&to.into())?;
    Ok(socket.into())
}

/// The process that abuses.
struct Abuser {
    process: Child,
    said: BufReader<std::process::ChildStdout>,
}

impl Abuser {
    /// Starts it, and waits until it is in full swing.
    fn start(abuse: &str, daemon: &Daemon, token: &str) -> Abuser {
        let (address, metrics) = (daemon.metadata_address(), daemon.metrics_address());
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.env(ABUSE, format!("{abuse} {address} {token} {metrics}")).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut process = command.spawn().unwrap();
        let mut said = BufReader::new(process.stdout.take().unwrap());
        said.read_line(&mut String::new()).unwrap();
        Abuser { process, said }
    }

    /// Stops it, and returns what it did.
    fn end(mut self) -> String {
        drop(self.process.stdin.take());
        let mut did = String::new();
        self.said.read_line(&mut did).unwrap();
        did.trim().to_owned()
    }
}

impl Drop for Abuser {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// What the abuser counts.
#[derive(Default)]
struct Done {
    connections: AtomicU64,
    answers: AtomicU64,
    began: Mutex<Option<Instant>>,
}

fn abuser(words: &str) {
    let mut words = words.split(' ').map(str::to_owned);
    let (abuse, address, token) = (words.next().unwrap(), words.next().unwrap().parse().unwrap(), words.next().unwrap());
    let metrics: SocketAddr = words.next().unwrap().parse().unwrap();
    let done: Arc<Done> = Arc::default();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    *done.began.lock().unwrap() = Some(Instant::now());
    match abuse.as_str() {
        "idle" => many(&runtime, 1000, &done, move |done| idle(address, done)),
        "slow" => many(&runtime, 1000, &done, move |done| slow(address, done)),
        // Twenty of 500 a second each.
        "connect" => many(&runtime, 20, &done, move |done| connect_and_reset(address, done)),
        "pipeline" => many(&runtime, 128, &done, move |done| pipeline(address, token.clone(), done)),
        "addresses" => (0..STRANGERS).for_each(|n| many(&runtime, 1, &done, move |done| stranger(address, n, done))),
        "metrics" => many(&runtime, 8, &done, move |done| scrape(metrics, done)),
        other => panic!("{other}"),
    }
    println!("started");
    // Ends with our parent's word, or with our parent.
    let _ = std::io::stdin().read(&mut [0]);
    let seconds = done.began.lock().unwrap().unwrap().elapsed().as_secs_f64();
    let rate = |count: &AtomicU64| count.load(Ordering::Relaxed) as f64 / seconds;
    println!("{:.0} connections/s, {:.0} answers/s", rate(&done.connections), rate(&done.answers));
    std::io::stdout().flush().unwrap();
}

fn many<F>(runtime: &tokio::runtime::Runtime, count: usize, done: &Arc<Done>, abuse: impl Fn(Arc<Done>) -> F)
where
    F: Future<Output = ()> + Send + 'static,
{
    for _ in 0..count {
        runtime.spawn(abuse(done.clone()));
    }
}

async fn stream(address: SocketAddr, done: &Done) -> std::io::Result<tokio::net::TcpStream> {
    stream_from(ABUSER, address, done).await
}

async fn stream_from(from: IpAddr, address: SocketAddr, done: &Done) -> std::io::Result<tokio::net::TcpStream> {
    let socket = TcpSocket::new_v4()?;
    socket.bind(SocketAddr::new(from, 0))?;
    let stream = socket.connect(address).await?;
    // Thousands of closed connections a second would use up the ports: end with a reset.
    stream.set_zero_linger()?;
    done.connections.fetch_add(1, Ordering::Relaxed);
    Ok(stream)
}

/// One address of many: asks, and connects again when it is closed.
async fn stranger(address: SocketAddr, n: usize, done: Arc<Done>) {
    let from = IpAddr::from([127, 9, (n >> 8) as u8, (n & 255) as u8]);
    let request = b"PUT /latest/api/token HTTP/1.1\r\nHost: 169.254.169.254\r\nX-aws-ec2-metadata-token-ttl-seconds: 60\r\n\r\n";
    loop {
        if let Ok(mut stream) = stream_from(from, address, &done).await {
            let _ = stream.write_all(request).await;
            while stream.read(&mut [0; 1024]).await.is_ok_and(|length| length > 0) {}
        }
        tokio::time::sleep(AGAIN).await;
    }
}

async fn scrape(metrics: SocketAddr, done: Arc<Done>) {
    loop {
        if let Ok(mut stream) = stream(metrics, &done).await {
            let mut buffer = vec![0; 64 * 1024];
            // Ten at one time, as fast as they are taken.
            while stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n".repeat(10).as_slice()).await.is_ok() {
                let Ok(length @ 1..) = stream.read(&mut buffer).await else { break };
                let answers = buffer[..length].windows(13).filter(|bytes| *bytes == b"HTTP/1.1 200 ").count();
                done.answers.fetch_add(answers as u64, Ordering::Relaxed);
            }
        }
        tokio::time::sleep(AGAIN).await;
    }
}

async fn idle(address: SocketAddr, done: Arc<Done>) {
    loop {
        if let Ok(mut stream) = stream(address, &done).await {
            // Until the daemon closes it.
            let _ = stream.read(&mut [0]).await;
        }
        tokio::time::sleep(AGAIN).await;
    }
}

async fn slow(address: SocketAddr, done: Arc<Done>) {
    let head = format!("GET / HTTP/1.1\r\nHost: 169.254.169.254\r\nX-Slow: {}\r\n\r\n", "x".repeat(1000));
    loop {
        if let Ok(mut stream) = stream(address, &done).await {
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
        tokio::time::sleep(AGAIN).await;
    }
}

async fn connect_and_reset(address: SocketAddr, done: Arc<Done>) {
    let mut ticks = tokio::time::interval(Duration::from_millis(2));
    loop {
        ticks.tick().await;
        // Made and thrown away.
        let _ = stream(address, &done).await;
    }
}

async fn pipeline(address: SocketAddr, token: String, done: Arc<Done>) {
    let path = "/latest/meta-data/iam/security-credentials/abuser-role";
    let request = format!("GET {path} HTTP/1.1\r\nHost: 169.254.169.254\r\nX-aws-ec2-metadata-token: {token}\r\n\r\n");
    let requests = request.repeat(200);
    loop {
        if let Ok(stream) = stream(address, &done).await {
            let (mut read, mut write) = stream.into_split();
            let writes = async { while write.write_all(requests.as_bytes()).await.is_ok() {} };
            let reads = async {
                let mut buffer = vec![0; 64 * 1024];
                while let Ok(length @ 1..) = read.read(&mut buffer).await {
                    let answers = buffer[..length].windows(13).filter(|bytes| *bytes == b"HTTP/1.1 200 ").count();
                    done.answers.fetch_add(answers as u64, Ordering::Relaxed);
                }
            };
            tokio::select! { () = writes => {}, () = reads => {} }
        }
        tokio::time::sleep(AGAIN).await;
    }
}
