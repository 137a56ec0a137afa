//! The status as a page: one document of HTML, without scripts and without anything from elsewhere.

use std::sync::OnceLock;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ring::digest;

use super::html::Html;
use super::{DaemonStatus, LimitStatus, PodStatus, RuleStatus, SelfTestStatus, SessionStatus, StatusDocument, StsErrorStatus, WatchStatus};
use crate::explain::ReportedDecision;

/// The style of the page. The policy of the page allows this text and no other.
const STYLE: &str = include_str!("page.css");

/// Returns the `Content-Security-Policy` of the page: nothing is loaded, nothing runs, only the page's own style applies, no form is sent,
/// and no other page shows it in a frame.
pub(crate) fn content_security_policy() -> &'static str {
    static POLICY: OnceLock<String> = OnceLock::new();
    POLICY.get_or_init(|| {
        let hash = STANDARD.encode(digest::digest(&digest::SHA256, STYLE.as_bytes()));
        format!("default-src 'none'; style-src 'sha256-{hash}'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'")
    })
}

/// Returns the page.
pub(crate) fn page(status: &StatusDocument) -> String {
    let mut html = Html::default();
    html.markup("<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n")
        .markup("<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n<meta name=\"color-scheme\" content=\"light dark\">\n")
        .markup("<title>rolegate on ")
        .text(node_of(&status.daemon))
        .markup(if status.daemon.ready { ": ready" } else { ": not ready" })
        .markup("</title>\n<style>")
        .markup(STYLE)
        .markup("</style>\n</head>\n<body>\n<a class=\"skip\" href=\"#content\">Skip to the content</a>\n");
    html.element("<header>\n<h1>rolegate on ", node_of(&status.daemon), "</h1>\n").element(
        "<p>Status at ",
        &status.generated_at,
        ". Reload the page for the current one.</p>\n</header>\n",
    );
    html.markup("<nav aria-label=\"Sections\">\n<ul>\n");
    for (link, title) in [
        ("<li><a href=\"#daemon\">", "Daemon"),
        ("<li><a href=\"#pods\">", "Pods"),
        ("<li><a href=\"#rules\">", "Rules"),
        ("<li><a href=\"#watch\">", "Watch"),
        ("<li><a href=\"#sts\">", "STS errors"),
        ("<li><a href=\"#limits\">", "Limits"),
        ("<li><a href=\"#self-test\">", "Self-test"),
        ("<li><a href=\"/status.json\">", "JSON"),
    ] {
        html.element(link, title, "</a></li>\n");
    }
    html.markup("</ul>\n</nav>\n<main id=\"content\" tabindex=\"-1\">\n");
    daemon(&mut html, &status.daemon);
    pods(&mut html, &status.pods);
    rules(&mut html, &status.rules);
    watch(&mut html, &status.watch);
    sts_errors(&mut html, &status.sts_errors);
    limits(&mut html, &status.limits);
    self_test(&mut html, &status.self_test);
    html.markup("</main>\n</body>\n</html>\n");
    html.into_text()
}

fn node_of(daemon: &DaemonStatus) -> &str {
    if daemon.node.is_empty() { "an unknown node" } else { &daemon.node }
}

fn daemon(html: &mut Html, daemon: &DaemonStatus) {
    html.markup("<section aria-labelledby=\"daemon\">\n<h2 id=\"daemon\">Daemon</h2>\n<dl>\n<dt>Readiness</dt>\n<dd>");
    match daemon.not_ready.as_slice() {
        [] => html.markup("<span class=\"good\">ready</span>"),
        pending => {
            html.markup("<span class=\"bad\">not ready</span>, waiting for:<ul>");
            for condition in pending {
                html.element("<li>", condition.waiting_for, " ").element("<code>", condition.cause, "</code></li>");
            }
            html.markup("</ul>")
        }
    };
    html.element("</dd>\n<dt>Version</dt>\n<dd>", daemon.version, "</dd>\n")
        .element("<dt>Node</dt>\n<dd>", node_of(daemon), "</dd>\n")
        .element("<dt>Started</dt>\n<dd>", &daemon.started_at, "")
        .element(" (", length(daemon.uptime_seconds), " ago)</dd>\n</dl>\n</section>\n");
}

/// Begins a section with a table, which scrolls in its own place if it is wider than the page.
fn table(html: &mut Html, open: &'static str, caption: &str, head: &'static str) {
    html.markup(open)
        .element("<table>\n<caption>", caption, "</caption>\n")
        .markup("<thead><tr>")
        .markup(head)
        .markup("</tr></thead>\n<tbody>\n");
}

const END_OF_TABLE: &str = "</tbody>\n</table>\n</div>\n</section>\n";

fn pods(html: &mut Html, pods: &[PodStatus]) {
    if pods.is_empty() {
        html.markup("<section aria-labelledby=\"pods\">\n<h2 id=\"pods\">Pods</h2>\n<p>No pods of this node are known.</p>\n</section>\n");
        return;
    }
    let allowed = pods.iter().filter(|pod| pod.decision == ReportedDecision::Allowed).count();
    let open = "<section aria-labelledby=\"pods\">\n<h2 id=\"pods\">Pods</h2>\n<div class=\"scroll\" role=\"region\" aria-labelledby=\"pods\" \
                tabindex=\"0\">\n";
    let head = "<th scope=\"col\">Pod</th><th scope=\"col\">Addresses</th><th scope=\"col\">Decision</th><th scope=\"col\">Role</th><th \
                scope=\"col\">Session</th><th scope=\"col\">Why</th>";
    table(html, open, &format!("{} pods, {allowed} of them allowed", pods.len()), head);
    for pod in pods {
        html.element("<tr>\n<th scope=\"row\">", &pod.namespace, "/<wbr>").element("", &pod.name, "");
        html.markup(if pod.host_network { "<small>hostNetwork</small></th>\n<td>" } else { "</th>\n<td>" });
        for address in &pod.addresses {
            html.element("<div>", address, "</div>");
        }
        html.markup("</td>\n<td>").markup(match pod.decision {
            ReportedDecision::Allowed => "<span class=\"good\">allowed</span>",
            ReportedDecision::Denied => "<span class=\"bad\">denied</span>",
            ReportedDecision::Unknown => "<span class=\"warn\">unknown</span>",
        });
        if let Some(reason) = &pod.reason {
            html.element("<small><code>", reason, "</code></small>");
        }
        html.element("</td>\n<td class=\"role\">", pod.role.as_deref().unwrap_or("none"), "");
        if let Some(source) = &pod.source_role {
            html.element("<small>through ", source, "</small>");
        }
        html.markup("</td>\n<td>");
        session(html, pod.session.as_ref());
        html.element("</td>\n<td class=\"why\">", &pod.message, "");
        for note in &pod.notes {
            html.element("<small>", note, "</small>");
        }
        html.markup("</td>\n</tr>\n");
    }
    html.markup(END_OF_TABLE);
}

fn session(html: &mut Html, session: Option<&SessionStatus>) {
    let Some(session) = session else {
        html.markup("none");
        return;
    };
    let class = match session.state {
        "valid" => "<span class=\"good\">",
        "failed" => "<span class=\"bad\">",
        _ => "<span class=\"warn\">",
    };
    html.element(class, session.state, "</span>");
    if let (Some(age), Some(left)) = (session.age_seconds, session.expires_in_seconds) {
        html.element("<small>issued ", length(age), " ago</small>").element("<small>expires in ", length(left), "</small>");
    }
    if let Some(error) = session.error {
        html.element("<small>last request: <code>", error, "</code></small>");
    }
}

fn rules(html: &mut Html, rules: &[RuleStatus]) {
    if rules.is_empty() {
        html.markup("<section aria-labelledby=\"rules\">\n<h2 id=\"rules\">Rules</h2>\n<p>The daemon keeps no rules.</p>\n</section>\n");
        return;
    }
    let open = "<section aria-labelledby=\"rules\">\n<h2 id=\"rules\">Rules</h2>\n<div class=\"scroll\" role=\"region\" \
                aria-labelledby=\"rules\" tabindex=\"0\">\n";
    let head = "<th scope=\"col\">Rules</th><th scope=\"col\">Backend</th><th scope=\"col\">Family</th><th scope=\"col\">State</th><th \
                scope=\"col\">Redirect to</th><th scope=\"col\">Last check</th><th scope=\"col\" class=\"number\">Repairs</th>";
    table(html, open, "Rules that the daemon keeps in place", head);
    for rule in rules {
        html.element("<tr>\n<th scope=\"row\">", rule.kind, "</th>\n")
            .element("<td>", rule.backend, "</td>\n")
            .element("<td>", rule.family.unwrap_or("both"), "</td>\n<td>")
            .element(if rule.in_place { "<span class=\"good\">" } else { "<span class=\"bad\">" }, rule.state, "</span></td>\n")
            .element("<td>", rule.redirects_to.as_deref().unwrap_or("nothing"), "</td>\n")
            .element("<td>", rule.last_checked_at.as_deref().unwrap_or("never"), "</td>\n")
            .element("<td class=\"number\">", rule.repairs, "");
        if let Some(at) = &rule.last_repaired_at {
            html.element("<small>", at, "</small>");
        }
        html.markup("</td>\n</tr>\n");
    }
    html.markup(END_OF_TABLE);
}

fn watch(html: &mut Html, watch: &WatchStatus) {
    html.markup("<section aria-labelledby=\"watch\">\n<h2 id=\"watch\">Watch of the pods</h2>\n<dl>\n<dt>Pods</dt>\n<dd>")
        .markup(if watch.listed { "<span class=\"good\">listed</span>" } else { "<span class=\"warn\">not listed yet</span>" })
        .element("</dd>\n<dt>Last contact</dt>\n<dd>", &watch.last_contact_at, "")
        .element(" (", length(watch.silent_seconds), " ago)</dd>\n<dt>State</dt>\n<dd>")
        .markup(if watch.stale { "<span class=\"bad\">stale</span>" } else { "<span class=\"good\">current</span>" })
        .markup("</dd>\n</dl>\n</section>\n");
}

fn sts_errors(html: &mut Html, errors: &[StsErrorStatus]) {
    if errors.is_empty() {
        html.markup("<section aria-labelledby=\"sts\">\n<h2 id=\"sts\">STS errors</h2>\n<p>None since the start.</p>\n</section>\n");
        return;
    }
    let open = "<section aria-labelledby=\"sts\">\n<h2 id=\"sts\">STS errors</h2>\n<div class=\"scroll\" role=\"region\" \
                aria-labelledby=\"sts\" tabindex=\"0\">\n";
    let head =
        "<th scope=\"col\">Last</th><th scope=\"col\">Code</th><th scope=\"col\">Role</th><th scope=\"col\" class=\"number\">Count</th>";
    table(html, open, "The last failures, by role and code", head);
    for error in errors {
        html.element("<tr>\n<th scope=\"row\">", &error.last_at, "</th>\n")
            .element("<td><code>", error.code, "</code></td>\n")
            .element("<td class=\"role\">", &error.role, "</td>\n")
            .element("<td class=\"number\">", error.count, "</td>\n</tr>\n");
    }
    html.markup(END_OF_TABLE);
}

fn limits(html: &mut Html, limits: &[LimitStatus]) {
    if limits.is_empty() {
        html.markup(
            "<section aria-labelledby=\"limits\">\n<h2 id=\"limits\">Limits</h2>\n<p>None was reached since the start.</p>\n</section>\n",
        );
        return;
    }
    let open = "<section aria-labelledby=\"limits\">\n<h2 id=\"limits\">Limits</h2>\n<div class=\"scroll\" role=\"region\" \
                aria-labelledby=\"limits\" tabindex=\"0\">\n";
    let head = "<th scope=\"col\">Metric</th><th scope=\"col\">Limit</th><th scope=\"col\" class=\"number\">Count</th>";
    table(html, open, "Limits that turned something away since the start", head);
    for limit in limits {
        html.element("<tr>\n<th scope=\"row\"><code>", limit.metric, "</code></th>\n").element("<td>", &limit.limit, "</td>\n").element(
            "<td class=\"number\">",
            limit.count,
            "</td>\n</tr>\n",
        );
    }
    html.markup(END_OF_TABLE);
}

fn self_test(html: &mut Html, self_test: &SelfTestStatus) {
    let class = match self_test.state {
        "passed" => "<span class=\"good\">",
        "failed" => "<span class=\"bad\">",
        _ => "<span class=\"warn\">",
    };
    html.markup("<section aria-labelledby=\"self-test\">\n<h2 id=\"self-test\">Self-test</h2>\n<dl>\n<dt>Result</dt>\n<dd>").element(
        class,
        self_test.state,
        "</span>",
    );
    if let Some(reason) = self_test.reason {
        html.element(" <code>", reason, "</code>");
    }
    html.markup("</dd>\n");
    if let Some(at) = &self_test.last_result_at {
        html.element("<dt>Last result</dt>\n<dd>", at, "</dd>\n");
    }
    html.markup("</dl>\n</section>\n");
}

/// Returns a length of time for people, with its two largest units.
fn length(seconds: u64) -> String {
    let unit = match seconds {
        0..3600 => 1,
        3600..86400 => 60,
        _ => 3600,
    };
    humantime::format_duration(Duration::from_secs(seconds - seconds % unit)).to_string()
}
