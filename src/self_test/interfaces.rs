//! Pods behind interfaces that `--host-interface` does not include: their requests do not reach this daemon.

use std::net::IpAddr;

use tracing::{debug, warn};

use super::blocking::blocking;
use super::netlink::Netlink;
use super::placement::Outside;
use crate::config::InterfaceMatch;
use crate::log_once::Conditions;
use crate::metrics::Metrics;

/// Looks for pods behind interfaces that the packet rules do not match.
#[derive(Debug, Default)]
pub(super) struct InterfaceScan {
    outside: Outside,
    /// Interfaces that were logged.
    logged: Conditions<String>,
}

impl InterfaceScan {
    /// Scans the routes to `pods`, sets the metric, and logs each interface outside of `interfaces` once.
    pub(super) async fn at(mut self, interfaces: Vec<InterfaceMatch>, pods: Vec<IpAddr>, metrics: &Metrics) -> Self {
        let looked = blocking(move || {
            let found = Netlink::open().and_then(|mut netlink| self.outside.look(&interfaces, &pods, &mut netlink));
            Ok((self, found))
        });
        let (mut look, found) = match looked.await {
            Ok((look, Ok(found))) => (look, found),
            Ok((look, Err(error))) => {
                debug!(%error, "cannot read the routes to pods; trying again at the next interval");
                return look;
            }
            // The runtime shuts down.
            Err(_) => return Self::default(),
        };
        let addresses: std::collections::BTreeSet<_> = found.iter().map(|(ip, _)| *ip).collect();
        metrics.pods_outside(addresses.len());
        for (address, interface) in found {
            if look.logged.begins(interface.clone()) {
                warn!(
                    event = "pods-outside-rules", %interface, %address,
                    "pods are behind an interface that --host-interface does not include; their metadata requests do not reach this \
                     daemon; add the interface, or remove --host-interface to include all"
                );
            }
        }
        look
    }
}
