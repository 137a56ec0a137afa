//! Responses that are one JSON document of any size, of which a few fields are used.

use serde::Deserialize;
use serde::de::IgnoredAny;
use tokio::time::Instant;

use super::failure::RequestFailure;
use super::fields::Field;
use super::filter::{Document, Excerpt, Filter};
use super::response::{ANSWER_TIMEOUT, ApiResponse};

/// A response that is filtered as it arrives.
pub(crate) struct FilteredAnswer<'a> {
    answer: ApiResponse,
    filter: Filter<'a>,
    deadline: Instant,
}

/// A page of a list, without its items.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct ListPage {
    pub(crate) kind: String,
    metadata: PageMetadata,
    /// Already handed out. Some servers send null if there are none.
    #[serde(rename = "items")]
    _items: Option<Vec<IgnoredAny>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct PageMetadata {
    resource_version: String,
    r#continue: Option<String>,
}

impl<'a> FilteredAnswer<'a> {
    /// A response that must end by the deadline.
    pub(crate) fn new(answer: ApiResponse, fields: &'a Field, deadline: Instant) -> Self {
        Self { answer, filter: Filter::new(fields), deadline }
    }

    /// The next items of a list, perhaps none yet; `None` at the end of the answer.
    pub(crate) async fn items(&mut self) -> Result<Option<Vec<Excerpt>>, RequestFailure> {
        let bytes = tokio::time::timeout_at(self.deadline, self.answer.bytes(ANSWER_TIMEOUT)).await.unwrap_or(Err(RequestFailure::Slow))?;
        Ok(bytes.map(|bytes| {
            self.filter.feed(&bytes);
            self.filter.take_items()
        }))
    }

    /// The page, after its items.
    pub(crate) fn page(mut self) -> Result<ListPage, RequestFailure> {
        let page = match self.filter.finish() {
            Document::Complete(Excerpt { json, truncated: false }) => serde_json::from_slice(&json).ok(),
            Document::Complete(_) | Document::Empty | Document::Broken => None,
        };
        page.ok_or(RequestFailure::Malformed("a malformed list"))
    }

    /// An object, once it is complete.
    pub(crate) async fn object(mut self) -> Result<Excerpt, RequestFailure> {
        while self.items().await?.is_some() {}
        match self.filter.finish() {
            Document::Complete(excerpt) => Ok(excerpt),
            Document::Empty | Document::Broken => Err(RequestFailure::Malformed("something other than the requested object")),
        }
    }
}

impl ListPage {
    /// The version of the state that the list shows; empty where the answer is no list.
    pub(crate) fn version(&self) -> &str {
        &self.metadata.resource_version
    }

    /// The token for the next page, if there is one.
    pub(crate) fn continue_token(&self) -> Option<&str> {
        self.metadata.r#continue.as_deref().filter(|token| !token.is_empty())
    }
}
