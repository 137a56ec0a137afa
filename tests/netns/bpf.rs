//! Tests of `--redirect=bpf` on a node whose network plugin sends the packets of pods past netfilter (`lab/bpf/bypass.c`), with every
//! netfilter rule removed. Each test counts the packets that arrive at the metadata service.

mod agent;
mod attacks;
mod bed;
mod closed;
mod identity;
mod impostors;
mod load;
mod local_redirect;
mod others;
mod packets;
mod self_test;
mod services;
