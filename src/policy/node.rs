//! What is known about the node's AWS identity. It becomes known after start-up.

use std::sync::Arc;

use tokio::sync::watch;

use crate::role::{CallerIdentity, RoleArn};

/// The name of the daemon's own credentials in explanations.
pub(super) const OWN: &str = "rolegate's own AWS identity";
/// The name of the intermediate role in explanations.
pub(super) const INTERMEDIATE: &str = "the role of --assume-role-arn";

/// The AWS identities of the daemon (its own, and that of an intermediate role) and the role of its instance. Each may become
/// known after the first decision, and may change later. Each change increments a version, which identifies decisions that were
/// made before it. Cheap to clone: all clones share the same state.
#[derive(Clone, Debug, Default)]
pub struct NodeIdentity(Arc<watch::Sender<Arc<KnownNode>>>);

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
    /// Incremented with each change.
    pub version: u64,
}

impl KnownNode {
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
        self.0.borrow().clone()
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
        self.change(|known| known.caller.replace(caller.clone()).as_ref() != Some(&caller))
    }

    /// Sets the role of the instance, if it has one. Returns whether it changed.
    pub fn set_instance_role(&self, role: Option<RoleArn>) -> bool {
        self.change(|known| std::mem::replace(&mut known.instance_role, role.clone()) != role)
    }

    /// Subscribes to changes.
    pub fn changes(&self) -> NodeChanges {
        self.0.subscribe()
    }

    /// Returns when all identities of the daemon are known, including that of the intermediate role, if there is one.
    pub async fn identified(&self) {
        // The sender lives in `self`, so waiting cannot fail.
        let _ = self.changes().wait_for(|known| known.has_all_callers()).await;
    }

    fn change(&self, change: impl FnOnce(&mut KnownNode) -> bool) -> bool {
        self.0.send_if_modified(|known| {
            let mut next = KnownNode::clone(known);
            let changed = change(&mut next);
            if changed {
                next.version += 1;
                *known = Arc::new(next);
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
