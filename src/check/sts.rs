//! What a request to STS showed on its way: the endpoint, the clock, and what stands between.

use std::time::Duration;

use http::Uri;
use jiff::SignedDuration;

use super::{CheckItem, CheckSection};

/// Smaller differences between clocks do no harm.
const SMALL: Duration = Duration::from_secs(30);
/// AWS refuses requests whose time differs from its own by more (IAM User Guide, "Signature Version 4 signing process").
const REFUSED_BY_AWS: Duration = Duration::from_secs(300);

/// Returns the check of the clock; `ahead` is how far the clock of STS is ahead of this one.
pub(crate) fn clock(ahead: Option<SignedDuration>) -> CheckItem {
    let section = CheckSection::Sts;
    let Some(ahead) = ahead else { return section.skipped("clock", "no answer of STS had a date") };
    let apart = ahead.unsigned_abs();
    if apart < SMALL {
        return section.ok("clock", format!("less than {} s from the clock of STS", SMALL.as_secs()));
    }
    // The clock of this machine is the one that can be set.
    let where_to = if ahead.is_negative() { "ahead of" } else { "behind" };
    let detail = format!("the clock of this machine is {} s {where_to} that of STS", apart.as_secs());
    let item = if apart < REFUSED_BY_AWS {
        section.warning("clock", format!("{detail}; the daemon adjusts expiration times"))
    } else {
        section.failed("clock", format!("{detail}; AWS refuses requests that are {} minutes off", REFUSED_BY_AWS.as_secs() / 60))
    };
    item.advise("check the time synchronization of this machine (chrony, systemd-timesyncd)")
}

/// Returns `SCHEME://HOST[:PORT]` of a URL, without user information, path and query.
pub(crate) fn origin(url: &Uri) -> String {
    let port = url.port_u16().map_or_else(String::new, |port| format!(":{port}"));
    format!("{}://{}{port}", url.scheme_str().unwrap_or("http"), url.host().unwrap_or_default())
}

/// Returns the check of the proxy that the environment names for STS, if it names one.
pub(crate) fn proxy(proxy: Option<&Uri>) -> CheckItem {
    match proxy {
        None => CheckSection::Sts.ok("proxy", "none for STS (HTTPS_PROXY, HTTP_PROXY, NO_PROXY)"),
        Some(proxy) => CheckSection::Sts.ok("proxy", format!("the environment names {} for STS", origin(proxy))),
    }
}

/// Returns the checks of the files with the certificates that are trusted: each with its variable, and its text if it can be read.
pub(crate) fn ca_bundles(files: &[(&'static str, String, Result<String, String>)]) -> Vec<CheckItem> {
    let section = CheckSection::Sts;
    if files.is_empty() {
        return vec![section.ok("ca-bundle", "the certificates of the system (AWS_CA_BUNDLE and SSL_CERT_FILE are not set)")];
    }
    let item = |(variable, path, text): &(&str, String, Result<String, String>)| match text {
        Ok(text) => match text.matches("-----BEGIN CERTIFICATE-----").count() {
            0 => section.failed("ca-bundle", format!("{variable}: {path} has no certificate in PEM format")),
            1 => section.ok("ca-bundle", format!("{variable}: 1 certificate in {path}")),
            number => section.ok("ca-bundle", format!("{variable}: {number} certificates in {path}")),
        },
        Err(error) => section.failed("ca-bundle", format!("{variable}: cannot read {path}: {error}")),
    };
    let advise = |item: CheckItem| match item.status {
        super::CheckStatus::Failed => item.advise("name a file with certificates in PEM format, or remove the variable"),
        _ => item,
    };
    files.iter().map(item).map(advise).collect()
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test says loudly what failed")]
mod tests {
    use super::*;
    use crate::check::CheckStatus;

    #[test]
    fn a_clock_that_aws_refuses_fails() {
        let status = |seconds| clock(Some(SignedDuration::from_secs(seconds))).status;
        assert_eq!([0, 29, -29].map(status), [CheckStatus::Ok; 3]);
        assert_eq!([30, -30, 299, -299].map(status), [CheckStatus::Warning; 4]);
        assert_eq!([300, -300, 600].map(status), [CheckStatus::Failed; 3]);
        assert_eq!(clock(None).status, CheckStatus::Skipped);
        assert!(clock(Some(SignedDuration::from_secs(600))).detail.starts_with("the clock of this machine is 600 s behind"));
        assert!(clock(Some(SignedDuration::from_secs(-600))).detail.starts_with("the clock of this machine is 600 s ahead of"));
    }

    #[test]
    fn user_information_of_urls_is_not_shown() {
        let url = "http://user:secret@proxy.example:3128/path?query=secret".parse().unwrap();
        assert_eq!(origin(&url), "http://proxy.example:3128");
        assert_eq!(proxy(Some(&url)).detail, "the environment names http://proxy.example:3128 for STS");
        assert_eq!(origin(&"https://[::1]/".parse().unwrap()), "https://[::1]");
    }

    #[test]
    fn a_file_without_certificates_fails() {
        let file = |text: Result<&str, &str>| {
            let file = ("SSL_CERT_FILE", "/a".to_owned(), text.map(str::to_owned).map_err(str::to_owned));
            ca_bundles(&[file])[0].status
        };
        assert_eq!(file(Ok("-----BEGIN CERTIFICATE-----")), CheckStatus::Ok);
        assert_eq!([file(Ok("")), file(Err("no"))], [CheckStatus::Failed; 2]);
        assert_eq!(ca_bundles(&[])[0].status, CheckStatus::Ok);
    }
}
