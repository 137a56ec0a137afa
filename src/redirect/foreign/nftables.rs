//! Finds redirects of the node's own metadata requests in a table of nftables. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use serde_json::Value;

use crate::metadata_service::{METADATA_IPV4, METADATA_IPV6};
use crate::redirect::nftables::TABLE;
use crate::redirect::rules::Family;

/// A table, as `nft` names it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct TableName {
    /// Its family.
    pub(super) family: String,
    /// Its name.
    pub(super) name: String,
}

impl TableName {
    /// Returns whether this is the table `nat` that `iptables-nft` uses for a family.
    pub(super) fn is_of_iptables(&self, family: Family) -> bool {
        self.name == "nat" && self.family == if family == Family::V4 { "ip" } else { "ip6" }
    }
}

/// Returns the tables, except our own, with a chain that changes the destination of the node's own packets. `json` lists all
/// chains.
pub(super) fn tables_with_own_nat(json: &str) -> BTreeSet<TableName> {
    let listed: Value = serde_json::from_str(json).unwrap_or_default();
    let chains = objects(&listed, "chain").filter(|chain| is_own_nat(chain));
    let names = chains.map(|chain| TableName { family: text(&chain["family"]), name: text(&chain["table"]) });
    names.filter(|table| table.family != "inet" || table.name != TABLE).collect()
}

/// Describes the rules and the elements of maps that name the metadata address, or a network with it, and redirect what the node's
/// own processes send there, by themselves or through other chains of the table. `json` lists one table.
pub(super) fn redirects(json: &str) -> Vec<String> {
    let listed: Value = serde_json::from_str(json).unwrap_or_default();
    let table = Table::of(&listed);
    let from = objects(&listed, "chain").filter(|chain| is_own_nat(chain)).map(|chain| text(&chain["name"]));
    let mut found = Vec::new();
    for chain in table.closure(from.collect()) {
        for rule in table.rules_of(&chain) {
            if names_metadata(rule, false) && table.redirects(rule) {
                found.push(format!("a rule of the chain {chain} names the metadata address and redirects"));
            }
            for map in maps_of(rule) {
                let elements = table.maps.get(&map).into_iter().flatten();
                if elements.clone().any(|element| names_metadata(&element[0], true) && table.element_redirects(rule, element)) {
                    found.push(format!("the map {map}, which the chain {chain} uses, redirects the metadata address"));
                }
            }
        }
    }
    found
}

/// The rules and maps of a table.
#[derive(Debug, Default)]
struct Table<'a> {
    rules: BTreeMap<String, Vec<&'a Value>>,
    maps: BTreeMap<String, Vec<&'a Value>>,
}

impl<'a> Table<'a> {
    fn of(listed: &'a Value) -> Self {
        let mut table = Self::default();
        for rule in objects(listed, "rule") {
            table.rules.entry(text(&rule["chain"])).or_default().push(&rule["expr"]);
        }
        for map in objects(listed, "map") {
            let elements = map["elem"].as_array().into_iter().flatten();
            table.maps.insert(text(&map["name"]), elements.collect());
        }
        table
    }

    fn rules_of(&self, chain: &str) -> impl Iterator<Item = &'a Value> {
        self.rules.get(chain).into_iter().flatten().copied()
    }

    /// Returns these chains and those that can be reached from them.
    fn closure(&self, from: Vec<String>) -> BTreeSet<String> {
        let (mut reached, mut next) = (BTreeSet::new(), from);
        while let Some(chain) = next.pop() {
            if reached.insert(chain.clone()) {
                let of_rule = |rule: &'a Value| {
                    let elements = maps_of(rule).into_iter().flat_map(|map| self.maps.get(&map).into_iter().flatten());
                    targets(rule).into_iter().chain(elements.flat_map(|element| targets(element)))
                };
                next.extend(self.rules_of(&chain).flat_map(of_rule));
            }
        }
        reached
    }

    /// Returns whether a statement redirects by itself, or sends packets to chains of which one does.
    fn redirects(&self, statement: &Value) -> bool {
        let by_itself = |value: &Value| has_key(value, &["dnat", "redirect"]) || is_target_of_iptables(value);
        by_itself(statement) || self.closure(targets(statement)).iter().any(|chain| self.rules_of(chain).any(by_itself))
    }

    /// Returns whether an element of a map redirects: it holds a verdict, or an address for a `dnat` of the rule that uses it.
    fn element_redirects(&self, rule: &Value, element: &Value) -> bool {
        self.redirects(&element[1]) || (has_key(rule, &["dnat"]) && targets(element).is_empty())
    }
}

fn objects<'a>(listed: &'a Value, kind: &'a str) -> impl Iterator<Item = &'a Value> {
    listed["nftables"].as_array().into_iter().flatten().filter_map(move |object| object.get(kind))
}

fn is_own_nat(chain: &Value) -> bool {
    chain["type"] == "nat" && chain["hook"] == "output"
}

/// Returns the chains that a statement, or any part of it, jumps or goes to.
fn targets(value: &Value) -> Vec<String> {
    let mut found = Vec::new();
    visit(value, &mut |key, value| {
        if matches!(key, "jump" | "goto") {
            found.push(text(&value["target"]));
        }
    });
    found
}

/// Returns the names of the maps that a rule looks addresses up in.
fn maps_of(rule: &Value) -> Vec<String> {
    let mut found = Vec::new();
    visit(rule, &mut |key, value| {
        if matches!(key, "vmap" | "map") {
            found.extend(value["data"].as_str().and_then(|name| name.strip_prefix('@')).map(str::to_owned));
        }
    });
    found
}

fn has_key(value: &Value, keys: &[&str]) -> bool {
    let mut has = false;
    visit(value, &mut |key, _| has |= keys.contains(&key));
    has
}

/// nft cannot print the targets of iptables, and names them only.
fn is_target_of_iptables(value: &Value) -> bool {
    let mut is = false;
    visit(value, &mut |key, value| is |= key == "xt" && matches!(value["name"].as_str(), Some("DNAT" | "REDIRECT" | "NETMAP")));
    is
}

/// Calls a function with every key of an object inside this value, and what the key has.
fn visit<'a>(value: &'a Value, see: &mut impl FnMut(&str, &'a Value)) {
    match value {
        Value::Array(values) => values.iter().for_each(|value| visit(value, see)),
        Value::Object(fields) => {
            for (key, value) in fields {
                see(key, value);
                visit(value, see);
            }
        }
        _ => {}
    }
}

/// Returns whether a value has the metadata address, or a network or range with it. Of a rule, only what packets are compared with
/// counts (`bare` is false), and not where they are sent.
fn names_metadata(value: &Value, bare: bool) -> bool {
    match value {
        Value::String(text) => bare && text.parse().is_ok_and(is_metadata),
        Value::Array(values) => values.iter().any(|value| names_metadata(value, bare)),
        Value::Object(fields) => fields.iter().any(|(key, value)| match key.as_str() {
            "match" => value["op"] != "!=" && names_metadata(&value["right"], true),
            // The keys of an anonymous map; what they lead to are verdicts or addresses.
            "vmap" | "map" => {
                let elements = value["data"]["set"].as_array().into_iter().flatten();
                elements.into_iter().any(|element| names_metadata(&element[0], true))
            }
            "prefix" if bare => includes(value),
            "range" if bare => is_between(value),
            "dnat" | "redirect" => value.as_object().is_some_and(|to| to.values().any(|to| to.is_object() && names_metadata(to, false))),
            _ => names_metadata(value, bare),
        }),
        _ => false,
    }
}

fn is_metadata(ip: IpAddr) -> bool {
    ip == METADATA_IPV4 || ip == METADATA_IPV6
}

fn includes(prefix: &Value) -> bool {
    let (Some(Ok(network)), Some(length)) = (prefix["addr"].as_str().map(str::parse::<IpAddr>), prefix["len"].as_u64()) else {
        return false;
    };
    let length = u32::try_from(length).unwrap_or(u32::MAX);
    match network {
        IpAddr::V4(network) => {
            let shift = 32_u32.saturating_sub(length);
            network.to_bits().checked_shr(shift) == METADATA_IPV4.to_bits().checked_shr(shift)
        }
        IpAddr::V6(network) => {
            let shift = 128_u32.saturating_sub(length);
            network.to_bits().checked_shr(shift) == METADATA_IPV6.to_bits().checked_shr(shift)
        }
    }
}

fn is_between(range: &Value) -> bool {
    let end = |at: usize| range[at].as_str().and_then(|text| text.parse::<IpAddr>().ok());
    let (Some(first), Some(last)) = (end(0), end(1)) else { return false };
    [IpAddr::V4(METADATA_IPV4), IpAddr::V6(METADATA_IPV6)]
        .iter()
        .any(|address| first.is_ipv4() == address.is_ipv4() && last.is_ipv4() == address.is_ipv4() && (first..=last).contains(address))
}

fn text(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn nat_output(table: &str) -> Value {
        json!({"chain": {"family": "ip", "table": table, "name": "nat-output", "type": "nat", "hook": "output", "prio": -100}})
    }

    fn rule(chain: &str, expr: Value) -> Value {
        json!({"rule": {"family": "ip", "table": "t", "chain": chain, "expr": expr}})
    }

    fn found(objects: &[Value]) -> Vec<String> {
        redirects(&json!({ "nftables": objects }).to_string())
    }

    /// What kube-proxy's mode `nftables` writes for a Service with this external IP.
    fn kube_proxy(external_ip: &str) -> Vec<Value> {
        let key = json!({"concat": [{"payload": {"protocol": "ip", "field": "daddr"}}, {"meta": {"key": "l4proto"}}, {"payload": {"protocol": "th", "field": "dport"}}]});
        vec![
            nat_output("kube-proxy"),
            json!({"map": {"family": "ip", "name": "service-ips", "table": "kube-proxy", "map": "verdict", "elem": [
                [{"concat": ["10.96.0.1", "tcp", 443]}, {"goto": {"target": "service-a"}}],
                [{"elem": {"val": {"concat": [external_ip, "tcp", 80]}, "comment": "evil/imds:http"}}, {"goto": {"target": "external-b"}}],
            ]}}),
            rule("nat-output", json!([{"jump": {"target": "services"}}])),
            rule("services", json!([{"vmap": {"key": key, "data": "@service-ips"}}])),
            rule("service-a", json!([{"accept": null}])),
            rule("external-b", json!([{"goto": {"target": "service-b"}}])),
            rule("service-b", json!([{"vmap": {"key": {"numgen": {}}, "data": {"set": [[0, {"goto": {"target": "endpoint-b"}}]]}}}])),
            rule(
                "endpoint-b",
                json!([{"match": {"op": "==", "left": {"meta": {"key": "l4proto"}}, "right": "tcp"}}, {"dnat": {"addr": "10.42.0.7", "port": 8080}}]),
            ),
        ]
    }

    #[test]
    fn a_service_with_the_metadata_address_is_found() {
        assert_eq!(
            found(&kube_proxy("169.254.169.254")),
            ["the map service-ips, which the chain services uses, redirects the metadata address"]
        );
        assert_eq!(found(&kube_proxy("192.0.2.1")), [""; 0]);
    }

    #[test]
    fn only_redirects_of_the_metadata_address_count() {
        let matches = |op: &str, right: Value| json!({"match": {"op": op, "left": {"payload": {"protocol": "ip", "field": "daddr"}}, "right": right}});
        let dnat = || json!({"dnat": {"addr": "10.0.0.1"}});
        let redirects = |expr: Value| found(&[nat_output("t"), rule("nat-output", expr)]).len();
        for right in [
            json!("169.254.169.254"),
            json!({"prefix": {"addr": "169.254.0.0", "len": 16}}),
            json!({"prefix": {"addr": "0.0.0.0", "len": 0}}),
            json!({"range": ["169.254.169.0", "169.254.169.255"]}),
            json!({"set": ["192.0.2.1", "169.254.169.254"]}),
            json!("fd00:ec2::254"),
            json!({"prefix": {"addr": "fd00:ec2::", "len": 32}}),
        ] {
            assert_eq!(redirects(json!([matches("==", right.clone()), dnat()])), 1, "{right}");
            assert_eq!(redirects(json!([matches("==", right.clone()), {"redirect": {"port": 1}}])), 1, "{right}");
            assert_eq!(redirects(json!([matches("==", right.clone()), {"xt": {"type": "target", "name": "DNAT"}}])), 1, "{right}");
            assert_eq!(redirects(json!([matches("!=", right.clone()), dnat()])), 0, "{right}");
            assert_eq!(redirects(json!([matches("==", right.clone()), {"return": null}])), 0, "{right}");
            // In a chain that the node's own packets do not reach.
            assert_eq!(found(&[nat_output("t"), rule("other", json!([matches("==", right.clone()), dnat()]))]).len(), 0, "{right}");
        }
        for right in
            [json!("169.254.170.2"), json!({"prefix": {"addr": "169.254.170.0", "len": 24}}), json!({"range": ["1.0.0.0", "2.0.0.0"]})]
        {
            assert_eq!(redirects(json!([matches("==", right.clone()), dnat()])), 0, "{right}");
        }
        // The address that packets are sent to is not one that they are compared with.
        assert_eq!(redirects(json!([matches("==", json!("192.0.2.1")), {"dnat": {"addr": "169.254.169.254"}}])), 0);
        let anonymous = json!({"dnat": {"addr": {"map": {"key": {"payload": {"protocol": "ip", "field": "daddr"}},
            "data": {"set": [["169.254.169.254", "10.0.0.1"]]}}}}});
        assert_eq!(redirects(json!([anonymous])), 1);
        assert_eq!(redirects(json!([])), 0);
        assert_eq!(super::redirects(""), [""; 0]);
    }

    #[test]
    fn tables_with_nat_for_the_nodes_own_packets_are_read() {
        let chain = |family: &str, table: &str, kind: &str, hook: &str| json!({"chain": {"family": family, "table": table, "name": "c", "type": kind, "hook": hook, "prio": -100}});
        let chains = json!({"nftables": [
            chain("ip", "kube-proxy", "nat", "output"), chain("inet", TABLE, "nat", "output"), chain("ip", "a", "nat", "prerouting"),
            chain("ip", "b", "filter", "output"), chain("ip6", "nat", "nat", "output"),
        ]});
        let found: Vec<_> = tables_with_own_nat(&chains.to_string()).into_iter().collect();
        let name = |family: &str, name: &str| TableName { family: family.to_owned(), name: name.to_owned() };
        assert_eq!(found, [name("ip", "kube-proxy"), name("ip6", "nat")]);
        assert!(found[1].is_of_iptables(Family::V6) && !found[1].is_of_iptables(Family::V4) && !found[0].is_of_iptables(Family::V4));
    }
}
