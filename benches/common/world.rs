//! The daemon on loopback, with an API and an STS of the lab.

use std::net::{Ipv4Addr, TcpListener};

use rolegate_lab::daemon::Setup;
use rolegate_lab::kube::KubeApi;
use rolegate_lab::sts::Sts;
use tokio::runtime::Runtime;

use super::{BASE, NODE};

/// Returns the ARN of a role by its name.
pub(crate) fn arn(role: &str) -> String {
    format!("{BASE}{role}")
}

/// Starts a Kubernetes API on a free port.
pub(crate) fn start_api(runtime: &Runtime) -> KubeApi {
    let _inside = runtime.enter();
    KubeApi::start(listener()).unwrap()
}

/// Starts an STS on a free port.
pub(crate) fn start_sts(runtime: &Runtime) -> Sts {
    let _inside = runtime.enter();
    Sts::start(listener()).unwrap()
}

/// Returns the set-up of a daemon that gets requests from pods on loopback directly, without packet rules.
pub(crate) fn setup(api_url: &str, sts: &Sts) -> Setup {
    Setup::new(env!("CARGO_BIN_EXE_rolegate"))
        .argument(format!("--node={NODE}"))
        .argument(format!("--api-server={api_url}"))
        .argument(format!("--base-role-arn={BASE}"))
        .argument("--accept-direct-connections")
        .argument("--metadata-bind-address=127.0.0.1")
        .argument("--metrics-bind-address=127.0.0.1")
        .env("AWS_ENDPOINT_URL_STS", sts.url())
}

fn listener() -> TcpListener {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap()
}
