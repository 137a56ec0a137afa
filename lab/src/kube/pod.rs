//! Builds pods as a real cluster has them, with the many fields that rolegate does not read.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::builders::managed_fields;

/// A pod that looks as if the kubelet has reported on it.
///
/// By default it is `Running` on `node-a`, whose address is `10.0.0.10`, with the service account `default` and without an IP
/// address.
#[derive(Debug, Clone)]
pub struct PodBuilder {
    namespace: String,
    name: String,
    uid: Option<String>,
    ips: Vec<String>,
    node: String,
    host_ip: String,
    annotations: BTreeMap<String, String>,
    labels: BTreeMap<String, String>,
    service_account: String,
    phase: String,
    host_network: bool,
    without_net_raw: bool,
    terminating: Option<String>,
    stopped: bool,
    without_network: bool,
    started: String,
    /// Kind and name; none for a bare pod.
    owner: Option<(String, String)>,
}

impl PodBuilder {
    /// Creates a builder for a pod with this namespace and name.
    #[must_use]
    pub fn new(namespace: &str, name: &str) -> PodBuilder {
        PodBuilder {
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            uid: None,
            ips: Vec::new(),
            node: "node-a".to_owned(),
            host_ip: "10.0.0.10".to_owned(),
            annotations: BTreeMap::new(),
            labels: BTreeMap::from([("app".to_owned(), name.to_owned())]),
            service_account: "default".to_owned(),
            phase: "Running".to_owned(),
            host_network: false,
            without_net_raw: false,
            terminating: None,
            stopped: false,
            without_network: false,
            started: jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string(),
            owner: Some(("ReplicaSet".to_owned(), format!("{name}-7d4b9c6f5"))),
        }
    }

    /// Sets when its network was created and its containers were started. By default, this is when the builder was created.
    #[must_use]
    pub fn started_at(mut self, time: &str) -> PodBuilder {
        time.clone_into(&mut self.started);
        self
    }

    /// Sets the object that manages it. By default, that is a ReplicaSet.
    #[must_use]
    pub fn owner(mut self, kind: &str, name: &str) -> PodBuilder {
        self.owner = Some((kind.to_owned(), name.to_owned()));
        self
    }

    /// Removes the object that manages it.
    #[must_use]
    pub fn bare(mut self) -> PodBuilder {
        self.owner = None;
        self
    }

    /// Sets the UID. Without one, the server assigns a UID to a new pod, and keeps that of a pod that is replaced.
    #[must_use]
    pub fn uid(mut self, uid: &str) -> PodBuilder {
        self.uid = Some(uid.to_owned());
        self
    }

    /// Sets the pod's only address.
    #[must_use]
    pub fn ip(self, ip: &str) -> PodBuilder {
        self.ips([ip])
    }

    /// Sets all addresses of the pod. The first one is `status.podIP`.
    #[must_use]
    pub fn ips<'a>(mut self, ips: impl IntoIterator<Item = &'a str>) -> PodBuilder {
        self.ips = ips.into_iter().map(str::to_owned).collect();
        self
    }

    /// Sets the node. It is empty for a pod that is not scheduled.
    #[must_use]
    pub fn node(mut self, node: &str) -> PodBuilder {
        self.node = node.to_owned();
        self
    }

    /// Sets the address of the node, which is also the pod's on the host network.
    #[must_use]
    pub fn host_ip(mut self, ip: &str) -> PodBuilder {
        self.host_ip = ip.to_owned();
        self
    }

    /// Adds an annotation.
    #[must_use]
    pub fn annotation(mut self, key: &str, value: &str) -> PodBuilder {
        self.annotations.insert(key.to_owned(), value.to_owned());
        self
    }

    /// Adds a label. The label `app` with the pod's name is always present.
    #[must_use]
    pub fn label(mut self, key: &str, value: &str) -> PodBuilder {
        self.labels.insert(key.to_owned(), value.to_owned());
        self
    }

    /// Sets the service account.
    #[must_use]
    pub fn service_account(mut self, name: &str) -> PodBuilder {
        self.service_account = name.to_owned();
        self
    }

    /// Sets the phase: `Pending`, `Running`, `Succeeded` or `Failed`.
    #[must_use]
    pub fn phase(mut self, phase: &str) -> PodBuilder {
        self.phase = phase.to_owned();
        self
    }

    /// Makes its containers drop the capability `NET_RAW`.
    #[must_use]
    pub fn without_net_raw(mut self) -> PodBuilder {
        self.without_net_raw = true;
        self
    }

    /// Puts the pod on the host network, where its addresses are the node's unless some are given.
    #[must_use]
    pub fn host_network(mut self, on: bool) -> PodBuilder {
        self.host_network = on;
        self
    }

    /// Sets a `deletionTimestamp` half a minute ahead: the pod is terminating, but still exists.
    #[must_use]
    pub fn terminating(self) -> PodBuilder {
        let end = jiff::Timestamp::now() + jiff::SignedDuration::from_secs(30);
        self.terminating_at(&end.strftime("%Y-%m-%dT%H:%M:%SZ").to_string())
    }

    /// Sets this `deletionTimestamp`, which is when the grace period ends.
    #[must_use]
    pub fn terminating_at(mut self, deletion_timestamp: &str) -> PodBuilder {
        self.terminating = Some(deletion_timestamp.to_owned());
        self
    }

    /// Makes the statuses of all containers say that they have terminated.
    #[must_use]
    pub fn stopped(mut self) -> PodBuilder {
        self.stopped = true;
        self
    }

    /// Sets the condition `PodReadyToStartContainers` to say that the sandbox is gone, although the status still has the
    /// addresses.
    #[must_use]
    pub fn without_network(mut self) -> PodBuilder {
        self.without_network = true;
        self
    }

    /// Builds the pod.
    #[must_use]
    pub fn build(&self) -> Value {
        let mut pod = json!({
            "kind": "Pod",
            "apiVersion": "v1",
            "metadata": self.metadata(),
            "spec": self.spec(),
            "status": self.status(),
        });
        if self.without_net_raw {
            for container in pod["spec"]["containers"].as_array_mut().into_iter().flatten() {
                container["securityContext"] = json!({ "capabilities": { "drop": ["NET_RAW"] } });
            }
        }
        if self.host_network {
            pod["spec"]["hostNetwork"] = true.into();
        }
        if !self.node.is_empty() {
            pod["spec"]["nodeName"] = self.node.as_str().into();
        }
        if let Some(uid) = &self.uid {
            pod["metadata"]["uid"] = uid.as_str().into();
        }
        if let Some(end) = &self.terminating {
            pod["metadata"]["deletionTimestamp"] = end.as_str().into();
            pod["metadata"]["deletionGracePeriodSeconds"] = 30.into();
        }
        pod
    }

    fn metadata(&self) -> Value {
        let mut metadata = json!({
            "name": self.name,
            "generateName": format!("{}-", self.name.rsplit_once('-').map_or(&*self.name, |(head, _)| head)),
            "namespace": self.namespace,
            "labels": self.labels,
            "managedFields": [
                managed_fields("kube-controller-manager", "", json!({
                    "f:metadata": {
                        "f:annotations": { ".": {} }, "f:generateName": {},
                        "f:labels": { ".": {}, "f:app": {} },
                        "f:ownerReferences": { ".": {}, "k:{\"uid\":\"0b9e7d51-64a0-4f0b-8a0e-0f4a55d4b8d3\"}": {} },
                    },
                    "f:spec": {
                        "f:containers": { "k:{\"name\":\"main\"}": {
                            ".": {}, "f:env": { ".": {}, "k:{\"name\":\"AWS_REGION\"}": { ".": {}, "f:name": {}, "f:value": {} } },
                            "f:image": {}, "f:imagePullPolicy": {}, "f:name": {}, "f:resources": {},
                            "f:terminationMessagePath": {}, "f:terminationMessagePolicy": {},
                        } },
                        "f:dnsPolicy": {}, "f:enableServiceLinks": {}, "f:restartPolicy": {},
                        "f:schedulerName": {}, "f:securityContext": {}, "f:terminationGracePeriodSeconds": {},
                    },
                })),
                managed_fields("kubelet", "status", json!({
                    "f:status": {
                        "f:conditions": {
                            "k:{\"type\":\"ContainersReady\"}": { ".": {}, "f:lastProbeTime": {}, "f:status": {}, "f:type": {} },
                            "k:{\"type\":\"Ready\"}": { ".": {}, "f:lastProbeTime": {}, "f:status": {}, "f:type": {} },
                        },
                        "f:containerStatuses": {}, "f:hostIP": {}, "f:hostIPs": {}, "f:phase": {}, "f:podIP": {},
                        "f:podIPs": { ".": {}, "k:{\"ip\":\"10.42.0.2\"}": { ".": {}, "f:ip": {} } }, "f:startTime": {},
                    },
                })),
            ],
        });
        if let Some((kind, name)) = &self.owner {
            metadata["ownerReferences"] = json!([{
                "apiVersion": "apps/v1", "kind": kind, "name": name,
                "uid": "0b9e7d51-64a0-4f0b-8a0e-0f4a55d4b8d3", "controller": true, "blockOwnerDeletion": true,
            }]);
        }
        if !self.annotations.is_empty() {
            metadata["annotations"] = json!(self.annotations);
        }
        metadata
    }

    fn spec(&self) -> Value {
        let toleration = |key: &str| json!({ "key": key, "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 300 });
        json!({
            "volumes": [{
                "name": "kube-api-access-x7k2p",
                "projected": { "defaultMode": 420, "sources": [
                    { "serviceAccountToken": { "expirationSeconds": 3607, "path": "token" } },
                    { "configMap": { "name": "kube-root-ca.crt", "items": [{ "key": "ca.crt", "path": "ca.crt" }] } },
                    { "downwardAPI": { "items": [
                        { "path": "namespace", "fieldRef": { "apiVersion": "v1", "fieldPath": "metadata.namespace" } },
                    ] } },
                ] },
            }],
            "containers": [
                container("main", "registry.example.com/team/app:1.42.0"),
                container("sidecar", "registry.example.com/mesh/proxy:2.7.1"),
            ],
            "restartPolicy": "Always",
            "terminationGracePeriodSeconds": 30,
            "dnsPolicy": "ClusterFirst",
            "serviceAccountName": self.service_account,
            "serviceAccount": self.service_account,
            "securityContext": {},
            "schedulerName": "default-scheduler",
            "tolerations": [toleration("node.kubernetes.io/not-ready"), toleration("node.kubernetes.io/unreachable")],
            "priority": 0,
            "enableServiceLinks": true,
            "preemptionPolicy": "PreemptLowerPriority",
        })
    }

    fn status(&self) -> Value {
        let running = self.phase == "Running" && !self.stopped;
        // While init containers run, a pod is pending and already has its addresses.
        let has_network = self.phase == "Running" || self.phase == "Pending" && !self.ips.is_empty();
        let condition = |kind: &str, on: bool| {
            let status = if on { "True" } else { "False" };
            json!({ "type": kind, "status": status, "lastProbeTime": null, "lastTransitionTime": self.started })
        };
        let scheduled = !self.node.is_empty();
        let mut status = json!({
            "phase": self.phase,
            "conditions": [
                condition("PodReadyToStartContainers", has_network && !self.without_network),
                condition("Initialized", scheduled),
                condition("Ready", running),
                condition("ContainersReady", running),
                condition("PodScheduled", scheduled),
            ],
            "qosClass": "Burstable",
        });
        if scheduled {
            status["hostIP"] = self.host_ip.as_str().into();
            status["hostIPs"] = json!([{ "ip": self.host_ip }]);
            status["startTime"] = self.started.as_str().into();
            status["containerStatuses"] = json!([self.container_status("main", running), self.container_status("sidecar", running)]);
        }
        let ips = match self.ips.is_empty() && self.host_network {
            true => std::slice::from_ref(&self.host_ip),
            false => self.ips.as_slice(),
        };
        if let Some(first) = ips.first() {
            let all: Vec<Value> = ips.iter().map(|ip| json!({ "ip": ip })).collect();
            status["podIP"] = first.as_str().into();
            status["podIPs"] = all.into();
        }
        status
    }

    fn container_status(&self, name: &str, running: bool) -> Value {
        let state = match running {
            true => json!({ "running": { "startedAt": self.started } }),
            false if self.stopped => {
                json!({ "terminated": { "exitCode": 0, "reason": "Completed", "startedAt": self.started, "finishedAt": self.started } })
            }
            false => json!({ "waiting": { "reason": "ContainerCreating" } }),
        };
        json!({
            "name": name,
            "state": state,
            "lastState": {},
            "ready": running,
            "restartCount": 0,
            "image": "registry.example.com/team/app:1.42.0",
            "imageID": "registry.example.com/team/app@sha256:5b0bcabd1ed22e9fb1310cf6c2dec7cdef19f0ad69efa1f392e94a4333501270",
            "containerID": "containerd://2f1e8a0b7d1c4c1f9c6f7a7a3f0a7e9d5c1b1b9e8d7f6a5b4c3d2e1f0a9b8c7d",
            "started": running,
        })
    }
}

fn container(name: &str, image: &str) -> Value {
    json!({
        "name": name,
        "image": image,
        "args": ["--log-level=info"],
        "ports": [{ "name": "http", "containerPort": 8080, "protocol": "TCP" }],
        "env": [
            { "name": "AWS_REGION", "value": "eu-west-1" },
            { "name": "POD_IP", "valueFrom": { "fieldRef": { "apiVersion": "v1", "fieldPath": "status.podIP" } } },
        ],
        "resources": { "limits": { "memory": "256Mi" }, "requests": { "cpu": "100m", "memory": "256Mi" } },
        "volumeMounts": [{
            "name": "kube-api-access-x7k2p", "readOnly": true,
            "mountPath": "/var/run/secrets/kubernetes.io/serviceaccount",
        }],
        "livenessProbe": {
            "httpGet": { "path": "/healthz", "port": "http", "scheme": "HTTP" },
            "timeoutSeconds": 1, "periodSeconds": 10, "successThreshold": 1, "failureThreshold": 3,
        },
        "terminationMessagePath": "/dev/termination-log",
        "terminationMessagePolicy": "File",
        "imagePullPolicy": "IfNotPresent",
    })
}
