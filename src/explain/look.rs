//! Explains a pod: first whether requests from its addresses are the pod's, then its role.

use std::net::IpAddr;
use std::sync::Arc;

use super::{By, Report, ReportStep, ReportedDecision, StsParameters, refusal};
use crate::advice::Advise as _;
use crate::config::HostNetworkMode;
use crate::config::explain_command::PodReference;
use crate::pods::{HostNetworkTreatment, Lookup, Objection, Pod, PodContext, Pods};
use crate::policy::Explanation;
use crate::policy::trace::StepVerdict;
use crate::policy::{self, Policy, RoleRequest};

/// The proxy's code for an address that no pod has, used here for a pod without an address.
const UNKNOWN_POD: &str = "unknown-pod";
/// The proxy's code for a pod in the node's network that is not served.
const HOST_NETWORK: &str = "host-network";
/// The proxy's code for a pod in the node's network that reaches the real metadata service in every mode.
const HOST_NETWORK_EXEMPT: &str = "host-network-exempt";
/// Refusals of requests for metadata that do not apply to Pod Identity.
pub(super) const HOST_NETWORKS: [&str; 2] = [HOST_NETWORK, HOST_NETWORK_EXEMPT];
/// The proxy's code while the list of pods is not known.
const PODS_NOT_LISTED: &str = "pods-not-listed";
const UNREADABLE_POD: &str = "unreadable-pod";
/// The code while the daemon does not know its own AWS identity.
const IDENTITY_UNKNOWN: &str = "identity-unknown";
/// The proxy's code for an address that several pods claim.
const AMBIGUOUS_POD: &str = "ambiguous-pod";

/// The reason why requests from the pod's addresses are not the pod's.
struct Unidentified {
    reason: &'static str,
    message: String,
}

/// Explains a pod from the known pods and a policy. Returns the request as well, if the pod may have its role.
pub(crate) fn look(name: &PodReference, node: &str, by: By, pods: &Pods, policy: &Policy) -> (Report, Option<RoleRequest>) {
    let mut report = Report::unknown(name, node, by, UNKNOWN_POD, String::new());
    let Some((pod, context)) = pods.named(name.namespace(), name.name()) else {
        if by == By::Daemon && !pods.is_listed() {
            report.reason = Some(PODS_NOT_LISTED.to_owned());
            report.message = "the daemon has not received the list of this node's pods yet, and serves none of them. To fix: check its \
                              connection to the Kubernetes API, or ask again"
                .to_owned();
            return (report, None);
        }
        report.message = format!(
            "no pod {name} is known on node {node}. To fix: check both names, and ask the daemon of the pod's node (kubectl get pod \
             --namespace {} {} --output wide)",
            name.namespace(),
            name.name()
        );
        return (report, None);
    };
    look_at(report, (&pod, &context), pods, policy)
}

/// Explains a known pod, of which the report has the names.
pub(crate) fn look_at(
    mut report: Report,
    (pod, context): (&Arc<Pod>, &PodContext),
    pods: &Pods,
    policy: &Policy,
) -> (Report, Option<RoleRequest>) {
    let (by, node) = (report.by, report.node.clone());
    let identified = identity(pod, &node, pods, &mut report);
    let Explanation { steps, decision } = policy.explain(pod, context);
    report.policy = steps
        .into_iter()
        .map(|step| ReportStep { what: step.what.name().to_owned(), source: step.source, detail: step.detail, verdict: step.verdict })
        .collect();
    if policy.names_no_role(pod, context) && !matches!(decision, policy::Decision::Deny(policy::Denial::NoRole)) {
        report.notes.push("the pod names no role: the role is that of --default-role".to_owned());
    }
    let request = match (identified, decision) {
        (Err(unidentified), decision) => {
            if let policy::Decision::Deny(denial) = decision {
                report.notes.push(format!("the role would be refused as well: {}", denial.with_advice()));
            }
            (report.decision, report.reason) = (ReportedDecision::Denied, Some(unidentified.reason.to_owned()));
            report.message = unidentified.message;
            return (report, None);
        }
        (Ok(()), policy::Decision::Deny(denial)) => {
            report.decision = ReportedDecision::Denied;
            (report.reason, report.message) = refusal(denial);
            return (report, None);
        }
        (Ok(()), policy::Decision::Allow { request, audit }) => {
            if let Some(denial) = audit {
                report
                    .notes
                    .push(format!("served only because of audit mode; enforced restrictions would refuse: {}", denial.with_advice()));
            }
            request
        }
    };
    (report.decision, report.reason) = (ReportedDecision::Allowed, None);
    report.message = format!("the pod may use {}", request.role());
    match by {
        _ if policy.knows_node() => {}
        By::Daemon => {
            (report.decision, report.reason) = (ReportedDecision::Unknown, Some(IDENTITY_UNKNOWN.to_owned()));
            report.message = format!(
                "{}, but the daemon does not know its own AWS identity yet, and pods get no credentials before. To fix: see the daemon's \
                 log, or ask again with --assume",
                report.message
            );
        }
        By::Cluster => {
            report.notes.push("the AWS identity that calls STS is not known, so the role was not compared with it".to_owned());
        }
    }
    report.request = Some(StsParameters::of(&request));
    (report, Some(request))
}

/// Checks that at least one address belongs to the pod alone.
fn identity(pod: &Arc<Pod>, node: &str, pods: &Pods, report: &mut Report) -> Result<(), Unidentified> {
    let mut note = |what: &str, source: &str, detail: String, verdict| {
        report.identity.push(ReportStep { what: what.to_owned(), source: source.to_owned(), detail, verdict });
    };
    note("pod", "", format!("known on node {node}, UID {}", pod.uid.0), StepVerdict::Passed);
    if pod.finished {
        note("phase", "", "Succeeded or Failed".to_owned(), StepVerdict::Refused);
        let message = "the pod has finished and has no address. To fix: ask about the pod that replaces it";
        return Err(Unidentified { reason: UNKNOWN_POD, message: message.to_owned() });
    }
    let phase =
        if pod.terminating { "terminating: served while its containers run, at most for its grace period" } else { "Pending or Running" };
    note("phase", "", phase.to_owned(), StepVerdict::Passed);
    if pod.host_network {
        return in_host_network(pod, pods, report);
    }
    note("network", "", "pod network".to_owned(), StepVerdict::Passed);
    let mut first = None;
    let mut identified = false;
    for ip in &pod.ips {
        let source = ip.to_string();
        match address(pod, *ip, pods) {
            Ok(()) => {
                identified = true;
                note("address", &source, "belongs to this pod only".to_owned(), StepVerdict::Passed);
            }
            Err((detail, unidentified)) => {
                note("address", &source, detail, StepVerdict::Refused);
                first.get_or_insert(unidentified);
            }
        }
    }
    match first {
        Some(unidentified) if identified => {
            report.notes.push(format!("requests from one of the pod's addresses are refused: {}", unidentified.message));
            Ok(())
        }
        Some(unidentified) => Err(unidentified),
        None if identified => Ok(()),
        None => {
            note("address", "", "the pod has none".to_owned(), StepVerdict::Refused);
            let message = format!(
                "the pod has no address: its network is not set up yet, or its containers have ended. To fix: see kubectl describe pod \
                 --namespace {} {}",
                pod.namespace, pod.name
            );
            Err(Unidentified { reason: UNKNOWN_POD, message })
        }
    }
}

/// Checks that a pod in the node's network is identified and served.
fn in_host_network(pod: &Arc<Pod>, pods: &Pods, report: &mut Report) -> Result<(), Unidentified> {
    let (rules, mode) = (pods.host_network_rules(), pods.host_network_rules().mode().name());
    let treatment = rules.treatment(pod);
    let mut note = |source: &str, detail: &str, verdict| {
        report.identity.push(ReportStep { what: "network".to_owned(), source: source.to_owned(), detail: detail.to_owned(), verdict });
    };
    let flag = format!("--host-network-pods={mode}");
    let refused = |reason, message: String| Err(Unidentified { reason, message });
    match treatment {
        HostNetworkTreatment::Served => {
            note(&flag, "hostNetwork; identified by the pod's control group", StepVerdict::Passed);
            Ok(())
        }
        HostNetworkTreatment::Denied => {
            note(&flag, "hostNetwork; requests are refused", StepVerdict::Refused);
            refused(
                HOST_NETWORK,
                "the pod has hostNetwork, and its requests are refused (--host-network-pods=deny). To fix: remove hostNetwork, set \
                 --host-network-pods=serve, or add the pod's service account to --host-network-exempt"
                    .to_owned(),
            )
        }
        HostNetworkTreatment::Exempt => {
            let item =
                rules.exemption(pod).map_or_else(|| "the daemon's own pod".to_owned(), |item| format!("--host-network-exempt={item}"));
            note(&item, "hostNetwork; requests reach the real metadata service", StepVerdict::Refused);
            refused(
                HOST_NETWORK_EXEMPT,
                format!(
                    "the pod has hostNetwork and is exempt from redirection ({item}), so it reaches the real metadata service and has the \
                     node's role. To fix: if it should have a role of its own, remove it from --host-network-exempt"
                ),
            )
        }
        HostNetworkTreatment::Ignored => {
            note(&flag, "hostNetwork; requests reach the real metadata service", StepVerdict::Refused);
            if rules.mode() != HostNetworkMode::Ignore {
                report.notes.push(format!("{flag} has no effect, because --redirect=bpf is not in effect on this node"));
            }
            let refused_mode = rules.exemption(pod).map_or_else(
                || "with --redirect=bpf, --host-network-pods=serve gives the pod its own role, and deny refuses its requests".to_owned(),
                |item| format!("the pod is exempt (--host-network-exempt={item}), so this is the same in every mode"),
            );
            report.notes.push(refused_mode);
            refused(
                HOST_NETWORK,
                "the pod has hostNetwork, so its requests reach the real metadata service, and it has the node's role. To fix: remove \
                 hostNetwork, set --redirect=bpf and --host-network-pods=serve, or give the pod credentials in another way"
                    .to_owned(),
            )
        }
    }
}

/// Checks that an address belongs to the pod. Otherwise returns the detail of the step, and the reason.
fn address(pod: &Arc<Pod>, ip: IpAddr, pods: &Pods) -> Result<(), (String, Unidentified)> {
    let name = |pod: &Arc<Pod>| format!("{}/{}", pod.namespace, pod.name);
    match pods.by_ip(ip) {
        Lookup::Found(found, _) if found.uid == pod.uid => Ok(()),
        Lookup::Found(found, _) => {
            let other = name(&found);
            let message = format!("the pod is terminating, and its address {ip} now belongs to pod {other}. To fix: ask about that pod");
            Err((format!("now belongs to pod {other}"), Unidentified { reason: AMBIGUOUS_POD, message }))
        }
        Lookup::Ambiguous(claimants) => {
            let mut others: Vec<_> = claimants.iter().filter(|other| other.uid != pod.uid).map(name).collect();
            others.sort();
            let others = others.join(", ");
            let message = format!(
                "{others} claims the address {ip} as well, so no pod is served from it. To fix: delete the pod whose network no longer \
                 exists"
            );
            Err((format!("also claimed by {others}"), Unidentified { reason: AMBIGUOUS_POD, message }))
        }
        Lookup::Unreadable(other) => {
            let whose =
                if other.uid == pod.uid { "the pod".to_owned() } else { format!("pod {}, which has the address {ip}", name(&other)) };
            let message =
                format!("rolegate cannot read the object of {whose}, so no pod is served from the address. To fix: see the daemon's log");
            Err((format!("belongs to {}, whose object cannot be read", name(&other)), Unidentified { reason: UNREADABLE_POD, message }))
        }
        Lookup::Objected(other, objection) => {
            let message = format!("{}: {}", name(&other), objected(objection));
            Err((objected(objection).to_owned(), Unidentified { reason: objection.name(), message }))
        }
        Lookup::Unknown if pods.is_node(ip) => {
            let message = format!(
                "the pod's address {ip} is also an address of the node, so its requests look like the node's. To fix: check the node's CNI"
            );
            Err(("an address of the node".to_owned(), Unidentified { reason: UNKNOWN_POD, message }))
        }
        // The pod has gone since it was looked up.
        Lookup::Unknown => {
            let message = format!("no pod has the address {ip} now: the pod was just deleted. To fix: ask again");
            Err(("no pod has it now".to_owned(), Unidentified { reason: UNKNOWN_POD, message }))
        }
    }
}

/// Returns what the node found that contradicts a pod's claim to an address.
fn objected(objection: Objection) -> &'static str {
    match objection {
        Objection::LinkChanged => {
            "the network interface, bridge port or MAC address behind the address is not the pod's; no pod is served from it until the \
             Kubernetes API reports a new pod network, or the pod's own link is back"
        }
        Objection::OtherPodAttached => {
            "a CNI result assigns the address to another pod; no pod is served from it until the Kubernetes API agrees with the CNI \
             result"
        }
        Objection::BeforeBoot => {
            "all containers that the Kubernetes API reports for the pod started before the node was booted; waiting for the kubelet to \
             report the current ones"
        }
        Objection::Stale => {
            "no contact with the Kubernetes API for longer than --max-staleness, and nothing on the node confirms the address"
        }
        Objection::OtherPodConnected => "a process in the control group of another pod connected from the address",
        Objection::NotInHostNetwork => "a process of the pod connected from the node's network",
    }
}
