//! The parts of `rolegate report`, joined: one daemon that is asked, or all of them through the Kubernetes API.

use std::sync::Arc;

use anyhow::Context as _;
use futures_util::StreamExt as _;
use http::uri::Authority;

use super::failure::{Failure, text};
use crate::advice::Advise as _;
use crate::config::DEFAULT_METRICS_PORT;
use crate::config::metrics_port::metrics_port;
use crate::config::report_command::{AllNodes, ReportTarget};
use crate::kubernetes::client::{self, Client};
use crate::kubernetes::forward::{PodContainer, PodOnNode};
use crate::progress::Progress;
use crate::report::MigrationReport;
use crate::report::client::{read, read_on};

/// The word by which the daemon's container is recognized, if a pod has several.
const PROGRAM: &str = env!("CARGO_PKG_NAME");
/// How many daemons are asked at one time.
const CONCURRENT: usize = 16;

/// Returns the report that was asked for. With `--all-nodes`, `progress` shows how many nodes have been read.
pub(crate) async fn report(target: ReportTarget, progress: Progress) -> anyhow::Result<MigrationReport> {
    match target {
        ReportTarget::Daemon(daemon) => Ok(read(&daemon).await?),
        ReportTarget::AllNodes(all) => of_all_nodes(all, progress).await,
    }
}

async fn of_all_nodes(all: AllNodes, mut progress: Progress) -> anyhow::Result<MigrationReport> {
    let AllNodes { api, namespace, selector, port } = all;
    let kube = client::connect(&api).await?;
    // Only pods of this namespace are asked: elsewhere, anybody could run a pod with these labels, and advise what it likes.
    let pods = kube.pods_by_label(&namespace, &selector).await;
    let pods = pods.map_err(|failure| Failure::new(failure.to_string(), "this command needs list of pods in that namespace"));
    let pods = pods.with_context(|| format!("cannot list the daemons' pods in namespace {namespace}"))?;
    if pods.is_empty() {
        let advice = "check --daemon-namespace and --daemon-selector";
        return Err(Failure::new(format!("namespace {namespace} has no pods with the labels {selector}"), advice).into());
    }
    let nodes = pods.len();
    let source = Arc::new((kube, namespace));
    let reports = pods.into_iter().map(|pod| {
        let source = source.clone();
        async move {
            let (kube, namespace) = &*source;
            let name = if pod.node.is_empty() { &pod.name } else { &pod.node };
            of_pod(kube, namespace, &pod, port.unwrap_or_else(|| metrics_port_of(&pod)))
                .await
                .unwrap_or_else(|error| MigrationReport::failed(name, text(&error)))
        }
    });
    let mut reports = futures_util::stream::iter(reports).buffer_unordered(CONCURRENT);
    let (mut merged, mut read) = (MigrationReport::of_nobody(), 0);
    progress.show(&format!("0 of {nodes} nodes"));
    while let Some(report) = reports.next().await {
        merged.merge(report);
        read += 1;
        progress.show(&format!("{read} of {nodes} nodes"));
    }
    Ok(merged)
}

/// Returns the metrics port of the daemon in a pod.
fn metrics_port_of(pod: &PodOnNode) -> u16 {
    let is_daemon = |container: &&PodContainer| container.name.contains(PROGRAM) || image_name(&container.image).contains(PROGRAM);
    let container = pod.containers.iter().find(is_daemon).or_else(|| pod.containers.first());
    let port = container.and_then(|container| {
        let variable = |name: &str| container.variables.iter().find(|(known, _)| known == name).map(|(_, value)| value.clone());
        metrics_port(container.arguments.iter().cloned(), &variable)
    });
    port.unwrap_or(DEFAULT_METRICS_PORT)
}

/// Returns the last part of an image's name, with its tag.
fn image_name(image: &str) -> &str {
    image.split('@').next().unwrap_or_default().rsplit('/').next().unwrap_or_default()
}

async fn of_pod(kube: &Client, namespace: &str, pod: &PodOnNode, port: u16) -> anyhow::Result<MigrationReport> {
    if !pod.is_running {
        return Err(Failure::new(format!("the daemon's pod {} is not running", pod.name), "see kubectl describe pod").into());
    }
    let forwarded = kube.forward(namespace, &pod.name, port).await.map_err(|failure| match failure.code() {
        Some(403) => Failure::new(failure.to_string(), "allow get and create of pods/portforward in the daemons' namespace"),
        _ => Failure::new(failure.to_string(), failure.advice().unwrap_or_else(|| "check the kubelet of that node".into())),
    })?;
    let daemon = Authority::try_from(format!("127.0.0.1:{port}")).context("the port")?;
    let mut stream = forwarded;
    match read_on(&mut stream, &daemon).await {
        Ok(report) => Ok(report),
        Err(error) => match stream.failure().await {
            Some(why) => Err(error).with_context(|| format!("the port-forward ended: {}", crate::text::bounded(&why))),
            None => Err(error.into()),
        },
    }
}
