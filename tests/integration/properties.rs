//! The checks of the fuzz targets, with inputs from proptest. The inputs are close to valid ones, because anything else is
//! rejected at the first byte.

use http::Version;
use proptest::option;
use proptest::prelude::*;

#[path = "../../fuzz/checks/mod.rs"]
mod checks;

const ROLE: &str = "(arn:aws(-cn)?:iam::(111122223333|444455556666):role/)?(/|team/|web|Nodes|nodes|[a-z*.^|()]|[ \n\u{e9}]){0,5}";
const LIST: &str = r#"\[("(arn:aws:iam::111122223333:role/)?(\*|\.\*|web|team/|[a-z/(|)^]){0,4}",?){0,2}\]"#;
const EXPRESSION: &str = r"(arn:aws:iam::111122223333:role/|\.\*|web|nodes|team/|[a-z*.|()/^$]){0,5}";

fn headers() -> impl Strategy<Value = Vec<(&'static [u8], Vec<u8>)>> {
    let name = prop::sample::select(vec![
        &b"host"[..],
        b"content-length",
        b"transfer-encoding",
        b"forwarded",
        b"x-forwarded-for",
        b"x-aws-ec2-metadata-token-ttl-seconds",
    ]);
    let known = prop::sample::select(vec![&b"169.254.169.254"[..], b"169.254.169.254:80", b"0", b"1", b"21600", b"21601", b"+5", b""]);
    let value = prop_oneof![4 => known.prop_map(<[u8]>::to_vec), 1 => prop::collection::vec(any::<u8>(), 0..8)];
    prop::collection::vec((name, value), 0..3)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    #[test]
    fn role_arns_match_their_grammar(text in "(arn|aws)?(arn:aws(-cn|-iso-f|-mars)?:iam:(eu)?:[0-9]{11,13}:role/)?([a-zA-Z0-9_+=,.@/!~: \u{e9}-]|//){0,70}") {
        checks::arn(&text);
    }

    #[test]
    fn patterns_match_as_a_naive_matcher_does(
        regexp: bool,
        pattern in "(arn:aws:iam::111122223333:role/)?[abw/*.|()^$?+\\[\\]\\\\]{0,8}",
        text in "(arn:aws:iam::(111122223333|444455556666):role/)?[abw/]{0,6}",
    ) {
        checks::pattern(regexp, &pattern, &text);
    }

    #[test]
    fn only_what_the_plain_model_allows_is_allowed(
        role in option::weighted(0.9, ROLE),
        external_id in option::weighted(0.2, "[a:/ ]{0,4}"),
        session_name in option::weighted(0.2, "[a:/ ]{0,4}"),
        allowed_roles in option::weighted(0.7, LIST),
        permitted in option::weighted(0.3, EXPRESSION),
        regexp: bool,
    ) {
        let [role, external_id, session_name, allowed_roles, permitted] =
            [&role, &external_id, &session_name, &allowed_roles, &permitted].map(|text| text.as_deref());
        checks::annotations(&checks::Written { role, external_id, session_name, allowed_roles, permitted, regexp });
    }

    #[test]
    fn every_request_is_refused_or_in_the_table(
        method in "(GET|HEAD|PUT|POST|CONNECT|OPTIONS|get)",
        target in "(http://169.254.169.254)?/(latest|1.0|2021-03-23|2021-07-15|2026-02-(28|29)|LATEST)?/?(meta-data|api|%6d)?/?/?(iam|token|\\.\\.)?/?(security-credentials|info)?(/|/web|/arn:aws:iam::1:role|/\\.|/a;b|\\?q|\u{e9}){0,2}",
        headers in headers(),
        named: bool,
        version in prop::sample::select(vec![Version::HTTP_10, Version::HTTP_11]),
    ) {
        let host: &[(&[u8], &[u8])] = if named { &[(b"host", b"169.254.169.254")] } else { &[] };
        let headers: Vec<_> = host.iter().copied().chain(headers.iter().map(|(name, value)| (*name, value.as_slice()))).collect();
        checks::route(method.as_bytes(), target.as_bytes(), &headers, version);
    }

    #[test]
    fn only_tokens_that_the_daemon_issued_are_accepted(data in prop_oneof![
        prop::collection::vec(any::<u8>(), 0..8),
        "[A-Za-z0-9_=-]{56}".prop_map(String::into_bytes),
    ]) {
        checks::token(&data);
    }

    #[test]
    fn only_service_account_tokens_of_the_issuer_are_accepted(
        iss in "(https://issuer|https://issuer|https://other)",
        aud in r#"("pods.eks.amazonaws.com"|\["a","pods.eks.amazonaws.com"\]|\["pods.eks.amazonaws.com"\]|"a"|\[\])"#,
        exp in prop::sample::select(vec![1_796_040_001_i64, 1_799_999_999, 1_796_039_999, 0]),
        namespace in "(shop|shop|a.b|a/b)",
        account in "(web|web|a:b)",
        more in r#"(|,"jti":"a"|,"x":\{"x":1,"x":1\}|,"iss":"https://issuer")"#,
        node in r#"(|,"node":\{"name":"node-a"\}|,"node":null|,"node":\{"name":"a/b"\})"#,
        header in r#"(|\xff\{"alg":"ES256","kid":"k"\}|\xff\{"alg":"none","kid":"k"\}|\xff\{"alg":"ES256","kid":"k","crit":\[\]\})"#,
    ) {
        let uid = "5f3c1e2a-7b64-4d0e-9a51-000000000001";
        let payload = format!(
            r#"{{"iss":"{iss}","aud":{aud},"exp":{exp},"nbf":1796000000,"iat":1796000000,"sub":"system:serviceaccount:{namespace}:{account}",
            "kubernetes.io":{{"namespace":"{namespace}","pod":{{"name":"web-1","uid":"{uid}"}},
            "serviceaccount":{{"name":"{account}","uid":"{uid}"}}{node}}}{more}}}"#
        );
        // The separator of fields is the byte 0xff, which a string does not have.
        let mut data = payload.into_bytes();
        if let Some(header) = header.strip_prefix('\u{ff}') {
            data.push(0xff);
            data.extend_from_slice(header.as_bytes());
        }
        checks::service_account_token::check(&data);
    }

    #[test]
    fn only_hosts_that_clients_send_are_accepted(value in prop_oneof![
        "(instance-data|instance-data.ec2.internal|169.254.169.254|\\[fd00:ec2::254\\]|fd00:ec2::254|127.0.0.1|localhost)(:80|:8181|:080|\\.|)".prop_map(String::into_bytes),
        prop::collection::vec(any::<u8>(), 0..20),
    ]) {
        checks::host(&value);
    }
}
