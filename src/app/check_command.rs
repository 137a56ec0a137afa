//! `rolegate check`: what the daemon needs, tried before it starts, by the daemon's own code. It changes nothing but what the
//! self-test makes and removes again.
//!
//! The parts run at once. Each question has a time limit, so that the command always ends.

use crate::check::{CheckItem, CheckReport, CheckSection};
use crate::config::check_command::{CheckCommand, CheckPlace};
use crate::config::{Config, ConfigError, DEFAULT_METADATA_ADDR, MetadataProfile};
use crate::proxy::metadata::upstream::{MetadataAnswers, answers_of};
use crate::self_test::Ability;

mod aws;
mod kubernetes;
mod node;
mod step;

use step::is_on_node;

/// Makes every check that can be made here. `self_test` says whether the self-test can run.
pub(crate) async fn check(command: CheckCommand, self_test: Ability) -> CheckReport {
    let CheckCommand { config, only_arguments, role, place, .. } = command;
    let mut checks = arguments(config.as_deref());
    match config {
        _ if only_arguments => {}
        Err(_) => {
            let others = [CheckSection::Kubernetes, CheckSection::Identity, CheckSection::Sts, CheckSection::Metadata, CheckSection::Node];
            checks.extend(others.map(|section| section.skipped("all", "the arguments are wrong")));
        }
        Ok(config) => {
            let (api, aws, metadata, node) = tokio::join!(
                kubernetes::checks(&config, &place),
                aws::checks(&config, role.as_deref()),
                metadata(&config, &place),
                node::checks(&config, &place, self_test),
            );
            checks.extend([api, aws, metadata, node].into_iter().flatten());
        }
    }
    CheckReport::new(checks)
}

fn arguments(config: Result<&Config, &ConfigError>) -> Vec<CheckItem> {
    let section = CheckSection::Arguments;
    match config {
        Err(error) => {
            let failed = |mistake: &String| section.failed("flags", mistake).advise("correct this argument of the daemon (docs/flags.md)");
            error.mistakes.iter().map(failed).collect()
        }
        Ok(config) => {
            let mut checks = vec![section.ok("flags", "the daemon accepts them")];
            if config.pods.node.is_empty() {
                let missing = "--node (or NODE_NAME) is missing: the daemon takes the node of its own pod, and does not start if it cannot find \
                               that pod";
                checks.push(section.warning("node", missing).advise("set it from the field spec.nodeName of the DaemonSet's pod"));
            }
            checks.extend(config.warnings.iter().map(|warning| section.warning(warning.reason, warning.to_string())));
            checks
        }
    }
}

async fn metadata(config: &Config, place: &CheckPlace) -> Vec<CheckItem> {
    let (section, metadata) = (CheckSection::Metadata, &config.metadata);
    if metadata.disabled && metadata.profile == MetadataProfile::None && metadata.node_info_namespaces.is_empty() {
        return vec![section.skipped("token", "AWS_EC2_METADATA_DISABLED is set, so the daemon does not ask it")];
    }
    let MetadataAnswers { failure, is_silent, without_token } = answers_of(metadata.address.clone()).await;
    let address = &metadata.address;
    if let Some(failure) = failure {
        // Everywhere but on EC2, nothing answers there.
        if !is_on_node(place) && address == DEFAULT_METADATA_ADDR {
            return vec![section.skipped("token", format!("{address}: {failure}; this may be no EC2 instance"))];
        }
        let advice = if is_silent {
            "run the daemon in the node's network (hostNetwork: true); in another network, the instance's HttpPutResponseHopLimit must be \
             at least 2"
        } else {
            "let the daemon reach the metadata service: HttpEndpoint=enabled, and hostNetwork: true in the pod's spec; or check \
             --metadata-addr"
        };
        return vec![section.failed("token", format!("{address}: {failure}")).advise(advice)];
    }
    let v1 = match without_token {
        Some(true) => section
            .warning("imds-v1", "the instance also answers without a session token; packets that bypass the rules could use that")
            .advise("set HttpTokens=required on the instance (aws ec2 modify-instance-metadata-options)"),
        Some(false) => section.ok("imds-v1", "the instance requires session tokens"),
        None => section.skipped("imds-v1", "the instance gave no clear answer to a request without a session token"),
    };
    let hops = "an instance cannot read its HttpPutResponseHopLimit; as the answer arrived, it is at least 1, or 2 if this is not the \
                node's network";
    vec![
        section.ok("token", format!("{address} gives session tokens")),
        section.skipped("hop-limit", hops).advise("set HttpPutResponseHopLimit=1, which is enough for the daemon and stops pods"),
        v1,
    ]
}
