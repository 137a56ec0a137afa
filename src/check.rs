//! The report of `rolegate check`: whether the daemon can work in a place, and how to fix what keeps it from that. Pure.
//!
//! The checks themselves are the daemon's own code, called by `app::check_command`. A check that cannot be made in the place
//! where the command runs is skipped, with the reason.

use serde::Serialize;

use crate::advice::{Advise, chain};

pub(crate) mod node;
pub(crate) mod permissions;
pub(crate) mod render;
pub(crate) mod sts;

/// The version of the report's form. It grows if a field is removed or changes its meaning.
const VERSION: u32 = 1;

/// The result of a check.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum CheckStatus {
    /// The check cannot be made here.
    Skipped,
    /// It is as the daemon needs it.
    Ok,
    /// The daemon works, but the operator should know this.
    Warning,
    /// The daemon, or a part of it, does not work.
    Failed,
}

impl CheckStatus {
    /// Returns the word for it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Skipped => "skipped",
            Self::Ok => "ok",
            Self::Warning => "warning",
            Self::Failed => "failed",
        }
    }
}

/// A part of the report.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum CheckSection {
    /// The arguments of the daemon.
    Arguments,
    /// The Kubernetes API, and what the daemon may do there.
    Kubernetes,
    /// The daemon's own AWS identity.
    Identity,
    /// The connection to STS.
    Sts,
    /// The real metadata service.
    Metadata,
    /// The packet rules and ports of the node.
    Node,
    /// The roles of pods.
    Role,
}

impl CheckSection {
    /// Returns the heading.
    pub(crate) fn title(self) -> &'static str {
        match self {
            Self::Arguments => "Arguments",
            Self::Kubernetes => "Kubernetes API",
            Self::Identity => "AWS identity",
            Self::Sts => "STS",
            Self::Metadata => "Metadata service",
            Self::Node => "Node",
            Self::Role => "Roles",
        }
    }

    /// Returns a check of this section.
    pub(crate) fn item(self, check: &'static str, status: CheckStatus, detail: impl Into<String>) -> CheckItem {
        CheckItem { section: self, check, status, detail: detail.into(), advice: None }
    }

    /// Returns a check that passed.
    pub(crate) fn ok(self, check: &'static str, detail: impl Into<String>) -> CheckItem {
        self.item(check, CheckStatus::Ok, detail)
    }

    /// Returns a check that cannot be made, for this reason.
    pub(crate) fn skipped(self, check: &'static str, reason: impl Into<String>) -> CheckItem {
        self.item(check, CheckStatus::Skipped, reason)
    }

    /// Returns a check that found something to know.
    pub(crate) fn warning(self, check: &'static str, detail: impl Into<String>) -> CheckItem {
        self.item(check, CheckStatus::Warning, detail)
    }

    /// Returns a check that failed.
    pub(crate) fn failed(self, check: &'static str, cause: impl Into<String>) -> CheckItem {
        self.item(check, CheckStatus::Failed, cause)
    }

    /// Returns a check that failed with this error.
    pub(crate) fn error(self, check: &'static str, error: &impl Advise) -> CheckItem {
        let advice = error.advice().map(Into::into);
        CheckItem { advice, ..self.failed(check, chain(error)) }
    }
}

/// One check.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct CheckItem {
    /// The part of the report.
    pub section: CheckSection,
    /// What was checked. Stable, for programs.
    pub check: &'static str,
    /// The result.
    pub status: CheckStatus,
    /// What was found, or why nothing could be found out.
    pub detail: String,
    /// What to do.
    pub advice: Option<String>,
}

impl CheckItem {
    /// Adds what to do.
    #[must_use]
    pub(crate) fn advise(self, advice: impl Into<String>) -> Self {
        Self { advice: Some(advice.into()), ..self }
    }
}

/// Every check, in the order of the sections.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct CheckReport {
    /// The version of this form.
    pub version: u32,
    /// The worst of the results, of which a skipped check is none.
    pub result: CheckStatus,
    /// The checks.
    pub checks: Vec<CheckItem>,
}

impl CheckReport {
    /// Creates a report of these checks.
    pub(crate) fn new(mut checks: Vec<CheckItem>) -> Self {
        checks.sort_by_key(|item| item.section);
        let result = checks.iter().map(|item| item.status).max().unwrap_or(CheckStatus::Ok).max(CheckStatus::Ok);
        Self { version: VERSION, result, checks }
    }

    /// Returns how many checks have this result.
    pub(crate) fn count(&self, status: CheckStatus) -> usize {
        self.checks.iter().filter(|item| item.status == status).count()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_result_is_the_worst_and_skipping_is_none() {
        let report = |all: &[CheckStatus]| CheckReport::new(all.iter().map(|status| CheckSection::Sts.item("a", *status, "b")).collect());
        assert_eq!(report(&[]).result, CheckStatus::Ok);
        assert_eq!(report(&[CheckStatus::Skipped]).result, CheckStatus::Ok);
        assert_eq!(report(&[CheckStatus::Warning, CheckStatus::Ok]).result, CheckStatus::Warning);
        assert_eq!(report(&[CheckStatus::Failed, CheckStatus::Warning]).result, CheckStatus::Failed);
    }

    #[test]
    fn checks_stand_in_the_order_of_the_sections() {
        let report = CheckReport::new(vec![CheckSection::Role.ok("c", ""), CheckSection::Sts.ok("b", ""), CheckSection::Sts.ok("a", "")]);
        assert_eq!(report.checks.iter().map(|item| item.check).collect::<Vec<_>>(), ["b", "a", "c"]);
    }
}
