//! The documents that SDKs read, in exactly the form that all of them parse.
//!
//! - Times end in `Z` and have no fraction: the SDK for Rust rejects an offset, the one for Swift crashes on a fraction.
//! - All seven fields are present: the SDK for Swift needs `LastUpdated` and `Type`, others the rest.
//! - `Code` is always `Success`: some SDKs ignore it, so a failure is a status and never a document.
//! - The role list is one bare name without a newline: the SDK for Rust panics on one.

use bytes::Bytes;
use jiff::Timestamp;
use ring::digest;
use secrecy::ExposeSecret as _;
use serde::Serialize;
use zeroize::Zeroizing;

use crate::credentials::Credentials;
use crate::role::RoleArn;

/// The initial capacity of a document, in bytes. Session tokens have about a thousand, and AWS reserves the right to more.
const DOCUMENT_CAPACITY: usize = 8 * 1024;

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct CredentialDocument<'a> {
    code: &'static str,
    last_updated: String,
    r#type: &'static str,
    access_key_id: &'a str,
    secret_access_key: &'a str,
    token: &'a str,
    expiration: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    account_id: Option<&'a str>,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct ContainerCredentialDocument<'a> {
    access_key_id: &'a str,
    secret_access_key: &'a str,
    token: &'a str,
    account_id: &'a str,
    expiration: String,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct InstanceProfileDocument {
    code: &'static str,
    last_updated: String,
    instance_profile_arn: String,
    instance_profile_id: String,
}

/// Renders `security-credentials/ROLE`.
pub(crate) fn credentials(credentials: &Credentials) -> Result<Zeroizing<Vec<u8>>, serde_json::Error> {
    render(credentials, None)
}

/// Renders `security-credentials-extended/ROLE`, which also has the role's account (version 2.1 of the protocol).
pub(crate) fn extended_credentials(credentials: &Credentials, role: &RoleArn) -> Result<Zeroizing<Vec<u8>>, serde_json::Error> {
    render(credentials, Some(role.account()))
}

fn render(credentials: &Credentials, account_id: Option<&str>) -> Result<Zeroizing<Vec<u8>>, serde_json::Error> {
    // Large enough for any session token, so that growing leaves no copy of the secrets behind.
    let mut text = Zeroizing::new(Vec::with_capacity(DOCUMENT_CAPACITY));
    let document = CredentialDocument {
        code: "Success",
        last_updated: seconds(credentials.issued_at),
        r#type: "AWS-HMAC",
        access_key_id: &credentials.access_key_id,
        secret_access_key: credentials.secret_access_key.expose_secret(),
        token: credentials.session_token.expose_secret(),
        expiration: seconds(credentials.expires_at),
        account_id,
    };
    serde_json::to_writer(&mut *text, &document)?;
    Ok(text)
}

/// Renders the answer to a request with a service account token: the five fields of EKS Pod Identity.
pub(crate) fn container_credentials(credentials: &Credentials, role: &RoleArn) -> Result<Zeroizing<Vec<u8>>, serde_json::Error> {
    let mut text = Zeroizing::new(Vec::with_capacity(DOCUMENT_CAPACITY));
    let document = ContainerCredentialDocument {
        access_key_id: &credentials.access_key_id,
        secret_access_key: credentials.secret_access_key.expose_secret(),
        token: credentials.session_token.expose_secret(),
        account_id: role.account(),
        expiration: seconds(credentials.expires_at),
    };
    serde_json::to_writer(&mut *text, &document)?;
    Ok(text)
}

/// The directories that lead to the documents of a role, below the version.
pub(crate) const DIRECTORIES: [&str; 3] = ["", "meta-data", "meta-data/iam"];

/// Returns the paths of the documents of a role, below the version.
pub(crate) fn paths(role: &RoleArn) -> Vec<String> {
    vec!["meta-data/iam/info".to_owned(), format!("meta-data/iam/security-credentials/{}", role.name())]
}

/// Renders `iam/info`: an instance profile with the name of the pod's role. It does not exist; SDKs look at the form and the account
/// only. The real document would reveal the node's role.
pub(crate) fn instance_profile(role: &RoleArn, now: Timestamp) -> Result<Bytes, serde_json::Error> {
    let document = InstanceProfileDocument {
        code: "Success",
        last_updated: seconds(now),
        instance_profile_arn: format!("arn:{}:iam::{}:instance-profile/{}", role.partition().name(), role.account(), role.name()),
        instance_profile_id: instance_profile_id(role),
    };
    serde_json::to_vec(&document).map(Bytes::from)
}

/// Returns the profile's id: `AIPA` and 17 characters, which are always the same for a role.
fn instance_profile_id(role: &RoleArn) -> String {
    const ALPHABET: &[u8; 32] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZ234567";
    let hash = digest::digest(&digest::SHA256, role.as_str().as_bytes());
    let letters = hash.as_ref().iter().take(17).map(|byte| char::from(ALPHABET[usize::from(byte % 32)]));
    "AIPA".chars().chain(letters).collect()
}

fn seconds(at: Timestamp) -> String {
    at.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test says loudly what failed")]
mod tests {
    use super::*;

    #[test]
    fn the_credential_document_has_the_form_that_every_sdk_reads() {
        let document = credentials(&Credentials::new(
            "ASIAEXAMPLE".to_owned(),
            "secret/key+\"".to_owned().into(),
            "token==".to_owned().into(),
            "2026-01-01T00:00:00.999Z".parse().unwrap(),
            "2026-01-01T01:00:00Z".parse().unwrap(),
        ));
        let expected = concat!(
            r#"{"Code":"Success","LastUpdated":"2026-01-01T00:00:00Z","Type":"AWS-HMAC","AccessKeyId":"ASIAEXAMPLE","#,
            r#""SecretAccessKey":"secret/key+\"","Token":"token==","Expiration":"2026-01-01T01:00:00Z"}"#
        );
        assert_eq!(std::str::from_utf8(&document.unwrap()).unwrap(), expected);
    }

    #[test]
    fn the_instance_profile_is_the_pods_own() {
        let role = "arn:aws-cn:iam::111122223333:role/team/web".parse().unwrap();
        let document = instance_profile(&role, "2026-01-01T00:00:00Z".parse().unwrap()).unwrap();
        let document: serde_json::Value = serde_json::from_slice(&document).unwrap();
        assert_eq!(document["InstanceProfileArn"], "arn:aws-cn:iam::111122223333:instance-profile/web");
        assert_eq!(document["Code"], "Success");
        let id = document["InstanceProfileId"].as_str().unwrap();
        assert!(id.starts_with("AIPA") && id.len() == 21, "{id}");
    }
}
