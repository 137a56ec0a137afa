//! Observations of requests to STS beside their results: the endpoint, and the time at STS.

use std::sync::{Arc, Mutex, PoisonError};

use aws_sdk_sts::config::interceptors::{BeforeDeserializationInterceptorContextRef, BeforeTransmitInterceptorContextRef};
use aws_sdk_sts::config::{ConfigBag, Intercept, RuntimeComponents};
use aws_sdk_sts::error::BoxError;
use jiff::fmt::rfc2822::DateTimeParser;
use jiff::{SignedDuration, Timestamp};
use tracing::info;

use crate::log_once::Condition;

/// Smaller clock differences are ignored: the `Date` of a response has whole seconds, and the response takes time to arrive.
const NOT_APART: SignedDuration = SignedDuration::from_secs(30);

/// Logs the STS endpoint once.
#[derive(Clone, Debug, Default)]
pub(super) struct Endpoint(Arc<Condition>);

impl Intercept for Endpoint {
    fn name(&self) -> &'static str {
        "endpoint"
    }

    fn read_before_transmit(
        &self,
        context: &BeforeTransmitInterceptorContextRef<'_>,
        _: &RuntimeComponents,
        _: &mut ConfigBag,
    ) -> Result<(), BoxError> {
        if self.0.begins() {
            info!(event = "sts-endpoint", endpoint = context.request().uri(), "using this STS endpoint");
        }
        Ok(())
    }
}

/// The time at STS according to the last response to one request.
#[derive(Clone, Debug, Default)]
pub(super) struct Date(Arc<Mutex<Option<Timestamp>>>);

impl Date {
    /// Returns how far STS's clock is ahead of `now`, the time of this node's clock. Zero if unknown or small.
    pub(super) fn ahead_of(&self, now: Timestamp) -> SignedDuration {
        let date = *self.0.lock().unwrap_or_else(PoisonError::into_inner);
        apart(date, now)
    }
}

impl Intercept for Date {
    fn name(&self) -> &'static str {
        "date"
    }

    fn read_before_deserialization(
        &self,
        context: &BeforeDeserializationInterceptorContextRef<'_>,
        _: &RuntimeComponents,
        _: &mut ConfigBag,
    ) -> Result<(), BoxError> {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = context.response().headers().get("date").and_then(parse);
        Ok(())
    }
}

/// What the last request to STS showed on its way, for people.
#[derive(Clone, Debug, Default)]
pub(crate) struct StsSighting {
    url: Arc<Mutex<Option<String>>>,
    date: Date,
}

impl StsSighting {
    /// Returns the URL of the request, without its query; `None` if none was sent.
    pub(crate) fn url(&self) -> Option<http::Uri> {
        let url = self.url.lock().unwrap_or_else(PoisonError::into_inner);
        url.as_ref()?.parse().ok()
    }

    /// Returns how far STS's clock is ahead of `now`, the time of this node's clock; `None` if STS has not answered with a date.
    pub(crate) fn ahead_of(&self, now: Timestamp) -> Option<SignedDuration> {
        let date = *self.date.0.lock().unwrap_or_else(PoisonError::into_inner);
        Some(date?.duration_since(now))
    }
}

impl Intercept for StsSighting {
    fn name(&self) -> &'static str {
        "sighting"
    }

    fn read_before_transmit(
        &self,
        context: &BeforeTransmitInterceptorContextRef<'_>,
        _: &RuntimeComponents,
        _: &mut ConfigBag,
    ) -> Result<(), BoxError> {
        *self.url.lock().unwrap_or_else(PoisonError::into_inner) = Some(context.request().uri().to_owned());
        Ok(())
    }

    fn read_before_deserialization(
        &self,
        context: &BeforeDeserializationInterceptorContextRef<'_>,
        components: &RuntimeComponents,
        bag: &mut ConfigBag,
    ) -> Result<(), BoxError> {
        self.date.read_before_deserialization(context, components, bag)
    }
}

/// Parses the date of an HTTP header (RFC 9110, 5.6.7), in the only format that is still generated.
fn parse(text: &str) -> Option<Timestamp> {
    DateTimeParser::new().parse_timestamp(text).ok()
}

fn apart(date: Option<Timestamp>, now: Timestamp) -> SignedDuration {
    let ahead = date.map_or(SignedDuration::ZERO, |date| date.duration_since(now));
    if ahead.abs() < NOT_APART { SignedDuration::ZERO } else { ahead }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test says loudly what failed")]
    use super::*;

    #[test]
    fn a_clock_far_off_is_distinguished_from_a_slow_response() {
        let now: Timestamp = "2026-01-01T00:00:00Z".parse().unwrap();
        for (header, seconds) in [
            ("Thu, 01 Jan 2026 00:10:00 GMT", 600),
            ("Wed, 31 Dec 2025 23:50:00 GMT", -600),
            ("Thu, 01 Jan 2026 00:00:29 GMT", 0),
            ("Wed, 31 Dec 2025 23:59:31 GMT", 0),
            ("Thu, 01 Jan 2026 00:00:31 GMT", 31),
            ("soon", 0),
        ] {
            assert_eq!(apart(parse(header), now).as_secs(), seconds, "{header}");
        }
        assert_eq!(apart(None, now), SignedDuration::ZERO);
    }
}
