//! The body of a response of the Kubernetes API.

use std::time::Duration;

use bytes::Bytes;
use http_body_util::BodyExt as _;
use kube::client::Body;

use super::failure::RequestFailure;
use crate::text::chain;

/// Time of one question, and to the head of any answer.
pub(crate) const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);
/// Time of an answer that is read whole, however steadily it comes.
pub(super) const WHOLE_TIMEOUT: Duration = Duration::from_secs(60);

/// An answer whose body is still to be read.
pub(crate) struct ApiResponse(pub(super) Body);

impl ApiResponse {
    /// The next bytes of it; `None` at its end. Nothing for so long is a failure.
    pub(crate) async fn bytes(&mut self, within: Duration) -> Result<Option<Bytes>, RequestFailure> {
        loop {
            let frame = tokio::time::timeout(within, self.0.frame()).await.map_err(|_| RequestFailure::Silent)?;
            match frame {
                None => return Ok(None),
                Some(Err(error)) => return Err(RequestFailure::Unreachable(chain(&error))),
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(bytes) => return Ok(Some(bytes)),
                    // Trailers.
                    Err(_) => continue,
                },
            }
        }
    }

    pub(super) async fn whole(&mut self, at_most: usize, body: &mut Vec<u8>) -> Result<(), RequestFailure> {
        let read = async {
            while let Some(bytes) = self.bytes(ANSWER_TIMEOUT).await? {
                if body.len() + bytes.len() > at_most {
                    return Err(RequestFailure::TooLarge);
                }
                body.extend_from_slice(&bytes);
            }
            Ok(())
        };
        tokio::time::timeout(WHOLE_TIMEOUT, read).await.unwrap_or(Err(RequestFailure::Slow))
    }
}
