//! The idle connection that makes room for a new one.

use std::collections::HashMap;
use std::sync::Arc;

use super::slot::{MADE_ROOM, Slot, longest_idle};
use super::{Account, ConnectionSettings, FEW, LimitsState};
use crate::connections::record::Limit;
use crate::connections::source::{Source, SourceKey};

impl LimitsState {
    /// Closes an idle connection, because there is one more connection than there should be.
    pub(super) fn make_room(&self, settings: &ConnectionSettings, source: &Source, key: &SourceKey, now: u64) {
        if let Some(slot) = self.idle_slot(settings, source, key, Limit::All, now) {
            slot.close(MADE_ROOM);
        }
    }

    /// Gives the place of an idle connection to a new one. Returns whether there was one.
    pub(super) fn replace_idle(
        &mut self,
        settings: &ConnectionSettings,
        source: &Source,
        key: &SourceKey,
        limit: Limit,
        slot: &Arc<Slot>,
        now: u64,
    ) -> bool {
        let Some(idle) = self.idle_slot(settings, source, key, limit, now) else { return false };
        idle.close(MADE_ROOM);
        if let Some(of) = idle.key.get() {
            self.leave(of, idle.id);
        }
        self.open(source.clone(), key.clone(), slot.clone());
        true
    }

    /// Returns the idle connection whose place this source may take.
    ///
    /// A source that has more than its share takes a place of one that has even more, or its own. It takes a place of a smaller
    /// one only while sources together have no more beyond their shares than is not reserved. Otherwise it could take a place that
    /// is reserved for small sources as soon as one of them is idle, and use it all the time.
    fn idle_slot(&self, settings: &ConnectionSettings, source: &Source, key: &SourceKey, limit: Limit, now: u64) -> Option<Arc<Slot>> {
        if limit == Limit::Source {
            return self.accounts.get(key).and_then(|account| account.longest_idle(now));
        }
        let mut namespaces: HashMap<&str, usize> = HashMap::new();
        for account in self.accounts.values() {
            *namespaces.entry(account.source.namespace()).or_default() += account.open.len();
        }
        let of_namespace = |source: &Source| namespaces.get(source.namespace()).copied().unwrap_or(0);
        let (own, own_namespace) = (self.of(key), of_namespace(source));
        let beyond = |held: &mut dyn Iterator<Item = usize>, share: usize| -> usize { held.map(|held| held.saturating_sub(share)).sum() };
        let may_grow = own < FEW || beyond(&mut self.accounts.values().map(|account| account.open.len()), FEW) < settings.for_pods();
        let share = settings.namespace_share();
        let namespace_may_grow = own_namespace < share || beyond(&mut namespaces.values().copied(), share) < settings.for_namespaces();
        let gives_way = |of: &SourceKey, account: &Account| {
            let is_own = account.source.namespace() == source.namespace();
            let pod = may_grow || of == key || account.open.len() > own;
            let namespace = namespace_may_grow || is_own || of_namespace(&account.source) > own_namespace;
            *of != SourceKey::Node && pod && namespace
        };
        let mut accounts: Vec<_> =
            self.accounts.iter().filter(|(of, account)| gives_way(of, account)).map(|(_, account)| account).collect();
        accounts.sort_by_key(|account| std::cmp::Reverse((of_namespace(&account.source), account.open.len())));
        accounts.iter().find_map(|account| account.longest_idle(now))
    }
}

impl Account {
    fn longest_idle(&self, now: u64) -> Option<Arc<Slot>> {
        let id = longest_idle(self.open.iter().map(|(id, slot)| (*id, slot)), now)?;
        self.open.get(&id).cloned()
    }
}
