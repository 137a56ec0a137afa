//! Checks that each row in the tables of the threat model and of the failures names tests, and that these tests exist.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

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

/// Adds the names of the checks of the suites on a real cluster.
fn checks_of_suites(directory: &Path, found: &mut BTreeSet<String>) {
    for entry in fs::read_dir(directory).unwrap() {
        let source = fs::read_to_string(entry.unwrap().path()).unwrap();
        let functions = source.lines().filter_map(|line| line.strip_prefix("def ")?.split_once('(')).map(|(name, _)| name);
        // A suite gives its checks to `main`, one on each line.
        let is_check = |name: &&str| source.lines().any(|line| line.trim() == format!("{name},"));
        found.extend(functions.filter(is_check).map(str::to_owned));
    }
}

/// Checks the rows after `heading`: three or more columns, of which the last names tests, as code. Returns how many rows there are.
fn rows_with_tests(page: &str, heading: &str) -> usize {
    let mut tests = BTreeSet::new();
    for directory in ["src", "tests"] {
        tests_below(&root().join(directory), &mut tests);
    }
    checks_of_suites(&root().join("tests/cluster/suites"), &mut tests);
    let text = fs::read_to_string(root().join(page)).unwrap();
    let (_, tables) = text.split_once(heading).unwrap();
    let rows: Vec<_> = tables.lines().filter(|line| line.starts_with("| ") && !line.ends_with("| Tests |")).collect();
    for row in &rows {
        let cells: Vec<_> = row.trim_matches('|').split(" | ").map(str::trim).collect();
        let (Some(first), Some(named), true) = (cells.first(), cells.last(), cells.len() >= 3) else { panic!("{page}: {row}") };
        for name in named.split(", ") {
            let name =
                name.strip_prefix('`').and_then(|name| name.strip_suffix('`')).unwrap_or_else(|| panic!("{page}: {first}: {name:?}"));
            assert!(tests.contains(name), "{page}: {first}: there is no test {name}");
        }
    }
    rows.len()
}

#[test]
fn each_attack_names_tests_that_exist() {
    // The tables before are those of the assets and the attackers.
    let attacks = rows_with_tests("docs/threat-model.md", "\n## Requests\n");
    assert!(attacks > 30, "only {attacks} attacks have tests");
}

#[test]
fn each_failure_names_tests_that_exist() {
    let failures = rows_with_tests("docs/failures.md", "\n## The daemon\n");
    assert!(failures > 15, "only {failures} failures have tests");
}
