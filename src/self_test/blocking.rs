//! Calls to the kernel on a thread of their own.

use std::io;

/// Runs a call that may have to wait while others change interfaces, and returns its result.
pub(super) async fn blocking<T: Send + 'static>(call: impl FnOnce() -> io::Result<T> + Send + 'static) -> io::Result<T> {
    tokio::task::spawn_blocking(call).await.map_err(io::Error::other)?
}
