//! Whether containers may have the capability `NET_RAW`, with which a pod can forge packets and ARP replies of other pods.
//!
//! containerd, CRI-O and Docker's shim accept names of capabilities in any case, without `CAP_`. A container without settings
//! gets their default set, which includes `NET_RAW` in containerd and Docker. In `drop`, containerd ignores names with the
//! prefix. In doubt, a container counts as having the capability.

use std::fmt;
use std::marker::PhantomData;

use serde::Deserialize;
use serde::de::{Deserializer, SeqAccess, Visitor};

use super::super::fields::Field;

/// Whether one of a list of containers may have it. The list itself is not kept, not even while it is read.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct AnyNetRaw(pub(super) bool);

impl<'de> Deserialize<'de> for AnyNetRaw {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        any(deserializer, Container::may_have_net_raw).map(Self)
    }
}

/// Bytes of a capability's name that can matter.
const MAX_NAME: usize = 32;

/// What is read of a list of containers: the fields of [`Container`].
pub(super) fn containers() -> Field {
    let names = || Field::array(Field::Scalar(MAX_NAME));
    let capabilities = Field::object([("add", names()), ("drop", names())]);
    let context = Field::object([("privileged", Field::text()), ("capabilities", capabilities)]);
    Field::array(Field::object([("securityContext", context)]))
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Container {
    security_context: Option<SecurityContext>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct SecurityContext {
    privileged: Option<bool>,
    capabilities: Option<Capabilities>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Capabilities {
    add: Option<Added>,
    drop: Option<Dropped>,
}

/// Whether a list of added capabilities includes it.
struct Added(bool);

/// Whether a list of dropped capabilities includes it.
struct Dropped(bool);

impl Container {
    fn may_have_net_raw(self) -> bool {
        let context = self.security_context.unwrap_or_default();
        let capabilities = context.capabilities.unwrap_or_default();
        context.privileged == Some(true) || capabilities.add.is_some_and(|Added(it)| it) || !capabilities.drop.is_some_and(|Dropped(it)| it)
    }
}

impl<'de> Deserialize<'de> for Added {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let is_it = |name: Box<str>| {
            let bare = name.get(..4).filter(|prefix| prefix.eq_ignore_ascii_case("CAP_")).map_or(&*name, |_| &name[4..]);
            is_net_raw_or_all(bare)
        };
        any(deserializer, is_it).map(Self)
    }
}

impl<'de> Deserialize<'de> for Dropped {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        any(deserializer, |name: Box<str>| is_net_raw_or_all(&name)).map(Self)
    }
}

fn is_net_raw_or_all(name: &str) -> bool {
    name.eq_ignore_ascii_case("NET_RAW") || name.eq_ignore_ascii_case("ALL")
}

/// Whether any element of a list matches. Elements are read and dropped one by one.
fn any<'de, T: Deserialize<'de>, D: Deserializer<'de>>(deserializer: D, is_so: impl Fn(T) -> bool) -> Result<bool, D::Error> {
    struct Any<T, F>(F, PhantomData<T>);

    impl<'de, T: Deserialize<'de>, F: Fn(T) -> bool> Visitor<'de> for Any<T, F> {
        type Value = bool;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a list")
        }

        fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<bool, A::Error> {
            let mut found = false;
            while let Some(element) = list.next_element()? {
                found |= (self.0)(element);
            }
            Ok(found)
        }
    }

    deserializer.deserialize_seq(Any(is_so, PhantomData))
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
    fn a_container_that_says_nothing_has_it() {
        for context in [json!(null), json!({}), json!({ "capabilities": null }), json!({ "capabilities": { "drop": [], "add": null } })] {
            assert!(of(context.clone()), "{context}");
        }
        assert!(may_have_net_raw(json!({ "containers": [{ "name": "web" }] })));
        // A pod that has no containers sends nothing.
        assert!(!may_have_net_raw(json!({})) && !may_have_net_raw(json!({ "containers": null, "initContainers": [] })));
    }

    #[test]
    fn what_is_dropped_and_what_is_added_counts_as_runtimes_take_it() {
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
