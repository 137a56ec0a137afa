//! Reads and changes the routing rules of this node.

use std::borrow::Cow;
use std::io;
use std::panic::resume_unwind;
use std::path::Path;

use super::{Change, RoutingError, RoutingRules, family_name};
use crate::advice::Advise;
use crate::netlink::Netlink;
use crate::redirect::rules::Family;

/// How often the rules are changed until they are as wanted: another daemon of this node may change them at the same time.
const ATTEMPTS: usize = 5;
/// Exists if the kernel has IPv6.
const HAS_IPV6: &str = "/proc/net/if_inet6";

/// What was found or done in each family that the kernel has.
pub type EachFamily<T> = Vec<(Family, Result<T, RoutingError>)>;

impl Advise for RoutingError {
    fn advice(&self) -> Option<Cow<'static, str>> {
        Some(match self {
            Self::Unsupported(Family::V4) => "to have them, use a kernel with CONFIG_IP_MULTIPLE_TABLES".into(),
            Self::Unsupported(Family::V6) => {
                "to have them, use a kernel with CONFIG_IPV6_MULTIPLE_TABLES, or disable IPv6 in the node's kernel (ipv6.disable=1)".into()
            }
            Self::Refused { source, .. } if source.kind() == io::ErrorKind::PermissionDenied => {
                "add the capability NET_ADMIN to the container's securityContext".into()
            }
            Self::Refused { .. } => return None,
            Self::NotKept { .. } => "find the program on this node that changes routing rules".into(),
        })
    }
}

/// Returns the routing rules of the families that the kernel has. Changes nothing.
pub async fn observe() -> EachFamily<RoutingRules> {
    each_family(RoutingRules::list).await
}

/// Makes the routing rules as wanted, and describes what differed; empty if nothing did. If one family fails, the other is closed
/// all the same.
pub async fn install() -> EachFamily<Vec<String>> {
    each_family(|netlink, family| {
        let found = RoutingRules::list(netlink, family)?;
        let differences = found.differences();
        settle(netlink, found, |rules| rules.repair(), RoutingRules::differences)?;
        Ok(differences)
    })
    .await
}

/// Removes exactly rolegate's routing rules, and describes what it removed; empty if there was nothing.
pub async fn remove() -> EachFamily<Vec<String>> {
    each_family(|netlink, family| {
        let found = match RoutingRules::list(netlink, family) {
            Err(RoutingError::Unsupported(_)) => return Ok(Vec::new()),
            found => found?,
        };
        let had_any = found.has_ours();
        settle(netlink, found, RoutingRules::removal, |rules| rules.has_ours().then(|| "they came back".to_owned()).into_iter().collect())?;
        Ok(had_any.then(|| format!("the routing rules for {}", family_name(family))).into_iter().collect())
    })
    .await
}

async fn each_family<T: Send + 'static>(call: impl Fn(&mut Netlink, Family) -> Result<T, RoutingError> + Send + 'static) -> EachFamily<T> {
    let all = move || {
        let has = |family: &Family| *family == Family::V4 || Path::new(HAS_IPV6).exists();
        let one = |family| call(&mut Netlink::open().map_err(|source| RoutingError::Refused { family, source })?, family);
        Family::ALL.into_iter().filter(has).map(|family| (family, one(family))).collect()
    };
    // Other processes may hold the kernel's lock of the network configuration.
    match tokio::task::spawn_blocking(all).await.map_err(tokio::task::JoinError::try_into_panic) {
        Ok(results) => results,
        Err(Ok(panic)) => resume_unwind(panic),
        Err(Err(_)) => {
            let cancelled = |family| RoutingError::Refused { family, source: io::Error::other("the call was cancelled") };
            Family::ALL.map(|family| (family, Err(cancelled(family)))).into()
        }
    }
}

/// Changes the rules until nothing remains to be changed.
fn settle(
    netlink: &mut Netlink,
    mut found: RoutingRules,
    changes: impl Fn(&RoutingRules) -> Vec<Change>,
    differences: impl Fn(&RoutingRules) -> Vec<String>,
) -> Result<(), RoutingError> {
    let family = found.family;
    for _ in 0..ATTEMPTS {
        if differences(&found).is_empty() {
            return Ok(());
        }
        for change in changes(&found) {
            apply(netlink, family, &change).map_err(|source| RoutingError::Refused { family, source })?;
        }
        found = RoutingRules::list(netlink, family)?;
    }
    match differences(&found) {
        left if left.is_empty() => Ok(()),
        left => Err(RoutingError::NotKept { family, attempts: ATTEMPTS, differences: left.join("; ") }),
    }
}

fn apply(netlink: &mut Netlink, family: Family, change: &Change) -> io::Result<()> {
    let done = match change {
        Change::Add { rule, is_new } => netlink.add_rule(rule, family.metadata(), *is_new),
        Change::Delete(listed) => netlink.delete_rule(listed),
    };
    match (done, change) {
        // Another daemon of this node did the same at the same time.
        (Err(error), Change::Add { .. }) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        (Err(error), Change::Delete(_)) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        (done, _) => done,
    }
}

impl RoutingRules {
    fn list(netlink: &mut Netlink, family: Family) -> Result<Self, RoutingError> {
        match netlink.rules(family.metadata()) {
            Ok(listed) => Ok(Self { family, listed }),
            Err(error) if error.kind() == io::ErrorKind::Unsupported => Err(RoutingError::Unsupported(family)),
            Err(source) => Err(RoutingError::Refused { family, source }),
        }
    }
}
