//! What the node itself sees of its pods.

pub mod cni;
