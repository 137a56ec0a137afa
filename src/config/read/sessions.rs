//! Reads how sessions are requested from STS.

use std::time::Duration;

use crate::config::session::{Placeholder, SessionScope, SessionTag, SessionTemplate};
use crate::config::source::SettingSource;
use crate::config::{
    DEFAULT_ERROR_TTL, DEFAULT_PREFETCH_SPREAD, DEFAULT_SESSION_DURATION, DEFAULT_STS_CONCURRENCY, DEFAULT_STS_RATE, DEFAULT_STS_RISE,
    DEFAULT_STS_TIMEOUT, SESSION_DURATIONS, SessionsConfig,
};
use crate::role::RoleArn;
use crate::session_limits::{LONGEST_CHAINED, LONGEST_SDK_MARGIN};

/// Shorter, a failure would be forgotten before the next request of an SDK that tries again: STS would be asked each time.
const SHORTEST_ERROR_TTL: Duration = Duration::from_secs(1);
/// What a request may wait for STS at least and at most.
const STS_TIMEOUTS: std::ops::RangeInclusive<Duration> = Duration::from_millis(100)..=Duration::from_secs(60);

pub(in crate::config) fn sessions(source: &mut SettingSource<'_>) -> SessionsConfig {
    let mut duration = source.duration("session-duration", DEFAULT_SESSION_DURATION);
    let mut flag = "--session-duration";
    if source.is_given("iam-role-session-ttl") && source.text("iam-role-session-ttl").is_some() {
        if source.is_given("session-duration") {
            source.mistake("--iam-role-session-ttl and --session-duration exclude each other: give one of them");
        }
        duration = source.duration("iam-role-session-ttl", DEFAULT_SESSION_DURATION / 2).saturating_mul(2);
        flag = "twice --iam-role-session-ttl";
        source.warn(
            "session-ttl-doubled",
            format!(
                "--iam-role-session-ttl is doubled, as in kube2iam: sessions last {}; use --session-duration={0} instead",
                humantime::format_duration(duration)
            ),
        );
    }
    if !SESSION_DURATIONS.contains(&duration) {
        source.mistake(format!("{flag} is {}: expected 15m to 12h, the limits of STS", humantime::format_duration(duration)));
    }
    if duration < LONGEST_SDK_MARGIN * 2 {
        source.warn("sessions-short", format!("sessions last {}, which is less than {}: pods also get credentials that expire in less than {}, which some SDKs request again \
             and again",
            humantime::format_duration(duration),
            humantime::format_duration(LONGEST_SDK_MARGIN * 2),
            humantime::format_duration(LONGEST_SDK_MARGIN),
        ));
    }
    let mut error_ttl = source.duration("iam-role-error-ttl", DEFAULT_ERROR_TTL);
    if error_ttl < SHORTEST_ERROR_TTL {
        source.warn(
            "error-ttl-raised",
            format!(
                "--iam-role-error-ttl is {}, which would repeat a failed request to STS for each request of a pod: using {}",
                humantime::format_duration(error_ttl),
                humantime::format_duration(SHORTEST_ERROR_TTL),
            ),
        );
        error_ttl = SHORTEST_ERROR_TTL;
    }
    let cluster = source.text("cluster-name");
    let scope = source.choice("session-scope", &[("pod", SessionScope::Pod), ("role", SessionScope::Role)], SessionScope::Pod);
    let name = session_template("session-name-template", scope, cluster.is_some(), source).unwrap_or_else(|| {
        SessionTemplate::of(match scope {
            SessionScope::Pod => Placeholder::Pod,
            SessionScope::Role => Placeholder::Role,
        })
    });
    let source_identity = session_template("source-identity", scope, cluster.is_some(), source);
    let tags = session_tags(scope, cluster.is_some(), source);
    let transitive_tags = source.switch("session-tags-transitive");
    if transitive_tags && tags.is_empty() {
        source.mistake("--session-tags-transitive without --session-tags: there are no tags to pass on; give both");
    }
    let pod_may_name = source.text("session-name-template").is_none();
    let timeout = source.duration("sts-timeout", DEFAULT_STS_TIMEOUT);
    if !STS_TIMEOUTS.contains(&timeout) {
        source.mistake("--sts-timeout: expected 100ms to 1m");
    }
    let intermediate = source.text("assume-role-arn").and_then(|_| {
        source.parse("assume-role-arn", |text| text.parse::<RoleArn>().map_err(|error| format!("expected the ARN of a role: {error}")))
    });
    if intermediate.is_some() && duration > LONGEST_CHAINED {
        source.warn(
            "session-duration-chained",
            format!("--assume-role-arn is role chaining, so sessions last 1h, not {flag}={}", humantime::format_duration(duration)),
        );
        duration = LONGEST_CHAINED;
    }
    let rate = source.limit("sts-rate", DEFAULT_STS_RATE);
    let max_rate = source.limit("sts-max-rate", rate.saturating_mul(DEFAULT_STS_RISE));
    if max_rate < rate {
        source.mistake("--sts-max-rate is less than --sts-rate: give the same number if the rate must not rise");
    }
    SessionsConfig {
        duration,
        cluster,
        name,
        pod_may_name,
        scope,
        source_identity,
        tags,
        transitive_tags,
        error_ttl,
        timeout,
        intermediate,
        rate,
        max_rate,
        concurrency: source.limit("sts-concurrency", DEFAULT_STS_CONCURRENCY) as usize,
        prefetch: source.switch("prefetch"),
        prefetch_spread: source.duration("prefetch-spread", DEFAULT_PREFETCH_SPREAD),
    }
}

/// Reads the template of a flag, if it is given.
fn session_template(
    flag: &'static str,
    scope: SessionScope,
    cluster_known: bool,
    source: &mut SettingSource<'_>,
) -> Option<SessionTemplate> {
    source.text(flag)?;
    let template = source.parse(flag, |text| text.parse::<SessionTemplate>().map_err(|error| error.to_string()))?;
    if scope == SessionScope::Role && template.fields().any(Placeholder::is_of_pod) {
        source.mistake(format!(
            "--{flag} names the pod, but pods share sessions with --session-scope=role: use only {{cluster}}, {{node}} and {{role}}"
        ));
    }
    if !cluster_known && template.fields().any(|field| field == Placeholder::Cluster) {
        source.mistake(format!("--{flag} contains {{cluster}}: add --cluster-name"));
    }
    Some(template)
}

fn session_tags(scope: SessionScope, cluster_known: bool, source: &mut SettingSource<'_>) -> Vec<SessionTag> {
    let mut tags = Vec::new();
    for (place, item) in source.list("session-tags") {
        match SessionTag::NAMES.iter().find(|(name, _)| *name == item) {
            Some((name, tag)) => {
                if scope == SessionScope::Role && tag.is_of_pod() {
                    source.mistake(format!("{place}={name}: pods share sessions with --session-scope=role: use only cluster and node"));
                }
                tags.push(*tag);
            }
            None => {
                let names: Vec<_> = SessionTag::NAMES.iter().map(|(name, _)| *name).collect();
                source.mistake(format!("{place}={item:?}: expected one of {}", names.join(", ")));
            }
        }
    }
    if !cluster_known && tags.contains(&SessionTag::Cluster) {
        source.mistake("--session-tags contains cluster: add --cluster-name");
    }
    // The same tags in another order are the same session.
    tags.sort_unstable();
    tags.dedup();
    tags
}
