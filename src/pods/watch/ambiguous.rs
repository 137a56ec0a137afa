//! Resolves addresses that several living pods claim by querying the API for the current state of each pod.
//!
//! The watch may lag behind, and one of the pods may be gone or have another address. None of the pods is served until the
//! response arrives, or while the response confirms the claims.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use futures_util::stream::{self, StreamExt as _};
use tokio::time::Instant;
use tracing::{debug, info};

use super::objects::{self, ObjectMeta, PodObject};
use super::{PodWatch, pod_annotations};
use crate::kubernetes::client::encode;
use crate::kubernetes::failure::RequestFailure;
use crate::pods::{Lookup, Pod, PodUid};

/// The interval between two queries about one address.
pub(super) const ASK_AGAIN: Duration = Duration::from_secs(10);
/// Time limit for one query.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);
/// The maximum number of addresses that are queried at once.
const AT_ONCE: usize = 4;
/// The maximum number of pods at one address that are queried. With more, the cause is not a lagging watch.
const MAX_CLAIMANTS: usize = 8;

/// The last query about an address.
#[derive(Debug)]
struct AmbiguityCheck {
    asked_at: Instant,
    /// The pods whose claims to the address the API has confirmed.
    confirmed: Vec<PodUid>,
}

/// The API's response about the pods that claim an address.
#[derive(Debug, PartialEq, Eq)]
enum AmbiguityAnswer {
    /// One pod has the address, or none does.
    Settled,
    /// Several pods still claim the address, as the watch reported.
    Confirmed,
    /// The API did not answer, or there are too many claims to query it.
    Unanswered,
}

impl AmbiguityAnswer {
    fn name(&self) -> &'static str {
        match self {
            Self::Settled => "settled",
            Self::Confirmed => "confirmed",
            Self::Unanswered => "unanswered",
        }
    }
}

/// Returns what an answer means for the pods, and what to do.
fn text(answer: &AmbiguityAnswer) -> &'static str {
    match answer {
        AmbiguityAnswer::Settled => "several pods claimed one address; the Kubernetes API says that at most one still does",
        AmbiguityAnswer::Confirmed => {
            "several pods claim one address, as the Kubernetes API confirms; serving none of them; delete the one whose network no \
             longer exists"
        }
        AmbiguityAnswer::Unanswered => {
            "several pods claim one address, and the Kubernetes API did not say which of them still exist; serving none of them, \
             retrying"
        }
    }
}

impl PodWatch {
    /// Queries the API about every address that several pods claim. Never returns.
    pub(super) async fn settle_ambiguous_addresses(&self) {
        settle(self).await;
    }
}

async fn settle(watch: &PodWatch) {
    let mut pods = watch.pods.clone();
    let mut questions: HashMap<IpAddr, AmbiguityCheck> = HashMap::new();
    loop {
        let ambiguous = pods.ambiguous();
        questions.retain(|ip, question| question.asked_at.elapsed() < ASK_AGAIN || ambiguous.iter().any(|(other, _)| other == ip));
        let open = ambiguous.into_iter().filter(|(ip, claimants)| !is_answered(questions.get(ip), claimants));
        let (due, later): (Vec<_>, Vec<_>) =
            open.partition(|(ip, _)| questions.get(ip).is_none_or(|question| question.asked_at.elapsed() >= ASK_AGAIN));
        if !due.is_empty() {
            let mut answers = stream::iter(due).map(|(ip, claimants)| ask(watch, ip, claimants)).buffer_unordered(AT_ONCE);
            while let Some((ip, question)) = answers.next().await {
                questions.insert(ip, question);
                let confirmed = questions.iter().map(|(ip, question)| (*ip, question.confirmed.clone())).collect();
                watch.writer.write(|index| index.set_confirmed(confirmed));
            }
            continue;
        }
        let next = later.iter().filter_map(|(ip, _)| questions.get(ip)).map(|question| question.asked_at + ASK_AGAIN).min();
        let again = async {
            match next {
                Some(next) => tokio::time::sleep_until(next).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = pods.changed() => {}
            () = again => {}
        }
    }
}

fn is_answered(question: Option<&AmbiguityCheck>, claimants: &[Arc<Pod>]) -> bool {
    let confirmed = question.map_or(&[][..], |question| &question.confirmed);
    confirmed.len() == claimants.len() && claimants.iter().all(|pod| confirmed.contains(&pod.uid))
}

/// Queries the pods that claim an address, and applies their current state.
async fn ask(watch: &PodWatch, ip: IpAddr, claimants: Vec<Arc<Pod>>) -> (IpAddr, AmbiguityCheck) {
    // Queries of other addresses may have taken a while.
    let asked_at = Instant::now();
    let mut answered = claimants.len() <= MAX_CLAIMANTS;
    for pod in claimants.iter().take(if answered { MAX_CLAIMANTS } else { 0 }) {
        match pod_now(watch, pod).await {
            Ok((now, version)) => take(watch, pod, now, version),
            Err(failure) => {
                debug!(namespace = %pod.namespace, pod = %pod.name, error = %failure, "cannot read the current state of the pod from the Kubernetes API");
                answered = false;
            }
        }
    }
    let (outcome, confirmed) = match watch.pods.by_ip(ip) {
        _ if !answered => (AmbiguityAnswer::Unanswered, Vec::new()),
        Lookup::Ambiguous(pods) => {
            // A pod that appeared in the meantime has not been queried.
            let confirmed = pods.iter().filter(|pod| claimants.iter().any(|asked| asked.uid == pod.uid)).map(|pod| pod.uid.clone());
            (AmbiguityAnswer::Confirmed, confirmed.collect())
        }
        Lookup::Found(..) | Lookup::Unreadable(_) | Lookup::Objected(..) | Lookup::Unknown => (AmbiguityAnswer::Settled, Vec::new()),
    };
    watch.metrics.ambiguous(outcome.name());
    let mut names: Vec<_> = claimants.iter().map(|pod| format!("{}/{}", pod.namespace, pod.name)).collect();
    names.sort();
    info!(
        event = "address-ambiguous", address = %ip, pods = names.join(", "), outcome = outcome.name(), "{}", text(&outcome)
    );
    (ip, AmbiguityCheck { asked_at, confirmed })
}

/// The object that has a pod's name now.
enum CurrentHolder {
    /// No pod on this node.
    Nobody,
    /// A pod, perhaps with another UID.
    Pod(Box<PodObject>),
    /// A pod of which nothing else can be read.
    Unreadable(Box<ObjectMeta>),
}

/// Returns the pod of this node that has this pod's name now, and the version at which that is true, by a read of the API's
/// stored state. It is requested as a list of one, so that the permission to list is enough.
async fn pod_now(watch: &PodWatch, pod: &Pod) -> Result<(CurrentHolder, Option<u64>), RequestFailure> {
    let fields = format!("spec.nodeName={},metadata.namespace={},metadata.name={}", watch.node, pod.namespace, pod.name);
    let target = format!("/api/v1/pods?fieldSelector={}", encode(&fields));
    tokio::time::timeout(ANSWER_TIMEOUT, list_of(watch, pod, &target)).await.unwrap_or(Err(RequestFailure::Silent))
}

async fn list_of(watch: &PodWatch, pod: &Pod, target: &str) -> Result<(CurrentHolder, Option<u64>), RequestFailure> {
    let fields = objects::page::<PodObject>(&pod_annotations(&watch.annotations));
    let mut answer = watch.client.ask_filtered(target, &fields).await?;
    let is_named =
        |metadata: &ObjectMeta| metadata.name.as_deref() == Some(&*pod.name) && metadata.namespace.as_deref() == Some(&*pod.namespace);
    let mut now = CurrentHolder::Nobody;
    while let Some(items) = answer.items().await? {
        for item in items {
            match serde_json::from_slice::<PodObject>(&item.json) {
                Ok(object) if !item.truncated => {
                    if is_named(&object.metadata) {
                        now = CurrentHolder::Pod(Box::new(object));
                    }
                }
                _ => match ObjectMeta::of_any(&item.json) {
                    Some(metadata) if is_named(&metadata) => now = CurrentHolder::Unreadable(Box::new(metadata)),
                    Some(_) => {}
                    None => return Err(RequestFailure::Malformed("a list with a malformed object")),
                },
            }
        }
    }
    let page = answer.page()?;
    // Any other JSON response says nothing about pods.
    if page.kind != "PodList" || page.version().is_empty() {
        return Err(RequestFailure::Malformed("something other than a list of pods"));
    }
    Ok((now, page.version().parse().ok()))
}

fn take(watch: &PodWatch, pod: &Pod, now: CurrentHolder, version: Option<u64>) {
    let uid = match &now {
        CurrentHolder::Nobody => None,
        CurrentHolder::Pod(object) => object.metadata.uid.as_deref(),
        CurrentHolder::Unreadable(metadata) => metadata.uid.as_deref(),
    };
    if uid != Some(&*pod.uid.0) {
        watch.writer.write(|index| index.gone_at(&pod.uid, version));
    }
    match now {
        CurrentHolder::Nobody => {}
        CurrentHolder::Pod(object) => watch.apply(*object),
        CurrentHolder::Unreadable(metadata) => watch.unreadable(*metadata),
    }
    watch.metrics.pods_known(watch.pods.count());
}
