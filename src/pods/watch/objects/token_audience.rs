//! The audiences of a pod's projected service account tokens. Only a pod with a token for the audience of `--pod-identity-audience` can
//! request credentials with it. The token that every pod has is for the API server and names no audience.

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

/// The audiences of the tokens in a list of volumes. The contents of the list cannot make a pod unreadable.
#[derive(Clone, Debug, Default)]
pub(super) struct TokenAudiences(pub(super) Vec<String>);

impl<'de> Deserialize<'de> for TokenAudiences {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let volumes = Value::deserialize(deserializer)?;
        let sources = volumes.as_array().into_iter().flatten().filter_map(|volume| volume["projected"]["sources"].as_array()).flatten();
        let audiences = sources.filter_map(|source| source["serviceAccountToken"]["audience"].as_str());
        Ok(Self(audiences.filter(|audience| !audience.is_empty()).map(str::to_owned).collect()))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::super::PodObject;

    fn token_audiences(volumes: Value) -> Vec<String> {
        let object = json!({ "metadata": { "name": "web", "uid": "1" }, "spec": { "volumes": volumes } });
        serde_json::from_value::<PodObject>(object).unwrap().token_audiences
    }

    #[test]
    fn only_projected_tokens_with_an_audience_count() {
        let token = |audience: Value| json!({ "projected": { "sources": [{ "configMap": {} }, { "serviceAccountToken": audience }] } });
        let of_identity = token(json!({ "audience": "pods.eks.amazonaws.com", "path": "token" }));
        let of_vault = token(json!({ "audience": "vault", "path": "token" }));
        assert_eq!(token_audiences(json!([{ "emptyDir": {} }, of_identity, of_vault])), ["pods.eks.amazonaws.com", "vault"]);
        for volumes in [
            json!(null),
            json!([]),
            json!([token(json!({ "path": "token" }))]),
            json!([token(json!({ "audience": "" }))]),
            json!([token(json!(null))]),
            json!([{ "projected": { "sources": null } }, { "projected": null }]),
            json!({ "projected": of_identity }),
        ] {
            assert_eq!(token_audiences(volumes.clone()), Vec::<String>::new(), "{volumes}");
        }
    }
}
