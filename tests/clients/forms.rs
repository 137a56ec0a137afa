//! The names of the service and the forms of a role that scripts use, sent by curl.

use rolegate_lab::node::IMDS_IP;
use serde_json::Value;

use crate::bed::{LIST, assert_untouched, token};
use crate::small::Small;

/// A role with a path, in the account of the lab's STS.
const ROLE_ARN: &str = "arn:aws:iam::111122223333:role/team/web-role";
const OTHER_ROLE_ARN: &str = "arn:aws:iam::111122223333:role/team/db-role";

/// Checks every name and form with these arguments for curl.
fn check(small: &Small, arguments: &[&str]) {
    let curl = |url: &str| small.curl(&[arguments, &[url]].concat());
    for host in ["169.254.169.254", "instance-data", "instance-data.ec2.internal", "instance-data:80"] {
        assert_eq!(curl(&format!("http://{host}{LIST}")), ("200".to_owned(), "web-role".to_owned()), "{host}");
    }
    for role in ["web-role", "team/web-role", ROLE_ARN] {
        for end in ["", "/"] {
            let (status, text) = curl(&format!("http://instance-data{LIST}{role}{end}"));
            assert_eq!(status, "200", "{role}{end}: {text}");
            let document: Value = serde_json::from_str(&text).unwrap();
            assert!(small.issued(&document["AccessKeyId"]), "{role}{end}: {text}");
        }
    }
    for role in ["db-role", "other/web-role", OTHER_ROLE_ARN] {
        assert_eq!(curl(&format!("http://instance-data{LIST}{role}")), ("404".to_owned(), String::new()), "{role}");
    }
    assert_eq!(curl(&format!("http://metadata.example{LIST}")).0, "403");
}

#[test]
fn curl_gets_its_role_by_every_name_and_form() {
    let Some(small) = Small::with_unknown_pod(&["curl"]) else { return };
    small.create_pod(ROLE_ARN);
    let resolved = ["instance-data", "instance-data.ec2.internal", "metadata.example"].map(|host| format!("{host}:80:{IMDS_IP}"));
    let resolve: Vec<&str> = resolved.iter().flat_map(|entry| ["--resolve", entry]).collect();
    let required = small.start(&[]);
    let header = format!("X-aws-ec2-metadata-token: {}", token(small.pod.ns()));
    check(&small, &[resolve.as_slice(), &["--header", &header]].concat());
    drop(required);
    let _optional = small.start(&["--imds-tokens=optional"]);
    check(&small, &resolve);
    assert_untouched(&small.imds);
}
