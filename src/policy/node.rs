//! What is known of the node itself at AWS, as it becomes known.

use std::sync::{Arc, PoisonError, RwLock};

use crate::role::{CallerIdentity, RoleArn};

/// Who the daemon is, and which role its instance has. Either may become known after the first decision, and may be
/// another later; each change has a number, by which a decision that was made before it is told. Cheap to clone: every
/// clone is the same knowledge.
#[derive(Clone, Debug, Default)]
pub struct NodeIdentity(Arc<RwLock<Arc<Known>>>);

/// What is known at one time.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Known {
    /// Who the daemon is to STS.
    pub caller: Option<CallerIdentity>,
    /// The role of the instance, whoever the daemon is; its path is not known.
    pub instance_role: Option<RoleArn>,
    /// Grows with each change.
    pub version: u64,
}

impl NodeIdentity {
    /// What is known now.
    pub fn known(&self) -> Arc<Known> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Who the daemon is from now on; true if that was not known.
    pub fn set_caller(&self, caller: CallerIdentity) -> bool {
        self.change(|known| known.caller.replace(caller.clone()).as_ref() != Some(&caller))
    }

    /// The role of the instance from now on, where it has one; true if that was not known.
    pub fn set_instance_role(&self, role: Option<RoleArn>) -> bool {
        self.change(|known| std::mem::replace(&mut known.instance_role, role.clone()) != role)
    }

    fn change(&self, change: impl FnOnce(&mut Known) -> bool) -> bool {
        let mut known = self.0.write().unwrap_or_else(PoisonError::into_inner);
        let mut next = Known::clone(&known);
        let changed = change(&mut next);
        if changed {
            next.version += 1;
            *known = Arc::new(next);
        }
        changed
    }
}

impl From<CallerIdentity> for NodeIdentity {
    fn from(caller: CallerIdentity) -> Self {
        let node = Self::default();
        node.set_caller(caller);
        node
    }
}
