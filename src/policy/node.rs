//! What is known about the node's AWS identity. It becomes known after start-up.

use std::fmt;
use std::sync::Arc;

use tokio::sync::watch;

use crate::generation::Generation;
use crate::role::{CallerIdentity, RoleArn};

/// The name of the daemon's own credentials in explanations.
pub(super) const OWN: &str = "rolegate's own AWS identity";
/// The name of the intermediate role in explanations.
pub(super) const INTERMEDIATE: &str = "the role of --assume-role-arn";

/// The AWS identities of the daemon (its own, and that of an intermediate role) and the role of its instance. Each may become
/// known after the first decision, and may change later. Each change advances a generation, which identifies decisions that were
/// made before it. Cheap to clone: all clones share the same state.
#[derive(Clone, Debug, Default)]
pub struct NodeIdentity(Arc<SharedNode>);

#[derive(Debug, Default)]
struct SharedNode {
    known: watch::Sender<Arc<KnownNode>>,
    /// Advances with each change of what is known.
    generation: Generation,
}

/// Notifications of changes to what is known about the node. The state at the time of the subscription counts as seen.
pub type NodeChanges = watch::Receiver<Arc<KnownNode>>;

/// The identity of the session of the intermediate role, which assumes the pods' roles.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum IntermediateIdentity {
    /// There is no intermediate role.
    #[default]
    None,
    /// There is an intermediate role, and its identity is not known yet.
    Unknown,
    /// The identity is known.
    Known(CallerIdentity),
}

/// A snapshot of what is known about the node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KnownNode {
    /// The identity of the daemon's own credentials according to STS.
    pub caller: Option<CallerIdentity>,
    /// The identity of the intermediate role's session.
    pub intermediate: IntermediateIdentity,
    /// The role of the instance, regardless of the daemon's identity. Its path is not known.
    pub instance_role: Option<RoleArn>,
    /// The first identity of the daemon's own credentials that STS named.
    first_caller: Option<CallerIdentity>,
    /// The first role of the instance that the metadata service named.
    first_instance_role: Option<RoleArn>,
}

/// Answers about the AWS account of this node that cannot all be true. An instance belongs to one account for as long as it exists,
/// so one of the answers is not the real metadata service's: something else answers at its address, or did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Contradiction {
    /// According to STS, the daemon's own credentials belong to another account than the first ones.
    OwnAccount {
        /// The first identity.
        first: CallerIdentity,
        /// The present identity.
        now: CallerIdentity,
    },
    /// The metadata service names a role of the instance in another account than at first.
    InstanceAccount {
        /// The first role.
        first: RoleArn,
        /// The present role.
        now: RoleArn,
    },
    /// The daemon's own credentials were issued to an instance, in another account than that of the role which the metadata service
    /// names.
    OfAnotherInstance {
        /// The identity of the credentials, according to STS.
        caller: CallerIdentity,
        /// The role.
        role: RoleArn,
    },
}

impl fmt::Display for Contradiction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::OwnAccount { first, now } => {
                write!(
                    f,
                    "according to STS, the daemon's own credentials belonged to {} first, and now to {}",
                    first.as_str(),
                    now.as_str()
                )
            }
            Self::InstanceAccount { first, now } => {
                write!(f, "the metadata service named the instance's role {first} first, and now names {now}")
            }
            Self::OfAnotherInstance { caller, role } => {
                write!(f, "the metadata service names the instance's role {role}, but gave credentials of {}", caller.as_str())
            }
        }
    }
}

impl KnownNode {
    /// Returns the contradiction between what STS and the metadata service say of the account, and have said, if there is one.
    pub fn contradiction(&self) -> Option<Contradiction> {
        if let (Some(first), Some(now)) = (&self.first_caller, &self.caller)
            && !now.is_of_same_account(first)
        {
            return Some(Contradiction::OwnAccount { first: first.clone(), now: now.clone() });
        }
        let role = self.instance_role.as_ref()?;
        if let Some(first) = &self.first_instance_role
            && (first.partition(), first.account()) != (role.partition(), role.account())
        {
            return Some(Contradiction::InstanceAccount { first: first.clone(), now: role.clone() });
        }
        let caller = self.caller.as_ref().filter(|caller| caller.is_of_instance())?;
        let is_same = caller.is_of_account(role.partition(), role.account());
        (!is_same).then(|| Contradiction::OfAnotherInstance { caller: caller.clone(), role: role.clone() })
    }

    /// Returns the known identities of the daemon, each with its name in explanations.
    pub fn callers(&self) -> impl Iterator<Item = (&'static str, &CallerIdentity)> {
        let intermediate = match &self.intermediate {
            IntermediateIdentity::Known(caller) => Some((INTERMEDIATE, caller)),
            IntermediateIdentity::None | IntermediateIdentity::Unknown => None,
        };
        self.caller.as_ref().map(|caller| (OWN, caller)).into_iter().chain(intermediate)
    }

    /// Whether all identities of the daemon are known.
    pub fn has_all_callers(&self) -> bool {
        self.caller.is_some() && self.intermediate != IntermediateIdentity::Unknown
    }

    /// Returns the identity that assumes the pods' roles.
    pub fn caller(&self) -> Option<&CallerIdentity> {
        match &self.intermediate {
            IntermediateIdentity::None => self.caller.as_ref(),
            IntermediateIdentity::Unknown => None,
            IntermediateIdentity::Known(caller) => Some(caller),
        }
    }
}

impl NodeIdentity {
    /// Returns what is currently known.
    pub fn known(&self) -> Arc<KnownNode> {
        self.0.known.borrow().clone()
    }

    /// Returns a number that grows with each change. Cheap: it is read for each request.
    pub fn generation(&self) -> u64 {
        self.0.generation.now()
    }

    /// Records that there is an intermediate role. From now on, its identity must be known too.
    pub fn expect_intermediate(&self) {
        self.change(|known| {
            let first = known.intermediate == IntermediateIdentity::None;
            if first {
                known.intermediate = IntermediateIdentity::Unknown;
            }
            first
        });
    }

    /// Sets the identity of the intermediate role's session. Returns whether it changed.
    pub fn set_intermediate(&self, caller: CallerIdentity) -> bool {
        let intermediate = IntermediateIdentity::Known(caller);
        self.change(|known| std::mem::replace(&mut known.intermediate, intermediate.clone()) != intermediate)
    }

    /// Sets the identity of the daemon's own credentials. Returns whether it changed.
    pub fn set_caller(&self, caller: CallerIdentity) -> bool {
        self.change(|known| {
            known.first_caller.get_or_insert_with(|| caller.clone());
            known.caller.replace(caller.clone()).as_ref() != Some(&caller)
        })
    }

    /// Sets the role of the instance, if it has one. Returns whether it changed.
    pub fn set_instance_role(&self, role: Option<RoleArn>) -> bool {
        self.change(|known| {
            known.first_instance_role = known.first_instance_role.take().or_else(|| role.clone());
            std::mem::replace(&mut known.instance_role, role.clone()) != role
        })
    }

    /// Subscribes to changes.
    pub fn changes(&self) -> NodeChanges {
        self.0.known.subscribe()
    }

    /// Returns when all identities of the daemon are known, including that of the intermediate role, if there is one.
    pub async fn identified(&self) {
        // The sender lives in `self`, so waiting cannot fail.
        let _ = self.changes().wait_for(|known| known.has_all_callers()).await;
    }

    fn change(&self, change: impl FnOnce(&mut KnownNode) -> bool) -> bool {
        self.0.known.send_if_modified(|known| {
            let mut next = KnownNode::clone(known);
            let changed = change(&mut next);
            if changed {
                *known = Arc::new(next);
                self.0.generation.advance();
            }
            changed
        })
    }
}

impl From<CallerIdentity> for NodeIdentity {
    fn from(caller: CallerIdentity) -> Self {
        let node = Self::default();
        node.set_caller(caller);
        node
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test says loudly what failed")]
mod tests {
    use super::*;

    const NODE: &str = "arn:aws:sts::111122223333:assumed-role/nodes/i-0f1e2d3c4b5a69788";

    fn caller(arn: &str) -> CallerIdentity {
        arn.parse().unwrap()
    }

    fn role(account: &str) -> Option<RoleArn> {
        Some(format!("arn:aws:iam::{account}:role/nodes").parse().unwrap())
    }

    #[test]
    fn another_account_of_the_daemon_is_a_contradiction() {
        let node = NodeIdentity::default();
        assert_eq!(node.known().contradiction(), None);
        node.set_caller(caller(NODE));
        // Keys are rotated to those of another role of the account.
        let other_role = "arn:aws:sts::111122223333:assumed-role/daemon/pod";
        node.set_caller(caller(other_role));
        assert_eq!(node.known().contradiction(), None);
        for foreign in
            ["arn:aws:sts::999999999999:assumed-role/nodes/i-0f1e2d3c4b5a69788", "arn:aws-cn:sts::111122223333:assumed-role/nodes/pod"]
        {
            node.set_caller(caller(foreign));
            let expected = Contradiction::OwnAccount { first: caller(NODE), now: caller(foreign) };
            assert_eq!(node.known().contradiction(), Some(expected));
        }
        node.set_caller(caller(other_role));
        assert_eq!(node.known().contradiction(), None, "the first account again");
    }

    #[test]
    fn another_account_of_the_instance_is_a_contradiction() {
        let node = NodeIdentity::default();
        node.set_instance_role(None);
        node.set_instance_role(role("111122223333"));
        node.set_instance_role(None);
        assert_eq!(node.known().contradiction(), None);
        node.set_instance_role(role("999999999999"));
        let expected = Contradiction::InstanceAccount { first: role("111122223333").unwrap(), now: role("999999999999").unwrap() };
        assert_eq!(node.known().contradiction(), Some(expected));
    }

    #[test]
    fn credentials_of_an_instance_in_another_account_are_a_contradiction() {
        for (arn, contradicts) in [
            (NODE, true),
            ("arn:aws:sts::111122223333:assumed-role/nodes/i-0f1e2d3c", true),
            // Credentials from elsewhere may be in any account.
            ("arn:aws:sts::111122223333:assumed-role/nodes/botocore-session-1", false),
            ("arn:aws:sts::111122223333:assumed-role/nodes/i-am-not-an-instance", false),
            ("arn:aws:iam::111122223333:user/i-0f1e2d3c", false),
            ("arn:aws:sts::999999999999:assumed-role/nodes/i-0f1e2d3c", false),
        ] {
            let node: NodeIdentity = caller(arn).into();
            node.set_instance_role(role("999999999999"));
            assert_eq!(node.known().contradiction().is_some(), contradicts, "{arn}");
        }
    }
}
