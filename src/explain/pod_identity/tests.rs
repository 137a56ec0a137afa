use super::*;
use crate::config::explain_command::PodReference;
use crate::explain::By;
use crate::pods::{ManifestMount, ManifestVariable, Pod, pods};

const DIRECTORY: &str = "/var/run/secrets/pods.eks.amazonaws.com/serviceaccount";
const AUDIENCE: &str = "pods.eks.amazonaws.com";

fn config() -> PodIdentityConfig {
    PodIdentityConfig {
        addresses: ["169.254.170.23:80", "[fd00:ec2::23]:80"].map(|address| address.parse().unwrap()).to_vec(),
        host_address: Some("127.0.0.1:8182".parse().unwrap()),
        audience: AUDIENCE.to_owned(),
        issuers: Vec::new(),
        token_review: false,
        relative_address: None,
    }
}

fn variable_of(name: &str, value: &str) -> ManifestVariable {
    ManifestVariable { name: name.to_owned(), value: Some(value.to_owned()) }
}

/// A pod as the admission policy prepares it.
fn prepared() -> PodManifest {
    let variables = vec![
        variable_of(FULL_URI, "http://169.254.170.23/v1/credentials"),
        variable_of(TOKEN_FILE, &format!("{DIRECTORY}/eks-pod-identity-token")),
    ];
    let mounts = vec![ManifestMount { volume: "token".to_owned(), path: DIRECTORY.to_owned(), is_part: false }];
    let token = VolumeToken { volume: "token".to_owned(), audience: AUDIENCE.to_owned(), path: "eks-pod-identity-token".to_owned() };
    PodManifest {
        host_network: false,
        ips: vec!["10.0.0.1".parse().unwrap()],
        containers: vec![ManifestContainer { name: "app".to_owned(), variables, has_other_variables: false, mounts }],
        tokens: vec![token],
    }
}

/// The verdicts by subject, and the notes.
fn looked(manifest: PodManifest, config: Option<&PodIdentityConfig>) -> (Vec<(String, StepVerdict)>, Vec<String>) {
    let name = PodReference::new("shop", "web").unwrap();
    let mut report = Report::unknown(&name, "node-a", By::Daemon, "unknown-pod", String::new());
    look(Ok(manifest), config, &pods().1, &mut report);
    (report.pod_identity.into_iter().map(|step| (step.what, step.verdict)).collect(), report.notes)
}

fn is_passed(manifest: PodManifest) -> bool {
    let (steps, notes) = looked(manifest, Some(&config()));
    let is_passed = steps.iter().all(|(_, verdict)| *verdict == StepVerdict::Passed);
    assert_eq!(is_passed, notes.is_empty(), "{steps:?} {notes:?}");
    assert!(steps.len() == 3 || !is_passed, "{steps:?}");
    is_passed
}

fn with(change: impl FnOnce(&mut PodManifest)) -> PodManifest {
    let mut manifest = prepared();
    change(&mut manifest);
    manifest
}

#[test]
fn a_uri_must_name_an_address_that_serves_the_pod() {
    assert!(is_passed(prepared()));
    for (host_network, ip, uri, expected) in [
        (false, "10.0.0.1", "http://169.254.170.23:80/v1/credentials", true),
        (false, "10.0.0.1", "http://127.0.0.1:8182/v1/credentials", false),
        (false, "10.0.0.1", "http://[fd00:ec2::23]/v1/credentials", false),
        (false, "fd00::1", "http://[fd00:ec2::23]/v1/credentials", true),
        (false, "fd00::1", "http://169.254.170.23/v1/credentials", false),
        (false, "10.0.0.1", "http://169.254.170.23/v1/other", false),
        (false, "10.0.0.1", "https://169.254.170.23/v1/credentials", false),
        (false, "10.0.0.1", "http://169.254.170.2/v1/credentials", false),
        (false, "10.0.0.1", "http://rolegate.kube-system/v1/credentials", false),
        (false, "10.0.0.1", "no uri \u{1b}", false),
        (true, "10.0.0.1", "http://127.0.0.1:8182/v1/credentials", true),
        (true, "10.0.0.1", "http://localhost:8182/v1/credentials", true),
        (true, "10.0.0.1", "http://127.0.0.1/v1/credentials", false),
        (true, "10.0.0.1", "http://169.254.170.23/v1/credentials", true),
    ] {
        let manifest = with(|manifest| {
            (manifest.host_network, manifest.ips) = (host_network, vec![ip.parse().unwrap()]);
            manifest.containers[0].variables[0] = variable_of(FULL_URI, uri);
        });
        assert_eq!(is_passed(manifest), expected, "{host_network} {ip} {uri}");
    }
}

#[test]
fn the_token_must_be_mounted_and_have_the_audience() {
    let file = |file: &str| with(|manifest| manifest.containers[0].variables[1] = variable_of(TOKEN_FILE, file));
    assert!(is_passed(file(&format!("{DIRECTORY}//eks-pod-identity-token"))));
    for broken in [
        with(|manifest| manifest.containers[0].mounts.clear()),
        with(|manifest| manifest.containers[0].mounts[0].is_part = true),
        with(|manifest| manifest.containers[0].mounts[0].volume = "other".to_owned()),
        with(|manifest| manifest.containers[0].mounts[0].path = format!("{DIRECTORY}-other")),
        with(|manifest| manifest.tokens[0].audience = "sts.amazonaws.com".to_owned()),
        with(|manifest| manifest.tokens.clear()),
        with(|manifest| manifest.containers[0].variables.truncate(1)),
        with(|manifest| drop(manifest.containers[0].variables.remove(0))),
        with(|manifest| manifest.containers[0].variables.clear()),
        file("/var/run/secrets/kubernetes.io/serviceaccount/token"),
        file(&format!("{DIRECTORY}/other")),
    ] {
        assert!(!is_passed(broken.clone()), "{broken:?}");
    }
    // The mount below hides that above.
    let hidden = ManifestMount { volume: "other".to_owned(), path: format!("{DIRECTORY}/eks-pod-identity-token"), is_part: false };
    assert!(!is_passed(with(|manifest| manifest.containers[0].mounts.insert(0, hidden))));
}

#[test]
fn variables_from_elsewhere_are_not_judged() {
    let from_secret = |manifest: &mut PodManifest| manifest.containers[0].variables[0].value = None;
    let referring =
        |manifest: &mut PodManifest| manifest.containers[0].variables[0] = variable_of(FULL_URI, "http://$(HOST)/v1/credentials");
    let from_config_map = |manifest: &mut PodManifest| {
        manifest.containers[0].variables.clear();
        manifest.containers[0].has_other_variables = true;
    };
    for change in [from_secret as fn(&mut _), referring, from_config_map] {
        let (steps, notes) = looked(with(change), Some(&config()));
        assert_eq!((steps[2].clone(), notes), (("container".to_owned(), StepVerdict::Skipped), vec![]));
    }
}

#[test]
fn nothing_is_said_about_pods_that_do_not_use_it() {
    let plain = with(|manifest| {
        manifest.tokens.clear();
        manifest.containers[0].variables.clear();
    });
    assert_eq!(looked(plain.clone(), None), (vec![], vec![]));
    let (steps, notes) = looked(plain, Some(&config()));
    assert_eq!((steps[1].1, steps.len(), notes.len()), (StepVerdict::Skipped, 2, 0));
    let (steps, notes) = looked(prepared(), None);
    assert_eq!((steps, notes.len()), (vec![("endpoint".to_owned(), StepVerdict::Refused)], 1), "SDKs get no credentials at all");
}

#[test]
fn what_sdks_use_first_and_proxies_are_noted() {
    let add = |name: &str, value: &str| {
        let variable = variable_of(name, value);
        looked(with(|manifest| manifest.containers[0].variables.push(variable)), Some(&config())).1.len()
    };
    for name in ["AWS_ACCESS_KEY_ID", "AWS_WEB_IDENTITY_TOKEN_FILE", RELATIVE_URI, "HTTP_PROXY", "all_proxy"] {
        assert_eq!((add(name, "x"), add(name, "")), (1, 0), "{name}");
    }
    let direct = with(|manifest| {
        manifest.containers[0].variables.extend([variable_of("http_proxy", "p:3128"), variable_of("no_proxy", "169.254.170.23")]);
    });
    assert_eq!(looked(direct, Some(&config())).1, Vec::<String>::new());
}

#[test]
fn the_decision_about_metadata_is_not_that_about_pod_identity() {
    let (writer, pods) = pods();
    writer.write(|index| index.reset([Pod { host_network: true, ..Pod::for_test("shop", "web") }]));
    let mut report = Report::unknown(&PodReference::new("shop", "web").unwrap(), "node-a", By::Daemon, "host-network", String::new());
    let manifest = with(|manifest| manifest.host_network = true);
    look(Ok(manifest.clone()), Some(&config()), &pods, &mut report);
    assert_eq!(report.notes.len(), 1, "{report:?}");
    report.notes.clear();
    report.reason = Some("no-role".to_owned());
    look(Ok(manifest), Some(&config()), &pods, &mut report);
    assert_eq!(report.notes, Vec::<String>::new());
    look(Err("the API is away".to_owned()), Some(&config()), &pods, &mut report);
    assert_eq!(report.notes.len(), 1, "{report:?}");
}
