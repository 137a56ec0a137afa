//! The two calls for a target role: the daemon assumes the source role, and the session of that role assumes the target role.

use std::fmt;

use crate::policy::RoleRequest;
use crate::role::RoleArn;

/// One of the two calls of AssumeRole for a request with a target role.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChainCall {
    /// The daemon assumes the source role.
    Source,
    /// The session of the source role assumes the target role.
    Target,
}

impl ChainCall {
    /// Returns which call a request makes next; `None` if the request has no target role. `has_source` says whether the source role is
    /// assumed already.
    pub(crate) fn of(request: &RoleRequest, has_source: bool) -> Option<Self> {
        request.source_role().map(|_| if has_source { Self::Target } else { Self::Source })
    }

    /// Returns the stable name of the call, for the log.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Source => "source",
            Self::Target => "target",
        }
    }
}

impl fmt::Display for ChainCall {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Source => "rolegate cannot assume the role that assumes the target role",
            Self::Target => "the session of the pod's role cannot assume the target role",
        })
    }
}

/// Returns the role that a call assumes.
pub(crate) fn called_role(request: &RoleRequest, call: Option<ChainCall>) -> &RoleArn {
    request.source_role().filter(|_| call == Some(ChainCall::Source)).unwrap_or_else(|| request.role())
}
