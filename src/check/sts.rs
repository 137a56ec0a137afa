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

/// Returns the check of the proxy that requests to STS go through, if there is one.
pub(crate) fn proxy(proxy: Option<&Uri>) -> CheckItem {
    match proxy {
        None => CheckSection::Sts.ok("proxy", "none for STS (HTTPS_PROXY, HTTP_PROXY, NO_PROXY)"),
        Some(proxy) => CheckSection::Sts.ok("proxy", format!("requests to STS go through {}", origin(proxy))),
    }
}

/// A file with certificate authorities.
#[derive(Clone, Debug)]
pub(crate) struct AuthorityCheck {
    /// The variable that names it.
    pub variable: &'static str,
    /// The file.
    pub path: String,
    /// How many certificates it has, or why it cannot be used, with advice.
    pub found: Result<usize, (String, Option<String>)>,
}

/// Returns the checks of the files with the certificate authorities that connections to AWS trust. The first one alone counts.
pub(crate) fn authorities(files: &[AuthorityCheck]) -> Vec<CheckItem> {
    let section = CheckSection::Sts;
    let Some(first) = files.first() else {
        return vec![section.ok("ca-bundle", "the certificates of the system (AWS_CA_BUNDLE and SSL_CERT_FILE are not set)")];
    };
    let item = |file: &AuthorityCheck| match &file.found {
        Ok(number) => {
            let certificates = if *number == 1 { "certificate" } else { "certificates" };
            let unused = if file.variable == first.variable { String::new() } else { format!("; for AWS, only {} counts", first.variable) };
            section.ok("ca-bundle", format!("{}: {number} {certificates} in {}{unused}", file.variable, file.path))
        }
        Err((cause, advice)) => advice.iter().fold(section.failed("ca-bundle", cause), |item, advice| item.advise(advice)),
    };
    files.iter().map(item).collect()
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
        assert_eq!(proxy(Some(&url)).detail, "requests to STS go through http://proxy.example:3128");
        assert_eq!(origin(&"https://[::1]/".parse().unwrap()), "https://[::1]");
    }

    #[test]
    fn a_file_without_certificates_fails() {
        let file = |variable, found| AuthorityCheck { variable, path: "/a".to_owned(), found };
        let bad = || Err(("no".to_owned(), Some("yes".to_owned())));
        let all = authorities(&[file("AWS_CA_BUNDLE", Ok(1)), file("SSL_CERT_FILE", bad())]);
        assert_eq!((all[0].status, all[1].status, all[1].advice.as_deref()), (CheckStatus::Ok, CheckStatus::Failed, Some("yes")));
        let unused = authorities(&[file("AWS_CA_BUNDLE", Ok(1)), file("SSL_CERT_FILE", Ok(2))]);
        assert!(!unused[0].detail.contains("counts") && unused[1].detail.contains("only AWS_CA_BUNDLE counts"));
        assert_eq!(authorities(&[])[0].status, CheckStatus::Ok);
    }
}
