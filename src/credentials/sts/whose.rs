//! Checks whose session STS returned.

use aws_sdk_sts::types::AssumedRoleUser;

use super::bounded;
use crate::credentials::AssumeRoleError;
use crate::policy::RoleRequest;

/// Compares the session in STS's response with the requested one: `arn:PARTITION:sts::ACCOUNT:assumed-role/NAME/SESSION`, which
/// has no path (IAM User Guide, "IAM identifiers"). Role names are unique in an account regardless of case. A response that names
/// no session counts as one for another session.
pub(super) fn check(request: &RoleRequest, user: Option<&AssumedRoleUser>) -> Result<(), AssumeRoleError> {
    let arn = user.map(AssumedRoleUser::arn).unwrap_or_default();
    if is_of(request, arn) {
        return Ok(());
    }
    let message = if arn.is_empty() { "the response does not name a session".to_owned() } else { bounded(arn) };
    Err(AssumeRoleError::OtherRole { message })
}

fn is_of(request: &RoleRequest, arn: &str) -> bool {
    let role = request.role();
    let session = format!("arn:{}:sts::{}:assumed-role/", role.partition().name(), role.account());
    let Some((name, session)) = arn.strip_prefix(&session).and_then(|rest| rest.split_once('/')) else {
        return false;
    };
    name.eq_ignore_ascii_case(role.name()) && session == request.session_name().as_str()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::credentials::tests::request;

    #[test]
    fn the_session_that_was_requested_is_told_from_every_other() {
        let (plain, with_path) = (request("web"), request("team/a/web"));
        for request in [&plain, &with_path] {
            for own in ["arn:aws:sts::111122223333:assumed-role/web/pod", "arn:aws:sts::111122223333:assumed-role/Web/pod"] {
                assert!(is_of(request, own), "{own}");
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
                assert!(!is_of(request, other), "{other}");
            }
        }
        assert_eq!(check(&plain, None).map_err(|error| error.name()), Err("other-role"), "nothing is said");
    }
}
