//! A single test for commands, while another process, the daemon, serves this node.

use super::group::HelperGroup;
use super::helper::Helper;
use super::outcome::SelfTestFailure;
use super::{ExpectedRules, Probes, Redirection, Running};
use crate::advice::{Advise as _, chain};
use crate::config::RedirectConfig;
use crate::log_once::Changes;
use crate::metrics::Metrics;
use crate::readiness::Readiness;

/// The result of a single test.
#[derive(Debug)]
pub(crate) enum SelfTestResult {
    /// Every packet was handled as expected.
    Passed,
    /// At least one packet was not.
    Failed {
        /// What happened.
        cause: String,
        /// What to do.
        advice: Option<String>,
    },
    /// The test cannot run here, for this reason.
    Unavailable(String),
}

/// Runs one test while the daemon serves this node. The daemon closes the test's connections at once. `expected` says which requests are
/// redirected.
pub(crate) async fn once(helper: Helper, redirect: &RedirectConfig, expected: ExpectedRules) -> SelfTestResult {
    let failed = |failure: &SelfTestFailure| SelfTestResult::Failed { cause: chain(failure), advice: failure.advice().map(Into::into) };
    let helper = match helper.speak() {
        Ok(helper) => helper,
        Err(error) => return failed(&SelfTestFailure::NotMade(error)),
    };
    let (metrics, readiness, probes) = (Metrics::new(), Readiness::default(), Probes::default());
    probes.set_wanted(expected);
    let mut running = Running {
        helper,
        group: HelperGroup::default(),
        is_in_group: false,
        network: None,
        redirection: Redirection::of(redirect),
        // The daemon checks its own exit guard.
        exit_guard: None,
        failing: Changes::default(),
        metrics,
        readiness,
        step: None,
        is_served_by_another: true,
    };
    let place = match running.place(redirect.interfaces.clone(), Vec::new()).await {
        Ok(Ok(place)) => place,
        Ok(Err(reason)) => return SelfTestResult::Unavailable(reason.to_string()),
        Err(error) => return failed(&SelfTestFailure::NotMade(error)),
    };
    let result = running.test(place, &probes).await;
    running.unmake().await;
    match result {
        Ok(()) => SelfTestResult::Passed,
        Err(failure) => failed(&failure),
    }
}
