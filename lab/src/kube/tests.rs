#![allow(clippy::unwrap_used, reason = "a failed step is a failed test")]

mod client;
mod faults;
mod issuer;
mod lists;
mod objects;
mod watches;

use std::net::TcpListener;

use super::{KubeApi, PodBuilder, Resource};
use client::Client;

/// Starts a server on a free port, and returns it with a client.
fn start() -> (KubeApi, Client) {
    let api = KubeApi::start(TcpListener::bind("127.0.0.1:0").unwrap()).unwrap();
    let client = Client::new(api.addr());
    (api, client)
}

/// Applies a pod in the namespace `team`, and returns its resource version.
fn apply_pod(api: &KubeApi, name: &str, node: &str) -> u64 {
    let pod = PodBuilder::new("team", name).node(node).build();
    version(&api.apply(Resource::Pods, pod))
}

/// Returns the resource version of an object or a list.
fn version(object: &serde_json::Value) -> u64 {
    let version = object["metadata"]["resourceVersion"].as_str();
    version.unwrap().parse().unwrap()
}

/// Returns the names of the items of a list.
fn names(list: &serde_json::Value) -> Vec<&str> {
    let items = list["items"].as_array().unwrap().iter();
    items.map(|item| item["metadata"]["name"].as_str().unwrap()).collect()
}
