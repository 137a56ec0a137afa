//! The part of the self-test for BPF programs: it tests those on the pods' control group from a process in it, and checks the exit guard.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use super::blocking::blocking;
use super::helper::Order;
use super::outcome::{Attempt, SelfTestFailure};
use super::reply::HelperReply;
use super::test_network::source;
use super::{ExpectedRules, OTHER_PORT, Probes, Running, TIMEOUT};
use crate::metadata_service::METADATA_PORT;
use crate::redirect::bpf::ExitGuardState;
use crate::redirect::rules::Family;

/// How many times the exit guard is checked again if it is missing, because a new interface has none for a moment.
const EXIT_GUARD_TRIES: u32 = 10;
/// The pause between these checks.
const EXIT_GUARD_PAUSE: Duration = Duration::from_millis(100);

impl Running {
    /// Tests the BPF programs on the pods' control group.
    pub(super) async fn test_programs(
        &mut self,
        number: u8,
        has_ipv6: bool,
        expected: ExpectedRules,
        probes: &Probes,
    ) -> Result<(), SelfTestFailure> {
        for family in Family::ALL {
            let is_redirected = if family == Family::V4 { expected.ipv4 } else { expected.ipv6 };
            let at = |port| SocketAddr::new(family.metadata(), port);
            // The IPv4 address for IPv6 sockets.
            let mapped = |port| match family.metadata() {
                IpAddr::V4(ip) => Some(SocketAddr::new(ip.to_ipv6_mapped().into(), port)),
                IpAddr::V6(_) => None,
            };
            // First, because these show most clearly which programs are missing.
            self.is_denied(Attempt::Connection, at(OTHER_PORT)).await?;
            self.is_denied(Attempt::Datagrams, at(OTHER_PORT)).await?;
            if let Some(mapped) = mapped(OTHER_PORT) {
                self.is_denied(Attempt::Connection, mapped).await?;
            }
            // Without IPv6, there is no packet to drop.
            if family == Family::V4 || has_ipv6 {
                self.is_dropped(at(OTHER_PORT)).await?;
            }
            if !is_redirected {
                self.is_denied(Attempt::Connection, at(METADATA_PORT)).await?;
                continue;
            }
            let own = source(family, number);
            self.arrives(own, at(METADATA_PORT), probes).await?;
            if let Some(mapped) = mapped(METADATA_PORT) {
                self.arrives(own, mapped, probes).await?;
            }
        }
        Ok(())
    }

    /// Checks that the programs deny the attempt when the socket connects.
    async fn is_denied(&mut self, what: Attempt, to: SocketAddr) -> Result<(), SelfTestFailure> {
        let order = match what {
            Attempt::Connection => Order::Connect { to, timeout: TIMEOUT },
            Attempt::Datagrams => Order::Datagram { to, timeout: TIMEOUT },
        };
        match self.order(&order).await? {
            HelperReply::Denied => Ok(()),
            // Without sockets of this family, pods have none either.
            HelperReply::NoFamily if to.is_ipv6() => Ok(()),
            HelperReply::Closed { .. } | HelperReply::Open { .. } => Err(SelfTestFailure::Open(to)),
            _ => Err(SelfTestFailure::NotDenied { what, to }),
        }
    }

    /// Checks that the programs drop the packets of a socket that does not connect.
    async fn is_dropped(&mut self, to: SocketAddr) -> Result<(), SelfTestFailure> {
        match self.order(&Order::SendTo { to }).await? {
            HelperReply::Denied => Ok(()),
            _ => Err(SelfTestFailure::NotDropped(to)),
        }
    }

    /// Checks the exit guard, if it is attached, without sending a packet.
    pub(super) async fn check_exit_guard(&self) -> Result<(), SelfTestFailure> {
        let Some(check) = self.exit_guard.clone() else { return Ok(()) };
        let mut tries = 0..EXIT_GUARD_TRIES;
        loop {
            let check = check.clone();
            let state = blocking(move || Ok(check.check())).await.map_err(SelfTestFailure::NotMade)?;
            match state.map_err(SelfTestFailure::ExitGuardUnknown)? {
                ExitGuardState::InPlace => return Ok(()),
                // A new interface gets its guard after a moment.
                ExitGuardState::Missing(_) if tries.next().is_some() => tokio::time::sleep(EXIT_GUARD_PAUSE).await,
                ExitGuardState::Missing(interfaces) => return Err(SelfTestFailure::ExitGuardMissing(interfaces)),
                ExitGuardState::Wrong(to) => return Err(SelfTestFailure::ExitGuardWrong(to)),
            }
        }
    }
}
