//! Connections to a port of a pod through the Kubernetes API, as `kubectl port-forward` makes them.
//!
//! The kubelet connects from inside the pod's network, so that the connection arrives from a loopback address. The pod proxy of
//! the API server would not: it connects from the API server's address, and it adds headers that say so.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use kube::api::Portforwarder;
use serde::Deserialize;
use tokio::io::{AsyncRead, AsyncWrite, DuplexStream, ReadBuf};

use super::client::{Client, encode};
use super::failure::{RequestFailure, Status};
use super::fields::Field;
use super::response::ANSWER_TIMEOUT;
use super::setup::told;

/// The pods in one page of a list.
const PAGE_SIZE: u32 = 100;
/// How long the reason of a broken connection is waited for.
const REASON_TIMEOUT: Duration = Duration::from_secs(2);

/// A pod on a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct PodOnNode {
    /// The name.
    pub(crate) name: String,
    /// The node; empty for a pod that is not scheduled.
    pub(crate) node: String,
    /// Whether the phase is Running.
    pub(crate) is_running: bool,
    /// Its containers, without those that only prepare it.
    pub(crate) containers: Vec<PodContainer>,
}

/// A container of a pod, as its manifest describes it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct PodContainer {
    /// The name.
    pub(crate) name: String,
    /// The image.
    pub(crate) image: String,
    /// The arguments of its program, before Kubernetes expands variables in them.
    pub(crate) arguments: Vec<String>,
    /// The variables whose value is in the manifest.
    pub(crate) variables: Vec<(String, String)>,
}

/// A connection to a port of a pod.
pub(crate) struct ForwardedPort {
    stream: DuplexStream,
    forwarder: Portforwarder,
    port: u16,
}

impl Client {
    /// Lists the pods of a namespace that a label selector selects.
    pub(crate) async fn pods_by_label(&self, namespace: &str, selector: &str) -> Result<Vec<PodOnNode>, RequestFailure> {
        let item = Field::object([
            ("metadata", Field::object([("name", Field::text())])),
            ("spec", Field::object([("nodeName", Field::text()), ("containers", Field::list(container()))])),
            ("status", Field::object([("phase", Field::text())])),
        ]);
        let fields = Field::object([
            ("kind", Field::text()),
            ("metadata", Field::object([("resourceVersion", Field::text()), ("continue", Field::Scalar(8 << 10))])),
            ("items", Field::Items(Box::new(item))),
        ]);
        let first = format!("/api/v1/namespaces/{}/pods?limit={PAGE_SIZE}&labelSelector={}", encode(namespace), encode(selector));
        let (mut target, mut pods) = (first.clone(), Vec::new());
        loop {
            let mut answer = self.ask_filtered(&target, &fields).await?;
            while let Some(items) = answer.items().await? {
                pods.extend(items.iter().filter_map(|item| serde_json::from_slice::<RawListed>(&item.json).ok()).map(PodOnNode::from));
            }
            match answer.page()?.continue_token() {
                Some(token) => target = format!("{first}&continue={}", encode(token)),
                None => return Ok(pods),
            }
        }
    }

    /// Connects to a port of a pod.
    pub(crate) async fn forward(&self, namespace: &str, pod: &str, port: u16) -> Result<ForwardedPort, RequestFailure> {
        let api = kube::Api::<Pod>::namespaced(self.current().await, namespace);
        let opened = tokio::time::timeout(ANSWER_TIMEOUT, api.portforward(pod, &[port])).await.map_err(|_| RequestFailure::Silent)?;
        let mut forwarder = opened.map_err(|error| match &error {
            kube::Error::Api(status) => RequestFailure::Status(Status::of_error(status.code, &status.reason, &status.message)),
            _ => RequestFailure::Unreachable(told(&error)),
        })?;
        let stream = forwarder.take_stream(port).ok_or(RequestFailure::Malformed("no stream for the port"))?;
        Ok(ForwardedPort { stream, forwarder, port })
    }
}

impl ForwardedPort {
    /// Returns why the pod's end of the connection failed, if the kubelet says so. To be called once the connection is over.
    pub(crate) async fn failure(mut self) -> Option<String> {
        let reason = self.forwarder.take_error(self.port)?;
        drop(self.stream);
        tokio::time::timeout(REASON_TIMEOUT, reason).await.ok().flatten()
    }
}

impl AsyncRead for ForwardedPort {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for ForwardedPort {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, buffer)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

/// What is read of a container.
fn container() -> Field {
    let words = || Field::list(Field::text());
    Field::object([
        ("name", Field::text()),
        ("image", Field::text()),
        ("command", words()),
        ("args", words()),
        ("env", Field::list(Field::object([("name", Field::text()), ("value", Field::text())]))),
    ])
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct RawListed {
    metadata: RawListedMetadata,
    spec: RawListedSpec,
    status: RawListedStatus,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct RawListedMetadata {
    name: String,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct RawListedSpec {
    node_name: String,
    containers: Vec<RawContainer>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct RawContainer {
    name: String,
    image: String,
    command: Vec<String>,
    args: Vec<String>,
    env: Vec<RawVariable>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct RawVariable {
    name: String,
    value: Option<String>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct RawListedStatus {
    phase: String,
}

impl From<RawListed> for PodOnNode {
    fn from(raw: RawListed) -> Self {
        Self {
            name: raw.metadata.name,
            node: raw.spec.node_name,
            is_running: raw.status.phase == "Running",
            containers: raw.spec.containers.into_iter().map(PodContainer::from).collect(),
        }
    }
}

impl From<RawContainer> for PodContainer {
    fn from(raw: RawContainer) -> Self {
        Self {
            name: raw.name,
            image: raw.image,
            // The first word of the command is the program.
            arguments: raw.command.into_iter().skip(1).chain(raw.args).collect(),
            variables: raw.env.into_iter().filter_map(|variable| Some((variable.name, variable.value?))).collect(),
        }
    }
}
