//! Waits while the server stalls.

use tokio::sync::watch;

/// Waits while the server stalls.
pub(super) async fn unstalled(stall: &mut watch::Receiver<bool>) {
    // An error means that the server is gone, and this connection with it.
    let _ = stall.wait_for(|stalled| !stalled).await;
}
