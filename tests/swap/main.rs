//! The swap: argument lists, environments, probes and permissions of public manifests for kube2iam and kiam, given to rolegate as
//! they are. Each has its verdict.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test says loudly what failed")]

#[path = "../netns/bed.rs"]
#[allow(dead_code, unreachable_pub, reason = "shared with tests/netns, which uses more of it")]
mod bed;

mod cluster;
mod kiam;
mod kube2iam;
mod own_pod;
