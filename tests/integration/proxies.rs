//! Proxies, certificates and empty variables, as the environment of the daemon names them. No name here can be resolved, so what
//! arrives came by way of the proxy.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

use rolegate_lab::kube::KubeApi;

use crate::world::{Fakes, loopback};

/// A password that must be in no log.
const SECRET: &str = "s3cr3t";
/// An STS that only the proxy knows.
const STS: &str = "http://sts.rolegate.invalid";

/// A proxy that sends everything to one address.
struct Proxy {
    address: SocketAddr,
    /// The first lines and the credentials of the requests.
    heads: Arc<Mutex<Vec<(String, String)>>>,
}

impl Proxy {
    fn to(target: SocketAddr) -> Proxy {
        let listener = loopback();
        let (address, heads) = (listener.local_addr().unwrap(), Arc::<Mutex<Vec<_>>>::default());
        let seen = heads.clone();
        std::thread::spawn(move || serve(&listener, target, &seen));
        Proxy { address, heads }
    }

    fn url(&self) -> String {
        format!("http://operator:{SECRET}@{}", self.address)
    }

    fn heads(&self) -> Vec<(String, String)> {
        self.heads.lock().unwrap().clone()
    }
}

fn serve(listener: &TcpListener, target: SocketAddr, seen: &Arc<Mutex<Vec<(String, String)>>>) {
    for client in listener.incoming().map_while(Result::ok) {
        let seen = seen.clone();
        std::thread::spawn(move || pass_on(client, target, &seen));
    }
}

fn pass_on(client: TcpStream, target: SocketAddr, seen: &Mutex<Vec<(String, String)>>) -> std::io::Result<()> {
    let mut reader = BufReader::new(client.try_clone()?);
    let mut first = String::new();
    reader.read_line(&mut first)?;
    let (mut head, mut credentials, mut length) = (String::new(), String::new(), 0);
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line)? == 0 || line == "\r\n" {
            break;
        }
        match line.to_ascii_lowercase() {
            lower if lower.starts_with("proxy-authorization:") => credentials = line.trim().to_owned(),
            lower if lower.starts_with("connection:") => {}
            lower => {
                length = lower.strip_prefix("content-length:").map_or(length, |text| text.trim().parse().unwrap());
                head.push_str(&line);
            }
        }
    }
    seen.lock().unwrap().push((first.trim().to_owned(), credentials));
    let mut upstream = TcpStream::connect(target)?;
    if first.starts_with("CONNECT ") {
        (&client).write_all(b"HTTP/1.1 200 OK\r\n\r\n")?;
        let (mut up, mut down) = (upstream.try_clone()?, client.try_clone()?);
        std::thread::spawn(move || std::io::copy(&mut reader, &mut up));
        std::io::copy(&mut upstream, &mut down)?;
        return Ok(());
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body)?;
    // In the form that a server is asked.
    let first = first.replace(STS, "");
    upstream.write_all(format!("{first}{head}connection: close\r\n\r\n").as_bytes())?;
    upstream.write_all(&body)?;
    std::io::copy(&mut upstream, &mut &client)?;
    client.shutdown(std::net::Shutdown::Both)
}

#[test]
fn requests_to_sts_go_through_a_proxy() {
    for variable in ["HTTP_PROXY", "http_proxy"] {
        let fakes = Fakes::new();
        let proxy = Proxy::to(fakes.sts.addr());
        let setup = fakes.setup().env("AWS_ENDPOINT_URL_STS", STS).env(variable, proxy.url());
        let world = fakes.into_world(&setup);
        let heads = proxy.heads();
        assert!(!heads.is_empty() && heads.iter().all(|(first, _)| first.starts_with(&format!("POST {STS}/"))), "{heads:?}");
        assert!(heads.iter().all(|(_, credentials)| credentials.to_ascii_lowercase().starts_with("proxy-authorization: basic ")));
        assert!(!world.daemon.log().contains(SECRET), "{}", world.daemon.log());
    }
}

#[test]
fn requests_over_tls_go_through_a_tunnel() {
    let fakes = Fakes::new();
    let proxy = Proxy::to(fakes.sts.addr());
    let endpoint = "https://sts.rolegate.invalid";
    let setup = fakes.setup().env("AWS_ENDPOINT_URL_STS", endpoint).env("HTTPS_PROXY", proxy.url()).env("HTTP_PROXY", "");
    let daemon = setup.start().unwrap();
    // What is behind the tunnel speaks no TLS.
    daemon.wait_for_event("own-identity-unknown").unwrap();
    let heads = proxy.heads();
    assert!(heads.iter().all(|(first, _)| first == "CONNECT sts.rolegate.invalid:443 HTTP/1.1") && !heads.is_empty(), "{heads:?}");
    assert!(!daemon.log().contains(SECRET), "{}", daemon.log());
}

/// A proxy that is wanted for everything is not asked for these.
#[test]
fn loopback_and_the_metadata_service_need_no_proxy() {
    let fakes = Fakes::new();
    let proxy = Proxy::to(fakes.sts.addr());
    let setup = fakes.setup().argument("--auto-discover-base-arn").argument("--base-role-arn=").env("HTTP_PROXY", proxy.url());
    let setup = setup.env("http_proxy", proxy.url()).env("ALL_PROXY", proxy.url()).env("NO_PROXY", "");
    let world = fakes.into_world(&setup);
    assert_eq!(proxy.heads(), []);
    assert!(!world.fakes.imds.requests().is_empty() && !world.fakes.sts.calls().is_empty());
}

#[test]
fn a_kubeconfig_may_name_a_proxy() {
    let fakes = Fakes::new();
    let _inside = fakes.runtime.enter();
    let api = KubeApi::start_tls(loopback()).unwrap();
    drop(_inside);
    let proxy = Proxy::to(api.addr());
    let mut kubeconfig: serde_json::Value = serde_json::from_str(&api.kubeconfig()).unwrap();
    kubeconfig["clusters"][0]["cluster"]["proxy-url"] = proxy.url().into();
    let file = fakes.file("proxied", &kubeconfig.to_string());
    let setup = fakes.setup().argument(format!("--kubeconfig={file}"));
    let world = fakes.into_world(&setup);
    let heads = proxy.heads();
    assert!(heads.iter().all(|(first, _)| first.starts_with("CONNECT ")) && !heads.is_empty(), "{heads:?}");
    assert!(!world.daemon.log().contains(SECRET), "{}", world.daemon.log());
}

#[test]
fn a_proxy_that_cannot_be_used_is_told_without_its_password() {
    for scheme in ["socks5://", "ftp://", ""] {
        let fakes = Fakes::new();
        let mut kubeconfig: serde_json::Value = serde_json::from_str(&fakes.api.kubeconfig()).unwrap();
        kubeconfig["clusters"][0]["cluster"]["proxy-url"] = format!("{scheme}operator:{SECRET}@127.0.0.1:1").into();
        let file = fakes.file("proxied", &kubeconfig.to_string());
        let mut daemon = fakes.setup().argument(format!("--kubeconfig={file}")).spawn().unwrap();
        assert_eq!(daemon.wait().unwrap().code(), Some(1), "{}", daemon.log());
        assert_eq!(daemon.events("fatal").len(), 1);
        assert!(daemon.log().contains("127.0.0.1:1") && !daemon.log().contains(SECRET), "{}", daemon.log());
    }
}

/// An API whose name only a proxy knows, its kubeconfig, and the proxy.
fn api_behind_proxy(fakes: &Fakes) -> (KubeApi, String, Proxy) {
    let _inside = fakes.runtime.enter();
    let api = KubeApi::start_tls(loopback()).unwrap();
    let proxy = Proxy::to(api.addr());
    let mut kubeconfig: serde_json::Value = serde_json::from_str(&api.kubeconfig()).unwrap();
    let cluster = &mut kubeconfig["clusters"][0]["cluster"];
    cluster["server"] = format!("https://kubernetes.rolegate.invalid:{}", api.addr().port()).into();
    cluster["tls-server-name"] = "127.0.0.1".into();
    let file = fakes.file("proxied", &kubeconfig.to_string());
    (api, file, proxy)
}

/// As in Go programs, it is an HTTP proxy.
#[test]
fn a_proxy_without_a_scheme_is_used_and_not_told() {
    let fakes = Fakes::new();
    let (_api, file, proxy) = api_behind_proxy(&fakes);
    let setup = fakes.setup().argument(format!("--kubeconfig={file}")).env("HTTPS_PROXY", proxy.url().replace("http://", ""));
    let world = fakes.into_world(&setup);
    let heads = proxy.heads();
    assert!(heads.iter().all(|(first, _)| first.starts_with("CONNECT kubernetes.rolegate.invalid:")) && !heads.is_empty(), "{heads:?}");
    assert!(!world.daemon.log().contains(SECRET), "{}", world.daemon.log());
}

#[test]
fn an_api_that_needs_no_proxy_is_asked_without_one() {
    let fakes = Fakes::new();
    let proxy = Proxy::to(fakes.sts.addr());
    // Not the address of the proxy counts, but that of the API, which is on loopback.
    let setup = fakes.setup().env("HTTPS_PROXY", "operator:s3cr3t@proxy.rolegate.invalid:3128").env("HTTP_PROXY", proxy.url());
    let world = fakes.into_world(&setup);
    assert_eq!(proxy.heads(), []);
    assert!(!world.daemon.log().contains(SECRET), "{}", world.daemon.log());
    let fakes = Fakes::new();
    let (_api, file, proxy) = api_behind_proxy(&fakes);
    let setup = fakes.setup().argument(format!("--kubeconfig={file}")).env("HTTPS_PROXY", proxy.url());
    let daemon = setup.env("NO_PROXY", ".rolegate.invalid").start().unwrap();
    daemon.wait_for_event("watch-failed").unwrap();
    assert_eq!(proxy.heads(), []);
}

#[test]
fn a_bundle_holds_the_only_certificates_that_aws_may_have() {
    let fakes = Fakes::new();
    let _inside = fakes.runtime.enter();
    // It speaks TLS with a certificate of its own authority, and knows nothing of STS.
    let (server, other) = (KubeApi::start_tls(loopback()).unwrap(), KubeApi::start_tls(loopback()).unwrap());
    drop(_inside);
    let asked = || server.requests().iter().any(|request| request.method == "POST");
    let setup = fakes.setup().env("AWS_ENDPOINT_URL_STS", server.url());
    let bundle = |api: &KubeApi| fakes.file("bundle", &api.ca_pem().unwrap());
    for setup in [setup.clone(), setup.clone().env("AWS_CA_BUNDLE", bundle(&other))] {
        setup.start().unwrap().wait_for_event("own-identity-unknown").unwrap();
        assert!(!asked());
    }
    for variable in ["AWS_CA_BUNDLE", "SSL_CERT_FILE"] {
        let daemon = setup.clone().env(variable, bundle(&server)).start().unwrap();
        daemon.wait_for_event("own-identity-unknown").unwrap();
        assert!(asked(), "{variable}: {}", daemon.log());
        server.clear_requests();
    }
    for file in ["/does/not/exist".to_owned(), fakes.file("empty", "")] {
        for variable in ["AWS_CA_BUNDLE", "SSL_CERT_FILE"] {
            let mut daemon = setup.clone().env(variable, &file).spawn().unwrap();
            assert_eq!(daemon.wait().unwrap().code(), Some(1), "{}", daemon.log());
            assert!(daemon.events("fatal")[0]["error"].as_str().unwrap().contains(variable), "{}", daemon.log());
        }
    }
}

#[test]
fn empty_variables_count_as_unset() {
    const EMPTY: &[&str] = &[
        "AWS_ENDPOINT_URL",
        "AWS_PROFILE",
        "AWS_CA_BUNDLE",
        "AWS_ROLE_ARN",
        "AWS_WEB_IDENTITY_TOKEN_FILE",
        "AWS_CONTAINER_CREDENTIALS_FULL_URI",
        "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
        "AWS_USE_FIPS_ENDPOINT",
        "AWS_DEFAULT_REGION",
        "AWS_MAX_ATTEMPTS",
        "AWS_STS_REGIONAL_ENDPOINTS",
        "HTTPS_PROXY",
        "NO_PROXY",
        "SSL_CERT_FILE",
        "SSL_CERT_DIR",
        "NODE_NAME",
        "HOST_IP",
        "POD_NAME",
        "ROLEGATE_NODE",
        "ROLEGATE_APP_PORT",
    ];
    let fakes = Fakes::new();
    let setup = EMPTY.iter().fold(fakes.setup(), |setup, name| setup.env(*name, ""));
    fakes.into_world(&setup);
    // It ended the daemon by a panic of the SDK.
    let fakes = Fakes::new();
    let setup = fakes.setup().env("AWS_ENDPOINT_URL_STS", "").env("HTTPS_PROXY", "http://127.0.0.1:1");
    let daemon = setup.start().unwrap();
    daemon.wait_for_event("own-identity-unknown").unwrap();
    for (name, wrong) in [("AWS_ENDPOINT_URL_STS", "sts.example.com"), ("HTTPS_PROXY", "http://operator:s3cr3t@")] {
        let mut daemon = fakes.setup().env(name, wrong).spawn().unwrap();
        assert_eq!(daemon.wait().unwrap().code(), Some(2), "{}", daemon.log());
    }
}
