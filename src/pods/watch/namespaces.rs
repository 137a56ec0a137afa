//! The namespaces of this node's pods, each watched for as long as a pod here is in it.

use std::collections::{BTreeMap, BTreeSet};

use futures_util::StreamExt as _;
use futures_util::stream::{BoxStream, SelectAll};
use kube::runtime::WatchStreamExt as _;
use kube::runtime::watcher::{self, Event};
use kube::{Api, ResourceExt as _};
use tokio_util::sync::CancellationToken;
use tracing::warn;

use super::objects::NamespaceObject;
use super::{PodsWriter, Watch, client};
use crate::pods::Namespace;

type Events = BoxStream<'static, (String, watcher::Result<Event<NamespaceObject>>)>;

/// Watches for ever.
pub(super) async fn watch(watch: &Watch, writer: &PodsWriter) {
    let mut pods = watch.pods.clone();
    let mut watched: BTreeMap<String, CancellationToken> = BTreeMap::new();
    let mut events: SelectAll<Events> = SelectAll::new();
    // Namespaces that the list now running has not named yet.
    let mut unlisted: BTreeSet<String> = BTreeSet::new();
    loop {
        let wanted = pods.namespaces();
        watched.retain(|name, stop| {
            let keep = wanted.contains(name);
            if !keep {
                stop.cancel();
                writer.write(|index| index.delete_namespace(name));
            }
            keep
        });
        for name in wanted {
            watched.entry(name).or_insert_with_key(|name| {
                let stop = CancellationToken::new();
                events.push(stream(watch, name.clone(), stop.clone()));
                stop
            });
        }
        tokio::select! {
            () = pods.changed() => {}
            Some((name, event)) = events.next() => {
                if watched.contains_key(&name) {
                    take(watch, writer, &name, event, &mut unlisted);
                }
            }
        }
    }
}

/// The events of one namespace, until `stop`.
fn stream(watch: &Watch, name: String, stop: CancellationToken) -> Events {
    let selection = watcher::Config::default().fields(&format!("metadata.name={name}")).timeout(client::WATCH_SECONDS);
    let events = watcher::watcher(Api::<NamespaceObject>::all(watch.client.clone()), selection).default_backoff();
    events.map(move |event| (name.clone(), event)).take_until(stop.cancelled_owned()).boxed()
}

fn take(watch: &Watch, writer: &PodsWriter, name: &str, event: watcher::Result<Event<NamespaceObject>>, unlisted: &mut BTreeSet<String>) {
    match event {
        Ok(Event::Init) => {
            unlisted.insert(name.to_owned());
        }
        Ok(Event::InitDone) => {
            if unlisted.remove(name) {
                writer.write(|index| index.delete_namespace(name));
            }
        }
        Ok(Event::InitApply(object) | Event::Apply(object)) => {
            unlisted.remove(name);
            let mut annotations = object.metadata.annotations.clone().unwrap_or_default();
            let allowed_roles = annotations.remove(&watch.annotations.allowed_roles);
            let namespace = Namespace { name: object.name_any(), allowed_roles };
            writer.write(|index| index.apply_namespace(namespace));
        }
        Ok(Event::Delete(object)) => writer.write(|index| index.delete_namespace(&object.name_any())),
        Err(error) => {
            watch.metrics.watch_failed("namespaces");
            warn!(namespace = name, error = %client::explain(&error),
                "the watch of a namespace failed; it is tried again, and pods whose namespace is not known are refused");
        }
    }
}
