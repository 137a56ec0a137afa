//! A memory of tokens, by their digests: it contains no tokens.

use std::time::Duration;

use moka::future::Cache;

use super::token::TokenDigest;

/// The most tokens that are remembered. A node has fewer pods, and each pod has one token, or two while it is replaced.
const MAX_REMEMBERED: u64 = 4096;
/// How long an unused token is remembered. SDKs send a request at least once an hour.
const MAX_IDLE: Duration = Duration::from_secs(2 * 60 * 60);

/// Creates a memory of what is known of each token.
pub(super) fn token_cache<V: Clone + Send + Sync + 'static>() -> Cache<TokenDigest, V> {
    Cache::builder().max_capacity(MAX_REMEMBERED).time_to_idle(MAX_IDLE).build()
}
