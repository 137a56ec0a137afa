//! The addresses of the EC2 instance metadata service (EC2 user guide, "Access instance metadata").

use std::net::{Ipv4Addr, Ipv6Addr};

/// The IPv4 address.
pub const METADATA_IPV4: Ipv4Addr = Ipv4Addr::new(169, 254, 169, 254);
/// The IPv6 address.
pub const METADATA_IPV6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254);
/// The TCP port, on both addresses.
pub const METADATA_PORT: u16 = 80;
