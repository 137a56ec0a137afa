//! Parses `iptables-save`, which prints all tables, and `iptables -S`, which prints one chain, and compares them with the
//! wanted rules. Pure.
//!
//! Versions and flavours of the program write the same rule in different ways (`-p tcp` or `-p tcp -m tcp`, an address with or
//! without its mask, different orders of the matches), so rules are compared word by word and not as text.

use std::net::{IpAddr, SocketAddr};

use super::chains::{Chain, ChainPosition, KernelTable};

/// The rules of one family in one flavour.
#[derive(Clone, Debug)]
pub(crate) struct IptablesListing {
    /// The table in which this kernel can have the backstop.
    pub(super) backstop: KernelTable,
    chains: Vec<(KernelTable, String)>,
    rules: Vec<Listed>,
    /// The tables that the program cannot read because another program filled them.
    pub(crate) unreadable: Vec<String>,
}

/// A rule that is installed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Listed {
    /// Its table.
    pub(crate) table: KernelTable,
    /// Its chain.
    pub(crate) chain: String,
    /// The rest of the rule, as it was printed. The program can read it back.
    pub(crate) words: String,
}

impl Listed {
    /// Returns the line that deletes the rule.
    pub(crate) fn deletion(&self) -> String {
        format!("-D {} {}", self.chain, self.words)
    }

    /// Returns the chain or verdict that the rule sends packets to.
    pub(crate) fn target(&self) -> Option<String> {
        self.value_of(&["-j", "-g"])
    }

    /// Returns the value that follows one of these options.
    fn value_of(&self, options: &[&str]) -> Option<String> {
        let mut words = words(&self.words).into_iter();
        while let Some(word) = words.next() {
            match word {
                Word::Bare(option) if options.contains(&option.as_str()) => return words.next().map(Word::into_text),
                // A comment is arbitrary text.
                Word::Bare(option) if option == "--comment" => drop(words.next()),
                _ => {}
            }
        }
        None
    }
}

/// A difference from the wanted rules.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Difference {
    /// The difference in words.
    pub(super) words: String,
    /// The rules to ask the program about. Set if the chain has as many rules as it should, but some are written in an
    /// unexpected way. If the program confirms that it has these rules, there is no difference.
    pub(super) ask: Option<(KernelTable, Vec<String>)>,
}

impl Default for IptablesListing {
    fn default() -> Self {
        Self { backstop: KernelTable::Security, chains: Vec::new(), rules: Vec::new(), unreadable: Vec::new() }
    }
}

impl IptablesListing {
    /// Parses the output of `iptables-save` for the tables in [`KernelTable`].
    pub(crate) fn parse(text: &str) -> Self {
        let mut listing = Self::default();
        let mut table = None;
        for line in text.lines() {
            if let Some(name) = line.strip_prefix('*') {
                table = KernelTable::ALL.into_iter().find(|table| table.name() == name.trim());
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

    /// Parses the output of `iptables -S` for one chain.
    pub(crate) fn of_chain(table: KernelTable, text: &str) -> Self {
        let mut listing = Self::default();
        listing.add(table, text);
        listing
    }

    /// Adds the output of `iptables -S` for one chain.
    pub(super) fn add(&mut self, table: KernelTable, text: &str) {
        for line in text.lines() {
            let Some((option, (chain, words))) =
                line.split_once(' ').map(|(option, rest)| (option, rest.split_once(' ').unwrap_or((rest, ""))))
            else {
                continue;
            };
            match option {
                "-P" | "-N" => self.chains.push((table, chain.to_owned())),
                "-A" => self.rules.push(Listed { table, chain: chain.to_owned(), words: words.trim().to_owned() }),
                _ => {}
            }
        }
    }

    pub(crate) fn has_chain(&self, table: KernelTable, chain: &str) -> bool {
        self.chains.iter().any(|(of, name)| *of == table && name == chain)
    }

    /// Returns the rules of a table, in their order.
    pub(crate) fn rules_of(&self, table: KernelTable) -> impl Iterator<Item = &Listed> {
        self.rules.iter().filter(move |rule| rule.table == table)
    }

    /// Returns the rules of a chain, in their order.
    pub(crate) fn chain(&self, table: KernelTable, chain: &str) -> impl Iterator<Item = &Listed> {
        self.rules.iter().filter(move |rule| rule.table == table && rule.chain == chain)
    }

    /// Returns the rules of any chain that jump to this one.
    pub(super) fn jumps(&self, table: KernelTable, chain: &str) -> impl Iterator<Item = &Listed> {
        self.rules.iter().filter(move |rule| rule.table == table && rule.target().as_deref() == Some(chain))
    }

    /// Returns the addresses that the redirect's chain sends requests to.
    pub(super) fn targets(&self, place: ChainPosition) -> impl Iterator<Item = SocketAddr> {
        let target = |rule: &Listed| rule.value_of(&["--to-destination"])?.parse().ok();
        self.chain(place.table, place.chain).filter_map(target)
    }

    /// Returns the addresses that the rules of a chain keep connections to.
    pub(super) fn kept(&self, place: ChainPosition) -> impl Iterator<Item = SocketAddr> {
        let address = |rule: &Listed| {
            let ip = rule.value_of(&["--to-destination"])?.parse().ok()?;
            Some(SocketAddr::new(ip, rule.value_of(&["--dport"])?.parse().ok()?))
        };
        self.chain(place.table, place.chain).filter_map(address)
    }

    /// Describes what exists of a hook's chain.
    pub(super) fn remains(&self, place: ChainPosition) -> Vec<String> {
        let ChainPosition { table, chain, .. } = place;
        let jumps = self.jumps(table, chain).map(|jump| format!("the jump from {} to {chain} of the table {}", jump.chain, table.name()));
        let own = self.has_chain(table, chain).then(|| {
            let rules = self.chain(table, chain).count();
            format!("the chain {chain} of the table {} with its {rules} rule{}", table.name(), if rules == 1 { "" } else { "s" })
        });
        jumps.chain(own).collect()
    }

    /// Returns the differences from a hook's wanted chain.
    pub(super) fn differences(&self, wanted: &Chain) -> Vec<Difference> {
        let ChainPosition { table, from, chain } = wanted.place;
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
        // The jumps to our other chains match other packets, and their order does not matter.
        let is_ours = |rule: &Listed| {
            let target = rule.target();
            let places = ChainPosition::all();
            places.iter().any(|place| (place.table, place.from) == (table, from) && target.as_deref() == Some(place.chain))
        };
        let before: Vec<_> = self.chain(table, from).take_while(|rule| !is_wanted(rule)).filter(|rule| !is_ours(rule)).collect();
        match self.chain(table, from).find(|rule| is_wanted(rule)) {
            None if jumps.is_empty() => found.push(say(format!("{from} has no jump to {chain}"))),
            None => {
                found.push(say(format!("the jump to {chain} is `-A {} {}` instead of `-A {from} {jump}`", jumps[0].chain, jumps[0].words)))
            }
            Some(_) => {
                if let Some(first) = before.first() {
                    let others = match before.len() - 1 {
                        0 => String::new(),
                        more => format!(" and {more} more rule{}", if more > 1 { "s" } else { "" }),
                    };
                    let come = if before.len() > 1 { "come" } else { "comes" };
                    found.push(say(format!("`-A {from} {}`{others} {come} before rolegate's jump in {from}", first.words)));
                }
            }
        }
        if jumps.len() > 1 {
            found.push(say(format!("{} rules jump to {chain} instead of one", jumps.len())));
        }
        found
    }

    fn rule_differences(&self, wanted: &Chain) -> Vec<Difference> {
        let ChainPosition { table, chain, .. } = wanted.place;
        let there: Vec<_> = self.chain(table, chain).collect();
        let mut found = Vec::new();
        let mut say = |words: String, ask| found.push(Difference { words: format!("table {}: {words}", table.name()), ask });
        if there.len() != wanted.rules.len() {
            let printed: Vec<_> = there.iter().map(|rule| format!("`{}`", rule.words)).collect();
            let printed = if printed.is_empty() { "nothing".to_owned() } else { printed.join(", ") };
            say(format!("{chain} has {} rules instead of {}: {printed}", there.len(), wanted.rules.len()), None);
            return found;
        }
        let Some((is, should)) = there.iter().zip(&wanted.rules).find(|(is, should)| !same(&is.words, should)) else { return found };
        let unknown = |should: &&String| !there.iter().any(|is| same(&is.words, should));
        let ask: Vec<_> = wanted.rules.iter().filter(unknown).map(|rule| format!("{chain} {rule}")).collect();
        let ask = (!ask.is_empty()).then_some((table, ask));
        say(format!("{chain} has the rule `{}` instead of `{should}`", is.words), ask);
        found
    }
}

/// A word of a rule.
enum Word {
    /// An option or a value without quotes.
    Bare(String),
    /// A quoted value of free text, without its quotes.
    Quoted(String),
}

impl Word {
    fn into_text(self) -> String {
        match self {
            Self::Bare(text) | Self::Quoted(text) => text,
        }
    }
}

/// Splits a rule into words. The programs quote free text that contains anything but letters, digits, `-` and `_`, with a
/// backslash before each quote, apostrophe or backslash (`xtables_save_string` of libxtables).
fn words(rule: &str) -> Vec<Word> {
    let mut words = Vec::new();
    let mut rest = rule.chars().peekable();
    while let Some(first) = rest.next() {
        if first.is_whitespace() {
            continue;
        }
        let mut word = String::new();
        if first == '"' {
            while let Some(c) = rest.next().filter(|c| *c != '"') {
                word.extend(if c == '\\' { rest.next() } else { Some(c) });
            }
            words.push(Word::Quoted(word));
        } else {
            word.push(first);
            while let Some(c) = rest.next_if(|c| !c.is_whitespace()) {
                word.push(c);
            }
            words.push(Word::Bare(word));
        }
    }
    words
}

/// Returns whether both are the same rule.
pub(crate) fn same(one: &str, other: &str) -> bool {
    canonical(one) == canonical(other)
}

/// Returns a rule's options with their values, in a canonical order and form.
pub(crate) fn canonical(rule: &str) -> Vec<String> {
    let mut options: Vec<String> = Vec::new();
    let mut negated = false;
    for word in words(rule) {
        match (word, options.last_mut()) {
            (Word::Bare(word), _) if word == "!" => negated = true,
            (Word::Bare(word), last) if word.starts_with('-') || last.is_none() => {
                options.push(format!("{}{word}", if std::mem::take(&mut negated) { "! " } else { "" }));
            }
            (Word::Bare(word), Some(option)) => option.push_str(&format!(" {}", plain(&word))),
            (Word::Quoted(text), Some(option)) => option.push_str(&format!(" {text:?}")),
            (word, None) => options.push(word.into_text()),
        }
    }
    // These matches only repeat the protocol.
    options.retain(|option| !matches!(option.as_str(), "-m tcp" | "-m udp"));
    options.sort();
    options
}

/// Returns a value in canonical form: addresses without a single-host mask.
fn plain(value: &str) -> String {
    let (address, mask) = value.split_once('/').unwrap_or((value, ""));
    match (address.parse::<IpAddr>(), mask) {
        (Ok(ip @ IpAddr::V4(_)), "" | "32" | "255.255.255.255") => ip.to_string(),
        (Ok(ip @ IpAddr::V6(_)), "" | "128" | "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff") => ip.to_string(),
        _ => value.to_owned(),
    }
}
