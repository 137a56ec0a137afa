//! Limits of AWS and its SDKs on the duration of sessions.

use std::time::Duration;

/// The longest session of a role that is assumed by another role's session (IAM User Guide, "Role chaining").
pub(crate) const LONGEST_CHAINED: Duration = Duration::from_secs(3600);
/// The longest refresh margin of any SDK (botocore): with less time left, it refreshes the credentials at every use.
pub(crate) const LONGEST_SDK_MARGIN: Duration = Duration::from_secs(25 * 60);
