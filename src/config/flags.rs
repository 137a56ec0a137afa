//! Every flag, in one table: `--help`, the environment, the documentation's test and the parser all read it.

use clap::{Arg, ArgAction, Command};

/// One flag, which is also the environment variable `ROLEGATE_` + its name in upper snake case.
#[derive(Debug)]
pub struct Flag {
    /// The name, without dashes.
    pub name: &'static str,
    /// What stands for the value in `--help`; a flag without is a switch (`--name`, `--name=true`, `--name=false`).
    pub value: Option<&'static str>,
    /// The default as a person would write it; empty where there is none.
    pub default: &'static str,
    /// May stand without a value, which then is `true`; with one it needs the equals sign, as in Go's flags.
    pub bare: bool,
    /// May be given more than once (and as one comma-separated list).
    pub list: bool,
    /// What it does.
    pub help: &'static str,
}

impl Flag {
    /// The environment variable that is read where the flag is not given.
    pub fn env(&self) -> String {
        format!("ROLEGATE_{}", self.name.replace('-', "_").to_uppercase())
    }
}

const fn value(name: &'static str, value: &'static str, default: &'static str, help: &'static str) -> Flag {
    Flag { name, value: Some(value), default, bare: false, list: false, help }
}

const fn list(name: &'static str, value: &'static str, default: &'static str, help: &'static str) -> Flag {
    Flag { name, value: Some(value), default, bare: false, list: true, help }
}

const fn switch(name: &'static str, help: &'static str) -> Flag {
    Flag { name, value: None, default: "false", bare: true, list: false, help }
}

const fn on_switch(name: &'static str, help: &'static str) -> Flag {
    Flag { name, value: None, default: "true", bare: true, list: false, help }
}

/// The flags, grouped as `--help` prints them.
pub const GROUPS: &[(&str, &[Flag])] = &[
    ("Pods and the Kubernetes API", PODS),
    ("Roles", ROLES),
    ("Sessions", SESSIONS),
    ("Serving", SERVING),
    ("Packet rules", REDIRECT),
    ("Logs", LOGS),
];

const PODS: &[Flag] = &[
    value("node", "NAME", "", "Name of this node: only its pods are watched and served; required (NODE_NAME is read too)"),
    value("kubeconfig", "FILE", "", "kubeconfig file for the API; without it and --api-server, the pod's service account"),
    value(
        "api-server",
        "URL",
        "",
        "URL of the Kubernetes API; the identity comes from --api-token or --kubeconfig, not from the service account",
    ),
    value("api-token", "TOKEN", "", "Bearer token for the Kubernetes API; goes with --api-server"),
    switch("insecure", "Do not verify the API server's certificate (for tests only)"),
    value(
        "backoff-max-elapsed-time",
        "DURATION",
        "2s",
        "Longest time that a request from an address waits for the pod that has it to become known",
    ),
    value(
        "max-staleness",
        "DURATION",
        "15m",
        "Time without contact with the API after which pods whose address nothing on this node confirms are refused; 0 for no limit",
    ),
    value(
        "cni-results",
        "DIR",
        "",
        "Directory on the node, such as /var/lib/cni/results, in which the container runtime caches the results of CNI plugins; they are \
         a second source, besides the Kubernetes API, for which pod has which address",
    ),
    on_switch("events", "Tell pods' owners by Events on pods why they get no credentials; needs create and patch of them"),
    value(
        "startup-taint",
        "KEY",
        "",
        "Key of the taints that are removed from this node when the daemon is ready; needs get and patch of nodes",
    ),
    value("backoff-max-interval", "DURATION", "1s", "Accepted for kube2iam's sake, no effect: a waiting request is woken by the watch"),
    value("cache-resync-period", "DURATION", "30m", "Accepted for kube2iam's sake, no effect: the watch needs no resync"),
    switch(
        "resolve-duplicate-cache-ips",
        "Accepted for kube2iam's sake, no effect: pods that claim one address are always told apart or refused",
    ),
];

const ROLES: &[Flag] = &[
    value("iam-role-key", "KEY", "iam.amazonaws.com/role", "Annotation of a pod that names its role (an ARN or a short name)"),
    value("iam-external-id", "KEY", "iam.amazonaws.com/external-id", "Annotation of a pod with the external id for its role"),
    value("base-role-arn", "ARN", "", "Prefix of short role names, such as arn:aws:iam::123456789012:role/"),
    switch(
        "auto-discover-base-arn",
        "Take account and partition of --base-role-arn from the metadata service's iam/info; roles of that account are refused if STS \
         says that the daemon's own identity is in another one",
    ),
    value("default-role", "ROLE", "", "Role of a pod without a role annotation; never used for a pod that is not known yet"),
    switch("auto-discover-default-role", "Make the node's own role the default; refused unless --allow-node-role stands beside it"),
    switch(
        "allow-node-role",
        "Let pods have the node's own role: those that name it, and with --auto-discover-default-role all without one",
    ),
    list(
        "allowed-roles",
        "PATTERN",
        "",
        "Roles that pods of this node may have at all, the default role too: ARNs or short names in which * stands for any text; \
         may be given more than once; default all",
    ),
    switch("service-account-roles", "Read a pod's role from its service account where the pod names none; needs list and watch of them"),
    switch("eks-role-annotation", "Read eks.amazonaws.com/role-arn of service accounts, too; goes with --service-account-roles"),
    Flag {
        name: "namespace-restrictions",
        value: Some("MODE"),
        default: "false",
        bare: true,
        list: false,
        help: "Whether a namespace's annotation limits the roles of its pods: true, false, or audit (only report)",
    },
    value("namespace-key", "KEY", "iam.amazonaws.com/allowed-roles", "Annotation of a namespace: the JSON list of allowed roles"),
    value(
        "namespace-restriction-format",
        "FORMAT",
        "glob",
        "What that list holds: glob (only * is special) or regexp; both match whole ARNs",
    ),
];

const SESSIONS: &[Flag] = &[
    value("session-duration", "DURATION", "1h", "Length of an STS session, 15m to 12h; above 1h the role must allow it"),
    value(
        "session-name-template",
        "TEMPLATE",
        "",
        "Name of a session in CloudTrail, made of text and of {cluster}, {node}, {namespace}, {pod}, {serviceaccount} and {role}, at \
         most 64 characters; default {pod}, or {role} with --session-scope=role; if it is given, pods' session-name annotations are \
         ignored",
    ),
    value(
        "source-identity",
        "TEMPLATE",
        "",
        "Source identity of sessions, made as --session-name-template is; it stays in CloudTrail when a pod assumes further roles, and \
         the pod cannot change it; without the flag, none is set. Roles must trust the node's for sts:SetSourceIdentity, too, as must \
         all roles that pods assume in turn",
    ),
    value("session-scope", "SCOPE", "pod", "Who shares a session: pod, each has its own; role, pods of one role share one"),
    list(
        "session-tags",
        "TAG",
        "",
        "Session tags that STS is told: a list of cluster, namespace, service-account, pod, pod-uid, node; \
         roles must trust the node's for sts:TagSession, too",
    ),
    value(
        "assume-role-arn",
        "ARN",
        "",
        "Role between the node's and the pods': it is assumed first, and assumes theirs; sessions last 1h at most",
    ),
    value("cluster-name", "NAME", "", "Name of the cluster, for session names, source identities and tags"),
    value("iam-role-session-ttl", "DURATION", "", "kube2iam's way to say --session-duration: sessions last twice this value"),
    value(
        "iam-role-error-ttl",
        "DURATION",
        "30s",
        "How long a failure of STS is remembered before the same session is asked for again, up to 8 times as long if it goes on; \
         1s at least",
    ),
    on_switch("prefetch", "Fetch a pod's session when the pod appears; without it, when it asks first"),
    value(
        "prefetch-spread",
        "DURATION",
        "10m",
        "Time over which the sessions of pods that were here before the daemon are fetched, unless they ask; 0 for at once",
    ),
    value("sts-timeout", "DURATION", "5s", "Longest time that a request of a pod waits for STS, all attempts included; 100ms to 1m"),
    value(
        "sts-rate",
        "NUMBER",
        "20",
        "Requests of this node to STS per second, with bursts of twice that number; those that pods wait \
         for go first",
    ),
    value(
        "sts-max-rate",
        "NUMBER",
        "",
        "Highest rate, in requests per second, to which --sts-rate rises while STS answers quickly and requests wait; default 5 times \
         --sts-rate",
    ),
    value(
        "sts-concurrency",
        "NUMBER",
        "16",
        "Most requests of this node to STS in flight at once; rises with the rate, by the same \
         factor",
    ),
    switch("use-regional-sts-endpoint", "Accepted for kube2iam's sake, no effect: the regional endpoint is always used"),
];

const SERVING: &[Flag] = &[
    value("app-port", "PORT", "8181", "Port that the pods' metadata requests are redirected to; 0 takes a free one"),
    value("metadata-bind-address", "IP", "", "Address of the app port; without it, every address of the node"),
    value("metrics-port", "PORT", "9543", "Port of /metrics, /healthz and /readyz; 0 takes a free one; never the app port"),
    value("metrics-bind-address", "IP", "", "Address of the metrics port; without it, every address of the node"),
    switch(
        "metrics-namespace-labels",
        "Include namespace labels in the metrics for all clients of the metrics port; without it, only for clients on the node itself",
    ),
    switch("accept-direct-connections", "Serve connections that no packet rule redirected; for tests and demonstrations, not for a node"),
    value("imds-tokens", "MODE", "required", "required: only IMDSv2 is served; optional: IMDSv1 too"),
    value(
        "token-key-file",
        "FILE",
        "",
        "Where the keys of session tokens are kept, so that tokens outlive the process; without it they end with it",
    ),
    value(
        "handover-socket",
        "PATH",
        "",
        "Unix socket, in a directory of the node, through which a daemon hands its listening socket to the next one; lets other \
         processes of the same user bind the app port, too (SO_REUSEPORT)",
    ),
    value("probe-socket", "PATH", "", "Unix socket, in a directory of the pod, at which rolegate probe asks this very daemon"),
    value("limits-connections", "NUMBER", "4096", "Most open connections of all pods together; each has one request in flight at a time"),
    value(
        "limits-connections-per-pod",
        "NUMBER",
        "128",
        "Most open connections of one pod; a further one waits for at most one second, and is then closed before a byte is read",
    ),
    value(
        "limits-connection-rate",
        "NUMBER",
        "250",
        "New connections of one pod per second, with bursts of twice that number; more are \
         closed",
    ),
    value(
        "limits-head-timeout",
        "DURATION",
        "5s",
        "Time for a request to arrive, for the next one on an idle connection, and for an answer to be taken",
    ),
    value(
        "metadata-addr",
        "HOST[:PORT]",
        "169.254.169.254",
        "The real metadata service, which the daemon itself asks for its region and account, and for what pods may read",
    ),
    value(
        "metadata-profile",
        "PROFILE",
        "base",
        "What pods may read besides credentials: base (region, zone, partition, instance id and type, identity document), \
         node-info (the node's addresses, interfaces, tags and notices as well), or none",
    ),
    list("node-info-namespaces", "NAME", "", "Namespaces whose pods may read node-info: a list, * stands for any text"),
];

const REDIRECT: &[Flag] = &[
    switch("iptables", "Keep the packet rules that bring the pods' metadata requests here; the same as --redirect=auto"),
    value("redirect", "BACKEND", "none", "What keeps those rules: nftables, iptables, auto (nftables where it works), or none"),
    value("redirect-interval", "DURATION", "30s", "How often the rules are compared besides when somebody changes rules, 1s to 1h"),
    value(
        "redirect-on-exit",
        "WHAT",
        "keep",
        "What becomes of the rules when the daemon ends in good order: keep, and pods are refused; or remove, and the node is open",
    ),
    list(
        "host-interface",
        "NAME",
        "",
        "Interfaces that the pods' requests come in on: a list, NAME+ for a prefix, !NAME for all but it; default all",
    ),
    list(
        "host-ip",
        "IP",
        "",
        "Addresses of this node that the rules send requests to: an IPv4 one, and an IPv6 one if it has one; \
         default: the address bound, else the node's in the API, else that of --host-interface",
    ),
    value(
        "self-test",
        "MODE",
        "auto",
        "Whether a test from a namespace like a pod's shows that requests arrive here: auto, with rules of ours where it can be done; \
         on, also with rules of others, and an error where it cannot be done; or off",
    ),
    value("self-test-interval", "DURATION", "1m", "Time between two self-tests, and between two looks at the pods' interfaces; 1s to 1h"),
];

const LOGS: &[Flag] = &[
    value("log-format", "FORMAT", "text", "text or json"),
    value("log-level", "LEVEL", "info", "error, warn, info, debug or trace"),
    switch("verbose", "The same as --log-level=debug"),
    switch("debug", "--log-level=debug, and /debug/store on the metrics port, for peers on the node's loopback only"),
];

/// The flags that only `rolegate explain` has, with the heading of them.
pub const OF_EXPLAIN: (&str, &[Flag]) = ("Only for rolegate explain", EXPLAIN);

const EXPLAIN: &[Flag] = &[
    value(
        "admin-url",
        "URL",
        "http://127.0.0.1:9543",
        "The daemon that is asked, by its metrics port; by default the one of this machine at --metrics-port",
    ),
    value("output", "FORMAT", "text", "text or json"),
    switch("assume", "Ask STS for the role as well, once, and say what it answers; the credentials are dropped"),
];

/// The flags that only `rolegate redirect` has, with the heading of them.
pub const OF_REDIRECT: (&str, &[Flag]) = ("Only for rolegate redirect", OF_REDIRECT_ALONE);

const OF_REDIRECT_ALONE: &[Flag] = &[
    switch("guard", "The guard alone: pods' requests to the metadata address are rejected, and go nowhere"),
    switch("peers", "With remove: the rules that kube2iam and kiam left behind, and nothing of ours"),
    switch("force", "With remove: also while a daemon runs on the node, which needs the rules"),
];

/// Flags that `rolegate redirect` shares with the daemon, besides those of the packet rules.
const SHARED_WITH_REDIRECT: &[&str] = &["app-port", "accept-direct-connections"];

/// The flag of `rolegate probe`, which is the daemon's as well.
pub fn add_to_probe(command: Command) -> Command {
    all().filter(|flag| flag.name == "probe-socket").fold(command, |command, flag| command.arg(arg(flag, "Flags")))
}

/// All flags of the daemon, in the order of `--help`.
pub fn all() -> impl Iterator<Item = &'static Flag> {
    GROUPS.iter().flat_map(|(_, flags)| flags.iter())
}

/// The flags of every subcommand.
pub fn of_all_commands() -> impl Iterator<Item = &'static Flag> {
    all().chain(OF_EXPLAIN.1).chain(OF_REDIRECT.1)
}

/// Adds the flags to a clap command. Values stay texts here, so that the configuration can report every mistake at once.
pub fn add_to(command: Command) -> Command {
    add(command, GROUPS)
}

/// Adds those of `rolegate explain`, and all others: it decides by the same settings.
pub fn add_to_explain(command: Command) -> Command {
    add(add(command, &[OF_EXPLAIN]), GROUPS)
}

/// Adds those of `rolegate redirect`, and those of the daemon that it reads.
pub fn add_to_redirect(command: Command) -> Command {
    let command = add(command, &[OF_REDIRECT, ("Packet rules", REDIRECT)]);
    SERVING.iter().filter(|flag| SHARED_WITH_REDIRECT.contains(&flag.name)).fold(command, |command, flag| command.arg(arg(flag, "Serving")))
}

fn add(mut command: Command, groups: &[(&'static str, &'static [Flag])]) -> Command {
    for (group, flags) in groups {
        for flag in *flags {
            command = command.arg(arg(flag, group));
        }
    }
    command
}

fn arg(flag: &'static Flag, group: &'static str) -> Arg {
    let mut help = flag.help.to_owned();
    if !flag.default.is_empty() && (flag.value.is_some() || flag.default == "true") {
        help.push_str(&format!(" [default: {}]", flag.default));
    }
    help.push_str(&format!(" [env: {}]", flag.env()));
    let arg = Arg::new(flag.name).long(flag.name).help(help).help_heading(group).action(ArgAction::Append);
    let arg = arg.value_name(flag.value.unwrap_or("BOOL"));
    if flag.bare { arg.num_args(0..=1).require_equals(true).default_missing_value("true") } else { arg.num_args(1) }
}
