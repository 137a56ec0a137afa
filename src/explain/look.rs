//! The look itself: first whether requests from the pod's addresses are told to be its own, then which role it may have.

use std::net::IpAddr;
use std::sync::Arc;

use super::{By, Report, ReportStep, ReportedDecision, StsParameters, refusal};
use crate::config::explain_command::PodReference;
use crate::pods::{Lookup, Objection, Pod, Pods};
use crate::policy::Explanation;
use crate::policy::trace::StepVerdict;
use crate::policy::{self, Policy, RoleRequest};

/// What the proxy calls an address that no pod has. A pod that has none is told by it.
const UNKNOWN_POD: &str = "unknown-pod";
const UNREADABLE_POD: &str = "unreadable-pod";
/// What it is called, to the daemon, that nobody gets anything before it knows itself.
const IDENTITY_UNKNOWN: &str = "identity-unknown";
/// What it calls one that several have.
const AMBIGUOUS_POD: &str = "ambiguous-pod";

/// Why requests are not told to be the pod's.
struct Unidentified {
    reason: &'static str,
    message: String,
}

/// Looks at a pod by what is known of pods and by a policy. The request is there where the pod may have its role.
pub(crate) fn look(name: &PodReference, node: &str, by: By, pods: &Pods, policy: &Policy) -> (Report, Option<RoleRequest>) {
    let mut report = Report::unknown(name, node, by, UNKNOWN_POD, String::new());
    let Some((pod, context)) = pods.named(name.namespace(), name.name()) else {
        report.message = format!(
            "no pod {name} is known on node {node}; check both names, and ask on the pod's own node: \
             kubectl get pod --namespace {} {} --output wide names it",
            name.namespace(),
            name.name()
        );
        return (report, None);
    };
    let identified = identity(&pod, node, pods, &mut report);
    let Explanation { steps, decision } = policy.explain(&pod, &context);
    report.policy = steps
        .into_iter()
        .map(|step| ReportStep { what: step.what.name().to_owned(), source: step.source, detail: step.detail, verdict: step.verdict })
        .collect();
    let request = match (identified, decision) {
        (Err(unidentified), decision) => {
            if let policy::Decision::Deny(denial) = decision {
                report.notes.push(format!("its role would be refused, too: {denial}"));
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
                report.notes.push(format!("served in audit mode alone; enforced restrictions would refuse: {denial}"));
            }
            request
        }
    };
    (report.decision, report.reason) = (ReportedDecision::Allowed, None);
    report.message = format!("the pod may have {}", request.role());
    match by {
        _ if policy.knows_node() => {}
        By::Daemon => {
            (report.decision, report.reason) = (ReportedDecision::Unknown, Some(IDENTITY_UNKNOWN.to_owned()));
            report.message = format!(
                "{} as far as it can be told, but no pod gets credentials before STS has told who the daemon is at AWS; the daemon's log, \
                 and --assume, say why it has not",
                report.message
            );
        }
        By::Cluster => {
            report.notes.push("who asks STS is not known, and whether the role is the node's own was not compared with it".to_owned());
        }
    }
    report.request = Some(StsParameters::of(&request));
    (report, Some(request))
}

/// Whether one address of the pod at least is told to be its own.
fn identity(pod: &Arc<Pod>, node: &str, pods: &Pods, report: &mut Report) -> Result<(), Unidentified> {
    let mut note = |what: &str, source: &str, detail: String, verdict| {
        report.identity.push(ReportStep { what: what.to_owned(), source: source.to_owned(), detail, verdict });
    };
    note("pod", "", format!("known on node {node}, with the UID {}", pod.uid.0), StepVerdict::Passed);
    if pod.finished {
        note("phase", "", "Succeeded or Failed: it has no address any more".to_owned(), StepVerdict::Refused);
        let message = "the pod has finished, and has no address any more; ask about the pod that runs in its place";
        return Err(Unidentified { reason: UNKNOWN_POD, message: message.to_owned() });
    }
    let phase = if pod.terminating {
        "its deletion has begun; it is served while its containers run, and no longer than its grace period"
    } else {
        "not finished"
    };
    note("phase", "", phase.to_owned(), StepVerdict::Passed);
    if pod.host_network {
        note("network", "", "the node's own (hostNetwork)".to_owned(), StepVerdict::Refused);
        let message = "the pod is in the node's network and cannot be told from the node; take hostNetwork out of its spec, or give \
                       its process credentials in another way";
        return Err(Unidentified { reason: UNKNOWN_POD, message: message.to_owned() });
    }
    note("network", "", "its own".to_owned(), StepVerdict::Passed);
    let mut first = None;
    let mut identified = false;
    for ip in &pod.ips {
        let source = ip.to_string();
        match address(pod, *ip, pods) {
            Ok(()) => {
                identified = true;
                note("address", &source, "this pod alone has it".to_owned(), StepVerdict::Passed);
            }
            Err((detail, unidentified)) => {
                note("address", &source, detail, StepVerdict::Refused);
                first.get_or_insert(unidentified);
            }
        }
    }
    match first {
        Some(unidentified) if identified => {
            report.notes.push(format!("requests from one of its addresses are refused: {}", unidentified.message));
            Ok(())
        }
        Some(unidentified) => Err(unidentified),
        None if identified => Ok(()),
        None => {
            note("address", "", "none of its own: not yet, or not any more".to_owned(), StepVerdict::Refused);
            let message = format!(
                "the pod has no address of its own, because its network is not there yet, or its containers have ended; kubectl describe \
                 pod --namespace {} {} says what it waits for",
                pod.namespace, pod.name
            );
            Err(Unidentified { reason: UNKNOWN_POD, message })
        }
    }
}

/// Whether requests from one of its addresses are told to be the pod's; if not, what is so, and what to do.
fn address(pod: &Arc<Pod>, ip: IpAddr, pods: &Pods) -> Result<(), (String, Unidentified)> {
    let name = |pod: &Arc<Pod>| format!("{}/{}", pod.namespace, pod.name);
    match pods.by_ip(ip) {
        Lookup::Found(found, _) if found.uid == pod.uid => Ok(()),
        Lookup::Found(found, _) => {
            let other = name(&found);
            let message = format!("the pod is being deleted, and its address {ip} is that of pod {other} by now; ask about that one");
            Err((format!("pod {other} has it by now"), Unidentified { reason: AMBIGUOUS_POD, message }))
        }
        Lookup::Ambiguous(claimants) => {
            let mut others: Vec<_> = claimants.iter().filter(|other| other.uid != pod.uid).map(name).collect();
            others.sort();
            let others = others.join(", ");
            let message = format!(
                "the address {ip} is claimed by {others} as well, and none of them is served from it; delete the pod whose network \
                 is not there any more"
            );
            Err((format!("claimed by {others} as well"), Unidentified { reason: AMBIGUOUS_POD, message }))
        }
        Lookup::Unreadable(other) => {
            let whose =
                if other.uid == pod.uid { "the pod".to_owned() } else { format!("pod {}, which has the address {ip}", name(&other)) };
            let message = format!("{whose} is stored in a form that cannot be read, and nobody is served from there; see the daemon's log");
            Err((format!("held by {}, whose object cannot be read", name(&other)), Unidentified { reason: UNREADABLE_POD, message }))
        }
        Lookup::Objected(other, objection) => {
            let message = format!("{}: {}", name(&other), objected(objection));
            Err((objected(objection).to_owned(), Unidentified { reason: objection.name(), message }))
        }
        Lookup::Unknown if pods.is_node(ip) => {
            let message =
                format!("the pod's address {ip} is the node's own, and the pod cannot be told from the node; see to the node's CNI");
            Err(("the node's own".to_owned(), Unidentified { reason: UNKNOWN_POD, message }))
        }
        // The pod has gone since it was looked up.
        Lookup::Unknown => {
            let message = format!("nobody has the address {ip} now: the pod has just gone; ask again");
            Err(("nobody has it now".to_owned(), Unidentified { reason: UNKNOWN_POD, message }))
        }
    }
}

/// What the node found that contradicts a pod's claim to an address.
fn objected(objection: Objection) -> &'static str {
    match objection {
        Objection::LinkChanged => {
            "the network interface, bridge port or MAC address that leads to the address is not the pod's; no pod is served from it \
             until the Kubernetes API reports a new network of the pod, or the pod's own link is back"
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
    }
}
