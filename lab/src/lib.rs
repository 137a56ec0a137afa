//! rolegate's test bed.

pub mod node;
pub mod player;
