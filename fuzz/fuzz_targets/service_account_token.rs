//! Fuzzes service account tokens. See `checks::service_account_token`.
#![no_main]

#[path = "../checks/mod.rs"]
mod checks;

libfuzzer_sys::fuzz_target!(|data: &[u8]| checks::service_account_token::check(data));
