//! Builders of objects as a real cluster has them, with the many fields that rolegate does not read.

use std::collections::BTreeMap;

use serde_json::{Value, json};

/// The creation time of every object in the lab.
pub(super) const CREATED: &str = "2025-06-02T08:15:30Z";

/// Returns a namespace with annotations.
#[must_use]
pub fn namespace(name: &str, annotations: &[(&str, &str)]) -> Value {
    json!({
        "kind": "Namespace",
        "apiVersion": "v1",
        "metadata": {
            "name": name,
            "labels": { "kubernetes.io/metadata.name": name },
            "annotations": map(annotations),
            "managedFields": [managed_fields("kubectl-create", "", json!({
                "f:metadata": { "f:labels": { ".": {}, "f:kubernetes.io/metadata.name": {} } },
            }))],
        },
        "spec": { "finalizers": ["kubernetes"] },
        "status": { "phase": "Active" },
    })
}

/// Returns a service account with annotations.
#[must_use]
pub fn service_account(namespace: &str, name: &str, annotations: &[(&str, &str)]) -> Value {
    json!({
        "kind": "ServiceAccount",
        "apiVersion": "v1",
        "metadata": {
            "name": name,
            "namespace": namespace,
            "annotations": map(annotations),
            "managedFields": [managed_fields("kubectl-client-side-apply", "", json!({
                "f:metadata": { "f:annotations": { ".": {} } },
            }))],
        },
    })
}

/// Returns a ready node with internal addresses.
#[must_use]
pub fn node(name: &str, internal_ips: &[&str]) -> Value {
    let address = |kind: &str, address: &str| json!({ "type": kind, "address": address });
    let mut addresses: Vec<Value> = internal_ips.iter().map(|ip| address("InternalIP", ip)).collect();
    addresses.push(address("Hostname", name));
    addresses.push(address("InternalDNS", &format!("{name}.ec2.internal")));
    let resources = json!({ "cpu": "4", "ephemeral-storage": "83873772Ki", "memory": "16069060Ki", "pods": "58" });
    json!({
        "kind": "Node",
        "apiVersion": "v1",
        "metadata": {
            "name": name,
            "labels": {
                "kubernetes.io/arch": "amd64", "kubernetes.io/hostname": name, "kubernetes.io/os": "linux",
                "node.kubernetes.io/instance-type": "m6i.xlarge", "topology.kubernetes.io/region": "eu-west-1",
                "topology.kubernetes.io/zone": "eu-west-1a",
            },
            "annotations": { "node.alpha.kubernetes.io/ttl": "0" },
            "managedFields": [managed_fields("kubelet", "status", json!({
                "f:status": { "f:conditions": { "k:{\"type\":\"Ready\"}": { "f:lastHeartbeatTime": {} } } },
            }))],
        },
        "spec": {
            "podCIDR": "10.42.0.0/24",
            "podCIDRs": ["10.42.0.0/24"],
            "providerID": "aws:///eu-west-1a/i-0a1b2c3d4e5f60718",
        },
        "status": {
            "capacity": resources.clone(),
            "allocatable": resources,
            "addresses": addresses,
            "conditions": [{
                "type": "Ready", "status": "True", "reason": "KubeletReady", "message": "kubelet is posting ready status",
                "lastHeartbeatTime": CREATED, "lastTransitionTime": CREATED,
            }],
            "daemonEndpoints": { "kubeletEndpoint": { "Port": 10250 } },
            "nodeInfo": {
                "machineID": "ec2a1b2c3d4e5f60718293a4b5c6d7e8", "systemUUID": "ec2a1b2c-3d4e-5f60-7182-93a4b5c6d7e8",
                "bootID": "9c3a7b7c-6f0f-4c39-8f0e-7f9d8f8a6f11", "kernelVersion": "6.1.141", "osImage": "Amazon Linux 2023",
                "containerRuntimeVersion": "containerd://1.7.27", "kubeletVersion": "v1.33.4", "kubeProxyVersion": "",
                "operatingSystem": "linux", "architecture": "amd64",
            },
        },
    })
}

fn map(pairs: &[(&str, &str)]) -> Value {
    json!(pairs.iter().copied().collect::<BTreeMap<_, _>>())
}

pub(super) fn managed_fields(manager: &str, subresource: &str, fields: Value) -> Value {
    let mut entry = json!({
        "manager": manager,
        "operation": "Update",
        "apiVersion": "v1",
        "time": CREATED,
        "fieldsType": "FieldsV1",
        "fieldsV1": fields,
    });
    if !subresource.is_empty() {
        entry["subresource"] = subresource.into();
    }
    entry
}
