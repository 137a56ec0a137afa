//! Requests that are answered from the memory of their connection.

use proptest::prelude::*;

use super::*;
use crate::pods::NodeAddresses;
use crate::proxy::memory::Memory;
use crate::proxy::token::KeyFile;

const WEB_AT: &str = "10.0.0.1";

/// A kept connection of the pod at [`WEB_AT`], whose client sends the same request again and again.
struct Kept {
    origin: Origin,
    memory: Memory,
    token: String,
    role: &'static str,
}

impl Kept {
    async fn open(node: &Node, role: &'static str) -> Self {
        let token = node.ask(WEB_AT, "PUT", "/latest/api/token", &[(TTL, "1200")]).await.body;
        Self { origin: Origin::new(WEB_AT.parse().unwrap(), Hosts::default()), memory: Memory::default(), token, role }
    }

    fn path(&self) -> String {
        format!("{LIST}{}", self.role)
    }

    /// Returns the document that the memory answers with.
    async fn remembered(&self, node: &Node) -> Option<String> {
        let response = node.proxy.answer_again(&self.origin, &self.memory, &Method::GET, &self.path())?;
        assert_eq!(response.status(), StatusCode::OK);
        Some(String::from_utf8(response.into_body().collect().await.unwrap().to_bytes().to_vec()).unwrap())
    }

    /// Decides the request. With `remembers`, the answer may be remembered.
    async fn decided(&self, node: &Node, remembers: bool) -> (u16, String) {
        let request = Request::builder().uri(self.path()).header("host", "169.254.169.254").header(TOKEN, &self.token);
        let (request, ()) = request.body(()).unwrap().into_parts();
        let memory = remembers.then_some(&self.memory);
        let (head, body) = node.proxy.handle_with(&self.origin, &request, Body::Unread, memory).await.into_parts();
        (head.status.as_u16(), String::from_utf8(body.collect().await.unwrap().to_bytes().to_vec()).unwrap())
    }

    /// Decides twice: the first answer of a session is not remembered, because the session is new.
    async fn warm(&self, node: &Node) {
        for _ in 0..2 {
            assert_eq!(self.decided(node, true).await.0, 200);
        }
    }
}

fn identity() -> NodeIdentity {
    NODE.parse::<CallerIdentity>().unwrap().into()
}

fn namespace(pattern: &str) -> Namespace {
    Namespace { name: "default".to_owned(), allowed_roles: None, permitted: Some(pattern.to_owned()) }
}

/// A node that enforces namespace restrictions, with one pod, whose own identity is `identity`.
fn strict(identity: NodeIdentity) -> Node {
    let node = node_of(identity, TokenMode::Required, &[WEB], |rules| rules.restrictions = Restrictions::Enforce);
    node.writer.write(|index| index.apply_namespace(namespace(".*")));
    node
}

/// Replaces the keys of session tokens by those of another process.
fn replace_keys(node: &Node) {
    let directory = tempfile::tempdir().unwrap();
    let file = KeyFile::new(directory.path().join("keys"));
    Tokens::new(node.proxy.clock.clone()).unwrap().sync(&file).unwrap();
    node.proxy.tokens.sync(&file).unwrap();
}

#[tokio::test(start_paused = true)]
async fn the_same_request_is_answered_and_counted_as_before() {
    let node = strict(identity());
    let kept = Kept::open(&node, "web").await;
    assert_eq!(kept.remembered(&node).await, None, "nothing was asked");
    kept.warm(&node).await;
    let decided = kept.decided(&node, false).await;
    for _ in 0..3 {
        assert_eq!(kept.remembered(&node).await.as_ref(), Some(&decided.1));
    }
    assert!(node.counted(r#"rolegate_http_requests_total{code="200",route="credentials"} 6"#));
    assert!(node.counted(r#"rolegate_session_lookups_total{result="hit"} 5"#));
    kept.memory.forget();
    assert_eq!(kept.remembered(&node).await, None);
}

#[tokio::test(start_paused = true)]
async fn only_a_request_with_a_valid_token_is_remembered() {
    let node = node_of(identity(), TokenMode::Optional, &[WEB], |_| {});
    let kept = Kept::open(&node, "web").await;
    let request = Request::builder().uri(kept.path()).header("host", "169.254.169.254");
    let (request, ()) = request.body(()).unwrap().into_parts();
    for _ in 0..3 {
        let response = node.proxy.handle_with(&kept.origin, &request, Body::Unread, Some(&kept.memory)).await;
        assert_eq!((response.status(), kept.remembered(&node).await), (StatusCode::OK, None), "each is counted as one without a token");
    }
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_restrictions_would_refuse_is_not_remembered() {
    let node = node_of(identity(), TokenMode::Required, &[WEB], |rules| rules.restrictions = Restrictions::Audit);
    node.writer.write(|index| index.apply_namespace(namespace("another-role")));
    let kept = Kept::open(&node, "web").await;
    kept.warm(&node).await;
    assert_eq!(kept.remembered(&node).await, None, "each is reported");
}

/// Something that an answer depends on, and how it changes.
type Cause = fn(&Node, &NodeIdentity, &Kept);

#[tokio::test(start_paused = true)]
async fn an_answer_is_forgotten_when_anything_changes_that_it_depends_on() {
    let causes: &[(&str, Cause)] = &[
        ("the pod's role", |node, _, _| node.writer.write(|index| index.apply(pod("web-1", WEB_AT, Some("db"))))),
        ("the pod is gone", |node, _, _| node.writer.write(|index| index.delete(&PodUid("uid-of-web-1".into())))),
        ("another pod claims the address", |node, _, _| node.writer.write(|index| index.apply(pod("next", WEB_AT, Some("web"))))),
        ("the namespace", |node, _, _| node.writer.write(|index| index.apply_namespace(namespace("db")))),
        ("the node's addresses", |node, _, _| {
            node.writer.write(|index| index.set_node(NodeAddresses { ips: [WEB_AT.parse().unwrap()].into(), loopback: false }));
        }),
        ("the node's identity", |_, identity, _| {
            identity.set_caller("arn:aws:sts::111122223333:assumed-role/web/i-0f1e2d3c".parse().unwrap());
        }),
        ("the keys of tokens", |node, _, _| replace_keys(node)),
        ("the age of the API's data", |node, _, _| node.proxy.pods.set_stale(true)),
        ("the connection", |_, _, kept| kept.origin.close()),
    ];
    for (cause, change) in causes {
        let identity = identity();
        let node = strict(identity.clone());
        let kept = Kept::open(&node, "web").await;
        kept.warm(&node).await;
        assert!(kept.remembered(&node).await.is_some(), "{cause}");
        change(&node, &identity, &kept);
        assert_eq!(kept.remembered(&node).await, None, "{cause}");
        assert_eq!(kept.remembered(&node).await, None, "{cause}: it does not come back");
    }
}

#[tokio::test(start_paused = true)]
async fn an_answer_ends_with_its_token_and_before_its_credentials() {
    let node = strict(identity());
    let kept = Kept::open(&node, "web").await;
    kept.warm(&node).await;
    advance(Duration::from_secs(1199)).await;
    assert!(kept.remembered(&node).await.is_some());
    advance(Duration::from_secs(1)).await;
    assert_eq!(kept.remembered(&node).await, None, "the token has expired");
    let kept = Kept::open(&node, "web").await;
    kept.warm(&node).await;
    advance(Duration::from_secs(899)).await;
    assert!(kept.remembered(&node).await.is_some());
    advance(Duration::from_secs(1)).await;
    assert_eq!(kept.remembered(&node).await, None, "25 minutes before the end, the session is renewed");
}

/// A change of the world.
#[derive(Clone, Copy, Debug)]
enum Step {
    Role(bool),
    Delete,
    Replace(bool),
    SecondClaim(bool),
    Namespace(bool),
    NodeAddress(bool),
    Identity(bool),
    Keys,
    Stale(bool),
    Seconds(u64),
    NewToken,
    Reconnect,
    Ask,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        1 => any::<bool>().prop_map(Step::Role),
        1 => Just(Step::Delete),
        1 => any::<bool>().prop_map(Step::Replace),
        1 => any::<bool>().prop_map(Step::SecondClaim),
        1 => any::<bool>().prop_map(Step::Namespace),
        1 => any::<bool>().prop_map(Step::NodeAddress),
        1 => any::<bool>().prop_map(Step::Identity),
        1 => Just(Step::Keys),
        1 => any::<bool>().prop_map(Step::Stale),
        1 => (1_u64..1300).prop_map(Step::Seconds),
        1 => Just(Step::NewToken),
        1 => Just(Step::Reconnect),
        8 => Just(Step::Ask),
    ];
    proptest::collection::vec(step, 1..40)
}

fn changed(node: &Node, identity: &NodeIdentity, step: Step) {
    let role = |first: bool| Some(if first { "web" } else { "db" });
    let callers = [NODE, "arn:aws:sts::111122223333:assumed-role/web/i-0f1e2d3c"];
    // Each step changes one thing, and no other generation.
    let write = |change: &dyn Fn(&mut Index)| node.writer.write(|index| change(index));
    match step {
        Step::Role(first) => write(&|index| index.apply(pod("web-1", WEB_AT, role(first)))),
        Step::Delete => write(&|index| index.delete(&PodUid("uid-of-web-1".into()))),
        Step::Replace(first) => write(&|index| {
            index.delete(&PodUid("uid-of-web-1".into()));
            index.apply(pod("next", WEB_AT, role(first)));
        }),
        Step::SecondClaim(true) => write(&|index| index.apply(pod("next", WEB_AT, Some("web")))),
        Step::SecondClaim(false) => write(&|index| index.delete(&PodUid("uid-of-next".into()))),
        Step::Namespace(all) => write(&|index| index.apply_namespace(namespace(if all { ".*" } else { ".*/db" }))),
        Step::NodeAddress(is) => write(&|index| {
            let ips = if is { [WEB_AT.parse().unwrap()].into() } else { Default::default() };
            index.set_node(NodeAddresses { ips, loopback: false });
        }),
        Step::Identity(own) => drop(identity.set_caller(callers[usize::from(!own)].parse().unwrap())),
        Step::Keys => replace_keys(node),
        Step::Stale(is) => node.proxy.pods.set_stale(is),
        Step::Seconds(_) | Step::NewToken | Step::Reconnect | Step::Ask => {}
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever happens in whatever order: if the memory answers, then a decision that is made at that moment is the same answer.
    #[test]
    fn the_memory_never_answers_differently_from_a_decision(steps in steps()) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
        runtime.block_on(async {
            let identity = identity();
            let node = strict(identity.clone());
            let mut kept = Kept::open(&node, "web").await;
            kept.warm(&node).await;
            for step in steps {
                match step {
                    Step::Seconds(seconds) => advance(Duration::from_secs(seconds)).await,
                    Step::NewToken => {
                        let token = node.ask(WEB_AT, "PUT", "/latest/api/token", &[(TTL, "1200")]).await.body;
                        // Another token is another request, and the connection forgets.
                        (kept.token, kept.memory) = (token, Memory::default());
                    }
                    Step::Reconnect => kept = Kept { token: kept.token, ..Kept::open(&node, "web").await },
                    Step::Ask => {}
                    step => changed(&node, &identity, step),
                }
                for _ in 0..3 {
                    let remembered = kept.remembered(&node).await;
                    let decided = kept.decided(&node, remembered.is_none()).await;
                    if let Some(remembered) = remembered {
                        assert_eq!((200, remembered), decided, "after {step:?}");
                    }
                }
            }
        });
    }
}
