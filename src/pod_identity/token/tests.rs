use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jiff::{SignedDuration, Timestamp};
use proptest::prelude::*;
use rolegate_lab::kube::{Attack, PodToken, SigningKey, TokenIssuer};
use serde_json::{Value, json};

use super::*;
use crate::advice::Advise as _;
use crate::pod_identity::keys::KeySet;

const ISSUER: &str = "https://kubernetes.default.svc";
const AUDIENCE: &str = "pods.eks.amazonaws.com";
const UID: &str = "0d1c3e5a-7b64-4d0e-9a51-000000000001";

fn now() -> Timestamp {
    "2026-11-30T12:00:00Z".parse().unwrap()
}

fn pod_token() -> PodToken {
    PodToken::new("shop", "web-1", UID).issued_at(now())
}

/// Verifies a token with the keys of the issuer, at a time.
fn verify_at(issuer: &TokenIssuer, token: &str, time: Timestamp) -> Result<Claims, TokenError> {
    let keys = KeySet::parse(issuer.jwks().to_string().as_bytes()).unwrap();
    let issuers = [ISSUER.to_owned()];
    let expected = Expected { issuers: &issuers, audience: AUDIENCE };
    let token = BearerToken::new(token.as_bytes())?;
    let unverified = UnverifiedToken::parse(&token)?;
    let key = keys.get(unverified.key_id()).ok_or(TokenError::UnknownKey)?;
    let checked = unverified.check(expected, time);
    let verified = unverified.verify(key, expected, time);
    if let Err(error) = checked {
        assert!(verified.is_err(), "{error} was only found before the signature");
        return Err(error);
    }
    verified
}

fn verify(issuer: &TokenIssuer, token: &str) -> Result<Claims, TokenError> {
    verify_at(issuer, token, now())
}

fn issuer(key: SigningKey) -> TokenIssuer {
    TokenIssuer::new(ISSUER, key)
}

/// Verifies the token of a pod after a change of its claims.
fn verify_changed(change: impl FnOnce(&mut Value)) -> Result<Claims, TokenError> {
    let key = SigningKey::es256();
    let mut claims = pod_token().claims(ISSUER);
    change(&mut claims);
    verify(&issuer(key.clone()), &key.sign(&key.header(), &claims))
}

/// Verifies text in the places of header and payload, signed by the issuer.
fn verify_text(header: &str, payload: &str) -> Result<Claims, TokenError> {
    let key = SigningKey::es256().with_id("k");
    verify(&issuer(key.clone()), &key.sign_text(header, payload))
}

fn header(members: &str) -> Result<Claims, TokenError> {
    verify_text(&format!("{{{members}}}"), &pod_token().claims(ISSUER).to_string())
}

#[test]
fn tokens_of_every_kind_of_key_are_verified() {
    for key in [SigningKey::rs256(), SigningKey::other_rs256(), SigningKey::es256(), SigningKey::es384()] {
        let issuer = issuer(key);
        let claims = verify(&issuer, &issuer.issue(&pod_token().service_account("web", UID))).unwrap();
        assert_eq!((&*claims.namespace, &*claims.pod, &*claims.pod_uid.0), ("shop", "web-1", UID));
        assert_eq!((&*claims.service_account, &*claims.service_account_uid), ("web", UID));
        assert_eq!(claims.node.unwrap().name, "node-a");
        assert_eq!((claims.issued, claims.expires), (now(), now() + SignedDuration::from_hours(1)));
        assert!(claims.token_id.is_some());
    }
}

#[test]
fn tokens_of_clusters_without_node_info_have_no_node() {
    let issuer = issuer(SigningKey::es256());
    let claims = verify(&issuer, &issuer.issue(&pod_token().before_node_info())).unwrap();
    assert_eq!((claims.node, claims.token_id), (None, None));
    let claims = verify(&issuer, &issuer.issue(&pod_token().node("node-b", None))).unwrap();
    assert_eq!(claims.node, Some(NodeClaim { name: "node-b".to_owned(), uid: None }));
}

#[test]
fn tokens_of_attackers_are_refused() {
    let expected = |attack, is_rsa| match attack {
        Attack::NoSignature | Attack::PublicKeyAsSecret => TokenError::UnsupportedAlgorithm,
        Attack::EmptySignature | Attack::ChangedClaim => TokenError::BadSignature,
        Attack::OwnKeySameId if is_rsa => TokenError::BadSignature,
        Attack::OtherAlgorithmSameId | Attack::EmbeddedKey if !is_rsa => TokenError::BadSignature,
        Attack::OwnKeySameId | Attack::OtherAlgorithmSameId | Attack::EmbeddedKey => TokenError::WrongAlgorithm,
        Attack::PathAsId => TokenError::UnknownKey,
        Attack::NoId => TokenError::BadKeyId,
        Attack::CriticalExtension => TokenError::CriticalExtension,
        Attack::TwoIds => TokenError::BadHeader,
    };
    for key in [SigningKey::rs256(), SigningKey::es256()] {
        let (is_rsa, issuer) = (key.algorithm() == "RS256", issuer(key));
        for attack in Attack::ALL {
            let result = verify(&issuer, &issuer.forge(attack, &pod_token()));
            assert_eq!(result, Err(expected(attack, is_rsa)), "{attack:?}");
        }
    }
}

#[test]
fn a_token_is_valid_from_a_minute_before_its_start_to_its_end() {
    let issuer = issuer(SigningKey::es256());
    let token = issuer.issue(&pod_token().valid_for(SignedDuration::from_secs(600)));
    for (offset, expected) in [
        (-61, Some(TokenError::NotYetValid)),
        (-60, None),
        (0, None),
        (599, None),
        (600, Some(TokenError::Expired)),
        (601, Some(TokenError::Expired)),
        (i64::from(u32::MAX), Some(TokenError::Expired)),
    ] {
        let result = verify_at(&issuer, &token, now() + SignedDuration::from_secs(offset));
        assert_eq!(result.err(), expected, "{offset} s");
    }
}

#[test]
fn tokens_of_other_issuers_and_for_other_audiences_are_refused() {
    let issuer = issuer(SigningKey::es256());
    for other in ["https://kubernetes.default.svc/", "https://kubernetes.default.svc.cluster.local", "HTTPS://kubernetes.default.svc", ""] {
        assert_eq!(verify(&issuer, &issuer.issue(&pod_token().issuer(other))), Err(TokenError::WrongIssuer), "{other}");
    }
    for audiences in [&["https://kubernetes.default.svc"][..], &["sts.amazonaws.com"], &["pods.eks.amazonaws.com."], &[""], &[]] {
        let token = issuer.issue(&pod_token().audiences(audiences));
        assert_eq!(verify(&issuer, &token), Err(TokenError::WrongAudience), "{audiences:?}");
    }
    assert!(verify(&issuer, &issuer.issue(&pod_token().audiences(&["vault", AUDIENCE]))).is_ok());
    assert!(verify_changed(|claims| claims["aud"] = AUDIENCE.into()).is_ok(), "an audience may be a string");
    assert_eq!(verify_changed(|claims| claims["aud"] = "vault".into()), Err(TokenError::WrongAudience));
}

#[test]
fn tokens_that_are_not_bound_to_a_pod_are_refused() {
    let issuer = issuer(SigningKey::es256());
    assert_eq!(verify(&issuer, &issuer.issue(&pod_token().not_of_pod())), Err(TokenError::NotOfPod));
    for member in ["namespace", "pod", "serviceaccount"] {
        for absent in [true, false] {
            let result = verify_changed(|claims| match absent {
                true => drop(claims["kubernetes.io"].as_object_mut().unwrap().remove(member)),
                false => claims["kubernetes.io"][member] = Value::Null,
            });
            assert_eq!(result, Err(TokenError::NotOfPod), "{member}");
        }
    }
    assert_eq!(verify_changed(|claims| drop(claims.as_object_mut().unwrap().remove("kubernetes.io"))), Err(TokenError::NotOfPod));
}

#[test]
fn claims_have_the_types_and_forms_that_kubernetes_gives_them() {
    for claim in ["iss", "sub", "aud", "exp", "nbf", "iat"] {
        assert_eq!(verify_changed(|claims| drop(claims.as_object_mut().unwrap().remove(claim))), Err(TokenError::BadPayload), "{claim}");
        for odd in [Value::Null, json!({}), json!([1]), json!(true)] {
            assert_eq!(verify_changed(|claims| claims[claim] = odd.clone()), Err(TokenError::BadPayload), "{claim} {odd}");
        }
    }
    for claim in ["exp", "nbf", "iat"] {
        for odd in [json!("1796040000"), json!(1.5), json!(1e30), json!(u64::MAX)] {
            assert_eq!(verify_changed(|claims| claims[claim] = odd.clone()), Err(TokenError::BadPayload), "{claim} {odd}");
        }
        for far in [i64::MAX, i64::MIN] {
            assert_eq!(verify_changed(|claims| claims[claim] = far.into()), Err(TokenError::BadClaim(claim)), "{far}");
        }
    }
    let long = "a".repeat(254);
    let names = ["", "Web", "web/1", "../web", "we b", "-web", "wéb", "web\n", &long];
    let uids = ["", "uid-1", "0D1C3E5A-7B64-4D0E-9A51-000000000001", "0d1c3e5a7b64-4d0e-9a51-000000000001-", "../0d1c3e5a", &long];
    for claim in [
        "kubernetes.io/namespace",
        "kubernetes.io/pod/name",
        "kubernetes.io/serviceaccount/name",
        "kubernetes.io/node/name",
        "kubernetes.io/pod/uid",
        "kubernetes.io/serviceaccount/uid",
        "kubernetes.io/node/uid",
    ] {
        for odd in if claim.ends_with("uid") { &uids[..] } else { &names } {
            let result = verify_changed(|claims| *claims.pointer_mut(&format!("/{claim}")).unwrap() = (*odd).into());
            assert_eq!(result, Err(TokenError::BadClaim(claim)), "{odd:?}");
        }
    }
    let label = "a".repeat(64);
    for odd in ["shop.web", &label] {
        let result = verify_changed(|claims| claims["kubernetes.io"]["namespace"] = odd.into());
        assert_eq!(result, Err(TokenError::BadClaim("kubernetes.io/namespace")), "{odd}");
    }
    for odd in ["system:serviceaccount:shop:other", "system:serviceaccount:other:default", "system:node:node-a", ""] {
        assert_eq!(verify_changed(|claims| claims["sub"] = odd.into()), Err(TokenError::BadClaim("sub")), "{odd}");
    }
    for odd in ["", "a b", "a\nb", &"a".repeat(65)] {
        assert_eq!(verify_changed(|claims| claims["jti"] = odd.into()), Err(TokenError::BadClaim("jti")), "{odd:?}");
    }
}

#[test]
fn members_that_kubernetes_adds_are_ignored() {
    let with_more = verify_changed(|claims| {
        claims["kubernetes.io"]["warnafter"] = 1.into();
        claims["kubernetes.io"]["secret"] = json!({ "name": "x", "uid": "y" });
        claims["new"] = json!({ "a": [1, 2.5, "x", null, true, { "b": -1 }] });
    });
    assert!(with_more.is_ok(), "{with_more:?}");
}

#[test]
fn repeated_members_are_refused_everywhere() {
    let claims = pod_token().claims(ISSUER).to_string();
    let key = r#""alg":"ES256","kid":"k""#;
    let header = |rest: &str| format!("{{{key}{rest}}}");
    assert!(verify_text(&header(""), &claims).is_ok());
    for rest in [r#","kid":"k""#, r#","alg":"ES256""#, r#","x":1,"x":1"#, r#","\u0061lg":"ES256""#, r#","x":{"y":1,"y":2}"#] {
        assert_eq!(verify_text(&header(rest), &claims), Err(TokenError::BadHeader), "{rest}");
    }
    for more in [r#""iss":"https://kubernetes.default.svc""#, r#""\u0069ss":"x""#, r#""x":[{"y":1,"y":1}]"#, r#""exp":9999999999"#] {
        let payload = claims.replacen('{', &format!("{{{more},"), 1);
        assert_eq!(verify_text(&header(""), &payload), Err(TokenError::BadPayload), "{more}");
    }
    let pod = format!(r#""pod":{{"uid":"{UID}","#);
    assert_eq!(verify_text(&header(""), &claims.replacen(r#""pod":{"#, &pod, 1)), Err(TokenError::BadPayload));
}

#[test]
fn only_objects_with_the_needed_members_are_headers() {
    assert!(header(r#""alg":"ES256","kid":"k""#).is_ok());
    assert!(header(r#""alg":"ES256","kid":"k","typ":"JWT","x5u":"http://127.0.0.1:1","x5c":["x"],"jku":"file:///etc/passwd""#).is_ok());
    for algorithm in
        ["none", "None", "HS256", "HS384", "HS512", "RS384", "RS512", "PS256", "ES512", "ES256K", "EdDSA", "es256", "ES256 ", ""]
    {
        let result = header(&format!(r#""alg":"{algorithm}","kid":"k""#));
        assert_eq!(result, Err(TokenError::UnsupportedAlgorithm), "{algorithm}");
    }
    for algorithm in ["RS256", "ES384"] {
        assert_eq!(header(&format!(r#""alg":"{algorithm}","kid":"k""#)), Err(TokenError::WrongAlgorithm), "{algorithm}");
    }
    for crit in ["[]", "null", "false", r#"["exp"]"#, "0"] {
        assert_eq!(header(&format!(r#""alg":"ES256","kid":"k","crit":{crit}"#)), Err(TokenError::CriticalExtension), "{crit}");
    }
    for id in [r#""""#, "null"] {
        assert_eq!(header(&format!(r#""alg":"ES256","kid":{id}"#)), Err(TokenError::BadKeyId), "{id}");
    }
    assert_eq!(header(&format!(r#""alg":"ES256","kid":"{}""#, "k".repeat(MAX_KEY_ID + 1))), Err(TokenError::BadKeyId));
    assert_eq!(header(&format!(r#""alg":"ES256","kid":"{}""#, "k".repeat(MAX_KEY_ID))), Err(TokenError::UnknownKey));
    for id in ["K", "k ", " k", "k/", "./k", "../k", "%6b", "k\\u0000", "\u{212a}", "*", "' OR 1=1 --"] {
        assert_eq!(header(&format!(r#""alg":"ES256","kid":"{id}""#)), Err(TokenError::UnknownKey), "{id}");
    }
    let claims = pod_token().claims(ISSUER).to_string();
    for odd in
        ["", "null", "[]", r#"["ES256","k",false]"#, r#""ES256""#, r#"{"alg":1,"kid":"k"}"#, r#"{"alg":"ES256","kid":1}"#, r#"{"kid":"k"}"#]
    {
        assert_eq!(verify_text(odd, &claims), Err(TokenError::BadHeader), "{odd}");
    }
    let header = r#"{"alg":"ES256","kid":"k"}"#;
    assert_eq!(verify_text(&format!("{header}x"), &claims), Err(TokenError::BadHeader));
    for odd in ["", "null", "[]", "{}", "1", &format!("{claims}x"), &"[".repeat(4000), &format!(r#"{{"x":{}"#, "[".repeat(4000))] {
        assert_eq!(verify_text(header, odd), Err(TokenError::BadPayload), "{odd}");
    }
}

#[test]
fn only_three_parts_of_canonical_base64url_are_a_token() {
    let key = SigningKey::es256();
    let issuer = issuer(key.clone());
    let token = issuer.issue(&pod_token());
    assert!(verify(&issuer, &token).is_ok());
    let [header, payload, signature] = token.split('.').collect::<Vec<_>>()[..] else { panic!("{token}") };
    for odd in [
        String::new(),
        ".".to_owned(),
        "..".to_owned(),
        "...".to_owned(),
        format!("{header}.{payload}"),
        format!("{token}.{signature}"),
        format!("{token}."),
        format!(".{token}"),
        format!("Bearer {token}"),
        format!("{token}\n"),
        format!(" {token}"),
        format!("{token}="),
        token.replace('.', "+"),
        format!("{header}.{payload}.{signature}\u{e9}"),
        format!("{header}=.{payload}.{signature}"),
        format!("{header}.{payload}.{signature}A"),
        json!({ "protected": header, "payload": payload, "signature": signature }).to_string(),
    ] {
        let result = verify(&issuer, &odd);
        assert!(matches!(result, Err(TokenError::NotCompact | TokenError::BadHeader | TokenError::BadSignature)), "{odd}: {result:?}");
    }
    assert_eq!(BearerToken::new(b"\xff\xfe").err(), Some(TokenError::NotCompact));
    // 86 characters hold 516 bits: the last four must be zero, so that a signature has one form.
    let last = signature.chars().last().unwrap();
    let next = char::from(u8::try_from(last).unwrap() + 1);
    assert_eq!(verify(&issuer, &format!("{}{next}", &token[..token.len() - 1])), Err(TokenError::NotCompact));
    for cut in 1..signature.len() {
        assert!(verify(&issuer, &token[..token.len() - cut]).is_err());
    }
}

#[test]
fn sizes_are_checked_before_anything_is_decoded() {
    // None of these is base64url: decoding would give another reason.
    for (header, payload, signature) in [(2049, 1, 1), (1, 6145, 1), (1, 1, 1367)] {
        let token = ["A".repeat(header), "A".repeat(payload), "A".repeat(signature)].join(".");
        assert_eq!(verify(&issuer(SigningKey::es256()), &token), Err(TokenError::TooLarge), "{header} {payload} {signature}");
    }
    assert_eq!(BearerToken::new(&vec![0; MAX_TOKEN + 1]).err(), Some(TokenError::TooLarge));
    assert!(BearerToken::new(&vec![b'A'; MAX_TOKEN]).is_ok());
}

#[test]
fn a_signature_has_the_form_of_the_algorithm() {
    let key = SigningKey::es256();
    let issuer = issuer(key);
    let token = issuer.issue(&pod_token());
    let (signed, _) = token.rsplit_once('.').unwrap();
    let zeros = |length| format!("{signed}.{}", URL_SAFE_NO_PAD.encode(vec![0; length]));
    let ones = format!("{signed}.{}", URL_SAFE_NO_PAD.encode([0xff; 64]));
    for token in [zeros(0), zeros(63), zeros(64), zeros(65), zeros(256), ones] {
        assert_eq!(verify(&issuer, &token), Err(TokenError::BadSignature), "{token}");
    }
}

/// The examples of RFC 7515, appendices A.2 and A.3: nothing of this project made them.
#[test]
fn signatures_of_the_standard_are_verified() {
    const PAYLOAD: &str = "eyJpc3MiOiJqb2UiLA0KICJleHAiOjEzMDA4MTkzODAsDQogImh0dHA6Ly9leGFtcGxlLmNvbS9pc19yb290Ijp0cnVlfQ";
    let rsa = json!({
        "kty": "RSA", "kid": "a2", "e": "AQAB",
        "n": "ofgWCuLjybRlzo0tZWJjNiuSfb4p4fAkd_wWJcyQoTbji9k0l8W26mPddxHmfHQp-Vaw-4qPCJrcS2mJPMEzP1Pt0Bm4d4QlL-yRT-SFd2lZS-pCgNMsD1W_\
              YpRPEwOWvG6b32690r2jZ47soMZo9wGzjb_7OMg0LOL-bSf63kpaSHSXndS5z5rexMdbBYUsLA9e-KXBdQOS-UTo7WTBEMa2R2CapHg665xsmtdVMTBQY4uDZ\
              lxvb3qCo5ZwKh9kG4LT6_I5IhlJH7aGhyxXFvUK-DWNmoudF8NAco9_h9iaGNj8q2ethFkMLs91kzk2PAcDTW9gb54h4FRWyuXpoQ",
    });
    let ec = json!({
        "kty": "EC", "kid": "a3", "crv": "P-256",
        "x": "f83OJ3D2xF1Bg8vub9tLe1gHMzV76e8Tus9uPHvRVEU", "y": "x_FEzRu9m36HLN_tue659LNpXW6pCyStikYjKIWI5a0",
    });
    let keys = KeySet::parse(json!({ "keys": [rsa, ec] }).to_string().as_bytes()).unwrap();
    for (id, header, signature) in [
        (
            "a2",
            "eyJhbGciOiJSUzI1NiJ9",
            "cC4hiUPoj9Eetdgtv3hF80EGrhuB__dzERat0XF9g2VtQgr9PJbu3XOiZj5RZmh7AAuHIm4Bh-0Qc_lF5YKt_O8W2Fp5jujGbds9uJdbF9CUAr7t1dnZcAcQjbK\
             BYNX4BAynRFdiuB--f_nZLgrnbyTyWzO75vRK5h6xBArLIARNPvkSjtQBMHlb1L07Qe7K0GarZRmB_eSN9383LcOLn6_dO--xi12jzDwusC-eOkHWEsqtFZESc\
             6BfI7noOPqvhJ1phCnvWh6IeYI2w9QOYEUipUTI8np6LbgGY9Fs98rqVt5AXLIhWkWywlVmtVrBp0igcN_IoypGlUPQGe77Rw",
        ),
        ("a3", "eyJhbGciOiJFUzI1NiJ9", "DtEhU3ljbEg8L38VWAfUAqOyKAM6-Xx-F4GawxaepmXFCgfTjDxw5djxLa8ISlSApmWQxfKTUJqPP3-Kg6NU1Q"),
    ] {
        let key = keys.get(id).unwrap();
        let signature = URL_SAFE_NO_PAD.decode(signature).unwrap();
        let signed = format!("{header}.{PAYLOAD}");
        assert!(key.has_signed(signed.as_bytes(), &signature), "{id}");
        assert!(!key.has_signed(format!("{signed} ").as_bytes(), &signature), "{id}");
    }
}

#[test]
fn neither_tokens_nor_their_errors_show_their_text() {
    let issuer = issuer(SigningKey::es256());
    let text = issuer.issue(&pod_token());
    let token = BearerToken::new(text.as_bytes()).unwrap();
    let unverified = UnverifiedToken::parse(&token).unwrap();
    let shown = format!("{token:?} {unverified:?}");
    assert!(text.split('.').all(|part| !shown.contains(part)) && !shown.contains("web-1"), "{shown}");
}

#[test]
fn every_reason_has_a_name_a_status_and_advice() {
    let names: std::collections::BTreeSet<_> = TokenError::ALL.iter().map(|error| error.name()).collect();
    assert_eq!(names.len(), TokenError::ALL.len());
    for error in TokenError::ALL {
        let name = error.name();
        assert!(name.starts_with("token-") && name.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'-'), "{name}");
        assert!(error.advice().is_some_and(|advice| !error.to_string().contains(&*advice)), "{name}");
    }
    let status = |error: TokenError| error.kind().status().as_u16();
    for (error, expected) in [
        (TokenError::TooLarge, 400),
        (TokenError::UnsupportedAlgorithm, 400),
        (TokenError::Expired, 400),
        (TokenError::NotYetValid, 400),
        (TokenError::WrongIssuer, 403),
        (TokenError::NotOfPod, 403),
        (TokenError::BadSignature, 403),
        (TokenError::UnknownKey, 403),
        (TokenError::NoKeys, 503),
        (TokenError::KeysOutdated, 503),
        (TokenError::FetchesLimited, 503),
        (TokenError::Missing, 400),
        (TokenError::ReviewRefused, 403),
        (TokenError::ReviewUnavailable, 503),
    ] {
        assert_eq!(status(error), expected, "{error}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]

    #[test]
    fn no_text_makes_the_parser_fail_or_pass(text in "[A-Za-z0-9_-]{0,40}\\.[A-Za-z0-9_-]{0,40}\\.[A-Za-z0-9_-]{0,90}|.{0,60}") {
        prop_assert!(verify(&issuer(SigningKey::es256()), &text).is_err());
    }

    #[test]
    fn no_change_of_a_token_is_accepted(place in any::<prop::sample::Index>(), byte in any::<u8>()) {
        let issuer = issuer(SigningKey::rs256());
        let token = issuer.issue(&pod_token());
        let mut changed = token.clone().into_bytes();
        let place = place.index(changed.len());
        changed[place] = byte;
        let accepted = std::str::from_utf8(&changed).is_ok_and(|changed| verify(&issuer, changed).is_ok());
        prop_assert_eq!(accepted, changed == token.as_bytes());
    }
}
