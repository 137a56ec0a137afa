//! AWS: region, endpoint, clock, the daemon's own identity, and one role.

use std::sync::Arc;

use http::Uri;
use hyper_util::client::proxy::matcher::Matcher;
use tokio::time::Instant;

use super::step::{STEP, no_answer, of_failure, within};
use crate::advice::{Advise as _, chain};
use crate::app::prepare::{connection_of, load_aws, needs_aws, rules};
use crate::check::sts::{self, AuthorityCheck};
use crate::check::{CheckItem, CheckSection, CheckStatus};
use crate::clock::Clock;
use crate::config::{Config, Restrictions, SESSION_DURATIONS};
use crate::credentials::sts::{AuthorityFile, Aws, Sts, StsSighting};
use crate::credentials::{AssumeRole as _, AssumeRoleError};
use crate::metrics::Metrics;
use crate::pods::{Pod, PodContext, PodName, PodUid};
use crate::policy::node::{IntermediateIdentity, KnownNode, NodeIdentity};
use crate::policy::{Decision, Policy};

pub(super) async fn checks(config: &Config, role: Option<&str>) -> Vec<CheckItem> {
    let mut checks = sts::authorities(&connection_of(&config.aws).authorities().map(|file| authority_check(&file)).collect::<Vec<_>>());
    // The daemon does not start then.
    if checks.iter().any(|item| item.status == CheckStatus::Failed) {
        let why = "the certificates that are trusted cannot be read";
        checks.push(CheckSection::Sts.skipped("region", why));
        return without_aws(checks, why);
    }
    let aws = match within(STEP, load_aws(config)).await {
        Some(Ok(aws)) => aws,
        failed => {
            checks.push(match failed {
                Some(Err(error)) => CheckSection::Sts.error("region", &error),
                _ => no_answer(CheckSection::Sts.failed("region", "the region and the credentials")),
            });
            return without_aws(checks, "the region is not known");
        }
    };
    checks.push(CheckSection::Sts.ok("region", aws.region()));
    let (node, sighting) = (NodeIdentity::default(), StsSighting::default());
    let sts = aws.sts_seen(Clock::system(), node.clone(), Metrics::new(), Some(&sighting));
    let known = within(STEP, sts.renew_identity()).await.map(|(known, _)| known);
    checks.extend(connection(&sighting, known.as_ref(), config.aws.proxied));
    checks.push(caller(known.as_ref()));
    checks.extend(roles(config, &aws, &sts, &node, role.map(|role| (role, matches!(known, Some(Ok(_)))))).await);
    checks
}

fn without_aws(mut checks: Vec<CheckItem>, why: &str) -> Vec<CheckItem> {
    checks.push(CheckSection::Identity.skipped("caller", why));
    checks.push(CheckSection::Role.skipped("assume-role", why));
    checks
}

fn authority_check(file: &AuthorityFile) -> AuthorityCheck {
    let found = match file.read() {
        Ok(authorities) => Ok(authorities.number),
        Err(error) => Err((chain(&error), error.advice().map(Into::into))),
    };
    AuthorityCheck { variable: file.variable(), path: file.path().display().to_string(), found }
}

type Known = Result<Arc<KnownNode>, AssumeRoleError>;

/// What the request showed of the way to STS.
fn connection(sighting: &StsSighting, known: Option<&Known>, proxied: bool) -> Vec<CheckItem> {
    let section = CheckSection::Sts;
    let Some(url) = sighting.url() else {
        return ["endpoint", "clock"].map(|check| section.skipped(check, "there were no credentials to send a request with")).into();
    };
    let endpoint = sts::origin(&url);
    let reached = match known {
        None => no_answer(section.failed("endpoint", endpoint)),
        Some(Err(error @ AssumeRoleError::Unreachable { .. })) => {
            let item = section.error("endpoint", error);
            CheckItem { detail: format!("{endpoint}: {}", item.detail), ..item }
        }
        Some(_) => section.ok("endpoint", endpoint),
    };
    let proxy = if proxied { proxy_for(&url) } else { None };
    vec![reached, sts::proxy(proxy.as_ref()), sts::clock(sighting.ahead_of(Clock::system().now()))]
}

/// The proxy that the client of STS takes from the environment for a request: it reads it in the same way.
fn proxy_for(url: &Uri) -> Option<Uri> {
    Matcher::from_env().intercept(url).map(|proxy| proxy.uri().clone())
}

fn caller(known: Option<&Known>) -> CheckItem {
    let section = CheckSection::Identity;
    match known {
        None => no_answer(section.failed("caller", "GetCallerIdentity")),
        Some(Err(AssumeRoleError::Unreachable { .. })) => section.skipped("caller", "STS cannot be reached"),
        Some(Err(error)) => section.error("caller", error),
        Some(Ok(known)) => {
            let base = known.caller.as_ref().map_or("", |caller| caller.as_str());
            section.ok(
                "caller",
                match &known.intermediate {
                    IntermediateIdentity::Known(role) => format!("{base}, which assumes pods' roles as {}", role.as_str()),
                    IntermediateIdentity::None | IntermediateIdentity::Unknown => base.to_owned(),
                },
            )
        }
    }
}

/// The rules by which roles are completed and allowed, and the role that is to be tried, with whether STS knows the daemon.
async fn roles(config: &Config, aws: &Aws, sts: &Sts, node: &NodeIdentity, role: Option<(&str, bool)>) -> Vec<CheckItem> {
    let section = CheckSection::Role;
    let mut rules = match within(STEP, rules(Some(aws), config, node)).await {
        None => return vec![no_answer(section.failed("discovery", "the metadata service"))],
        Some(Err(failure)) => return vec![of_failure(section, "discovery", &failure)],
        Some(Ok(rules)) => rules,
    };
    let mut checks = Vec::new();
    if needs_aws(config) {
        let base = rules.base.as_ref().map(|base| format!("base ARN {}", base.as_str()));
        let default = rules.default_role.as_ref().map(|role| format!("default role {role}"));
        checks.push(section.ok("discovery", base.into_iter().chain(default).collect::<Vec<_>>().join(", ")));
    }
    // The limits of a namespace are those of a pod; here are the node's.
    rules.restrictions = Restrictions::Off;
    rules.session_duration = *SESSION_DURATIONS.start();
    let policy = match Policy::new(rules, node.clone()) {
        Ok(policy) => policy,
        Err(mistake) => return vec![section.error("allowed-roles", &mistake)],
    };
    if !policy.allows_default_role() {
        let item = section.failed("allowed-roles", "--allowed-roles does not allow --default-role: the daemon does not start");
        checks.push(item.advise("add the role to --allowed-roles, or remove --default-role"));
    }
    if let Some(foreign) = policy.foreign_account() {
        let detail = format!(
            "the metadata service names account {}, but the daemon's own identity is {}: roles of that account are refused",
            foreign.account,
            foreign.identity.as_str()
        );
        let item = section.failed("account", detail);
        checks.push(item.advise("use --base-role-arn (and --default-role) instead of --auto-discover-..., or check --metadata-addr"));
    }
    checks.push(match role {
        None => section.skipped("assume-role", "no role is given (--role)"),
        Some((_, false)) => section.skipped("assume-role", "the daemon's own identity is not known"),
        Some((role, true)) => assume(role, &policy, sts, node).await,
    });
    checks
}

/// Assumes a role once, as for a pod that names it, and drops the credentials.
async fn assume(role: &str, policy: &Policy, sts: &Sts, node: &NodeIdentity) -> CheckItem {
    let section = CheckSection::Role;
    let request = match policy.decide(&pod_with(role), &PodContext::default()) {
        Decision::Allow { request, .. } => request,
        Decision::Deny(denial) => return section.error("assume-role", &denial),
    };
    let began = Instant::now();
    match within(STEP, sts.asked_once().assume_role(&request, None)).await {
        None => no_answer(section.failed("assume-role", request.role().to_string())),
        Some(Ok(credentials)) => section.ok(
            "assume-role",
            format!(
                "{} as {}: access key {}, expires at {}; took {} ms; the credentials were discarded",
                request.role(),
                request.session_name().as_str(),
                credentials.access_key_id,
                credentials.expires_at,
                began.elapsed().as_millis()
            ),
        ),
        Some(Err(error)) => {
            let known = node.known();
            let diagnosis = error.diagnose(&request, known.caller().map(|caller| caller.as_str()));
            let item = section.failed("assume-role", format!("{}: {}", request.role(), diagnosis.problem));
            match diagnosis.check.as_slice() {
                [] => error.advice().into_iter().fold(item, |item, advice| item.advise(advice)),
                check => item.advise(format!("check in this order: {}", check.join("; "))),
            }
        }
    }
}

/// A pod of nobody that names this role.
fn pod_with(role: &str) -> Pod {
    let name = PodName { uid: PodUid("rolegate-check".into()), namespace: "rolegate".to_owned(), name: "check".to_owned() };
    Pod { role: Some(role.to_owned()), session_name: Some("rolegate-check".to_owned()), ..Pod::named(name) }
}
