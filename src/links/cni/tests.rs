#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test says loudly what failed")]
use super::*;

mod files;
mod follow;
mod model;
mod shapes;
