//! The story, step by step.

use rolegate_lab::imds::{Imds, NODE_ROLE_NAME};
use rolegate_lab::sts::{NODE_ACCOUNT, NODE_SECRET_ACCESS_KEY};

use crate::ask::{Answer, Ask, Pod, shortened};
use crate::stage::{ANNOTATION, Cast, Failure, Stage};
use crate::story::Story;

/// Lists the pod's role, and below it are its credentials.
const ROLES: &str = "/latest/meta-data/iam/security-credentials/";
/// What is shown of the metrics.
const COUNTERS: &str = "^rolegate_(http_requests|denials)_total";
/// Why requests of this story are refused.
const REASONS: [&str; 7] = ["unknown-pod", "no-role", "role-account", "other-role", "path", "malformed", "token"];

/// One step; an error is a check that failed.
pub(crate) type Step = fn(&mut Story, &mut Stage, &Cast) -> Result<(), Failure>;

/// The steps that the stage allows.
pub(crate) fn of(stage: &Stage) -> Vec<Step> {
    let everywhere: [Step; 10] =
        [start, own_role, other_role, no_role, stranger, node_secrets, no_token, bad_annotation, explained, metrics];
    if stage.has_namespaces() { [&[unprotected as Step], &everywhere[..], &[restart]].concat() } else { everywhere.to_vec() }
}

fn unprotected(story: &mut Story, stage: &mut Stage, cast: &Cast) -> Result<(), Failure> {
    story.heading(
        "0. A node without rolegate",
        "Any pod asks the metadata service, and gets the keys of the node itself. (These two lines cannot be \
         repeated: from here on the node is protected.)",
    );
    let token = stage.take_token(story, &cast.plain).body;
    let answer = stage.ask(story, &Ask::get(&cast.plain, format!("{ROLES}{NODE_ROLE_NAME}")).with(&token));
    let stolen = answer.field("SecretAccessKey").is_some_and(|secret| secret == NODE_SECRET_ACCESS_KEY);
    story.check(stolen && stage.requests_of_pods() > 0, "a pod has the node's secret key: this is what must never happen again");
    Ok(())
}

fn start(story: &mut Story, stage: &mut Stage, _: &Cast) -> Result<(), Failure> {
    stage.forget_what_was();
    stage.start_daemon()?;
    println!();
    story.text(&format!("rolegate is started on the node, as process {}.", stage.daemon()?.pid()));
    story.check(true, "it says that it is ready to serve this node's pods");
    Ok(())
}

fn own_role(story: &mut Story, stage: &mut Stage, cast: &Cast) -> Result<(), Failure> {
    story.heading(
        "1. Pod shop/web gets the credentials of its role",
        &format!(
            "Its annotation is `{ANNOTATION}: web-role`. As every AWS SDK does, it takes a session token (IMDSv2), asks which role \
             it has, and gets that role's credentials."
        ),
    );
    credentials(story, stage, &cast.web, "web-role").map(|_| ())
}

fn other_role(story: &mut Story, stage: &mut Stage, cast: &Cast) -> Result<(), Failure> {
    story.heading(
        "2. Pod shop/db, on the same node, gets others",
        &format!("Its annotation is `{ANNOTATION}: db-role`. The request is the same; who asks makes the difference."),
    );
    let secret = credentials(story, stage, &cast.db, "db-role")?;
    let other = stage.sts.issued().into_iter().find(|issued| issued.role_arn.ends_with("/web-role"));
    story.check(other.is_some_and(|other| other.secret_access_key != secret), "they are not those of shop/web");
    Ok(())
}

/// Token, role, credentials; the secret key.
fn credentials(story: &mut Story, stage: &mut Stage, pod: &Pod, role: &str) -> Result<String, Failure> {
    let token = token(story, stage, pod);
    let answer = stage.ask(story, &Ask::get(pod, ROLES).with(&token));
    story.check(answer.is_ok() && answer.body == role, &format!("its role is {role}"));

    let answer = stage.ask(story, &Ask::get(pod, format!("{ROLES}{role}")).with(&token));
    let secret = answer.field("SecretAccessKey").unwrap_or_default();
    let arn = format!("arn:aws:iam::{NODE_ACCOUNT}:role/{role}");
    let issued = stage.sts.issued().into_iter().any(|issued| {
        issued.role_arn == arn
            && issued.secret_access_key == secret
            && answer.field("AccessKeyId").as_ref() == Some(&issued.access_key_id)
            && answer.field("Token").as_ref() == Some(&issued.session_token)
    });
    story.check(answer.is_ok() && issued, &format!("they are exactly those that STS issued for {arn}"));
    Ok(secret)
}

fn no_role(story: &mut Story, stage: &mut Stage, cast: &Cast) -> Result<(), Failure> {
    story.heading(
        "3. Pod shop/plain has no annotation, and gets nothing",
        "404 is what tells an SDK that there are no credentials here, so that it looks elsewhere.",
    );
    let token = token(story, stage, &cast.plain);
    let answer = stage.ask(story, &Ask::get(&cast.plain, ROLES).with(&token));
    story.check(answer.is_bare(404), "404, and nothing in it");
    Ok(())
}

fn stranger(story: &mut Story, stage: &mut Stage, cast: &Cast) -> Result<(), Failure> {
    story.heading(
        "4. An address that no pod has gets nothing",
        "It does not even get a session token. The answer takes two seconds, as the pod might be starting just now: rolegate waits \
         for news from Kubernetes.",
    );
    let answer = stage.ask(story, &Ask::token(&cast.stranger));
    story.check(answer.is_bare(500), "500, and nothing in it: an SDK asks for a token again");
    Ok(())
}

fn node_secrets(story: &mut Story, stage: &mut Stage, cast: &Cast) -> Result<(), Failure> {
    story.heading(
        "5. Pod shop/web tries to get at the node",
        "With a good token it asks for the node's role by name, for user data, for the identity role that every instance has, and \
         for the node's role again by paths that other proxies have let through.",
    );
    let token = token(story, stage, &cast.web);
    let attempts = [
        (format!("{ROLES}{NODE_ROLE_NAME}"), 404),
        ("/latest/user-data".to_owned(), 404),
        ("/latest/meta-data/identity-credentials/ec2/security-credentials/ec2-instance".to_owned(), 404),
        (format!("{ROLES}..%2f{NODE_ROLE_NAME}"), 400),
        (format!("//latest/./meta-data/iam/security-credentials/{NODE_ROLE_NAME}"), 400),
    ];
    let asked_before = stage.imds.requests().len();
    for (path, status) in attempts {
        let answer = stage.ask(story, &Ask::get(&cast.web, path).with(&token));
        story.check(answer.is_bare(status), &format!("refused with {status}, and nothing in it"));
    }
    println!();
    let asked = stage.imds.requests().len() - asked_before;
    story.check(asked == 0, "meanwhile the node's metadata service was asked nothing, not by the pod and not on its behalf");
    story.check(stage.leaks() == 0, "it has seen no request of a pod since rolegate runs");
    let leaked = Imds::node_credentials_leaked_in(&stage.received);
    let length = stage.received.len();
    story.check(leaked.is_none() && length > 0, &format!("no secret of the node is in the {length} bytes that pods were answered"));
    Ok(())
}

fn no_token(story: &mut Story, stage: &mut Stage, cast: &Cast) -> Result<(), Failure> {
    story.heading(
        "6. A request without a session token (IMDSv1) is refused",
        "Tokens keep out whoever can make an application fetch a URL, but not choose method and headers. --imds-tokens=optional \
         serves such requests too.",
    );
    let answer = stage.ask(story, &Ask::get(&cast.web, ROLES));
    story.check(answer.is_bare(401), "401, and nothing in it");
    Ok(())
}

fn bad_annotation(story: &mut Story, stage: &mut Stage, cast: &Cast) -> Result<(), Failure> {
    story.heading(
        "7. Pod shop/typo has an annotation that is wrong",
        "Its account is written with dashes: arn:aws:iam::1111-2222-3333:role/typo-role. The pod gets nothing; the operator gets a \
         line in the log that says what to change.",
    );
    let token = token(story, stage, &cast.typo);
    let answer = stage.ask(story, &Ask::get(&cast.typo, ROLES).with(&token));
    story.check(answer.is_bare(404), "404, and nothing in it");

    let line = stage.daemon()?.wait_for_log(|line| line["reason"] == "role-account")?;
    story.command(&["grep role-account".to_owned(), stage.log.display().to_string()]);
    let log = stage.daemon()?.log();
    let lines: Vec<_> = log.lines().filter(|line| line.contains("role-account")).collect();
    story.output(&lines.join("\n").replace("\",\"", "\", \""));
    let told = line["message"].as_str().is_some_and(|message| message.contains("exactly 12 digits")) && line["pod"] == "typo";
    story.check(told, "the log names the pod, and says that an account has 12 digits");
    Ok(())
}

fn explained(story: &mut Story, stage: &mut Stage, _: &Cast) -> Result<(), Failure> {
    story.heading(
        "8. Why a pod gets what it gets",
        "`rolegate explain` takes every step of the decision again, by the daemon's own settings and what it knows, and says what to \
         change. The exit code is 0 for a pod that gets its role, and 1 for one that does not. The namespace shop allows its pods \
         the roles web-* and db-*; shop/report names another one, and shop/twin-a and shop/twin-b claim the same address.",
    );
    let cases: [(&str, &[&str], i32, &str, &str); 4] = [
        ("shop/web", &["--assume"], 0, "\nallowed: ", "it is allowed, and STS gives it the role when it is asked"),
        ("shop/report", &[], 1, "\ndenied (not-allowed-in-namespace): ", "it is refused, and the namespace's annotation is what to change"),
        ("shop/twin-a", &[], 1, "\ndenied (ambiguous-pod): ", "it is refused, and the other pod is named"),
        ("shop/plain", &[], 1, "\ndenied (no-role): ", "it is refused, and what may name a role is said"),
    ];
    for (pod, more, code, line, expected) in cases {
        let issued = stage.sts.issued().len();
        let (text, ended) = stage.explain(story, pod, more)?;
        let asked = stage.sts.issued().len() - issued;
        let besides = match pod {
            "shop/web" => text.contains("STS gives it to") && asked == 1,
            "shop/twin-a" => text.contains("shop/twin-b") && asked == 0,
            _ => asked == 0,
        };
        story.check(ended == code && text.contains(line) && besides, &format!("{pod}: {expected}"));
    }
    Ok(())
}

fn metrics(story: &mut Story, stage: &mut Stage, _: &Cast) -> Result<(), Failure> {
    story.heading("9. The metrics show it", "Requests by what was asked for and the status answered, and refusals by reason.");
    let curl = format!("{} curl -s {}", stage.enter_node(), stage.metrics_url());
    let grep = format!("| grep -E '{COUNTERS}'");
    story.command(&curl.trim_start().split(' ').map(str::to_owned).chain([grep]).collect::<Vec<_>>());
    let text = stage.metrics()?;
    let counted = |name: &str| text.lines().filter(|line| line.starts_with(name)).collect::<Vec<_>>();
    let (requests, denials) = (counted("rolegate_http_requests_total"), counted("rolegate_denials_total"));
    story.output(&[&denials[..], &requests[..]].concat().join("\n"));
    let total: usize = requests.iter().filter_map(|line| line.rsplit(' ').next()?.parse::<usize>().ok()).sum();
    story.check(total >= stage.asked, &format!("all {} requests of this story are counted", stage.asked));
    let missing: Vec<_> =
        REASONS.into_iter().filter(|reason| !denials.iter().any(|line| line.contains(&format!("\"{reason}\"")))).collect();
    story.check(missing.is_empty(), &format!("so is every reason: {}", REASONS.join(", ")));
    Ok(())
}

fn restart(story: &mut Story, stage: &mut Stage, cast: &Cast) -> Result<(), Failure> {
    story.heading(
        "10. When rolegate is down, the node is still safe",
        "It is stopped with SIGTERM. The packet rule stays: a pod's request finds a closed door, never the node's metadata service. \
         (This one cannot be repeated either: it is started again right away.)",
    );
    stage.stop_daemon()?;
    let answer = stage.ask(story, &Ask::token(&cast.web));
    story.check(answer.was_refused(), "the connection is refused");
    story.check(stage.leaks() == 0, "the node's metadata service has still seen no request of a pod");

    stage.start_daemon()?;
    println!();
    story.text(&format!("rolegate is started again, as process {}.", stage.daemon()?.pid()));
    let token = token(story, stage, &cast.web);
    let answer = stage.ask(story, &Ask::get(&cast.web, ROLES).with(&token));
    story.check(answer.is_ok() && answer.body == "web-role", "the pod has its role again");
    story.check(stage.leaks() == 0, "and the node's metadata service was asked by the node alone");
    Ok(())
}

/// A session token for a pod of the cluster.
fn token(story: &mut Story, stage: &mut Stage, pod: &Pod) -> String {
    let answer: Answer = stage.take_token(story, pod);
    if answer.is_ok() {
        story.output(&format!("TOKEN is {}", shortened(&answer.body)));
    } else {
        story.check(false, &format!("{} gets a session token", pod.name));
    }
    answer.body
}
