//! What one call of AssumeRole sends, and until when its session can be valid.

use std::time::Duration;

use jiff::Timestamp;

use crate::credentials::Credentials;
use crate::credentials::chain::{ChainCall, called_role};
use crate::policy::RoleRequest;
use crate::role::{ExternalId, RoleArn};

/// The duration of the session of a source role, the shortest of STS: it makes one request, within seconds.
const SOURCE_SESSION: Duration = Duration::from_secs(15 * 60);

/// The parameters of one call of AssumeRole that are not the same in both calls of a request with a target role.
pub(super) struct AssumeRoleCall<'a> {
    pub(super) request: &'a RoleRequest,
    /// Which of the two calls this is, if there are two.
    pub(super) chain: Option<ChainCall>,
    /// The role that is assumed.
    pub(super) role: &'a RoleArn,
    /// The credentials of the source role, which sign the call. `None` for the daemon's own.
    pub(super) source: Option<&'a Credentials>,
    pub(super) duration: Duration,
}

impl<'a> AssumeRoleCall<'a> {
    pub(super) fn of(request: &'a RoleRequest, source: Option<&'a Credentials>) -> Self {
        let chain = ChainCall::of(request, source.is_some());
        let duration = if chain == Some(ChainCall::Source) { SOURCE_SESSION } else { request.duration() };
        Self { request, chain, role: called_role(request, chain), source: source.filter(|_| chain.is_some()), duration }
    }

    /// The external ID is for the account of the target role, if there is one.
    pub(super) fn external_id(&self) -> Option<&'a ExternalId> {
        self.request.external_id().filter(|_| self.chain != Some(ChainCall::Source))
    }

    /// The pod's session passes the tags on. If that of the source role did, too, STS would refuse the second call, which sets the same
    /// tags (IAM User Guide, "Chaining roles with session tags").
    pub(super) fn has_transitive_tags(&self) -> bool {
        self.request.has_transitive_tags() && self.chain != Some(ChainCall::Source)
    }
}

/// A session that was requested from STS.
pub(super) struct AskedSession {
    /// When it was sent, by the wall clock.
    pub(super) sent: Timestamp,
    /// The session's duration.
    pub(super) duration: Duration,
    /// The time until the response, by the monotonic clock.
    pub(super) took: Duration,
}

impl AskedSession {
    /// Returns the latest possible expiry of the session. `now` is the time of the response. STS issues the session after the
    /// request was sent, so it expires at most its duration later, by either clock. The date of the response may be wrong, the
    /// clock may have been set meanwhile, or the machine may have slept.
    pub(super) fn at_the_latest(&self, now: Timestamp) -> Option<Timestamp> {
        let by_wall = self.sent.checked_add(self.duration).ok()?;
        let by_time_passed = now.checked_add(self.duration.saturating_sub(self.took)).ok()?;
        Some(by_wall.min(by_time_passed))
    }
}
