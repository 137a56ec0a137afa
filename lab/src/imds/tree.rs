//! The tree below `/latest/` and every other version.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use jiff::Timestamp;

use super::secrets::{
    NODE_IDENTITY_ACCESS_KEY_ID, NODE_IDENTITY_SECRET, NODE_IDENTITY_TOKEN, NODE_PUBLIC_KEY, NODE_ROLE_NAME, NODE_SIGNED_IDENTITY,
    NODE_USER_DATA_SECRET,
};
use crate::sts::{NODE_ACCESS_KEY_ID, NODE_ACCOUNT, NODE_SECRET_ACCESS_KEY, NODE_SESSION_TOKEN};

/// The name of the newest version.
pub(super) const LATEST: &str = "latest";

/// The versions that `/` lists, without `latest`.
pub const VERSIONS: [&str; 25] = [
    "1.0",
    "2007-01-19",
    "2007-03-01",
    "2007-08-29",
    "2007-10-10",
    "2007-12-15",
    "2008-02-01",
    "2008-09-01",
    "2009-04-04",
    "2011-01-01",
    "2011-05-01",
    "2012-01-12",
    "2014-02-25",
    "2014-11-05",
    "2015-10-20",
    "2016-04-19",
    "2016-06-30",
    "2016-09-02",
    "2018-03-28",
    "2018-08-17",
    "2018-09-24",
    "2019-10-01",
    "2020-10-27",
    "2021-01-03",
    "2021-03-23",
];

/// The lifetime of the node's credentials, as on EC2.
const CREDENTIALS_LIFETIME: Duration = Duration::from_secs(6 * 3600);

const MAC: &str = "0a:1b:2c:3d:4e:5f";

/// Values below `meta-data/`, except those of the network interface and of IAM.
const META_DATA: [(&str, &str); 33] = [
    ("ami-id", "ami-0123456789abcdef0"),
    ("ami-launch-index", "0"),
    ("ami-manifest-path", "(unknown)"),
    ("autoscaling/target-lifecycle-state", "InService"),
    ("block-device-mapping/ami", "/dev/xvda"),
    ("block-device-mapping/root", "/dev/xvda"),
    ("events/maintenance/history", "[]"),
    ("events/maintenance/scheduled", "[]"),
    ("events/recommendations/rebalance", r#"{"noticeTime":"2026-01-01T00:00:00Z"}"#),
    ("hostname", "ip-10-0-1-23.eu-central-1.compute.internal"),
    ("instance-action", "none"),
    ("instance-id", "i-0f1e2d3c4b5a69788"),
    ("instance-life-cycle", "spot"),
    ("instance-type", "m7g.xlarge"),
    ("local-hostname", "ip-10-0-1-23.eu-central-1.compute.internal"),
    ("local-ipv4", "10.0.1.23"),
    ("mac", MAC),
    ("placement/availability-zone", "eu-central-1b"),
    ("placement/availability-zone-id", "euc1-az3"),
    ("placement/region", "eu-central-1"),
    ("profile", "default-hvm"),
    ("public-keys/0/openssh-key", NODE_PUBLIC_KEY),
    // This directory lists its members with numbers and names.
    ("public-keys/", "0=node-key"),
    ("managed-ssh-keys/signer-cert", NODE_PUBLIC_KEY),
    ("reservation-id", "r-0a1b2c3d4e5f60718"),
    ("security-groups", "nodes\ncluster"),
    ("services/domain", "amazonaws.com"),
    ("services/partition", "aws"),
    ("spot/instance-action", r#"{"action":"terminate","time":"2030-01-01T00:00:00Z"}"#),
    ("spot/termination-time", "2030-01-01T00:00:00Z"),
    ("system", "nitro"),
    ("tags/instance/Name", "node-1"),
    ("tags/instance/cluster", "lab"),
];

/// Values below `network/interfaces/macs/<mac>/`.
const INTERFACE: [(&str, &str); 13] = [
    ("device-number", "0"),
    ("interface-id", "eni-0123456789abcdef0"),
    ("local-hostname", "ip-10-0-1-23.eu-central-1.compute.internal"),
    ("local-ipv4s", "10.0.1.23"),
    ("mac", MAC),
    ("owner-id", NODE_ACCOUNT),
    ("security-group-ids", "sg-0123456789abcdef0"),
    ("security-groups", "nodes\ncluster"),
    ("subnet-id", "subnet-0123456789abcdef0"),
    ("subnet-ipv4-cidr-block", "10.0.1.0/24"),
    ("vpc-id", "vpc-0123456789abcdef0"),
    ("vpc-ipv4-cidr-block", "10.0.0.0/16"),
    ("vpc-ipv4-cidr-blocks", "10.0.0.0/16"),
];

/// A leaf of the tree.
#[derive(Clone, Debug)]
enum Value {
    Text(String),
    /// `iam/info`, with the current time.
    ProfileInfo,
    /// `identity-credentials/ec2/info`.
    IdentityInfo,
    /// The role credentials of the node.
    NodeCredentials,
    /// The credentials of the instance identity role.
    IdentityCredentials,
}

/// Leaves by their path below the version. A path that ends in a slash is a directory whose listing is not simply its members'
/// names.
#[derive(Debug)]
pub(super) struct Tree(BTreeMap<String, Value>);

impl Tree {
    /// Returns the complete tree of a node.
    pub(super) fn of_node() -> Tree {
        let mut tree = Tree(BTreeMap::new());
        for (path, value) in META_DATA {
            tree.insert(format!("meta-data/{path}"), value);
        }
        for (leaf, value) in INTERFACE {
            let path = format!("meta-data/network/interfaces/macs/{MAC}/{leaf}");
            tree.insert(path, value);
        }
        for signed in ["pkcs7", "signature", "rsa2048"] {
            let path = format!("dynamic/instance-identity/{signed}");
            let value = format!("MIAGCSqGSIb3DQEHAqCAMIAC\n{NODE_SIGNED_IDENTITY}\nAAAAAAAA");
            tree.insert(path, &value);
        }
        let document = "dynamic/instance-identity/document".to_owned();
        tree.insert(document, &identity_document());
        let user_data = format!("#!/bin/sh\n# {NODE_USER_DATA_SECRET}\njoin-the-cluster\n");
        tree.insert("user-data".to_owned(), &user_data);
        let iam = "meta-data/iam";
        let identity = "meta-data/identity-credentials/ec2";
        for (path, value) in [
            (format!("{iam}/info"), Value::ProfileInfo),
            (format!("{iam}/security-credentials/{NODE_ROLE_NAME}"), Value::NodeCredentials),
            (format!("{identity}/info"), Value::IdentityInfo),
            (format!("{identity}/security-credentials/ec2-instance"), Value::IdentityCredentials),
        ] {
            tree.0.insert(path, value);
        }
        tree
    }

    pub(super) fn set(&mut self, path: &str, value: &str) {
        self.insert(below_version(path).to_owned(), value);
    }

    pub(super) fn remove(&mut self, path: &str) {
        let path = below_version(path);
        let below = format!("{path}/");
        self.0.retain(|key, _| key != path && !key.starts_with(&below));
    }

    /// Returns the text of a leaf.
    pub(super) fn value(&self, path: &str, now: SystemTime) -> Option<String> {
        self.0.get(path).map(|value| value.text(now))
    }

    /// Returns the members of a directory, one per line. Directories among them end in a slash.
    pub(super) fn listing(&self, path: &str) -> Option<String> {
        let prefix = match path {
            "" => String::new(),
            path => format!("{path}/"),
        };
        if let Some(Value::Text(listing)) = self.0.get(&prefix) {
            return Some(listing.clone());
        }
        let mut members: Vec<&str> = self
            .0
            .range(prefix.clone()..)
            .map_while(|(key, _)| key.strip_prefix(&prefix))
            .map(|rest| rest.find('/').map_or(rest, |slash| &rest[..=slash]))
            .collect();
        members.dedup();
        if path.is_empty() {
            // The real service lists the top level without slashes.
            for member in &mut members {
                *member = member.trim_end_matches('/');
            }
        }
        (!members.is_empty()).then(|| members.join("\n"))
    }

    fn insert(&mut self, path: String, value: &str) {
        self.0.insert(path, Value::Text(value.to_owned()));
    }
}

impl Value {
    fn text(&self, now: SystemTime) -> String {
        let updated = timestamp(now);
        let document = match self {
            Value::Text(text) => return text.clone(),
            Value::ProfileInfo => serde_json::json!({
                "Code": "Success",
                "LastUpdated": updated,
                "InstanceProfileArn":
                    format!("arn:aws:iam::{NODE_ACCOUNT}:instance-profile/{NODE_ROLE_NAME}"),
                "InstanceProfileId": "AIPA0123456789ABCDEF0",
            }),
            Value::IdentityInfo => serde_json::json!({
                "Code": "Success",
                "LastUpdated": updated,
                "AccountId": NODE_ACCOUNT,
            }),
            Value::NodeCredentials => credentials(now, [NODE_ACCESS_KEY_ID, NODE_SECRET_ACCESS_KEY, NODE_SESSION_TOKEN]),
            Value::IdentityCredentials => credentials(now, [NODE_IDENTITY_ACCESS_KEY_ID, NODE_IDENTITY_SECRET, NODE_IDENTITY_TOKEN]),
        };
        format!("{document:#}")
    }
}

fn credentials(now: SystemTime, [key, secret, token]: [&str; 3]) -> serde_json::Value {
    serde_json::json!({
        "Code": "Success",
        "LastUpdated": timestamp(now),
        "Type": "AWS-HMAC",
        "AccessKeyId": key,
        "SecretAccessKey": secret,
        "Token": token,
        "Expiration": timestamp(now + CREDENTIALS_LIFETIME),
    })
}

fn identity_document() -> String {
    let document = serde_json::json!({
        "accountId": NODE_ACCOUNT,
        "architecture": "arm64",
        "availabilityZone": "eu-central-1b",
        "billingProducts": null,
        "devpayProductCodes": null,
        "imageId": "ami-0123456789abcdef0",
        "instanceId": "i-0f1e2d3c4b5a69788",
        "instanceType": "m7g.xlarge",
        "kernelId": null,
        "marketplaceProductCodes": null,
        "pendingTime": "2026-01-01T00:00:00Z",
        "privateIp": "10.0.1.23",
        "ramdiskId": null,
        "region": "eu-central-1",
        "version": "2017-09-30",
    });
    format!("{document:#}")
}

/// Formats a time as `2026-01-01T00:00:00Z`, in whole seconds.
fn timestamp(time: SystemTime) -> String {
    let time = Timestamp::try_from(time).unwrap_or(Timestamp::UNIX_EPOCH);
    let time = Timestamp::from_second(time.as_second()).unwrap_or(time);
    time.to_string()
}

/// Removes `/latest/` and surrounding slashes from a path, if present.
fn below_version(path: &str) -> &str {
    let path = path.trim_matches('/');
    path.strip_prefix("latest/").unwrap_or(path)
}
