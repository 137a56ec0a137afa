//! The request of `rolegate report` to a daemon.

use http::Method;
use http::uri::Authority;
use tokio::io::{AsyncRead, AsyncWrite};

use super::{MigrationReport, REPORT_VERSION};
use crate::daemon_client::{AskError, DaemonPage, DaemonQuestion, ask, ask_on};
use crate::text::is_object_name;

const REPORT_PAGE: DaemonPage = DaemonPage {
    name: "report",
    max_answer: 32 << 20,
    why_not: "the daemon is of an earlier version and runs without --migrate, this is not a rolegate metrics port, or it was not reached on a loopback address",
    instead: "run this command in the daemon's pod (kubectl exec), or use kubectl port-forward and --admin-url=http://127.0.0.1:PORT",
    otherwise: "give --all-nodes to read the reports of all nodes through the Kubernetes API",
};

fn question() -> DaemonQuestion {
    DaemonQuestion { page: REPORT_PAGE, method: Method::GET, target: "/report?format=json".to_owned(), header: None }
}

/// Whether a report has the form of this version. People copy commands and flags from it, so names must be names: where no daemon
/// listens, any program in the node's network may answer.
fn is_current(report: &MigrationReport) -> bool {
    let MigrationReport { version, strict, namespaces, workloads, protocols, .. } = report;
    let is_key = |key: &str| key.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_./".contains(&byte));
    let is_pattern =
        |pattern: &str| pattern.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"-*".contains(&byte));
    *version == REPORT_VERSION
        && namespaces.iter().all(|namespace| is_object_name(&namespace.name) && is_key(&namespace.annotation))
        && workloads.iter().all(|workload| is_object_name(&workload.namespace))
        && protocols.iter().all(|used| is_object_name(&used.namespace))
        && strict.iter().flat_map(|strict| &strict.node_info_namespaces).all(|pattern| is_pattern(pattern))
}

/// Reads the report of the daemon at `daemon`.
pub(crate) async fn read(daemon: &Authority) -> Result<MigrationReport, AskError> {
    ask(daemon, &question(), is_current).await
}

/// Reads the report of a daemon on a connection that arrives at its loopback address.
pub(crate) async fn read_on(stream: impl AsyncRead + AsyncWrite + Unpin, daemon: &Authority) -> Result<MigrationReport, AskError> {
    ask_on(stream, daemon, &question(), is_current).await
}
