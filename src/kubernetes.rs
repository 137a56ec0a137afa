//! The Kubernetes API: the only importer of `kube`. Every room may use it; it knows none of them.
//!
//! [`client`] sends requests; [`setup`] makes the connection they go by. [`filter`] keeps the few fields that are used of a
//! document of any size.

pub(crate) mod access;
pub(crate) mod answer;
pub mod client;
pub(crate) mod failure;
pub(crate) mod fields;
pub(crate) mod filter;
pub(crate) mod forward;
pub mod nodes;
pub mod own_pod;
pub(crate) mod response;
pub mod setup;
