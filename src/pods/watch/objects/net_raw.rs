//! Determines whether containers may have the capability `NET_RAW`, with which a pod can forge packets and ARP replies of other
//! pods.
//!
//! containerd, CRI-O and Docker's shim accept names of capabilities in any case, without `CAP_`. A container without settings
//! gets their default set, which includes `NET_RAW` in containerd and Docker. In `drop`, containerd ignores names with the
//! prefix. In conflict, a container counts as having the capability.

use serde::Deserialize;
use serde::de::Deserializer;
use serde_json::Value;

use crate::kubernetes::fields::Field;

/// The longest name of a capability that can matter, in bytes.
const MAX_NAME: usize = 32;

/// Returns the fields of a list of containers that are used.
pub(super) fn containers() -> Field {
    let names = || Field::array(Field::Scalar(MAX_NAME));
    let capabilities = Field::object([("add", names()), ("drop", names())]);
    let context = Field::object([("privileged", Field::text()), ("capabilities", capabilities)]);
    Field::array(Field::object([("securityContext", context)]))
}

/// Whether any container of a list may have it. The list itself is not kept, and its contents cannot make a pod unreadable.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct AnyNetRaw(pub(super) bool);

impl<'de> Deserialize<'de> for AnyNetRaw {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let containers = Value::deserialize(deserializer)?;
        Ok(Self(containers.as_array().is_some_and(|containers| containers.iter().any(may_have_net_raw))))
    }
}

fn may_have_net_raw(container: &Value) -> bool {
    let context = &container["securityContext"];
    let capabilities = &context["capabilities"];
    let has = |list: &Value, is_it: fn(&str) -> bool| list.as_array().is_some_and(|list| list.iter().filter_map(Value::as_str).any(is_it));
    let is_added = |name: &str| {
        let bare = name.get(..4).filter(|prefix| prefix.eq_ignore_ascii_case("CAP_")).map_or(name, |_| &name[4..]);
        is_net_raw_or_all(bare)
    };
    context["privileged"] == true || has(&capabilities["add"], is_added) || !has(&capabilities["drop"], is_net_raw_or_all)
}

fn is_net_raw_or_all(name: &str) -> bool {
    name.eq_ignore_ascii_case("NET_RAW") || name.eq_ignore_ascii_case("ALL")
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::super::PodObject;

    fn may_have_net_raw(spec: Value) -> bool {
        let object = json!({ "metadata": { "name": "web", "uid": "1" }, "spec": spec });
        serde_json::from_value::<PodObject>(object).unwrap().may_have_net_raw
    }

    fn of(context: Value) -> bool {
        may_have_net_raw(json!({ "containers": [{ "name": "web", "image": "web", "securityContext": context }] }))
    }

    #[test]
    fn a_container_without_settings_has_it() {
        for context in [json!(null), json!({}), json!({ "capabilities": null }), json!({ "capabilities": { "drop": [], "add": null } })] {
            assert!(of(context.clone()), "{context}");
        }
        assert!(may_have_net_raw(json!({ "containers": [{ "name": "web" }] })));
        // A pod without containers sends nothing.
        assert!(!may_have_net_raw(json!({})) && !may_have_net_raw(json!({ "containers": null, "initContainers": [] })));
    }

    #[test]
    fn dropped_and_added_capabilities_count_as_in_runtimes() {
        for (drop, add, privileged, expected) in [
            (vec!["ALL"], vec![], false, false),
            (vec!["all"], vec![], false, false),
            (vec!["NET_RAW"], vec![], false, false),
            (vec!["CHOWN", "net_raw"], vec!["NET_ADMIN"], false, false),
            (vec!["ALL"], vec!["NET_BIND_SERVICE"], false, false),
            (vec!["CHOWN"], vec![], false, true),
            // containerd turns it into CAP_CAP_NET_RAW, and drops nothing.
            (vec!["CAP_NET_RAW"], vec![], false, true),
            (vec!["ALL"], vec!["NET_RAW"], false, true),
            (vec!["ALL"], vec!["CAP_NET_RAW"], false, true),
            (vec!["ALL"], vec!["cap_net_raw"], false, true),
            (vec!["NET_RAW"], vec!["All"], false, true),
            (vec!["ALL"], vec!["\u{20ac}\u{20ac}"], false, false),
            (vec!["ALL"], vec![], true, true),
        ] {
            let context = json!({ "privileged": privileged, "capabilities": { "drop": drop, "add": add } });
            assert_eq!(of(context.clone()), expected, "{context}");
        }
    }

    #[test]
    fn one_container_of_any_kind_is_enough() {
        let (without, with) = (json!({ "securityContext": { "capabilities": { "drop": ["ALL"] } } }), json!({}));
        for kind in ["containers", "initContainers", "ephemeralContainers"] {
            let mut spec = json!({ "containers": [without], "initContainers": [without], "ephemeralContainers": [without, without] });
            assert!(!may_have_net_raw(spec.clone()));
            for place in 0..2 {
                spec[kind] = if place == 0 { json!([with, without]) } else { json!([without, with]) };
                assert!(may_have_net_raw(spec.clone()), "{kind}");
            }
        }
    }
}
