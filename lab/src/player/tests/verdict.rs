use super::super::*;
use super::{answer_of, entry, transcript};

const KEY: &str = "ASIAOWNOWNOWNOWN0001";
const STRANGER: &str = "ASIANODENODENODE0001";

fn own() -> Own {
    Own { role: "own-role".into(), access_key_ids: vec![KEY.into()], forbidden: vec!["node-role".into(), String::new()] }
}

fn document(key: &str, code: &str) -> String {
    format!(r#"{{"Code" : "{code}", "AccessKeyId" : "{key}", "SecretAccessKey": "s", "Token": "t"}}"#)
}

#[test]
fn every_outcome_differs_from_every_other() {
    use Expect::{BadRequest, CredentialsOfOwnRole, Denied, Passthrough};
    let name = answer_of("200 OK", "own-role");
    let keys = answer_of("200 OK", &document(KEY, "Success"));
    let profile = r#"{"Code":"Success","InstanceProfileArn":"arn:aws:iam::1:instance-profile/own-role"}"#;
    for (raw, right) in [
        (name, vec![CredentialsOfOwnRole]),
        (keys, vec![CredentialsOfOwnRole]),
        (answer_of("200 OK", profile), vec![CredentialsOfOwnRole]),
        (answer_of("200 OK", "own-role\n"), vec![]),
        (answer_of("200 OK", "own-role2"), vec![]),
        (answer_of("200 OK", &document(KEY, "Failed")), vec![]),
        (answer_of("200 OK", "eu-west-1"), vec![Passthrough]),
        (answer_of("200 OK", ""), vec![]),
        (answer_of("301 Moved", ""), vec![]),
        (answer_of("404 Not Found", "no"), vec![Denied]),
        (answer_of("404 Not Found", "own-role"), vec![]),
        (answer_of("404 Not Found", &document(KEY, "Success")), vec![]),
        (answer_of("400 Bad Request", ""), vec![Denied, BadRequest]),
        (answer_of("431 Too Large", ""), vec![Denied, BadRequest]),
        (answer_of("414 Too Long", &"x".repeat(2000)), vec![]),
        (answer_of("503 Wait", ""), vec![Denied]),
        (String::new(), vec![BadRequest]),
    ] {
        for expect in [CredentialsOfOwnRole, Passthrough, Denied, BadRequest] {
            let verdict = judge(&entry("GET / HTTP/1.1\r\n\r\n", expect, &[]), &transcript(&raw), &own());
            assert_eq!(verdict.is_ok(), right.contains(&expect), "{expect} of {raw:?}: {verdict:?}");
        }
        let either = entry("GET /", Denied, &[CredentialsOfOwnRole, Passthrough, BadRequest]);
        assert_eq!(judge(&either, &transcript(&raw), &own()).is_ok(), !right.is_empty(), "{raw:?}");
    }
}

#[test]
fn a_token_comes_with_its_time_and_head_without_a_body() {
    let put = entry("PUT /latest/api/token HTTP/1.1\r\n\r\n", Expect::Passthrough, &[]);
    assert!(judge(&put, &transcript(&answer_of("200 OK", "dG9r")), &own()).is_err());
    let with = answer_of("200 OK\r\nX-Aws-Ec2-Metadata-Token-Ttl-Seconds: 60", "dG9r");
    judge(&put, &transcript(&with), &own()).unwrap();

    let head = entry("HEAD / HTTP/1.1\r\n\r\n", Expect::CredentialsOfOwnRole, &[]);
    judge(&head, &transcript(&answer_of("200 OK", "")), &own()).unwrap();
}

#[test]
fn another_roles_credentials_in_any_answer_are_a_leak() {
    use Expect::{BadRequest, CredentialsOfOwnRole, Denied, Passthrough};
    let mut any = entry("GET / HTTP/1.1\r\n\r\n", Denied, &[CredentialsOfOwnRole, Passthrough, BadRequest]);
    any.max_responses = 2;
    let fine = answer_of("404 Not Found", "");
    let chunked = |body: &str| {
        let (a, b) = body.split_at(body.len() / 2);
        let head = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";
        format!("{head}{:x}\r\n{a}\r\n{:x}\r\n{b}\r\n0\r\n\r\n", a.len(), b.len())
    };
    for leak in [
        answer_of("200 OK", &document(STRANGER, "Success")),
        answer_of("200 OK", &document("odd-id", "Success")),
        answer_of("200 OK", &format!("keys: {STRANGER}.")),
        answer_of("200 OK", "node-role"),
        chunked("node-role"),
        answer_of("404 Not Found\r\nLocation: /node-role", ""),
    ] {
        let verdict = judge(&any, &transcript(&format!("{leak}{fine}")), &own()).unwrap_err();
        assert!(verdict.contains("is in an answer") || verdict.contains("is not a session"), "{verdict}");
    }
    judge(&any, &transcript(&format!("{fine}{fine}")), &own()).unwrap();
    any.max_responses = 1;
    // Part of a session token may look like an access key ID.
    judge(&any, &transcript(&answer_of("200 OK", "xASIANODENODENODE0001/+")), &own()).unwrap();
    judge(&any, &transcript(&format!("{fine}{fine}")), &own()).unwrap_err();
    judge(&any, &transcript(&format!("{fine}trailing")), &own()).unwrap_err();
}

#[test]
fn the_last_answer_counts_and_silence_is_an_answer() {
    let pipelined = |expect| Entry { max_responses: 2, ..entry("GET / HTTP/1.1\r\n\r\n", expect, &[]) };
    let keys = answer_of("200 OK", &document(KEY, "Success"));
    let denied = answer_of("404 Not Found", "");
    let bad = answer_of("400 Bad Request", "");
    let both = transcript(&format!("{keys}{denied}"));
    judge(&pipelined(Expect::Denied), &both, &own()).unwrap();
    judge(&pipelined(Expect::CredentialsOfOwnRole), &both, &own()).unwrap_err();
    judge(&pipelined(Expect::CredentialsOfOwnRole), &transcript(&keys), &own()).unwrap_err();
    judge(&pipelined(Expect::BadRequest), &transcript(&keys), &own()).unwrap();
    judge(&pipelined(Expect::BadRequest), &transcript(&bad), &own()).unwrap();

    let open = Transcript { closed: false, ..transcript("") };
    judge(&entry("GET /", Expect::BadRequest, &[]), &open, &own()).unwrap_err();
    let given_up = Transcript { closed_after_our_end: true, ..open };
    judge(&entry("GET /", Expect::BadRequest, &[]), &given_up, &own()).unwrap();
}
