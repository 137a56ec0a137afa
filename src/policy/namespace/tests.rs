#![allow(clippy::unwrap_used, reason = "a test says loudly what failed")]
use super::*;

#[test]
fn an_annotation_is_compiled_once_and_what_is_kept_is_bounded() {
    let kept = PatternCache::default();
    let compile = |text: &str| Patterns::of_list(PatternFormat::Glob, None, text);
    let first = kept.get("[\"web\"]", compile);
    let again = kept.get("[\"web\"]", |_| panic!("it is known"));
    assert!(Arc::ptr_eq(&first, &again));
    let bad = kept.get("web", compile);
    assert!(Arc::ptr_eq(&bad, &kept.get("web", |_| panic!("it is known"))));
    for number in 0..3 * MAX_KEPT {
        kept.get(&format!("[\"web-{number}\"]"), compile);
    }
    assert!(kept.0.lock().unwrap().of.len() <= MAX_KEPT);
    // Of what is too large nothing is kept.
    let large = "x".repeat(1024 * 1024);
    kept.get(&large, compile);
    assert!(kept.0.lock().unwrap().of.keys().all(|text| text.len() <= super::super::patterns::MAX_TEXT));
}

/// Other namespaces than are kept come by, one after another: those that are asked for between stay.
#[test]
fn what_is_asked_for_stays_however_many_others_come_by() {
    let kept = PatternCache::default();
    let compile = |text: &str| Patterns::of_list(PatternFormat::Glob, None, text);
    let busy: Vec<_> = (0..MAX_KEPT / 2).map(|number| format!("[\"busy-{number}\"]")).collect();
    for text in &busy {
        kept.get(text, compile);
    }
    for number in 0..4 * MAX_KEPT {
        kept.get(&format!("[\"passing-{number}\"]"), compile);
        let text = &busy[number % busy.len()];
        kept.get(text, |_| panic!("{text} is known"));
    }
    assert_eq!(kept.0.lock().unwrap().of.len(), MAX_KEPT, "no more is forgotten than there must be");
}
