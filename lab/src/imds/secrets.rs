//! Secrets that are recognizable wherever they leak.

use crate::sts::{NODE_ACCESS_KEY_ID, NODE_SECRET_ACCESS_KEY, NODE_SESSION_TOKEN};

/// The name in the ARN of the node's role, and of the instance profile.
pub const NODE_ROLE_NAME: &str = "NODE-ROLE-MUST-NEVER-LEAK";
/// A line of the user data.
pub const NODE_USER_DATA_SECRET: &str = "NODE-USER-DATA-MUST-NEVER-LEAK";
/// The prefix of every IMDSv2 token of this service. A pod that has such a token has reached the service.
pub const NODE_IMDS_TOKEN_MARKER: &str = "AQAENODEIMDSTOKENMUSTNEVERLEAK";
/// The access key id of the instance identity role.
pub const NODE_IDENTITY_ACCESS_KEY_ID: &str = "ASIAIDENTITYNEVERLEA";
/// The secret key of the instance identity role.
pub const NODE_IDENTITY_SECRET: &str = "NODE-IDENTITY-SECRET-MUST-NEVER-LEAK/+01";
/// The session token of the instance identity role.
pub const NODE_IDENTITY_TOKEN: &str = "NODE-IDENTITY-TOKEN-MUST-NEVER-LEAK//+=";
/// A marker in the signed forms of the instance identity document.
pub const NODE_SIGNED_IDENTITY: &str = "NODE-SIGNED-IDENTITY-MUST-NEVER-LEAK";
/// A marker in the public keys of the instance.
pub const NODE_PUBLIC_KEY: &str = "NODE-PUBLIC-KEY-MUST-NEVER-LEAK";

/// Everything that no pod may ever see, including the access key IDs.
pub(super) const SECRETS: [&str; 11] = [
    NODE_SECRET_ACCESS_KEY,
    NODE_SESSION_TOKEN,
    NODE_ACCESS_KEY_ID,
    NODE_IDENTITY_SECRET,
    NODE_IDENTITY_TOKEN,
    NODE_IDENTITY_ACCESS_KEY_ID,
    NODE_USER_DATA_SECRET,
    NODE_SIGNED_IDENTITY,
    NODE_PUBLIC_KEY,
    NODE_IMDS_TOKEN_MARKER,
    NODE_ROLE_NAME,
];
