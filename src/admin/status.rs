//! The status, collected at most once a second: each client on loopback may ask, and there may be pods among them.

use std::sync::Arc;

use super::rendered::Rendered;
use crate::credentials::StsOfNode;
use crate::status::StatusDocument;
use crate::status::collector::StatusCollector;

/// The status page.
#[derive(Debug)]
pub(crate) struct StatusPage<A> {
    collector: StatusCollector<A>,
    last: Rendered<Arc<StatusDocument>>,
}

impl<A: StsOfNode> StatusPage<A> {
    /// Creates the page of what this collects.
    pub(crate) fn new(collector: StatusCollector<A>) -> Self {
        Self { collector, last: Rendered::default() }
    }

    /// Returns the document, which is at most a second old.
    pub(super) async fn document(&self) -> Arc<StatusDocument> {
        self.last.get(async { Arc::new(self.collector.collect().await) }).await
    }
}
