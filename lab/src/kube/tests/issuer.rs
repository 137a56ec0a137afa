use serde_json::json;

use super::{apply_pod, start};
use crate::kube::{SigningKey, Verb};

const KEYS: &str = "/openid/v1/jwks";
const KEYS_TYPE: &str = "application/jwk-set+json";

#[tokio::test]
async fn the_documents_of_the_issuer_are_published() {
    let (api, client) = start();
    let issuer = api.token_issuer();
    let new = SigningKey::es256();
    issuer.rotate(new.clone());
    let keys = client.get_ok(KEYS).await;
    let listed: Vec<_> = keys["keys"].as_array().unwrap().iter().map(|key| &key["kid"]).collect();
    assert_eq!(listed, [&json!(SigningKey::rs256().id()), &json!(new.id())]);
    let configuration = client.get_ok("/.well-known/openid-configuration").await;
    assert_eq!(configuration["issuer"], json!(issuer.url()));
    issuer.withdraw(new.id());
    assert_eq!(client.get_ok(KEYS).await["keys"].as_array().unwrap().len(), 1);
}

#[tokio::test]
async fn keys_have_a_media_type_of_their_own() {
    let (_api, client) = start();
    assert_eq!(client.clone().accept("application/json").get(KEYS).await.0, 406);
    for accepted in [KEYS_TYPE, "application/jwk-set+json, application/json", "application/json, */*"] {
        client.clone().accept(accepted).get_ok(KEYS).await;
    }
}

#[tokio::test]
async fn the_documents_can_be_denied() {
    let (api, client) = start();
    api.deny(Verb::Get, KEYS);
    let (code, status) = client.get(KEYS).await;
    assert_eq!((code, &status["reason"]), (403, &json!("Forbidden")));
    client.get_ok("/.well-known/openid-configuration").await;
    api.allow(Verb::Get, KEYS);
    assert_eq!(client.post(KEYS, &json!({})).await.0, 405);
}

#[tokio::test]
async fn the_token_of_a_pod_names_what_is_stored() {
    let (api, _client) = start();
    apply_pod(&api, "web-1", "node-b");
    let claims = api.pod_token("team", "web-1").unwrap().claims("https://issuer");
    let pod = api.get(crate::kube::Resource::Pods, Some("team"), "web-1").unwrap();
    assert_eq!(claims["kubernetes.io"]["pod"], json!({ "name": "web-1", "uid": pod["metadata"]["uid"] }));
    assert_eq!(claims["kubernetes.io"]["node"], json!({ "name": "node-b" }), "there is no node object");
    assert_eq!(claims["sub"], "system:serviceaccount:team:default");
    assert_eq!(claims["exp"].as_i64().unwrap() - claims["iat"].as_i64().unwrap(), 3600);
    assert!(api.pod_token("team", "gone").is_none());
}
