//! Which roles are in use, and by whom: what the decisions about pods would send to STS.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use crate::advice::Advise as _;
use crate::config::session::SessionTag;
use crate::pods::{HostNetworkTreatment, Pods};
use crate::policy::{Decision, Denial, Policy, RoleRequest};
use crate::role::RoleArn;
use crate::text::printable;

/// The roles in use.
#[derive(Debug, Default)]
pub(crate) struct RolesInUse {
    /// The roles that the nodes (or the intermediate role) assume, by ARN.
    pub(super) direct: BTreeMap<String, RoleUsers>,
    /// The target roles, by the ARNs of the role that assumes them and of their own.
    pub(super) chained: BTreeMap<String, BTreeMap<String, RoleUsers>>,
    /// The pods whose role is not in use, although they name one.
    pub(super) unresolved: BTreeSet<UnresolvedPods>,
}

/// Who uses a role.
#[derive(Debug)]
pub(super) struct RoleUsers {
    pub(super) role: RoleArn,
    /// By what a trust policy can tell apart.
    pub(super) groups: BTreeMap<UserGroup, GroupUsers>,
}

/// The session tags that are the same for all pods of a namespace: of the cluster and of the namespace, by key. Empty without session
/// tags, and for the default role, which pods of every namespace may get.
pub(super) type UserGroup = BTreeMap<&'static str, String>;

/// The users of a role in a group.
#[derive(Debug, Default)]
pub(super) struct GroupUsers {
    /// The session tags with the names of service accounts.
    pub(super) service_accounts: BTreeSet<String>,
    /// The external IDs. `None` is a request without one.
    pub(super) external_ids: BTreeSet<Option<String>>,
}

/// Pods of a namespace that name a role and may not have it, for one reason.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct UnresolvedPods {
    namespace: String,
    reason: &'static str,
    advice: String,
    pods: Vec<String>,
}

/// How many pods a warning names.
const NAMED: usize = 3;

impl fmt::Display for UnresolvedPods {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let named = self.pods.iter().take(NAMED).map(String::as_str).collect::<Vec<_>>().join(", ");
        let more = if self.pods.len() > NAMED { format!(" and {} more", self.pods.len() - NAMED) } else { String::new() };
        let Self { namespace, reason, advice, .. } = self;
        write!(f, "left out: {} of namespace {} ({reason}): {advice}", printable(&named) + &more, printable(namespace))
    }
}

impl RolesInUse {
    /// Collects the roles of pods. `default_role` is the resolved role of `--default-role`.
    pub(crate) fn of(pods: &Pods, policy: &Policy, default_role: Option<&RoleArn>) -> Self {
        let mut uses = Self::default();
        let mut unresolved: BTreeMap<(String, &'static str, String), BTreeSet<String>> = BTreeMap::new();
        for (pod, context) in pods.that_may_ask().1 {
            match policy.decide(&pod, &context) {
                Decision::Allow { request, .. } => uses.add(&request, default_role),
                Decision::Deny(Denial::NoRole) => {}
                Decision::Deny(denial) => {
                    let key = (pod.namespace.clone(), denial.name(), denial.with_advice());
                    unresolved.entry(key).or_default().insert(pod.name.clone());
                }
            }
        }
        for pod in pods.in_host_network().into_iter().filter(|pod| pod.role.is_some() && !pod.finished) {
            if pods.host_network_treatment(&pod) != HostNetworkTreatment::Served {
                let key = (pod.namespace.clone(), "host-network", ON_HOST_NETWORK.to_owned());
                unresolved.entry(key).or_default().insert(pod.name.clone());
            }
        }
        let listed = |((namespace, reason, advice), pods): ((String, &'static str, String), BTreeSet<String>)| UnresolvedPods {
            namespace,
            reason,
            advice,
            pods: pods.into_iter().collect(),
        };
        uses.unresolved = unresolved.into_iter().map(listed).collect();
        uses
    }

    fn add(&mut self, request: &RoleRequest, default_role: Option<&RoleArn>) {
        let role = request.role();
        match request.source_role() {
            None => add(&mut self.direct, role, request, default_role, request.external_id().map(|id| id.as_str().to_owned())),
            Some(source) => {
                // The external ID is for the target role alone.
                add(&mut self.direct, source, request, default_role, None);
                let id = request.external_id().map(|id| id.as_str().to_owned());
                add(self.chained.entry(source.to_string()).or_default(), role, request, default_role, id);
            }
        }
    }
}

const ON_HOST_NETWORK: &str =
    "the pods have hostNetwork and get no role. To fix: give the daemon's --host-network-pods=serve, if it has it";

fn add(
    roles: &mut BTreeMap<String, RoleUsers>,
    role: &RoleArn,
    request: &RoleRequest,
    default_role: Option<&RoleArn>,
    external_id: Option<String>,
) {
    let tag = |tag: SessionTag| {
        let found = request.tags().iter().find(|sent| sent.key() == tag.key() && default_role != Some(role));
        found.map(|sent| (sent.key(), sent.value().to_owned()))
    };
    let group = [SessionTag::Cluster, SessionTag::Namespace].into_iter().filter_map(tag).collect();
    let users = roles.entry(role.to_string()).or_insert_with(|| RoleUsers { role: role.clone(), groups: BTreeMap::new() });
    let users = users.groups.entry(group).or_default();
    users.service_accounts.extend(tag(SessionTag::ServiceAccount).map(|(_, value)| value));
    users.external_ids.insert(external_id);
}
