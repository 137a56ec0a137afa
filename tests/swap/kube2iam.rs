//! Manifests for kube2iam: its README, its chart, and what guides and operators made of them.

use crate::cluster::{Manifest, Verdict, judge};

macro_rules! manifests {
    ($($(#[$doc:meta])* $name:ident: $manifest:expr;)*) => {
        $($(#[$doc])* #[test] fn $name() { judge(&$manifest); })*
    };
}

const BASE: Manifest = Manifest::KUBE2IAM;
const HOST_IP: &[&str] = &["HOST_IP"];

manifests! {
    /// The first example of the README, in its early versions: no node, no rules.
    readme_early: Manifest {
        arguments: &["--base-role-arn=arn:aws:iam::123456789012:role/"],
        variables: &[], verdict: Verdict::Ready, ..BASE
    };
    /// The same today.
    readme: Manifest {
        arguments: &["--base-role-arn=arn:aws:iam::123456789012:role/", "--node=$(NODE_NAME)"],
        variables: &["NODE_NAME"], verdict: Verdict::Ready, ..BASE
    };
    /// With the rule, as the README describes it for Calico.
    readme_with_rule: Manifest {
        arguments: &[
            "--base-role-arn=arn:aws:iam::123456789012:role/", "--iptables=true", "--host-ip=$(HOST_IP)", "--host-interface=cali+",
            "--node=$(NODE_NAME)",
        ],
        interfaces: "cali", ..BASE
    };
    /// With RBAC, as in the README's part on kOps: the interface is a bridge.
    readme_kops: Manifest {
        arguments: &[
            "--auto-discover-base-arn", "--iptables=true", "--host-ip=$(HOST_IP)", "--node=$(NODE_NAME)", "--host-interface=weave",
            "--verbose",
        ],
        interfaces: "veth", verdict: Verdict::Guards, ..BASE
    };
    /// The defaults of the chart.
    chart: Manifest {
        arguments: &[
            "--host-interface=docker0", "--node=$(NODE_NAME)", "--host-ip=$(HOST_IP)", "--iptables=false", "--app-port=8181",
            "--metrics-port=8181",
        ],
        probe: true, verdict: Verdict::Ready, warnings: &["metrics-port-moved"], ..BASE
    };
    /// The chart with Calico and a default role.
    chart_calico: Manifest {
        arguments: &[
            "--base-role-arn=arn:aws:iam::123456789012:role/", "--default-role=kube2iam-default", "--host-interface=cali+",
            "--node=$(NODE_NAME)", "--host-ip=$(HOST_IP)", "--iptables=true", "--verbose", "--app-port=8181", "--metrics-port=8181",
        ],
        interfaces: "cali", probe: true, warnings: &["metrics-port-moved"], ..BASE
    };
    /// The chart in its versions before --node, with a port of its own for the metrics.
    chart_before_node: Manifest {
        arguments: &[
            "--auto-discover-base-arn", "--host-interface=eni+", "--host-ip=$(HOST_IP)", "--iptables=true", "--app-port=8181",
            "--metrics-port=9543",
        ],
        variables: HOST_IP, probe: true, ..BASE
    };
    /// A guide for EKS.
    eks: Manifest {
        arguments: &[
            "--auto-discover-base-arn", "--auto-discover-default-role=true", "--iptables=true", "--host-ip=$(HOST_IP)",
            "--node=$(NODE_NAME)", "--host-interface=eni+", "--verbose",
        ],
        warnings: &["node-role-withheld"], ..BASE
    };
    /// That guide with restrictions.
    eks_restricted: Manifest {
        arguments: &[
            "--auto-discover-base-arn", "--namespace-restrictions=true", "--auto-discover-default-role=true", "--iptables=true",
            "--host-ip=$(HOST_IP)", "--node=$(NODE_NAME)", "--host-interface=eni+", "--verbose",
        ],
        warnings: &["node-role-withheld"], ..BASE
    };
    /// A guide for the VPC CNI: no node.
    vpc_cni: Manifest {
        arguments: &["--iptables=true", "--host-ip=$(HOST_IP)", "--auto-discover-base-arn", "--host-interface=eni+", "--verbose"],
        variables: HOST_IP, ..BASE
    };
    /// A guide for Terraform and EKS: no node, the node's role for all.
    eks_terraform: Manifest {
        arguments: &[
            "--app-port=8181", "--auto-discover-base-arn", "--iptables=true", "--host-ip=$(HOST_IP)", "--host-interface=eni+",
            "--auto-discover-default-role", "--log-level=info",
        ],
        variables: HOST_IP, warnings: &["node-role-withheld"], ..BASE
    };
    /// A resource of Terraform whose --node is commented out.
    terraform_without_node: Manifest {
        arguments: &[
            "--auto-discover-base-arn", "--auto-discover-default-role", "--iptables=true", "--host-ip=$(HOST_IP)",
            "--host-interface=eni+", "--use-regional-sts-endpoint", "--log-level=info",
        ],
        variables: HOST_IP, warnings: &["no-effect", "node-role-withheld"], ..BASE
    };
    /// A blog's advice for moving a node at a time.
    weave_node_by_node: Manifest {
        arguments: &[
            "--app-port=8181", "--auto-discover-base-arn", "--iptables=true", "--host-ip=$(HOST_IP)", "--host-interface=weave",
            "--use-regional-sts-endpoint", "--auto-discover-default-role", "--log-level=info",
        ],
        variables: HOST_IP, interfaces: "veth", verdict: Verdict::Guards, warnings: &["no-effect", "node-role-withheld"], ..BASE
    };
    /// A template with debugging: the base ARN comes with the node's role.
    debug_and_metrics: Manifest {
        arguments: &[
            "--iptables=true", "--host-ip=$(HOST_IP)", "--node=$(NODE_NAME)", "--host-interface=cali+", "--auto-discover-default-role",
            "--use-regional-sts-endpoint", "--app-port=8181", "--debug", "--metrics-port=8182",
        ],
        interfaces: "cali", probe: true, warnings: &["no-effect", "node-role-withheld"], ..BASE
    };
    /// A template of a book, for Ansible.
    ansible: Manifest {
        arguments: &[
            "--auto-discover-base-arn", "--auto-discover-default-role=true", "--iptables=true", "--host-ip=$(HOST_IP)",
            "--node=$(NODE_NAME)", "--host-interface=eni+", "--use-regional-sts-endpoint",
        ],
        warnings: &["no-effect", "node-role-withheld"], ..BASE
    };
    /// Times tuned against slow starts.
    tuned: Manifest {
        arguments: &[
            "--auto-discover-base-arn", "--iptables=true", "--host-ip=$(HOST_IP)", "--node=$(NODE_NAME)", "--host-interface=cali+",
            "--iam-role-session-ttl=900s", "--cache-resync-period=10m", "--backoff-max-interval=2s", "--backoff-max-elapsed-time=5s",
            "--resolve-duplicate-cache-ips", "--log-format=json",
        ],
        interfaces: "cali", warnings: &["no-effect", "session-ttl-doubled", "sessions-short"], ..BASE
    };
    /// An API server without a token: kube2iam then uses the service account.
    api_server_without_token: Manifest {
        arguments: &[
            "--api-server=$(API_SERVER)", "--base-role-arn=arn:aws:iam::123456789012:role/", "--iptables=true",
            "--host-ip=$(HOST_IP)", "--host-interface=cali+",
        ],
        variables: &["HOST_IP", "API_SERVER"], interfaces: "cali", ..BASE
    };
    /// A token without an API server: kube2iam then ignores it.
    api_token_without_server: Manifest {
        arguments: &["--api-token=abc", "--iptables=true", "--host-ip=$(HOST_IP)", "--host-interface=eni+", "--node=$(NODE_NAME)"],
        warnings: &["api-token-unused"], ..BASE
    };
    /// An address that pods cannot reach.
    loopback_host_ip: Manifest {
        arguments: &[
            "--base-role-arn=arn:aws:iam::123456789012:role/", "--iptables=true", "--host-ip=127.0.0.1", "--host-interface=cali+",
        ],
        variables: &[], interfaces: "cali", warnings: &["host-ip-ignored"], ..BASE
    };
    /// The variables are not set.
    variables_forgotten: Manifest {
        arguments: &[
            "--base-role-arn=arn:aws:iam::123456789012:role/", "--iptables=true", "--host-ip=$(HOST_IP)", "--node=$(NODE_NAME)",
            "--host-interface=eni+",
        ],
        variables: &[], warnings: &["variable-not-expanded"], ..BASE
    };
    /// A fork for another cloud: most of it is the same.
    kube2ram: Manifest {
        arguments: &[
            "--app-port=8181", "--iptables=true", "--host-ip=$(HOST_IP)", "--host-interface=cni0", "--verbose",
            "--auto-discover-default-role",
        ],
        interfaces: "veth", verdict: Verdict::Guards, warnings: &["node-role-withheld"], ..BASE
    };
    /// A fork with flags of its own.
    fork_with_other_flags: Manifest {
        arguments: &["--verbose", "--iptables=true", "--host-interface=cbr0", "--host-ip=$(HOST_IP)", "--attributes=cluster-name"],
        variables: HOST_IP, verdict: Verdict::Refused, ..BASE
    };
    /// A placeholder of a template that nobody filled in.
    placeholder_default_role: Manifest {
        arguments: &[
            "--auto-discover-base-arn", "--host-interface=cbr0", "--host-ip=$(HOST_IP)", "--iptables=true",
            "--default-role=$ENVIRONMENT-overview-default-role",
        ],
        variables: HOST_IP, verdict: Verdict::Refused, ..BASE
    };
    /// The comment in the values of the chart, taken as it is.
    placeholder_account: Manifest {
        arguments: &["--base-role-arn=arn:aws:iam::0123456789:role/", "--host-ip=$(HOST_IP)", "--iptables=true"],
        variables: HOST_IP, verdict: Verdict::Refused, ..BASE
    };
    /// Without rules, there is no guard to be placed.
    mistake_without_rules: Manifest {
        arguments: &["--base-role-arn=my-role", "--iptables=false"],
        verdict: Verdict::RefusedOpen, ..BASE
    };
}
