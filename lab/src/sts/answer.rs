//! The documents of the AWS Query protocol: results and errors of STS.

use std::fmt::Write as _;

/// The XML namespace of the API's only version.
const NAMESPACE: &str = "https://sts.amazonaws.com/doc/2011-06-15/";

/// An error that the service returns, as AWS words it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Fault {
    pub(super) status: u16,
    pub(super) code: &'static str,
    pub(super) message: String,
}

impl Fault {
    pub(super) fn new(status: u16, code: &'static str, message: impl Into<String>) -> Fault {
        Fault { status, code, message: message.into() }
    }

    pub(super) fn access_denied(caller: &str, role_arn: &str) -> Fault {
        let message = format!("User: {caller} is not authorized to perform: sts:AssumeRole on resource: {role_arn}");
        Fault::new(403, "AccessDenied", message)
    }

    pub(super) fn no_source_identity(caller: &str, role_arn: &str) -> Fault {
        let message = format!("User: {caller} is not authorized to perform: sts:SetSourceIdentity on resource: {role_arn}");
        Fault::new(403, "AccessDenied", message)
    }

    pub(super) fn no_tags(caller: &str, role_arn: &str) -> Fault {
        let message = format!("User: {caller} is not authorized to perform: sts:TagSession on resource: {role_arn}");
        Fault::new(403, "AccessDenied", message)
    }

    pub(super) fn throttling() -> Fault {
        Fault::new(400, "Throttling", "Rate exceeded")
    }

    pub(super) fn expired_token() -> Fault {
        let message = "The security token included in the request is expired";
        Fault::new(403, "ExpiredToken", message)
    }

    pub(super) fn invalid_client_token_id() -> Fault {
        let message = "The security token included in the request is invalid.";
        Fault::new(403, "InvalidClientTokenId", message)
    }

    pub(super) fn region_disabled() -> Fault {
        let message = "STS is not activated in this region for account:444455556666. Your account administrator can activate STS in \
                       this region using the IAM Console.";
        Fault::new(403, "RegionDisabledException", message)
    }

    pub(super) fn service_unavailable() -> Fault {
        let message = "Service Unavailable";
        Fault::new(503, "ServiceUnavailable", message)
    }

    pub(super) fn internal_failure() -> Fault {
        let message = "The request processing has failed because of an unknown error.";
        Fault::new(500, "InternalFailure", message)
    }

    pub(super) fn validation(message: impl Into<String>) -> Fault {
        Fault::new(400, "ValidationError", message)
    }

    /// Returns the common form of STS's ValidationError, for a parameter outside its model.
    pub(super) fn constraint(value: Option<&str>, member: &str, constraint: &str) -> Fault {
        let value = value.map_or_else(|| "null".to_owned(), |value| format!("'{value}'"));
        Fault::validation(format!("1 validation error detected: Value {value} at '{member}' failed to satisfy constraint: {constraint}"))
    }

    pub(super) fn signature(message: impl Into<String>) -> Fault {
        Fault::new(403, "SignatureDoesNotMatch", message)
    }

    pub(super) fn incomplete_signature(message: impl Into<String>) -> Fault {
        Fault::new(400, "IncompleteSignature", message)
    }

    pub(super) fn document(&self, request_id: &str) -> String {
        let kind = if self.status < 500 { "Sender" } else { "Receiver" };
        let error = [("Type", kind), ("Code", self.code), ("Message", &self.message)];
        format!(
            "<ErrorResponse xmlns=\"{NAMESPACE}\"><Error>{}</Error>{}</ErrorResponse>\n",
            elements(&error),
            elements(&[("RequestId", request_id)]),
        )
    }
}

/// Returns `<ActionResponse><ActionResult>…`, the response of every operation of the Query protocol.
pub(super) fn result_document(action: &str, result: &str, request_id: &str) -> String {
    let metadata = elements(&[("RequestId", request_id)]);
    format!(
        "<{action}Response xmlns=\"{NAMESPACE}\"><{action}Result>{result}</{action}Result>\
         <ResponseMetadata>{metadata}</ResponseMetadata></{action}Response>\n"
    )
}

/// Returns elements with text in them, in this order.
pub(super) fn elements(fields: &[(&str, &str)]) -> String {
    fields.iter().fold(String::new(), |mut document, (name, text)| {
        // Writing to a String cannot fail.
        let _ = write!(document, "<{name}>{}</{name}>", escape(text));
        document
    })
}

/// Returns `document` without the element of this name, if it has one.
pub(super) fn without_element(document: &str, name: &str) -> String {
    let close = format!("</{name}>");
    let found = document.find(&format!("<{name}>")).zip(document.find(&close).map(|position| position + close.len()));
    found.map_or_else(|| document.to_owned(), |(from, to)| format!("{}{}", &document[..from], &document[to..]))
}

fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\'' => escaped.push_str("&apos;"),
            // XML 1.0 cannot represent control characters.
            other if other.is_control() => escaped.push('?'),
            other => escaped.push(other),
        }
    }
    escaped
}
