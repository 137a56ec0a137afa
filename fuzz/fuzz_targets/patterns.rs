//! Fuzzes globs and regular expressions. See `checks::pattern`.
#![no_main]

#[path = "../checks/mod.rs"]
mod checks;

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let [pattern, text] = checks::fields(data);
    let (Ok(pattern), Ok(text)) = (str::from_utf8(pattern), str::from_utf8(text)) else { return };
    for regexp in [false, true] {
        checks::pattern(regexp, pattern, text);
        checks::pattern(regexp, pattern, &format!("{}{text}", checks::BASE));
    }
});
