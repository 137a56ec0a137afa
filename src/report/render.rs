//! A report as text for people, and as CSV for spreadsheets.
//!
//! Every text in a report was checked or cleaned when it was made. What a daemon sends is made printable here once more.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::time::Duration;

use super::{CredentialProtocol, Finding, FindingKind, MigrationReport, ReportedNamespace, ReportedWorkload};
use crate::text::printable;

/// The columns of the CSV form.
const COLUMNS: &str = "namespace,kind,name,finding,subject,reason,count,last_seen_seconds,advice,change";

/// Returns the text of a report.
pub(crate) fn report_text(report: &MigrationReport) -> String {
    let mut text = String::new();
    // Writing to a `String` cannot fail.
    let _ = write_text(report, &mut text);
    text
}

/// Returns the findings as CSV (RFC 4180), one a line.
pub(crate) fn report_csv(report: &MigrationReport) -> String {
    let mut csv = format!("{COLUMNS}\r\n");
    for workload in &report.workloads {
        for finding in &workload.findings {
            let last_seen = finding.last_seen_seconds.map_or_else(String::new, |seconds| seconds.to_string());
            let change = report.change_for(workload, finding).unwrap_or_default();
            let count = finding.count.to_string();
            let cells = [
                &*workload.namespace,
                &workload.kind,
                &workload.name,
                finding.finding.name(),
                &finding.subject,
                &finding.reason,
                &count,
                &last_seen,
                &finding.advice,
                &change,
            ];
            csv.push_str(&cells.map(cell).join(","));
            csv.push_str("\r\n");
        }
    }
    csv
}

/// Returns a cell. A spreadsheet takes a text that begins with one of `=+-@` for a formula, so such a text gets an apostrophe.
fn cell(text: &str) -> String {
    let safe = if text.starts_with(['=', '+', '-', '@']) { "'" } else { "" };
    format!("\"{safe}{}\"", printable(text).replace('"', "\"\""))
}

impl MigrationReport {
    /// Returns the value of `--node-info-namespaces` with which the metadata findings pass, if there are any.
    pub(crate) fn node_info_namespaces(&self) -> Option<String> {
        let reads = |workload: &&ReportedWorkload| {
            workload.findings.iter().any(|finding| finding.finding == FindingKind::Metadata && finding.reason == "node-info")
        };
        let new: BTreeSet<_> = self.workloads.iter().filter(reads).map(|workload| workload.namespace.clone()).collect();
        let given = self.strict.iter().flat_map(|strict| strict.node_info_namespaces.iter());
        let all: Vec<_> = given.filter(|given| !new.contains(*given)).chain(&new).map(String::as_str).collect();
        (!new.is_empty()).then(|| all.join(","))
    }

    /// Returns the flag or the command that lets a finding pass, if there is one.
    fn change_for(&self, workload: &ReportedWorkload, finding: &Finding) -> Option<String> {
        match finding.finding {
            FindingKind::Role => {
                let allows = |namespace: &&ReportedNamespace| namespace.name == workload.namespace && namespace.allows(&finding.subject);
                self.namespaces.iter().find(allows).map(ReportedNamespace::command)
            }
            FindingKind::Metadata if finding.reason == "node-info" => {
                self.node_info_namespaces().map(|namespaces| format!("--node-info-namespaces={namespaces}"))
            }
            FindingKind::Metadata => Some("--metadata-profile=base".to_owned()),
            FindingKind::Imdsv1 => Some("--imds-tokens=optional".to_owned()),
            FindingKind::HostNetwork | FindingKind::Refused => None,
        }
    }
}

impl ReportedNamespace {
    /// Whether a pattern to add is that of this role.
    fn allows(&self, role: &str) -> bool {
        self.missing.iter().any(|pattern| pattern == role || *pattern == regex::escape(role))
    }

    /// Returns the command that sets the annotation.
    pub(crate) fn command(&self) -> String {
        let assignment = printable(&format!("{}={}", self.annotation, self.value)).replace('\'', r"'\''");
        format!("kubectl annotate namespace {} --overwrite '{assignment}'", printable(&self.name))
    }
}

fn write_text(report: &MigrationReport, text: &mut String) -> std::fmt::Result {
    write_head(report, text)?;
    let mut namespace = None;
    for workload in &report.workloads {
        if namespace != Some(&workload.namespace) {
            writeln!(text, "\nnamespace {}", printable(&workload.namespace))?;
            namespace = Some(&workload.namespace);
        }
        writeln!(text, "  {} {}", printable(&workload.kind), printable(&workload.name))?;
        for finding in &workload.findings {
            write_finding(finding, text)?;
        }
    }
    write_changes(report, text)?;
    write_protocols(report, text)?;
    let (workloads, namespaces) = (report.workloads.len(), report.workloads.iter().map(|w| &w.namespace).collect::<BTreeSet<_>>().len());
    match workloads {
        0 if report.without_findings().next().is_some() => Ok(()),
        0 => writeln!(text, "\nno findings"),
        _ => writeln!(text, "\nworkloads with findings: {workloads}, in namespaces: {namespaces}"),
    }
}

fn write_head(report: &MigrationReport, text: &mut String) -> std::fmt::Result {
    for node in &report.nodes {
        let recorded = humantime::format_duration(Duration::from_secs(node.recorded_seconds));
        match &node.error {
            None if node.findings_recorded => writeln!(text, "node {}: recorded for {recorded}", printable(&node.node))?,
            None => writeln!(
                text,
                "node {}: recorded for {recorded}, but no findings, because the daemon runs without --migrate",
                printable(&node.node)
            )?,
            Some(error) => writeln!(text, "node {}: no report: {}", printable(&node.node), printable(error))?,
        }
    }
    if let Some(strict) = &report.strict {
        let restrictions = if strict.namespace_restrictions { "on" } else { "off" };
        let namespaces = strict.node_info_namespaces.join(",");
        let namespaces = if namespaces.is_empty() { namespaces } else { format!(", node-info-namespaces {namespaces}") };
        writeln!(
            text,
            "strict settings: imds-tokens {}, metadata-profile {}{}, namespace-restrictions {restrictions}",
            printable(&strict.imds_tokens),
            printable(&strict.metadata_profile),
            printable(&namespaces),
        )?;
    }
    if report.left_out > 0 {
        writeln!(text, "note: {} requests are not in this report, because too many workloads had findings", report.left_out)?;
    }
    Ok(())
}

fn write_finding(finding: &Finding, text: &mut String) -> std::fmt::Result {
    let reason = if finding.reason == finding.finding.name() { String::new() } else { format!(" ({})", printable(&finding.reason)) };
    let seen = match finding.last_seen_seconds {
        None => "no request yet".to_owned(),
        Some(seconds) => {
            let ago = humantime::format_duration(Duration::from_secs(seconds));
            format!("{}, last {ago} ago", counted(finding.count))
        }
    };
    writeln!(text, "    {:<12} {}{reason}: {seen}", finding.finding.name(), printable(&finding.subject))?;
    writeln!(text, "    {:<12} to fix: {}", "", printable(&finding.advice))
}

/// Writes the protocols that workloads use, and how many workloads use each.
fn write_protocols(report: &MigrationReport, text: &mut String) -> std::fmt::Result {
    if report.protocols.is_empty() {
        return Ok(());
    }
    writeln!(text, "\nprotocols in use:")?;
    let mut last = None;
    for used in &report.protocols {
        let workload = (&used.namespace, &used.kind, &used.name);
        if last != Some(workload) {
            writeln!(text, "  {} {} in namespace {}", printable(&used.kind), printable(&used.name), printable(&used.namespace))?;
            last = Some(workload);
        }
        let ago = humantime::format_duration(Duration::from_secs(used.last_seen_seconds));
        let (protocol, requests) = (used.protocol.name(), counted(used.requests));
        writeln!(text, "    {protocol:<12} {requests}, {} answered with credentials, last {ago} ago", used.credentials)?;
    }
    if report.protocols_left_out > 0 {
        writeln!(text, "  note: {} are missing here, because too many workloads sent some", counted(report.protocols_left_out))?;
    }
    let by_protocol = CredentialProtocol::ALL.map(|(protocol, name)| {
        let workloads = report.protocols.iter().filter(|used| used.protocol == protocol).count();
        format!("{name} {workloads}")
    });
    let from_metadata = report.protocols.iter().filter(|used| used.protocol.is_metadata() && used.credentials > 0);
    let from_metadata: BTreeSet<_> = from_metadata.map(|used| (&used.namespace, &used.kind, &used.name)).collect();
    writeln!(text, "workloads by protocol: {}", by_protocol.join(", "))?;
    writeln!(text, "workloads that get credentials from the metadata service: {}", from_metadata.len())
}

/// Returns a number of requests, as people write it.
fn counted(requests: u64) -> String {
    format!("{requests} request{}", if requests == 1 { "" } else { "s" })
}

fn write_changes(report: &MigrationReport, text: &mut String) -> std::fmt::Result {
    if !report.namespaces.is_empty() {
        writeln!(text, "\nThese annotations would allow the roles. Pods' authors chose the roles: check each before you allow it.")?;
    }
    for namespace in &report.namespaces {
        if let Some(note) = &namespace.note {
            writeln!(text, "  # {}: {}", printable(&namespace.name), printable(note))?;
        }
        writeln!(text, "  {}", namespace.command())?;
    }
    if let Some(namespaces) = report.node_info_namespaces() {
        writeln!(text, "\nThis flag would allow the metadata of node-info:\n  --node-info-namespaces={}", printable(&namespaces))?;
    }
    Ok(())
}
