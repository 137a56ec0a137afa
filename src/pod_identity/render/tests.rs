#![allow(clippy::unwrap_used, reason = "a test says loudly what failed")]

use k8s_openapi::api::apps::v1::{DaemonSet, Deployment, StatefulSet};
use k8s_openapi::api::batch::v1::{CronJob, Job};
use k8s_openapi::api::core::v1::{Pod, PodSpec};
use serde_json::Value;

use super::*;
use crate::cli;
use crate::config::pod_identity_render::KINDS;

/// What arguments ask for, or every mistake in them.
fn asked(arguments: &[&str]) -> Result<PodIdentityRender, Vec<String>> {
    let words = ["rolegate", "pod-identity", "render"].iter().chain(arguments);
    let matches = cli::command().try_get_matches_from(words).unwrap();
    let matches = matches.subcommand_matches("pod-identity").unwrap().subcommand_matches("render").unwrap();
    PodIdentityRender::from_source(matches, &|_| None).map_err(|error| error.mistakes)
}

fn rendered(arguments: &[&str]) -> String {
    render(&asked(arguments).unwrap())
}

fn value(text: &str) -> Value {
    serde_saphyr::from_str(text).unwrap()
}

#[test]
fn a_patch_of_a_deployment() {
    insta::assert_snapshot!(rendered(&["deployment/web", "--container=app,sidecar", "--init-container=setup"]));
}

#[test]
fn a_patch_of_a_cron_job_in_the_nodes_network() {
    insta::assert_snapshot!(rendered(&["cronjob/backup", "--container=backup", "--host-network", "--host-port=9000", "--audience=other"]));
}

/// Reads the patch as the API server does.
fn pod_spec(kind: &str, patch: Value) -> PodSpec {
    let spec = match kind {
        "Deployment" => serde_json::from_value::<Deployment>(patch).unwrap().spec.unwrap().template.spec,
        "StatefulSet" => serde_json::from_value::<StatefulSet>(patch).unwrap().spec.unwrap().template.spec,
        "DaemonSet" => serde_json::from_value::<DaemonSet>(patch).unwrap().spec.unwrap().template.spec,
        "Job" => serde_json::from_value::<Job>(patch).unwrap().spec.unwrap().template.spec,
        "CronJob" => serde_json::from_value::<CronJob>(patch).unwrap().spec.unwrap().job_template.spec.unwrap().template.spec,
        "Pod" => serde_json::from_value::<Pod>(patch).unwrap().spec,
        other => panic!("{other}"),
    };
    spec.unwrap()
}

#[test]
fn every_kind_gets_variables_mount_and_volume() {
    for kind in KINDS {
        let patch = value(&rendered(&[&format!("{}/web", kind.word), "--container=1e3", "--init-container=setup", "--ipv6"]));
        assert_eq!(
            (&patch["apiVersion"], &patch["kind"], &patch["metadata"]["name"]),
            (&kind.version.into(), &kind.kind.into(), &"web".into())
        );
        let spec = pod_spec(kind.kind, patch);
        let init = spec.init_containers.unwrap();
        assert_eq!((init[0].name.as_str(), spec.containers[0].name.as_str()), ("setup", "1e3"));
        for container in init.iter().chain(&spec.containers) {
            let variables = container.env.as_ref().unwrap();
            let of = |name: &str| variables.iter().find(|variable| variable.name == name).and_then(|variable| variable.value.clone());
            assert_eq!(of("AWS_CONTAINER_CREDENTIALS_FULL_URI").unwrap(), "http://[fd00:ec2::23]/v1/credentials");
            let mount = &container.volume_mounts.as_ref().unwrap()[0];
            let volume = &spec.volumes.as_ref().unwrap()[0];
            assert_eq!(mount.name, volume.name);
            let token = volume.projected.as_ref().unwrap().sources.as_ref().unwrap()[0].service_account_token.as_ref().unwrap();
            assert_eq!(of("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE").unwrap(), format!("{}/{}", mount.mount_path, token.path));
            assert_eq!((token.audience.as_deref(), token.expiration_seconds), (Some("pods.eks.amazonaws.com"), Some(86_400)));
        }
    }
}

#[test]
fn wrong_arguments_are_refused_together() {
    for (arguments, mistakes) in [
        (&["web", "--container=app"][..], 1),
        (&["deployment/", "--container=app"], 1),
        (&["secret/web", "--container=app"], 1),
        (&["deployment/web\nkind: Evil", "--container=app"], 1),
        (&["deployment/web"], 1),
        (&["deployment/web", "--container=app\nkind: Evil"], 2),
        (&["deployment/web", "--container=app,app"], 1),
        (&["deployment/web", "--container=app", "--init-container=app"], 1),
        (&["deployment/web", "--container=app", "--ipv6", "--host-network"], 1),
        (&["deployment/web", "--container=app", "--host-port=0"], 1),
        (&["deployment/web", "--container=app", "--audience=a b"], 1),
        (&["web", "--container=-", "--audience=", "--host-port=x"], 5),
    ] {
        let found = asked(arguments).unwrap_err();
        assert_eq!(found.len(), mistakes, "{arguments:?}: {found:?}");
    }
}

/// The audience is the only text that is not a name.
#[test]
fn no_audience_becomes_a_line() {
    for audience in ["a\"b", "a'b", "#a", "{a}", "a:\\b", "*a", "&a", "- a"] {
        let Ok(wanted) = asked(&["pod/web", "--container=app", &format!("--audience={audience}")]) else { continue };
        let patch = value(&render(&wanted));
        assert_eq!(patch["spec"]["volumes"][0]["projected"]["sources"][0]["serviceAccountToken"]["audience"], audience);
    }
}

/// The admission policy and this command do the same.
#[test]
fn the_admission_policy_has_the_same_values() {
    let policy = include_str!("../../../daemonset/pod-identity-injection/policy.yaml");
    for text in [
        format!("'http://{IPV4}{CREDENTIALS_PATH}'"),
        format!("'http://127.0.0.1:8182{CREDENTIALS_PATH}'"),
        format!("http://{IPV6}{CREDENTIALS_PATH}"),
        format!("['127.0.0.1'] : ['{IPV4}', '{IPV6}']"),
        format!("\"'{DIRECTORY}'\""),
        format!("name: '{TOKEN}'"),
        format!("path: '{TOKEN}'"),
        format!("\"{EXPIRATION_SECONDS}\""),
        "\"'pods.eks.amazonaws.com'\"".to_owned(),
    ] {
        assert!(policy.contains(&text), "{text}");
    }
}

#[test]
fn the_addresses_are_the_default_ones_of_the_daemon() {
    assert_eq!(format!("{IPV4}:80,{IPV6}:80"), crate::config::flags::DEFAULT_POD_IDENTITY_ADDRESSES);
}
