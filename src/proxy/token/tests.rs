use std::fs::Permissions;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::Path;

use super::*;

fn uid(text: &str) -> PodUid {
    PodUid(text.into())
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

#[tokio::test(start_paused = true)]
async fn a_token_is_good_for_its_pod_its_address_and_its_time() {
    let clock = Clock::following_tokio("2026-01-01T00:00:00Z".parse().unwrap());
    let tokens = Tokens::new(clock.clone()).unwrap();
    let token = tokens.issue(&uid("a"), ip("10.0.0.1"), Duration::from_secs(60));
    assert_eq!(token.len(), 56);
    let valid = |token: &str, of: &str, at: &str| tokens.is_valid(token.as_bytes(), &uid(of), ip(at));
    assert!(valid(&token, "a", "10.0.0.1"));
    assert!(!valid(&token, "b", "10.0.0.1"), "another pod");
    assert!(!valid(&token, "a", "10.0.0.2"), "another address");
    assert!(!Tokens::new(clock).unwrap().is_valid(token.as_bytes(), &uid("a"), ip("10.0.0.1")), "another key");
    tokio::time::advance(Duration::from_secs(59)).await;
    assert!(valid(&token, "a", "10.0.0.1"));
    tokio::time::advance(Duration::from_secs(1)).await;
    assert!(!valid(&token, "a", "10.0.0.1"), "expired");
}

#[tokio::test]
async fn a_changed_token_is_nothing() {
    let tokens = Tokens::new(Clock::system()).unwrap();
    let token = tokens.issue(&uid("a"), ip("10.0.0.1"), Duration::from_secs(60));
    for at in 0..token.len() {
        let mut changed = token.clone().into_bytes();
        changed[at] = if changed[at] == b'A' { b'B' } else { b'A' };
        assert!(!tokens.is_valid(&changed, &uid("a"), ip("10.0.0.1")), "byte {at}");
    }
    for strange in [String::new(), "A".repeat(56), token[..55].to_owned(), format!("{token}A"), format!("{token}="), "\u{0}".repeat(56)] {
        assert!(!tokens.is_valid(strange.as_bytes(), &uid("a"), ip("10.0.0.1")), "{strange:?}");
    }
}

fn at(seconds: i64) -> Clock {
    Clock::following_tokio(Timestamp::from_second(1_800_000_000 + seconds).unwrap())
}

/// A daemon's tokens, as it has them after its start.
fn started(path: &Path, clock: Clock) -> Tokens {
    let tokens = Tokens::new(clock).unwrap();
    tokens.sync(&KeyFile::new(path.to_owned())).unwrap();
    tokens
}

fn knows(tokens: &Tokens, token: &str) -> bool {
    tokens.is_valid(token.as_bytes(), &uid("a"), ip("10.0.0.1"))
}

fn token_of(tokens: &Tokens) -> String {
    tokens.issue(&uid("a"), ip("10.0.0.1"), Duration::from_secs(21_600))
}

#[tokio::test(start_paused = true)]
async fn a_daemon_that_starts_anew_knows_the_tokens_that_are_out() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("below/keys");
    let token = token_of(&started(&path, at(0)));
    assert!(knows(&started(&path, at(1)), &token));
    let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode(&path), mode(path.parent().unwrap())), (0o600, 0o700));
    assert!(!knows(&started(&directory.path().join("other"), at(1)), &token));
}

#[tokio::test(start_paused = true)]
async fn daemons_that_share_the_file_know_each_others_tokens_as_keys_change() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("keys");
    let (one, other) = (started(&path, at(0)), started(&path, at(0)));
    let _kept = [tokio::spawn(one.clone().keep(KeyFile::new(path.clone()))), tokio::spawn(other.clone().keep(KeyFile::new(path.clone())))];
    let mut used = std::collections::BTreeSet::new();
    for day in 0..3 {
        tokio::time::advance(Duration::from_secs((24 * 60 - 20) * 60)).await;
        for minute in 0..40 {
            let (token, of_other) = (token_of(&one), token_of(&other));
            assert!(knows(&other, &token) && knows(&one, &of_other), "day {day}, minute {minute}");
            used.insert(one.keys().in_use(one.clock.now()).id());
            // The next look at the file, whose thread the paused clock waits for.
            tokio::time::sleep(Duration::from_secs(60)).await;
        }
    }
    assert!(used.len() >= 3, "{used:?}");
}

#[tokio::test(start_paused = true)]
async fn a_token_lives_as_long_as_it_was_told_to_through_a_change_of_keys() {
    let directory = tempfile::tempdir().unwrap();
    let file = KeyFile::new(directory.path().join("keys"));
    let tokens = Tokens::new(at(0)).unwrap();
    tokens.sync(&file).unwrap();
    // Made with the old key at the last moment.
    tokio::time::advance(Duration::from_secs(24 * 3600)).await;
    tokens.sync(&file).unwrap();
    tokio::time::advance(Duration::from_secs(299)).await;
    let token = token_of(&tokens);
    for _ in 0..6 * 60 - 1 {
        tokio::time::advance(Duration::from_secs(60)).await;
        tokens.sync(&file).unwrap();
        assert!(knows(&tokens, &token));
    }
    tokio::time::advance(Duration::from_secs(61)).await;
    assert!(!knows(&tokens, &token));
}

#[tokio::test(start_paused = true)]
async fn a_file_that_others_could_read_or_write_is_not_used() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("keys");
    let elsewhere = directory.path().join("elsewhere");
    type Expose<'a> = (&'a str, Box<dyn Fn() + 'a>);
    let ways: [Expose<'_>; 4] = [
        ("readable for a group", Box::new(|| std::fs::set_permissions(&path, Permissions::from_mode(0o640)).unwrap())),
        ("writable for all", Box::new(|| std::fs::set_permissions(&path, Permissions::from_mode(0o602)).unwrap())),
        (
            "a link to it",
            Box::new(|| {
                std::fs::rename(&path, &elsewhere).unwrap();
                symlink(&elsewhere, &path).unwrap();
            }),
        ),
        (
            "another name of it",
            Box::new(|| {
                let _ = std::fs::remove_file(&elsewhere);
                std::fs::hard_link(&path, &elsewhere).unwrap();
            }),
        ),
    ];
    for (way, expose) in ways {
        let tokens = started(&path, at(0));
        let token = token_of(&tokens);
        expose();
        let again = started(&path, at(1));
        assert!(!knows(&again, &token), "{way}");
        tokens.sync(&KeyFile::new(path.clone())).unwrap();
        assert!(!knows(&tokens, &token), "{way}: also the daemon that made it lets go");
        assert_eq!(std::fs::symlink_metadata(&path).unwrap().permissions().mode() & 0o777, 0o600, "{way}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_damaged_or_missing_file_is_written_again_with_the_keys_in_use() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("keys");
    let tokens = started(&path, at(0));
    let token = token_of(&tokens);
    let before = std::fs::read(&path).unwrap();
    for _ in 0..2 {
        std::fs::write(&path, &before[..before.len() / 2]).unwrap();
        tokens.sync(&KeyFile::new(path.clone())).unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), before);
        std::fs::remove_file(&path).unwrap();
        tokens.sync(&KeyFile::new(path.clone())).unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), before);
    }
    assert!(knows(&tokens, &token));
    assert!(knows(&started(&path, at(1)), &token));
}

#[tokio::test(start_paused = true)]
async fn keys_stay_where_no_file_can_be_and_the_error_says_what_to_do() {
    let directory = tempfile::tempdir().unwrap();
    let blocked = directory.path().join("a-file");
    std::fs::write(&blocked, "").unwrap();
    let tokens = Tokens::new(at(0)).unwrap();
    let token = token_of(&tokens);
    let error = tokens.sync(&KeyFile::new(blocked.join("keys"))).unwrap_err();
    assert!(matches!(&error, KeyFileError::Io { source, .. } if source.kind() == std::io::ErrorKind::AlreadyExists), "{error:?}");
    assert!(error.with_advice().contains("--token-key-file"), "{error}");
    assert!(knows(&tokens, &token));
}

#[tokio::test(start_paused = true)]
async fn a_lock_that_is_never_let_go_is_not_waited_for() {
    let directory = tempfile::tempdir().unwrap();
    let held = std::fs::File::create(directory.path().join("keys.lock")).unwrap();
    held.lock().unwrap();
    let error = Tokens::new(at(0)).unwrap().sync(&KeyFile::new(directory.path().join("keys"))).unwrap_err();
    assert!(error.to_string().contains("cannot lock"), "{error}");
}

#[tokio::test(start_paused = true)]
async fn a_pipe_in_the_files_place_is_not_waited_for() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("keys");
    let pipe = |path: &Path| assert!(std::process::Command::new("mkfifo").arg(path).status().unwrap().success());
    pipe(&path);
    let token = token_of(&started(&path, at(0)));
    assert!(std::fs::symlink_metadata(&path).unwrap().is_file(), "it is made anew");
    assert!(knows(&started(&path, at(1)), &token));
    let other = directory.path().join("other");
    pipe(&directory.path().join("other.lock"));
    assert!(Tokens::new(at(0)).unwrap().sync(&KeyFile::new(other)).is_err());
}

#[test]
fn a_token_of_another_form_is_nothing() {
    let tokens = Tokens::new(Clock::system()).unwrap();
    let token = token_of(&tokens);
    let mut bytes = URL_SAFE_NO_PAD.decode(&token).unwrap();
    bytes[0] = 2;
    let mac = hmac::sign(tokens.keys().by_id(0).unwrap().signing_key(), &message(&bytes[..MAC_AT], &uid("a"), ip("10.0.0.1")));
    bytes[MAC_AT..].copy_from_slice(mac.as_ref());
    assert!(!knows(&tokens, &URL_SAFE_NO_PAD.encode(bytes)));
}
