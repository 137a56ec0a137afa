//! What is known of the node itself at AWS, as it becomes known.

use std::fmt;
use std::sync::{Arc, OnceLock, PoisonError, RwLock};

use crate::role::{CallerIdentity, RoleArn};

/// Who the daemon is, and which role its instance has. Either may become known after the first decision, and may be
/// another later; each change has a number, by which a decision that was made before it is told. Cheap to clone: every
/// clone is the same knowledge.
#[derive(Clone, Debug, Default)]
pub struct NodeIdentity(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    known: RwLock<Arc<Known>>,
    listener: OnceLock<Listener>,
}

/// Who is told of changes.
struct Listener(Box<dyn Fn() + Send + Sync>);

impl fmt::Debug for Listener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Listener")
    }
}

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
        self.0.known.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Who the daemon is from now on; true if that was not known.
    pub fn set_caller(&self, caller: CallerIdentity) -> bool {
        self.change(|known| known.caller.replace(caller.clone()).as_ref() != Some(&caller))
    }

    /// The role of the instance from now on, where it has one; true if that was not known.
    pub fn set_instance_role(&self, role: Option<RoleArn>) -> bool {
        self.change(|known| std::mem::replace(&mut known.instance_role, role.clone()) != role)
    }

    /// Calls this after each change from now on. For one listener: the first stays.
    pub fn on_change(&self, tell: impl Fn() + Send + Sync + 'static) {
        let _ = self.0.listener.set(Listener(Box::new(tell)));
    }

    fn change(&self, change: impl FnOnce(&mut Known) -> bool) -> bool {
        let mut known = self.0.known.write().unwrap_or_else(PoisonError::into_inner);
        let mut next = Known::clone(&known);
        let changed = change(&mut next);
        if changed {
            next.version += 1;
            *known = Arc::new(next);
            drop(known);
            if let Some(Listener(tell)) = self.0.listener.get() {
                tell();
            }
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
