//! A second implementation of the rules, as simple as possible, only for comparison.

use std::collections::BTreeSet;
use std::sync::OnceLock;

use regex::Regex;

use super::{BASE, Written};

fn is_match(expression: &'static str, compiled: &'static OnceLock<Regex>, text: &str) -> bool {
    compiled.get_or_init(|| Regex::new(expression).unwrap()).is_match(text)
}

/// Returns whether this is a role's ARN: IAM's `arnType`, `pathType` and `roleNameType`, and the existing partitions.
pub(crate) fn is_role_arn(text: &str) -> bool {
    static COMPILED: OnceLock<Regex> = OnceLock::new();
    let grammar = r"\Aarn:aws(-cn|-us-gov|-eusc|-iso|-iso-b|-iso-e|-iso-f)?:iam::[0-9]{12}:role/([!-.0-~]+/)*[A-Za-z0-9_+=,.@-]{1,64}\z";
    // `/` alone, or the text between two of them: 512 characters with both.
    let path = text.find(":role/").zip(text.rfind('/')).map_or(0, |(from, to)| to - (from + ":role".len()) + 1);
    text.len() <= 2048 && path <= 512 && is_match(grammar, &COMPILED, text)
}

/// Returns whether this is a host that clients of the metadata service write.
pub(crate) fn is_host(value: &[u8]) -> bool {
    let hosts = ["169.254.169.254", "[fd00:ec2::254]", "instance-data", "instance-data.ec2.internal"];
    value == b"fd00:ec2::254" || hosts.iter().any(|host| value.strip_suffix(b":80").unwrap_or(value) == host.as_bytes())
}

/// Whether a version is `latest`, `1.0`, or a date from the first one to today.
pub(crate) fn is_version(text: &str, today: &str) -> bool {
    static DATE: OnceLock<Regex> = OnceLock::new();
    let is_date = is_match(r"\A[0-9]{4}-(0[1-9]|1[0-2])-(0[1-9]|[12][0-9]|3[01])\z", &DATE, text);
    matches!(text, "latest" | "1.0") || is_date && ("2007-01-19"..=today).contains(&text)
}

/// What kiam makes of a session name. STS takes no name of one character, which is lengthened.
pub(crate) fn session_name(chosen: &str) -> String {
    let fit: String = chosen.chars().map(|c| if c.is_ascii_alphanumeric() || "_+=,.@-".contains(c) { c } else { '-' }).take(64).collect();
    if fit.len() == 1 { format!("pod-{fit}") } else { fit }
}

/// Completes a short name with the base. An ARN is unchanged.
pub(crate) fn completed(name: &str, base: &str) -> String {
    if name.starts_with("arn:") { name.to_owned() } else { format!("{base}{}", name.strip_prefix('/').unwrap_or(name)) }
}

/// Returns whether a pattern of `*` and text matches the whole text, with a table of which prefixes match.
pub(crate) fn glob(pattern: &str, text: &str) -> bool {
    let text: Vec<char> = text.chars().collect();
    let mut reached = vec![false; text.len() + 1];
    reached[0] = true;
    for part in pattern.chars() {
        let mut next = vec![false; text.len() + 1];
        for at in 0..=text.len() {
            if part == '*' {
                next[at] = reached[at] || at > 0 && next[at - 1];
            } else if at > 0 {
                next[at] = reached[at - 1] && text[at - 1] == part;
            }
        }
        reached = next;
    }
    reached[text.len()]
}

enum Node {
    Char(char),
    Any,
    Star(Box<Node>),
    Sequence(Vec<Node>),
    Either(Vec<Node>),
}

/// Returns whether an expression of letters, `.`, `*`, `|` and groups matches the whole text; `None` for any other expression.
pub(crate) fn expression(pattern: &str, text: &str) -> Option<bool> {
    let mut rest = pattern.chars().peekable();
    if pattern.len() > 64 || text.len() > 128 {
        return None;
    }
    let node = either(&mut rest)?;
    let text: Vec<char> = text.chars().collect();
    rest.next().is_none().then(|| ends(&node, &text, 0).contains(&text.len()))
}

fn either(rest: &mut std::iter::Peekable<std::str::Chars<'_>>) -> Option<Node> {
    let mut branches = Vec::new();
    loop {
        let mut sequence = Vec::new();
        while let Some(next) = rest.next_if(|next| !matches!(next, '|' | ')')) {
            let node = match next {
                '(' => {
                    let inner = (rest.peek() != Some(&'?')).then(|| either(rest))??;
                    rest.next_if_eq(&')')?;
                    inner
                }
                '.' => Node::Any,
                '*' => Node::Star(Box::new(sequence.pop()?)),
                next if next.is_ascii_alphanumeric() || "/:-".contains(next) => Node::Char(next),
                _ => return None,
            };
            // A question mark after a star, and similar operators, are outside this subset.
            sequence.push(node);
        }
        branches.push(Node::Sequence(sequence));
        if rest.next_if_eq(&'|').is_none() {
            return Some(Node::Either(branches));
        }
    }
}

/// Returns where the matches that begin at `start` end.
fn ends(node: &Node, text: &[char], start: usize) -> BTreeSet<usize> {
    match node {
        Node::Char(expected) => (text.get(start) == Some(expected)).then_some(start + 1).into_iter().collect(),
        Node::Any => text.get(start).filter(|next| **next != '\n').map(|_| start + 1).into_iter().collect(),
        Node::Either(branches) => branches.iter().flat_map(|branch| ends(branch, text, start)).collect(),
        Node::Sequence(parts) => {
            parts.iter().fold(BTreeSet::from([start]), |starts, part| starts.iter().flat_map(|start| ends(part, text, *start)).collect())
        }
        Node::Star(inner) => {
            let mut all = BTreeSet::from([start]);
            let mut new = vec![start];
            while let Some(from) = new.pop() {
                new.extend(ends(inner, text, from).into_iter().filter(|end| all.insert(*end)));
            }
            all
        }
    }
}

/// Returns the role that may be allowed for what is written, on a node of account 111122223333 whose own role is `nodes`, with
/// namespace restrictions.
pub(crate) fn allowed_role(written: &Written<'_>) -> Option<String> {
    static ID: OnceLock<Regex> = OnceLock::new();
    let role = completed(written.role?, BASE);
    let (beginning, name) = role.rsplit_once('/')?;
    let is_node = beginning.starts_with("arn:aws:iam::111122223333:") && name.eq_ignore_ascii_case("nodes");
    let external_id =
        written.external_id.is_none_or(|id| id.is_empty() || is_match(r"\A[A-Za-z0-9_+=,.@:/-]{2,}\z", &ID, id) && id.len() <= 1224);
    let by_list = match written.allowed_roles {
        None => false,
        Some(text) => {
            let patterns: Vec<String> = serde_json::from_str(text).ok()?;
            patterns.iter().any(|pattern| if written.regexp { whole_short(pattern, &role) } else { glob(&completed(pattern, BASE), &role) })
        }
    };
    let by_expression = match written.permitted {
        None => false,
        Some(expression) => whole(expression, "", &role)?,
    };
    let good = is_role_arn(&role) && role.starts_with("arn:aws:") && !is_node && external_id;
    (good && (by_list || by_expression)).then_some(role)
}

fn whole_short(pattern: &str, role: &str) -> bool {
    let pattern = pattern.strip_prefix('^').unwrap_or(pattern);
    let (base, pattern) = if pattern.starts_with("arn:") { ("", pattern) } else { (BASE, pattern.strip_prefix('/').unwrap_or(pattern)) };
    whole(pattern, base, role).unwrap_or(false)
}

/// Returns whether a valid expression matches everything after the base; `None` if the expression is invalid.
fn whole(expression: &str, base: &str, role: &str) -> Option<bool> {
    Regex::new(expression).ok()?;
    let anchored = Regex::new(&format!(r"\A(?:{expression})\z")).ok()?;
    Some(role.strip_prefix(base).is_some_and(|behind| anchored.is_match(behind)))
}
