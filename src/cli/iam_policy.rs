//! `rolegate iam-policy`: reads its arguments, prints the policies, and chooses the exit code.

use std::process::ExitCode;

use clap::ArgMatches;

use super::daemon::{failed, prepare, run_to_end};
use super::output::{NO_POLICY, UNKNOWN, misused, print_text, progress, say};
use crate::app::iam_policy_command::iam_policies;
use crate::config::iam_policy_command::{IamPolicyCommand, PolicyChoice};
use crate::iam_policy::OnePolicy;
use crate::text::printable;

/// Runs `rolegate iam-policy`.
pub(super) fn printed(matches: &ArgMatches, env: &dyn Fn(&str) -> Option<String>) -> ExitCode {
    let command = match IamPolicyCommand::from_source(matches, env) {
        Ok(command) => command,
        Err(error) => return misused("rolegate iam-policy", &error),
    };
    let policies = match prepare().and_then(|()| run_to_end(iam_policies(&command, progress(env)))?) {
        Ok(policies) => policies,
        Err(failure) => return failed(&failure, ExitCode::from(UNKNOWN)),
    };
    for warning in &policies.warnings {
        say(&format!("rolegate: warning: {}", printable(&warning.to_string())));
    }
    let wanted = match command.policy {
        PolicyChoice::All => None,
        PolicyChoice::Node => Some(OnePolicy::Node),
        PolicyChoice::Intermediate => Some(OnePolicy::Intermediate),
        PolicyChoice::Trust => Some(OnePolicy::Trust(command.role)),
        PolicyChoice::Chain => Some(OnePolicy::Chain(command.role)),
        PolicyChoice::Boundary => Some(OnePolicy::Boundary),
    };
    let text = match wanted.map(|wanted| policies.one(&wanted)) {
        None => serde_json::to_string_pretty(&policies),
        Some(Ok(policy)) => serde_json::to_string_pretty(&policy),
        Some(Err(error)) => {
            say(&format!("rolegate: {}", printable(&error.to_string())));
            return ExitCode::from(NO_POLICY);
        }
    };
    match text {
        Ok(text) => print_text((text + "\n").as_bytes(), "the policies"),
        Err(error) => {
            say(&format!("rolegate: cannot write the policies: {error}"));
            ExitCode::from(NO_POLICY)
        }
    }
}
