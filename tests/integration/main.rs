//! Tests of the real daemon, as a process, against the lab. They are one test program.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test says loudly what failed")]

mod ahead;
mod alerts;
mod bpf_objects;
mod chart;
mod check;
mod command_line;
mod connections;
mod corpus;
mod docs;
mod events;
mod explain;
mod fairness;
mod flood;
mod iam_policy;
mod identity;
mod kubernetes;
mod large_objects;
mod lifecycle;
mod manifests;
mod metadata;
mod metrics;
mod named_tests;
mod object_schemas;
mod odd_clients;
mod overlap;
mod own_identity;
mod pod_identity;
mod policy;
mod properties;
mod proxies;
mod report;
mod rotation;
mod serving;
mod source_identity;
mod status;
mod stress;
mod sts;
mod sts_errors;
mod taint;
mod target_role;
mod tells;
mod transcripts;
mod witness;
mod world;
