//! rolegate's test bed: a fake Kubernetes API, STS and IMDS over real sockets, a node with pods made of network namespaces, a
//! player of raw requests, and the daemon itself as a process under test. It is never linked into the daemon.

#![forbid(unsafe_code)]

pub mod daemon;
mod http_server;
pub mod imds;
pub mod kube;
pub mod load;
pub mod node;
pub mod player;
pub mod serve;
pub mod sts;
