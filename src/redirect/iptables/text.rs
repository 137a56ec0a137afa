//! Renders the wanted rules in iptables syntax. Pure.

use super::chains::{Chain, ChainPosition, KernelTable, ORDER};
use super::listing::IptablesListing;
use crate::redirect::rules::{Family, RuleSet};

/// Renders the input with which `iptables-restore --noflush` installs the rules of a family, given the rules that are present.
///
/// Each table is one transaction, and `filter` comes first: the guard is in place before requests are redirected, even if a
/// later table is rejected. Naming a chain empties it. Existing jumps are removed and one is inserted at the head in the same
/// transaction, so that there is always a jump.
pub(super) fn install(rules: &RuleSet, family: Family, present: &IptablesListing) -> String {
    let chains = ORDER.map(|hook| Chain::wanted(rules, hook, family, present.backstop));
    tables([KernelTable::Filter, KernelTable::Security, KernelTable::Mangle, KernelTable::Nat], |table| {
        chains.iter().filter(|chain| chain.place.table == table).flat_map(|chain| change(chain, present)).collect()
    })
}

/// Renders the input that removes our chains and every jump to them; empty if there are none. The redirect is removed before
/// the guard.
pub(super) fn remove(present: &IptablesListing) -> String {
    let places = ChainPosition::all();
    tables([KernelTable::Nat, KernelTable::Filter, KernelTable::Mangle, KernelTable::Security], |table| {
        places.iter().filter(|place| place.table == table).flat_map(|place| removal(*place, present)).collect()
    })
}

fn tables(order: [KernelTable; 4], lines: impl Fn(KernelTable) -> Vec<String>) -> String {
    let mut text = String::new();
    for table in order {
        let lines = lines(table);
        if !lines.is_empty() {
            text.push_str(&format!("*{}\n{}\nCOMMIT\n", table.name(), lines.join("\n")));
        }
    }
    text
}

fn change(chain: &Chain, present: &IptablesListing) -> Vec<String> {
    if chain.rules.is_empty() {
        return removal(chain.place, present);
    }
    let ChainPosition { table, from, chain: name } = chain.place;
    let mut lines = vec![format!(":{name} - [0:0]")];
    lines.extend(chain.rules.iter().map(|rule| format!("-A {name} {rule}")));
    lines.extend(present.jumps(table, name).map(|jump| jump.deletion()));
    lines.push(format!("-I {from} 1 {}", chain.jump()));
    lines
}

fn removal(place: ChainPosition, present: &IptablesListing) -> Vec<String> {
    let mut lines: Vec<_> = present.jumps(place.table, place.chain).map(|jump| jump.deletion()).collect();
    if present.has_chain(place.table, place.chain) {
        lines.extend([format!("-F {}", place.chain), format!("-X {}", place.chain)]);
    }
    lines
}
