//! The search for redirects by other programs, in the log and in the metrics.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use tracing::{debug, error, info, warn};

use crate::advice::chain;
use crate::log_once::Changes;
use crate::metrics::Metrics;
use crate::redirect::backend::SelectedBackend;
use crate::redirect::foreign::{self, ForeignRedirects, Unsearched};
use crate::redirect::rules::RuleSet;

/// Pause between searches for redirects of the node's own requests. A search reads all NAT rules of the node.
const SEARCH_AGAIN: Duration = Duration::from_secs(600);

/// Searches for redirects by other programs of the node's own metadata requests and of connections that the rules keep, and logs what it
/// finds, and what it cannot search. A redirect that was found stays known while the search is incomplete: it may be in what was not searched.
pub(in crate::app) async fn follow_foreign_redirects(metrics: Metrics, backend: Arc<SelectedBackend>, rules: RuleSet) {
    let (mut own_requests, mut to_daemon, mut unsearched) = (Changes::default(), Changes::default(), Changes::default());
    let mut last = ForeignRedirects::default();
    loop {
        match backend.precedence().await {
            Ok(precedence) => {
                let found = foreign::find(&rules, precedence).await.or_as_in(last);
                last = found.clone();
                metrics.foreign_redirects(found.count());
                log_unsearched(&mut unsearched, found.unsearched);
                log_of_own_requests(&mut own_requests, found.own_requests);
                log_to_daemon(&mut to_daemon, found.to_daemon);
            }
            Err(error) => debug!(error = chain(&error), "cannot look for redirects by other programs"),
        }
        tokio::time::sleep(SEARCH_AGAIN).await;
    }
}

fn log_unsearched(logged: &mut Changes<Vec<Unsearched>>, found: Vec<Unsearched>) {
    if found.is_empty() {
        if logged.forget().is_some() {
            info!(event = "redirects-searched", "all rules of other programs can be searched for redirects again");
        }
        return;
    }
    let listed = |text: fn(&Unsearched) -> &str| found.iter().map(text).collect::<BTreeSet<_>>().into_iter().collect::<Vec<_>>().join("; ");
    let (reason, rules, error) = (listed(|one| one.reason), listed(|one| &one.what), listed(|one| &one.error));
    if logged.is_new(found) {
        warn!(
            event = "redirects-unknown",
            reason,
            rules,
            error,
            "cannot search all rules of other programs for redirects of the node's own metadata requests and of connections to the daemon; \
             whether there are more redirects than the log names is not known; rolegate's rules come before packet rules of other programs, \
             with --redirect=nftables before all of them; list the rules yourself, and reduce the number of Services if the reason is too-large"
        );
    }
}

fn log_to_daemon(logged: &mut Changes<Vec<String>>, found: Vec<String>) {
    let redirects = found.join("; ");
    if found.is_empty() {
        if logged.forget().is_some() {
            info!(event = "daemon-connections-free", "no other program redirects connections to the daemon's addresses and ports any more");
        }
    } else if logged.is_new(found) {
        error!(
            event = "daemon-connections-redirected",
            redirects,
            "another program redirects connections to the daemon's address and the app port, or to an address of Pod Identity, which is an \
             attack or a mistake: whoever answers pods' requests chooses their credentials, and receives their tokens; rolegate's rules \
             come before packet rules of other programs, with nftables before all of them; delete the Service or host port that redirects \
             these connections, and set --redirect=nftables"
        );
    }
}

fn log_of_own_requests(logged: &mut Changes<Vec<String>>, found: Vec<String>) {
    let redirects = found.join("; ");
    if found.is_empty() {
        if logged.forget().is_some() {
            info!(event = "own-requests-free", "no other program redirects the node's own metadata requests any more");
        }
    } else if logged.is_new(found) {
        error!(
            event = "own-requests-redirected",
            redirects,
            "another program redirects the node's own metadata requests, which is an attack or a mistake: whoever answers them chooses \
             the node's credentials; rolegate's pin comes before packet rules of other programs, with --redirect=nftables before \
             all of them; delete the Service whose external IP is the metadata address, or whatever else redirects these requests"
        );
    }
}
