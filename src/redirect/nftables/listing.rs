//! The contents of our table, read from `nft -j list table` or derived from the wanted rules, and the comparison of the two.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::{IpAddr, SocketAddr};

use serde_json::{Map, Value, json};

use super::chains::{ChainHook, TABLE, pattern, rules_of};
use super::text::protocol;
use crate::redirect::observed::ObservedRules;
use crate::redirect::rules::{Family, Hook, LOOPBACK, Match, PacketVerdict, Rule, RuleSet};

/// How many unexpected rules a difference quotes.
const QUOTED: usize = 3;

/// A table, without what does not affect packets: handles, counters, comments.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct NftListing {
    /// Whether the table has flags, such as `dormant`.
    flags: bool,
    chains: BTreeMap<String, ListedChain>,
    /// The table's other objects: sets, maps and the like.
    others: Vec<String>,
}

#[derive(Clone, Debug, Default, PartialEq)]
struct ListedChain {
    /// The hook and how the chain is attached to it; empty for a chain that is only reached from another one.
    hook: String,
    rules: Vec<Statements>,
}

/// A rule's matches, followed by its verdict.
#[derive(Clone, Debug, Default, PartialEq)]
struct Statements(Vec<Value>);

impl NftListing {
    /// Returns the listing that is expected once these rules are installed.
    pub(super) fn of(rules: &RuleSet) -> Self {
        let mut listing = Self::default();
        for hook in Hook::ALL {
            let rules = rules_of(rules, hook);
            if let Some(ChainHook { chain, kind, hook, priority }) = ChainHook::of(hook).filter(|_| !rules.is_empty()) {
                let hook = hooked(kind, hook, priority.into(), "accept");
                listing.chains.insert(chain.to_owned(), ListedChain { hook, rules: rules.iter().map(Statements::of).collect() });
            }
        }
        listing
    }

    /// Parses what `nft` lists. The error says what is wrong with it.
    pub(super) fn read(json: &str) -> Result<Self, String> {
        let listed: Value = serde_json::from_str(json).map_err(|error| error.to_string())?;
        let objects = listed["nftables"].as_array().ok_or("there is no list `nftables` in it")?;
        let mut listing = Self::default();
        let mut rules = Vec::new();
        for (kind, value) in objects.iter().filter_map(Value::as_object).flatten() {
            match kind.as_str() {
                "metainfo" => {}
                "table" => listing.flags = value.get("flags").is_some(),
                "chain" => {
                    let chain = ListedChain { hook: hook(value), rules: Vec::new() };
                    listing.chains.insert(text(&value["name"]), chain);
                }
                "rule" => rules.push(value),
                kind => listing.others.push(format!("{kind} {}", text(&value["name"]))),
            }
        }
        for rule in rules {
            let statements = rule["expr"].as_array().ok_or("there is a rule without `expr`")?;
            let chain = listing.chains.get_mut(&text(&rule["chain"])).ok_or("a rule names no known chain")?;
            chain.rules.push(Statements(statements.iter().filter_map(plain).collect()));
        }
        Ok(listing)
    }

    /// Returns the listing with one chain as another listing has it.
    #[cfg(test)]
    pub(super) fn with_chain_of(mut self, name: &str, other: &Self) -> Self {
        self.chains.remove(name);
        self.chains.extend(other.chains.get(name).map(|chain| (name.to_owned(), chain.clone())));
        self
    }

    /// Describes the differences from the wanted listing.
    pub(super) fn differences(&self, wanted: &Self) -> Vec<String> {
        let mut said = Vec::new();
        if self.flags && !wanted.flags {
            said.push(format!("the table inet {TABLE} has a flag, such as `dormant`, with which its rules do nothing"));
        }
        for (name, wanted) in &wanted.chains {
            match self.chains.get(name) {
                None => said.push(format!("the chain {name} is missing")),
                Some(found) => found.differences(name, wanted, &mut said),
            }
        }
        let foreign = self.chains.keys().filter(|name| !wanted.chains.contains_key(*name)).map(|name| format!("chain {name}"));
        for other in foreign.chain(self.others.iter().filter(|other| !wanted.others.contains(other)).cloned()) {
            said.push(format!("the table inet {TABLE} has an unexpected {other}"));
        }
        said
    }

    /// Returns the chain of a hook, if packets meet its rules where they should.
    fn effective(&self, hook: Hook) -> Option<&ListedChain> {
        let ChainHook { chain, kind, hook, priority } = ChainHook::of(hook)?;
        self.chains.get(chain).filter(|found| !self.flags && found.hook == hooked(kind, hook, priority.into(), "accept"))
    }

    /// Returns the families for which the chain of a hook is complete. Only for hooks whose rules do not depend on the
    /// rest of the rule set.
    fn complete(&self, hook: Hook) -> BTreeSet<Family> {
        let chain = self.effective(hook).filter(|found| found.rules.iter().all(|rule| rule.is_of(hook)));
        let Some(found) = chain else { return BTreeSet::new() };
        let is_complete = |family: &Family| {
            let rules = RuleSet::guard_alone().rules(hook, *family);
            rules.iter().all(|rule| found.rules.iter().any(|found| found.says(&Statements::of(rule))))
        };
        Family::ALL.into_iter().filter(is_complete).collect()
    }

    /// Returns whether the rules for this address of Pod Identity are complete.
    fn has_pod_identity(&self, address: SocketAddr) -> bool {
        let (rules, family) = (of_pod_identity(address), Family::of(address.ip()));
        [Hook::Guard, Hook::Exit, Hook::KeepIncoming, Hook::KeepOutgoing].into_iter().all(|hook| {
            let has = |found: &ListedChain, rule: &Rule| {
                let wanted = Statements::of(rule);
                found.rules.iter().any(|found| found.says(&wanted) || found.rewords(&wanted))
            };
            self.effective(hook).is_some_and(|found| rules.rules(hook, family).iter().all(|rule| has(found, rule)))
        })
    }

    /// Returns the rules that affect packets, whether wanted or not. A guard, an exit or a pin counts only if its chain has all
    /// of its rules and no others.
    pub(super) fn observed(&self) -> ObservedRules {
        let rules_of = |hook| self.effective(hook).into_iter().flat_map(|chain| &chain.rules);
        let redirect = ChainHook::of(Hook::Redirect).and_then(|place| self.chains.get(place.chain));
        let targets = redirect.into_iter().flat_map(|chain| &chain.rules).filter_map(|rule| {
            let dnat = &rule.0.last()?["dnat"];
            Some(SocketAddr::new(dnat["addr"].as_str()?.parse().ok()?, dnat["port"].as_u64()?.try_into().ok()?))
        });
        let targets: BTreeSet<_> = targets.collect();
        // With `--redirect=bpf`, connections to the daemon's own address are kept as well.
        let kept = rules_of(Hook::KeepOutgoing).filter_map(Statements::kept).filter(|address| !targets.contains(address));
        ObservedRules {
            guards: self.complete(Hook::Guard),
            exits: self.complete(Hook::Exit),
            pins: self.complete(Hook::Pin),
            pod_identity: kept.filter(|address| self.has_pod_identity(*address)).collect(),
            targets,
            ..ObservedRules::default()
        }
    }

    /// Returns whether this listing, read right after the wanted rules were loaded, is another nft version's wording of them.
    ///
    /// The listing may then be remembered as what the wanted rules look like, so it must not contain a change that was made in
    /// between. No chain and no rule may be missing or added, and every rule must have the wanted verdict and every wanted
    /// value, each with its operator. Only what a version adds or omits by itself may differ: the names of the fields, and a
    /// protocol that another match or the verdict implies.
    pub(super) fn is_another_wording_of(&self, wanted: &Self) -> bool {
        let same_chain = |(name, wanted): (&String, &ListedChain)| {
            let Some(found) = self.chains.get(name) else { return false };
            let mut pairs = found.rules.iter().zip(&wanted.rules);
            found.hook == wanted.hook && found.rules.len() == wanted.rules.len() && pairs.all(|(found, wanted)| found.rewords(wanted))
        };
        !self.flags && self.others.is_empty() && self.chains.len() == wanted.chains.len() && wanted.chains.iter().all(same_chain)
    }
}

/// Describes the table for a person, as what was removed.
impl fmt::Display for NftListing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let chains: Vec<_> = self.chains.iter().map(|(name, chain)| format!("{name} ({})", count(chain.rules.len()))).collect();
        let chains = if chains.is_empty() { "no chain".to_owned() } else { format!("the chains {}", chains.join(", ")) };
        write!(f, "the table inet {TABLE} with {chains}")
    }
}

impl ListedChain {
    fn differences(&self, name: &str, wanted: &Self, said: &mut Vec<String>) {
        if self.hook != wanted.hook {
            let hook = if self.hook.is_empty() { "none" } else { &self.hook };
            said.push(format!("the chain {name} has the hook '{hook}' instead of '{}'", wanted.hook));
        }
        let (have, want) = (self.rules.len(), wanted.rules.len());
        if have < want {
            said.push(format!("the chain {name} has {} of {want}", count(have)));
        } else if have > want {
            said.push(format!("the chain {name} has {} instead of {want}", count(have)));
        }
        let foreign: Vec<_> = self.rules.iter().filter(|rule| !wanted.rules.contains(rule)).collect();
        let missing = wanted.rules.iter().filter(|rule| !self.rules.contains(rule));
        for rule in foreign.iter().take(QUOTED) {
            said.push(format!("the chain {name} has an unexpected rule: {rule}"));
        }
        for rule in missing.take(QUOTED) {
            said.push(format!("the chain {name} lacks the rule: {rule}"));
        }
        if have == want && foreign.is_empty() && self.rules != wanted.rules {
            said.push(format!("the rules of the chain {name} are in the wrong order"));
        }
    }
}

impl Statements {
    fn of(rule: &Rule) -> Self {
        let matches = rule.matches.iter().map(|one| {
            let (operator, left, right) = match one {
                Match::To(ip) => ("==", json!({"payload": {"protocol": protocol(*ip), "field": "daddr"}}), json!(ip)),
                Match::Tcp => ("==", json!({"meta": {"key": "l4proto"}}), json!("tcp")),
                Match::TcpPort(port) => ("==", json!({"payload": {"protocol": "tcp", "field": "dport"}}), json!(port)),
                Match::Interface(interface) => {
                    let operator = if interface.negated { "!=" } else { "==" };
                    (operator, json!({"meta": {"key": "iifname"}}), json!(pattern(&interface.name)))
                }
                Match::NotOpenedTo(ip) => ("!=", json!({"ct": {"key": format!("{} daddr", protocol(*ip)), "dir": "original"}}), json!(ip)),
                Match::NotOverLoopback => ("!=", json!({"meta": {"key": "oifname"}}), json!(LOOPBACK)),
                Match::NotFromNode => ("!=", json!({"fib": {"result": "type", "flags": ["saddr"]}}), json!("local")),
            };
            json!({"match": {"op": operator, "left": left, "right": right}})
        });
        let verdict = match rule.verdict {
            PacketVerdict::Dnat(target) => json!({"dnat": {"addr": target.ip(), "port": target.port()}}),
            PacketVerdict::Keep(address) => json!({"dnat": {"addr": address}}),
            PacketVerdict::Return => json!({"return": null}),
            PacketVerdict::Reset => json!({"reject": {"type": "tcp reset"}}),
            PacketVerdict::Reject => json!({"reject": null}),
            PacketVerdict::Drop => json!({"drop": null}),
        };
        Self(matches.chain([verdict]).collect())
    }

    /// Returns the value of the first match on this field.
    fn field(&self, field: &str) -> Option<&Value> {
        self.0.iter().map(|one| &one["match"]).find(|one| one["left"]["payload"]["field"] == field).map(|one| &one["right"])
    }

    /// Returns the address that the rule keeps connections to, if it is such a rule.
    fn kept(&self) -> Option<SocketAddr> {
        let dnat = self.0.last()?.get("dnat")?;
        let port = self.field("dport")?.as_u64()?.try_into().ok()?;
        Some(SocketAddr::new(dnat["addr"].as_str()?.parse().ok()?, port))
    }

    /// Returns whether this is a rule of this hook, for the metadata address or for one of Pod Identity.
    fn is_of(&self, hook: Hook) -> bool {
        let ip = self.field("daddr").and_then(|ip| ip.as_str()?.parse::<IpAddr>().ok());
        let Some(ip) = ip else { return false };
        let family = Family::of(ip);
        let rules = if ip == family.metadata() { RuleSet::guard_alone() } else { of_pod_identity(SocketAddr::new(ip, 0)) };
        rules.rules(hook, family).iter().any(|rule| self.says(&Statements::of(rule)))
    }

    /// Returns whether this is the wanted rule of the guard, the exit or the pin, apart from what nft versions add or omit by
    /// themselves: the family, which the address implies, and TCP before a reset, which applies to TCP alone.
    fn says(&self, wanted: &Self) -> bool {
        let bare = |rule: &Self| {
            let resets = rule.0.last().is_some_and(|verdict| verdict["reject"]["type"] == "tcp reset");
            let family = if wanted.0.iter().any(|one| one["match"]["left"]["payload"]["protocol"] == "ip6") { "6" } else { "4" };
            let is_implied = |one: &&Value| {
                let of_family = match text(&one["match"]["right"]).as_str() {
                    "tcp" | "6" => resets,
                    "ip6" | "ipv6" => family == "6",
                    _ => family == "4",
                };
                is_protocol(one) && of_family
            };
            rule.0.iter().filter(|one| !is_implied(one)).cloned().collect::<Vec<_>>()
        };
        bare(self) == bare(wanted)
    }

    /// See [`NftListing::is_another_wording_of`].
    fn rewords(&self, wanted: &Self) -> bool {
        let (Some((verdict, matches)), Some((wanted_verdict, wanted_matches))) = (self.0.split_last(), wanted.0.split_last()) else {
            return false;
        };
        let mut rest: Vec<_> = matches.iter().collect();
        for wanted in wanted_matches {
            let same = |one: &&Value| one["match"]["op"] == wanted["match"]["op"] && one["match"]["right"] == wanted["match"]["right"];
            match rest.iter().position(same) {
                Some(at) => drop(rest.remove(at)),
                // A reset applies to TCP alone.
                None if is_protocol(wanted) && wanted_verdict["reject"]["type"] == "tcp reset" => {}
                None => return false,
            }
        }
        verdict == wanted_verdict && rest.into_iter().all(is_protocol)
    }
}

impl fmt::Display for Statements {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let words: Vec<_> = self.0.iter().map(words).collect();
        f.write_str(&words.join(" "))
    }
}

/// Returns the rules of a node that serves Pod Identity at this address alone, without targets.
fn of_pod_identity(address: SocketAddr) -> RuleSet {
    RuleSet { pod_identity: [address].into(), ..RuleSet::guard_alone() }
}

/// Describes the destination NAT chains ahead of this priority, in a list of all tables, except our own.
pub(super) fn nat_ahead_of(json: &str, priority: i32) -> Vec<String> {
    let listed: Value = serde_json::from_str(json).unwrap_or_default();
    let chains = listed["nftables"].as_array().into_iter().flatten().map(|object| &object["chain"]);
    let ahead = chains.filter(|chain| {
        let is_ours = chain["family"] == "inet" && chain["table"] == TABLE;
        let is_nat = chain["type"] == "nat" && (chain["hook"] == "prerouting" || chain["hook"] == "output");
        is_nat && !is_ours && chain["prio"].as_i64().is_some_and(|prio| prio < priority.into())
    });
    let words = ahead.map(|chain| {
        let [family, table, name] = ["family", "table", "name"].map(|field| text(&chain[field]));
        let whose = if chain["hook"] == "output" { "the node's own" } else { "pods'" };
        format!(
            "the chain {name} of the table {family} {table} has NAT at priority {}, before rolegate's at {priority}: it may redirect {whose} \
             requests elsewhere",
            chain["prio"]
        )
    });
    words.collect()
}

/// "1 rule", "2 rules".
fn count(rules: usize) -> String {
    format!("{rules} rule{}", if rules == 1 { "" } else { "s" })
}

fn hooked(kind: &str, hook: &str, priority: i64, policy: &str) -> String {
    format!("type {kind} hook {hook} priority {priority} policy {policy}")
}

fn hook(chain: &Value) -> String {
    let (Some(kind), Some(hook), Some(priority)) = (chain["type"].as_str(), chain["hook"].as_str(), chain["prio"].as_i64()) else {
        return String::new();
    };
    // The kernel's default policy, if the listing has none.
    hooked(kind, hook, priority, chain["policy"].as_str().unwrap_or("accept"))
}

fn text(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

/// Removes what does not affect packets from a statement; `None` if nothing is left.
fn plain(statement: &Value) -> Option<Value> {
    let (kind, value) = statement.as_object().and_then(only)?;
    match kind.as_str() {
        "counter" | "comment" => None,
        // The address implies the family, and older versions omit it.
        "dnat" => {
            let mut value = value.clone();
            if let Some(fields) = value.as_object_mut() {
                fields.remove("family");
            }
            Some(json!({"dnat": value}))
        }
        // Versions list a single flag with or without a list around it.
        "match" if value["left"]["fib"]["flags"].is_string() => {
            let mut statement = statement.clone();
            let flags = &mut statement["match"]["left"]["fib"]["flags"];
            *flags = json!([flags.take()]);
            Some(statement)
        }
        // The default of `reject`. Versions list it under different names.
        "reject" if value["expr"] == "port-unreachable" => Some(json!({"reject": null})),
        _ => Some(statement.clone()),
    }
}

fn only(object: &Map<String, Value>) -> Option<(&String, &Value)> {
    object.iter().next()
}

/// Returns whether a statement matches the protocol TCP or a family. Versions add such matches to rules that imply them, and
/// omit them.
fn is_protocol(statement: &Value) -> bool {
    let one = &statement["match"];
    let key = one["left"]["meta"]["key"].as_str();
    let names: &[&str] = match key {
        Some("l4proto") => &["tcp", "6"],
        Some("nfproto") => &["ipv4", "ipv6"],
        Some("protocol") => &["ip", "ip6"],
        _ => return false,
    };
    one["op"] == "==" && names.contains(&text(&one["right"]).as_str())
}

/// Renders a statement in nft's language, or as it was listed if rolegate does not write such statements.
fn words(statement: &Value) -> String {
    let known = || {
        let (kind, value) = statement.as_object().and_then(only)?;
        match kind.as_str() {
            "match" => {
                let (kind, left) = value["left"].as_object().and_then(only)?;
                let left = match kind.as_str() {
                    "meta" => text(&left["key"]).replace("l4proto", "meta l4proto"),
                    "payload" => format!("{} {}", left["protocol"].as_str()?, left["field"].as_str()?),
                    "ct" if left["dir"].is_string() => format!("ct {} {}", text(&left["dir"]), text(&left["key"])),
                    "ct" => format!("ct {}", text(&left["key"])),
                    "fib" => format!("fib {} {}", text(left["flags"].as_array().and_then(|flags| flags.first())?), text(&left["result"])),
                    _ => return None,
                };
                let operator = if value["op"] == "!=" { "!= " } else { "" };
                Some(format!("{left} {operator}{}", text(&value["right"])))
            }
            "dnat" => {
                let ip: IpAddr = value["addr"].as_str()?.parse().ok()?;
                let target = match value.get("port") {
                    Some(port) => SocketAddr::new(ip, u16::try_from(port.as_u64()?).ok()?).to_string(),
                    None => ip.to_string(),
                };
                Some(format!("dnat {} to {target}", protocol(ip)))
            }
            "reject" if value["type"] == "tcp reset" => Some("reject with tcp reset".to_owned()),
            kind if value.is_null() => Some(kind.to_owned()),
            _ => None,
        }
    };
    known().unwrap_or_else(|| statement.to_string())
}
