//! Fuzzes the Host header. See `checks::host`.
#![no_main]

#[path = "../checks/mod.rs"]
mod checks;

libfuzzer_sys::fuzz_target!(|value: &[u8]| checks::host(value));
