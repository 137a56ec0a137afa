//! The checks of the node: its packet rules, what other programs left, its ports, and what the process may do.

use super::{CheckItem, CheckSection};
use crate::config::HostNetworkMode;
use crate::redirect::foreign::Unsearched;
use crate::redirect::status::StatusReport;

const SECTION: CheckSection = CheckSection::Node;

/// A port of the daemon.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct CheckedPort {
    /// The name of the check.
    pub check: &'static str,
    /// The flag that sets it.
    pub flag: &'static str,
    /// The number.
    pub port: u16,
    /// Whether some program listens there.
    pub is_in_use: bool,
}

/// Returns the check of the packet rules. Before the first daemon there are none, which fails nothing.
pub(crate) fn packet_rules(report: &StatusReport, daemon: Option<bool>) -> CheckItem {
    let detail = report.lines.join("; ");
    match (report.as_wanted, daemon) {
        (true, _) => SECTION.ok("packet-rules", detail),
        (false, Some(true)) => SECTION.failed("packet-rules", detail).advise(
            "give this command the daemon's flags; if they are the same, see the daemon's log for why it does not repair the rules",
        ),
        (false, _) => SECTION
            .warning("packet-rules", detail)
            .advise("start the daemon, which installs its rules; to close the node before that, install the guard at boot (docs/boot.md)"),
    }
}

/// Returns the check of the settings for pods in the node's network. `has_cgroup2` says whether the node has control groups of
/// version 2 alone, if that is known.
pub(crate) fn host_network(mode: HostNetworkMode, exempt: usize, has_cgroup2: Option<bool>) -> CheckItem {
    let flag = format!("--host-network-pods={}", mode.name());
    match (mode, has_cgroup2) {
        (HostNetworkMode::Ignore, _) => SECTION
            .ok("host-network", format!("{flag}: pods with hostNetwork reach the real metadata service, as every process on the node")),
        (_, Some(false)) => SECTION
            .warning("host-network", format!("{flag} has no effect on this node: it does not have control groups of version 2 alone"))
            .advise("boot the node with the unified cgroup hierarchy (systemd.unified_cgroup_hierarchy=1)"),
        _ => SECTION.ok("host-network", format!("{flag}, with {exempt} exemptions (docs/host-network.md); needs --redirect=bpf")),
    }
}

/// Returns a check for each rule that kube2iam or kiam left behind.
pub(crate) fn leftovers(found: &Result<Vec<String>, String>) -> Vec<CheckItem> {
    match found {
        Ok(rules) if rules.is_empty() => vec![SECTION.ok("leftovers", "no rules of kube2iam or kiam")],
        Ok(rules) => rules
            .iter()
            .map(|rule| {
                SECTION
                    .warning("leftovers", format!("kube2iam or kiam left a rule behind: {rule}"))
                    .advise("once no pod depends on it, run `rolegate redirect remove --peers`")
            })
            .collect(),
        Err(reason) => vec![SECTION.skipped("leftovers", format!("cannot look for rules of kube2iam and kiam: {reason}"))],
    }
}

/// Returns a check for each redirect of connections to the daemon by another program.
pub(crate) fn redirects_of_daemon_connections(found: &[String]) -> Vec<CheckItem> {
    if found.is_empty() {
        return vec![SECTION.ok("daemon-connections", "no other program redirects connections to the daemon")];
    }
    let warning = |redirect: &String| {
        SECTION
            .warning("daemon-connections", format!("another program redirects connections to the daemon: {redirect}"))
            .advise("delete the Service or host port that redirects them, or choose another --app-port if it is the app port; set --redirect=nftables")
    };
    found.iter().map(warning).collect()
}

/// Returns a check for each redirect of the node's own metadata requests by another program.
pub(crate) fn redirects_of_own_requests(found: &[String]) -> Vec<CheckItem> {
    if found.is_empty() {
        return vec![SECTION.ok("own-requests", "no other program redirects the node's own metadata requests")];
    }
    let warning = |redirect: &String| {
        SECTION.warning("own-requests", format!("another program redirects the node's own metadata requests: {redirect}")).advise(
            "delete the Service whose external IP is the metadata address, or whatever else redirects them; component daemonset/admission/ \
             keeps such Services out",
        )
    };
    found.iter().map(warning).collect()
}

/// Returns the check of rules of other programs that cannot be searched for redirects.
pub(crate) fn unsearched_rules(Unsearched { what, error, .. }: &Unsearched) -> CheckItem {
    SECTION.warning("own-requests", format!("cannot search {what} for redirects by other programs: {error}")).advise(
        "list these rules yourself, and look for the metadata address and the daemon's address and port; reduce the number of Services",
    )
}

/// Returns the check of a port. `daemon` says whether a daemon runs on this node, if that is known.
pub(crate) fn port(CheckedPort { check, flag, port, is_in_use }: CheckedPort, daemon: Option<bool>) -> CheckItem {
    let stop = || format!("stop the program that uses the port (`ss --listening --tcp --processes`), or choose another {flag}");
    match (is_in_use, daemon) {
        _ if port == 0 => SECTION.ok(check, format!("{flag}=0: any free port")),
        (false, _) => SECTION.ok(check, format!("port {port} is free")),
        (true, Some(true)) => SECTION.ok(check, format!("port {port} is in use; a rolegate daemon runs on this node")),
        (true, Some(false)) => SECTION.failed(check, format!("another program listens on port {port}")).advise(stop()),
        (true, None) => SECTION
            .warning(check, format!("a program listens on port {port}, which may be a rolegate daemon"))
            .advise(format!("if it is none, {}", stop())),
    }
}

/// Returns the check of the capabilities; `missing` are the names of those that the flags need and the process does not have.
pub(crate) fn capabilities(missing: &[&str]) -> CheckItem {
    if missing.is_empty() {
        return SECTION.ok("capabilities", "the process has what the flags need");
    }
    SECTION
        .failed("capabilities", format!("missing: {}", missing.join(", ")))
        .advise(format!("add {} to capabilities in the container's securityContext, and run as root", missing.join(", ")))
}

/// Returns the check of the addresses of `--host-ip`; `missing` are those that no interface has.
pub(crate) fn addresses(missing: &[String]) -> CheckItem {
    if missing.is_empty() {
        return SECTION.ok("host-ip", "an interface of this node has each address of --host-ip");
    }
    SECTION
        .failed("host-ip", format!("no interface has the address {} of --host-ip", missing.join(", ")))
        .advise("set --host-ip from the field status.hostIP of the pod, and hostNetwork: true in the pod's spec")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::CheckStatus;

    #[test]
    fn rules_that_differ_fail_only_beside_a_daemon() {
        let status =
            |as_wanted, daemon| packet_rules(&StatusReport { lines: vec!["a".to_owned(), "b".to_owned()], as_wanted }, daemon).status;
        assert_eq!([status(true, Some(true)), status(true, Some(false))], [CheckStatus::Ok; 2]);
        assert_eq!(status(false, Some(true)), CheckStatus::Failed);
        assert_eq!([status(false, Some(false)), status(false, None)], [CheckStatus::Warning; 2]);
    }

    #[test]
    fn a_port_in_use_is_the_daemons_or_anothers() {
        let status =
            |port, is_in_use, daemon| super::port(CheckedPort { check: "app-port", flag: "--app-port", port, is_in_use }, daemon).status;
        assert_eq!([status(8181, false, Some(false)), status(8181, true, Some(true)), status(0, true, None)], [CheckStatus::Ok; 3]);
        assert_eq!((status(8181, true, Some(false)), status(8181, true, None)), (CheckStatus::Failed, CheckStatus::Warning));
    }

    #[test]
    fn each_leftover_rule_has_its_own_line() {
        let found = |rules: &[&str]| leftovers(&Ok(rules.iter().map(|rule| (*rule).to_owned()).collect()));
        assert_eq!(found(&[])[0].status, CheckStatus::Ok);
        assert_eq!(found(&["a", "b"]).iter().map(|item| item.status).collect::<Vec<_>>(), [CheckStatus::Warning; 2]);
        assert_eq!(leftovers(&Err("no program".to_owned()))[0].status, CheckStatus::Skipped);
    }

    #[test]
    fn each_redirect_by_another_program_has_its_own_line() {
        for checks in [redirects_of_own_requests, redirects_of_daemon_connections] {
            assert_eq!(checks(&[])[0].status, CheckStatus::Ok);
            let found = checks(&["a".to_owned(), "b".to_owned()]);
            assert_eq!(found.iter().map(|item| item.status).collect::<Vec<_>>(), [CheckStatus::Warning; 2]);
        }
    }

    #[test]
    fn what_is_missing_on_the_node_fails() {
        assert_eq!([capabilities(&[]).status, addresses(&[]).status], [CheckStatus::Ok; 2]);
        assert_eq!([capabilities(&["NET_ADMIN"]).status, addresses(&["192.0.2.1".to_owned()]).status], [CheckStatus::Failed; 2]);
    }
}
