//! The daemon's own packet rule, in real network namespaces: which requests it brings to the daemon, which it does not, and
//! what becomes of it when the daemon restarts, ends or may not set it.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails where an unwrap does")]

mod backstop;
mod bed;
mod boot;
mod bridge;
mod capabilities;
mod connections;
mod endpoints;
mod forgery;
mod interfaces;
mod iptables;
mod iptables_packets;
mod keep;
mod kinds;
mod lifetime;
mod links;
mod neighbours;
mod nftables;
mod node_address;
mod overlap;
mod selftest;
mod upstream;
