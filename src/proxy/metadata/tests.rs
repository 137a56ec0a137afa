#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test says loudly what failed")]
use std::net::{Ipv4Addr, TcpListener};
use std::time::Instant as RealInstant;

use rolegate_lab::imds::{Imds, ImdsBehaviour};

use super::*;

const REGION: &str = "meta-data/placement/region";
const SPOT: &str = "meta-data/spot/instance-action";
const EVERYTHING: &[Set] = &ALL;
const BASE: &[Set] = &[Set::Base];

fn imds() -> Imds {
    Imds::start(TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap()).unwrap()
}

/// What is read of the service from now on.
fn kept(imds: &Imds, sets: &[Set]) -> MetadataValues {
    let metadata = MetadataValues::new(sets.to_vec());
    tokio::spawn(metadata.clone().keep(imds.addr().to_string(), Metrics::new()));
    metadata
}

fn text(text: &str) -> MetadataLookup {
    MetadataLookup::Text(Bytes::copy_from_slice(text.as_bytes()))
}

/// Asks until it is so.
async fn eventually(metadata: &MetadataValues, path: &str, sets: &[Set], wanted: &MetadataLookup) {
    let began = RealInstant::now();
    loop {
        let found = metadata.find(path, sets, &[]).await;
        if found == *wanted {
            return;
        }
        assert!(began.elapsed() < Duration::from_secs(20), "{path} stays {found:?}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn a_pod_reads_its_sets_and_nothing_else_of_the_service() {
    let imds = imds();
    let metadata = kept(&imds, EVERYTHING);
    for (path, value, in_base) in [
        (REGION, "eu-central-1", true),
        ("meta-data/instance-type", "m7g.xlarge", true),
        ("meta-data/ami-id", "ami-0123456789abcdef0", false),
        ("meta-data/tags/instance/cluster", "lab", false),
        ("meta-data/network/interfaces/macs/0a:1b:2c:3d:4e:5f/vpc-id", "vpc-0123456789abcdef0", false),
        ("meta-data/block-device-mapping/root", "/dev/xvda", false),
        ("meta-data/events/maintenance/history", "[]", false),
    ] {
        eventually(&metadata, path, EVERYTHING, &text(value)).await;
        let of_base = metadata.find(path, BASE, &[]).await;
        assert_eq!(of_base, if in_base { text(value) } else { MetadataLookup::Nothing }, "{path}");
        assert_eq!(metadata.find(path, &[], &[]).await, MetadataLookup::Nothing, "{path}");
    }
    for path in [
        "meta-data/iam",
        "meta-data/iam/info",
        "meta-data/iam/security-credentials/NODE-ROLE-MUST-NEVER-LEAK",
        "meta-data/identity-credentials/ec2/info",
        "meta-data/public-keys",
        "meta-data/public-keys/0/openssh-key",
        "meta-data/managed-ssh-keys/signer-cert",
        "meta-data/profile",
        "meta-data/placement/region/x",
        "dynamic/instance-identity/pkcs7",
        "dynamic/instance-identity/signature",
        "user-data",
        "meta-data/tags/instance/../../iam/info",
        "meta-data//instance-id",
    ] {
        assert_eq!(metadata.find(path, EVERYTHING, &[]).await, MetadataLookup::Nothing, "{path}");
    }
}

#[tokio::test]
async fn the_service_is_asked_for_the_table_alone_in_words_of_our_own() {
    let imds = imds();
    imds.set("meta-data/tags/instance/with space", "odd");
    imds.set("meta-data/network/interfaces/macs/evil/vpc-id", "odd");
    let metadata = kept(&imds, EVERYTHING);
    eventually(&metadata, SPOT, EVERYTHING, &text(r#"{"action":"terminate","time":"2030-01-01T00:00:00Z"}"#)).await;
    eventually(&metadata, "meta-data/tags/instance/Name", EVERYTHING, &text("node-1")).await;
    let requests = imds.requests();
    assert!(requests.len() > 40, "{}", requests.len());
    for request in &requests {
        let names: Vec<_> = request.headers.iter().map(|(name, _)| name.to_ascii_lowercase()).collect();
        match request.method.as_str() {
            "PUT" => {
                assert_eq!(request.target, "/latest/api/token");
                assert_eq!(names, ["host", "connection", "x-aws-ec2-metadata-token-ttl-seconds"]);
            }
            "GET" => {
                let path = request.target.strip_prefix("/latest/").unwrap().trim_end_matches('/');
                assert!(GROUPS.iter().any(|group| group.has(path)), "{}", request.target);
                assert!(!request.target.contains("evil") && !request.target.contains("odd") && !request.target.contains(' '));
                assert_eq!(names, ["host", "connection", "x-aws-ec2-metadata-token"]);
                assert!(request.had_valid_token);
            }
            other => panic!("{other}"),
        }
    }
    let tokens = requests.iter().filter(|request| request.method == "PUT").count();
    assert!(tokens <= 3, "one token serves many questions: {tokens}");
}

#[tokio::test]
async fn what_was_read_is_given_on_while_the_service_is_gone() {
    let imds = imds();
    let metadata = kept(&imds, BASE);
    eventually(&metadata, REGION, BASE, &text("eu-central-1")).await;
    imds.shutdown();
    imds.stopped().await;
    assert_eq!(metadata.find(REGION, BASE, &[]).await, text("eu-central-1"));
    assert_eq!(metadata.find("meta-data/placement", BASE, &[]).await, text("availability-zone\navailability-zone-id\nregion"));
}

#[tokio::test]
async fn a_late_service_is_waited_for_and_its_lost_tokens_are_replaced() {
    let imds = imds();
    imds.set_behaviour(ImdsBehaviour::Status(503));
    let metadata = kept(&imds, EVERYTHING);
    imds.wait_for_requests(2).await;
    assert_eq!(metadata.find(REGION, BASE, &[]).await, MetadataLookup::Unavailable);
    imds.set_behaviour(ImdsBehaviour::Normal);
    eventually(&metadata, REGION, BASE, &text("eu-central-1")).await;
    imds.forget_tokens();
    eventually(&metadata, SPOT, EVERYTHING, &text(r#"{"action":"terminate","time":"2030-01-01T00:00:00Z"}"#)).await;
}

#[tokio::test]
async fn one_value_that_the_service_cannot_give_keeps_no_other_back() {
    let imds = imds();
    let too_long = "x".repeat(70_000);
    imds.set("meta-data/instance-type", &too_long);
    let metadata = kept(&imds, BASE);
    eventually(&metadata, REGION, BASE, &text("eu-central-1")).await;
    assert_eq!(metadata.find("meta-data/instance-type", BASE, &[]).await, MetadataLookup::Unavailable);
    assert_eq!(metadata.find("meta-data/instance-typ", BASE, &[]).await, MetadataLookup::Nothing);
    imds.set("meta-data/instance-type", "m7g.xlarge");
    eventually(&metadata, "meta-data/instance-type", BASE, &text("m7g.xlarge")).await;
    assert_eq!(metadata.find("meta-data/nothing", BASE, &[]).await, MetadataLookup::Nothing);
}

#[tokio::test]
async fn a_service_that_throttles_is_asked_no_more_in_that_turn() {
    let imds = imds();
    imds.set_behaviour(ImdsBehaviour::Status(503));
    let metadata = kept(&imds, BASE);
    imds.wait_for_requests(2).await;
    assert_eq!(
        metadata.find("meta-data", BASE, &["meta-data/iam/info".to_owned()]).await,
        MetadataLookup::Unavailable,
        "also what is known in part"
    );
    // Each turn is one question, for a token; turns are a second apart at least, and grow.
    assert!(imds.requests().len() <= 4, "{:?}", imds.requests().len());
}

/// A reading that fails value by value leaves what was read to its age.
#[tokio::test]
async fn notices_of_before_are_not_given_as_new() {
    let imds = imds();
    let metadata = kept(&imds, EVERYTHING);
    let notice = r#"{"action":"terminate","time":"2030-01-01T00:00:00Z"}"#;
    eventually(&metadata, SPOT, EVERYTHING, &text(notice)).await;
    let notices = GROUPS.iter().position(|group| group.while_asked).unwrap();
    let read_at = || metadata.0.read.borrow()[notices].as_ref().map(|read| read.at);
    let first = read_at();
    // From now on each value fails by itself.
    imds.set("meta-data/spot/instance-action", &"x".repeat(70_000));
    while read_at() == first {
        metadata.find(SPOT, EVERYTHING, &[]).await;
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(metadata.find(SPOT, EVERYTHING, &[]).await, MetadataLookup::Unavailable);
}

#[tokio::test]
async fn notices_are_read_only_while_somebody_asks() {
    let imds = imds();
    let metadata = kept(&imds, EVERYTHING);
    eventually(&metadata, "meta-data/tags/instance/Name", EVERYTHING, &text("node-1")).await;
    let asked_for_spot = || imds.requests().iter().any(|request| request.target.contains("/spot/"));
    assert!(!asked_for_spot());
    assert_eq!(metadata.find(SPOT, BASE, &[]).await, MetadataLookup::Nothing, "not by whom they are not for");
    assert!(!asked_for_spot());
    eventually(&metadata, SPOT, EVERYTHING, &text(r#"{"action":"terminate","time":"2030-01-01T00:00:00Z"}"#)).await;
    assert!(asked_for_spot());
}

#[tokio::test(start_paused = true)]
async fn an_unread_value_is_waited_for_briefly_and_old_notices_are_not_given() {
    let metadata = MetadataValues::new(EVERYTHING.to_vec());
    let began = Instant::now();
    assert_eq!(metadata.find(REGION, BASE, &[]).await, MetadataLookup::Unavailable);
    assert_eq!(began.elapsed(), FIRST_WAIT);
    assert_eq!(metadata.find("meta-data/nothing", BASE, &[]).await, MetadataLookup::Nothing, "nobody will ever read it");
    assert_eq!(began.elapsed(), FIRST_WAIT);

    let notices = GROUPS.iter().position(|group| group.while_asked).unwrap();
    let values = Arc::new(BTreeMap::from([(SPOT.to_owned(), Bytes::from_static(b"x"))]));
    metadata.0.read.send_modify(|reads| reads[notices] = Some(Read { values, partial: false, at: Instant::now() }));
    tokio::time::advance(GROUPS[notices].every * TURNS - Duration::from_millis(1)).await;
    assert_eq!(metadata.find(SPOT, EVERYTHING, &[]).await, text("x"));
    tokio::time::advance(Duration::from_millis(1)).await;
    assert_eq!(metadata.find(SPOT, EVERYTHING, &[]).await, MetadataLookup::Unavailable);
}

#[tokio::test]
async fn a_listing_has_what_the_pod_may_read_and_its_own() {
    let imds = imds();
    let metadata = kept(&imds, EVERYTHING);
    eventually(&metadata, "meta-data/tags/instance/Name", EVERYTHING, &text("node-1")).await;
    let own = ["meta-data/iam/info".to_owned(), "meta-data/iam/security-credentials/web".to_owned()];
    let list = async |path: &str, sets: &[Set], own: &[String]| metadata.find(path, sets, own).await;
    assert_eq!(list("", BASE, &own).await, text("dynamic\nmeta-data"));
    assert_eq!(list("meta-data", BASE, &own).await, text("iam/\ninstance-id\ninstance-life-cycle\ninstance-type\nplacement/\nservices/"));
    assert_eq!(list("meta-data", BASE, &[]).await, text("instance-id\ninstance-life-cycle\ninstance-type\nplacement/\nservices/"));
    assert_eq!(list("meta-data/iam", &[], &own).await, text("info\nsecurity-credentials/"));
    assert_eq!(list("meta-data", &[], &own).await, text("iam/"));
    assert_eq!(list("", &[], &[]).await, MetadataLookup::Nothing);
    assert_eq!(list("dynamic/instance-identity", BASE, &[]).await, text("document"));
    assert_eq!(list("meta-data/tags", EVERYTHING, &[]).await, text("instance/"));
}

#[test]
fn access_is_by_profile_and_by_namespace() {
    let patterns = |names: &[&str]| {
        Patterns::new(crate::config::PatternFormat::Glob, None, names.iter().map(|name| (*name).to_owned()).collect()).unwrap()
    };
    let access = Access::new(MetadataProfile::Base, patterns(&["kube-*"]));
    assert_eq!((access.of("shop"), access.of("kube-system"), access.of("my-kube-system")), (BASE, EVERYTHING, BASE));
    assert_eq!(access.of_somebody(), EVERYTHING);
    let none = Access::new(MetadataProfile::None, patterns(&[]));
    assert!(none.of("kube-system").is_empty() && none.of_somebody().is_empty());
    assert_eq!(Access::new(MetadataProfile::NodeInfo, patterns(&[])).of("shop"), EVERYTHING);
}

#[tokio::test]
async fn node_info_has_the_public_addresses_and_the_placement() {
    let imds = imds();
    let mac = "meta-data/network/interfaces/macs/0a:1b:2c:3d:4e:5f";
    let values = [
        ("meta-data/public-ipv4", "203.0.113.25"),
        ("meta-data/public-hostname", "ec2-203-0-113-25.example"),
        ("meta-data/placement/group-name", "spread"),
        ("meta-data/placement/host-id", "h-0123456789abcdef0"),
        ("meta-data/placement/partition-number", "3"),
        ("meta-data/kernel-id", "aki-1"),
        ("meta-data/ramdisk-id", "ari-1"),
        ("meta-data/product-codes", "code-1\ncode-2"),
        ("meta-data/fws/instance-monitoring", "disabled"),
    ];
    let of_interface = [
        ("public-ipv4s", "203.0.113.25\n203.0.113.26"),
        ("public-hostname", "ec2-203-0-113-25.example"),
        ("network-card-index", "0"),
        ("ipv4-associations/203.0.113.25", "10.0.1.23"),
        ("ipv4-associations/203.0.113.26", "10.0.1.24\n10.0.1.25"),
    ];
    let of_interface = of_interface.map(|(name, value)| (format!("{mac}/{name}"), value));
    values.iter().for_each(|(path, value)| imds.set(path, value));
    of_interface.iter().for_each(|(path, value)| imds.set(path, value));
    for odd in ["..", "odd", "203.0.113.27x"] {
        imds.set(&format!("{mac}/ipv4-associations/{odd}"), "ODD");
    }
    let metadata = kept(&imds, EVERYTHING);
    eventually(&metadata, "meta-data/public-ipv4", EVERYTHING, &text("203.0.113.25")).await;
    eventually(&metadata, "meta-data/instance-action", EVERYTHING, &text("none")).await;
    let all = values.map(|(path, value)| (path.to_owned(), value)).into_iter().chain(of_interface);
    for (path, value) in
        all.chain([("meta-data/ami-launch-index".to_owned(), "0"), ("meta-data/ami-manifest-path".to_owned(), "(unknown)")])
    {
        assert_eq!(metadata.find(&path, EVERYTHING, &[]).await, text(value), "{path}");
        assert_eq!(metadata.find(&path, BASE, &[]).await, MetadataLookup::Nothing, "{path}");
    }
    for (directory, listing) in [
        ("meta-data/placement", "availability-zone\navailability-zone-id\ngroup-name\nhost-id\npartition-number\nregion"),
        ("meta-data/fws", "instance-monitoring"),
        (&format!("{mac}/ipv4-associations"), "203.0.113.25\n203.0.113.26"),
    ] {
        assert_eq!(metadata.find(directory, EVERYTHING, &[]).await, text(listing), "{directory}");
    }
    let MetadataLookup::Text(interface) = metadata.find(mac, EVERYTHING, &[]).await else { panic!("no listing") };
    assert!(interface.windows(20).any(|line| line == b"\nipv4-associations/\n"), "{interface:?}");
    assert_eq!(metadata.find("meta-data/placement", BASE, &[]).await, text("availability-zone\navailability-zone-id\nregion"));
    let asked = imds.requests().into_iter().map(|request| request.target);
    assert_eq!(asked.filter(|target| ["odd", "..", "27x"].iter().any(|never| target.contains(never))).count(), 0);
}
