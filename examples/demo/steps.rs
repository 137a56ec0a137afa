//! The steps of the story.

use rolegate_lab::imds::{Imds, NODE_ROLE_NAME};
use rolegate_lab::sts::{NODE_ACCOUNT, NODE_SECRET_ACCESS_KEY};

use crate::ask::{Answer, Ask, Pod, shortened};
use crate::stage::{ANNOTATION, Cast, Failure, Stage};
use crate::story::Story;

/// The path of the role list. The credentials are below it.
const ROLES: &str = "/latest/meta-data/iam/security-credentials/";
/// The metrics that are shown.
const COUNTERS: &str = "^rolegate_(http_requests|denials)_total";
/// The reasons for which requests in this story are refused.
const REASONS: [&str; 7] = ["unknown-pod", "no-role", "role-account", "other-role", "path", "malformed", "token"];

/// One step. An error is a check that failed.
pub(crate) type Step = fn(&mut Story, &mut Stage, &Cast) -> Result<(), Failure>;

/// Returns the steps that are possible on this stage.
pub(crate) fn of(stage: &Stage) -> Vec<Step> {
    let everywhere: [Step; 10] =
        [start, own_role, other_role, no_role, stranger, node_secrets, no_token, bad_annotation, explained, metrics];
    if stage.has_namespaces() { [&[unprotected as Step], &everywhere[..], &[restart]].concat() } else { everywhere.to_vec() }
}

fn unprotected(story: &mut Story, stage: &mut Stage, cast: &Cast) -> Result<(), Failure> {
    story.heading(
        "0. A node without rolegate",
        "Any pod can ask the metadata service for the credentials of the node. (You cannot repeat these two commands: the \
         node is protected from here on.)",
    );
    let token = stage.take_token(story, &cast.plain).body;
    let answer = stage.ask(story, &Ask::get(&cast.plain, format!("{ROLES}{NODE_ROLE_NAME}")).with(&token));
    let stolen = answer.field("SecretAccessKey").is_some_and(|secret| secret == NODE_SECRET_ACCESS_KEY);
    story.check(stolen && stage.requests_of_pods() > 0, "a pod has the node's secret key; this must never happen again");
    Ok(())
}

fn start(story: &mut Story, stage: &mut Stage, _: &Cast) -> Result<(), Failure> {
    stage.forget_what_was();
    stage.start_daemon()?;
    println!();
    story.text(&format!("rolegate runs on the node, as process {}.", stage.daemon()?.pid()));
    story.check(true, "it is ready to serve the pods of this node");
    Ok(())
}

fn own_role(story: &mut Story, stage: &mut Stage, cast: &Cast) -> Result<(), Failure> {
    story.heading(
        "1. Pod shop/web gets the credentials of its role",
        &format!(
            "Its annotation is `{ANNOTATION}: web-role`. Like every AWS SDK, it requests a session token (IMDSv2), the name of its role, \
             and the credentials of that role."
        ),
    );
    credentials(story, stage, &cast.web, "web-role").map(|_| ())
}

fn other_role(story: &mut Story, stage: &mut Stage, cast: &Cast) -> Result<(), Failure> {
    story.heading(
        "2. Pod shop/db, on the same node, gets other credentials",
        &format!("Its annotation is `{ANNOTATION}: db-role`. The requests are the same; rolegate identifies the pod by its address."),
    );
    let secret = credentials(story, stage, &cast.db, "db-role")?;
    let other = stage.sts.issued().into_iter().find(|issued| issued.role_arn.ends_with("/web-role"));
    story.check(other.is_some_and(|other| other.secret_access_key != secret), "they differ from those of shop/web");
    Ok(())
}

/// Requests a token, the role and its credentials, and returns the secret key.
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
    story.check(answer.is_ok() && issued, &format!("they are the credentials that STS issued for {arn}"));
    Ok(secret)
}

fn no_role(story: &mut Story, stage: &mut Stage, cast: &Cast) -> Result<(), Failure> {
    story.heading(
        "3. Pod shop/plain has no annotation, and gets nothing",
        "404 tells an SDK that there are no credentials here, so it tries its next source.",
    );
    let token = token(story, stage, &cast.plain);
    let answer = stage.ask(story, &Ask::get(&cast.plain, ROLES).with(&token));
    story.check(answer.is_bare(404), "404, with an empty body");
    Ok(())
}

fn stranger(story: &mut Story, stage: &mut Stage, cast: &Cast) -> Result<(), Failure> {
    story.heading(
        "4. A client without a pod gets nothing",
        "It does not even get a session token. The answer takes two seconds: a pod might just be starting, so rolegate waits for the \
         Kubernetes watch.",
    );
    let answer = stage.ask(story, &Ask::token(&cast.stranger));
    story.check(answer.names_only(500, "Internal Server Error"), "500, with its name alone as the body: an SDK retries");
    Ok(())
}

fn node_secrets(story: &mut Story, stage: &mut Stage, cast: &Cast) -> Result<(), Failure> {
    story.heading(
        "5. Pod shop/web tries to get the node's credentials",
        "With a valid token, it requests the node's role by name, the user data, the identity role of the instance, and the node's \
         role again by paths that got through other proxies.",
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
        story.check(answer.is_bare(status), &format!("refused with {status} and an empty body"));
    }
    println!();
    let asked = stage.imds.requests().len() - asked_before;
    story.check(asked == 0, "the real metadata service received no request from the pod or on its behalf");
    story.check(stage.leaks() == 0, "it has received no request of a pod since rolegate started");
    let leaked = Imds::node_credentials_leaked_in(&stage.received);
    let length = stage.received.len();
    story.check(leaked.is_none() && length > 0, &format!("the {length} bytes of answers to pods contain no secret of the node"));
    Ok(())
}

fn no_token(story: &mut Story, stage: &mut Stage, cast: &Cast) -> Result<(), Failure> {
    story.heading(
        "6. A request without a session token (IMDSv1) is refused",
        "Tokens stop attackers who can make an application fetch a URL, but cannot choose the method and headers. \
         --imds-tokens=optional serves such requests as well.",
    );
    let answer = stage.ask(story, &Ask::get(&cast.web, ROLES));
    story.check(answer.names_only(401, "Unauthorized"), "401, with its name alone as the body");
    Ok(())
}

fn bad_annotation(story: &mut Story, stage: &mut Stage, cast: &Cast) -> Result<(), Failure> {
    story.heading(
        "7. Pod shop/typo has a wrong annotation",
        "Its account has dashes: arn:aws:iam::1111-2222-3333:role/typo-role. The pod gets nothing, and the log says what is wrong.",
    );
    let token = token(story, stage, &cast.typo);
    let answer = stage.ask(story, &Ask::get(&cast.typo, ROLES).with(&token));
    story.check(answer.is_bare(404), "404, with an empty body");

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
        "8. Why a pod gets its role, or none",
        "`rolegate explain` shows every step of the daemon's decision, and how to fix a refusal. Its exit code is 0 if the pod gets its \
         role, and 1 if it does not. The namespace shop allows the roles web-* and db-*; shop/report names another role, and \
         shop/twin-a and shop/twin-b claim the same address.",
    );
    let cases: [(&str, &[&str], i32, &str, &str); 4] = [
        ("shop/web", &["--assume"], 0, "\nallowed: ", "allowed, and STS also issues the credentials"),
        ("shop/report", &[], 1, "\ndenied (not-allowed-in-namespace): ", "denied; the annotation of the namespace must be changed"),
        ("shop/twin-a", &[], 1, "\ndenied (ambiguous-pod): ", "denied, with the name of the other pod"),
        ("shop/plain", &[], 1, "\ndenied (no-role): ", "denied, with the annotation to add"),
    ];
    for (pod, more, code, line, expected) in cases {
        let issued = stage.sts.issued().len();
        let (text, ended) = stage.explain(story, pod, more)?;
        let asked = stage.sts.issued().len() - issued;
        let besides = match pod {
            "shop/web" => text.contains("STS lets ") && asked == 1,
            "shop/twin-a" => text.contains("shop/twin-b") && asked == 0,
            _ => asked == 0,
        };
        story.check(ended == code && text.contains(line) && besides, &format!("{pod}: {expected}"));
    }
    Ok(())
}

fn metrics(story: &mut Story, stage: &mut Stage, _: &Cast) -> Result<(), Failure> {
    story.heading("9. The metrics show it", "They count requests by route and status code, and refusals by reason.");
    let curl = format!("{} curl -s {}", stage.enter_node(), stage.metrics_url());
    let grep = format!("| grep -E '{COUNTERS}'");
    story.command(&curl.trim_start().split(' ').map(str::to_owned).chain([grep]).collect::<Vec<_>>());
    let text = stage.metrics()?;
    let counted = |name: &str| text.lines().filter(|line| line.starts_with(name)).collect::<Vec<_>>();
    let (requests, denials) = (counted("rolegate_http_requests_total"), counted("rolegate_denials_total"));
    story.output(&[&denials[..], &requests[..]].concat().join("\n"));
    let total: usize = requests.iter().filter_map(|line| line.rsplit(' ').next()?.parse::<usize>().ok()).sum();
    story.check(total >= stage.asked, &format!("all {} requests of this demonstration are counted", stage.asked));
    let missing: Vec<_> =
        REASONS.into_iter().filter(|reason| !denials.iter().any(|line| line.contains(&format!("\"{reason}\"")))).collect();
    story.check(missing.is_empty(), &format!("every reason is counted: {}", REASONS.join(", ")));
    Ok(())
}

fn restart(story: &mut Story, stage: &mut Stage, cast: &Cast) -> Result<(), Failure> {
    story.heading(
        "10. The node is safe while rolegate is down",
        "rolegate is stopped with SIGTERM. The packet rules stay, so a pod's connection is refused and never reaches the real metadata \
         service. (You cannot repeat this command either: rolegate is restarted right away.)",
    );
    stage.stop_daemon()?;
    let answer = stage.ask(story, &Ask::token(&cast.web));
    story.check(answer.was_refused(), "the connection is refused");
    story.check(stage.leaks() == 0, "the real metadata service has still received no request of a pod");

    stage.start_daemon()?;
    println!();
    story.text(&format!("rolegate runs again, as process {}.", stage.daemon()?.pid()));
    let token = token(story, stage, &cast.web);
    let answer = stage.ask(story, &Ask::get(&cast.web, ROLES).with(&token));
    story.check(answer.is_ok() && answer.body == "web-role", "the pod gets its role again");
    story.check(stage.leaks() == 0, "the real metadata service received requests of the node only");
    Ok(())
}

/// Requests a session token for a pod of the cluster.
fn token(story: &mut Story, stage: &mut Stage, pod: &Pod) -> String {
    let answer: Answer = stage.take_token(story, pod);
    if answer.is_ok() {
        story.output(&format!("TOKEN is {}", shortened(&answer.body)));
    } else {
        story.check(false, &format!("{} gets a session token", pod.name));
    }
    answer.body
}
