//! rolegate's test bed.

#![forbid(unsafe_code)]

pub mod kube;
pub mod serve;
