#![allow(clippy::unwrap_used, reason = "a test says loudly what failed")]
use super::*;

#[test]
fn an_annotation_is_compiled_once_and_what_is_kept_is_bounded() {
    let kept = Kept::default();
    let compile = |text: &str| Patterns::of_list(PatternFormat::Glob, None, text);
    let first = kept.get("[\"web\"]", compile);
    let again = kept.get("[\"web\"]", |_| panic!("it is known"));
    assert!(Arc::ptr_eq(&first, &again));
    let bad = kept.get("web", compile);
    assert!(Arc::ptr_eq(&bad, &kept.get("web", |_| panic!("it is known"))));
    for number in 0..3 * MAX_KEPT {
        kept.get(&format!("[\"web-{number}\"]"), compile);
    }
    assert!(kept.0.lock().unwrap().len() <= MAX_KEPT);
    // Of what is too large nothing is kept.
    let large = "x".repeat(1024 * 1024);
    kept.get(&large, compile);
    assert!(kept.0.lock().unwrap().keys().all(|text| text.len() <= super::super::patterns::MAX_TEXT));
}
