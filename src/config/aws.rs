//! How AWS is reached, as the SDKs' variables say. Most of them are read by the SDK itself; here are those that it does not know, or
//! cannot bear to be wrong.

use std::path::PathBuf;

use super::source::SettingSource;

/// How AWS is reached.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AwsConfig {
    /// `AWS_CA_BUNDLE`: the only certificate authorities that are trusted, in a PEM file.
    pub ca_bundle: Option<PathBuf>,
    /// `SSL_CERT_FILE`: the system's certificate authorities, in a PEM file.
    pub system_authorities: Option<PathBuf>,
    /// Whether requests to STS may go through a proxy.
    pub proxied: bool,
}

impl AwsConfig {
    /// Reads the variables.
    pub(super) fn read(source: &mut SettingSource<'_>) -> Self {
        for name in ["AWS_ENDPOINT_URL_STS", "AWS_ENDPOINT_URL"] {
            if source.env(name).is_some_and(|url| !is_url(&url, &["http", "https"])) {
                source.mistake(format!("{name}: expected a URL such as https://sts.eu-central-1.amazonaws.com"));
            }
        }
        let mut proxied = false;
        for (name, lower) in [("HTTPS_PROXY", "https_proxy"), ("HTTP_PROXY", "http_proxy")] {
            let Some(proxy) = source.env(name).or_else(|| source.env(lower)) else { continue };
            // As Go: without a scheme, it is http.
            let url = if proxy.contains("://") { proxy } else { format!("http://{proxy}") };
            if is_url(&url, &["http", "https"]) {
                proxied = true;
            } else {
                // It may hold a password.
                source.mistake(format!("{name}: expected the URL of a proxy such as http://proxy.example.com:3128"));
            }
        }
        let file = |name| source.env(name).map(PathBuf::from);
        Self { ca_bundle: file("AWS_CA_BUNDLE"), system_authorities: file("SSL_CERT_FILE"), proxied }
    }
}

fn is_url(text: &str, schemes: &[&str]) -> bool {
    let of_scheme = |uri: http::Uri| uri.scheme_str().is_some_and(|scheme| schemes.contains(&scheme)) && uri.host().is_some();
    text.parse().is_ok_and(of_scheme)
}
