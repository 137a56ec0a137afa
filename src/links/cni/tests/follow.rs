//! Follows a directory as it changes.

use std::fmt::Display;
use std::fs;
use std::future::Future;
use std::io::Write as _;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, SystemTime};

use tempfile::TempDir;
use tokio::task::JoinHandle;

use super::super::directory::MAX_FILE;
use super::super::keep::RetryPauses;
use super::files::{self, Written, pod};
use super::{MAX_FILES, Results};
use crate::digest::Digest;
use crate::metrics::Metrics;

/// Time limit for a condition.
const LIMIT: Duration = Duration::from_secs(120);

struct Kept {
    results: Results,
    metrics: Metrics,
    root: TempDir,
    task: JoinHandle<()>,
}

impl Drop for Kept {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn begin(root: TempDir) -> Kept {
    begin_with(root, Duration::from_secs(3600))
}

/// Starts the keeper of `results` in this directory. Most tests rely on the kernel's events and set `compare` to practically
/// never.
fn begin_with(root: TempDir, compare: Duration) -> Kept {
    let (results, metrics) = (Results::none(), Metrics::new());
    let short = Duration::from_millis(5);
    // Rereading thousands of files takes longer than a short pause, so the keeper would do nothing else.
    let pauses = RetryPauses { retry: short, compare, replaced: short, full: Duration::from_secs(1) };
    let task = tokio::spawn(results.clone().keep_with(root.path().join("results"), metrics.clone(), pauses));
    Kept { results, metrics, root, task }
}

fn root() -> TempDir {
    let root = TempDir::new().unwrap();
    fs::create_dir(root.path().join("results")).unwrap();
    root
}

fn write(dir: &Path, file: &Written) -> PathBuf {
    let path = dir.join(&file.name);
    fs::write(&path, &file.content).unwrap();
    path
}

/// Waits until a condition holds, checking it after each change.
async fn until(results: &Results, what: &str, holds: impl Fn(&Results) -> bool) {
    let mut changes = results.changes();
    let wait = async {
        while !holds(results) {
            changes.changed().await.unwrap();
        }
    };
    within(what, wait).await;
}

async fn within<T>(what: &str, wait: impl Future<Output = T>) -> T {
    tokio::time::timeout(LIMIT, wait).await.unwrap_or_else(|_| panic!("timed out waiting for {what}"))
}

fn pods(results: &Results, number: u32) -> Vec<Digest> {
    let [_, high, middle, low] = number.to_be_bytes();
    results.of([10, high, middle, low].into()).iter().map(|record| record.pod().name).collect()
}

/// Returns the digest of the pod with this number.
fn web(number: impl Display) -> Digest {
    Digest::of_pod("shop", &format!("web-{number}"))
}

fn has(results: &Results, number: u32) -> bool {
    pods(results, number) == [web(number)]
}

impl Kept {
    fn dir(&self) -> PathBuf {
        self.root.path().join("results")
    }

    fn write(&self, file: &Written) -> PathBuf {
        write(&self.dir(), file)
    }

    async fn until(&self, what: &str, holds: impl Fn(&Results) -> bool) {
        until(&self.results, what, holds).await;
    }

    /// Writes a file and waits for it, by which time earlier changes have been seen. Changes that arrive together are processed
    /// in order of name, and this name is the last.
    async fn settle(&self, number: u32) {
        let mut file = pod(number);
        file.name = file.name.replace("cbr0", "zz");
        file.content = file.content.replace("cbr0", "zz");
        self.write(&file);
        self.until("the last file", |results| has(results, number)).await;
    }

    fn gauge(&self, state: &str) -> usize {
        let text = String::from_utf8(self.metrics.render()).unwrap();
        let prefix = format!("rolegate_cni_result_files{{state=\"{state}\"}} ");
        text.lines().find_map(|line| line.strip_prefix(&prefix)).map_or(0, |count| count.parse().unwrap())
    }
}

#[tokio::test]
async fn files_are_read_and_followed() {
    let root = root();
    write(&root.path().join("results"), &pod(1));
    let kept = begin(root);
    kept.until("a file from before", |results| has(results, 1)).await;
    let path = kept.write(&pod(2));
    kept.until("a new file", |results| has(results, 2) && has(results, 1)).await;
    // In place, as libcni writes: the same container with another address.
    let mut again = pod(3);
    again.name = pod(2).name;
    again.content = again.content.replace("\"c3\"", "\"c2\"");
    kept.write(&again);
    kept.until("a rewritten file", |results| has(results, 3)).await;
    assert_eq!(pods(&kept.results, 2), []);
    fs::remove_file(path).unwrap();
    kept.until("a removed file", |results| results.count() == 1).await;
    // By renaming into the directory and out of it.
    let beside = write(kept.root.path(), &pod(4));
    fs::rename(&beside, kept.dir().join(pod(4).name)).unwrap();
    kept.until("a file that is moved in", |results| has(results, 4)).await;
    fs::rename(kept.dir().join(pod(4).name), &beside).unwrap();
    kept.until("a file that is moved out", |results| results.count() == 1).await;
    fs::rename(kept.dir().join(pod(1).name), kept.dir().join("cbr0-c1-eth0.bak")).unwrap();
    kept.until("a file that is renamed", |results| results.count() == 0).await;
    kept.settle(5).await;
    assert_eq!((kept.gauge("used"), kept.gauge("ignored")), (1, 1));
}

#[tokio::test]
async fn a_partial_file_is_ignored_until_it_is_complete() {
    let kept = begin(root());
    kept.settle(1).await;
    let file = pod(2);
    let (half, rest) = file.content.split_at(file.content.len() / 2);
    fs::write(kept.dir().join(&file.name), half).unwrap();
    kept.settle(3).await;
    assert_eq!((kept.results.count(), kept.gauge("ignored")), (2, 1));
    fs::OpenOptions::new().append(true).open(kept.dir().join(&file.name)).unwrap().write_all(rest.as_bytes()).unwrap();
    kept.until("the rest of the file", |results| has(results, 2)).await;
    // A complete file becomes incomplete.
    fs::write(kept.dir().join(&file.name), "").unwrap();
    kept.until("the file that was emptied", |results| results.count() == 2).await;
}

#[tokio::test]
async fn only_regular_files_are_read() {
    let root = root();
    let dir = root.path().join("results");
    let beside = root.path().to_owned();
    let outside = write(&beside, &pod(1));
    // Under names that are valid for results, before the start and after it.
    let place = |dir: &Path, first: u32| {
        let make = |number: u32| beside.join(format!("odd-{number}"));
        symlink(&outside, make(first)).unwrap();
        assert!(Command::new("mkfifo").arg(make(first + 1)).status().unwrap().success());
        fs::create_dir(make(first + 2)).unwrap();
        let huge = fs::File::create(make(first + 3)).unwrap();
        huge.set_len(MAX_FILE + 1).unwrap();
        for number in first..first + 4 {
            fs::rename(make(number), dir.join(pod(number).name)).unwrap();
        }
    };
    place(&dir, 1);
    for loopback in ["cni-loopback-c1-lo", "kubenet-loopback-c1-lo"] {
        fs::write(dir.join(loopback), "{}").unwrap();
    }
    write(&dir, &pod(8));
    let kept = begin(root);
    until(&kept.results, "the file among them", |results| has(results, 8)).await;
    assert_eq!((kept.gauge("used"), kept.gauge("ignored")), (1, 4));
    place(&dir, 11);
    write(&dir, &pod(9));
    until(&kept.results, "the file after them", |results| has(results, 9)).await;
    within("they are counted", async {
        while kept.gauge("ignored") != 8 {
            tokio::task::yield_now().await;
        }
    })
    .await;
    assert_eq!(kept.results.count(), 2);
}

#[tokio::test]
async fn a_directory_may_appear_disappear_and_reappear() {
    let kept = begin(TempDir::new().unwrap());
    assert_eq!(kept.results.count(), 0);
    for number in 1..4 {
        fs::create_dir(kept.dir()).unwrap();
        kept.write(&pod(number));
        kept.until("a directory that was made", |results| has(results, number)).await;
        fs::remove_dir_all(kept.dir()).unwrap();
        kept.until("a directory that was removed", |results| results.count() == 0).await;
    }
    // Another directory takes its place.
    fs::create_dir(kept.dir()).unwrap();
    kept.write(&pod(4));
    kept.until("the first directory", |results| has(results, 4)).await;
    let other = kept.root.path().join("other");
    fs::create_dir(&other).unwrap();
    write(&other, &pod(5));
    fs::rename(kept.dir(), kept.root.path().join("away")).unwrap();
    fs::rename(&other, kept.dir()).unwrap();
    kept.until("the second directory", |results| has(results, 5) && results.count() == 1).await;
    kept.write(&pod(6));
    kept.until("the second directory is followed", |results| has(results, 6)).await;
    // A regular file at the path is not a directory.
    fs::remove_dir_all(kept.dir()).unwrap();
    fs::write(kept.dir(), "").unwrap();
    kept.until("a file in its place", |results| results.count() == 0).await;
    fs::remove_file(kept.dir()).unwrap();
    fs::create_dir(kept.dir()).unwrap();
    kept.write(&pod(7));
    kept.until("a directory in its place", |results| has(results, 7)).await;
}

/// The parent directory is replaced, which the watch does not report.
#[tokio::test]
async fn a_replaced_parent_directory_is_found_by_comparison() {
    let root = TempDir::new().unwrap();
    for (name, number) in [("one", 1), ("two", 2)] {
        let dir = root.path().join(name).join("results");
        fs::create_dir_all(&dir).unwrap();
        write(&dir, &pod(number));
    }
    let link = root.path().join("cni");
    symlink(root.path().join("one"), &link).unwrap();
    let (results, short) = (Results::none(), Duration::from_millis(5));
    let pauses = RetryPauses { retry: short, compare: short, replaced: short, full: short };
    let task = tokio::spawn(results.clone().keep_with(link.join("results"), Metrics::new(), pauses));
    until(&results, "the first parent", |results| has(results, 1)).await;
    fs::remove_file(&link).unwrap();
    symlink(root.path().join("two"), &link).unwrap();
    until(&results, "the second parent", |results| has(results, 2) && results.count() == 1).await;
    task.abort();
}

#[tokio::test]
async fn of_too_many_files_the_last_written_ones_are_used() {
    let root = root();
    let dir = root.path().join("results");
    let begun = SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000);
    for number in 1..=5000 {
        let path = write(&dir, &pod(number));
        fs::File::options().write(true).open(path).unwrap().set_modified(begun + Duration::from_secs(u64::from(number))).unwrap();
    }
    // Files of the loopback network do not displace others, however many there are.
    for number in 0..1000 {
        fs::write(dir.join(format!("cni-loopback-c{number}-lo")), "{}").unwrap();
    }
    let kept = begin_with(root, Duration::from_millis(5));
    kept.until("all that there is room for", |results| results.count() == MAX_FILES).await;
    let first = 5000 - u32::try_from(MAX_FILES).unwrap() + 1;
    assert!(has(&kept.results, first) && has(&kept.results, 5000) && !has(&kept.results, first - 1));
    kept.write(&pod(6000));
    kept.until("a new file in the place of the oldest", |results| has(results, 6000)).await;
    assert!(!has(&kept.results, first) && has(&kept.results, first + 1));
    // When files are removed, those that were left out take their place.
    for number in 3000..=5000 {
        fs::remove_file(dir.join(pod(number).name)).unwrap();
    }
    kept.until("those that were left out", |results| results.count() == 3000 && has(results, 1)).await;
}

#[tokio::test]
async fn lost_events_are_compensated_for() {
    let limit = fs::read_to_string("/proc/sys/fs/inotify/max_queued_events").unwrap().trim().parse::<usize>().unwrap();
    if limit > 200_000 {
        eprintln!("SKIP: the kernel queues {limit} events");
        return;
    }
    let kept = begin(root());
    kept.settle(1).await;
    // The runtime has one thread, so the events are not read meanwhile. Alternating events of two files are not merged.
    let files = [pod(2), pod(3)].map(|file| kept.write(&file));
    for number in 0..limit + 8 {
        drop(fs::OpenOptions::new().append(true).open(&files[number % 2]).unwrap());
    }
    kept.write(&pod(4));
    fs::remove_file(&files[0]).unwrap();
    kept.until("a file whose event was lost", |results| has(results, 4) && results.count() == 3).await;
    assert!(has(&kept.results, 1) && has(&kept.results, 3));
}

#[tokio::test]
async fn only_relevant_changes_wake_readers() {
    let kept = begin(root());
    kept.settle(1).await;
    let (generation, changes) = (kept.results.generation(), kept.results.changes());
    assert_eq!(*changes.borrow(), generation);
    // An ignored file, its removal, and a rewrite with the same content do not count.
    let settled = pod(1).name.replace("cbr0", "zz");
    let content = fs::read(kept.dir().join(&settled)).unwrap();
    fs::write(kept.dir().join("ignored"), "{}").unwrap();
    fs::remove_file(kept.dir().join("ignored")).unwrap();
    kept.settle(2).await;
    assert_eq!(kept.results.generation(), generation + 1);
    let again = kept.dir().join(&settled);
    let modified = fs::metadata(&again).unwrap().modified().unwrap();
    let file = fs::File::options().write(true).open(&again).unwrap();
    (&file).write_all(&content).unwrap();
    file.set_modified(modified).unwrap();
    drop(file);
    kept.settle(3).await;
    assert_eq!(kept.results.generation(), generation + 2);
    assert!(changes.has_changed().unwrap());
}

/// A reader sees the old or the new content of a file while the directory changes, never a mixture.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_address_is_always_one_of_its_claimants() {
    let kept = begin(root());
    kept.settle(1).await;
    let file = |number: u32| {
        let mut file = pod(9);
        file.content = file.content.replace("web-9", &format!("web-{number}"));
        file
    };
    kept.write(&file(10));
    kept.until("the file", |results| results.count() == 2).await;
    for number in 11..60 {
        kept.write(&file(number));
        let last = web(number);
        within("the change", async {
            loop {
                let seen = pods(&kept.results, 9);
                assert!(seen.len() <= 1 && seen.iter().all(|pod| *pod == last || *pod == web(number - 1)), "{seen:?}");
                if seen == [last] {
                    break;
                }
                tokio::task::yield_now().await;
            }
        })
        .await;
    }
    assert_eq!(Digest::of_name(files::UID), kept.results.of([10, 0, 0, 9].into())[0].pod().uid.unwrap());
}
