//! Fuzzes methods, targets and headers. See `checks::route`.
#![no_main]

#[path = "../checks/mod.rs"]
mod checks;

use http::Version;

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let [method, target, host, rest] = checks::fields(data);
    let mut headers: Vec<(&[u8], &[u8])> = rest
        .split(|byte| *byte == b'\n')
        .filter_map(|line| {
            let at = line.iter().position(|byte| *byte == b':')?;
            Some((&line[..at], line[at + 1..].trim_ascii()))
        })
        .collect();
    for version in [Version::HTTP_10, Version::HTTP_11] {
        checks::route(method, target, &headers, version);
    }
    headers.push((b"host", host));
    checks::route(method, target, &headers, Version::HTTP_11);
});
