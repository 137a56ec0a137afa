//! Waiting for the end of a stall.

use tokio::sync::watch;

/// Returns when the server is not stalled.
pub(super) async fn unstalled(stall: &mut watch::Receiver<bool>) {
    // An error means that the server is gone, and so will this connection be.
    let _ = stall.wait_for(|stalled| !stalled).await;
}
