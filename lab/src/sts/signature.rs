//! The server side of Signature Version 4: parses what was presented, and checks whether a secret key gives the same signature.
//!
//! <https://docs.aws.amazon.com/IAM/latest/UserGuide/reference_sigv-create-signed-request.html>. This does not use AWS's own
//! signer, so that a request signed by that signer verifies both implementations.

use std::collections::HashMap;
use std::fmt::Write as _;

use http::request::Parts;
use jiff::Timestamp;
use jiff::civil::DateTime;
use jiff::tz::TimeZone;
use ring::{digest, hmac};

use super::answer::Fault;

const ALGORITHM: &str = "AWS4-HMAC-SHA256";
const SERVICE: &str = "sts";
const TIME_FORMAT: &str = "%Y%m%dT%H%M%SZ";
/// How much a request may be older or newer than the service's clock.
const TOLERANCE_SECONDS: i64 = 15 * 60;

/// The parsed Authorization and X-Amz-Date headers of a request.
#[derive(Debug)]
pub(super) struct Presented {
    pub(super) access_key_id: String,
    pub(super) region: String,
    day: String,
    service: String,
    signed_headers: Vec<String>,
    signature: String,
    time: String,
    signed_at: Timestamp,
}

impl Presented {
    /// Parses the headers. The error is the one that AWS returns if they are missing or incomplete.
    pub(super) fn parse(parts: &Parts) -> Result<Presented, Fault> {
        let authorization = header(parts, "authorization").ok_or_else(|| {
            let message = "Request is missing Authentication Token";
            Fault::new(403, "MissingAuthenticationToken", message)
        })?;
        let parameters = authorization
            .strip_prefix(ALGORITHM)
            .filter(|rest| rest.starts_with(' '))
            .ok_or_else(|| Fault::incomplete_signature("Unsupported AWS 'algorithm'"))?;
        let parameters: HashMap<&str, &str> = parameters.split(',').filter_map(|parameter| parameter.trim().split_once('=')).collect();
        let parameter = |name: &str| {
            parameters
                .get(name)
                .copied()
                .ok_or_else(|| Fault::incomplete_signature(format!("Authorization header requires '{name}' parameter.")))
        };
        let credential = parameter("Credential")?;
        let scope: Vec<&str> = credential.split('/').collect();
        let [access_key_id, day, region, service, "aws4_request"] = scope[..] else {
            return Err(Fault::incomplete_signature(
                "Credential must have exactly 5 slash-delimited elements, e.g. keyid/date/region/service/term",
            ));
        };
        let time = header(parts, "x-amz-date").ok_or_else(|| {
            Fault::incomplete_signature("Authorization header requires existence of either a 'X-Amz-Date' or a 'Date' header.")
        })?;
        let signed_at = DateTime::strptime(TIME_FORMAT, time)
            .and_then(|time| time.to_zoned(TimeZone::UTC))
            .map_err(|_| Fault::incomplete_signature("Date must be in ISO-8601 'basic format'."))?;
        Ok(Presented {
            access_key_id: access_key_id.to_owned(),
            region: region.to_owned(),
            day: day.to_owned(),
            service: service.to_owned(),
            signed_headers: parameter("SignedHeaders")?.split(';').map(str::to_owned).collect(),
            signature: parameter("Signature")?.to_owned(),
            time: time.to_owned(),
            signed_at: signed_at.timestamp(),
        })
    }

    /// Checks everything that was presented against the secret key of the access key ID and the service's clock.
    pub(super) fn verify(&self, secret: &str, parts: &Parts, body: &[u8], now: Timestamp) -> Result<(), Fault> {
        self.verify_scope()?;
        self.verify_time(now)?;
        self.verify_coverage(parts)?;
        if self.expected(secret, parts, body) == self.signature {
            return Ok(());
        }
        Err(Fault::signature(
            "The request signature we calculated does not match the signature you provided. Check your AWS Secret \
             Access Key and signing method. Consult the service documentation for details.",
        ))
    }

    fn verify_scope(&self) -> Result<(), Fault> {
        if self.service != SERVICE {
            let message = "Credential should be scoped to correct service: 'sts'.";
            return Err(Fault::signature(message));
        }
        if self.region.is_empty() {
            let message = "Credential should be scoped to a valid region.";
            return Err(Fault::signature(message));
        }
        if !self.time.starts_with(&self.day) || self.day.len() != 8 {
            return Err(Fault::signature(format!(
                "Date in Credential scope does not match YYYYMMDD from ISO-8601 version of date from HTTP: '{}' != \
                 '{}', from '{}'.",
                self.day,
                self.time.get(..8).unwrap_or_default(),
                self.time
            )));
        }
        Ok(())
    }

    /// STS has no RequestTimeTooSkewed error: it reports a wrong clock as a signature that does not match.
    fn verify_time(&self, now: Timestamp) -> Result<(), Fault> {
        let behind = now.as_second() - self.signed_at.as_second();
        if behind.abs() <= TOLERANCE_SECONDS {
            return Ok(());
        }
        let (verdict, sign, limit) = if behind > 0 {
            ("expired", '-', now.as_second() - TOLERANCE_SECONDS)
        } else {
            ("not yet current", '+', now.as_second() + TOLERANCE_SECONDS)
        };
        let relation = if behind > 0 { "now earlier" } else { "still later" };
        let limit = Timestamp::from_second(limit).unwrap_or(now);
        Err(Fault::signature(format!(
            "Signature {verdict}: {} is {relation} than {} ({} {sign} 15 min.)",
            self.time,
            limit.strftime(TIME_FORMAT),
            now.strftime(TIME_FORMAT),
        )))
    }

    /// Checks that the signature covers the host and all AWS headers.
    fn verify_coverage(&self, parts: &Parts) -> Result<(), Fault> {
        let signed = |name: &str| self.signed_headers.iter().any(|signed| signed == name);
        let uncovered = parts
            .headers
            .keys()
            .map(http::HeaderName::as_str)
            .filter(|name| name.starts_with("x-amz-"))
            .chain(["host"])
            .find(|name| !signed(name));
        uncovered.map_or(Ok(()), |name| Err(Fault::signature(format!("'{name}' must be a 'SignedHeader' in the AWS Authorization."))))
    }

    fn expected(&self, secret: &str, parts: &Parts, body: &[u8]) -> String {
        let scope = format!("{}/{}/{SERVICE}/aws4_request", self.day, self.region);
        let canonical = self.canonical_request(parts, body);
        let to_sign = format!("{ALGORITHM}\n{}\n{scope}\n{}", self.time, sha256(canonical.as_bytes()));
        let key = [self.day.as_str(), &self.region, SERVICE, "aws4_request"]
            .iter()
            .fold(format!("AWS4{secret}").into_bytes(), |key, part| mac(&key, part.as_bytes()));
        hex(&mac(&key, to_sign.as_bytes()))
    }

    fn canonical_request(&self, parts: &Parts, body: &[u8]) -> String {
        let mut query: Vec<&str> = parts.uri.query().unwrap_or_default().split('&').collect();
        query.sort_unstable();
        let mut headers = String::new();
        for name in &self.signed_headers {
            let values: Vec<String> =
                parts.headers.get_all(name).iter().map(|value| squeeze(&String::from_utf8_lossy(value.as_bytes()))).collect();
            // Writing to a String cannot fail.
            let _ = writeln!(headers, "{name}:{}", values.join(","));
        }
        format!(
            "{}\n{}\n{}\n{headers}\n{}\n{}",
            parts.method,
            parts.uri.path(),
            query.join("&"),
            self.signed_headers.join(";"),
            sha256(body)
        )
    }
}

/// Returns the only value of a header, as text.
pub(super) fn header<'a>(parts: &'a Parts, name: &str) -> Option<&'a str> {
    parts.headers.get(name)?.to_str().ok()
}

/// Returns the SHA-256 digest in lower-case hexadecimal.
pub(super) fn sha256(bytes: &[u8]) -> String {
    hex(digest::digest(&digest::SHA256, bytes).as_ref())
}

fn mac(key: &[u8], message: &[u8]) -> Vec<u8> {
    let key = hmac::Key::new(hmac::HMAC_SHA256, key);
    hmac::sign(&key, message).as_ref().to_vec()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        // Writing to a String cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// Trims spaces at the ends, and collapses runs of them.
fn squeeze(value: &str) -> String {
    let words: Vec<&str> = value.split(' ').filter(|word| !word.is_empty()).collect();
    words.join(" ")
}
