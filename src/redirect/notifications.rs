//! Log lines about the kernel's notifications of changes. Without notifications, changes are found at each `--redirect-interval`.

use std::fmt::{self, Display};
use std::io;

use tracing::warn;

/// What notifications are about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Watched {
    /// Packet rules.
    PacketRules,
    /// Routing rules.
    RoutingRules,
    /// Interfaces and routes.
    Interfaces,
}

impl Display for Watched {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::PacketRules => "packet rules",
            Self::RoutingRules => "routing rules",
            Self::Interfaces => "interfaces and routes",
        })
    }
}

impl Watched {
    /// Returns the subscription, or logs why there is none.
    pub(super) fn subscribed<T>(self, subscription: io::Result<T>) -> Option<T> {
        subscription
            .inspect_err(|error| {
                warn!(
                    event = "change-notifications-unavailable", subject = %self, %error,
                    "cannot subscribe to changes; checking for them at each --redirect-interval only"
                );
            })
            .ok()
    }

    /// Logs that a subscription is lost.
    pub(super) fn lost(self, error: &io::Error) {
        warn!(
            event = "change-notifications-failed", subject = %self, %error,
            "the subscription to changes failed; checking for them at each --redirect-interval only"
        );
    }
}
