//! rolegate's test bed.

mod http_server;
pub mod imds;
pub mod sts;
