//! Fuzzes the annotations of pods and namespaces through the policy. See `checks::annotations`.
#![no_main]

#[path = "../checks/mod.rs"]
mod checks;

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let Some((switches, data)) = data.split_first() else { return };
    let texts: [&[u8]; 5] = checks::fields(data);
    if texts.iter().any(|text| str::from_utf8(text).is_err()) {
        return;
    }
    // One bit for each annotation that is present.
    let text = |at: usize| (switches & 1 << at == 0).then(|| str::from_utf8(texts[at]).unwrap_or_default());
    checks::annotations(&checks::Written {
        role: text(0),
        external_id: text(1),
        session_name: text(2),
        allowed_roles: text(3),
        permitted: text(4),
        regexp: switches & 1 << 5 != 0,
    });
});
