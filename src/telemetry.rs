//! Logs: one line an event on standard output, text or JSON.

use std::error::Error;

use tracing_subscriber::EnvFilter;

use crate::config::LogConfig;

/// Sets the process's log up. Libraries are heard from `warn` on, whatever the level; `kube_client` logs whole answers when
/// one does not decode, so its client is never heard.
pub(crate) fn init(log: &LogConfig) -> Result<(), Box<dyn Error + Send + Sync>> {
    let level = log.level.to_string().to_lowercase();
    let filter = match log.level {
        tracing::Level::ERROR => "error".to_owned(),
        _ => format!("warn,rolegate={level}"),
    };
    let filter = EnvFilter::try_new(format!("{filter},kube_client::client=off"))?;
    let subscriber = tracing_subscriber::fmt().with_env_filter(filter).with_ansi(false);
    if log.json {
        subscriber.json().flatten_event(true).with_current_span(false).with_span_list(false).try_init()
    } else {
        subscriber.try_init()
    }
}
