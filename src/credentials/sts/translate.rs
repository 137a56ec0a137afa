//! Translation of SDK errors.

use std::error::Error;

use aws_credential_types::provider::error::CredentialsError;
use aws_sdk_sts::config::http::HttpResponse;
use aws_sdk_sts::error::{ProvideErrorMetadata, SdkError};
use aws_sdk_sts::operation::assume_role::AssumeRoleError as AssumeRoleFault;
use aws_sdk_sts::operation::assume_role_with_web_identity::AssumeRoleWithWebIdentityError as WebIdentityFault;

use crate::advice::chain;
use crate::credentials::AssumeRoleError;
use crate::credentials::advice::CHECK_CREDENTIALS;
use crate::credentials::sts_errors::{StsErrorClass, StsErrorKind};
use crate::text::bounded;

/// Translates an SDK error. Never uses its `Debug` output or the response body, which may hold credentials.
pub(super) fn translate<E>(error: &SdkError<E, HttpResponse>) -> AssumeRoleError
where
    E: ProvideErrorMetadata + Error + 'static,
{
    match error {
        SdkError::ServiceError(context) => {
            let (code, message) = (context.err().code().unwrap_or("no code"), context.err().message().unwrap_or_default());
            let request_id = context.raw().headers().get("x-amzn-RequestId").unwrap_or("none");
            let message = bounded(&format!("{code}: {message} (request id {request_id})"));
            let kind = StsErrorKind::of(code, context.err().message().unwrap_or_default());
            let class = kind.map(StsErrorKind::class).unwrap_or(match context.raw().status().as_u16() {
                // An error that an account's owner may cause is a response about that role, whatever its code.
                429 => StsErrorClass::Throttled,
                400..=499 => StsErrorClass::Invalid,
                _ => StsErrorClass::Failed,
            });
            match class {
                StsErrorClass::Denied => AssumeRoleError::Denied { message },
                StsErrorClass::Invalid => AssumeRoleError::Invalid { message },
                StsErrorClass::Throttled => AssumeRoleError::Throttled,
                StsErrorClass::OwnIdentity => {
                    AssumeRoleError::OwnIdentity { message, advice: kind.map_or(CHECK_CREDENTIALS, StsErrorKind::advice).into() }
                }
                StsErrorClass::Failed => AssumeRoleError::Failed { message },
            }
        }
        SdkError::TimeoutError(_) => AssumeRoleError::Unreachable { message: "no answer in time".to_owned() },
        // The credentials chain fails before anything is sent, but its failure also looks like a failure to send.
        SdkError::DispatchFailure(failure) => {
            let message =
                failure.as_connector_error().map_or_else(|| "the request was not sent".to_owned(), |error| bounded(&chain(error)));
            let own = failure.as_connector_error().and_then(|error| without_credentials(error, &message));
            own.unwrap_or(AssumeRoleError::Unreachable { message })
        }
        SdkError::ConstructionFailure(_) => AssumeRoleError::Invalid { message: "the request could not be built".to_owned() },
        // The error of a malformed response is not included: the body may hold credentials.
        _ => AssumeRoleError::Failed { message: "its response could not be read".to_owned() },
    }
}

/// Returns the error if there were no credentials to sign a request with. The credentials may come from STS themselves: if STS
/// is unreachable or throttles, nothing is wrong with the daemon's identity.
fn without_credentials(error: &(dyn Error + 'static), message: &str) -> Option<AssumeRoleError> {
    match signing_credentials_error(error) {
        Some(AssumeRoleError::Denied { message } | AssumeRoleError::Invalid { message }) => {
            let advice = StsErrorKind::of_text(&message).map_or(CHECK_CREDENTIALS, StsErrorKind::advice).into();
            Some(AssumeRoleError::OwnIdentity { message, advice })
        }
        Some(other) => Some(other),
        None => causes(error)
            .any(|cause| cause.is::<CredentialsError>())
            .then(|| AssumeRoleError::OwnIdentity { message: message.to_owned(), advice: CHECK_CREDENTIALS.into() }),
    }
}

/// Returns the message with which STS refused the credentials that the request was to be signed with.
pub(super) fn refusal_of_credentials<E>(error: &SdkError<E, HttpResponse>) -> Option<String> {
    let SdkError::DispatchFailure(failure) = error else { return None };
    match signing_credentials_error(failure.as_connector_error()?)? {
        AssumeRoleError::Denied { message } | AssumeRoleError::Invalid { message } => Some(message),
        _ => None,
    }
}

/// Returns the response of STS to the request for signing credentials; `None` if there was no such request.
fn signing_credentials_error(error: &(dyn Error + 'static)) -> Option<AssumeRoleError> {
    causes(error).find_map(|cause| {
        let role = cause.downcast_ref::<SdkError<AssumeRoleFault, HttpResponse>>().map(translate);
        role.or_else(|| cause.downcast_ref::<SdkError<WebIdentityFault, HttpResponse>>().map(translate))
    })
}

fn causes<'a>(error: &'a (dyn Error + 'static)) -> impl Iterator<Item = &'a (dyn Error + 'static)> {
    let mut next = Some(error);
    std::iter::from_fn(move || {
        let cause = next?;
        next = cause.source();
        Some(cause)
    })
}
