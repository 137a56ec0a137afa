//! rolegate gives every pod of a Kubernetes node its own IAM role from the EC2 metadata address, and never the node's.
//!
//! ```text
//! pod ──TCP──▶ redirect rules ──▶ server ──▶ proxy ─┬─▶ pods         who is this?
//!  169.254.169.254:80            (accept,   (one    ├─▶ policy       which role may it have?
//!                                 peer IP)  request)├─▶ credentials  get them
//!                                                   └─▶ respond      the one place that makes answers
//! behind them:  pods ◀── kube watch      credentials ◀── STS AssumeRole
//! beside them:  redirect (the packet rules)     admin (health, metrics)      telemetry
//! ```
//!
//! A module imports what stands to its right, never back:
//! `main → cli → config → app → {server, admin, redirect, pods::watch, credentials::sts, events::writer} → proxy → {events, pods,
//! policy, credentials} → role`. `scripts/check-boundaries` holds the code to it.
//!
//! - [`cli`]: subcommands and exit codes
//! - [`config`]: arguments and environment, validated
//! - [`app`]: the composition root
//! - [`server`]: connections, and which are let in
//! - [`proxy`]: one request, from its head to its answer
//! - [`pods`]: the pods of this node by address, and their watch
//! - [`kubernetes`]: the client of the Kubernetes API
//! - [`pod_identity`]: service account tokens of pods, verified offline
//! - [`links`]: what the node itself sees of its pods: the link of an address, and CNI results
//! - [`policy`]: which role a pod may have
//! - [`credentials`]: sessions of roles, and STS
//! - [`events`]: what the owners of pods are told
//! - `exemptions`: pods in the node's network that reach the real metadata service
//! - [`explain`]: every step of a decision, for people
//! - `check`: what the daemon needs, verified before it starts
//! - `iam_policy`: the IAM policies that the roles in use need
//! - `progress`: how far a command is, on a terminal
//! - [`role`]: the names that AWS knows a session by
//! - [`redirect`]: the packet rules, and what keeps them true
//! - [`admin`], [`metrics`], [`readiness`], [`telemetry`]: what operators see
//! - `log_once`: which log lines are due, where something repeats
//! - [`capabilities`]: what the process may do to the node
//! - [`handover`], [`unix_socket`]: the pods' socket goes from one daemon to the next
//! - [`netlink`]: queries to the kernel about interfaces, routes and neighbours
//! - `migrate`: manifests of kube2iam and kiam become rolegate's
//! - [`probe`]: the kubelet's questions to the daemon of its own pod
//! - [`advice`], [`backoff`], [`cgroup`], [`clock`], [`metadata_service`], [`session_limits`], [`text`]: the ground floor, which
//!   every module may use
//! - [`digest`], `sorted`: names and maps in little memory, for what is kept of each pod
//! - [`connections`], [`shares`]: limits of connections, and fair sharing of limited places
//! - [`startup_taint`]: keeps pods off the node until the daemon is ready
//! - [`environment`]: what libraries may read of the environment
//! - [`drain`], [`tasks`]: the end of the service, and of what runs beside it

#![forbid(unsafe_code)]
#![allow(rustdoc::private_intra_doc_links, reason = "the documentation is for contributors, and built with private items")]

mod admin;
pub mod advice;
mod app;
mod backoff;
mod capabilities;
pub mod cgroup;
mod check;
pub mod cli;
pub mod clock;
pub mod config;
mod connections;
pub mod credentials;
mod daemon_client;
pub mod digest;
mod drain;
pub mod environment;
pub mod events;
mod exemptions;
mod explain;
mod generation;
mod handover;
mod iam_policy;
pub mod kubernetes;
pub mod links;
mod log_once;
pub mod metadata_service;
pub mod metrics;
mod migrate;
pub mod netlink;
pub mod pod_identity;
pub mod pods;
pub mod policy;
mod probe;
mod progress;
pub mod proxy;
pub mod readiness;
mod recent_refusals;
pub mod redirect;
mod report;
pub mod role;
mod self_test;
mod server;
mod session_limits;
mod shares;
mod sorted;
mod startup_taint;
mod status;
mod tasks;
mod telemetry;
mod text;
mod unix_socket;
