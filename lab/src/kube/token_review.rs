//! TokenReviews: what kube-apiserver says of a service account token.

use serde_json::{Value, json};

use super::issuer::TokenIssuer;
use super::objects::Resource;
use super::store::Store;

/// Returns the review with its status.
pub(super) fn answer(issuer: &TokenIssuer, store: &Store, mut review: Value) -> Value {
    review["status"] = match confirmed(issuer, store, &review["spec"]) {
        Ok(status) => status,
        Err(error) => json!({ "authenticated": false, "user": {}, "error": format!("[invalid bearer token, {error}]") }),
    };
    review
}

fn confirmed(issuer: &TokenIssuer, store: &Store, spec: &Value) -> Result<Value, &'static str> {
    let claims = issuer.verify(spec["token"].as_str().unwrap_or_default())?;
    let wanted = spec["audiences"].as_array().cloned().unwrap_or_default();
    let audiences: Vec<&Value> = claims["aud"].as_array().into_iter().flatten().filter(|audience| wanted.contains(audience)).collect();
    if audiences.is_empty() {
        return Err("wrong audience");
    }
    let kubernetes = &claims["kubernetes.io"];
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let (namespace, account, pod) = (text(&kubernetes["namespace"]), &kubernetes["serviceaccount"], &kubernetes["pod"]);
    let uid_of =
        |resource, name: &Value| store.get(resource, &(namespace.clone(), text(name))).map(|object| object["metadata"]["uid"].clone());
    // Unlike on a real server, a service account that was never applied counts as existing.
    if uid_of(Resource::ServiceAccounts, &account["name"]).is_some_and(|uid| uid != account["uid"]) {
        return Err("the service account was replaced");
    }
    let mut extra = json!({});
    if pod.is_object() {
        if uid_of(Resource::Pods, &pod["name"]).as_ref() != Some(&pod["uid"]) {
            return Err("the pod was deleted");
        }
        extra["authentication.kubernetes.io/pod-name"] = json!([pod["name"]]);
        extra["authentication.kubernetes.io/pod-uid"] = json!([pod["uid"]]);
    }
    let user = json!({
        "username": claims["sub"],
        "uid": account["uid"],
        "groups": ["system:serviceaccounts", format!("system:serviceaccounts:{namespace}"), "system:authenticated"],
        "extra": extra,
    });
    Ok(json!({ "authenticated": true, "user": user, "audiences": audiences }))
}
