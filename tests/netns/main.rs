//! Tests of the daemon's own packet rules in real network namespaces: which requests they redirect to the daemon, which they do
//! not, and what happens to them when the daemon restarts, ends or may not install them.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a failed unwrap fails the test")]

mod backstop;
mod bed;
mod boot;
mod bpf;
mod bridge;
mod capabilities;
mod check;
mod connections;
mod endpoints;
mod exits;
mod forgery;
mod impostors;
mod interfaces;
mod iptables;
mod iptables_packets;
mod keep;
mod kinds;
mod lifetime;
mod links;
mod many_services;
mod neighbours;
mod nftables;
mod node_address;
mod overlap;
mod own_requests;
mod pod_identity;
mod pod_identity_rules;
mod redirects;
mod reused_addresses;
mod routing;
mod selftest;
mod status;
mod upstream;
