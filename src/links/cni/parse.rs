//! Parses the content of a result file into an [`Attachment`]. Pure and total: any input gives either an attachment that libcni
//! wrote, or the reason why the file is ignored.

use std::io::ErrorKind;
use std::net::IpAddr;

use serde::Deserialize;
use serde_json::value::RawValue;

use super::attachment::Attachment;

/// The maximum number of addresses and of interfaces kept from one result.
const MAX_LIST: usize = 32;
/// The longest name of a network interface (`IFNAMSIZ`, less the NUL).
const MAX_INTERFACE: usize = 15;
/// The longest name of a Kubernetes object (a DNS subdomain), also used for network names, container IDs and UIDs.
const MAX_NAME: usize = 253;

/// The reason why a file is no evidence.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Ignored {
    #[error("the file is not a regular file")]
    NotRegular,
    #[error("the file is too large")]
    TooLarge,
    #[error("the file cannot be read: {0}")]
    Unreadable(ErrorKind),
    #[error("the file is not a result that libcni 0.8 or later caches")]
    NotACache,
    #[error("the file's name does not match its content")]
    Foreign,
    #[error("the result names no pod, or names it twice with different values")]
    NoPod,
    #[error("the result cannot be parsed")]
    BadResult,
    #[error("the result has no pod address")]
    NoAddress,
}

/// The `cachedInfo` of libcni/api.go. `config` and `capabilityArgs` (with the pod's annotations) are skipped.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Cached<'a> {
    kind: String,
    container_id: String,
    if_name: String,
    network_name: String,
    cni_args: Option<Vec<(String, String)>>,
    #[serde(borrow)]
    result: Option<&'a RawValue>,
}

/// The `Result` of pkg/types/020, 040 and 100: the fields of all versions, which do not overlap.
#[derive(Deserialize)]
struct CniResult {
    interfaces: Option<Vec<Option<ResultInterface>>>,
    ips: Option<Vec<Option<IpConfig>>>,
    ip4: Option<OldIpConfig>,
    ip6: Option<OldIpConfig>,
}

#[derive(Deserialize)]
struct ResultInterface {
    #[serde(default)]
    name: String,
    #[serde(default)]
    mac: String,
    /// The path of the network namespace; absent or empty for an interface of the node.
    #[serde(default)]
    sandbox: String,
}

#[derive(Deserialize)]
struct IpConfig {
    address: String,
    /// An index into `interfaces`.
    interface: Option<i64>,
}

#[derive(Deserialize)]
struct OldIpConfig {
    ip: String,
}

/// The values that the runtime passes to plugins as `CNI_ARGS`.
#[derive(Default)]
struct Args<'a> {
    namespace: Option<&'a str>,
    pod: Option<&'a str>,
    uid: Option<&'a str>,
}

/// Parses the content of the file with this name, last written at this time (nanoseconds since 1970).
pub(super) fn parse(file_name: &str, bytes: &[u8], written: u64) -> Result<Attachment, Ignored> {
    let text = std::str::from_utf8(bytes).map_err(|_| Ignored::NotACache)?;
    let cached: Cached<'_> = serde_json::from_str(text).map_err(|_| Ignored::NotACache)?;
    if cached.kind != "cniCacheV1" {
        return Err(Ignored::NotACache);
    }
    let Cached { network_name, container_id, if_name, .. } = &cached;
    if !is_name(network_name) || !is_name(container_id) || !is_interface(if_name) {
        return Err(Ignored::NotACache);
    }
    // A copy of a file is not removed when the pod is.
    if file_name != format!("{network_name}-{container_id}-{if_name}") {
        return Err(Ignored::Foreign);
    }
    let args = Args::read(cached.cni_args.as_deref().unwrap_or_default())?;
    let (Some(namespace), Some(pod)) = (args.namespace, args.pod) else { return Err(Ignored::NoPod) };
    let result: CniResult = cached.result.and_then(|raw| serde_json::from_str(raw.get()).ok()).ok_or(Ignored::BadResult)?;
    let interfaces = result.interfaces.as_deref().unwrap_or_default();
    let ips = result.ips(interfaces);
    let mac = result.mac(interfaces, &ips, if_name);
    let ips: Vec<IpAddr> = ips.into_iter().map(|(ip, _)| ip).collect();
    if ips.is_empty() {
        return Err(Ignored::NoAddress);
    }
    Ok(Attachment {
        namespace: namespace.to_owned(),
        pod: pod.to_owned(),
        uid: args.uid.map(str::to_owned),
        host_interfaces: host_interfaces(interfaces),
        ips,
        mac,
        written,
    })
}

impl<'a> Args<'a> {
    /// Extracts the values that identify the pod. Multus passes on a list with each pair twice; two different values for one
    /// key are ambiguous.
    fn read(pairs: &'a [(String, String)]) -> Result<Self, Ignored> {
        let mut args = Self::default();
        for (key, value) in pairs {
            let place = match key.as_str() {
                "K8S_POD_NAMESPACE" => &mut args.namespace,
                "K8S_POD_NAME" => &mut args.pod,
                "K8S_POD_UID" => &mut args.uid,
                _ => continue,
            };
            // Older versions of CRI-O write the key without a value if the kubelet gave none.
            if value.is_empty() {
                continue;
            }
            if !is_name(value) || place.is_some_and(|before| before != value) {
                return Err(Ignored::NoPod);
            }
            *place = Some(value);
        }
        Ok(args)
    }
}

impl CniResult {
    /// Returns the pod's addresses, each with the index of its interface if the result has one.
    fn ips(&self, interfaces: &[Option<ResultInterface>]) -> Vec<(IpAddr, Option<usize>)> {
        let has_sandbox = interfaces.iter().flatten().any(|interface| !interface.sandbox.is_empty());
        let mut ips: Vec<(IpAddr, Option<usize>)> = Vec::new();
        let mut add = |text: &str, place: Option<usize>| {
            let ip = text.split('/').next().and_then(|text| text.parse::<IpAddr>().ok()).map(|ip| ip.to_canonical());
            if let Some(ip) = ip.filter(|ip| is_of_a_pod(*ip) && ips.len() < MAX_LIST && !ips.iter().any(|(known, _)| known == ip)) {
                ips.push((ip, place));
            }
        };
        for config in self.ips.iter().flatten().flatten() {
            let place = match config.interface.map(usize::try_from) {
                None => None,
                Some(Err(_)) => continue,
                Some(Ok(place)) => match interfaces.get(place).map(Option::as_ref) {
                    // An address of the node's end is not the pod's. Some plugins name no sandbox at all.
                    Some(Some(interface)) if has_sandbox && interface.sandbox.is_empty() => continue,
                    Some(Some(_)) => Some(place),
                    _ => continue,
                },
            };
            add(&config.address, place);
        }
        for config in [&self.ip4, &self.ip6].into_iter().flatten() {
            add(&config.ip, None);
        }
        ips
    }

    /// Returns the hardware address of the interface that has the first address, or of the interface that the runtime
    /// requested.
    fn mac(&self, interfaces: &[Option<ResultInterface>], ips: &[(IpAddr, Option<usize>)], if_name: &str) -> Option<[u8; 6]> {
        let of_ip = ips.first().and_then(|(_, place)| *place).and_then(|place| interfaces.get(place)?.as_ref());
        let of_name = || interfaces.iter().flatten().find(|interface| interface.name == if_name);
        let interface = of_ip.or_else(of_name).filter(|interface| !interface.sandbox.is_empty())?;
        mac(&interface.mac)
    }
}

fn host_interfaces(interfaces: &[Option<ResultInterface>]) -> Vec<String> {
    let of_host = interfaces.iter().flatten().filter(|interface| interface.sandbox.is_empty() && is_interface(&interface.name));
    of_host.map(|interface| interface.name.clone()).take(MAX_LIST).collect()
}

/// Parses a hardware address such as `0a:58:0a:f4:01:06`. Returns `None` for anything else, and for the all-zero and group
/// addresses. The AWS VPC CNI stores a VLAN in this field.
fn mac(text: &str) -> Option<[u8; 6]> {
    let mut bytes = [0; 6];
    let mut parts = text.split(':');
    for byte in &mut bytes {
        let part = parts.next().filter(|part| part.len() == 2 && part.bytes().all(|byte| byte.is_ascii_hexdigit()))?;
        *byte = u8::from_str_radix(part, 16).ok()?;
    }
    let is_of_one = parts.next().is_none() && bytes != [0; 6] && bytes[0] & 1 == 0;
    is_of_one.then_some(bytes)
}

/// Returns whether a pod may have this address: addresses with a special meaning are excluded.
fn is_of_a_pod(ip: IpAddr) -> bool {
    !(ip.is_loopback() || ip.is_unspecified() || ip.is_multicast())
}

/// Returns whether this is a valid name of a network, container, pod or namespace, or a UID. `ValidateNetworkName` and
/// `ValidateContainerID` of pkg/utils are the least strict of their rules.
fn is_name(text: &str) -> bool {
    let is_end = |byte: &u8| byte.is_ascii_alphanumeric();
    text.len() <= MAX_NAME
        && text.as_bytes().first().is_some_and(is_end)
        && text.bytes().all(|byte| is_end(&byte) || matches!(byte, b'_' | b'.' | b'-'))
}

/// Returns whether this is a valid interface name: `ValidateInterfaceName` of pkg/utils.
fn is_interface(text: &str) -> bool {
    !text.is_empty()
        && text.len() <= MAX_INTERFACE
        && !matches!(text, "." | "..")
        && text.bytes().all(|byte| byte.is_ascii_graphic() && !matches!(byte, b'/' | b':'))
}
