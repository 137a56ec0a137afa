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

/// Whose roles count.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Counted<'a> {
    /// The resolved role of `--default-role`. The operator chose it, for pods of every namespace.
    pub default_role: Option<&'a RoleArn>,
    /// Whether nothing restricts the roles of namespaces.
    pub is_unrestricted: bool,
    /// Whether roles count that enforced restrictions would refuse.
    pub with_audited: bool,
}

/// Who uses a role.
#[derive(Debug)]
pub(super) struct RoleUsers {
    pub(super) role: RoleArn,
    /// By what a trust policy can tell apart.
    pub(super) groups: BTreeMap<UserGroup, GroupUsers>,
    /// The namespaces whose pods name the role, although no restriction allows it to them.
    pub(super) unrestricted: BTreeSet<String>,
    /// The namespaces of the pods, by their external ID. `None` is a request without one.
    pub(super) namespaces: BTreeMap<Option<String>, BTreeSet<String>>,
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
    /// Collects the roles of pods.
    pub(crate) fn of(pods: &Pods, policy: &Policy, counted: Counted<'_>) -> Self {
        let mut uses = Self::default();
        let mut unresolved: BTreeMap<(String, &'static str, String), BTreeSet<String>> = BTreeMap::new();
        for (pod, context) in pods.that_may_ask().1 {
            let (denial, advice) = match policy.decide(&pod, &context) {
                // Whoever may create pods chose this role. A policy for it would allow what the restrictions are there to refuse.
                Decision::Allow { audit: Some(denial), .. } if !counted.with_audited => (denial, denial.with_advice() + AUDITED),
                Decision::Allow { request, audit } => {
                    uses.add(&request, &pod.namespace, audit, counted);
                    continue;
                }
                Decision::Deny(Denial::NoRole) => continue,
                Decision::Deny(denial) => (denial, denial.with_advice()),
            };
            unresolved.entry((pod.namespace.clone(), denial.name(), advice)).or_default().insert(pod.name.clone());
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

    /// Adds a request of a pod of this namespace. `audit` is the denial that enforced restrictions would have caused.
    fn add(&mut self, request: &RoleRequest, namespace: &str, audit: Option<Denial>, counted: Counted<'_>) {
        let role = request.role();
        let user = |is_refused: bool| UserOf { namespace, is_unrestricted: is_refused || counted.is_unrestricted };
        let id = request.external_id().map(|id| id.as_str().to_owned());
        match request.source_role() {
            None => add(&mut self.direct, role, request, &user(audit.is_some()), counted, id),
            Some(source) => {
                // The external ID is for the target role alone.
                let is_refused = audit.is_some_and(|denial| !denial.is_about_target());
                add(&mut self.direct, source, request, &user(is_refused), counted, None);
                let targets = self.chained.entry(source.to_string()).or_default();
                // If the source is refused, nothing has checked the target.
                add(targets, role, request, &user(audit.is_some()), counted, id);
            }
        }
    }

    /// Returns the users of every role, once for each role that assumes it.
    pub(super) fn users(&self) -> impl Iterator<Item = &RoleUsers> {
        self.direct.values().chain(self.chained.values().flat_map(BTreeMap::values))
    }
}

/// A pod that uses a role.
struct UserOf<'a> {
    namespace: &'a str,
    /// Whether no enforced restriction allows the role to the namespace.
    is_unrestricted: bool,
}

const AUDITED: &str =
    ". The daemon gives the pods the role all the same (--namespace-restrictions=audit). To include such roles, give --include-audited";

const ON_HOST_NETWORK: &str =
    "the pods have hostNetwork and get no role. To fix: give the daemon's --host-network-pods=serve, if it has it";

fn add(
    roles: &mut BTreeMap<String, RoleUsers>,
    role: &RoleArn,
    request: &RoleRequest,
    user: &UserOf<'_>,
    counted: Counted<'_>,
    external_id: Option<String>,
) {
    let is_default = counted.default_role == Some(role);
    let tag = |tag: SessionTag| {
        let found = request.tags().iter().find(|sent| sent.key() == tag.key() && !is_default);
        found.map(|sent| (sent.key(), sent.value().to_owned()))
    };
    let group = [SessionTag::Cluster, SessionTag::Namespace].into_iter().filter_map(tag).collect();
    let users = roles.entry(role.to_string()).or_insert_with(|| RoleUsers {
        role: role.clone(),
        groups: BTreeMap::new(),
        unrestricted: BTreeSet::new(),
        namespaces: BTreeMap::new(),
    });
    if !is_default && user.is_unrestricted {
        users.unrestricted.insert(user.namespace.to_owned());
    }
    users.namespaces.entry(external_id.clone()).or_default().insert(user.namespace.to_owned());
    let users = users.groups.entry(group).or_default();
    users.service_accounts.extend(tag(SessionTag::ServiceAccount).map(|(_, value)| value));
    users.external_ids.insert(external_id);
}
