#![allow(clippy::unwrap_used, reason = "a test says loudly what failed")]
use super::*;

#[test]
fn an_annotation_is_compiled_once_and_the_cache_is_bounded() {
    let kept = PatternCache::default();
    let compile = |text: &str| Patterns::of_list(PatternFormat::Glob, None, text);
    let first = kept.get("[\"web\"]", compile);
    let again = kept.get("[\"web\"]", |_| panic!("it is cached"));
    assert!(Arc::ptr_eq(&first, &again));
    let bad = kept.get("web", compile);
    assert!(Arc::ptr_eq(&bad, &kept.get("web", |_| panic!("it is cached"))));
    for number in 0..3 * MAX_KEPT {
        kept.get(&format!("[\"web-{number}\"]"), compile);
    }
    assert!(kept.0.lock().unwrap().of.len() <= MAX_KEPT);
    // Annotations that are too large are not cached.
    let large = "x".repeat(1024 * 1024);
    kept.get(&large, compile);
    assert!(kept.0.lock().unwrap().of.keys().all(|text| text.len() <= super::super::patterns::MAX_TEXT));
}

/// More namespaces than fit in the cache pass through it. Annotations that are used in between stay cached.
#[test]
fn annotations_in_use_stay_cached_while_others_pass_through() {
    let kept = PatternCache::default();
    let compile = |text: &str| Patterns::of_list(PatternFormat::Glob, None, text);
    let busy: Vec<_> = (0..MAX_KEPT / 2).map(|number| format!("[\"busy-{number}\"]")).collect();
    for text in &busy {
        kept.get(text, compile);
    }
    for number in 0..4 * MAX_KEPT {
        kept.get(&format!("[\"passing-{number}\"]"), compile);
        let text = &busy[number % busy.len()];
        kept.get(text, |_| panic!("{text} is cached"));
    }
    assert_eq!(kept.0.lock().unwrap().of.len(), MAX_KEPT, "no more is evicted than necessary");
}
