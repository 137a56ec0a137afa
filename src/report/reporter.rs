//! Makes the report of one node: what requests showed, and what the known pods and namespaces say now.
//!
//! What the objects decide is decided again for each report, so that a finding is gone when its cause is gone: an annotation that
//! was added, or a role that was changed. What clients do is kept with the time of the last request.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use super::ledger::{Noted, Tally};
use super::merge::annotation_value;
use super::recorder::{Recorded, Recorder, role_text};
use super::uses::ProtocolUse;
use super::workload::Workload;
use super::{
    CredentialProtocol, Finding, FindingKind, MigrationReport, REPORT_VERSION, ReportedNamespace, ReportedNode, ReportedProtocol,
    ReportedSettings, ReportedWorkload,
};
use crate::advice::Advise as _;
use crate::config::{PatternFormat, StrictSettings};
use crate::pods::{HostNetworkTreatment, Namespace, Pod, PodContext, Pods};
use crate::policy::denial::NamespaceList;
use crate::policy::{Decision, Denial, Policy};
use crate::role::RoleArn;

/// Makes reports by one policy and one set of pods.
pub(crate) struct MigrationReporter {
    /// The node of the pods.
    pub(crate) node: String,
    /// What requests showed.
    pub(crate) recorder: Recorder,
    /// The known pods.
    pub(crate) pods: Pods,
    /// The policy, whose restrictions are not enforced.
    pub(crate) policy: Arc<Policy>,
    /// The settings that decide what is a finding. Without `--migrate` there are none, and no findings.
    pub(crate) strict: Option<StrictSettings>,
    /// The key of the annotation with the list of allowed roles.
    pub(crate) allowed_roles: String,
    /// The format of the patterns in that list.
    pub(crate) patterns: PatternFormat,
}

impl fmt::Debug for MigrationReporter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MigrationReporter").field("node", &self.node).field("strict", &self.strict).finish_non_exhaustive()
    }
}

/// A finding before it is counted.
type Key = (FindingKind, String, &'static str);

/// The findings of a report that is being made.
#[derive(Default)]
struct Draft {
    workloads: BTreeMap<Workload, BTreeMap<Key, Counted>>,
    /// The roles to allow with their patterns, by namespace.
    missing: BTreeMap<Box<str>, BTreeMap<String, String>>,
}

/// A role, and the pattern that matches exactly this role.
struct RolePattern {
    role: String,
    pattern: String,
}

#[derive(Default)]
struct Counted {
    count: u64,
    last: Option<Duration>,
    advice: String,
}

impl Draft {
    fn add(&mut self, workload: &Workload, key: Key, advice: impl FnOnce() -> String) {
        self.count(workload, key, advice, 0, None);
    }

    fn count(&mut self, workload: &Workload, key: Key, advice: impl FnOnce() -> String, count: u64, last: Option<Duration>) {
        let findings = self.workloads.entry(workload.clone()).or_default();
        let counted = findings.entry(key).or_insert_with(|| Counted { advice: advice(), ..Counted::default() });
        counted.count += count;
        counted.last = counted.last.max(last);
    }

    /// Adds the requests to a finding that the objects show. Without that finding, its cause is gone.
    fn confirm(&mut self, workload: &Workload, key: &Key, tally: &Tally) {
        if let Some(counted) = self.workloads.get_mut(workload).and_then(|findings| findings.get_mut(key)) {
            counted.count += tally.count;
            counted.last = counted.last.max(Some(tally.last));
        }
    }

    fn allow(&mut self, workload: &Workload, pattern: Option<RolePattern>) {
        if let Some(RolePattern { role, pattern }) = pattern {
            self.missing.entry(workload.namespace.clone()).or_default().insert(role, pattern);
        }
    }
}

impl MigrationReporter {
    /// Returns the report of this node.
    pub(crate) fn report(&self) -> MigrationReport {
        let Recorded { findings, left_out, uses, uses_left_out, elapsed } = self.recorder.recorded();
        let mut draft = Draft::default();
        if let Some(strict) = &self.strict {
            let here = self.look_at_pods(&mut draft);
            for (workload, tallies) in &findings {
                for tally in tallies {
                    self.look_at_requests(strict, workload, tally, here.contains(workload), &mut draft);
                }
            }
        }
        let Draft { workloads, missing } = draft;
        let namespaces = missing.into_iter().map(|(namespace, roles)| self.namespace(&namespace, roles)).collect();
        let workloads = workloads.into_iter().map(|(Workload { namespace, kind, name }, findings)| {
            let findings = findings.into_iter().map(|((finding, subject, reason), Counted { count, last, advice })| {
                let last_seen_seconds = last.map(|last| elapsed.saturating_sub(last).as_secs());
                Finding { finding, subject, reason: reason.to_owned(), count, last_seen_seconds, advice }
            });
            ReportedWorkload { namespace: namespace.into(), kind: kind.into(), name: name.into(), findings: findings.collect() }
        });
        let node = ReportedNode {
            node: self.node.clone(),
            recorded_seconds: elapsed.as_secs(),
            findings_recorded: self.strict.is_some(),
            error: None,
        };
        MigrationReport {
            version: REPORT_VERSION,
            nodes: vec![node],
            strict: self.strict.as_ref().map(ReportedSettings::of),
            left_out,
            namespaces,
            workloads: workloads.collect(),
            protocols: protocols(uses, elapsed),
            protocols_left_out: uses_left_out,
        }
    }

    /// Returns the number of workloads with a finding, by kind and namespace, for the namespaces with pods here.
    pub(crate) fn counts(&self) -> Vec<(&'static str, String, usize)> {
        let here = self.pods.namespaces();
        let mut counts: BTreeMap<(FindingKind, String), usize> = BTreeMap::new();
        for workload in self.report().workloads.into_iter().filter(|workload| here.contains(&workload.namespace)) {
            let kinds: BTreeSet<_> = workload.findings.iter().map(|finding| finding.finding).collect();
            for kind in kinds {
                *counts.entry((kind, workload.namespace.clone())).or_default() += 1;
            }
        }
        counts.into_iter().map(|((kind, namespace), count)| (kind.name(), namespace, count)).collect()
    }

    /// Adds what the known pods show without a request. Returns their workloads.
    fn look_at_pods(&self, draft: &mut Draft) -> BTreeSet<Workload> {
        for pod in self.pods.in_host_network().iter().filter(|pod| pod.role.is_some()) {
            let (reason, advice) = match self.pods.host_network_treatment(pod) {
                HostNetworkTreatment::Ignored => ("host-network", ON_HOST_NETWORK),
                HostNetworkTreatment::Denied => ("host-network", DENIED_ON_HOST_NETWORK),
                HostNetworkTreatment::Exempt => ("host-network-exempt", EXEMPT_ON_HOST_NETWORK),
                // Its role is decided like that of any other pod.
                HostNetworkTreatment::Served => continue,
            };
            let role = role_text(pod, self.policy.named_role(pod, &PodContext::default()));
            draft.add(&self.workload(pod), (FindingKind::HostNetwork, role, reason), || advice.to_owned());
        }
        let mut here = BTreeSet::new();
        for (pod, context) in self.pods.that_may_ask().1 {
            let workload = self.workload(&pod);
            match self.policy.decide(&pod, &context) {
                Decision::Allow { request, audit: Some(denial) } if !denial.may_pass() => {
                    // The decision has only the first denial. A target role may need a pattern of its own.
                    for role in request.roles() {
                        let Err(denial) = self.policy.check_namespace(role, context.namespace.as_deref()) else { continue };
                        let role = role.to_string();
                        draft.add(&workload, (FindingKind::Role, role.clone(), denial.name()), || self.advice_of_namespace(denial, &role));
                        draft.allow(&workload, self.pattern(&role));
                    }
                }
                // Most pods use no role.
                Decision::Allow { .. } | Decision::Deny(Denial::NoRole) => {}
                Decision::Deny(denial) if denial.may_pass() => {}
                Decision::Deny(denial) => {
                    let role = role_text(&pod, self.policy.named_role(&pod, &context));
                    draft.add(&workload, (FindingKind::Refused, role, denial.name()), || advice_of_denial(denial));
                }
            }
            here.insert(workload);
        }
        here
    }

    /// Adds what the requests of a workload showed. `here` says whether the workload has pods now.
    fn look_at_requests(&self, strict: &StrictSettings, workload: &Workload, tally: &Tally, here: bool, draft: &mut Draft) {
        let subject = tally.subject.to_string();
        let (key, advice) = match tally.noted {
            Noted::WithoutToken => ((FindingKind::Imdsv1, subject, "no-token"), NEEDS_TOKENS.to_owned()),
            Noted::Metadata(set) => ((FindingKind::Metadata, subject, set), advice_of_set(set).to_owned()),
            Noted::UsesNodeRole => ((FindingKind::HostNetwork, subject, "uses-node-role"), USES_NODE_ROLE.to_owned()),
            Noted::Refused(reason) => ((FindingKind::Refused, subject, reason), advice_of_refusal(reason).to_owned()),
            // The node's own role is not given to pods. kube2iam did so.
            Noted::Denied(Denial::NoRole) if !strict.node_role_withheld => return,
            Noted::Denied(Denial::NoRole) => ((FindingKind::Refused, subject, Denial::NoRole.name()), WITHOUT_ROLE.to_owned()),
            Noted::Denied(denial) if here => return draft.confirm(workload, &(FindingKind::Refused, subject, denial.name()), tally),
            Noted::Denied(denial) => ((FindingKind::Refused, subject, denial.name()), advice_of_denial(denial)),
            Noted::Role(denial) if here => {
                let now = self.denial_now(workload, &subject).unwrap_or(denial);
                return draft.confirm(workload, &(FindingKind::Role, subject, now.name()), tally);
            }
            // No pod says which role it would be now, and the list of the namespace may have changed.
            Noted::Role(denial) => {
                let namespace = self.pods.namespace(&workload.namespace);
                let now = namespace.and_then(|namespace| self.check(&subject, &namespace));
                let Err(denial) = now.unwrap_or(Err(denial)) else { return };
                if subject.parse::<RoleArn>().is_ok() {
                    draft.allow(workload, self.pattern(&subject));
                }
                let advice = self.advice_of_namespace(denial, &subject);
                ((FindingKind::Role, subject, denial.name()), advice)
            }
        };
        draft.count(workload, key, || advice, tally.count, Some(tally.last));
    }

    fn denial_now(&self, workload: &Workload, role: &str) -> Option<Denial> {
        self.check(role, &*self.pods.namespace(&workload.namespace)?)?.err()
    }

    fn check(&self, role: &str, namespace: &Namespace) -> Option<Result<(), Denial>> {
        Some(self.policy.check_namespace(&role.parse().ok()?, Some(namespace)))
    }

    fn workload(&self, pod: &Pod) -> Workload {
        Workload::of(pod, &self.node)
    }

    /// Returns the pattern that matches exactly this role; `None` if there is none. The path of a role may have stars, which match any
    /// text in a glob: whoever annotates a pod with such a role must not get a list that allows others.
    fn pattern(&self, role: &str) -> Option<RolePattern> {
        let pattern = match self.patterns {
            PatternFormat::Glob if role.contains('*') => return None,
            PatternFormat::Glob => role.to_owned(),
            PatternFormat::Regexp => regex::escape(role),
        };
        Some(RolePattern { role: role.to_owned(), pattern })
    }

    fn namespace(&self, name: &str, roles: BTreeMap<String, String>) -> ReportedNamespace {
        let namespace = self.pods.namespace(name);
        let list = namespace.as_ref().and_then(|namespace| namespace.allowed_roles.as_deref());
        let mut existing = list.and_then(|list| serde_json::from_str::<Vec<String>>(list).ok());
        let check = namespace.as_deref().map(|namespace| {
            let role = roles.keys().next().and_then(|role| role.parse().ok());
            role.map_or(Ok(()), |role| self.policy.check_namespace(&role, Some(namespace)))
        });
        let note = match (&namespace, check) {
            (None, _) => Some("the namespace has no pods here now, so its annotation is not known: keep the patterns that it has"),
            (_, Some(Err(Denial::BadNamespaceList(NamespaceList::Permitted, _)))) => {
                Some("the permitted annotation is not valid, and nothing is allowed until it is corrected or removed")
            }
            (_, Some(Err(Denial::BadNamespaceList(NamespaceList::Allowed, _)))) => {
                existing = None;
                Some("the annotation is not valid, so this value replaces it; check it for roles that other pods use")
            }
            _ => None,
        };
        let missing: Vec<_> = roles.into_values().collect();
        ReportedNamespace {
            name: name.to_owned(),
            annotation: self.allowed_roles.clone(),
            value: annotation_value(existing.as_deref(), &missing),
            existing,
            missing,
            note: note.map(str::to_owned),
        }
    }

    fn advice_of_namespace(&self, denial: Denial, role: &str) -> String {
        match denial {
            Denial::BadNamespaceList(..) => advice_of_denial(denial),
            _ if self.pattern(role).is_none() => STAR_IN_PATH.to_owned(),
            _ => format!("if pods of the namespace may have the role, add it to the annotation {} of the namespace", self.allowed_roles),
        }
    }
}

/// Returns the protocols in use, in the order of workloads and protocols.
fn protocols(mut uses: Vec<(Workload, CredentialProtocol, ProtocolUse)>, elapsed: Duration) -> Vec<ReportedProtocol> {
    uses.sort_by(|(a, of_a, _), (b, of_b, _)| (a, of_a).cmp(&(b, of_b)));
    let reported = |(Workload { namespace, kind, name }, protocol, used): (Workload, _, ProtocolUse)| ReportedProtocol {
        namespace: namespace.into(),
        kind: kind.into(),
        name: name.into(),
        protocol,
        requests: used.requests,
        credentials: used.credentials,
        last_seen_seconds: elapsed.saturating_sub(used.last).as_secs(),
    };
    uses.into_iter().map(reported).collect()
}

const STAR_IN_PATH: &str = "no glob pattern matches this role alone, because its path has a star, which matches any text: correct the role \
                            annotation, or use regular expressions (--namespace-restriction-format=regexp)";
const NEEDS_TOKENS: &str = "update the client or its SDK to a version that uses IMDSv2; until then, keep --imds-tokens=optional";
const ON_HOST_NETWORK: &str = "the pod reaches the real metadata service: remove hostNetwork, set --redirect=bpf and \
                               --host-network-pods=serve, or give the pod credentials in another way";
const DENIED_ON_HOST_NETWORK: &str = "its requests are refused: remove hostNetwork, set --host-network-pods=serve, or add its service account \
                                      to --host-network-exempt";
const EXEMPT_ON_HOST_NETWORK: &str = "the pod reaches the real metadata service, and the annotation has no effect: remove the annotation, or \
                                      remove the pod from --host-network-exempt";
const USES_NODE_ROLE: &str = "the pod uses the node's role, which --host-network-pods=serve or deny takes away: give the workload a role in \
                              its annotation and set --host-network-pods=serve, or add this item to --host-network-exempt";
const WITHOUT_ROLE: &str = "kube2iam gave this pod the node's role, and rolegate does not: name a role in the annotation of the pod, or \
                            give --default-role; if the pod only looks for a role, nothing has to be done";

/// Returns the advice for a refusal. Its cause is the reason of the finding.
fn advice_of_denial(denial: Denial) -> String {
    denial.advice().map_or_else(|| denial.with_advice(), Cow::into_owned)
}

fn advice_of_set(set: &str) -> &'static str {
    match set {
        "node-info" => "if its pods may read this, add the namespace to --node-info-namespaces",
        _ => "if pods may read this, use --metadata-profile=base",
    }
}

fn advice_of_refusal(reason: &str) -> &'static str {
    match reason {
        "path" => "rolegate never serves this path: give the pod what it needs in another way, such as a ConfigMap or a Secret",
        "host-network" => DENIED_ON_HOST_NETWORK,
        "other-role" => "configure the client to use the role that rolegate lists",
        "ambiguous-pod" | "unreadable-pod" => "see the log line with the event request-refused",
        "host" => "send requests to 169.254.169.254, with that name",
        "forwarded" => "send requests directly, not through a proxy",
        "token-version" => "request tokens at /latest/api/token",
        "method" | "malformed" => "no metadata client sends such requests; find out what in the pod does",
        _ => "see the log line with the event identity-objection",
    }
}
