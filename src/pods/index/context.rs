//! Namespaces and service accounts: what decisions about a pod depend on besides the pod itself.

use std::sync::Arc;

use super::{Index, Namespace, Pod, PodContext, ServiceAccount};

impl Index {
    /// Sets what is known about a namespace.
    pub fn apply_namespace(&mut self, namespace: Namespace) {
        self.namespaces.insert(namespace.name.clone(), Arc::new(namespace));
    }

    /// Forgets a namespace.
    pub fn delete_namespace(&mut self, name: &str) {
        self.namespaces.remove(name);
    }

    /// Returns what is known about a namespace.
    pub fn namespace(&self, name: &str) -> Option<Arc<Namespace>> {
        self.namespaces.get(name).cloned()
    }

    /// Sets what is known about a service account.
    pub fn apply_service_account(&mut self, account: ServiceAccount) {
        let name = (account.namespace.clone(), account.name.clone());
        self.forbidden_service_accounts.remove(&name);
        self.service_accounts.insert(name, Arc::new(account));
    }

    /// Forgets a service account.
    pub fn delete_service_account(&mut self, namespace: &str, name: &str) {
        let name = (namespace.to_owned(), name.to_owned());
        self.forbidden_service_accounts.remove(&name);
        self.service_accounts.remove(&name);
    }

    /// Records that the daemon has no permission to read a service account. What is known about it still holds.
    pub fn forbid_service_account(&mut self, namespace: &str, name: &str) {
        self.forbidden_service_accounts.insert((namespace.to_owned(), name.to_owned()));
    }

    /// Returns what is known about the objects that decisions about a pod depend on.
    pub fn context(&self, pod: &Pod) -> PodContext {
        self.context_of(&pod.namespace, &pod.service_account)
    }

    /// Returns what is known about a namespace, and about a service account in it.
    pub(in crate::pods) fn context_of(&self, namespace: &str, service_account: &str) -> PodContext {
        if self.service_accounts.is_empty() && self.forbidden_service_accounts.is_empty() {
            return PodContext { namespace: self.namespace(namespace), ..PodContext::default() };
        }
        let name = (namespace.to_owned(), service_account.to_owned());
        PodContext {
            namespace: self.namespace(namespace),
            service_account: self.service_accounts.get(&name).cloned(),
            service_account_forbidden: self.forbidden_service_accounts.contains(&name),
        }
    }
}
