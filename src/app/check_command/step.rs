//! What the steps of `rolegate check` share.

use std::net::IpAddr;
use std::time::Duration;

use crate::app::failure;
use crate::capabilities;
use crate::check::{CheckItem, CheckSection};
use crate::config::check_command::CheckPlace;

/// The time limit of a step that consists of several requests.
pub(super) const STEP: Duration = Duration::from_secs(20);

/// Whether the node is here: its network, or a pod on it.
pub(super) fn is_on_node(place: &CheckPlace) -> bool {
    place.in_pod || capabilities::has_net_admin()
}

/// Does this in a limited time.
pub(super) async fn within<T>(limit: Duration, work: impl Future<Output = T>) -> Option<T> {
    tokio::time::timeout(limit, work).await.ok()
}

pub(super) fn no_answer(item: CheckItem) -> CheckItem {
    CheckItem { detail: format!("{}: no answer within {} s", item.detail, STEP.as_secs()), ..item }
}

/// The addresses of `--host-ip` that no interface has.
pub(super) fn missing_addresses(given: &[IpAddr], interfaces: &[IpAddr]) -> Vec<String> {
    given.iter().filter(|ip| !interfaces.contains(ip)).map(ToString::to_string).collect()
}

/// Returns a check that failed with this error of a command.
pub(super) fn of_failure(section: CheckSection, check: &'static str, failure: &anyhow::Error) -> CheckItem {
    let item = section.failed(check, format!("{failure:#}"));
    match failure::advice(failure) {
        Some(advice) => item.advise(advice),
        None => item,
    }
}
