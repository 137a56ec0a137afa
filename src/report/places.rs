//! A bounded number of workloads, each with a value. When all places are taken, the namespace with the most workloads gives up its
//! oldest one, see [`Shares`].

use std::collections::HashMap;

use super::workload::Workload;
use crate::shares::Shares;

/// Workloads with a value.
pub(super) const MAX_WORKLOADS: usize = 1024;

/// The values by workload.
#[derive(Debug)]
pub(super) struct Places<V> {
    held: Shares<Box<str>, Workload, V>,
    ids: HashMap<Workload, u64>,
    next: u64,
}

/// The value of a workload, and the one that gave up its place for it, if any.
pub(super) struct Entered<'a, V> {
    pub(super) value: &'a mut V,
    pub(super) displaced: Option<V>,
}

impl<V> Default for Places<V> {
    fn default() -> Self {
        Self { held: Shares::new(MAX_WORKLOADS, 1), ids: HashMap::new(), next: 0 }
    }
}

impl<V: Clone + Default> Places<V> {
    /// Returns the value of a workload. Gives the workload a place if it has none; `None` if there is none for it.
    pub(super) fn enter(&mut self, workload: Workload) -> Option<Entered<'_, V>> {
        let (id, displaced) = match self.ids.get(&workload) {
            Some(id) => (*id, None),
            None => {
                let id = self.next;
                let displaced = self.held.enter(id, workload.namespace.clone(), workload.clone(), V::default()).ok()?;
                self.next += 1;
                self.ids.insert(workload, id);
                let displaced = displaced.map(|displaced| {
                    self.ids.remove(&displaced.member);
                    displaced.value
                });
                (id, displaced)
            }
        };
        Some(Entered { value: self.held.get_mut(id)?, displaced })
    }

    /// Returns the value of a workload that has a place.
    pub(super) fn known(&mut self, workload: &Workload) -> Option<&mut V> {
        self.held.get_mut(*self.ids.get(workload)?)
    }

    /// Returns all workloads with their values.
    pub(super) fn all(&self) -> Vec<(Workload, V)> {
        self.ids.iter().filter_map(|(workload, id)| Some((workload.clone(), self.held.get(*id)?.clone()))).collect()
    }
}
