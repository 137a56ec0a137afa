//! The table of what pods may read of the real metadata service. Nothing else of the service is ever served. (Categories: EC2 user
//! guide, "Instance metadata categories".)
//!
//! The table never contains `iam`, `identity-credentials`, `user-data`, signed identity, or public keys.

use std::time::Duration;

/// Who may read a group.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Set {
    /// What the region and identity providers of SDKs read.
    Base,
    /// What node agents read: topology, tags, notices.
    NodeInfo,
}

impl Set {
    /// Returns the name of the profile that adds this set.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Base => "base",
            Self::NodeInfo => "node-info",
        }
    }

    /// Whether a path could be a value of this set, or a directory on the way to one.
    pub(crate) fn has(self, path: &str) -> bool {
        GROUPS.iter().any(|group| group.set == self && group.has(path))
    }
}

/// Values that are read together.
#[derive(Debug)]
pub(super) struct Group {
    /// The name in the log.
    pub(super) name: &'static str,
    pub(super) set: Set,
    /// How often the values are read.
    pub(super) every: Duration,
    /// The values are read only while somebody asks for them, because they may change at any time. Values that are older than a few
    /// readings are not served.
    pub(super) while_asked: bool,
    /// Paths below the version.
    pub(super) leaves: &'static [&'static str],
    /// Directories whose names only the real service knows.
    pub(super) trees: &'static [Tree],
}

/// A directory whose names the daemon asks the service for.
#[derive(Debug)]
pub(super) struct Tree {
    /// The path below the version.
    pub(super) path: &'static str,
    pub(super) names: Names,
}

/// The names that are taken from a directory.
#[derive(Debug)]
pub(super) enum Names {
    /// Every leaf in it.
    Leaves,
    /// Interfaces by their hardware address, and these values of each.
    Interfaces(Interface),
}

/// What is taken of a network interface, where the service lists it.
#[derive(Debug)]
pub(super) struct Interface {
    /// Values.
    pub(super) leaves: &'static [&'static str],
    /// Directories of values whose names are IPv4 addresses.
    pub(super) by_address: &'static [&'static str],
}

/// For values that hardly ever change while the node runs.
const HOURLY: Duration = Duration::from_secs(3600);
/// For values that somebody may change.
const MINUTES: Duration = Duration::from_secs(300);
/// How often clients should look for notices (EC2 user guide, "Spot Instance interruption notices").
const NOTICES: Duration = Duration::from_secs(5);

/// Everything that a pod can read of the real service.
pub(super) const GROUPS: [Group; 3] = [
    Group {
        name: "base",
        set: Set::Base,
        every: HOURLY,
        while_asked: false,
        leaves: &[
            "dynamic/instance-identity/document",
            "meta-data/instance-id",
            "meta-data/instance-life-cycle",
            "meta-data/instance-type",
            "meta-data/placement/availability-zone",
            "meta-data/placement/availability-zone-id",
            "meta-data/placement/region",
            "meta-data/services/domain",
            "meta-data/services/partition",
        ],
        trees: &[],
    },
    Group {
        name: "node",
        set: Set::NodeInfo,
        every: MINUTES,
        while_asked: false,
        leaves: &[
            "meta-data/ami-id",
            "meta-data/ami-launch-index",
            "meta-data/ami-manifest-path",
            "meta-data/fws/instance-monitoring",
            "meta-data/hostname",
            "meta-data/kernel-id",
            "meta-data/local-hostname",
            "meta-data/local-ipv4",
            "meta-data/mac",
            "meta-data/placement/group-name",
            "meta-data/placement/host-id",
            "meta-data/placement/partition-number",
            "meta-data/product-codes",
            "meta-data/public-hostname",
            "meta-data/public-ipv4",
            "meta-data/ramdisk-id",
            "meta-data/reservation-id",
            "meta-data/security-groups",
        ],
        trees: &[
            Tree { path: "meta-data/block-device-mapping", names: Names::Leaves },
            Tree {
                path: "meta-data/network/interfaces/macs",
                names: Names::Interfaces(Interface {
                    leaves: &[
                        "device-number",
                        "interface-id",
                        "ipv4-prefix",
                        "ipv6-prefix",
                        "ipv6s",
                        "local-hostname",
                        "local-ipv4s",
                        "mac",
                        "network-card",
                        "network-card-index",
                        "owner-id",
                        "public-hostname",
                        "public-ipv4s",
                        "security-group-ids",
                        "security-groups",
                        "subnet-id",
                        "subnet-ipv4-cidr-block",
                        "subnet-ipv6-cidr-blocks",
                        "vpc-id",
                        "vpc-ipv4-cidr-block",
                        "vpc-ipv4-cidr-blocks",
                        "vpc-ipv6-cidr-blocks",
                    ],
                    // Which private addresses belong to a public one.
                    by_address: &["ipv4-associations"],
                }),
            },
            Tree { path: "meta-data/tags/instance", names: Names::Leaves },
        ],
    },
    Group {
        name: "notices",
        set: Set::NodeInfo,
        every: NOTICES,
        while_asked: true,
        leaves: &[
            "meta-data/autoscaling/target-lifecycle-state",
            "meta-data/events/maintenance/history",
            "meta-data/events/maintenance/scheduled",
            "meta-data/events/recommendations/rebalance",
            "meta-data/instance-action",
            "meta-data/spot/instance-action",
            "meta-data/spot/termination-time",
        ],
        trees: &[],
    },
];

/// Returns the set that a path belongs to; `None` if no pod can be given it.
pub(in crate::proxy) fn set_of(path: &str) -> Option<Set> {
    GROUPS.iter().filter(|group| group.has(path)).map(|group| group.set).min()
}

/// Returns the set of a path, and its name in reports: a leaf of the table, or a directory with a closing slash. Names that only
/// the real service knows are written as `*`, so that nothing of a client's text is in it.
pub(crate) fn name_of(path: &str) -> Option<(Set, String)> {
    GROUPS.iter().find_map(|group| Some((group.set, group.name_of(path)?)))
}

impl Interface {
    fn name_of(&self, path: &str) -> String {
        let (first, below) = path.split_once('/').map_or((path, None), |(first, rest)| (first, Some(rest)));
        let leaf = self.leaves.iter().find(|leaf| **leaf == path).map(|leaf| (*leaf).to_owned());
        let directory = self.by_address.iter().find(|directory| **directory == first);
        leaf.or_else(|| directory.map(|directory| format!("{directory}/{}", if below.is_some() { "*" } else { "" })))
            .unwrap_or_else(|| "*".to_owned())
    }
}

impl Group {
    fn name_of(&self, path: &str) -> Option<String> {
        if self.leaves.contains(&path) {
            return Some(path.to_owned());
        }
        let leads = |to: &str| is_in(to, path);
        if self.leaves.iter().any(|leaf| leads(leaf)) || self.trees.iter().any(|tree| leads(tree.path)) {
            return Some(format!("{path}/"));
        }
        let tree = self.trees.iter().find(|tree| is_in(path, tree.path))?;
        let below = path[tree.path.len()..].trim_start_matches('/').split_once('/');
        Some(match (&tree.names, below) {
            (Names::Leaves, _) => format!("{}/*", tree.path),
            (Names::Interfaces(_), None) => format!("{}/*/", tree.path),
            (Names::Interfaces(interface), Some((_, rest))) => format!("{}/*/{}", tree.path, interface.name_of(rest)),
        })
    }

    /// Whether a path could be a value of this group, or a directory on the way to one.
    pub(super) fn has(&self, path: &str) -> bool {
        let leads = |to: &str| is_in(to, path);
        self.leaves.iter().any(|leaf| leads(leaf)) || self.trees.iter().any(|tree| leads(tree.path) || is_in(path, tree.path))
    }
}

/// Whether `path` is `directory`, or below it.
fn is_in(path: &str, directory: &str) -> bool {
    path.strip_prefix(directory).is_some_and(|rest| rest.is_empty() || rest.starts_with('/') || directory.is_empty())
}

/// Whether a name that the service lists may be part of a path: what its tags, devices and addresses are made of.
pub(super) fn is_name(name: &str) -> bool {
    let good = |byte: u8| byte.is_ascii_alphanumeric() || b"+-=._:@,".contains(&byte);
    !name.is_empty() && name.len() <= 128 && name.bytes().all(good) && !matches!(name, "." | "..")
}

/// Whether a name is a hardware address, as the service writes them.
pub(super) fn is_mac(name: &str) -> bool {
    name.len() == 17
        && name.bytes().enumerate().all(|(at, byte)| if at % 3 == 2 { byte == b':' } else { matches!(byte, b'0'..=b'9' | b'a'..=b'f') })
}

/// Whether a name is an IPv4 address, as the service writes them.
pub(super) fn is_address(name: &str) -> bool {
    name.parse::<std::net::Ipv4Addr>().is_ok()
}

/// Returns the listing of a directory: the names in it, one on each line, with a slash behind those of directories. `paths` are the
/// values that may be seen. Returns `None` if none of them is below the directory.
pub(super) fn listing<'a>(directory: &str, paths: impl Iterator<Item = &'a str>) -> Option<String> {
    let mut names: Vec<&str> = paths
        .filter_map(|path| if directory.is_empty() { Some(path) } else { path.strip_prefix(directory)?.strip_prefix('/') })
        .map(|rest| rest.find('/').map_or(rest, |slash| &rest[..=slash]))
        .collect();
    names.sort_unstable();
    names.dedup();
    if directory.is_empty() {
        // The real service lists the top without slashes.
        names.iter_mut().for_each(|name| *name = name.trim_end_matches('/'));
    }
    (!names.is_empty()).then(|| names.join("\n"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_of_the_nodes_credentials_identity_or_data_is_in_the_table() {
        let never = ["iam", "identity-credentials", "user-data", "public-keys", "managed-ssh-keys", "pkcs7", "signature", "rsa2048"];
        let mut seen = 0;
        for group in &GROUPS {
            for path in group.leaves.iter().copied().chain(group.trees.iter().map(|tree| tree.path)) {
                assert!(path.starts_with("meta-data/") || path == "dynamic/instance-identity/document", "{path}");
                assert!(path.split('/').all(|segment| is_name(segment) && !never.contains(&segment)), "{path}");
                seen += 1;
            }
        }
        assert_eq!(seen, 37);
        for path in [
            "meta-data/iam",
            "meta-data/iam/security-credentials/role",
            "meta-data/public-keys",
            "meta-data/public-keys/0/openssh-key",
            "meta-data/public",
            "meta-data/system",
            "meta-data/profile",
            "meta-data/identity-credentials/ec2/info",
            "user-data",
            "dynamic/instance-identity/pkcs7",
            "dynamic/fws",
            "api/token",
        ] {
            assert!(!GROUPS.iter().any(|group| group.has(path)), "{path}");
        }
    }

    #[test]
    fn a_group_has_its_values_what_leads_to_them_and_what_is_in_its_trees() {
        let of = |path: &str| GROUPS.iter().filter(|group| group.has(path)).map(|group| group.name).collect::<Vec<_>>();
        assert_eq!(of("meta-data/placement"), ["base", "node"]);
        assert_eq!(of("meta-data/placement/host-id"), ["node"]);
        assert_eq!(of("meta-data/fws"), ["node"]);
        assert_eq!(of("meta-data/placement/region"), ["base"]);
        assert_eq!(of("meta-data/placement/region/x"), [""; 0]);
        assert_eq!(of("meta-data/placemen"), [""; 0]);
        assert_eq!(of("meta-data"), ["base", "node", "notices"]);
        assert_eq!(of(""), ["base", "node", "notices"]);
        assert_eq!(of("meta-data/tags/instance/Name"), ["node"]);
        assert_eq!(of("meta-data/spot"), ["notices"]);
        let sets = ["meta-data", "meta-data/placement/region", "meta-data/spot", "user-data"].map(set_of);
        assert_eq!(sets, [Some(Set::Base), Some(Set::Base), Some(Set::NodeInfo), None]);
    }

    #[test]
    fn a_listing_has_each_name_once() {
        let paths =
            ["dynamic/instance-identity/document", "meta-data/instance-id", "meta-data/placement/region", "meta-data/placement/zone"];
        let listing = |directory| listing(directory, paths.iter().copied());
        assert_eq!(listing("").as_deref(), Some("dynamic\nmeta-data"));
        assert_eq!(listing("meta-data").as_deref(), Some("instance-id\nplacement/"));
        assert_eq!(listing("meta-data/placement").as_deref(), Some("region\nzone"));
        assert_eq!(listing("meta-data/place"), None);
        assert_eq!(listing("meta-data/instance-id"), None);
    }

    #[test]
    fn names_of_the_service_are_looked_at_before_they_are_used() {
        assert!(is_mac("0a:1b:2c:3d:4e:5f"));
        for strange in ["", "0A:1b:2c:3d:4e:5f", "0a:1b:2c:3d:4e:5", "0a-1b-2c-3d-4e-5f", "../../../iam/secur"] {
            assert!(!is_mac(strange), "{strange}");
        }
        assert!(is_address("203.0.113.25"));
        for strange in ["", "203.0.113", "203.0.113.025", "203.0.113.25/", "../x", "2001:db8::1", "203.0.113.25 "] {
            assert!(!is_address(strange), "{strange}");
        }
        assert!(is_name("kubernetes.io:cluster@x=y,z+1_-"));
        for strange in ["", ".", "..", "a/b", "a b", "a%2f", "ä", "a\r\nb"] {
            assert!(!is_name(strange), "{strange}");
        }
    }
}
