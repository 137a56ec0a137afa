//! Checks whose session STS returned.

use aws_sdk_sts::types::AssumedRoleUser;

use crate::credentials::AssumeRoleError;
use crate::policy::RoleRequest;
use crate::role::RoleArn;
use crate::text::bounded;

/// Compares the session in STS's response with the requested one of `role`: `arn:PARTITION:sts::ACCOUNT:assumed-role/NAME/SESSION`, which
/// has no path (IAM User Guide, "IAM identifiers"). Role names are unique in an account regardless of case. A response that names
/// no session counts as one for another session. So does one whose source identity is not the requested one: CloudTrail would not
/// tell whose session it is. If none was requested, the session has that of the daemon's own session, if there is one.
pub(super) fn check(
    request: &RoleRequest,
    role: &RoleArn,
    user: Option<&AssumedRoleUser>,
    source_identity: Option<&str>,
) -> Result<(), AssumeRoleError> {
    let arn = user.map(AssumedRoleUser::arn).unwrap_or_default();
    if !is_of(request, role, arn) {
        let message = if arn.is_empty() { "the response does not name a session".to_owned() } else { bounded(arn) };
        return Err(AssumeRoleError::OtherRole { message });
    }
    match (request.source_identity(), source_identity) {
        (None, _) => Ok(()),
        (Some(requested), Some(returned)) if requested.as_str() == returned => Ok(()),
        (Some(_), None) => Err(AssumeRoleError::OtherRole { message: "the response does not name a source identity".to_owned() }),
        (Some(requested), Some(returned)) => {
            Err(AssumeRoleError::OtherRole { message: format!("its source identity is {}, not {}", bounded(returned), requested.as_str()) })
        }
    }
}

fn is_of(request: &RoleRequest, role: &RoleArn, arn: &str) -> bool {
    let session = format!("arn:{}:sts::{}:assumed-role/", role.partition().name(), role.account());
    let Some((name, session)) = arn.strip_prefix(&session).and_then(|rest| rest.split_once('/')) else {
        return false;
    };
    name.eq_ignore_ascii_case(role.name()) && session == request.session_name().as_str()
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test says loudly what failed")]
mod tests {
    use super::*;
    use crate::credentials::tests::{request, request_with_source_identity};

    #[test]
    fn only_the_requested_session_is_accepted() {
        let (plain, with_path) = (request("web"), request("team/a/web"));
        for request in [&plain, &with_path] {
            for own in ["arn:aws:sts::111122223333:assumed-role/web/pod", "arn:aws:sts::111122223333:assumed-role/Web/pod"] {
                assert!(is_of(request, request.role(), own), "{own}");
            }
            for other in [
                "",
                "arn:aws:sts::111122223333:assumed-role/db/pod",
                "arn:aws:sts::111122223333:assumed-role/web/other",
                "arn:aws:sts::111122223333:assumed-role/web/pod/",
                "arn:aws:sts::111122223333:assumed-role/web",
                "arn:aws:sts::111122223333:assumed-role/team/a/web/pod",
                "arn:aws:sts::444455556666:assumed-role/web/pod",
                "arn:aws-cn:sts::111122223333:assumed-role/web/pod",
                "arn:aws:iam::111122223333:role/web",
                " arn:aws:sts::111122223333:assumed-role/web/pod",
            ] {
                assert!(!is_of(request, request.role(), other), "{other}");
            }
        }
        assert_eq!(
            check(&plain, plain.role(), None, None).map_err(|error| error.name()),
            Err("other-role"),
            "the response names no session"
        );
    }

    #[test]
    fn the_source_identity_is_the_requested_one() {
        let session = |arn: &str| AssumedRoleUser::builder().assumed_role_id("AROA:pod").arn(arn).build().unwrap();
        let own = session("arn:aws:sts::111122223333:assumed-role/web/pod");
        let (plain, identified) = (request("web"), request_with_source_identity("web", "{namespace}.{pod}"));
        for (request, returned, expected) in [
            (&identified, Some("default.pod"), Ok(())),
            (&identified, Some("default.po"), Err("other-role")),
            (&identified, Some(""), Err("other-role")),
            (&identified, None, Err("other-role")),
            (&plain, None, Ok(())),
            (&plain, Some("the-daemons-own"), Ok(())),
        ] {
            let found = check(request, request.role(), Some(&own), returned).map_err(|error| error.name());
            assert_eq!(found, expected, "{returned:?} for {request:?}");
        }
        let other = session("arn:aws:sts::111122223333:assumed-role/db/pod");
        assert!(check(&identified, identified.role(), Some(&other), Some("default.pod")).is_err(), "the role is still checked");
    }
}
