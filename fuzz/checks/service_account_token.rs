//! Service account tokens: nothing that the issuer did not sign is accepted, and what it signed is accepted only if it says what
//! Kubernetes writes.

use std::sync::OnceLock;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jiff::Timestamp;
use ring::rand::SystemRandom;
use ring::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _};
use rolegate::pod_identity::keys::{KeySet, issuer_of};
use rolegate::pod_identity::token::{BearerToken, Claims, Expected, TokenError, UnverifiedToken};
use serde_json::{Value, json};

use super::fields;

const ISSUER: &str = "https://issuer";
const AUDIENCE: &str = "pods.eks.amazonaws.com";
const HEADER: &str = r#"{"alg":"ES256","kid":"k"}"#;

/// An input is a token, the text of a payload, the text of a header, or a document of the issuer.
pub(crate) fn check(data: &[u8]) {
    assert!(verify(data).is_err(), "a token that nobody signed was accepted: {data:?}");
    let _ = KeySet::parse(data);
    let _ = issuer_of(data);
    let [payload, header] = fields(data);
    let Ok(claims) = verify(&sign(if header.is_empty() { HEADER.as_bytes() } else { header }, payload)) else { return };
    // Any parser that is too simple to be wrong must agree.
    let read: Value = serde_json::from_slice(payload).unwrap();
    let of_kubernetes = &read["kubernetes.io"];
    assert_eq!((&read["iss"], &of_kubernetes["namespace"]), (&json!(ISSUER), &json!(claims.namespace)));
    assert_eq!(of_kubernetes["pod"]["name"], json!(claims.pod));
    assert_eq!(of_kubernetes["pod"]["uid"], json!(&*claims.pod_uid.0));
    assert_eq!(of_kubernetes["serviceaccount"]["name"], json!(claims.service_account));
    assert_eq!(of_kubernetes["node"]["name"], claims.node.map_or(Value::Null, |node| json!(node.name)));
    assert_eq!(read["sub"], json!(format!("system:serviceaccount:{}:{}", claims.namespace, claims.service_account)));
    let audiences = read["aud"].as_array().map_or_else(|| vec![read["aud"].clone()], Vec::clone);
    assert!(audiences.contains(&json!(AUDIENCE)), "{audiences:?}");
    assert!(read["exp"].as_i64().unwrap() > now().as_second() && claims.expires > now());
    assert!(!claims.pod.contains('/') && !claims.namespace.contains(['/', '.']), "{claims:?}", claims = (claims.pod, claims.namespace));
}

fn now() -> Timestamp {
    "2026-11-30T12:00:00Z".parse().unwrap()
}

fn verify(token: &[u8]) -> Result<Claims, TokenError> {
    static KEYS: OnceLock<KeySet> = OnceLock::new();
    let keys = KEYS.get_or_init(|| KeySet::parse(json!({ "keys": [jwk()] }).to_string().as_bytes()).unwrap());
    let issuers = [ISSUER.to_owned()];
    let expected = Expected { issuers: &issuers, audience: AUDIENCE };
    let token = BearerToken::new(token)?;
    let unverified = UnverifiedToken::parse(&token)?;
    let key = keys.get(unverified.key_id()).ok_or(TokenError::UnknownKey)?;
    unverified.verify(key, expected, now())
}

fn pair() -> &'static EcdsaKeyPair {
    static PAIR: OnceLock<EcdsaKeyPair> = OnceLock::new();
    PAIR.get_or_init(|| {
        let random = SystemRandom::new();
        let pkcs8 = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &random).unwrap();
        EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, pkcs8.as_ref(), &random).unwrap()
    })
}

fn jwk() -> Value {
    let (x, y) = pair().public_key().as_ref()[1..].split_at(32);
    json!({ "kty": "EC", "crv": "P-256", "kid": "k", "alg": "ES256", "use": "sig", "x": text(x), "y": text(y) })
}

fn sign(header: &[u8], payload: &[u8]) -> Vec<u8> {
    let signed = format!("{}.{}", text(header), text(payload));
    let signature = pair().sign(&SystemRandom::new(), signed.as_bytes()).unwrap();
    format!("{signed}.{}", text(signature.as_ref())).into_bytes()
}

fn text(bytes: &[u8]) -> String {
    URL_SAFE_NO_PAD.encode(bytes)
}
