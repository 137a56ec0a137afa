//! The report as text: one line for each check, and a last line with the result.

use std::fmt::Write as _;

use super::{CheckReport, CheckStatus};
use crate::advice::join;
use crate::text::printable;

/// Returns the text of a report.
pub(crate) fn text(report: &CheckReport) -> String {
    let mut text = String::new();
    // Writing to a `String` cannot fail.
    let _ = write(report, &mut text);
    text
}

fn write(report: &CheckReport, text: &mut String) -> std::fmt::Result {
    let mut section = None;
    for item in &report.checks {
        if section.replace(item.section) != Some(item.section) {
            let gap = if text.is_empty() { "" } else { "\n" };
            writeln!(text, "{gap}{}", item.section.title())?;
        }
        let detail = printable(&join(&item.detail, item.advice.as_deref()));
        writeln!(text, "  {:<8} {:<16} {detail}", item.status.name(), item.check)?;
    }
    let counts = [CheckStatus::Failed, CheckStatus::Warning, CheckStatus::Ok, CheckStatus::Skipped]
        .map(|status| format!("{} {}", report.count(status), status.name()))
        .join(", ");
    writeln!(text, "\n{}: {counts}", report.result.name())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::CheckSection;

    fn report() -> CheckReport {
        CheckReport::new(vec![
            CheckSection::Sts.ok("region", "eu-central-1"),
            CheckSection::Arguments.warning("flags", "--x has no effect"),
            CheckSection::Kubernetes.failed("pods", "the API refuses list\u{1b}[31m.").advise("allow list"),
            CheckSection::Node.skipped("packet-rules", "this is no node").advise("run it on a node"),
        ])
    }

    #[test]
    fn every_check_has_one_line() {
        insta::assert_snapshot!("text", text(&report()));
    }

    #[test]
    fn json_has_cause_and_advice_apart() {
        let json = serde_json::to_string_pretty(&report()).unwrap_or_default();
        insta::assert_snapshot!("json", json);
    }
}
