//! Fuzzes role ARNs. See `checks::arn`.
#![no_main]

#[path = "../checks/mod.rs"]
mod checks;

libfuzzer_sys::fuzz_target!(|text: &str| checks::arn(text));
