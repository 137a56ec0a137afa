//! A bounded number of workloads, each with a value. When all places are taken, the namespace with the most workloads gives up its
//! oldest one, see [`Shares`].

use std::collections::HashMap;

use super::workload::Workload;
use crate::shares::Shares;

/// Workloads with a value.
pub(super) const MAX_WORKLOADS: usize = 1024;

/// What is counted for a workload.
pub(super) trait Counted {
    /// Returns the number of everything that was counted.
    fn total(&self) -> u64;

    /// Called when the workload loses its place.
    fn displaced(&self) {}
}

/// The values by workload.
#[derive(Debug)]
pub(super) struct Places<V> {
    held: Shares<Box<str>, Workload, V>,
    ids: HashMap<Workload, u64>,
    next: u64,
    left_out: u64,
}

impl<V> Default for Places<V> {
    fn default() -> Self {
        Self { held: Shares::new(MAX_WORKLOADS, 1), ids: HashMap::new(), next: 0, left_out: 0 }
    }
}

impl<V: Clone + Counted + Default> Places<V> {
    /// Returns the value of a workload, to count `count` in it. Gives the workload a place if it has none; `None` if there is none for it.
    pub(super) fn enter(&mut self, workload: Workload, count: u64) -> Option<&mut V> {
        let id = match self.ids.get(&workload) {
            Some(id) => *id,
            None => {
                let id = self.next;
                let Ok(displaced) = self.held.enter(id, workload.namespace.clone(), workload.clone(), V::default()) else {
                    self.left_out = self.left_out.saturating_add(count);
                    return None;
                };
                self.next += 1;
                self.ids.insert(workload, id);
                if let Some(displaced) = displaced {
                    self.ids.remove(&displaced.member);
                    displaced.value.displaced();
                    self.left_out = self.left_out.saturating_add(displaced.value.total());
                }
                id
            }
        };
        self.held.get_mut(id)
    }

    /// Returns how much was counted for workloads that have no place.
    pub(super) fn left_out(&self) -> u64 {
        self.left_out
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
