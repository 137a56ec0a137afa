//! Property tests of the parser with arbitrary bytes, and of the table against a plain list.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};

use proptest::prelude::*;
use serde_json::Value;

use super::super::attachment::Attachment;
use super::super::parse::parse;
use super::super::record::AttachmentRecord;
use super::super::table::AttachmentTable;
use super::files::{self, Cache, Written};
use crate::digest::Digest;

fn any_file() -> impl Strategy<Value = Written> {
    let results = [files::BRIDGE, files::PTP, files::AWS, files::AWS_BRANCH, files::CALICO, files::CILIUM, files::KUBENET];
    prop_oneof![
        proptest::sample::select(results.to_vec()).prop_map(|result| Cache::of("net", result).write()),
        Just(files::flannel()),
        Just(files::macvlan()),
    ]
}

/// Checks the invariants of an attachment that was parsed from these bytes.
fn check(file: &str, bytes: &[u8], attachment: &Attachment) {
    // Skipped parts may contain numbers that `Value` cannot represent.
    let Ok(value) = serde_json::from_slice::<Value>(bytes) else { return };
    let texts = |value: &Value| value.to_string();
    assert_eq!(value["kind"], "cniCacheV1");
    let name = |key: &str| value[key].as_str().unwrap().to_owned();
    assert_eq!(file, format!("{}-{}-{}", name("networkName"), name("containerId"), name("ifName")));
    let arg = |wanted: &str| {
        value["cniArgs"].as_array().unwrap().iter().rev().find(|pair| pair[0] == wanted && pair[1] != "").map(|pair| pair[1].clone())
    };
    assert_eq!(arg("K8S_POD_NAMESPACE"), Some(attachment.namespace.as_str().into()));
    assert_eq!(arg("K8S_POD_NAME"), Some(attachment.pod.as_str().into()));
    assert_eq!(arg("K8S_POD_UID"), attachment.uid.as_deref().map(Value::from));
    let result = texts(&value["result"]);
    for ip in &attachment.ips {
        assert!(!ip.is_loopback() && !ip.is_unspecified() && *ip == ip.to_canonical());
    }
    for interface in &attachment.host_interfaces {
        assert!(result.contains(&Value::from(interface.as_str()).to_string()) && interface.len() <= 15);
    }
    assert!(!attachment.ips.is_empty() && attachment.ips.len() <= 32);
}

proptest! {
    #[test]
    fn the_parser_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..512), name in ".{0,40}") {
        if let Ok(attachment) = parse(&name, &bytes, 0) {
            check(&name, &bytes, &attachment);
        }
    }

    #[test]
    fn a_damaged_file_is_read_as_written_or_ignored(
        file in any_file(),
        damage in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>(), 0..3_u8), 0..4),
    ) {
        let mut bytes = file.content.into_bytes();
        for (place, byte, kind) in damage {
            let place = place.index(bytes.len());
            match kind {
                0 => bytes[place] = byte,
                1 => { bytes.remove(place); }
                _ => bytes.insert(place, byte),
            }
        }
        if let Ok(attachment) = parse(&file.name, &bytes, 0) {
            check(&file.name, &bytes, &attachment);
        }
    }

    #[test]
    fn any_result_is_read_or_ignored(
        interfaces in proptest::collection::vec((".{0,20}", prop_oneof![Just(""), Just("/x")]), 0..5),
        ips in proptest::collection::vec(("[0-9a-f.:/]{0,20}", -2_i64..8), 0..5),
    ) {
        let interfaces: Vec<Value> = interfaces.into_iter().map(|(name, sandbox)| serde_json::json!({"name": name, "sandbox": sandbox})).collect();
        let ips: Vec<Value> = ips.into_iter().map(|(address, interface)| serde_json::json!({"address": address, "interface": interface})).collect();
        let file = Cache::of("net", &serde_json::json!({"interfaces": interfaces, "ips": ips}).to_string()).write();
        if let Ok(attachment) = parse(&file.name, file.content.as_bytes(), 0) {
            check(&file.name, file.content.as_bytes(), &attachment);
        }
    }

    #[test]
    fn the_table_equals_the_list_of_its_files(
        changes in proptest::collection::vec((0..8_u8, proptest::collection::vec(0..4_u8, 0..4), 0..4_u64, any::<bool>()), 0..60),
    ) {
        let mut table = AttachmentTable::new(100);
        let mut model: BTreeMap<u8, Option<Attachment>> = BTreeMap::new();
        for (file, ips, written, remove) in changes {
            let before = table.empty();
            prop_assert_eq!(before.used(), 0);
            if remove {
                let was = model.remove(&file).flatten().is_some();
                prop_assert_eq!(table.remove(&[file]), was);
            } else {
                let attachment = attachment(file, &ips, written);
                let is_news = model.get(&file).cloned().flatten() != attachment;
                let change = table.put(&[file], attachment.as_ref());
                prop_assert_eq!((change.is_news, change.is_full), (is_news, false));
                model.insert(file, attachment);
            }
            prop_assert_eq!(table.used(), model.values().flatten().count());
            prop_assert_eq!(table.ignored(), model.len() - table.used());
            for last in 0..4 {
                let found: Vec<_> = table.of(ip(last)).to_vec();
                prop_assert!(found.is_sorted_by(|one, other| one.age() >= other.age()));
                let mut found: Vec<String> = found.iter().map(|record| format!("{record:?}")).collect();
                let mut wanted: Vec<String> = model
                    .iter()
                    .filter_map(|(file, attachment)| attachment.as_ref().map(|attachment| (file, attachment)))
                    .filter(|(_, attachment)| attachment.ips.contains(&ip(last)))
                    .flat_map(|(file, attachment)| AttachmentRecord::all_of(Digest::of_name(&[*file]), attachment))
                    .filter(|record| record.ip == Digest::of_ip(ip(last)))
                    .map(|record| format!("{record:?}"))
                    .collect();
                found.sort();
                wanted.sort();
                prop_assert_eq!(found, wanted);
            }
        }
        let mut again = table.empty();
        for (file, attachment) in model {
            again.put(&[file], attachment.as_ref());
        }
        prop_assert!(table.is_same(&again) && again.is_same(&table));
        again.put(b"one more", attachment(9, &[1], 0).as_ref());
        prop_assert!(!table.is_same(&again) && !again.is_same(&table));
    }
}

fn ip(last: u8) -> IpAddr {
    IpAddr::V4(Ipv4Addr::new(10, 0, 0, last))
}

fn attachment(file: u8, ips: &[u8], written: u64) -> Option<Attachment> {
    let mut ips: Vec<IpAddr> = ips.iter().map(|last| ip(*last)).collect();
    ips.sort_unstable();
    ips.dedup();
    let host_interfaces = (0..file % 4).map(|number| format!("veth{number}")).collect();
    let (namespace, pod) = ("shop".to_owned(), format!("web-{file}"));
    let attachment = Attachment { namespace, pod, host_interfaces, ips, written, ..Attachment::default() };
    (!attachment.ips.is_empty()).then_some(attachment)
}

#[test]
fn a_full_table_forgets_the_oldest_files() {
    let mut table = AttachmentTable::new(3);
    let assert_pods = |table: &AttachmentTable, wanted: [u8; 3]| {
        let mut pods: Vec<Digest> = table.of(ip(1)).iter().map(|record| record.pod().name).collect();
        let mut wanted = wanted.map(|file| Digest::of_pod("shop", &format!("web-{file}")));
        pods.sort();
        // An attachment with three interfaces has two records.
        pods.dedup();
        wanted.sort();
        assert_eq!(pods, wanted);
    };
    for (file, written) in [(1, 30), (2, 10), (3, 20)] {
        assert!(!table.put(&[file], attachment(file, &[1], written).as_ref()).is_full);
    }
    // An ignored file displaces no attachment.
    let change = table.put(b"ignored", None);
    assert!(change.is_full && !change.is_news);
    assert_pods(&table, [1, 2, 3]);
    let change = table.put(&[4], attachment(4, &[1], 40).as_ref());
    assert!(change.is_full && change.is_news);
    assert_pods(&table, [1, 3, 4]);
    // A known file needs no room, and an ignored one goes first.
    assert!(!table.put(&[4], None).is_full);
    assert!(table.put(&[5], attachment(5, &[1], 1).as_ref()).is_full);
    assert_pods(&table, [1, 3, 5]);
    assert_eq!(table.ignored(), 0);
}
