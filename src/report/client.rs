//! The request of `rolegate report` to a daemon.

use http::Method;
use http::uri::Authority;
use tokio::io::{AsyncRead, AsyncWrite};

use super::{MigrationReport, REPORT_VERSION};
use crate::daemon_client::{AskError, DaemonPage, DaemonQuestion, ask, ask_on};

const REPORT_PAGE: DaemonPage = DaemonPage {
    name: "report",
    max_answer: 32 << 20,
    why_not: "the daemon runs without --migrate, it is not a rolegate metrics port, or it was not reached on a loopback address",
    instead: "give the daemon --migrate, and run this command in its pod (kubectl exec), or use kubectl port-forward and \
              --admin-url=http://127.0.0.1:PORT",
    otherwise: "give --all-nodes to read the reports of all nodes through the Kubernetes API",
};

fn question() -> DaemonQuestion {
    DaemonQuestion { page: REPORT_PAGE, method: Method::GET, target: "/report?format=json".to_owned(), header: None }
}

fn is_current(report: &MigrationReport) -> bool {
    report.version == REPORT_VERSION
}

/// Reads the report of the daemon at `daemon`.
pub(crate) async fn read(daemon: &Authority) -> Result<MigrationReport, AskError> {
    ask(daemon, &question(), is_current).await
}

/// Reads the report of a daemon on a connection that arrives at its loopback address.
pub(crate) async fn read_on(stream: impl AsyncRead + AsyncWrite + Unpin, daemon: &Authority) -> Result<MigrationReport, AskError> {
    ask_on(stream, daemon, &question(), is_current).await
}
