//! The keys that are known now, and how tokens wait for newer ones.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;

use super::demands::{Demands, FetchOutcome, KeyRequester};
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
    demands: Demands,
}

/// The fetch that a token waits for.
#[derive(Clone, Copy, Debug)]
struct AwaitedFetch {
    number: u64,
    /// Whether it begins after the token came, and so cannot miss a new key.
    is_conclusive: bool,
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

    /// Returns the issuer as currently known, or waits for the first fetch. Causes no fetch.
    pub(crate) async fn any(&self) -> Result<Arc<TrustedIssuer>, TokenError> {
        let mut fetches = self.0.subscribe();
        let known = async { fetches.wait_for(|fetches| fetches.trusted.is_some()).await.ok()?.trusted.clone() };
        tokio::time::timeout(PATIENCE, known).await.ok().flatten().ok_or(TokenError::NoKeys)
    }

    /// Returns the issuer with the key of this ID. If the key is not known, waits for one fetch that began after this call, if the requester
    /// may cause one. Returns `UnknownKey` if that fetch did not bring the key, `KeysOutdated` if no such fetch succeeds in time, and
    /// `FetchesLimited` if the requester may not cause one yet.
    pub(crate) async fn with_key(&self, id: &str, requester: &KeyRequester) -> Result<Arc<TrustedIssuer>, TokenError> {
        let has_key = |trusted: &TrustedIssuer| trusted.keys.get(id).is_some();
        if let Some(trusted) = self.known().filter(|trusted| has_key(trusted)) {
            return Ok(trusted);
        }
        let mut fetches = self.0.subscribe();
        let wait = async {
            loop {
                let awaited = self.want(requester).ok_or(TokenError::FetchesLimited)?;
                let found = |fetches: &Fetches| fetches.trusted.as_deref().is_some_and(has_key);
                let fetches = fetches.wait_for(|fetches| found(fetches) || fetches.ended >= awaited.number).await;
                // `self` holds the sender, so the channel is open.
                let fetches = fetches.map_err(|_| TokenError::KeysOutdated)?;
                match &fetches.trusted {
                    Some(trusted) if has_key(trusted) => return Ok(Arc::clone(trusted)),
                    _ if fetches.has_failed => return Err(TokenError::KeysOutdated),
                    _ if awaited.is_conclusive => return Err(TokenError::UnknownKey),
                    // That fetch began before this call, so it may have missed a new key.
                    _ => {}
                }
            }
        };
        tokio::time::timeout(PATIENCE, wait).await.unwrap_or(Err(TokenError::KeysOutdated))
    }

    /// Returns the fetch to wait for: the one that is under way, else the next one. `None` if none is wanted, and the requester may not
    /// cause one.
    fn want(&self, requester: &KeyRequester) -> Option<AwaitedFetch> {
        let mut awaited = None;
        self.0.send_if_modified(|fetches| {
            if fetches.is_under_way() {
                awaited = Some(AwaitedFetch { number: fetches.begun, is_conclusive: false });
                return false;
            }
            let was_wanted = fetches.demands.is_wanted();
            let is_wanted = fetches.demands.request(requester, Instant::now()) || was_wanted;
            awaited = is_wanted.then_some(AwaitedFetch { number: fetches.begun + 1, is_conclusive: true });
            is_wanted && !was_wanted
        });
        awaited
    }

    /// Waits until a token needs newer keys.
    pub(super) async fn wanted(&self) {
        // `self` holds the sender, so the channel is open.
        let _ = self.0.subscribe().wait_for(|fetches| fetches.demands.is_wanted()).await;
    }

    /// Records that a fetch begins.
    pub(super) fn begin(&self) {
        self.0.send_modify(|fetches| {
            fetches.begun += 1;
            fetches.demands.begin();
        });
    }

    /// Records the result of the fetch; `None` if it failed. Returns whether something changed.
    pub(super) fn end(&self, trusted: Option<TrustedIssuer>) -> bool {
        let mut has_changed = false;
        self.0.send_modify(|fetches| {
            fetches.ended = fetches.begun;
            fetches.has_failed = trusted.is_none();
            let outcome = match trusted {
                None => FetchOutcome::Failed,
                Some(trusted) if fetches.trusted.as_deref() == Some(&trusted) => FetchOutcome::Unchanged,
                Some(trusted) => {
                    fetches.trusted = Some(Arc::new(trusted));
                    FetchOutcome::Changed
                }
            };
            has_changed = outcome == FetchOutcome::Changed;
            fetches.demands.end(outcome, Instant::now());
        });
        has_changed
    }
}
