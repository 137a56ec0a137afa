//! Faults that a test can inject.

use std::collections::HashSet;
use std::time::Duration;

use super::info::ResourceInfo;
use super::objects::Resource;
use super::status::ApiError;

/// The RBAC verb of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Verb {
    /// GET of one object.
    Get,
    /// GET of a collection.
    List,
    /// GET of a collection with `watch`.
    Watch,
    /// POST.
    Create,
    /// PATCH.
    Patch,
}

impl Verb {
    /// The name of the verb in RBAC rules.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Verb::Get => "get",
            Verb::List => "list",
            Verb::Watch => "watch",
            Verb::Create => "create",
            Verb::Patch => "patch",
        }
    }
}

/// An error with which the next requests that match are answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// The resource of the requests; `None` for any request.
    pub resource: Option<Resource>,
    /// The verb of the requests; `None` for any request.
    pub verb: Option<Verb>,
    /// The HTTP status, and `code` of the `Status` object.
    pub status: u16,
    /// `reason` of the `Status` object, such as `InternalError` or `TooManyRequests`.
    pub reason: String,
    /// The number of requests that get this answer.
    pub times: usize,
    /// The `Retry-After` header, in seconds.
    pub retry_after: Option<u64>,
}

impl Default for Fault {
    /// Makes the next request of any kind fail with 500.
    fn default() -> Fault {
        Fault { resource: None, verb: None, status: 500, reason: "InternalError".to_owned(), times: 1, retry_after: None }
    }
}

/// The behaviour that a test can change while the server runs.
#[derive(Debug)]
pub(super) struct Behaviour {
    pub(super) token: Option<String>,
    pub(super) client_certificate: bool,
    pub(super) streaming_lists: bool,
    pub(super) bookmark_interval: Duration,
    faults: Vec<Fault>,
    denied: HashSet<(&'static str, String)>,
}

impl Behaviour {
    pub(super) fn new() -> Behaviour {
        Behaviour {
            token: None,
            client_certificate: false,
            streaming_lists: true,
            // About as often as a real server.
            bookmark_interval: Duration::from_secs(60),
            faults: Vec::new(),
            denied: HashSet::new(),
        }
    }

    pub(super) fn fail_next(&mut self, fault: Fault) {
        if fault.times > 0 {
            self.faults.push(fault);
        }
    }

    /// Takes the oldest fault that matches a request, and uses it up once.
    pub(super) fn take_fault(&mut self, resource: Option<Resource>, verb: Option<Verb>) -> Option<ApiError> {
        let at = self
            .faults
            .iter()
            .position(|fault| (fault.resource.is_none() || fault.resource == resource) && (fault.verb.is_none() || fault.verb == verb))?;
        let fault = &mut self.faults[at];
        fault.times -= 1;
        let message = format!("the lab was told to answer {}", fault.status);
        let error = ApiError { retry_after: fault.retry_after, ..ApiError::new(fault.status, &fault.reason, message) };
        if fault.times == 0 {
            self.faults.remove(at);
        }
        Some(error)
    }

    pub(super) fn deny(&mut self, verb: Verb, resource: &str) {
        self.denied.insert((verb.as_str(), resource.to_owned()));
    }

    pub(super) fn allow(&mut self, verb: Verb, resource: &str) {
        self.denied.remove(&(verb.as_str(), resource.to_owned()));
    }

    /// Returns whether RBAC allows this. Rules name resources without their group.
    pub(super) fn is_allowed(&self, verb: &str, resource: ResourceInfo<'_>) -> bool {
        !self.denied.iter().any(|(denied, of)| *denied == verb && of == resource.plural)
    }
}
