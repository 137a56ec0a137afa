//! rolegate's test bed.

pub mod node;
