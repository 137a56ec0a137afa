//! Determines whether a pod has a service account token for an audience of its own choice. Only such a pod can request credentials with a
//! token. The token that every pod has is for the API server and names no audience.

use serde::Deserialize;
use serde::de::Deserializer;
use serde_json::Value;

use crate::kubernetes::fields::Field;

/// Returns the fields of a list of volumes that are used.
pub(super) fn volumes() -> Field {
    let token = Field::object([("audience", Field::text())]);
    let sources = Field::array(Field::object([("serviceAccountToken", token)]));
    Field::array(Field::object([("projected", Field::object([("sources", sources)]))]))
}

/// Whether any volume of a list has such a token. The list itself is not kept, and its contents cannot make a pod unreadable.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct AnyTokenAudience(pub(super) bool);

impl<'de> Deserialize<'de> for AnyTokenAudience {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let volumes = Value::deserialize(deserializer)?;
        let sources = volumes.as_array().into_iter().flatten().filter_map(|volume| volume["projected"]["sources"].as_array()).flatten();
        let mut audiences = sources.filter_map(|source| source["serviceAccountToken"]["audience"].as_str());
        Ok(Self(audiences.any(|audience| !audience.is_empty())))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::super::PodObject;

    fn has_token_audience(volumes: Value) -> bool {
        let object = json!({ "metadata": { "name": "web", "uid": "1" }, "spec": { "volumes": volumes } });
        serde_json::from_value::<PodObject>(object).unwrap().has_token_audience
    }

    #[test]
    fn only_a_projected_token_with_an_audience_counts() {
        let token = |audience: Value| json!({ "projected": { "sources": [{ "configMap": {} }, { "serviceAccountToken": audience }] } });
        let of_identity = token(json!({ "audience": "pods.eks.amazonaws.com", "path": "token" }));
        assert!(has_token_audience(json!([{ "emptyDir": {} }, of_identity])));
        for volumes in [
            json!(null),
            json!([]),
            json!([token(json!({ "path": "token" }))]),
            json!([token(json!({ "audience": "" }))]),
            json!([token(json!(null))]),
            json!([{ "projected": { "sources": null } }, { "projected": null }]),
            json!({ "projected": of_identity }),
        ] {
            assert!(!has_token_audience(volumes.clone()), "{volumes}");
        }
    }
}
