//! A report as text for people: the same lines in the same places every time, in ASCII but for what it quotes.

use std::fmt::Write as _;
use std::time::Duration;

use super::{By, Report, ReportStep, ReportedDecision};
use crate::policy::trace::StepVerdict;
use crate::text::printable;

/// The text of a report. Its last line says what came of it, and what to change; where STS refused, the things to look at
/// stand below that.
pub(crate) fn text(report: &Report) -> String {
    let mut text = String::new();
    // A text takes whatever is written into it.
    let _ = write(report, &mut text);
    text
}

fn write(report: &Report, text: &mut String) -> std::fmt::Result {
    let place = if report.node.is_empty() { String::new() } else { format!(" on node {}", report.node) };
    let by = match report.by {
        By::Daemon => "by the settings of the daemon there and what it knows now",
        By::Cluster => "by the settings given and what the Kubernetes API says",
    };
    writeln!(text, "{}", printable(&format!("pod {}/{}{place}, {by}", report.namespace, report.pod)))?;
    section(text, "who asks", &report.identity, report)?;
    section(text, "which role", &report.policy, report)?;
    if let Some(request) = &report.request {
        writeln!(text, "\nwhat STS is asked for")?;
        let mut lines = vec![("role", request.role.clone()), ("session-name", request.session_name.clone())];
        lines.extend(request.source_identity.iter().map(|identity| ("source-identity", identity.clone())));
        lines.push(("external-id", if request.external_id { "one is sent" } else { "none" }.to_owned()));
        lines.push(("duration", humantime::format_duration(Duration::from_secs(request.duration_seconds)).to_string()));
        lines.extend(request.tags.iter().map(|tag| ("tag", format!("{}={}", tag.key, tag.value))));
        for (what, value) in lines {
            line(text, "", what, &value)?;
        }
    }
    if let Some(assumed) = &report.assume {
        writeln!(text, "\nwhat STS answers")?;
        let known = assumed.identity.is_some();
        line(text, if known { "ok" } else { "no" }, "asked-by", assumed.identity.as_deref().unwrap_or("not known"))?;
        match (&assumed.access_key_id, &assumed.expires_at) {
            (Some(key), Some(end)) => line(text, "ok", "session", &format!("{key}, until {end}; its credentials were dropped"))?,
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
        ReportedDecision::Unknown => "not found out",
    };
    let reason = report.reason.as_ref().map_or_else(String::new, |reason| format!(" ({reason})"));
    let end = if report.check.is_empty() { "" } else { "; check, in this order:" };
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
        // The sentence that the text ends with is not said twice.
        let detail = match &report.reason {
            Some(reason) if step.detail == report.message => reason,
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
