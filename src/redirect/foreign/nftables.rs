//! Finds redirects by other programs in a table of nftables. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use serde_json::Value;

use super::destination::{Destination, Fit, is_in_network};
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

/// Returns the tables, except our own, with a chain that can redirect packets to one of the destinations. `json` lists all chains. Fails if
/// it is no JSON.
pub(super) fn tables_with_nat(json: &str, destinations: &[Destination]) -> Result<BTreeSet<TableName>, String> {
    let listed: Value = serde_json::from_str(json).map_err(|error| error.to_string())?;
    let chains = objects(&listed, "chain").filter(|chain| destinations.iter().any(|destination| is_nat(chain, *destination)));
    let names = chains.map(|chain| TableName { family: text(&chain["family"]), name: text(&chain["table"]) });
    Ok(names.filter(|table| table.family != "inet" || table.name != TABLE).collect())
}

/// Describes the rules and the elements of maps that name a destination, or a network or range with it, and redirect what is sent
/// there, by themselves or through other chains of the table. `json` lists one table. Fails if it is no JSON.
pub(super) fn redirects(json: String, destinations: &[Destination]) -> Result<Vec<(Destination, String)>, String> {
    let listed: Value = serde_json::from_str(&json).map_err(|error| error.to_string())?;
    drop(json);
    let of_one = |destination: Destination| to(&listed, destination).into_iter().map(move |what| (destination, what));
    Ok(destinations.iter().copied().flat_map(of_one).collect())
}

fn to(listed: &Value, destination: Destination) -> Vec<String> {
    let table = Table::of(listed, destination);
    let from = objects(listed, "chain").filter(|chain| is_nat(chain, destination)).map(|chain| text(&chain["name"]));
    let name = destination.name();
    let mut found = Vec::new();
    for chain in table.closure(from.collect()) {
        for rule in table.rules_of(&chain) {
            let by_rule = table.fit(rule) == Fit::Named && table.redirects(rule);
            let mut is_rule_described = false;
            for map in maps_of(rule) {
                let mut elements = table.elements_of(&map).filter(|element| fit_of(map.key, &element[0], destination) == Fit::Named);
                if !elements.any(|element| table.element_redirects(rule, element)) {
                    continue;
                }
                match map.name() {
                    Some(map) => found.push(format!("the map {map}, which the chain {chain} uses, redirects {name}")),
                    None => is_rule_described = true,
                }
            }
            if by_rule || is_rule_described {
                found.push(format!("a rule of the chain {chain} names {name} and redirects"));
            }
        }
    }
    found
}

/// The rules and maps of a table, for packets to a destination.
#[derive(Debug)]
struct Table<'a> {
    destination: Destination,
    rules: BTreeMap<String, Vec<&'a Value>>,
    maps: BTreeMap<String, Vec<&'a Value>>,
}

/// A map that a rule looks packets up in.
#[derive(Clone, Copy, Debug)]
struct MapUse<'a> {
    /// What is looked up.
    key: &'a Value,
    /// The elements, or the name of the map.
    data: &'a Value,
}

impl MapUse<'_> {
    /// Returns the name, unless the map is part of the rule.
    fn name(&self) -> Option<&str> {
        self.data.as_str().and_then(|name| name.strip_prefix('@'))
    }
}

impl<'a> Table<'a> {
    fn of(listed: &'a Value, destination: Destination) -> Self {
        let mut table = Self { destination, rules: BTreeMap::new(), maps: BTreeMap::new() };
        for rule in objects(listed, "rule") {
            table.rules.entry(text(&rule["chain"])).or_default().push(&rule["expr"]);
        }
        for map in objects(listed, "map") {
            let elements = map["elem"].as_array().into_iter().flatten();
            table.maps.insert(text(&map["name"]), elements.collect());
        }
        table
    }

    /// Returns the rules of a chain that may apply.
    fn rules_of(&self, chain: &str) -> impl Iterator<Item = &'a Value> {
        self.rules.get(chain).into_iter().flatten().copied().filter(|rule| self.fit(rule) != Fit::Excluded)
    }

    /// Returns the elements of a map.
    fn elements_of(&self, map: &MapUse<'a>) -> impl Iterator<Item = &'a Value> {
        let named = map.name().and_then(|name| self.maps.get(name)).into_iter().flatten().copied();
        named.chain(map.data["set"].as_array().into_iter().flatten())
    }

    /// Returns whether a rule applies to packets to the destination, by its matches.
    fn fit(&self, rule: &Value) -> Fit {
        let matches = rule.as_array().into_iter().flatten().filter_map(|statement| statement.get("match"));
        let fits = matches.map(|one| {
            let fit = fit_of(&one["left"], &one["right"], self.destination);
            match one["op"].as_str() {
                Some("==" | "in") => fit,
                Some("!=") => fit.negated(),
                _ => Fit::Open,
            }
        });
        fits.fold(Fit::Open, Fit::and)
    }

    /// Returns these chains and those that packets can reach from them.
    fn closure(&self, from: Vec<String>) -> BTreeSet<String> {
        let (mut reached, mut next) = (BTreeSet::new(), from);
        while let Some(chain) = next.pop() {
            if reached.insert(chain.clone()) {
                next.extend(self.rules_of(&chain).flat_map(|rule| self.next_of(rule)));
            }
        }
        reached
    }

    /// Returns the chains that a rule sends packets to, by itself and by the elements of its maps.
    fn next_of(&self, rule: &'a Value) -> Vec<String> {
        let maps = maps_of(rule);
        let mut next: Vec<_> = rule.as_array().into_iter().flatten().filter(|one| one.get("vmap").is_none()).flat_map(targets).collect();
        for map in &maps {
            let elements = self.elements_of(map).filter(|element| fit_of(map.key, &element[0], self.destination) != Fit::Excluded);
            next.extend(elements.flat_map(targets));
        }
        next
    }

    /// Returns whether a rule redirects by itself, or sends packets to chains of which one does.
    fn redirects(&self, rule: &'a Value) -> bool {
        redirects_by_itself(rule) || self.any_redirects(self.next_of(rule))
    }

    fn any_redirects(&self, chains: Vec<String>) -> bool {
        self.closure(chains).iter().any(|chain| self.rules_of(chain).any(redirects_by_itself))
    }

    /// Returns whether an element of a map redirects: it holds a verdict, or an address for a `dnat` of the rule that uses it.
    fn element_redirects(&self, rule: &Value, element: &Value) -> bool {
        let targets = targets(element);
        (targets.is_empty() && has_key(rule, &["dnat"])) || self.any_redirects(targets)
    }
}

fn redirects_by_itself(rule: &Value) -> bool {
    has_key(rule, &["dnat", "redirect"]) || is_target_of_iptables(rule)
}

fn objects<'a>(listed: &'a Value, kind: &'a str) -> impl Iterator<Item = &'a Value> {
    listed["nftables"].as_array().into_iter().flatten().filter_map(move |object| object.get(kind))
}

/// Returns whether a chain can redirect packets to the destination.
fn is_nat(chain: &Value, destination: Destination) -> bool {
    let is_at = destination.hooks().iter().any(|hook| chain["hook"] == *hook);
    chain["type"] == "nat" && is_at && destination.is_exposed_to(chain["prio"].as_i64())
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

/// Returns the maps that a rule looks packets up in.
fn maps_of(rule: &Value) -> Vec<MapUse<'_>> {
    let mut found = Vec::new();
    visit(rule, &mut |key, value| {
        if matches!(key, "vmap" | "map") {
            found.push(MapUse { key: &value["key"], data: &value["data"] });
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

/// Returns whether a property of packets to the destination (`left`) has one of these values (`right`).
fn fit_of(left: &Value, right: &Value, destination: Destination) -> Fit {
    if let Some(alternatives) = right["set"].as_array().or_else(|| right.as_array()) {
        let fits = alternatives.iter().map(|one| fit_of(left, one, destination));
        return fits.max().unwrap_or(Fit::Excluded);
    }
    if let Some(element) = right.get("elem") {
        return fit_of(left, &element["val"], destination);
    }
    if let (Some(parts), Some(values)) = (left["concat"].as_array(), right["concat"].as_array()) {
        return parts.iter().zip(values).map(|(left, right)| fit_of(left, right, destination)).fold(Fit::Open, Fit::and);
    }
    // A named set may have any elements.
    if right.as_str().is_some_and(|name| name.starts_with('@')) {
        return Fit::Open;
    }
    let (payload, ct) = (&left["payload"], text(&left["ct"]["key"]));
    let field = payload["field"].as_str().unwrap_or_default();
    match destination.port() {
        _ if field == "daddr" || ct.ends_with("daddr") => Fit::named_if(is_address_in(right, destination.ip())),
        Some(port) if field == "dport" && matches!(payload["protocol"].as_str(), Some("tcp" | "th")) => {
            Fit::named_if(is_port_in(right, port))
        }
        // A port of another protocol.
        Some(_) if field == "dport" => Fit::Excluded,
        Some(_) if left["meta"]["key"] == "l4proto" || matches!(field, "protocol" | "nexthdr") => {
            Fit::open_if(matches!(text(right).as_str(), "tcp" | "6"))
        }
        _ => Fit::Open,
    }
}

/// Returns whether a value is this address, or a network or range with it.
fn is_address_in(value: &Value, ip: IpAddr) -> bool {
    let address = |value: &Value| value.as_str().and_then(|text| text.parse::<IpAddr>().ok());
    if let (Some(network), Some(length)) = (address(&value["prefix"]["addr"]), value["prefix"]["len"].as_u64()) {
        return is_in_network(ip, network, u32::try_from(length).unwrap_or(u32::MAX));
    }
    if let (Some(first), Some(last)) = (address(&value["range"][0]), address(&value["range"][1])) {
        return [first, last].iter().all(|end| end.is_ipv4() == ip.is_ipv4()) && (first..=last).contains(&ip);
    }
    address(value) == Some(ip)
}

/// Returns whether a value is this port, or a range with it.
fn is_port_in(value: &Value, port: u16) -> bool {
    let port = u64::from(port);
    match (value["range"][0].as_u64(), value["range"][1].as_u64()) {
        (Some(first), Some(last)) => (first..=last).contains(&port),
        _ => value.as_u64() == Some(port),
    }
}

fn text(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test says loudly what failed")]
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
        let found = redirects(json!({ "nftables": objects }).to_string(), &Family::ALL.map(Destination::Metadata)).unwrap();
        found.into_iter().map(|(_, what)| what).collect()
    }

    fn found_to(daemon: &str, objects: &[Value]) -> Vec<String> {
        to(&json!({ "nftables": objects }), Destination::Daemon(daemon.parse().unwrap()))
    }

    /// What kube-proxy's mode `nftables` writes for a Service with this external IP.
    fn kube_proxy(external_ip: &str) -> Vec<Value> {
        kube_proxy_at(external_ip, 80)
    }

    fn kube_proxy_at(external_ip: &str, port: u16) -> Vec<Value> {
        let key = json!({"concat": [{"payload": {"protocol": "ip", "field": "daddr"}}, {"meta": {"key": "l4proto"}}, {"payload": {"protocol": "th", "field": "dport"}}]});
        vec![
            nat_output("kube-proxy"),
            json!({"map": {"family": "ip", "name": "service-ips", "table": "kube-proxy", "map": "verdict", "elem": [
                [{"concat": ["10.96.0.1", "tcp", 443]}, {"goto": {"target": "service-a"}}],
                [{"elem": {"val": {"concat": [external_ip, "tcp", port]}, "comment": "evil/imds:http"}}, {"goto": {"target": "external-b"}}],
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
        // What cannot be read is not the same as nothing.
        assert!(super::redirects(String::new(), &[Destination::Metadata(Family::V4)]).is_err() && tables_with_nat("{", &[]).is_err());
    }

    #[test]
    fn a_service_with_the_daemons_address_and_port_is_found() {
        const DAEMON: &str = "192.0.2.1:8181";
        assert_eq!(
            found_to(DAEMON, &kube_proxy_at("192.0.2.1", 8181)),
            ["the map service-ips, which the chain services uses, redirects the daemon's address and port"]
        );
        for (ip, port) in [("192.0.2.1", 8182), ("192.0.2.2", 8181), ("169.254.169.254", 80)] {
            assert_eq!(found_to(DAEMON, &kube_proxy_at(ip, port)), [""; 0], "{ip}:{port}");
        }
    }

    #[test]
    fn only_redirects_of_the_daemons_address_and_port_count() {
        let prerouting =
            json!({"chain": {"family": "ip", "table": "t", "name": "dstnat", "type": "nat", "hook": "prerouting", "prio": -100}});
        let matches = |op: &str, left: Value, right: Value| json!({"match": {"op": op, "left": left, "right": right}});
        let field = |protocol: &str, field: &str| json!({"payload": {"protocol": protocol, "field": field}});
        let (daddr, dport) = (|| field("ip", "daddr"), |protocol: &str| field(protocol, "dport"));
        let dnat = || json!({"dnat": {"addr": "10.42.0.7", "port": 8080}});
        let count = |daemon: &str, expr: Value| found_to(daemon, &[prerouting.clone(), rule("dstnat", expr)]).len();
        let daemon = "192.0.2.1:8181";
        let tcp = || matches("==", json!({"meta": {"key": "l4proto"}}), json!("tcp"));
        for expr in [
            json!([matches("==", daddr(), json!("192.0.2.1")), dnat()]),
            json!([matches("==", daddr(), json!("192.0.2.1")), matches("==", dport("tcp"), json!(8181)), dnat()]),
            json!([matches("==", daddr(), json!({"prefix": {"addr": "192.0.2.0", "len": 24}})), tcp(), dnat()]),
            // A host port of a pod.
            json!([matches("==", dport("tcp"), json!(8181)), dnat()]),
            json!([matches("==", dport("th"), json!({"range": [8000, 9000]})), {"redirect": {"port": 1}}]),
            json!([matches("==", dport("tcp"), json!({"set": [80, 8181]})), {"xt": {"type": "target", "name": "DNAT"}}]),
            json!([matches("==", daddr(), json!("@node-ips")), matches("==", dport("tcp"), json!(8181)), dnat()]),
        ] {
            assert_eq!(count(daemon, expr.clone()), 1, "{expr}");
            assert_eq!(found(&[prerouting.clone(), rule("dstnat", expr.clone())]).len(), 0, "{expr}");
        }
        for expr in [
            json!([tcp(), dnat()]),
            json!([matches("==", daddr(), json!("192.0.2.1")), {"accept": null}]),
            json!([matches("==", daddr(), json!("192.0.2.1")), matches("==", dport("tcp"), json!(8182)), dnat()]),
            json!([matches("==", daddr(), json!("192.0.2.1")), matches("==", dport("udp"), json!(8181)), dnat()]),
            json!([matches("==", daddr(), json!("192.0.2.2")), matches("==", dport("tcp"), json!(8181)), dnat()]),
            json!([matches("!=", daddr(), json!("192.0.2.1")), matches("==", dport("tcp"), json!(8181)), dnat()]),
            json!([matches("==", field("ip", "saddr"), json!("192.0.2.1")), dnat()]),
            json!([matches("==", field("ip", "protocol"), json!("udp")), matches("==", dport("th"), json!(8181)), dnat()]),
        ] {
            assert_eq!(count(daemon, expr.clone()), 0, "{expr}");
        }
        let ipv6 = json!([matches("==", field("ip6", "daddr"), json!("2001:db8::1")), dnat()]);
        assert_eq!((count("[2001:db8::1]:8181", ipv6.clone()), count(daemon, ipv6)), (1, 0));
        // A chain that packets to the daemon do not reach.
        let jump = |port: u16| {
            let expr = json!([matches("==", daddr(), json!("192.0.2.9")), {"jump": {"target": "other"}}]);
            let other = json!([matches("==", dport("tcp"), json!(port)), dnat()]);
            found_to(daemon, &[prerouting.clone(), rule("dstnat", expr), rule("other", other)]).len()
        };
        assert_eq!(jump(8181), 0);
    }

    #[test]
    fn tables_with_nat_for_the_destinations_are_read() {
        let chain = |family: &str, table: &str, kind: &str, hook: &str| json!({"chain": {"family": family, "table": table, "name": "c", "type": kind, "hook": hook, "prio": -100}});
        let chains = json!({"nftables": [
            chain("ip", "kube-proxy", "nat", "output"), chain("inet", TABLE, "nat", "output"), chain("ip", "a", "nat", "prerouting"),
            chain("ip", "b", "filter", "output"), chain("ip6", "nat", "nat", "output"),
        ]});
        let tables =
            |destinations: &[Destination]| tables_with_nat(&chains.to_string(), destinations).unwrap().into_iter().collect::<Vec<_>>();
        let found = tables(&[Destination::Metadata(Family::V4)]);
        let name = |family: &str, name: &str| TableName { family: family.to_owned(), name: name.to_owned() };
        assert_eq!(found, [name("ip", "kube-proxy"), name("ip6", "nat")]);
        let of_daemon = tables(&[Destination::Daemon("192.0.2.1:8181".parse().unwrap())]);
        assert_eq!(of_daemon, [name("ip", "a"), name("ip", "kube-proxy"), name("ip6", "nat")]);
        assert!(found[1].is_of_iptables(Family::V6) && !found[1].is_of_iptables(Family::V4) && !found[0].is_of_iptables(Family::V4));
    }
}
