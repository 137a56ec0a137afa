//! The request of `rolegate explain` to a daemon.

use http::Method;
use http::uri::Authority;

use super::{HEADER, Report, VERSION};
use crate::config::explain_command::PodReference;
use crate::daemon_client::{self, AskError, DaemonPage, DaemonQuestion};

const PAGE: DaemonPage = DaemonPage {
    name: "explain",
    max_answer: 1 << 20,
    why_not: "it is not a rolegate metrics port, or it was not reached on a loopback address",
    instead: "run this command in the daemon's pod (kubectl exec), or use kubectl port-forward and --admin-url=http://127.0.0.1:PORT",
    otherwise: "give --kubeconfig to decide by the Kubernetes API",
};

/// Asks the daemon at `daemon` to explain a pod; with `assume`, the daemon calls STS.
pub(crate) async fn ask(daemon: &Authority, pod: &PodReference, assume: bool) -> Result<Report, AskError> {
    // Both names contain only characters that need no escaping in a query.
    let query = format!("/explain?namespace={}&pod={}", pod.namespace(), pod.name());
    let (method, target) = if assume { (Method::POST, format!("{query}&assume=true")) } else { (Method::GET, query) };
    let question = DaemonQuestion { page: PAGE, method, target, header: Some(HEADER) };
    daemon_client::ask(daemon, &question, |report: &Report| report.version == VERSION).await
}
