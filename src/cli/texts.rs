//! The examples and exit codes of every command, which `--help` and the man pages print.

/// An example: what it does, and the command.
pub(super) type Example = (&'static str, &'static str);

/// What a command's help says at its end.
#[derive(Debug)]
pub(super) struct Ending {
    /// The command, without the name of the program; empty for the program without a command.
    pub command: &'static str,
    /// Its exit codes; empty for a command that only has others below it.
    pub exit_codes: &'static str,
    /// Its examples.
    pub examples: &'static [Example],
}

/// Every command.
pub(super) const ENDINGS: &[Ending] = &[
    Ending {
        command: "",
        exit_codes: DAEMON,
        examples: &[
            ("Serve this node's pods", "rolegate --node=node-a --base-role-arn=arn:aws:iam::123456789012:role/ --redirect=auto"),
            ("Find out why a pod gets no credentials", "rolegate explain shop/web-0"),
            ("Verify the arguments of a kube2iam DaemonSet", "rolegate check -- --iptables=true --host-interface=eni+"),
        ],
    },
    Ending {
        command: "run",
        exit_codes: DAEMON,
        examples: &[("Serve this node's pods", "rolegate run --node=node-a --auto-discover-base-arn --redirect=auto")],
    },
    Ending {
        command: "explain",
        exit_codes: "0 the pod may use its role (with --assume, STS also allows it), 1 it may not, 2 wrong arguments, 3 unknown",
        examples: &[
            ("Ask the daemon, in its pod on the pod's node", "rolegate explain shop/web-0"),
            (
                "Read the Kubernetes API from any machine",
                "rolegate explain shop/web-0 --kubeconfig=config --base-role-arn=arn:aws:iam::123456789012:role/",
            ),
        ],
    },
    Ending {
        command: "report",
        exit_codes: "0 no findings, 1 findings, 2 wrong arguments, 3 the report, or that of a node, cannot be read, or its daemon runs \
                     without --migrate",
        examples: &[
            ("The node of the daemon's pod", "rolegate report"),
            ("All nodes, as a table for a spreadsheet", "rolegate report --all-nodes --kubeconfig=config --format=csv >report.csv"),
        ],
    },
    Ending {
        command: "check",
        exit_codes: "0 nothing failed, 1 at least one check failed, 2 wrong usage",
        examples: &[
            ("In the daemon's pod, with its arguments", "rolegate check --node=node-a --auto-discover-base-arn --redirect=auto"),
            ("An argument list alone, on any machine", "rolegate check -- --iptables=true --host-interface=eni+"),
        ],
    },
    Ending {
        command: "iam-policy",
        exit_codes: "0 policies printed, 1 a policy that was asked for does not exist or exceeds a limit of AWS, 2 wrong arguments, 3 the \
                     cluster cannot be read",
        examples: &[
            (
                "All policies, for review (NODES is the ARN of the nodes' role)",
                "rolegate iam-policy --kubeconfig=config --base-role-arn=\"$BASE\" --node-role=\"$NODES\"",
            ),
            (
                "The policy of the nodes' role alone, for aws iam put-role-policy",
                "rolegate iam-policy --policy=node --kubeconfig=config --base-role-arn=\"$BASE\" >node.json",
            ),
        ],
    },
    Ending {
        command: "redirect",
        exit_codes: REDIRECT,
        examples: &[("Compare the rules of this node with the flags", "rolegate redirect status --redirect=auto")],
    },
    Ending {
        command: "redirect install",
        exit_codes: REDIRECT,
        examples: &[("Keep pods from the real metadata service until a daemon runs", "rolegate redirect install --guard")],
    },
    Ending {
        command: "redirect remove",
        exit_codes: REDIRECT,
        examples: &[
            ("Remove rolegate's rules, after its DaemonSet is deleted", "rolegate redirect remove"),
            ("Remove the rules that kube2iam or kiam left behind", "rolegate redirect remove --peers"),
        ],
    },
    Ending {
        command: "redirect status",
        exit_codes: REDIRECT,
        examples: &[("Compare the rules of this node with the flags", "rolegate redirect status --redirect=auto")],
    },
    Ending {
        command: "redirect render",
        exit_codes: REDIRECT,
        examples: &[("Print the rules for iptables-restore", "rolegate redirect render --redirect=iptables --host-ip=10.0.1.7")],
    },
    Ending {
        command: "probe",
        exit_codes: "0 yes, 1 no or no answer, 2 wrong arguments",
        examples: &[("Ask whether the process answers", "rolegate probe live --probe-socket=/run/rolegate/probe.sock")],
    },
    Ending {
        command: "migrate",
        exit_codes: "0 manifests printed, 1 nothing to migrate, 2 input that cannot be read or arguments that rolegate refuses",
        examples: &[
            ("Convert the manifests of kube2iam", "rolegate migrate kube2iam <kube2iam.yaml >rolegate.yaml"),
            (
                "Move roles to service accounts",
                "kubectl get deploy,rs,sts,ds,job,cronjob,pods,sa -A -o json | rolegate migrate annotations >accounts.yaml",
            ),
        ],
    },
    Ending {
        command: "pod-identity",
        exit_codes: "",
        examples: &[("Print a patch for a Deployment", "rolegate pod-identity render deployment/web --container=web >patch.yaml")],
    },
    Ending {
        command: "pod-identity render",
        exit_codes: "0 patch printed, 2 wrong arguments",
        examples: &[("Print a patch for a Deployment", "rolegate pod-identity render deployment/web --container=web >patch.yaml")],
    },
    Ending {
        command: "wait",
        exit_codes: "0 after SIGTERM or SIGINT, 1 signals cannot be received, 2 wrong arguments",
        examples: &[("Keep a container running after its init containers", "rolegate wait")],
    },
    Ending {
        command: "completions",
        exit_codes: "0 script printed, 2 wrong arguments",
        examples: &[
            ("bash, for this session", "source <(rolegate completions bash)"),
            ("zsh", "rolegate completions zsh >\"${fpath[1]}/_rolegate\""),
            ("fish", "rolegate completions fish >~/.config/fish/completions/rolegate.fish"),
        ],
    },
    Ending {
        command: "man",
        exit_codes: "0 pages written, 1 a file cannot be written, 2 wrong arguments",
        examples: &[
            ("Read the page of the program", "rolegate man | man -l -"),
            ("Write the pages of all commands", "rolegate man /usr/local/share/man/man1"),
        ],
    },
    Ending { command: "help", exit_codes: "", examples: &[("Print the help of a command", "rolegate help explain")] },
];

const DAEMON: &str = "0 after an orderly end, 1 the daemon cannot start or continue, 2 wrong arguments";
const REDIRECT: &str = "0 success; 1 failure, or (status) a rule is missing or differs; 2 wrong arguments; 3 (status) unknown";

/// Returns what the help of a command says at its end.
pub(super) fn ending(command: &str) -> Option<&'static Ending> {
    ENDINGS.iter().find(|ending| ending.command == command)
}

impl Ending {
    /// Returns the examples and exit codes as `--help` prints them.
    pub(super) fn text(&self) -> String {
        let examples = self.examples.iter().map(|(what, command)| format!("\n  {what}:\n    {command}")).collect::<String>();
        let codes = if self.exit_codes.is_empty() { String::new() } else { format!("\n\nExit codes: {}.", self.exit_codes) };
        format!("Examples:{examples}{codes}")
    }
}
