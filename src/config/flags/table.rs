//! The table of all flags.

use super::flag::{Flag, list, on_switch, switch, value};

/// Default of `--host-network-exempt`: parts of the node and of the cluster that need the node's own role and run in its network.
/// Whoever may create pods with one of these service accounts controls the cluster already.
pub const DEFAULT_EXEMPT: &str = "static-pods,kube-system/aws-node,kube-system/cilium,kube-system/cilium-operator,\
                                  kube-system/calico-node,calico-system/calico-node,kube-system/ebs-csi-controller-sa,\
                                  kube-system/ebs-csi-node-sa,kube-system/efs-csi-controller-sa,kube-system/efs-csi-node-sa,\
                                  kube-system/cloud-controller-manager,kube-system/aws-cloud-controller-manager,\
                                  kube-system/kops-controller,kube-system/dns-controller,\
                                  kube-system/aws-node-termination-handler";

/// Default of `--pod-identity-addresses`: the only ones, besides loopback addresses, that the SDKs accept over plain HTTP (AWS SDKs and
/// Tools Reference Guide, "Container credential provider").
pub const DEFAULT_POD_IDENTITY_ADDRESSES: &str = "169.254.170.23:80,[fd00:ec2::23]:80";
/// Default of `--pod-identity-audience`: the audience of the tokens that EKS gives to pods.
pub const DEFAULT_POD_IDENTITY_AUDIENCE: &str = "pods.eks.amazonaws.com";

/// The flags, grouped as `--help` prints them.
pub const GROUPS: &[(&str, &[Flag])] = &[
    ("Pods and the Kubernetes API", PODS),
    ("Roles", ROLES),
    ("Sessions", SESSIONS),
    ("Serving", SERVING),
    ("Pod Identity", POD_IDENTITY),
    ("Migration", MIGRATION),
    ("Packet rules", REDIRECT),
    ("Logs", LOGS),
];

const PODS: &[Flag] = &[
    value(
        "node",
        "NAME",
        "",
        "Name of this node, whose pods are watched and served (NODE_NAME is read as well); default: the node of the daemon's own pod",
    ),
    value(
        "kubeconfig",
        "FILE",
        "",
        "Kubeconfig file for the Kubernetes API; without it and --api-server, the service account of rolegate's pod",
    ),
    value(
        "api-server",
        "URL",
        "",
        "URL of the Kubernetes API; authenticates with --api-token or --kubeconfig, or if it is https with the service account of \
         rolegate's pod",
    ),
    value("api-token", "TOKEN", "", "Bearer token for the Kubernetes API; has no effect without --api-server"),
    switch("insecure", "Do not verify the API server's certificate (for tests only)"),
    value("backoff-max-elapsed-time", "DURATION", "2s", "How long a request from an unknown address waits for its pod to become known"),
    value(
        "max-staleness",
        "DURATION",
        "15m",
        "Time without contact with the Kubernetes API after which pods are refused, unless something on this node \
         confirms their address; 0 for no limit",
    ),
    value(
        "cni-results",
        "DIR",
        "",
        "Directory on the node, such as /var/lib/cni/results, in which the container runtime caches CNI results; a \
         second source, besides the Kubernetes API, for which pod has which address",
    ),
    on_switch("events", "Write Events on pods that get no credentials, with the reason; requires create and patch of events"),
    value(
        "startup-taint",
        "KEY",
        "",
        "Key of the taints that are removed from this node once the daemon is ready; requires get and patch of nodes",
    ),
    value(
        "host-network-pods",
        "MODE",
        "ignore",
        "Requests of pods with hostNetwork, where --redirect=bpf is in effect: ignore (they reach the real metadata service), deny, or \
         serve (each pod gets its own role)",
    ),
    list(
        "host-network-exempt",
        "NAMESPACE/SERVICEACCOUNT",
        DEFAULT_EXEMPT,
        "Pods with hostNetwork that reach the real metadata service in every mode: a list of NAMESPACE/SERVICEACCOUNT, NAMESPACE/* for \
         all pods of a namespace, and static-pods",
    ),
    value(
        "backoff-max-interval",
        "DURATION",
        "1s",
        "Accepted for compatibility with kube2iam, no effect: the watch wakes a waiting request",
    ),
    value("cache-resync-period", "DURATION", "30m", "Accepted for compatibility with kube2iam, no effect: the watch needs no resync"),
    switch(
        "resolve-duplicate-cache-ips",
        "Accepted for compatibility with kube2iam, no effect: pods that claim one address are always told apart or \
         refused",
    ),
];

const ROLES: &[Flag] = &[
    value("iam-role-key", "KEY", "iam.amazonaws.com/role", "Annotation of a pod that names its role (an ARN or a short name)"),
    value(
        "iam-target-role-key",
        "KEY",
        "iam.amazonaws.com/target-role",
        "Annotation of a pod or service account that names the target role, which the session of its role assumes (role chaining; \
         sessions last 1h at most)",
    ),
    value("iam-external-id", "KEY", "iam.amazonaws.com/external-id", "Annotation of a pod that has the external ID for its role"),
    value("base-role-arn", "ARN", "", "Prefix of short role names, such as arn:aws:iam::123456789012:role/"),
    switch(
        "auto-discover-base-arn",
        "Read account and partition of --base-role-arn from iam/info of the metadata service; roles of that account \
         are refused if rolegate's own identity is in another account",
    ),
    value("default-role", "ROLE", "", "Role of pods without a role annotation; never used for a pod that is not known yet"),
    switch(
        "auto-discover-default-role",
        "Use the node's own role as the default role, but only with --allow-node-role; also switches \
         --auto-discover-base-arn on unless --base-role-arn is given",
    ),
    switch(
        "allow-node-role",
        "Allow pods to use the node's own role: pods that name it and, with --auto-discover-default-role, pods \
         without a role",
    ),
    list(
        "allowed-roles",
        "PATTERN",
        "",
        "Roles that pods of this node may use, including the default role: ARNs or short names, in which * matches \
         any text; may be repeated; default: all roles",
    ),
    switch(
        "service-account-roles",
        "Read the role from the service account of pods that name none; requires list and watch of serviceaccounts",
    ),
    switch(
        "eks-role-annotation",
        "Also read the annotation eks.amazonaws.com/role-arn of service accounts; requires --service-account-roles",
    ),
    Flag {
        name: "namespace-restrictions",
        value: Some("MODE"),
        default: "false",
        bare: true,
        list: false,
        help: "Restrict the roles of pods to those that annotations of their namespace allow: true, false, or audit (report \
         only)",
    },
    value("namespace-key", "KEY", "iam.amazonaws.com/allowed-roles", "Annotation of a namespace with the JSON list of allowed roles"),
    value(
        "namespace-restriction-format",
        "FORMAT",
        "glob",
        "Format of the patterns in that list: glob (only * is special) or regexp; both match whole ARNs",
    ),
];

const MIGRATION: &[Flag] = &[switch(
    "migrate",
    "Serve what kube2iam would serve, except what rolegate never serves, and record for rolegate report what the settings \
     would refuse: those given, and for the others the defaults of the shipped manifests",
)];

const SESSIONS: &[Flag] = &[
    value("session-duration", "DURATION", "1h", "Duration of STS sessions, 15m to 12h; above 1h, the role must allow it"),
    value(
        "session-name-template",
        "TEMPLATE",
        "",
        "Session name in CloudTrail, from text and {cluster}, {node}, {namespace}, {pod}, {serviceaccount} and \
         {role}, at most 64 characters; default {pod}, or {role} with --session-scope=role; if set, the session-name \
         annotations of pods are ignored",
    ),
    value(
        "source-identity",
        "TEMPLATE",
        "",
        "Source identity of sessions, in the form of --session-name-template; it stays in CloudTrail if a pod assumes \
         further roles, and the pod cannot change it; not set by default. The trust policies of the pods' roles, and \
         of roles that pods assume in turn, must allow sts:SetSourceIdentity",
    ),
    value("session-scope", "SCOPE", "pod", "Who shares a session: pod (each pod has its own) or role (pods with one role share one)"),
    list(
        "session-tags",
        "TAG",
        "",
        "Session tags: a list of cluster, namespace, service-account, pod, pod-uid, node; the trust policies of the \
         pods' roles must allow sts:TagSession",
    ),
    switch(
        "session-tags-transitive",
        "Make all session tags transitive: sessions that a pod creates with its credentials inherit them; the trust policies of the \
         roles of these sessions must allow sts:TagSession",
    ),
    value("assume-role-arn", "ARN", "", "Intermediate role used to assume pod roles (role chaining; sessions last 1h at most)"),
    value("cluster-name", "NAME", "", "Name of the cluster, for session names, source identities and session tags"),
    value("iam-role-session-ttl", "DURATION", "", "kube2iam's form of --session-duration: sessions last twice this value"),
    value(
        "iam-role-error-ttl",
        "DURATION",
        "30s",
        "Time before a failed session is requested from STS again, up to 8 times as long after further failures; at \
         least 1s",
    ),
    on_switch("prefetch", "Request a pod's session when the pod appears, not when it first asks"),
    value(
        "prefetch-spread",
        "DURATION",
        "10m",
        "Time over which sessions are requested for pods that existed before the daemon started, unless they ask \
         earlier; 0 for immediately",
    ),
    value("sts-timeout", "DURATION", "5s", "How long a pod's request waits for STS, including retries; 100ms to 1m"),
    value(
        "sts-rate",
        "NUMBER",
        "20",
        "Requests to STS per second from this node, with bursts of twice that number; requests that pods wait for \
         come first",
    ),
    value(
        "sts-max-rate",
        "NUMBER",
        "",
        "Highest rate, in requests per second, to which --sts-rate rises while STS answers quickly and requests wait; \
         default 5 times --sts-rate",
    ),
    value("sts-concurrency", "NUMBER", "16", "Concurrent requests to STS from this node; rises by the same factor as the rate"),
    switch("use-regional-sts-endpoint", "Accepted for compatibility with kube2iam, no effect: the regional endpoint is always used"),
];

pub(super) const SERVING: &[Flag] = &[
    value("app-port", "PORT", "8181", "Port to which the pods' metadata requests are redirected; 0 for any free port"),
    value("metadata-bind-address", "IP", "", "Address of the app port; default: every address of the node"),
    value(
        "metrics-port",
        "PORT",
        "9543",
        "Port of /metrics, /healthz and /readyz; 0 for any free port; if it is the app port, 9543 is used",
    ),
    value("metrics-bind-address", "IP", "", "Address of the metrics port; default: every address of the node"),
    switch(
        "metrics-namespace-labels",
        "Include namespace labels in the metrics for all clients of the metrics port; without it, only for clients on \
         the node itself",
    ),
    switch(
        "metrics-role-label",
        "Include rolegate_role_credentials_total in the metrics, which shows role ARNs to all clients of the metrics port",
    ),
    switch(
        "status-page",
        "Serve /status and /status.json on the metrics port to clients on the node's loopback, which pods with \
         hostNetwork share",
    ),
    switch(
        "accept-direct-connections",
        "Serve connections that no packet rule redirected; for tests and demonstrations, not for production",
    ),
    value("imds-tokens", "MODE", "required", "required (serve IMDSv2 only) or optional (serve IMDSv1 as well)"),
    value(
        "token-key-file",
        "FILE",
        "",
        "File that stores the session token keys, so that tokens remain valid after a restart; default: in memory \
         only",
    ),
    value(
        "handover-socket",
        "PATH",
        "",
        "Unix socket, in a directory of the node that only root may write to, through which a daemon hands its \
         listening socket to the next one; daemons also prove there that they run; other processes of the same user \
         can then bind the app port as well (SO_REUSEPORT)",
    ),
    value("probe-socket", "PATH", "", "Unix socket, in a directory of the pod, on which this daemon answers rolegate probe"),
    value(
        "startup-grace",
        "DURATION",
        "1m",
        "How long /healthz on the app port fails after the start while the daemon is not ready, so that a rollout \
         stops; 0 for not at all",
    ),
    value("limits-connections", "NUMBER", "4096", "Open connections of all pods together; each has at most one request in flight"),
    value(
        "limits-connections-per-pod",
        "NUMBER",
        "128",
        "Open connections of one pod; a further one waits for up to one second and is then closed before anything is \
         read",
    ),
    value(
        "limits-connection-rate",
        "NUMBER",
        "250",
        "New connections of one pod per second, with bursts of twice that number; more are closed",
    ),
    value(
        "limits-head-timeout",
        "DURATION",
        "5s",
        "Timeout for a request to arrive, counted from its first byte, and for an answer to be read",
    ),
    value(
        "limits-idle-timeout",
        "DURATION",
        "75s",
        "Time after which a connection without a request is closed; while connections are short, idle ones are closed at \
         once",
    ),
    value(
        "metadata-addr",
        "HOST[:PORT]",
        "169.254.169.254",
        "The real metadata service, from which the daemon reads its region and account, and what pods may read",
    ),
    value(
        "metadata-profile",
        "PROFILE",
        "base",
        "What pods may read besides credentials: base (region, zone, partition, instance ID and type, identity \
         document), node-info (also the node's addresses, interfaces, tags and notices), or none",
    ),
    list("node-info-namespaces", "NAME", "", "Namespaces whose pods may read node-info: a list, in which * matches any text"),
];

const POD_IDENTITY: &[Flag] = &[
    switch(
        "pod-identity",
        "Also serve credentials for service account tokens, with the protocol of EKS Pod Identity (AWS_CONTAINER_CREDENTIALS_FULL_URI)",
    ),
    list(
        "pod-identity-addresses",
        "IP:PORT",
        DEFAULT_POD_IDENTITY_ADDRESSES,
        "Addresses where pods request these credentials; the daemon assigns them to the node's loopback interface",
    ),
    value("pod-identity-host-port", "PORT", "8182", "Port on 127.0.0.1 where pods with hostNetwork request these credentials; 0 for none"),
    value("pod-identity-audience", "AUDIENCE", DEFAULT_POD_IDENTITY_AUDIENCE, "Audience that the service account tokens must have"),
    list(
        "pod-identity-issuer",
        "URL",
        "",
        "Accepted issuers of the service account tokens: a list; default: the issuer that the Kubernetes API names",
    ),
    switch(
        "pod-identity-relative-uri",
        "Also serve credentials without a token at 169.254.170.2:80, to pods with a network of their own, for SDKs that know only \
         AWS_CONTAINER_CREDENTIALS_RELATIVE_URI; any program of the pod that can be made to send a GET gets them, as with IMDSv1",
    ),
    switch(
        "pod-identity-token-review",
        "Let the API server confirm each service account token (TokenReview), every five minutes; withdrawn tokens are then refused",
    ),
];

pub(super) const REDIRECT: &[Flag] = &[
    switch("iptables", "Manage the packet rules that redirect the pods' metadata requests to rolegate; same as --redirect=auto"),
    value(
        "redirect",
        "BACKEND",
        "none",
        "Backend of the packet rules: nftables, iptables, auto (nftables if it works, else iptables; also an exit guard of BPF where that \
         is permitted), bpf (as auto, and BPF programs that redirect pods' connections), or none",
    ),
    value(
        "bpf-cgroup",
        "PATH",
        "",
        "With bpf, auto and --pod-identity: the directory of the control group of all pods, in a cgroup2 file system; default: where kubelets create it",
    ),
    value("bpf-pins", "PATH", "/sys/fs/bpf/rolegate", "With bpf and auto: the directory of the pins that keep the BPF programs attached"),
    list(
        "bpf-interfaces",
        "NAME",
        "",
        "With bpf and auto: interfaces that get the exit guard: a list, NAME+ for a prefix; default: those with a route to the metadata \
         addresses, and all that are not virtual",
    ),
    value(
        "redirect-interval",
        "DURATION",
        "30s",
        "Time between two checks of the rules, besides those after changes on the node; 1s to 1h",
    ),
    value(
        "redirect-on-exit",
        "WHAT",
        "keep",
        "What happens to the rules when the daemon shuts down: keep (pods are refused) or remove (the node is open)",
    ),
    on_switch(
        "redirect-routing-rules",
        "With packet rules, also keep routing rules that give only the node itself a route to the real metadata service",
    ),
    list(
        "host-interface",
        "NAME",
        "",
        "Interfaces on which the pods' requests arrive: a list, NAME+ for a prefix, !NAME for all others; default: \
         all",
    ),
    list(
        "host-ip",
        "IP",
        "",
        "Addresses of this node to which the rules redirect: one IPv4 address and optionally one IPv6 address; \
         default: the bind address, else HOST_IP, else the node's address in the Kubernetes API, else that of --host-interface",
    ),
    value(
        "self-test",
        "MODE",
        "auto",
        "Test from a pod-like network namespace that requests arrive at rolegate: auto (if rolegate manages the rules \
         and the test can run), on (always; an error if the test cannot run), or off",
    ),
    value("self-test-interval", "DURATION", "1m", "Time between two self-tests, and between two checks of the pods' interfaces; 1s to 1h"),
];

const LOGS: &[Flag] = &[
    value("log-format", "FORMAT", "text", "text or json"),
    value("log-level", "LEVEL", "info", "error, warn, info, debug or trace"),
    switch("verbose", "Same as --log-level=debug"),
    switch("debug", "--log-level=debug, and serve /debug/store on the metrics port to clients on the node's loopback"),
];

/// The flags that only `rolegate explain` has, with the heading of them.
pub const OF_EXPLAIN: (&str, &[Flag]) = ("Only for rolegate explain", EXPLAIN);

const EXPLAIN: &[Flag] = &[
    value(
        "admin-url",
        "URL",
        "http://127.0.0.1:9543",
        "The daemon to ask, by the URL of its metrics port; default: port --metrics-port on this machine",
    ),
    value("output", "FORMAT", "text", "text or json"),
    switch("assume", "Also call AssumeRole once, and show the result; the credentials are discarded"),
];

/// The flags that only `rolegate check` has, with the heading of them.
pub const OF_CHECK: (&str, &[Flag]) = ("Only for rolegate check", CHECK);

const CHECK: &[Flag] = &[
    value(
        "args",
        "ARGUMENTS",
        "",
        "Verify this argument list of the daemon, or of kube2iam, and nothing else: everything behind --args, or behind --",
    ),
    value("role", "ROLE", "", "Also assume this role once, for 15 minutes, and discard the credentials: an ARN or a short name"),
    value("format", "FORMAT", "text", "text or json"),
];

/// The flags that only `rolegate iam-policy` has, with the heading of them.
pub const OF_IAM_POLICY: (&str, &[Flag]) = ("Only for rolegate iam-policy", IAM_POLICY);

const IAM_POLICY: &[Flag] = &[
    value(
        "node-role",
        "ARN",
        "",
        "Role of the nodes' instance profile, which assumes the pods' roles; trust policies name it as the principal",
    ),
    value(
        "policy",
        "POLICY",
        "all",
        "Policy that is printed: node, intermediate, trust, chain or boundary alone, as the AWS CLI takes it, or all in one document",
    ),
    value("role", "ROLE", "", "With --policy=trust and --policy=chain: the role whose policy is printed, an ARN or a short name"),
    switch(
        "prefix",
        "Allow the nodes' role all roles of each path in use, such as role/pods/*, instead of each role; roles without a path are \
         allowed one by one in any case",
    ),
    switch(
        "include-audited",
        "With --namespace-restrictions=audit: also include the roles that enforced restrictions would refuse; whoever may create pods \
         chose them",
    ),
];

/// The flags that only `rolegate report` has, with the heading of them. It shares `--admin-url` with `rolegate explain`.
pub const OF_REPORT: (&str, &[Flag]) = ("Only for rolegate report", REPORT);

const REPORT: &[Flag] = &[
    value("format", "FORMAT", "text", "text, json or csv"),
    switch(
        "all-nodes",
        "Read the reports of all nodes through port-forwards of the Kubernetes API, and merge them; requires list of pods and \
         create of pods/portforward in the daemons' namespace",
    ),
    value("daemon-namespace", "NAME", "kube-system", "With --all-nodes: the namespace of the daemons' pods"),
    value("daemon-selector", "SELECTOR", "app.kubernetes.io/name=rolegate", "With --all-nodes: the label selector of the daemons' pods"),
];

/// The flags that only `rolegate pod-identity render` has, with the heading of them.
pub const OF_POD_IDENTITY_RENDER: (&str, &[Flag]) = ("Only for rolegate pod-identity render", POD_IDENTITY_RENDER);

const POD_IDENTITY_RENDER: &[Flag] = &[
    list("container", "NAME", "", "Containers that get credentials: a list; the flag can be repeated"),
    list("init-container", "NAME", "", "Init containers that get credentials: a list; the flag can be repeated"),
    switch("host-network", "The pods have hostNetwork, so they connect to 127.0.0.1"),
    value(
        "host-port",
        "PORT",
        "8182",
        "With --host-network: the port that the pods connect to, the same as the daemon's --pod-identity-host-port",
    ),
    switch("ipv6", "The pods have only IPv6 addresses, so they connect to fd00:ec2::23"),
    value(
        "audience",
        "AUDIENCE",
        DEFAULT_POD_IDENTITY_AUDIENCE,
        "The audience of the token, the same as the daemon's --pod-identity-audience",
    ),
];

/// The flags that only `rolegate redirect` has, with the heading of them.
pub const OF_REDIRECT: (&str, &[Flag]) = ("Only for rolegate redirect", OF_REDIRECT_ALONE);

const OF_REDIRECT_ALONE: &[Flag] = &[
    switch("guard", "Only the guard: reject all requests of pods to the metadata address"),
    switch("peers", "With remove: remove only the rules that kube2iam and kiam left behind"),
    switch("force", "With remove: remove the rules even while a daemon runs on the node"),
];
