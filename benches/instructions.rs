//! Instructions of one request, counted by callgrind, in the daemon and in a bare hyper server that returns the same bytes.
//!
//! Each server runs under valgrind. One client sends requests of one kind, on one connection or on a new one for each request, and the
//! instructions of a number of requests are subtracted from those of twice as many. Unlike times, the counts hardly differ between runs.
//! They are compared with those of `benches/instructions.txt`: the program exits with status 1 if one is more than 5 % higher. `-- --write`
//! writes that file, and `-- --functions` prints the functions in which the instructions of a warm request are, of either server.
//!
//! Run it with `cargo bench --profile profiling --bench instructions`: a release with names of functions.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::print_stdout, reason = "a benchmark says loudly what failed")]

mod common;

use std::collections::BTreeMap;
use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::{Command, ExitCode};

use common::process::{self, Again};
use common::serve::{self, CREDENTIALS, ROLE, Served};
use common::{exit_code, selected};

/// Requests of the smaller of two counts.
const REQUESTS: u64 = 2_000;
/// How much a count may exceed its baseline.
const TOLERANCE: f64 = 0.05;
/// The number of functions that are printed.
const SHOWN: usize = 40;
const BASELINE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/benches/instructions.txt");

/// Requests of one kind.
struct Case {
    name: &'static str,
    request: Vec<u8>,
    kept: bool,
}

fn main() -> ExitCode {
    if let Some(body) = process::case() {
        serve::bare_server(body, 1);
        return ExitCode::SUCCESS;
    }
    let directory = tempfile::tempdir().unwrap();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let served = Served::start(&runtime, |setup| {
        // One worker, so that no instructions are spent on waiting for others.
        setup.by_way_of(callgrind(&directory.path().join("daemon"))).env("TOKIO_WORKER_THREADS", "1")
    });
    let bare = Again::start_by(&callgrind(&directory.path().join("bare")), &served.document);
    let address = |case: &Case, of_daemon: bool| if of_daemon { served.daemon.metadata_address() } else { bare_address(&bare, case) };
    let cases = cases(&served);
    let mut counts = BTreeMap::new();
    for (server, of_daemon, pid) in [("bare hyper", false, bare.pid()), ("rolegate", true, served.daemon.pid())] {
        let counter = Counter { directory: directory.path(), pid };
        for case in cases.iter().filter(|case| of_daemon || case.name == "warm") {
            let address = address(case, of_daemon);
            send(address, case, 200);
            counter.dump();
            send(address, case, REQUESTS);
            let single = counter.dump();
            send(address, case, 2 * REQUESTS);
            let double = counter.dump();
            let connection = if case.kept { "kept" } else { "new" };
            let each = (double.total - single.total) as f64 / REQUESTS as f64;
            println!("{server:<12} {:<12} {connection:<6} {each:>8.0} instructions", case.name);
            counts.insert(format!("{server}, {}, {connection}", case.name), each.round());
            if std::env::args().any(|argument| argument == "--functions") && case.name == "warm" {
                print_functions(&single.file, &double.file);
            }
        }
    }
    if std::env::args().any(|argument| argument == "--write") {
        let text: String = counts.iter().map(|(name, count)| format!("{name}: {count}\n")).collect();
        fs::write(BASELINE, text).unwrap();
        return ExitCode::SUCCESS;
    }
    exit_code(selected().is_empty() && is_within(&counts))
}

fn bare_address(bare: &Again, _: &Case) -> SocketAddr {
    bare.line.parse().unwrap()
}

fn cases(served: &Served) -> Vec<Case> {
    let warm = served.request(&format!("{CREDENTIALS}{ROLE}"));
    let without_token = format!("GET {CREDENTIALS}{ROLE} HTTP/1.1\r\nHost: 169.254.169.254\r\n\r\n").into_bytes();
    let kept = [
        ("warm", warm.clone()),
        ("role list", served.request(CREDENTIALS)),
        ("other role", served.request(&format!("{CREDENTIALS}other-role"))),
        ("no token", without_token),
        ("token PUT", serve::token_request()),
    ];
    let mut cases: Vec<_> = kept.into_iter().map(|(name, request)| Case { name, request, kept: true }).collect();
    cases.push(Case { name: "warm", request: warm, kept: false });
    cases
}

/// Compares the counts with the baseline. Returns whether none is much higher.
fn is_within(counts: &BTreeMap<String, f64>) -> bool {
    let text = fs::read_to_string(BASELINE).unwrap();
    let baseline: BTreeMap<&str, f64> =
        text.lines().filter_map(|line| line.rsplit_once(": ")).map(|(name, count)| (name, count.parse().unwrap())).collect();
    let mut is_within = true;
    for (name, count) in counts {
        let Some(before) = baseline.get(name.as_str()) else {
            println!("{name}: not in {BASELINE}");
            is_within = false;
            continue;
        };
        let change = count / before - 1.0;
        if change > TOLERANCE {
            println!("{name}: {count} instructions, {:.1} % more than the {before} of {BASELINE}", change * 100.0);
            is_within = false;
        }
    }
    for of in ["kept", "new"] {
        let ratio = counts[&format!("rolegate, warm, {of}")] / counts[&format!("bare hyper, warm, {of}")];
        println!("rolegate / bare hyper, warm, {of}: {ratio:.2}");
    }
    is_within
}

/// Returns the words that run a program under callgrind.
fn callgrind(output: &Path) -> Vec<String> {
    let output = output.display();
    ["valgrind", "--tool=callgrind", "--quiet", &format!("--callgrind-out-file={output}.%p"), "--separate-threads=no"]
        .map(str::to_owned)
        .to_vec()
}

/// Sends requests one after the other, and reads each response.
fn send(address: SocketAddr, case: &Case, requests: u64) {
    let connect = || {
        let stream = TcpStream::connect(address).unwrap();
        stream.set_nodelay(true).unwrap();
        stream
    };
    let mut stream = connect();
    for number in 0..requests {
        if !case.kept && number > 0 {
            stream = connect();
        }
        stream.write_all(&case.request).unwrap();
        read_response(&mut stream);
    }
}

fn read_response(stream: &mut TcpStream) {
    let mut response = Vec::with_capacity(4096);
    let mut buffer = [0; 4096];
    loop {
        let count = stream.read(&mut buffer).unwrap();
        assert!(count > 0, "the connection ended: {}", String::from_utf8_lossy(&response));
        response.extend_from_slice(&buffer[..count]);
        let text = std::str::from_utf8(&response).unwrap();
        let Some((head, body)) = text.split_once("\r\n\r\n") else { continue };
        let length = head.lines().find_map(|line| line.to_ascii_lowercase().strip_prefix("content-length: ")?.parse::<usize>().ok());
        if length.unwrap_or_default() <= body.len() {
            return;
        }
    }
}

/// Reads the instructions of a process that runs under callgrind.
struct Counter<'a> {
    directory: &'a Path,
    pid: u32,
}

/// The instructions since the dump before.
struct Dump {
    total: u64,
    file: std::path::PathBuf,
}

impl Counter<'_> {
    fn dump(&self) -> Dump {
        let before = self.files();
        let output = Command::new("callgrind_control").args(["--dump", &self.pid.to_string()]).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        loop {
            if let Some(file) = self.files().into_iter().find(|file| !before.contains(file))
                && let Some(total) = total(&file)
            {
                break Dump { total, file };
            }
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
    }

    fn files(&self) -> Vec<std::path::PathBuf> {
        let mark = format!(".{}.", self.pid);
        let entries = fs::read_dir(self.directory).unwrap().map(|entry| entry.unwrap().path());
        entries.filter(|path| path.file_name().unwrap().to_str().unwrap().contains(&mark)).collect()
    }
}

/// Returns the number of instructions of a complete dump.
fn total(file: &Path) -> Option<u64> {
    let text = fs::read_to_string(file).ok()?;
    text.lines().rev().find_map(|line| line.strip_prefix("totals: "))?.trim().parse().ok()
}

/// Prints the functions with most instructions for each request.
fn print_functions(single: &Path, double: &Path) {
    let (single, double) = (functions(single), functions(double));
    let mut each: Vec<(f64, &String)> = double
        .iter()
        .map(|(name, count)| ((*count as f64 - single.get(name).copied().unwrap_or_default() as f64) / REQUESTS as f64, name))
        .collect();
    each.sort_by(|one, other| other.0.total_cmp(&one.0));
    // Functions that run forever are counted with everything that they call.
    let all = each.first().map_or(0.0, |(count, _)| *count);
    for (count, name) in each.into_iter().filter(|(count, _)| *count < 0.8 * all).take(SHOWN) {
        println!("    {count:>7.0}  {name}");
    }
}

fn functions(file: &Path) -> BTreeMap<String, u64> {
    let output = Command::new("callgrind_annotate").args(["--threshold=100", "--auto=no"]).arg(file).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let mut found = BTreeMap::new();
    for line in text.lines() {
        let Some((count, rest)) = line.trim_start().split_once(' ') else { continue };
        let Ok(count) = count.replace(',', "").parse::<u64>() else { continue };
        // The share in parentheses, the file and the function.
        let rest =
            rest.trim_start().trim_start_matches(|c: char| c == '(' || c == ')' || c == '%' || c == '.' || c.is_ascii_digit() || c == ' ');
        let Some((_, function)) = rest.split_once(':') else { continue };
        let function = function.split(" [").next().unwrap_or(function).trim();
        *found.entry(function.to_owned()).or_insert(0) += count;
    }
    found
}
