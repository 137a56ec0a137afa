//! Which failures are news: those that nothing of the same resource has now. Selections of one resource fail together, and try
//! again for as long as they do.

use std::collections::{HashMap, HashSet};
use std::mem::{Discriminant, discriminant};
use std::sync::{Mutex, PoisonError};

use super::failure::RequestFailure;

/// What failures are told apart by. The texts of what the API answers name single objects; that it cannot be reached has many
/// causes, which nothing else tells apart.
type Kind = (Discriminant<RequestFailure>, Option<u16>, Option<String>);

fn kind(failure: &RequestFailure) -> Kind {
    let text = matches!(failure, RequestFailure::Unreachable(_)).then(|| failure.to_string());
    (discriminant(failure), failure.code(), text)
}

/// How many selections of a resource fail in a way now.
#[derive(Debug, Default)]
pub(crate) struct Complaints(Mutex<HashMap<(&'static str, Kind), usize>>);

impl Complaints {
    /// Those of one selection, for as long as it is followed.
    pub(crate) fn of(&self, resource: &'static str) -> Complaining<'_> {
        Complaining { all: self, resource, now: HashSet::new() }
    }
}

/// How one selection fails, since it worked last.
#[derive(Debug)]
pub(crate) struct Complaining<'a> {
    all: &'a Complaints,
    resource: &'static str,
    now: HashSet<Kind>,
}

impl Complaining<'_> {
    /// Whether nothing of the resource fails in this way by now. From then on something does.
    pub(crate) fn is_news(&mut self, failure: &RequestFailure) -> bool {
        let kind = kind(failure);
        if !self.now.insert(kind.clone()) {
            return false;
        }
        let mut all = self.all.0.lock().unwrap_or_else(PoisonError::into_inner);
        let count = all.entry((self.resource, kind)).or_default();
        *count += 1;
        *count == 1
    }

    /// The selection works.
    pub(crate) fn worked(&mut self) {
        let mut all = self.all.0.lock().unwrap_or_else(PoisonError::into_inner);
        for kind in self.now.drain() {
            let key = (self.resource, kind);
            if let Some(count) = all.get_mut(&key) {
                *count -= 1;
                if *count == 0 {
                    all.remove(&key);
                }
            }
        }
    }
}

impl Drop for Complaining<'_> {
    fn drop(&mut self) {
        self.worked();
    }
}

#[cfg(test)]
mod tests {
    use super::super::failure::Status;
    use super::*;

    #[test]
    fn a_resources_failure_is_news_once_and_again_after_all_of_it_worked() {
        let all = Complaints::default();
        let refused = |name: &str| {
            let body = format!(r#"{{"message":"{name} may not be read"}}"#);
            RequestFailure::Status(Status::of_answer(403, body.as_bytes()))
        };
        let (mut a, mut b, mut pods) = (all.of("serviceaccounts"), all.of("serviceaccounts"), all.of("pods"));
        assert!(a.is_news(&refused("a")));
        assert!(!a.is_news(&refused("a")) && !b.is_news(&refused("b")));
        assert!(pods.is_news(&refused("pods")), "another resource");
        assert!(b.is_news(&RequestFailure::Silent) && !a.is_news(&RequestFailure::Silent), "another failure");
        assert!(a.is_news(&RequestFailure::Status(Status::of_answer(503, b""))), "another answer");
        let unreachable = |why: &str| RequestFailure::Unreachable(why.to_owned());
        assert!(a.is_news(&unreachable("reset")) && a.is_news(&unreachable("another CA")) && !b.is_news(&unreachable("reset")));
        a.worked();
        assert!(!a.is_news(&refused("a")), "the other still fails");
        a.worked();
        drop(b);
        assert!(a.is_news(&refused("a")));
        drop((a, pods));
        assert!(all.0.lock().unwrap().is_empty());
    }
}
