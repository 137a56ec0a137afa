//! Reports of several nodes, made one.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use super::{Finding, MigrationReport, REPORT_VERSION, ReportedNamespace, ReportedNode, ReportedProtocol, ReportedWorkload};

impl MigrationReport {
    /// Creates a report of no node.
    pub(crate) fn of_nobody() -> Self {
        Self {
            version: REPORT_VERSION,
            nodes: Vec::new(),
            strict: None,
            left_out: 0,
            namespaces: Vec::new(),
            workloads: Vec::new(),
            protocols: Vec::new(),
            protocols_left_out: 0,
        }
    }

    /// Creates the report of a node that gave none.
    pub(crate) fn failed(node: &str, error: String) -> Self {
        let node = ReportedNode { node: node.to_owned(), recorded_seconds: 0, findings_recorded: true, error: Some(error) };
        Self { nodes: vec![node], ..Self::of_nobody() }
    }

    /// Adds the report of another node. Requests of one workload are added up.
    pub(crate) fn merge(&mut self, other: Self) {
        self.nodes.extend(other.nodes);
        self.nodes.sort_by(|a, b| a.node.cmp(&b.node));
        match (&mut self.strict, other.strict) {
            (Some(own), Some(other)) => add_new(&mut own.node_info_namespaces, other.node_info_namespaces),
            (own, other) => *own = own.take().or(other),
        }
        self.left_out = self.left_out.saturating_add(other.left_out);
        let mut namespaces: BTreeMap<String, ReportedNamespace> = by(self.namespaces.drain(..), |namespace| namespace.name.clone());
        for namespace in other.namespaces {
            match namespaces.get_mut(&namespace.name) {
                Some(own) => own.merge(namespace),
                None => drop(namespaces.insert(namespace.name.clone(), namespace)),
            }
        }
        self.namespaces = namespaces.into_values().collect();
        let key = |workload: &ReportedWorkload| (workload.namespace.clone(), workload.kind.clone(), workload.name.clone());
        let mut workloads = by(self.workloads.drain(..), key);
        for workload in other.workloads {
            match workloads.get_mut(&key(&workload)) {
                Some(own) => own.merge(workload),
                None => drop(workloads.insert(key(&workload), workload)),
            }
        }
        self.workloads = workloads.into_values().collect();
        let key = |one: &ReportedProtocol| (one.namespace.clone(), one.kind.clone(), one.name.clone(), one.protocol);
        let mut protocols = by(self.protocols.drain(..), key);
        for used in other.protocols {
            match protocols.get_mut(&key(&used)) {
                Some(own) => {
                    own.requests = own.requests.saturating_add(used.requests);
                    own.credentials = own.credentials.saturating_add(used.credentials);
                    own.last_seen_seconds = own.last_seen_seconds.min(used.last_seen_seconds);
                }
                None => drop(protocols.insert(key(&used), used)),
            }
        }
        self.protocols = protocols.into_values().collect();
        self.protocols_left_out = self.protocols_left_out.saturating_add(other.protocols_left_out);
    }

    /// Returns whether every node answered.
    pub(crate) fn is_complete(&self) -> bool {
        self.nodes.iter().all(|node| node.error.is_none())
    }

    /// Returns the nodes that record no findings, because their daemons run without `--migrate`.
    pub(crate) fn without_findings(&self) -> impl Iterator<Item = &str> {
        self.nodes.iter().filter(|node| !node.findings_recorded).map(|node| &*node.node)
    }
}

impl ReportedNamespace {
    fn merge(&mut self, other: Self) {
        match (&mut self.existing, other.existing) {
            (Some(own), Some(other)) => add_new(own, other),
            (own, other) => *own = own.take().or(other),
        }
        add_new(&mut self.missing, other.missing);
        self.missing.sort();
        self.value = annotation_value(self.existing.as_deref(), &self.missing);
        // Where a node has no note, it knows the annotation.
        if other.note.is_none() && self.existing.is_some() {
            self.note = None;
        }
    }
}

impl ReportedWorkload {
    fn merge(&mut self, other: Self) {
        let key = |finding: &Finding| (finding.finding, finding.subject.clone(), finding.reason.clone());
        let mut findings = by(self.findings.drain(..), key);
        for finding in other.findings {
            match findings.get_mut(&key(&finding)) {
                Some(own) => {
                    own.count = own.count.saturating_add(finding.count);
                    own.last_seen_seconds = own.last_seen_seconds.into_iter().chain(finding.last_seen_seconds).min();
                }
                None => drop(findings.insert(key(&finding), finding)),
            }
        }
        self.findings = findings.into_values().collect();
    }
}

/// Returns the value of an annotation: a JSON list of the existing patterns and the missing ones. It is ASCII, because the authors of
/// namespaces write the existing ones.
pub(super) fn annotation_value(existing: Option<&[String]>, missing: &[String]) -> String {
    let mut patterns = existing.unwrap_or_default().to_vec();
    add_new(&mut patterns, missing.to_vec());
    let json = serde_json::to_string(&patterns).unwrap_or_default();
    let mut ascii = String::with_capacity(json.len());
    for c in json.chars() {
        if c.is_ascii() && !c.is_ascii_control() {
            ascii.push(c);
        } else {
            for unit in c.encode_utf16(&mut [0; 2]) {
                // Writing to a string does not fail.
                let _ = write!(ascii, "\\u{unit:04x}");
            }
        }
    }
    ascii
}

fn add_new(all: &mut Vec<String>, more: Vec<String>) {
    for one in more {
        if !all.contains(&one) {
            all.push(one);
        }
    }
}

fn by<K: Ord, T>(all: impl Iterator<Item = T>, key: impl Fn(&T) -> K) -> BTreeMap<K, T> {
    all.map(|one| (key(&one), one)).collect()
}
