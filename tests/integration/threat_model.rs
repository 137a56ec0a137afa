//! Checks that each attack in the threat model names tests, and that these tests exist.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

const PAGE: &str = "docs/threat-model.md";

/// Returns the names of all test functions below a directory.
fn tests_below(directory: &Path, found: &mut BTreeSet<String>) {
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            tests_below(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let source = fs::read_to_string(&path).unwrap();
            let mut is_test = false;
            for line in source.lines().map(str::trim) {
                is_test |= line.starts_with("#[test]") || line.starts_with("#[tokio::test");
                if let Some((_, rest)) = line.split_once("fn ").filter(|_| is_test) {
                    found.extend(rest.split_once(['(', '<']).map(|(name, _)| name.to_owned()));
                    is_test = false;
                }
            }
        }
    }
}

#[test]
fn each_attack_names_tests_that_exist() {
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    let mut tests = BTreeSet::new();
    for directory in ["src", "tests"] {
        tests_below(&root.join(directory), &mut tests);
    }
    let page = fs::read_to_string(root.join(PAGE)).unwrap();
    // The tables of attacks follow the headings of the assets and the attackers. Their last column names tests, as code.
    let (_, tables) = page.split_once("\n## Requests\n").unwrap();
    let rows = tables.lines().filter(|line| line.starts_with("| ") && !line.starts_with("| Attack |"));
    let mut attacks = 0;
    for row in rows {
        let cells: Vec<_> = row.trim_matches('|').split(" | ").map(str::trim).collect();
        let [attack, _, named] = cells.as_slice() else { panic!("{PAGE}: not three columns: {row}") };
        attacks += 1;
        for name in named.split(", ") {
            let name =
                name.strip_prefix('`').and_then(|name| name.strip_suffix('`')).unwrap_or_else(|| panic!("{PAGE}: {attack}: {name:?}"));
            assert!(tests.contains(name), "{PAGE}: {attack}: there is no test {name}");
        }
    }
    assert!(attacks > 30, "only {attacks} attacks have tests");
}
