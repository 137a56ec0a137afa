//! What is known of the node itself at AWS, as it becomes known.

use std::sync::Arc;

use tokio::sync::watch;

use crate::role::{CallerIdentity, RoleArn};

/// The name of the daemon's own credentials in explanations.
pub(super) const OWN: &str = "rolegate's own AWS identity";
/// The name of the intermediate role in explanations.
pub(super) const INTERMEDIATE: &str = "the role of --assume-role-arn";

/// Who the daemon is, by its own credentials and by those of a role between, and which role its instance has. Each may
/// become known after the first decision, and may be another later; each change has a number, by which a decision that was made before it is told. Cheap to clone: every
/// clone is the same knowledge.
#[derive(Clone, Debug, Default)]
pub struct NodeIdentity(Arc<watch::Sender<Arc<KnownNode>>>);

/// Notices of what has become known of the node. The state at the time of the subscription counts as seen.
pub type NodeChanges = watch::Receiver<Arc<KnownNode>>;

/// Who the daemon is as a session of the role between its own and the pods'.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum IntermediateIdentity {
    /// There is no such role.
    #[default]
    None,
    /// There is one, and STS has not told yet.
    Unknown,
    /// This one.
    Known(CallerIdentity),
}

/// What is known at one time.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KnownNode {
    /// The identity of the daemon's own credentials according to STS.
    pub caller: Option<CallerIdentity>,
    /// Who it is by the credentials of the role between.
    pub intermediate: IntermediateIdentity,
    /// The role of the instance, whoever the daemon is; its path is not known.
    pub instance_role: Option<RoleArn>,
    /// Grows with each change.
    pub version: u64,
}

impl KnownNode {
    /// Everybody that the daemon is to STS, as far as that is known: each with what it is called where a decision is explained.
    pub fn callers(&self) -> impl Iterator<Item = (&'static str, &CallerIdentity)> {
        let intermediate = match &self.intermediate {
            IntermediateIdentity::Known(caller) => Some((INTERMEDIATE, caller)),
            IntermediateIdentity::None | IntermediateIdentity::Unknown => None,
        };
        self.caller.as_ref().map(|caller| (OWN, caller)).into_iter().chain(intermediate)
    }

    /// Whether nobody is missing there.
    pub fn has_all_callers(&self) -> bool {
        self.caller.is_some() && self.intermediate != IntermediateIdentity::Unknown
    }

    /// Who asks for pods' roles.
    pub fn caller(&self) -> Option<&CallerIdentity> {
        match &self.intermediate {
            IntermediateIdentity::None => self.caller.as_ref(),
            IntermediateIdentity::Unknown => None,
            IntermediateIdentity::Known(caller) => Some(caller),
        }
    }
}

impl NodeIdentity {
    /// What is known now.
    pub fn known(&self) -> Arc<KnownNode> {
        self.0.borrow().clone()
    }

    /// That there is a role between: from now on, not all is known before it is.
    pub fn expect_intermediate(&self) {
        self.change(|known| {
            let first = known.intermediate == IntermediateIdentity::None;
            if first {
                known.intermediate = IntermediateIdentity::Unknown;
            }
            first
        });
    }

    /// Who the daemon is as a session of the role between from now on; true if that was not known.
    pub fn set_intermediate(&self, caller: CallerIdentity) -> bool {
        let intermediate = IntermediateIdentity::Known(caller);
        self.change(|known| std::mem::replace(&mut known.intermediate, intermediate.clone()) != intermediate)
    }

    /// Who the daemon is by its own credentials from now on; true if that was not known.
    pub fn set_caller(&self, caller: CallerIdentity) -> bool {
        self.change(|known| known.caller.replace(caller.clone()).as_ref() != Some(&caller))
    }

    /// The role of the instance from now on, where it has one; true if that was not known.
    pub fn set_instance_role(&self, role: Option<RoleArn>) -> bool {
        self.change(|known| std::mem::replace(&mut known.instance_role, role.clone()) != role)
    }

    /// Subscribes to changes.
    pub fn changes(&self) -> NodeChanges {
        self.0.subscribe()
    }

    /// Returns when AWS has told who the daemon is, and with a role between, who it is by that role's session.
    pub async fn identified(&self) {
        // The sender lives in `self`.
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
