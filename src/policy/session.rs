//! The parameters of a session besides its role: its name, source identity and tags.

use super::trace::{StepVerdict, Trace, TraceStep, What};
use crate::config::session::{Piece, Placeholder, SessionScope, SessionTag, SessionTemplate};
use crate::pods::{Pod, PodUid};
use crate::role::{RoleArn, SessionName, SourceIdentity};
use crate::text::quoted;

/// The longest value of a tag (`tagValueType` of the STS API), in characters.
const MAX_TAG_VALUE: usize = 256;

/// The operator's settings for the names, source identities and tags of sessions.
#[derive(Clone, Debug)]
pub struct SessionRules {
    /// The cluster's name; empty if nothing needs it.
    pub cluster: String,
    /// This node's name.
    pub node: String,
    /// The template for session names.
    pub name: SessionTemplate,
    /// Whether a pod's annotation may set the session name. False if the operator sets a template, because sessions in CloudTrail
    /// must then be identifiable by it.
    pub pod_may_name: bool,
    /// Which pods share a session.
    pub scope: SessionScope,
    /// The template for source identities; `None` if sessions have none.
    pub source_identity: Option<SessionTemplate>,
    /// The tags of sessions, in the order of the enum, without duplicates.
    pub tags: Vec<SessionTag>,
    /// Whether sessions that pods create with their credentials inherit the tags.
    pub transitive_tags: bool,
}

impl Default for SessionRules {
    fn default() -> Self {
        let name = SessionTemplate::of(Placeholder::Pod);
        Self {
            cluster: String::new(),
            node: String::new(),
            name,
            pod_may_name: true,
            scope: SessionScope::Pod,
            source_identity: None,
            tags: Vec::new(),
            transitive_tags: false,
        }
    }
}

/// A session tag.
#[derive(Clone, Debug, PartialEq, Eq, Hash, serde::Serialize)]
pub struct RequestTag {
    key: &'static str,
    value: Box<str>,
}

impl RequestTag {
    fn new(tag: SessionTag, text: &str) -> Self {
        let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, ' ' | '_' | '.' | ':' | '/' | '=' | '+' | '-' | '@');
        let value: String = text.chars().map(|c| if allowed(c) { c } else { '-' }).take(MAX_TAG_VALUE).collect();
        Self { key: tag.key(), value: value.into() }
    }

    /// Returns the key.
    pub fn key(&self) -> &'static str {
        self.key
    }

    /// Returns the value: at most 256 of the characters `A-Z a-z 0-9 _ . : / = + - @` and space.
    pub fn value(&self) -> &str {
        &self.value
    }
}

impl SessionRules {
    /// Returns the name of the session. Every annotation gives one: kiam makes them fit, and an empty one counts as absent.
    pub(super) fn name(&self, pod: &Pod, role: &RoleArn, trace: &mut impl Trace) -> SessionName {
        if let Some(given) = pod.session_name.as_deref().filter(|name| !name.is_empty()) {
            let (flag, why) = match self.scope {
                SessionScope::Pod if self.pod_may_name => {
                    let name = SessionName::chosen_as(given);
                    trace.note(|| TraceStep {
                        what: What::SessionName,
                        source: "the session-name annotation of the pod".to_owned(),
                        detail: quoted(name.as_str()),
                        verdict: StepVerdict::Passed,
                    });
                    return name;
                }
                SessionScope::Pod => ("--session-name-template", "set: the session-name annotation of the pod is not used"),
                SessionScope::Role => ("--session-scope", "role: pods of one role share a session and its name"),
            };
            trace.skip(What::SessionName, || flag.to_owned(), || why.to_owned());
        }
        let name = SessionName::derived_from(&self.render(&self.name, pod, role));
        trace.note(|| TraceStep {
            what: What::SessionName,
            source: "--session-name-template".to_owned(),
            detail: name.as_str().to_owned(),
            verdict: StepVerdict::Passed,
        });
        name
    }

    /// Returns the source identity. Only the operator sets it: no annotation changes it.
    pub(super) fn source_identity(&self, pod: &Pod, role: &RoleArn, trace: &mut impl Trace) -> Option<SourceIdentity> {
        let template = self.source_identity.as_ref()?;
        let identity = SourceIdentity::derived_from(&self.render(template, pod, role));
        trace.note(|| TraceStep {
            what: What::SourceIdentity,
            source: "--source-identity".to_owned(),
            detail: identity.as_str().to_owned(),
            verdict: StepVerdict::Passed,
        });
        Some(identity)
    }

    /// Renders a template. If the result is too long, the beginnings of names that a pod's author chooses are cut: first of the
    /// pod's name, then of the service account's, then of the role's. The namespace is never cut, so that no pod gets a name that
    /// looks like that of a pod in another namespace.
    fn render(&self, template: &SessionTemplate, pod: &Pod, role: &RoleArn) -> String {
        let values = || template.pieces().iter().map(|piece| self.value(piece, pod, role));
        let text: String = values().collect();
        // Each character of the text becomes one character of the name.
        let length = text.chars().count();
        if length <= SessionName::MAX_LENGTH {
            return text;
        }
        let mut values: Vec<&str> = values().collect();
        let mut excess = length - SessionName::MAX_LENGTH;
        for field in [Placeholder::Pod, Placeholder::ServiceAccount, Placeholder::Role] {
            for (piece, value) in template.pieces().iter().zip(&mut values) {
                if excess > 0 && *piece == Piece::Field(field) {
                    let cut = value.chars().count().min(excess);
                    *value = value.char_indices().nth(cut).map_or("", |(at, _)| &value[at..]);
                    excess -= cut;
                }
            }
        }
        values.concat()
    }

    /// Returns the value of a part of a template.
    fn value<'a>(&'a self, piece: &'a Piece, pod: &'a Pod, role: &'a RoleArn) -> &'a str {
        match piece {
            Piece::Text(text) => text,
            Piece::Field(Placeholder::Cluster) => &self.cluster,
            Piece::Field(Placeholder::Node) => &self.node,
            Piece::Field(Placeholder::Namespace) => &pod.namespace,
            Piece::Field(Placeholder::Pod) => &pod.name,
            Piece::Field(Placeholder::ServiceAccount) => &pod.service_account,
            Piece::Field(Placeholder::Role) => role.name(),
        }
    }

    /// Returns the only pod that may use the session, if pods do not share sessions.
    pub(super) fn holder(&self, pod: &Pod) -> Option<PodUid> {
        (self.scope == SessionScope::Pod).then(|| pod.uid.clone())
    }

    pub(super) fn tags(&self, pod: &Pod, trace: &mut impl Trace) -> Box<[RequestTag]> {
        let value = |tag: SessionTag| match tag {
            SessionTag::Cluster => &self.cluster,
            SessionTag::Namespace => &pod.namespace,
            SessionTag::ServiceAccount => &pod.service_account,
            SessionTag::Pod => &pod.name,
            SessionTag::PodUid => &*pod.uid.0,
            SessionTag::Node => &self.node,
        };
        let tags: Box<[RequestTag]> = self.tags.iter().map(|tag| RequestTag::new(*tag, value(*tag))).collect();
        if !tags.is_empty() {
            let text = || tags.iter().map(|tag| format!("{}={}", tag.key, tag.value)).collect::<Vec<_>>().join(", ");
            let inherited = if self.transitive_tags { " (transitive)" } else { "" };
            let _ = trace.check(What::SessionTags, || "--session-tags".to_owned(), Ok(()), |()| format!("{}{inherited}", text()));
        }
        tags
    }
}

#[cfg(test)]
mod tests;
