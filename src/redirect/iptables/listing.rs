//! What `iptables-save` prints, and what of it is not as wanted: pure.
//!
//! Versions and flavours of the program write the same rule in different ways (`-p tcp` or `-p tcp -m tcp`, an address with
//! or without its mask, one order of the matches or another), so rules are compared by their words and not as text.

use std::net::{IpAddr, SocketAddr};

use super::text::{Chain, Place};

/// A table of the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Table {
    /// Whether packets may pass.
    Filter,
    /// Where connections go.
    Nat,
}

impl Table {
    /// Its name for the program.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Filter => "filter",
            Self::Nat => "nat",
        }
    }
}

/// The rules of one family in one flavour.
#[derive(Clone, Debug, Default)]
pub(crate) struct Listing {
    chains: Vec<(Table, String)>,
    rules: Vec<Listed>,
    /// Tables that the program cannot read, as another one filled them.
    pub(crate) unreadable: Vec<String>,
}

/// A rule that is there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Listed {
    /// Its table.
    pub(crate) table: Table,
    /// Its chain.
    pub(crate) chain: String,
    /// The rest, as it was printed: it can be read back.
    pub(crate) words: String,
}

impl Listed {
    /// The line that takes it away.
    pub(crate) fn deletion(&self) -> String {
        format!("-D {} {}", self.chain, self.words)
    }

    /// The chain, or the fate, that it sends packets to.
    fn target(&self) -> Option<&str> {
        let mut words = self.words.split_whitespace();
        words.find(|word| matches!(*word, "-j" | "-g"))?;
        words.next()
    }
}

/// Something that is not as wanted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Difference {
    /// In words.
    pub(super) words: String,
    /// Where the chain has as many rules as it should, but some are written in an unexpected way: the program itself can
    /// tell whether it has these. If so there is no difference.
    pub(super) ask: Option<(Table, Vec<String>)>,
}

impl Listing {
    /// Reads what `iptables-save` printed, of the tables that matter here.
    pub(crate) fn parse(text: &str) -> Self {
        let mut listing = Self::default();
        let mut table = None;
        for line in text.lines() {
            if let Some(name) = line.strip_prefix('*') {
                table = [Table::Filter, Table::Nat].into_iter().find(|table| table.name() == name.trim());
            } else if line.starts_with('#') && line.contains("is incompatible") {
                listing.unreadable.extend(line.split(['`', '\'']).nth(1).map(str::to_owned));
            } else if let (Some(table), Some(chain)) = (table, line.strip_prefix(':')) {
                listing.chains.extend(chain.split_whitespace().next().map(|chain| (table, chain.to_owned())));
            } else if let (Some(table), Some((chain, words))) = (table, line.strip_prefix("-A ").and_then(|rule| rule.split_once(' '))) {
                listing.rules.push(Listed { table, chain: chain.to_owned(), words: words.trim().to_owned() });
            }
        }
        listing
    }

    pub(super) fn has_chain(&self, table: Table, chain: &str) -> bool {
        self.chains.iter().any(|(of, name)| *of == table && name == chain)
    }

    /// The rules of a chain, in their order.
    pub(crate) fn chain(&self, table: Table, chain: &str) -> impl Iterator<Item = &Listed> {
        self.rules.iter().filter(move |rule| rule.table == table && rule.chain == chain)
    }

    /// The rules of any chain that lead to this one.
    pub(super) fn jumps(&self, table: Table, chain: &str) -> impl Iterator<Item = &Listed> {
        self.rules.iter().filter(move |rule| rule.table == table && rule.target() == Some(chain))
    }

    /// Where the chain of the redirect sends requests to.
    pub(super) fn targets(&self, place: Place) -> impl Iterator<Item = SocketAddr> {
        let target = |rule: &Listed| {
            let mut words = rule.words.split_whitespace();
            words.find(|word| *word == "--to-destination")?;
            words.next()?.parse().ok()
        };
        self.chain(place.table, place.chain).filter_map(target)
    }

    /// What of a hook's chain is there, in words.
    pub(super) fn remains(&self, place: Place) -> Vec<String> {
        let Place { table, chain, .. } = place;
        let jumps = self.jumps(table, chain).map(|jump| format!("the jump from {} to {chain} of the table {}", jump.chain, table.name()));
        let own = self.has_chain(table, chain).then(|| {
            let rules = self.chain(table, chain).count();
            format!("the chain {chain} of the table {} with its {rules} rule{}", table.name(), if rules == 1 { "" } else { "s" })
        });
        jumps.chain(own).collect()
    }

    /// What is not as wanted of a hook.
    pub(super) fn differences(&self, wanted: &Chain) -> Vec<Difference> {
        let Place { table, from, chain } = wanted.place;
        let say = |words: String| Difference { words: format!("table {}: {words}", table.name()), ask: None };
        if wanted.rules.is_empty() {
            return self.remains(wanted.place).into_iter().map(|what| say(format!("{what} should not be there"))).collect();
        }
        let mut found = Vec::new();
        if !self.has_chain(table, chain) {
            found.push(say(format!("the chain {chain} is missing")));
        } else {
            found.extend(self.rule_differences(wanted));
        }
        let jump = wanted.jump();
        let jumps: Vec<_> = self.jumps(table, chain).collect();
        let is_wanted = |rule: &Listed| rule.chain == from && same(&rule.words, &jump);
        match self.chain(table, from).position(is_wanted) {
            None if jumps.is_empty() => found.push(say(format!("{from} has no jump to {chain}"))),
            None => found.push(say(format!("the jump to {chain} is not the wanted one but `-A {} {}`", jumps[0].chain, jumps[0].words))),
            Some(0) => {}
            Some(place) => {
                let first = self.chain(table, from).next().map_or("", |rule| rule.words.as_str());
                let others = if place > 1 { format!(" and {} more", place - 1) } else { String::new() };
                found.push(say(format!("ahead of our jump in {from} is `-A {from} {first}`{others}")));
            }
        }
        if jumps.len() > 1 {
            found.push(say(format!("{} rules lead to {chain} where one should", jumps.len())));
        }
        found
    }

    fn rule_differences(&self, wanted: &Chain) -> Vec<Difference> {
        let Place { table, chain, .. } = wanted.place;
        let there: Vec<_> = self.chain(table, chain).collect();
        let mut found = Vec::new();
        let mut say = |words: String, ask| found.push(Difference { words: format!("table {}: {words}", table.name()), ask });
        if there.len() != wanted.rules.len() {
            let printed: Vec<_> = there.iter().map(|rule| format!("`{}`", rule.words)).collect();
            let printed = if printed.is_empty() { "nothing".to_owned() } else { printed.join(", ") };
            say(format!("{chain} has {} rules where {} are wanted: {printed}", there.len(), wanted.rules.len()), None);
            return found;
        }
        let Some((is, should)) = there.iter().zip(&wanted.rules).find(|(is, should)| !same(&is.words, should)) else { return found };
        let unknown = |should: &&String| !there.iter().any(|is| same(&is.words, should));
        let ask: Vec<_> = wanted.rules.iter().filter(unknown).map(|rule| format!("{chain} {rule}")).collect();
        let ask = (!ask.is_empty()).then_some((table, ask));
        say(format!("{chain} has the rule `{}` where `{should}` is wanted", is.words), ask);
        found
    }
}

/// Whether both are the same rule.
pub(crate) fn same(one: &str, other: &str) -> bool {
    canonical(one) == canonical(other)
}

/// A rule's options with their values, in an order and a form of their own.
pub(crate) fn canonical(rule: &str) -> Vec<String> {
    let mut options: Vec<String> = Vec::new();
    let mut negated = false;
    for word in rule.split_whitespace() {
        match options.last_mut() {
            _ if word == "!" => negated = true,
            Some(option) if !word.starts_with('-') => {
                option.push(' ');
                option.push_str(&plain(word));
            }
            _ => options.push(format!("{}{word}", if std::mem::take(&mut negated) { "! " } else { "" })),
        }
    }
    // They say no more than the protocol does.
    options.retain(|option| !matches!(option.as_str(), "-m tcp" | "-m udp"));
    options.sort();
    options
}

/// A value: addresses without the mask of one host.
fn plain(value: &str) -> String {
    let (address, mask) = value.split_once('/').unwrap_or((value, ""));
    match (address.parse::<IpAddr>(), mask) {
        (Ok(ip @ IpAddr::V4(_)), "" | "32" | "255.255.255.255") => ip.to_string(),
        (Ok(ip @ IpAddr::V6(_)), "" | "128" | "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff") => ip.to_string(),
        _ => value.to_owned(),
    }
}
