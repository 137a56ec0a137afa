//! A report as text: the lines are always in the same order, in ASCII except for what they quote.

use std::fmt::Write as _;
use std::time::Duration;

use super::{By, Report, ReportStep, ReportedDecision};
use crate::policy::trace::StepVerdict;
use crate::text::printable;

/// Returns the text of a report. Its last line is the decision, and how to fix it. If STS failed, a list of things to check
/// follows.
pub(crate) fn text(report: &Report) -> String {
    let mut text = String::new();
    // Writing to a `String` cannot fail.
    let _ = write(report, &mut text);
    text
}

fn write(report: &Report, text: &mut String) -> std::fmt::Result {
    let place = if report.node.is_empty() { String::new() } else { format!(" on node {}", report.node) };
    let by = match report.by {
        By::Daemon => "as decided by the daemon of the node",
        By::Cluster => "as decided by the flags given here and the Kubernetes API",
    };
    writeln!(text, "{}", printable(&format!("pod {}/{}{place}, {by}", report.namespace, report.pod)))?;
    section(text, "Pod", &report.identity, report)?;
    section(text, "Role", &report.policy, report)?;
    section(text, "Pod Identity", &report.pod_identity, report)?;
    if let Some(request) = &report.request {
        writeln!(text, "\nSTS request")?;
        let mut lines = match &request.source_role {
            None => vec![("role", request.role.clone())],
            Some(source) => {
                vec![("role", source.clone()), ("target-role", format!("{}, assumed by the session of the role", request.role))]
            }
        };
        lines.push(("session-name", request.session_name.clone()));
        lines.extend(request.source_identity.iter().map(|identity| ("source-identity", identity.clone())));
        let external_id = match (request.external_id, &request.source_role) {
            (false, _) => "none",
            (true, None) => "sent",
            (true, Some(_)) => "sent for the target role only",
        };
        lines.push(("external-id", external_id.to_owned()));
        lines.push(("duration", humantime::format_duration(Duration::from_secs(request.duration_seconds)).to_string()));
        let inherited = if request.has_transitive_tags { " (transitive)" } else { "" };
        lines.extend(request.tags.iter().map(|tag| ("tag", format!("{}={}{inherited}", tag.key, tag.value))));
        for (what, value) in lines {
            line(text, "", what, &value)?;
        }
    }
    if let Some(assumed) = &report.assume {
        writeln!(text, "\nSTS response")?;
        let known = assumed.identity.is_some();
        line(text, if known { "ok" } else { "no" }, "caller", assumed.identity.as_deref().unwrap_or("not known"))?;
        if let Some(key) = &assumed.source_access_key_id {
            line(text, "ok", "role", &format!("{key}; the credentials were discarded"))?;
        }
        match (&assumed.access_key_id, &assumed.expires_at) {
            (Some(key), Some(end)) => line(text, "ok", "session", &format!("{key}, expires at {end}; the credentials were discarded"))?,
            _ => line(text, "no", "session", &assumed.outcome)?,
        }
    }
    writeln!(text)?;
    for note in &report.notes {
        writeln!(text, "note: {}", printable(note))?;
    }
    let decision = match report.decision {
        ReportedDecision::Allowed => "allowed",
        ReportedDecision::Denied => "denied",
        ReportedDecision::Unknown => "unknown",
    };
    let reason = report.reason.as_ref().map_or_else(String::new, |reason| format!(" ({reason})"));
    let end = if report.check.is_empty() { "" } else { ". To fix, check in this order:" };
    writeln!(text, "{}", printable(&format!("{decision}{reason}: {}{end}", report.message)))?;
    for (at, check) in report.check.iter().enumerate() {
        writeln!(text, "  {}. {}", at + 1, printable(check))?;
    }
    Ok(())
}

fn section(text: &mut String, title: &str, steps: &[ReportStep], report: &Report) -> std::fmt::Result {
    if steps.is_empty() {
        return Ok(());
    }
    writeln!(text, "\n{title}")?;
    for step in steps {
        let mark = match step.verdict {
            StepVerdict::Passed => "ok",
            StepVerdict::Refused => "no",
            StepVerdict::Skipped => "-",
        };
        // The last line has the whole sentence.
        let detail = match &report.reason {
            Some(reason) if step.verdict == StepVerdict::Refused && report.message.starts_with(&step.detail) => reason,
            _ => &step.detail,
        };
        let both = if step.source.is_empty() || detail.is_empty() { "" } else { ": " };
        line(text, mark, &step.what, &format!("{}{both}{detail}", step.source))?;
    }
    Ok(())
}

fn line(text: &mut String, mark: &str, what: &str, value: &str) -> std::fmt::Result {
    writeln!(text, "  {mark:<3} {:<15} {}", printable(what), printable(value))
}

#[cfg(test)]
mod tests;
