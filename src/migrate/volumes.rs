//! Volumes: those that rolegate needs come, those of the old daemon's own business go.

use serde_json::{Map, Value, json};

use super::daemon::OldDaemon;
use super::manifest::{maps, string};
use super::translation::Translation;
use super::yaml::{MapBuilder, Noted, YamlNode};
use crate::text;

/// Directories of the node that the old daemons mount, and why rolegate does not need them.
const NOT_NEEDED: &[(&str, &str)] = &[
    ("/run/xtables.lock", "rolegate's image does not use the legacy iptables that needs this lock"),
    ("/var/run/xtables.lock", "rolegate's image does not use the legacy iptables that needs this lock"),
    ("/lib/modules", "the kernel loads what the rules need"),
    ("/usr/share/ca-certificates", "rolegate's image has certificate authorities of its own"),
    ("/etc/ssl/certs", "rolegate's image has certificate authorities of its own"),
    ("/etc/pki/ca-trust/extracted/pem", "rolegate's image has certificate authorities of its own"),
];
/// Names of rolegate's own volumes.
const STATE: &str = "rolegate-state";
const CNI: &str = "rolegate-cni";

/// Returns the volumes of the pod and the mounts of the container.
pub(super) fn translate(old: &OldDaemon<'_>, new: &mut Translation) -> (YamlNode, YamlNode) {
    let (mut volumes, mut mounts) = own();
    let mut notes = Vec::new();
    for volume in maps(old.pod, "volumes") {
        let name = string(volume, "name").unwrap_or_default();
        if name == STATE || name == CNI {
            continue;
        }
        let its: Vec<&Map<String, Value>> =
            maps(old.container, "volumeMounts").filter(|mount| string(mount, "name") == Some(name)).collect();
        let paths: Vec<&str> = its.iter().filter_map(|mount| string(mount, "mountPath")).collect();
        let host_path = volume.get("hostPath").and_then(|source| source.get("path")).and_then(Value::as_str);
        let is_used = paths.iter().any(|path| uses(new, path));
        if let Some((_, why)) = NOT_NEEDED.iter().find(|(path, _)| host_path.is_some_and(|host| host.trim_end_matches('/') == *path)) {
            notes.push(format!("dropped: the volume {}: {why}", text::quoted(name)));
        } else if its.is_empty() {
            notes.push(format!("dropped: the volume {}, which the container did not mount", text::quoted(name)));
        } else if is_used {
            volumes
                .push(Noted { notes: vec!["kept: an argument or a variable names a path in it".to_owned()], node: volume.clone().into() });
            mounts.extend(its.into_iter().map(|mount| Noted::from(Value::Object(mount.clone()))));
        } else if volume.contains_key("secret") && paths.iter().any(|path| is_below(path, "/etc/kiam")) {
            notes.push(format!("dropped: the volume {} with kiam's certificates", text::quoted(name)));
        } else {
            let note = format!("dropped: the volume {}: no argument and no variable names a path in it", text::quoted(name));
            new.warnings.push(note.clone());
            notes.push(note);
        }
    }
    (YamlNode::List { items: volumes, trailing: notes }, mounts.into())
}

/// Whether an argument or a variable names this path, or one below it.
fn uses(new: &Translation, path: &str) -> bool {
    let values = new.variables().iter().filter_map(|entry| string(entry, "value"));
    let arguments = new.texts().filter_map(|argument| argument.split_once('=')).map(|(_, value)| value);
    values.chain(arguments).any(|value| is_below(value, path))
}

fn is_below(path: &str, directory: &str) -> bool {
    let directory = directory.trim_end_matches('/');
    !directory.is_empty() && path.strip_prefix(directory).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

fn own() -> (Vec<Noted>, Vec<Noted>) {
    let volume = |name: &str, path: &str, note: &str| {
        let mut volume = MapBuilder::default();
        volume.put("name", name);
        volume.put("hostPath", json!({"path": path, "type": "DirectoryOrCreate"}));
        Noted { notes: vec![note.to_owned()], node: volume.build() }
    };
    let mount = |name: &str, path: &str, is_read_only: bool| {
        let mut mount = MapBuilder::default();
        mount.put("name", name);
        mount.put("mountPath", path);
        if is_read_only {
            mount.put("readOnly", json!(true));
        }
        Noted { notes: Vec::new(), node: mount.build() }
    };
    let volumes = vec![
        volume(STATE, "/run/rolegate", "added: the keys of session tokens, in memory"),
        volume(CNI, "/var/lib/cni", "added: the CNI's results; read only"),
    ];
    (volumes, vec![mount(STATE, "/run/rolegate", false), mount(CNI, "/var/lib/cni", true)])
}
