//! The compiled BPF programs are what their sources compile to.

use std::fs;
use std::path::Path;
use std::process::Command;

use rolegate_lab::node::{programs_or_skip, skip};

/// The compiler that the committed objects are made with: that of Debian 12.
const COMPILER: &str = "clang version 14.";

#[test]
fn committed_objects_are_what_the_sources_compile_to() {
    if !programs_or_skip(&["clang", "llvm-strip"]) {
        return;
    }
    let version = |program: &str| {
        let output = Command::new(program).arg("--version").output();
        output.is_ok_and(|output| String::from_utf8_lossy(&output.stdout).contains(COMPILER))
    };
    if !version("clang-14") && !version("clang") {
        return skip(format!("the committed objects are made with {COMPILER}x"));
    }
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let compiled = tempfile::tempdir().unwrap();
    let output = Command::new(root.join("scripts/build-bpf")).arg(compiled.path()).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    for name in ["programs.o", "network.o"] {
        let committed = fs::read(root.join("src/redirect/bpf").join(name)).unwrap();
        let compiled = fs::read(compiled.path().join(name)).unwrap();
        assert!(committed == compiled, "{name} is not what its source compiles to: run scripts/build-bpf and commit it");
    }
}
