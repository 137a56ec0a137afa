#![allow(clippy::unwrap_used, reason = "a test says loudly what failed")]

use std::error::Error as _;

use super::*;

fn failed(program: &'static str, message: &str) -> RedirectError {
    RedirectError::Failed { program, message: message.to_owned() }
}

const DENIED: &str = "Operation not permitted (you must be root)";

#[test]
fn missing_rights_are_advised_once_for_both_backends() {
    let rights = missing_right(nix::unistd::geteuid().is_root());
    let both = RedirectError::NoBackend { nftables: Box::new(failed("nft", DENIED)), iptables: Box::new(failed("iptables", DENIED)) };
    let text = both.with_advice();
    assert_eq!(text.matches(rights).count(), 1, "{text}");
    let differ = RedirectError::NoBackend { nftables: Box::new(failed("nft", DENIED)), iptables: Box::new(no_program()) };
    let advice = differ.advice().unwrap();
    assert!(advice.contains(rights) && advice.contains("--redirect=none"), "{advice}");
}

fn no_program() -> RedirectError {
    RedirectError::Program { program: "iptables", source: io::ErrorKind::NotFound.into() }
}

#[test]
fn only_a_process_that_is_not_root_is_advised_to_run_as_root() {
    assert!(missing_right(false).contains("runAsUser: 0") && !missing_right(true).contains("runAsUser"));
    assert!(missing_right(false).contains("NET_ADMIN") && missing_right(true).contains("NET_ADMIN"));
}

#[test]
fn missing_rights_are_not_blamed_for_other_failures() {
    let kept = RedirectError::NotKept { program: "iptables-restore", attempts: 5, differences: "x".to_owned() };
    let back = RedirectError::CameBack { program: "iptables-restore", attempts: 5 };
    let name = RedirectError::InterfaceName { program: "nft", name: "a\"b".to_owned() };
    for error in [failed("nft", "syntax error"), kept, back, name] {
        let text = error.with_advice();
        assert!(!text.contains("NET_ADMIN") && !text.contains("runAsUser"), "{text}");
    }
}

#[test]
fn an_ipv6_error_keeps_its_source_and_its_advice() {
    let error = RedirectError::Ipv6(Box::new(no_program()));
    assert!(error.source().is_some_and(|source| source.source().is_some()));
    let advice = error.advice().unwrap();
    assert!(advice.starts_with(&*no_program().advice().unwrap()) && advice.contains("ipv6.disable=1"), "{advice}");
}
