//! The limits of namespaces on the roles of their pods: kube2iam's list and kiam's regular expression. A role needs to match
//! only one of them. A malformed one allows nothing, whatever the other says.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use super::denial::{Denial, NamespaceList};
use super::patterns::{Mistake, Patterns};
use super::trace::{Trace, What};
use crate::config::PatternFormat;
use crate::pods::Namespace;
use crate::role::{BaseArn, RoleArn};
use crate::text::quoted;

/// The maximum number of compiled annotations that are kept. The least recently used one is evicted.
const MAX_KEPT: usize = 64;

/// The annotations of namespaces, each compiled once.
#[derive(Debug)]
pub(super) struct Namespaces {
    format: PatternFormat,
    base: Option<BaseArn>,
    lists: PatternCache,
    expressions: PatternCache,
}

/// The compiled annotations by their text. The cache affects only the speed of a decision, never its result.
#[derive(Debug, Default)]
struct PatternCache(Mutex<CompiledPatterns>);

#[derive(Debug, Default)]
struct CompiledPatterns {
    of: HashMap<Box<str>, (Compiled, u64)>,
    /// Counts lookups, to determine the least recently used entry.
    asked: u64,
}

type Compiled = Arc<Result<Patterns, Mistake>>;

impl CompiledPatterns {
    fn find(&mut self, text: &str) -> Option<Compiled> {
        self.asked += 1;
        let (compiled, asked) = self.of.get_mut(text)?;
        *asked = self.asked;
        Some(compiled.clone())
    }

    fn keep(&mut self, text: &str, compiled: Compiled) {
        if self.of.len() >= MAX_KEPT && !self.of.contains_key(text) {
            let oldest = self.of.iter().min_by_key(|(_, (_, asked))| *asked).map(|(text, _)| text.clone());
            oldest.and_then(|oldest| self.of.remove(&oldest));
        }
        self.of.insert(text.into(), (compiled, self.asked));
    }
}

impl PatternCache {
    fn get(&self, text: &str, compile: impl FnOnce(&str) -> Result<Patterns, Mistake>) -> Compiled {
        let kept = || self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(compiled) = kept().find(text) {
            return compiled;
        }
        // Compiled outside the lock, so that an expression that takes long to compile does not block others.
        let compiled = Arc::new(compile(text));
        if !matches!(*compiled, Err(Mistake::TooLarge)) {
            kept().keep(text, compiled.clone());
        }
        compiled
    }
}

impl Namespaces {
    pub(super) fn new(format: PatternFormat, base: Option<BaseArn>) -> Self {
        Self { format, base, lists: PatternCache::default(), expressions: PatternCache::default() }
    }

    pub(super) fn check(&self, role: &RoleArn, namespace: Option<&Namespace>, trace: &mut impl Trace) -> Result<(), Denial> {
        let Some(namespace) = namespace else {
            return trace.check(What::Namespace, || "the pod's namespace".to_owned(), Err(Denial::NamespaceUnknown), |()| String::new());
        };
        let base = self.base.as_ref().map(BaseArn::as_str);
        let list = namespace.allowed_roles.as_deref();
        let list = list.map(|text| self.lists.get(text, |text| Patterns::of_list(self.format, base, text)));
        let expression = namespace.permitted.as_deref().map(|text| self.expressions.get(text, Patterns::of_expression));
        // Both are checked, so that a malformed one is always reported.
        let by_list = Self::ask(role, namespace, NamespaceList::Allowed, list.as_deref(), trace)?;
        let by_expression = Self::ask(role, namespace, NamespaceList::Permitted, expression.as_deref(), trace)?;
        let result = match (by_list, by_expression) {
            (Some(true), _) | (_, Some(true)) => return Ok(()),
            (None, None) => Err(Denial::NamespaceHasNoList),
            _ => Err(Denial::NotAllowedInNamespace),
        };
        trace.check(What::Namespace, || format!("namespace {}", namespace.name), result, |()| String::new())
    }

    /// Whether this annotation allows the role; `None` if it is not set.
    fn ask(
        role: &RoleArn,
        namespace: &Namespace,
        which: NamespaceList,
        compiled: Option<&Result<Patterns, Mistake>>,
        trace: &mut impl Trace,
    ) -> Result<Option<bool>, Denial> {
        let key = if which == NamespaceList::Allowed { "allowed-roles" } else { "permitted" };
        let source = || format!("the {key} annotation of namespace {}", namespace.name);
        let patterns = match compiled {
            None => {
                trace.skip(What::Namespace, source, || "not set".to_owned());
                return Ok(None);
            }
            Some(Err(mistake)) => {
                let denial = Denial::BadNamespaceList(which, *mistake);
                return trace.check(What::Namespace, source, Err(denial), |_| String::new());
            }
            Some(Ok(patterns)) => patterns,
        };
        match patterns.find(role.as_str()) {
            Some(pattern) => trace.check(What::Namespace, source, Ok(Some(true)), |_| format!("{} matches", quoted(pattern))),
            None => {
                trace.skip(What::Namespace, source, || format!("none of its {} patterns matches the role", patterns.count()));
                Ok(Some(false))
            }
        }
    }
}

#[cfg(test)]
mod tests;
