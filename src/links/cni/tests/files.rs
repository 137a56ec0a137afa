//! Result files as runtimes and plugins write them.

/// The container ID in the files that these tests compose.
pub(super) const CONTAINER: &str = "6397e269c6b847d56d8d99b0a423bb50444f861fe68fff9a6773f70467dc1cdc";
pub(super) const NETNS: &str = "/var/run/netns/cni-eaf6f3e4-8a0a-71dc-38e2-5d56fa02e019";
pub(super) const UID: &str = "085e52e2-8e99-4fd6-a20f-78cb8d01c4dc";

/// A result file: its name and its content.
#[derive(Clone, Debug)]
pub(super) struct Written {
    pub(super) name: String,
    pub(super) content: String,
}

/// The parts of a file, as `cacheAdd` of libcni writes it.
#[derive(Clone, Debug)]
pub(super) struct Cache {
    pub(super) network: String,
    pub(super) container: String,
    pub(super) if_name: String,
    pub(super) args: String,
    pub(super) capability_args: String,
    pub(super) result: String,
}

impl Cache {
    /// Returns a file of containerd for the pod `shop/web-1`.
    pub(super) fn of(network: &str, result: &str) -> Self {
        Self {
            network: network.to_owned(),
            container: CONTAINER.to_owned(),
            if_name: "eth0".to_owned(),
            args: args("shop", "web-1", Some(UID)),
            capability_args: r#"{"io.kubernetes.cri.pod-annotations":{"iam.amazonaws.com/role":"web"}}"#.to_owned(),
            result: result.replace("NETNS", NETNS),
        }
    }

    pub(super) fn write(&self) -> Written {
        let Self { network, container, if_name, args, capability_args, result } = self;
        Written {
            name: format!("{network}-{container}-{if_name}"),
            content: format!(
                r#"{{"kind":"cniCacheV1","containerId":"{container}","config":"eyJjbmlWZXJzaW9uIjoiMC40LjAifQ==","ifName":"{if_name}","networkName":"{network}","netns":"{NETNS}","cniArgs":{args},"capabilityArgs":{capability_args},"result":{result}}}"#
            ),
        }
    }
}

/// Returns `cniArgs` as containerd writes it; older versions have no UID.
pub(super) fn args(namespace: &str, pod: &str, uid: Option<&str>) -> String {
    let uid = uid.map(|uid| format!(r#",["K8S_POD_UID","{uid}"]"#)).unwrap_or_default();
    format!(
        r#"[["IgnoreUnknown","1"],["K8S_POD_NAMESPACE","{namespace}"],["K8S_POD_NAME","{pod}"],["K8S_POD_INFRA_CONTAINER_ID","{CONTAINER}"]{uid}]"#
    )
}

/// Returns the file of a pod behind a bridge, with the address `10.HIGH.MIDDLE.LOW` for this number.
pub(super) fn pod(number: u32) -> Written {
    let [_, high, middle, low] = number.to_be_bytes();
    let mut cache = Cache::of(
        "cbr0",
        &format!(
            r#"{{"cniVersion":"0.3.1","dns":{{}},"interfaces":[{{"mac":"ea:19:25:a2:a1:93","name":"cni0"}},{{"name":"veth{number}"}},{{"mac":"7e:57:6a:9b:6b:b5","name":"eth0","sandbox":"NETNS"}}],"ips":[{{"address":"10.{high}.{middle}.{low}/24","interface":2,"version":"4"}}]}}"#
        ),
    );
    cache.container = format!("c{number}");
    cache.args = args("shop", &format!("web-{number}"), Some(UID));
    cache.write()
}

/// flannel, which delegates to bridge, with Multus (k8snetworkplumbingwg/multus-cni, pkg/multus/multus_test.go).
pub(super) fn flannel() -> Written {
    Written {
        name: "cbr0-3f6940ab5ab43bc522569d15b23f8c1bbde1d7678b080398506924fc01d72755-eth0".to_owned(),
        content: r#"{"kind":"cniCacheV1","containerId":"3f6940ab5ab43bc522569d15b23f8c1bbde1d7678b080398506924fc01d72755","config":"eyJjbmlWZXJzaW9uIjoiMC4zLjEiLCJuYW1lIjoiY2JyMCIsInBsdWdpbnMiOlt7ImNhcGFiaWxpdGllcyI6eyJpby5rdWJlcm5ldGVzLmNyaS5wb2QtYW5ub3RhdGlvbnMiOnRydWV9LCJkZWxlZ2F0ZSI6eyJoYWlycGluTW9kZSI6dHJ1ZSwiaXNEZWZhdWx0R2F0ZXdheSI6dHJ1ZX0sInR5cGUiOiJmbGFubmVsIn0seyJjYXBhYmlsaXRpZXMiOnsicG9ydE1hcHBpbmdzIjp0cnVlfSwidHlwZSI6InBvcnRtYXAifV19","ifName":"eth0","networkName":"cbr0","netns":"/var/run/netns/8b8677c8-8929-4746-8206-514069760f6e","cniArgs":[["IgnoreUnknown","true"],["K8S_POD_NAMESPACE","default"],["K8S_POD_NAME","macvlan"],["K8S_POD_INFRA_CONTAINER_ID","3f6940ab5ab43bc522569d15b23f8c1bbde1d7678b080398506924fc01d72755"],["K8S_POD_UID","f0bfbd5b-096d-48ef-998c-da26743dd0cb"],["IgnoreUnknown","1"],["K8S_POD_NAMESPACE","default"],["K8S_POD_NAME","macvlan"],["K8S_POD_INFRA_CONTAINER_ID","3f6940ab5ab43bc522569d15b23f8c1bbde1d7678b080398506924fc01d72755"],["K8S_POD_UID","f0bfbd5b-096d-48ef-998c-da26743dd0cb"]],"result":{"cniVersion":"0.3.1","dns":{},"interfaces":[{"mac":"ea:19:25:a2:a1:93","name":"cni0"},{"mac":"ba:76:61:2f:8b:ca","name":"vethc42d3d18"},{"mac":"7e:57:6a:9b:6b:b5","name":"eth0","sandbox":"/var/run/netns/8b8677c8-8929-4746-8206-514069760f6e"}],"ips":[{"address":"10.244.1.4/24","gateway":"10.244.1.1","interface":2,"version":"4"}],"routes":[{"dst":"10.244.0.0/16"},{"dst":"0.0.0.0/0","gw":"10.244.1.1"}]}}"#.to_owned(),
    }
}

/// The second interface of that pod.
pub(super) fn macvlan() -> Written {
    Written {
        name: "macvlan-conf-1-3f6940ab5ab43bc522569d15b23f8c1bbde1d7678b080398506924fc01d72755-net1".to_owned(),
        content: r#"{"kind":"cniCacheV1","containerId":"3f6940ab5ab43bc522569d15b23f8c1bbde1d7678b080398506924fc01d72755","config":"eyJ0eXBlIjoibWFjdmxhbiJ9","ifName":"net1","networkName":"macvlan-conf-1","netns":"/var/run/netns/8b8677c8-8929-4746-8206-514069760f6e","cniArgs":[["IgnoreUnknown","true"],["K8S_POD_NAMESPACE","default"],["K8S_POD_NAME","macvlan"],["K8S_POD_INFRA_CONTAINER_ID","3f6940ab5ab43bc522569d15b23f8c1bbde1d7678b080398506924fc01d72755"],["K8S_POD_UID","f0bfbd5b-096d-48ef-998c-da26743dd0cb"]],"result":{"cniVersion":"0.3.1","dns":{},"interfaces":[{"mac":"36:b3:c5:29:ad:b8","name":"net1","sandbox":"/var/run/netns/8b8677c8-8929-4746-8206-514069760f6e"}],"ips":[{"address":"10.1.1.101/24","interface":0,"version":"4"}]}}"#.to_owned(),
    }
}

/// Cilium (k8snetworkplumbingwg/multus-cni#1488).
pub(super) const CILIUM: &str = r#"{"cniVersion":"0.3.1","dns":{},"interfaces":[{"mac":"26:8a:ea:05:69:3f","name":"lxce751ef859f45"},{"mac":"26:3f:72:06:1b:b2","name":"eth0","sandbox":"NETNS"}],"ips":[{"address":"10.15.64.3/32","gateway":"10.207.0.92","interface":1,"version":"4"}],"routes":[{"dst":"10.207.0.92/32"},{"dst":"0.0.0.0/0","gw":"10.207.0.92"}]}"#;
/// Calico (projectcalico/calico#10351).
pub(super) const CALICO: &str =
    r#"{"cniVersion":"0.3.1","interfaces":[{"name":"calie38e7158114"}],"ips":[{"version":"4","address":"10.135.153.140/32"}],"dns":{}}"#;
/// The AWS VPC CNI (cmd/routed-eni-cni-plugin/cni.go): the table of the ENI is in `pciID`, its number in the dummy's `sandbox`.
pub(super) const AWS: &str = r#"{"cniVersion":"1.0.0","dns":{},"interfaces":[{"name":"eni8ad4b4c2f1a"},{"name":"eth0","pciID":"254","sandbox":"NETNS"},{"mac":"0","name":"dummy8ad4b4c2f1a","sandbox":"0","socketPath":"1"}],"ips":[{"address":"10.0.1.186/32","interface":1}]}"#;
/// The AWS VPC CNI with a security group for the pod: the VLAN is in the dummy's `mac`, which has no sandbox.
pub(super) const AWS_BRANCH: &str = r#"{"cniVersion":"0.4.0","dns":{},"interfaces":[{"name":"vlan8ad4b4c2f1a"},{"name":"eth0","sandbox":"NETNS"},{"mac":"7","name":"dummy8ad4b4c2f1a"}],"ips":[{"address":"10.0.1.186/32","interface":1,"version":"4"}]}"#;
/// bridge with host-local, both families, by version 1.1.0.
pub(super) const BRIDGE: &str = r#"{"cniVersion":"1.1.0","dns":{"nameservers":["10.96.0.10"]},"interfaces":[{"mac":"0a:58:0a:55:00:01","name":"cni0","mtu":1500},{"mac":"be:77:01:02:03:04","name":"veth1f9d3c7a","mtu":1500},{"mac":"0a:58:0a:55:00:05","name":"eth0","mtu":1500,"sandbox":"NETNS"}],"ips":[{"address":"10.85.0.5/16","gateway":"10.85.0.1","interface":2},{"address":"1100:200::5/24","gateway":"1100:200::1","interface":2}],"routes":[{"dst":"0.0.0.0/0"},{"dst":"::/0"}]}"#;
/// ptp with host-local.
pub(super) const PTP: &str = r#"{"cniVersion":"0.4.0","dns":{},"interfaces":[{"mac":"8a:01:02:03:04:05","name":"veth77a1b2c3"},{"mac":"5e:01:02:03:04:05","name":"eth0","sandbox":"NETNS"}],"ips":[{"address":"172.16.29.7/24","gateway":"172.16.29.1","interface":1,"version":"4"}],"routes":[{"dst":"0.0.0.0/0"}]}"#;
/// kubenet, by version 0.2.0.
pub(super) const KUBENET: &str =
    r#"{"cniVersion":"0.2.0","dns":{},"ip4":{"gateway":"10.248.0.1","ip":"10.248.0.88/25","routes":[{"dst":"0.0.0.0/0"}]}}"#;
