#![allow(clippy::unwrap_used, reason = "a test says loudly what failed")]

use serde_json::{Value, json};

use super::accounts::LABEL;
use super::*;

/// The default key of role annotations.
const ROLE: &str = "iam.amazonaws.com/role";
const CLUSTER: &str = include_str!("tests/cluster.yaml");

fn migrated(objects: &[Value]) -> Result<Migrated, MigrateError> {
    migrate_annotations(json!({"kind": "List", "items": objects}).to_string().as_bytes(), ROLE)
}

/// The accounts that are printed: namespace, name and role, all with the label.
fn accounts(yaml: &str) -> Vec<(String, String, String)> {
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let account = |document: &Value| {
        assert_eq!((&document["apiVersion"], &document["kind"]), (&"v1".into(), &"ServiceAccount".into()));
        let metadata = &document["metadata"];
        assert_eq!(metadata["labels"][LABEL], "true");
        serde_json::from_value::<k8s_openapi::api::core::v1::ServiceAccount>(document.clone()).unwrap();
        (text(&metadata["namespace"]), text(&metadata["name"]), text(&metadata["annotations"][ROLE]))
    };
    yaml::parse(yaml).unwrap().iter().map(account).collect()
}

/// The commands in the comments.
fn commands(yaml: &str) -> Vec<&str> {
    yaml.lines().filter_map(|line| line.trim_start().strip_prefix("# ")).filter(|line| line.starts_with("kubectl ")).collect()
}

fn workload(kind: &str, name: &str, account: Option<&str>, role: Option<&str>) -> Value {
    let annotations = role.map(|role| json!({ROLE: role}));
    let template = json!({"metadata": {"annotations": annotations}, "spec": {"serviceAccountName": account}});
    let spec = if kind == "CronJob" { json!({"jobTemplate": {"spec": {"template": template}}}) } else { json!({"template": template}) };
    json!({"kind": kind, "metadata": {"name": name, "namespace": "shop"}, "spec": spec})
}

fn account(name: &str, annotations: &Value) -> Value {
    json!({"kind": "ServiceAccount", "metadata": {"name": name, "namespace": "shop", "annotations": annotations}})
}

#[test]
fn a_cluster() {
    let Migrated { yaml, warnings } = migrate_annotations(CLUSTER.as_bytes(), ROLE).unwrap();
    let warnings: String = warnings.iter().map(|warning| format!("warning: {warning}\n")).collect();
    insta::assert_snapshot!(format!("{yaml}\n{warnings}"));
}

/// The admission policy reads this label.
#[test]
fn the_label_is_that_of_the_admission_policy() {
    assert!(include_str!("../../../daemonset/pod-identity-injection/policy.yaml").contains(&format!("        {LABEL}: \"true\"\n")));
}

#[test]
fn json_and_yaml_are_the_same() {
    let items: Value = yaml::parse(CLUSTER).unwrap().into();
    let json = json!({"kind": "List", "items": items[0]["items"]}).to_string();
    assert_eq!(migrate_annotations(json.as_bytes(), ROLE).unwrap().yaml, migrate_annotations(CLUSTER.as_bytes(), ROLE).unwrap().yaml);
}

/// Plays every combination of two workloads of one account, whose account may have a role: each must have the role that it had.
#[test]
fn no_workload_gets_a_role_that_it_did_not_have() {
    let role = |number: usize| [None, Some("a"), Some("b")][number % 3];
    for name in ["web", DEFAULT] {
        for (own, first, second) in (0..27).map(|number| (role(number), role(number / 3), role(number / 9))) {
            let mut objects =
                vec![workload("Deployment", "first", Some(name), first), workload("Deployment", "second", Some(name), second)];
            objects.push(account(name, &own.map_or(Value::Null, |role| json!({ROLE: role}))));
            let case = format!("{name} {own:?} {first:?} {second:?}");
            let Ok(Migrated { yaml, .. }) = migrated(&objects) else {
                assert_eq!((own, first, second), (None, None, None), "{case}");
                continue;
            };
            let printed = accounts(&yaml);
            for (workload, role) in [("first", first), ("second", second)] {
                let moved =
                    commands(&yaml).into_iter().find(|command| command.starts_with(&format!("kubectl patch deployment {workload} ")));
                let account = moved.map_or(name, |command| between(command, "serviceAccountName\":\"", "\""));
                let new = printed.iter().find(|(_, printed, _)| printed == account).map(|(.., role)| role.as_str());
                assert_eq!(new.or(if account == name { own } else { None }), role.or(own), "{case}: {workload}\n{yaml}");
            }
        }
    }
}

fn between<'a>(text: &'a str, from: &str, to: &str) -> &'a str {
    text.split_once(from).unwrap().1.split_once(to).unwrap().0
}

#[test]
fn the_default_account_gets_no_role() {
    let Migrated { yaml, .. } =
        migrated(&[workload("Deployment", "web", None, Some("arn:aws:iam::111122223333:role/team/Web_Role"))]).unwrap();
    assert_eq!(accounts(&yaml), [("shop".into(), "web-role".into(), "arn:aws:iam::111122223333:role/team/Web_Role".into())]);
    assert_eq!(
        commands(&yaml),
        [
            r#"kubectl patch deployment web --namespace=shop --type=merge --patch='{"spec":{"template":{"spec":{"serviceAccountName":"web-role"}}}}'"#
        ]
    );
}

#[test]
fn the_patch_of_a_cron_job_is_a_level_deeper() {
    let Migrated { yaml, .. } = migrated(&[workload("CronJob", "backup", None, Some("a"))]).unwrap();
    let patch: Value = serde_json::from_str(between(commands(&yaml)[0], "--patch='", "'")).unwrap();
    assert_eq!(patch["spec"]["jobTemplate"]["spec"]["template"]["spec"]["serviceAccountName"], "a");
}

#[test]
fn what_the_account_has_stays() {
    let old = json!({
        "kind": "ServiceAccount",
        "metadata": {
            "name": "web", "namespace": "shop", "labels": {"app": "web"},
            "annotations": {"note": "kept", "kubectl.kubernetes.io/last-applied-configuration": "{}"},
        },
        "imagePullSecrets": [{"name": "registry"}], "secrets": [{"name": "token"}], "automountServiceAccountToken": false,
    });
    let Migrated { yaml, warnings } = migrated(&[workload("Deployment", "web", Some("web"), Some("a")), old.clone()]).unwrap();
    assert!(warnings.is_empty(), "{warnings:?}");
    let new = yaml::parse(&yaml).unwrap().remove(0);
    assert_eq!(new["metadata"]["labels"], json!({"app": "web", LABEL: "true"}));
    assert_eq!(new["metadata"]["annotations"], json!({"note": "kept", ROLE: "a"}));
    for key in ["imagePullSecrets", "secrets", "automountServiceAccountToken"] {
        assert_eq!(new[key], old[key], "{key}");
    }
    // A new account has what pods depend on, but not the old one's tokens and labels.
    let others = [workload("Deployment", "web", Some("web"), Some("a")), workload("Deployment", "api", Some("web"), None), old.clone()];
    let new = yaml::parse(&migrated(&others).unwrap().yaml).unwrap().remove(0);
    assert_eq!(new["metadata"]["name"], "web-a");
    assert_eq!(
        (&new["imagePullSecrets"], &new["secrets"], &new["metadata"]["labels"]),
        (&old["imagePullSecrets"], &Value::Null, &json!({LABEL: "true"}))
    );
}

#[test]
fn suggested_names_are_free_and_valid() {
    let long = "x".repeat(100);
    let mut names = AccountNames::of(&manifest::objects(&account("web-a", &Value::Null).to_string()).unwrap());
    assert_eq!(names.suggest("shop", "web", "a"), "web-a-2");
    assert_eq!(names.suggest("shop", "web", "a"), "web-a-3");
    assert_eq!(names.suggest("other", "web", "a"), "web-a");
    assert_eq!(names.suggest("shop", DEFAULT, "default"), "default-2");
    assert_eq!(names.suggest("shop", DEFAULT, "___"), "role");
    for _ in 0..12 {
        let name = names.suggest("shop", "web", &long);
        assert!(name.len() <= 63 && text::is_object_name(&name) && !name.ends_with('-'), "{name}");
    }
}

#[test]
fn pods_of_a_known_owner_count_once() {
    let pod = |name: &str, kind: &str, owner: &str| {
        json!({"kind": "Pod", "metadata": {"name": name, "namespace": "shop", "annotations": {ROLE: "a"},
            "ownerReferences": [{"kind": kind, "name": owner, "controller": true}]}, "spec": {"serviceAccountName": "web"}})
    };
    let mut of_deployment = workload("ReplicaSet", "web-1", Some("web"), Some("old"));
    of_deployment["metadata"]["ownerReferences"] = json!([{"kind": "Deployment", "name": "web", "controller": true}]);
    let objects = [
        workload("Deployment", "web", Some("web"), Some("a")),
        of_deployment,
        workload("StatefulSet", "db", Some("web"), Some("a")),
        pod("web-1-x", "ReplicaSet", "web-1"),
        pod("db-0", "StatefulSet", "db"),
        pod("canary-1-x", "Rollout", "canary"),
        pod("canary-1-y", "Rollout", "canary"),
        account("web", &Value::Null),
    ];
    let Migrated { yaml, .. } = migrated(&objects).unwrap();
    let listed: Vec<_> = yaml.lines().filter(|line| line.starts_with("# - ")).collect();
    assert_eq!(listed, ["# - Deployment shop/web", "# - StatefulSet shop/db", "# - Rollout shop/canary"]);
}

fn owned(mut object: Value, owners: &Value) -> Value {
    object["metadata"]["ownerReferences"] = owners.clone();
    object
}

fn pod_of(name: &str, role: Option<&str>, owners: &Value) -> Value {
    let annotations = role.map(|role| json!({ROLE: role}));
    let object = json!({"kind": "Pod", "metadata": {"name": name, "namespace": "shop", "annotations": annotations},
        "spec": {"serviceAccountName": "web"}});
    owned(object, owners)
}

/// The workloads that are listed, and the service accounts.
fn listed_of(objects: &[Value]) -> (Vec<String>, Vec<(String, String)>, Vec<String>) {
    let Migrated { yaml, warnings } = migrated(objects).unwrap();
    let listed = yaml.lines().filter_map(|line| line.strip_prefix("# - ")).map(str::to_owned).collect();
    let accounts = accounts(&yaml).into_iter().map(|(_, name, role)| (name, role)).collect();
    (listed, accounts, warnings)
}

#[test]
fn a_replica_set_belongs_to_a_deployment_only_by_its_owner() {
    let controller =
        |version: &str, kind: &str, name: &str| json!([{"apiVersion": version, "kind": kind, "name": name, "controller": true}]);
    let set = workload("ReplicaSet", "web-x", Some("web"), None);
    let objects = |set: Value, pod: Value| {
        let mut deployment = workload("Deployment", "web", Some("web"), Some("a"));
        deployment["apiVersion"] = "apps/v1".into();
        vec![deployment, set, pod, account("web", &Value::Null)]
    };
    // Its pods have no role, and would get one with that of their account.
    let alone = pod_of("web-x-1", None, &controller("apps/v1", "ReplicaSet", "web-x"));
    assert_eq!(
        listed_of(&objects(set.clone(), alone.clone())).1,
        [("web-a".to_owned(), "a".to_owned())],
        "without the Deployment's account"
    );
    let of_web = owned(set.clone(), &controller("apps/v1", "Deployment", "web"));
    let same = pod_of("web-x-1", Some("a"), &controller("apps/v1", "ReplicaSet", "web-x"));
    assert_eq!(listed_of(&objects(of_web.clone(), same)).1, [("web".to_owned(), "a".to_owned())]);
    // A pod that is not as the template says counts with what it has.
    assert_eq!(listed_of(&objects(of_web.clone(), alone.clone())).1, [("web-a".to_owned(), "a".to_owned())]);
    let mut finished = alone.clone();
    finished["status"] = json!({"phase": "Succeeded"});
    assert_eq!(listed_of(&objects(of_web, finished)).1, [("web".to_owned(), "a".to_owned())]);
    // A kind of another API group, and no controller.
    let of_other = owned(set.clone(), &controller("example.com/v1", "Deployment", "web"));
    assert_eq!(listed_of(&objects(of_other, alone.clone())).1, [("web-a".to_owned(), "a".to_owned())]);
    let no_controller = owned(set, &json!([{"apiVersion": "apps/v1", "kind": "Deployment", "name": "web"}]));
    assert_eq!(listed_of(&objects(no_controller, alone)).1, [("web-a".to_owned(), "a".to_owned())]);
}

#[test]
fn without_replica_sets_their_pods_count_for_themselves() {
    let owner = json!([{"kind": "ReplicaSet", "name": "web-5d9c", "controller": true}]);
    let objects = [
        workload("Deployment", "web", Some("web"), Some("a")),
        pod_of("web-5d9c-1", Some("a"), &owner),
        pod_of("web-5d9c-2", Some("a"), &owner),
        account("web", &Value::Null),
    ];
    let (listed, accounts, warnings) = listed_of(&objects);
    assert_eq!(listed, ["Deployment shop/web", "ReplicaSet shop/web-5d9c"]);
    assert_eq!((accounts, warnings.len()), (vec![("web".to_owned(), "a".to_owned())], 1), "{warnings:?}");
}

#[test]
fn another_key_of_role_annotations_is_used_for_pods_and_accounts() {
    let key = "example.com/role";
    let mut web = workload("Deployment", "web", Some("web"), Some("ignored"));
    web["spec"]["template"]["metadata"]["annotations"][key] = "a".into();
    let input = json!({"kind": "List", "items": [web, account("web", &json!({ROLE: "kept"}))]}).to_string();
    let printed = yaml::parse(&migrate_annotations(input.as_bytes(), key).unwrap().yaml).unwrap();
    assert_eq!(printed[0]["metadata"]["annotations"], json!({key: "a", ROLE: "kept"}));
}

#[test]
fn malformed_annotations_get_no_role() {
    for bad in [json!(""), json!("a b"), json!("a\nb"), json!(7), Value::Null] {
        let mut web = workload("Deployment", "web", Some("web"), Some("a"));
        web["spec"]["template"]["metadata"]["annotations"][ROLE] = bad.clone();
        let error = migrated(&[web.clone(), account("web", &Value::Null)]).unwrap_err();
        assert!(matches!(&error, MigrateError::NoRoles(warnings) if warnings.len() == 1), "{bad}: {error:?}");
        // The others of the account move away from it.
        let Migrated { yaml, .. } = migrated(&[web, workload("Deployment", "api", Some("web"), Some("a"))]).unwrap();
        assert_eq!(accounts(&yaml), [("shop".into(), "web-a".into(), "a".into())], "{bad}");
        let error = migrated(&[workload("Deployment", "api", Some("web"), Some("a")), account("web", &json!({ROLE: bad}))]).unwrap_err();
        assert!(matches!(error, MigrateError::NoRoles(_)), "{bad}");
    }
}

#[test]
fn static_pods_and_odd_names_are_skipped() {
    let mirror = json!({"kind": "Pod", "metadata": {"name": "static-node", "namespace": "shop",
        "annotations": {ROLE: "a", "kubernetes.io/config.mirror": "x"}}, "spec": {}});
    let evil = workload("Deployment", "web'; reboot; '", Some("web"), Some("a"));
    let error = migrated(&[mirror, evil]).unwrap_err();
    assert!(matches!(&error, MigrateError::NoRoles(warnings) if warnings.len() == 2), "{error:?}");
}

#[test]
fn input_that_is_no_list_of_objects_is_refused() {
    for input in [&b"\xff"[..], b"a: [", b"- a", b"text"] {
        let error = migrate_annotations(input, ROLE).unwrap_err();
        assert!(matches!(error, MigrateError::NotText | MigrateError::Yaml(_) | MigrateError::NotAnObject), "{error:?}");
    }
    assert!(matches!(migrate_annotations(b"", ROLE), Err(MigrateError::NoRoles(_))));
}

#[test]
fn no_text_of_the_input_becomes_a_line() {
    const POISON: &str = "\n---\r\nkind: Evil\u{85}kind: Evil\u{2028}kind: Evil\n# kind: Evil\u{202e}\"'";
    let documents: Value = yaml::parse(CLUSTER).unwrap().into();
    let mut places = 0;
    super::super::tests::poisoned(&documents, POISON, &mut places, 0);
    assert!(places > 50, "{places}");
    for wanted in 1..=places {
        let items = super::super::tests::poisoned(&documents, POISON, &mut 0, wanted);
        let Ok(migrated) = migrate_annotations(json!({"kind": "List", "items": items}).to_string().as_bytes(), ROLE) else { continue };
        let lines = migrated.yaml.split(['\n', '\r', '\u{85}', '\u{2028}', '\u{2029}']).chain(migrated.warnings.iter().map(String::as_str));
        for line in lines {
            assert!(!line.trim_start().starts_with("kind: Evil"), "place {wanted}: {line}");
        }
        assert!(migrated.warnings.iter().all(|warning| !warning.contains(['\n', '\r'])), "place {wanted}");
        assert!(!migrated.yaml.contains('\u{202e}'), "place {wanted}");
    }
}
