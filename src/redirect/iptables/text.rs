//! The wanted rules in the words of `iptables`: pure.

use super::chains::{Chain, ChainPosition, KernelTable, ORDER};
use super::listing::IptablesListing;
use crate::redirect::rules::{Family, RuleSet};

/// What `iptables-restore --noflush` reads to make these the rules of a family, given what is there.
///
/// Each table is one transaction, and filter is the first: the guard is there before requests are sent anywhere, also where
/// a later table is refused. Naming a
/// chain empties it; jumps that are there are taken out and one is put in at the head within the same transaction, so that
/// there is no moment without.
pub(super) fn install(rules: &RuleSet, family: Family, present: &IptablesListing) -> String {
    let chains = ORDER.map(|hook| Chain::wanted(rules, hook, family, present.backstop));
    tables([KernelTable::Filter, KernelTable::Security, KernelTable::Mangle, KernelTable::Nat], |table| {
        chains.iter().filter(|chain| chain.place.table == table).flat_map(|chain| change(chain, present)).collect()
    })
}

/// What it reads to take away our chains and every jump to them; nothing where there are none. Requests stop
/// coming here before the guard goes.
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
