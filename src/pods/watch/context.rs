//! The namespaces and service accounts that decisions about pods depend on, each watched while a pod on this node needs it.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::ControlFlow;

use futures_util::StreamExt as _;
use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;
use tokio_util::sync::CancellationToken;
use tracing::warn;

use super::fields::Annotation;
use super::follow::{Selection, WatchEvent, follow};
use super::objects::{ObjectMeta, OnlyMetadata};
use super::{MAX_LIST, MAX_ROLE, PodWatch};
use crate::config::AnnotationKeys;
use crate::kubernetes::client::encode;
use crate::log_once::Condition;
use crate::pods::{Namespace, ServiceAccount};

/// The namespace annotation with the expression of permitted roles (kiam's).
pub(super) const PERMITTED_KEY: &str = "iam.amazonaws.com/permitted";
/// The service account annotation that EKS reads.
pub(super) const EKS_ROLE_KEY: &str = "eks.amazonaws.com/role-arn";

/// Returns the namespace annotations that are read.
pub(super) fn namespace_annotations(keys: &AnnotationKeys) -> Vec<Annotation> {
    vec![Annotation::new(&keys.allowed_roles, MAX_LIST), Annotation::new(PERMITTED_KEY, MAX_LIST)]
}

/// Returns the service account annotations that are read.
pub(super) fn account_annotations(keys: &AnnotationKeys) -> Vec<Annotation> {
    [keys.role.as_str(), EKS_ROLE_KEY, &keys.target_role].map(|key| Annotation::new(key, MAX_ROLE)).into()
}

/// Returns a service account with what its annotations say.
pub(super) fn account_of(namespace: &str, name: &str, mut metadata: ObjectMeta, keys: &AnnotationKeys) -> ServiceAccount {
    ServiceAccount {
        namespace: namespace.to_owned(),
        name: name.to_owned(),
        role: metadata.take_annotation(&keys.role, MAX_ROLE),
        eks_role: metadata.take_annotation(EKS_ROLE_KEY, MAX_ROLE),
        target_role: metadata.take_annotation(&keys.target_role, MAX_ROLE),
    }
}

/// The maximum number of objects of one kind that are watched at once. Each takes a connection to the Kubernetes API. The
/// kubelet allows fewer pods than this on a node.
const MAX_FOLLOWED: usize = 1024;

/// The objects that are being watched, each while a pod needs it.
struct FollowedObjects<'a, K> {
    resource: &'static str,
    over_limit: Condition,
    stops: BTreeMap<K, CancellationToken>,
    running: FuturesUnordered<BoxFuture<'a, ()>>,
}

impl<'a, K: Ord + Clone> FollowedObjects<'a, K> {
    fn new(resource: &'static str) -> Self {
        Self { resource, over_limit: Condition::default(), stops: BTreeMap::new(), running: FuturesUnordered::new() }
    }

    /// Stops watching objects that are not wanted, and returns them.
    fn keep(&mut self, wanted: &BTreeSet<K>) -> Vec<K> {
        let unwanted: Vec<K> = self.stops.keys().filter(|key| !wanted.contains(key)).cloned().collect();
        unwanted.iter().filter_map(|key| self.stops.remove(key)).for_each(|stop| stop.cancel());
        if wanted.len() <= MAX_FOLLOWED {
            self.over_limit.ends();
        }
        unwanted
    }

    /// Starts watching an object unless it is watched already. An object beyond the limit stays unknown until another watch
    /// ends, so its pods are refused.
    fn start<F: Future<Output = ()> + Send + 'a>(&mut self, key: K, follow: impl FnOnce(K) -> F) {
        if self.stops.contains_key(&key) {
            return;
        }
        if self.stops.len() >= MAX_FOLLOWED {
            if self.over_limit.begins() {
                warn!(
                    event = "watch-limit",
                    resource = self.resource,
                    limit = MAX_FOLLOWED,
                    "pods of this node need more objects of this kind than rolegate watches; refusing pods whose objects are not watched; \
                     look for pods that name this node in spec.nodeName and were not placed by the scheduler"
                );
            }
            return;
        }
        let stop = CancellationToken::new();
        self.stops.insert(key.clone(), stop.clone());
        let follow = follow(key);
        self.running.push(Box::pin(async move { stop.run_until_cancelled(follow).await.unwrap_or_default() }));
    }
}

impl PodWatch {
    /// Watches the namespaces of pods forever.
    pub(super) async fn watch_namespaces(&self) {
        watch_namespaces(self).await;
    }

    /// Watches the service accounts of pods without a role of their own forever.
    pub(super) async fn watch_service_accounts(&self) {
        watch_service_accounts(self).await;
    }
}

async fn watch_namespaces(watch: &PodWatch) {
    let mut pods = watch.pods.clone();
    let mut followed = FollowedObjects::new("namespaces");
    loop {
        let wanted = pods.namespaces_to_follow();
        for name in followed.keep(&wanted) {
            watch.writer.write(|index| index.delete_namespace(&name));
        }
        wanted.into_iter().for_each(|name| followed.start(name, |name| watch_namespace(watch, name)));
        tokio::select! {
            () = pods.changed() => {}
            Some(_) = followed.running.next() => {}
        }
    }
}

async fn watch_namespace(watch: &PodWatch, name: String) {
    let annotations = namespace_annotations(&watch.annotations);
    let fields = format!("metadata.name={name}");
    let selection = Selection { resource: "namespaces", path: "/api/v1/namespaces".to_owned(), fields, annotations, owners: false };
    let mut latest = None;
    let take = |event: WatchEvent<'_, OnlyMetadata>| {
        match change(event, &name, &mut latest) {
            None => {}
            Some(Some(mut metadata)) => {
                let allowed_roles = metadata.take_annotation(&watch.annotations.allowed_roles, MAX_LIST);
                let permitted = metadata.take_annotation(PERMITTED_KEY, MAX_LIST);
                let namespace = Namespace { name: name.clone(), allowed_roles, permitted };
                watch.writer.write(|index| index.apply_namespace(namespace));
            }
            Some(None) => watch.writer.write(|index| index.delete_namespace(&name)),
        }
        ControlFlow::Continue(())
    };
    follow(&watch.client, &watch.metrics, &selection, take).await;
}

async fn watch_service_accounts(watch: &PodWatch) {
    let mut pods = watch.pods.clone();
    let forbidden = Condition::default();
    let mut followed = FollowedObjects::new("serviceaccounts");
    loop {
        let wanted = pods.service_accounts();
        for (namespace, name) in followed.keep(&wanted) {
            watch.writer.write(|index| index.delete_service_account(&namespace, &name));
        }
        wanted.into_iter().for_each(|account| followed.start(account, |account| watch_service_account(watch, account, &forbidden)));
        tokio::select! {
            () = pods.changed() => {}
            Some(()) = followed.running.next() => {}
        }
    }
}

async fn watch_service_account(watch: &PodWatch, (namespace, name): (String, String), forbidden: &Condition) {
    let path = format!("/api/v1/namespaces/{}/serviceaccounts", encode(&namespace));
    let annotations = account_annotations(&watch.annotations);
    let selection = Selection { resource: "serviceaccounts", path, fields: format!("metadata.name={name}"), annotations, owners: false };
    let mut latest = None;
    let take = |event: WatchEvent<'_, OnlyMetadata>| {
        // What is known about the account still holds; if nothing is known, its pods are refused. The request is retried.
        if matches!(&event, WatchEvent::Failed(failure) if failure.code() == Some(403)) {
            if forbidden.begins() {
                warn!(
                    event = "service-accounts-forbidden",
                    "rolegate may not read service accounts; refusing pods that have no role annotation and whose service account is not \
                     known; add list and watch of serviceaccounts to its ClusterRole (see daemonset/rbac.yaml), or remove \
                     --service-account-roles"
                );
            }
            watch.writer.write(|index| index.forbid_service_account(&namespace, &name));
        }
        match change(event, &name, &mut latest) {
            None => {}
            Some(Some(metadata)) => {
                let account = account_of(&namespace, &name, metadata, &watch.annotations);
                watch.writer.write(|index| index.apply_service_account(account));
            }
            Some(None) => watch.writer.write(|index| index.delete_service_account(&namespace, &name)),
        }
        ControlFlow::Continue(())
    };
    follow(&watch.client, &watch.metrics, &selection, take).await;
}

/// Returns the effect of an event on the only object with this name: its current state, or that it is unknown; `None` if
/// nothing changes. Late and repeated events change nothing.
pub(super) fn change(event: WatchEvent<'_, OnlyMetadata>, name: &str, latest: &mut Option<u64>) -> Option<Option<ObjectMeta>> {
    let is_named = |metadata: &ObjectMeta| metadata.name.as_deref() == Some(name);
    let mut is_new = |version: Option<u64>| match (version, *latest) {
        (Some(version), Some(latest)) if version < latest => false,
        _ => {
            *latest = version;
            true
        }
    };
    match event {
        WatchEvent::Alive | WatchEvent::UpToDate | WatchEvent::Failed(_) => None,
        WatchEvent::Listed { objects, version, .. } => {
            *latest = version;
            Some(objects.into_iter().map(|object| object.metadata).find(is_named))
        }
        WatchEvent::Applied(object) => {
            let metadata = object.metadata;
            (is_named(&metadata) && is_new(metadata.version())).then_some(Some(metadata))
        }
        WatchEvent::Deleted(metadata) | WatchEvent::Unreadable(metadata) => {
            (is_named(&metadata) && is_new(metadata.version())).then_some(None)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn objects_beyond_the_limit_are_followed_when_others_end() {
        let mut followed = FollowedObjects::new("namespaces");
        let wanted: BTreeSet<usize> = (0..=MAX_FOLLOWED).collect();
        assert_eq!(followed.keep(&wanted), Vec::<usize>::new());
        wanted.iter().for_each(|key| followed.start(*key, |_| std::future::pending()));
        assert_eq!((followed.stops.len(), followed.over_limit.holds()), (MAX_FOLLOWED, true));
        assert!(!followed.stops.contains_key(&MAX_FOLLOWED));

        let wanted: BTreeSet<usize> = (1..=MAX_FOLLOWED).collect();
        assert_eq!(followed.keep(&wanted), [0]);
        wanted.iter().for_each(|key| followed.start(*key, |_| std::future::pending()));
        assert!(followed.stops.contains_key(&MAX_FOLLOWED) && !followed.over_limit.holds());
    }
}
