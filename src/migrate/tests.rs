#![allow(clippy::unwrap_used, reason = "a test says loudly what failed")]

use super::*;
use crate::config::{Config, MetadataProfile, Restrictions, TokenMode};

const INPUTS: &[(&str, Project, &str)] = &[
    ("kube2iam_readme", Project::Kube2iam, include_str!("tests/kube2iam_readme.yaml")),
    ("kube2iam_chart", Project::Kube2iam, include_str!("tests/kube2iam_chart.yaml")),
    ("kube2iam_kops", Project::Kube2iam, include_str!("tests/kube2iam_kops.yaml")),
    ("kube2iam_eks", Project::Kube2iam, include_str!("tests/kube2iam_eks.yaml")),
    ("kiam_readme", Project::Kiam, include_str!("tests/kiam_readme.yaml")),
    ("kiam_chart", Project::Kiam, include_str!("tests/kiam_chart.yaml")),
    ("odd", Project::Kube2iam, include_str!("tests/odd.yaml")),
];

/// Both outputs, as a person sees them.
fn shown(migrated: &Migrated) -> String {
    let warnings: String = migrated.warnings.iter().map(|warning| format!("warning: {warning}\n")).collect();
    format!("{}\n{warnings}", migrated.yaml)
}

fn of_kind<'a>(documents: &'a [Value], kind: &str) -> Vec<&'a Value> {
    documents.iter().filter(|document| document["kind"] == kind).collect()
}

#[test]
fn manifests_of_the_field() {
    for (name, project, input) in INPUTS {
        insta::assert_snapshot!(*name, shown(&migrate(*project, input.as_bytes()).unwrap()));
    }
}

/// Reads objects as the API server does.
fn has_types(documents: &[Value]) {
    use k8s_openapi::api::{apps::v1::DaemonSet, core::v1::ServiceAccount, rbac::v1::ClusterRole, rbac::v1::ClusterRoleBinding};
    for document in documents.iter().cloned() {
        match document["kind"].as_str().unwrap() {
            "DaemonSet" => drop(serde_json::from_value::<DaemonSet>(document).unwrap()),
            "ServiceAccount" => drop(serde_json::from_value::<ServiceAccount>(document).unwrap()),
            "ClusterRole" => drop(serde_json::from_value::<ClusterRole>(document).unwrap()),
            "ClusterRoleBinding" => drop(serde_json::from_value::<ClusterRoleBinding>(document).unwrap()),
            other => panic!("{other}"),
        }
    }
}

#[test]
fn what_is_printed_is_read_again_and_starts() {
    for (name, project, input) in INPUTS {
        let yaml = migrate(*project, input.as_bytes()).unwrap().yaml;
        let documents = yaml::parse(&yaml).unwrap();
        let kinds: Vec<_> = documents.iter().map(|document| document["kind"].as_str().unwrap()).collect();
        assert_eq!(kinds, ["ServiceAccount", "ClusterRole", "ClusterRoleBinding", "DaemonSet"], "{name}");
        let daemon_set = of_kind(&documents, "DaemonSet")[0];
        has_types(&documents);
        let container = &daemon_set["spec"]["template"]["spec"]["containers"][0];
        let variables = Variables::of(container["env"].as_array().unwrap().iter().filter_map(Value::as_object), &[]);
        let arguments =
            container["args"].as_array().unwrap().iter().filter_map(|argument| match variables.expand(argument.as_str().unwrap()) {
                variables::Expanded::Text(text) => Some(text),
                variables::Expanded::Elsewhere(_) => None,
            });
        let config = Config::from_arguments(arguments, &|name| variables.get(name)).unwrap();
        let strict = config.migrate.unwrap();
        assert_eq!((strict.tokens, strict.profile, strict.restricted), (TokenMode::Required, MetadataProfile::Base, true), "{name}");
        assert_eq!(container["ports"][0]["containerPort"], config.server.port, "{name}");
        assert_eq!(container["ports"][1]["hostPort"], config.admin.port, "{name}");
        // Names that hold objects together, and the selector, are those of the input.
        assert_eq!(
            daemon_set["spec"]["selector"]["matchLabels"].as_object().unwrap().len(),
            match *name {
                "kiam_readme" => 2,
                "kiam_chart" => 3,
                "kube2iam_chart" => 2,
                _ => 1,
            }
        );
        let account = &daemon_set["spec"]["template"]["spec"]["serviceAccountName"];
        assert_eq!(*account, of_kind(&documents, "ServiceAccount")[0]["metadata"]["name"], "{name}");
        let binding = of_kind(&documents, "ClusterRoleBinding")[0];
        assert_eq!(binding["subjects"][0]["name"], *account, "{name}");
        assert_eq!(binding["subjects"][0]["namespace"], daemon_set["metadata"]["namespace"], "{name}");
        assert_eq!(binding["roleRef"]["name"], of_kind(&documents, "ClusterRole")[0]["metadata"]["name"], "{name}");
    }
}

#[test]
fn what_is_printed_is_migrated_once_more_without_loss() {
    for (name, project, input) in INPUTS.iter().filter(|(_, project, _)| *project == Project::Kube2iam) {
        let once = migrate(*project, input.as_bytes()).unwrap().yaml;
        let twice = migrate(*project, once.replace("registry.example.com/rolegate", "kube2iam").as_bytes()).unwrap().yaml;
        let daemon_set = |yaml: &str| of_kind(&yaml::parse(yaml).unwrap(), "DaemonSet")[0].clone();
        let (once, twice) = (daemon_set(&once), daemon_set(&twice));
        let arguments = |daemon_set: &Value| daemon_set["spec"]["template"]["spec"]["containers"][0]["args"].clone();
        assert_eq!(arguments(&once), arguments(&twice), "{name}");
        assert_eq!(once["spec"]["selector"], twice["spec"]["selector"], "{name}");
    }
}

#[test]
fn line_ends_and_marks_of_windows_change_nothing() {
    for (name, project, input) in INPUTS {
        let windows = format!("\u{feff}{}", input.replace('\n', "\r\n"));
        assert_eq!(shown(&migrate(*project, windows.as_bytes()).unwrap()), shown(&migrate(*project, input.as_bytes()).unwrap()), "{name}");
    }
}

/// Puts a text into every value and key of a manifest that is a text.
pub(super) fn poisoned(value: &Value, poison: &str, place: &mut usize, wanted: usize) -> Value {
    match value {
        Value::Object(map) => {
            let mut new = Map::new();
            for (key, value) in map {
                *place += 1;
                let key = if *place == wanted { format!("{key}{poison}") } else { key.clone() };
                new.insert(key, poisoned(value, poison, place, wanted));
            }
            Value::Object(new)
        }
        Value::Array(items) => items.iter().map(|item| poisoned(item, poison, place, wanted)).collect(),
        Value::String(text) => {
            *place += 1;
            Value::from(if *place == wanted { format!("{text}{poison}") } else { text.clone() })
        }
        plain => plain.clone(),
    }
}

#[test]
fn no_text_of_a_manifest_becomes_a_line() {
    const POISON: &str = "\n---\r\nkind: Evil\u{85}kind: Evil\u{2028}kind: Evil\n# kind: Evil\u{202e}\"'";
    for (name, project, input) in INPUTS.iter().filter(|(name, ..)| matches!(*name, "kube2iam_chart" | "kiam_chart" | "odd")) {
        let documents: Value = yaml::parse(input).unwrap().into();
        let mut places = 0;
        poisoned(&documents, POISON, &mut places, 0);
        assert!(places > 50, "{name}: {places}");
        for wanted in 1..=places {
            let items = poisoned(&documents, POISON, &mut 0, wanted);
            let list = serde_json::json!({"kind": "List", "items": items}).to_string();
            let Ok(migrated) = migrate(*project, list.as_bytes()) else { continue };
            let lines =
                migrated.yaml.split(['\n', '\r', '\u{85}', '\u{2028}', '\u{2029}']).chain(migrated.warnings.iter().map(String::as_str));
            for line in lines {
                assert!(!line.trim_start().starts_with("kind: Evil"), "{name}, place {wanted}: {line}");
            }
            assert!(migrated.warnings.iter().all(|warning| !warning.contains(['\n', '\r'])), "{name}, place {wanted}");
            assert!(!migrated.yaml.contains('\u{202e}'), "{name}, place {wanted}");
        }
    }
}

#[test]
fn secrets_of_the_arguments_are_in_no_comment() {
    let (_, project, input) = INPUTS[3];
    let migrated = migrate(project, input.as_bytes()).unwrap();
    let lines: Vec<_> = migrated.yaml.lines().filter(|line| line.contains("never-show-this")).collect();
    assert_eq!(lines.iter().map(|line| line.trim()).collect::<Vec<_>>(), ["- --api-token=never-show-this"]);
    assert!(!migrated.warnings.join("\n").contains("never-show-this"));
}

fn kube2iam_with(change: impl Fn(&mut Value)) -> Result<Migrated, MigrateError> {
    let mut documents = yaml::parse(INPUTS[0].2).unwrap();
    change(&mut documents[1]);
    let list = serde_json::json!({"kind": "List", "items": documents}).to_string();
    migrate(Project::Kube2iam, list.as_bytes())
}

fn container(daemon_set: &mut Value) -> &mut Value {
    &mut daemon_set["spec"]["template"]["spec"]["containers"][0]
}

#[test]
fn restrictions_are_enforced_where_they_were() {
    let restrictions = |arguments: &[&str]| {
        let add = |it: &mut Value| container(it)["args"].as_array_mut().unwrap().extend(arguments.iter().map(|text| (*text).into()));
        let yaml = kube2iam_with(add).unwrap().yaml;
        assert_eq!(yaml.matches("- --migrate\n").count(), 1, "{arguments:?}");
        let printed =
            yaml.lines().filter_map(|line| line.trim().strip_prefix("- ")).filter(|line| line.starts_with("--namespace-restrictions"));
        let command = [&["--node=a", "--migrate"][..], &printed.collect::<Vec<_>>()].concat();
        Config::from_arguments(command.into_iter().map(str::to_owned), &|_| None).unwrap().roles.restrictions
    };
    for given in ["--namespace-restrictions", "--namespace-restrictions=true"] {
        assert_eq!(restrictions(&[given]), Restrictions::Enforce, "{given}");
        // The list was migrated before.
        assert_eq!(restrictions(&["--migrate", given]), Restrictions::Enforce, "{given}");
    }
    assert_eq!(restrictions(&["--namespace-restrictions=false"]), Restrictions::Off);
    for given in [&[][..], &["--namespace-restrictions=audit"]] {
        assert_eq!(restrictions(given), Restrictions::Audit, "{given:?}");
    }
}

#[test]
fn arguments_that_rolegate_refuses_are_not_printed() {
    for argument in ["--base-role-arn=nonsense", "--app-port=seven", "--host-interface=a,!b", "--iptables=perhaps"] {
        let error = kube2iam_with(|it| container(it)["args"].as_array_mut().unwrap().push(argument.into())).unwrap_err();
        let MigrateError::Refused(mistakes) = error else { panic!("{argument}: {error}") };
        assert_eq!(mistakes.len(), 1, "{argument}: {mistakes:?}");
    }
    let by_variable = kube2iam_with(|it| {
        container(it)["env"].as_array_mut().unwrap().push(serde_json::json!({"name": "ROLEGATE_STS_RATE", "value": "many"}));
    });
    assert!(matches!(by_variable, Err(MigrateError::Refused(_))));
}

#[test]
fn inputs_that_cannot_be_migrated() {
    let deep = "[".repeat(60) + &"]".repeat(60);
    let bomb: String = (1..12)
        .fold("a0: &a0 [x, x]\n".to_owned(), |text, n| text + &format!("a{n}: &a{n} [{}]\n", vec![format!("*a{}", n - 1); 9].join(", ")));
    for (input, wanted) in [
        ("", "NothingToMigrate"),
        ("---\n---\n", "NothingToMigrate"),
        ("kind: ConfigMap\nmetadata: {name: kube2iam}", "NothingToMigrate"),
        ("kind: DaemonSet\nmetadata: {name: fluentd}\nspec: {template: {spec: {containers: [{name: a, image: b}]}}}", "NothingToMigrate"),
        ("kind: DaemonSet\nmetadata: {name: kube2iam}", "NoContainer"),
        ("kind: DaemonSet\nmetadata: {name: kube2iam}\nspec: {template: {spec: {containers: [{image: a}, {image: b}]}}}", "WhichContainer"),
        (
            "kind: DaemonSet\nmetadata: {name: a}\nspec: {template: {spec: {containers: [{image: kube2iam}, {image: kube2iam}]}}}",
            "WhichContainer",
        ),
        ("kind: DaemonSet\nspec: {template: {spec: {containers: [{image: kube2iam}]}}}", "NoName"),
        ("kind: Deployment\nmetadata: {name: a}\nspec: {template: {spec: {containers: [{image: kube2iam}]}}}", "NoDaemonSet"),
        ("kind: DaemonSet\nmetadata: {name: a}\nspec: {template: {spec: {containers: [{image: kube2iam}]}}}", "Selector"),
        ("kind: DaemonSet\nmetadata: {name: a}\nspec: {template: {spec: {containers: [{image: kube2iam, args: {a: b}}]}}}", "Arguments"),
        ("kind: DaemonSet\nmetadata: {name: a}\nspec: {template: {spec: {containers: [{image: kube2iam, args: [[a]]}]}}}", "Arguments"),
        (
            "kind: DaemonSet\nmetadata: {name: a}\nspec: {template: {spec: {containers: [{image: kube2iam, command: [sh, -c, 'a; b']}]}}}",
            "Shell",
        ),
        ("just a text", "NotAnObject"),
        ("- a list", "NotAnObject"),
        ("kind: List\nitems: nothing", "NotAnObject"),
        ("kind: {{ .Values.kind }}", "Yaml"),
        ("a: 1\na: 2", "Yaml"),
        (&deep, "Yaml"),
        (&bomb, "Yaml"),
    ] {
        let error = migrate(Project::Kube2iam, input.as_bytes()).unwrap_err();
        assert!(format!("{error:?}").starts_with(wanted), "{input}: {error:?}");
    }
    assert!(matches!(migrate(Project::Kube2iam, b"\xff"), Err(MigrateError::NotText)));
    assert!(matches!(migrate(Project::Kube2iam, &vec![b' '; MAX_INPUT + 1]), Err(MigrateError::TooLarge)));
}

#[test]
fn kiam_is_migrated_as_a_whole() {
    let documents = yaml::parse(INPUTS[4].2).unwrap();
    let of = |indices: &[usize]| {
        let items: Vec<_> = indices.iter().map(|index| documents[*index].clone()).collect();
        migrate(Project::Kiam, serde_json::json!({"kind": "List", "items": items}).to_string().as_bytes())
    };
    assert!(matches!(of(&[0]), Err(MigrateError::HalfOfKiam(KiamPart::Agent, KiamPart::Server))));
    assert!(matches!(of(&[1]), Err(MigrateError::HalfOfKiam(KiamPart::Server, KiamPart::Agent))));
    assert!(matches!(of(&[0, 1, 1]), Err(MigrateError::ManyServers)));
    assert!(of(&[0, 1]).is_ok());
}

#[test]
fn daemon_sets_of_two_node_pools_share_one_account() {
    let mut documents = yaml::parse(INPUTS[0].2).unwrap();
    let mut second = documents[1].clone();
    second["metadata"]["name"] = "kube2iam-gpu".into();
    documents.push(second);
    let list = serde_json::json!({"kind": "List", "items": documents}).to_string();
    let migrated = yaml::parse(&migrate(Project::Kube2iam, list.as_bytes()).unwrap().yaml).unwrap();
    assert_eq!(of_kind(&migrated, "DaemonSet").len(), 2);
    assert_eq!(of_kind(&migrated, "ClusterRoleBinding").len(), 1);
}

#[test]
fn roles_of_others_are_not_written_over() {
    let (_, project, input) = INPUTS[3];
    let migrated = yaml::parse(&migrate(project, input.as_bytes()).unwrap().yaml).unwrap();
    assert_eq!(of_kind(&migrated, "ClusterRole")[0]["metadata"]["name"], "kube2iam-rolegate");
    assert_eq!(of_kind(&migrated, "ClusterRoleBinding")[0]["metadata"]["name"], "kube2iam-rolegate");
    // Nor are those that another account shares.
    let mut documents = yaml::parse(INPUTS[0].2).unwrap();
    documents[0]["items"][2]["subjects"].as_array_mut().unwrap().push(serde_json::json!({"kind": "Group", "name": "others"}));
    let list = serde_json::json!({"kind": "List", "items": documents}).to_string();
    let migrated = yaml::parse(&migrate(Project::Kube2iam, list.as_bytes()).unwrap().yaml).unwrap();
    assert_eq!(of_kind(&migrated, "ClusterRole")[0]["metadata"]["name"], "kube2iam-rolegate");
}
