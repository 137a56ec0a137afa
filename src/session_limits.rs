//! What AWS and its SDKs demand of the length of a session.

use std::time::Duration;

/// The longest session of a role that is assumed by the session of another one (IAM user guide, "Role chaining").
pub(crate) const LONGEST_CHAINED: Duration = Duration::from_secs(3600);
/// The SDKs with the longest margin (botocore) refresh credentials that have less left, again and again.
pub(crate) const LONGEST_SDK_MARGIN: Duration = Duration::from_secs(25 * 60);
