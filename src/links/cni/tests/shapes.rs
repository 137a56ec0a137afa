//! The attachments that files describe, and the files that are ignored.

use super::super::attachment::Attachment;
use super::super::directory::MAX_FILE;
use super::super::parse::{Ignored, parse};
use super::files::{self, Cache, UID, Written, args};

fn read(file: &Written) -> Result<Attachment, Ignored> {
    parse(&file.name, file.content.as_bytes(), 1_700_000_000_000_000_000)
}

/// Parses the file of a modified cache entry.
fn changed(change: impl FnOnce(&mut Cache)) -> Result<Attachment, Ignored> {
    let mut cache = Cache::of("bridge", files::BRIDGE);
    change(&mut cache);
    read(&cache.write())
}

fn ips(attachment: &Attachment) -> Vec<String> {
    attachment.ips.iter().map(ToString::to_string).collect()
}

fn mac(attachment: &Attachment) -> String {
    attachment.mac.map(|mac| mac.map(|byte| format!("{byte:02x}")).join(":")).unwrap_or_default()
}

/// Network, result, addresses, interfaces of the host, MAC.
type Case = (&'static str, &'static str, &'static [&'static str], &'static [&'static str], &'static str);

#[test]
fn each_plugins_result_is_read() {
    let cases: [Case; 8] = [
        ("bridge", files::BRIDGE, &["10.85.0.5", "1100:200::5"], &["cni0", "veth1f9d3c7a"], "0a:58:0a:55:00:05"),
        ("myptp", files::PTP, &["172.16.29.7"], &["veth77a1b2c3"], "5e:01:02:03:04:05"),
        ("aws-cni", files::AWS, &["10.0.1.186"], &["eni8ad4b4c2f1a"], ""),
        ("aws-cni", files::AWS_BRANCH, &["10.0.1.186"], &["vlan8ad4b4c2f1a"], ""),
        ("k8s-pod-network", files::CALICO, &["10.135.153.140"], &["calie38e7158114"], ""),
        ("cilium", files::CILIUM, &["10.15.64.3"], &["lxce751ef859f45"], "26:3f:72:06:1b:b2"),
        ("kubenet", files::KUBENET, &["10.248.0.88"], &[], ""),
        // Multus caches the result of the pod's first network under its own name as well.
        ("multus-cni-network", files::CILIUM, &["10.15.64.3"], &["lxce751ef859f45"], "26:3f:72:06:1b:b2"),
    ];
    for (network, result, wanted_ips, host_interfaces, wanted_mac) in cases {
        let attachment = read(&Cache::of(network, result).write()).unwrap_or_else(|reason| panic!("{network}: {reason}"));
        assert_eq!(
            (attachment.namespace.as_str(), attachment.pod.as_str(), attachment.uid.as_deref()),
            ("shop", "web-1", Some(UID)),
            "{network}"
        );
        assert_eq!(ips(&attachment), wanted_ips, "{network}");
        assert_eq!(attachment.host_interfaces, host_interfaces, "{network}");
        assert_eq!(mac(&attachment), wanted_mac, "{network}");
        assert_eq!(attachment.written, 1_700_000_000_000_000_000);
    }
}

#[test]
fn multus_files_are_attachments_of_one_pod() {
    let (first, second) = (read(&files::flannel()).unwrap(), read(&files::macvlan()).unwrap());
    for attachment in [&first, &second] {
        assert_eq!((attachment.namespace.as_str(), attachment.pod.as_str()), ("default", "macvlan"));
        assert_eq!(attachment.uid.as_deref(), Some("f0bfbd5b-096d-48ef-998c-da26743dd0cb"));
    }
    assert_eq!((ips(&first), ips(&second)), (vec!["10.244.1.4".to_owned()], vec!["10.1.1.101".to_owned()]));
    assert_eq!(first.host_interfaces, ["cni0", "vethc42d3d18"]);
    assert_eq!(second.host_interfaces.len(), 0);
    assert_eq!((mac(&first).as_str(), mac(&second).as_str()), ("7e:57:6a:9b:6b:b5", "36:b3:c5:29:ad:b8"));
}

#[test]
fn without_a_uid_the_names_identify_the_pod() {
    for uid in [None, Some("")] {
        let attachment = changed(|cache| cache.args = args("shop", "web-1", uid)).unwrap();
        assert_eq!((attachment.namespace.as_str(), attachment.pod.as_str(), attachment.uid.as_deref()), ("shop", "web-1", None));
    }
}

#[test]
fn a_file_that_is_no_pods_result_is_ignored() {
    let bare = |name: &str| Written { name: name.to_owned(), content: files::CALICO.to_owned() };
    // libcni before 0.8.
    assert_eq!(read(&bare("k8s-pod-network-c1-eth0")), Err(Ignored::NotACache));
    for content in ["", "{", "null", "[]", "{}", r#"{"kind":"other"}"#, "\0\0\0\0"] {
        let file = Written { name: "a-b-eth0".to_owned(), content: content.to_owned() };
        assert_eq!(read(&file), Err(Ignored::NotACache), "{content:?}");
    }
    let mut file = Cache::of("bridge", files::BRIDGE).write();
    file.content = file.content.replace("cniCacheV1", "cniCacheV2");
    assert_eq!(read(&file), Err(Ignored::NotACache));
    // Truncated at any position.
    let file = Cache::of("bridge", files::BRIDGE).write();
    for end in 0..file.content.len() {
        assert_eq!(parse(&file.name, &file.content.as_bytes()[..end], 0), Err(Ignored::NotACache), "{end}");
    }
    // A copy.
    for name in [format!("{}.bak", file.name), file.name.replace("eth0", "eth1"), file.name.to_uppercase()] {
        assert_eq!(parse(&name, file.content.as_bytes(), 0), Err(Ignored::Foreign));
    }
    // A container that belongs to no pod, such as Podman's.
    for of_none in
        ["null".to_owned(), "[]".to_owned(), r#"[["K8S_POD_NAME","web-1"]]"#.to_owned(), r#"[["K8S_POD_NAMESPACE","shop"]]"#.to_owned()]
    {
        assert_eq!(changed(|cache| cache.args = of_none.clone()), Err(Ignored::NoPod), "{of_none}");
    }
    // Two pods.
    for other in [("shop", "web-2", UID), ("tools", "web-1", UID), ("shop", "web-1", "another")] {
        let (first, second) = (args("shop", "web-1", Some(UID)), args(other.0, other.1, Some(other.2)));
        let both = format!("{},{}", &first[..first.len() - 1], &second[1..]);
        assert_eq!(changed(|cache| cache.args = both), Err(Ignored::NoPod), "{other:?}");
    }
    // Names that are invalid in Kubernetes.
    for name in ["../x", "a/b", "a b", "-a", &"a".repeat(254)] {
        assert_eq!(changed(|cache| cache.args = args(name, "web-1", None)), Err(Ignored::NoPod), "{name}");
        assert_eq!(changed(|cache| cache.args = args("shop", name, None)), Err(Ignored::NoPod), "{name}");
    }
    for result in ["null", "[]", "7", r#"{"ips":7}"#, r#"{"ips":[{"address":7}]}"#, r#"{"ips":[{}]}"#] {
        assert_eq!(changed(|cache| cache.result = result.to_owned()), Err(Ignored::BadResult), "{result}");
    }
    let with = |ips: &str| {
        changed(|cache| cache.result = format!(r#"{{"interfaces":[{{"name":"cni0"}},{{"name":"eth0","sandbox":"x"}}],"ips":[{ips}]}}"#))
    };
    for ip in ["127.0.0.1/8", "::1/128", "0.0.0.0/0", "::", "224.0.0.1", "web-1", "", "10.0.0", "::ffff:127.0.0.1"] {
        assert_eq!(with(&format!(r#"{{"address":"{ip}","interface":1}}"#)), Err(Ignored::NoAddress), "{ip}");
    }
    // An address of the node's end, and of no interface.
    for place in ["0", "2", "-1"] {
        assert_eq!(with(&format!(r#"{{"address":"10.0.0.1/24","interface":{place}}}"#)), Err(Ignored::NoAddress), "{place}");
    }
    assert_eq!(ips(&with(r#"{"address":"::ffff:10.0.0.1","interface":1},{"address":"10.0.0.1/24"}"#).unwrap()), ["10.0.0.1"]);
}

#[test]
fn lists_and_names_of_a_result_are_bounded() {
    let interfaces = |count: usize, name: &str| vec![format!(r#"{{"name":"{name}"}}"#); count].join(",");
    let addresses: Vec<String> = (0..300).map(|number| format!(r#"{{"address":"10.0.{}.{}"}}"#, number / 256, number % 256)).collect();
    let result = format!(
        r#"{{"interfaces":[{},{}],"ips":[{}]}}"#,
        interfaces(300, "veth0"),
        interfaces(3, "longer-than-the-kernels"),
        addresses.join(",")
    );
    let attachment = changed(|cache| cache.result = result).unwrap();
    assert_eq!((attachment.ips.len(), attachment.host_interfaces.len()), (32, 32));
    let nul = changed(|cache| {
        cache.result = r#"{"interfaces":[{"name":"a\u0000b"},{"name":"veth1"}],"ips":[{"address":"10.0.0.1"}]}"#.to_owned()
    })
    .unwrap();
    assert_eq!(nul.host_interfaces, ["veth1"]);
}

/// A pod's author chooses its annotations, which are in the file. They must not hide the file.
#[test]
fn annotations_cannot_hide_a_pods_file() {
    // 256 KiB are the limit of Kubernetes (TotalAnnotationSizeLimitB), and every byte is escaped by Go.
    let value = r"\u003c".repeat(256 * 1024);
    let fat = changed(|cache| cache.capability_args = format!(r#"{{"io.kubernetes.cri.pod-annotations":{{"a":"{value}"}}}}"#));
    assert_eq!(fat, changed(|_| ()));
    let mut cache = Cache::of("bridge", files::BRIDGE);
    cache.capability_args = format!(r#"{{"io.kubernetes.cri.pod-annotations":{{"a":"{value}"}}}}"#);
    assert!(cache.write().content.len() as u64 * 2 < MAX_FILE);
    // Keys of the file itself, deep nesting, and numbers too large for any type.
    let texts = [
        r#"{"kind":"x","result":{},"cniArgs":[["K8S_POD_NAME","other"]]}"#.to_owned(),
        format!(r#"{{"io.kubernetes.cri.pod-annotations":{{"a":"{}"}}}}"#, "[".repeat(100_000)),
        r#"{"a":1e999,"b":-123456789012345678901234567890}"#.to_owned(),
        format!(r#"{{"a":{}{}}}"#, "[".repeat(10_000), "]".repeat(10_000)),
    ];
    for text in texts {
        assert_eq!(changed(|cache| cache.capability_args = text.clone()), changed(|_| ()), "{:.60}", text);
    }
}
