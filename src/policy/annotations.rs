//! Selection of the role that a pod requests: the pod's annotation, its service account's annotation, then the default role.
//! The first one that is set applies. If it is malformed, the others are not used.
//!
//! The object whose annotation names the role may also name a target role, which the role's session assumes. The target role of
//! one object is never combined with the role of another, because whoever wrote one of the two did not ask for the other: a pod
//! that names only a target role is refused, and a pod that names its own role uses nothing of its service account.

use super::denial::{Denial, RoleMistake, RoleSource};
use super::trace::{Trace, What};
use super::{Policy, Rules};
use crate::config::ServiceAccountRoles;
use crate::pods::{Pod, PodContext, ServiceAccount};
use crate::role::{MAX_ARN_LENGTH, ParseError, RoleArn};
use crate::text::quoted;

impl Policy {
    /// Returns the role that the pod requests and, if there is one, the target role, which the session of that role assumes.
    pub(super) fn roles(&self, pod: &Pod, context: &PodContext, trace: &mut impl Trace) -> Result<(RoleArn, Option<RoleArn>), Denial> {
        let of_pod = |key| move || format!("the {key} annotation of pod {}/{}", pod.namespace, pod.name);
        if let Some(text) = &pod.role {
            let role = self.rules.read(What::Role, text, RoleSource::Pod, of_pod("role"), trace)?;
            let target = self.rules.read_target(pod.target_role.as_deref(), RoleSource::PodTarget, of_pod("target-role"), trace)?;
            return Ok((role, target));
        }
        trace.skip(What::Role, of_pod("role"), || "not set".to_owned());
        if pod.target_role.is_some() {
            let denial = Denial::TargetWithoutRole(RoleSource::PodTarget);
            return trace.check(What::TargetRole, of_pod("target-role"), Err(denial), |_| String::new());
        }
        let of_account = |key| move || format!("the {key} annotation of service account {}/{}", pod.namespace, pod.service_account);
        match self.service_account(pod, context) {
            Ok(None) => trace.skip(What::Role, of_account("role"), || self.why_no_account(pod)),
            Ok(Some(account)) => {
                let named = match (&account.role, &account.eks_role) {
                    (Some(text), _) => Some((text, RoleSource::ServiceAccount, "role")),
                    (None, eks_role) => {
                        trace.skip(What::Role, of_account("role"), || "not set".to_owned());
                        let is_read = self.rules.service_accounts == ServiceAccountRoles::OwnAndEks;
                        if eks_role.is_some() && !is_read {
                            trace.skip(What::Role, of_account("EKS role"), || "not read: --eks-role-annotation is off".to_owned());
                        }
                        eks_role.as_ref().filter(|_| is_read).map(|text| (text, RoleSource::EksServiceAccount, "EKS role"))
                    }
                };
                let (source, place) = (RoleSource::ServiceAccountTarget, of_account("target-role"));
                if let Some((text, of_role, key)) = named {
                    let role = self.rules.read(What::Role, text, of_role, of_account(key), trace)?;
                    let target = self.rules.read_target(account.target_role.as_deref(), source, place, trace)?;
                    return Ok((role, target));
                }
                if account.target_role.is_some() {
                    return trace.check(What::TargetRole, place, Err(Denial::TargetWithoutRole(source)), |_| String::new());
                }
            }
            Err(denial) => return trace.check(What::Role, of_account("role"), Err(denial), |_| String::new()),
        }
        let default = self.rules.default_role.clone().ok_or(Denial::NoRole);
        let role = trace.check(What::Role, || "--default-role".to_owned(), default, RoleArn::to_string)?;
        Ok((role, None))
    }

    /// Whether neither the pod nor its service account names a role, so that the pod has the default role, if any.
    pub fn names_no_role(&self, pod: &Pod, context: &PodContext) -> bool {
        let names = |account: &ServiceAccount| {
            account.role.is_some() || (account.eks_role.is_some() && self.rules.service_accounts == ServiceAccountRoles::OwnAndEks)
        };
        pod.role.is_none() && self.service_account(pod, context).is_ok_and(|account| !account.is_some_and(names))
    }

    /// Returns the service account that may name the pod's role; `None` if service accounts do not apply.
    pub(super) fn service_account<'a>(&self, pod: &Pod, context: &'a PodContext) -> Result<Option<&'a ServiceAccount>, Denial> {
        // Static pods have no service account.
        if self.rules.service_accounts == ServiceAccountRoles::Off || pod.service_account.is_empty() {
            return Ok(None);
        }
        match context.service_account.as_deref() {
            Some(account) => Ok(Some(account)),
            // The service account may name a role, and waiting would not make it readable.
            None if context.service_account_forbidden => Err(Denial::ServiceAccountsForbidden),
            None => Err(Denial::ServiceAccountUnknown),
        }
    }

    fn why_no_account(&self, pod: &Pod) -> String {
        let why =
            if pod.service_account.is_empty() { "the pod has no service account" } else { "not read: --service-account-roles is off" };
        why.to_owned()
    }
}

impl Rules {
    fn read(
        &self,
        what: What,
        text: &str,
        source: RoleSource,
        place: impl FnOnce() -> String,
        trace: &mut impl Trace,
    ) -> Result<RoleArn, Denial> {
        let read = self.parse(text).map_err(|mistake| Denial::BadRole(source, mistake));
        trace.check(what, place, read, |role| format!("{} is {role}", quoted(text)))
    }

    /// Reads an annotation with a target role, if it is set.
    fn read_target(
        &self,
        text: Option<&str>,
        source: RoleSource,
        place: impl FnOnce() -> String,
        trace: &mut impl Trace,
    ) -> Result<Option<RoleArn>, Denial> {
        text.map(|text| self.read(What::TargetRole, text, source, place, trace)).transpose()
    }

    fn parse(&self, text: &str) -> Result<RoleArn, RoleMistake> {
        match &self.base {
            _ if text.is_empty() => Err(RoleMistake::Empty),
            _ if text.len() > MAX_ARN_LENGTH => Err(RoleMistake::Form(ParseError::TooLong)),
            _ if text.contains(char::is_control) => Err(RoleMistake::ControlCharacters),
            _ if text.contains(char::is_whitespace) => Err(RoleMistake::Spaces),
            _ if text.starts_with("arn:") => text.parse().map_err(RoleMistake::Form),
            Some(base) => base.complete(text).map_err(RoleMistake::Form),
            None => Err(RoleMistake::NoBaseArn),
        }
    }
}
