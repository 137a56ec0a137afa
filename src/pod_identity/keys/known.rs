//! The keys that are known now, and how tokens wait for newer ones.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;

use super::set::KeySet;
use crate::pod_identity::token::TokenError;

/// The longest time that a token waits for a fetch of the keys. SDKs give up after one or two seconds.
pub const PATIENCE: Duration = Duration::from_secs(2);

/// The issuer's names and keys, as last fetched.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TrustedIssuer {
    /// The accepted values of the claim `iss`.
    pub issuers: Vec<String>,
    /// The keys.
    pub keys: KeySet,
}

/// The known keys, for readers; cheap to clone.
#[derive(Clone, Debug)]
pub struct IssuerKeys(Arc<watch::Sender<Fetches>>);

/// The fetches of the keys. They are numbered from 1.
#[derive(Debug, Default)]
struct Fetches {
    trusted: Option<Arc<TrustedIssuer>>,
    /// The number of the last fetch that began.
    begun: u64,
    /// The number of the last fetch that ended.
    ended: u64,
    /// Whether the last fetch that ended failed.
    has_failed: bool,
    /// Whether a token waits for a fetch that has not begun.
    is_wanted: bool,
}

impl Fetches {
    fn is_under_way(&self) -> bool {
        self.begun > self.ended
    }
}

impl IssuerKeys {
    pub(super) fn new() -> Self {
        Self(Arc::new(watch::Sender::default()))
    }

    /// Returns the issuer as currently known; `None` before the first successful fetch.
    pub fn known(&self) -> Option<Arc<TrustedIssuer>> {
        self.0.borrow().trusted.clone()
    }

    /// Returns the issuer as currently known, or waits for the first fetch.
    pub(crate) async fn any(&self) -> Result<Arc<TrustedIssuer>, TokenError> {
        match self.known() {
            Some(trusted) => Ok(trusted),
            None => self.newer(|_| true).await.map_err(|_| TokenError::NoKeys),
        }
    }

    /// Returns the issuer with the key of this ID. If the key is not known, waits for one fetch that began after this call.
    pub(crate) async fn with_key(&self, id: &str) -> Result<Arc<TrustedIssuer>, TokenError> {
        let has_key = |trusted: &TrustedIssuer| trusted.keys.get(id).is_some();
        match self.known() {
            Some(trusted) if has_key(&trusted) => Ok(trusted),
            _ => self.newer(has_key).await,
        }
    }

    /// Waits until the known issuer meets the condition. Returns `UnknownKey` if it does not after a fetch that began after this call, and
    /// `KeysOutdated` if no such fetch succeeds in time.
    async fn newer(&self, is_as_wanted: impl Fn(&TrustedIssuer) -> bool) -> Result<Arc<TrustedIssuer>, TokenError> {
        let mut fetches = self.0.subscribe();
        let wait = async {
            loop {
                let (last, is_conclusive) = self.want();
                let found = |fetches: &Fetches| fetches.trusted.as_deref().is_some_and(&is_as_wanted);
                let fetches = fetches.wait_for(|fetches| found(fetches) || fetches.ended >= last).await;
                // `self` holds the sender, so the channel is open.
                let fetches = fetches.map_err(|_| TokenError::KeysOutdated)?;
                match &fetches.trusted {
                    Some(trusted) if is_as_wanted(trusted) => return Ok(Arc::clone(trusted)),
                    _ if fetches.has_failed => return Err(TokenError::KeysOutdated),
                    _ if is_conclusive => return Err(TokenError::UnknownKey),
                    // That fetch began before this call, so it may have missed a new key.
                    _ => {}
                }
            }
        };
        tokio::time::timeout(PATIENCE, wait).await.unwrap_or(Err(TokenError::KeysOutdated))
    }

    /// Requests a fetch. Returns the number of the fetch to wait for, and whether that fetch begins after this call. If a fetch is under
    /// way, it is returned first.
    fn want(&self) -> (u64, bool) {
        let mut awaited = (0, false);
        self.0.send_if_modified(|fetches| {
            awaited = if fetches.is_under_way() { (fetches.begun, false) } else { (fetches.begun + 1, true) };
            awaited.1 && !std::mem::replace(&mut fetches.is_wanted, true)
        });
        awaited
    }

    /// Waits until a token needs newer keys.
    pub(super) async fn wanted(&self) {
        // `self` holds the sender, so the channel is open.
        let _ = self.0.subscribe().wait_for(|fetches| fetches.is_wanted).await;
    }

    /// Records that a fetch begins.
    pub(super) fn begin(&self) {
        self.0.send_modify(|fetches| {
            fetches.begun += 1;
            fetches.is_wanted = false;
        });
    }

    /// Records the result of the fetch; `None` if it failed. Returns whether something changed.
    pub(super) fn end(&self, trusted: Option<TrustedIssuer>) -> bool {
        let mut has_changed = false;
        self.0.send_modify(|fetches| {
            fetches.ended = fetches.begun;
            fetches.has_failed = trusted.is_none();
            if let Some(trusted) = trusted
                && fetches.trusted.as_deref() != Some(&trusted)
            {
                fetches.trusted = Some(Arc::new(trusted));
                has_changed = true;
            }
        });
        has_changed
    }
}
