//! Calls to the kernel on a thread of their own.

use std::io;
use std::panic::resume_unwind;

/// Runs a call that may have to wait while others change interfaces, and returns its result. A panic of the call continues in the
/// caller, so that the supervised task ends with its name.
pub(super) async fn blocking<T: Send + 'static>(call: impl FnOnce() -> io::Result<T> + Send + 'static) -> io::Result<T> {
    match tokio::task::spawn_blocking(call).await.map_err(tokio::task::JoinError::try_into_panic) {
        Ok(result) => result,
        Err(Ok(panic)) => resume_unwind(panic),
        Err(Err(_)) => Err(io::Error::other("the call was cancelled")),
    }
}
