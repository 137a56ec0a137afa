//! How sessions are named, identified and tagged, as the operator writes it.

use std::str::FromStr;

/// Who shares a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SessionScope {
    /// Each pod has its own.
    Pod,
    /// Pods of one role share one: fewer requests to STS, and CloudTrail does not tell the pods apart.
    Role,
}

/// Something that STS is told about a session besides its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum SessionTag {
    /// The cluster's name.
    Cluster,
    /// The pod's namespace.
    Namespace,
    /// The pod's service account.
    ServiceAccount,
    /// The pod's name.
    Pod,
    /// The pod's UID.
    PodUid,
    /// The node's name.
    Node,
}

impl SessionTag {
    /// Each tag, by its name in `--session-tags`.
    pub const NAMES: [(&'static str, SessionTag); 6] = [
        ("cluster", SessionTag::Cluster),
        ("namespace", SessionTag::Namespace),
        ("service-account", SessionTag::ServiceAccount),
        ("pod", SessionTag::Pod),
        ("pod-uid", SessionTag::PodUid),
        ("node", SessionTag::Node),
    ];

    /// The tag's key at AWS. Those that EKS Pod Identity sets, too, have its names.
    pub fn key(self) -> &'static str {
        match self {
            Self::Cluster => "kubernetes-cluster-name",
            Self::Namespace => "kubernetes-namespace",
            Self::ServiceAccount => "kubernetes-service-account",
            Self::Pod => "kubernetes-pod-name",
            Self::PodUid => "kubernetes-pod-uid",
            Self::Node => "kubernetes-node-name",
        }
    }

    /// Whether pods of one role differ in it.
    pub fn is_of_pod(self) -> bool {
        !matches!(self, Self::Cluster | Self::Node)
    }
}

/// What stands for something else in a template.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Placeholder {
    /// `{cluster}`.
    Cluster,
    /// `{node}`.
    Node,
    /// `{namespace}`.
    Namespace,
    /// `{pod}`.
    Pod,
    /// `{serviceaccount}`.
    ServiceAccount,
    /// `{role}`: the bare name.
    Role,
}

impl Placeholder {
    const NAMES: [(&'static str, Placeholder); 6] = [
        ("cluster", Placeholder::Cluster),
        ("node", Placeholder::Node),
        ("namespace", Placeholder::Namespace),
        ("pod", Placeholder::Pod),
        ("serviceaccount", Placeholder::ServiceAccount),
        ("role", Placeholder::Role),
    ];

    /// Whether pods of one role differ in it.
    pub fn is_of_pod(self) -> bool {
        matches!(self, Self::Namespace | Self::Pod | Self::ServiceAccount)
    }
}

/// A part of a template.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Piece {
    /// Itself.
    Text(Box<str>),
    /// What it stands for.
    Field(Placeholder),
}

/// A session's name or source identity: text with placeholders.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SessionTemplate(Vec<Piece>);

impl SessionTemplate {
    /// One placeholder alone.
    pub fn of(field: Placeholder) -> Self {
        Self(vec![Piece::Field(field)])
    }

    /// Its parts, in order.
    pub fn pieces(&self) -> &[Piece] {
        &self.0
    }

    /// Its placeholders.
    pub fn fields(&self) -> impl Iterator<Item = Placeholder> + '_ {
        self.0.iter().filter_map(|piece| match piece {
            Piece::Field(field) => Some(*field),
            Piece::Text(_) => None,
        })
    }
}

/// A template with braces that are no placeholder.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("expected a template of text and {{cluster}}, {{node}}, {{namespace}}, {{pod}}, {{serviceaccount}} or {{role}}")]
pub struct BadTemplate;

impl FromStr for SessionTemplate {
    type Err = BadTemplate;

    fn from_str(text: &str) -> Result<Self, BadTemplate> {
        let (mut pieces, mut rest) = (Vec::new(), text);
        while let Some(at) = rest.find(['{', '}']) {
            let (before, braced) = rest.split_at(at);
            let (name, after) = braced.strip_prefix('{').and_then(|inside| inside.split_once('}')).ok_or(BadTemplate)?;
            let found = Placeholder::NAMES.iter().find(|(known, _)| *known == name);
            let (_, field) = found.ok_or(BadTemplate)?;
            if !before.is_empty() {
                pieces.push(Piece::Text(before.into()));
            }
            pieces.push(Piece::Field(*field));
            rest = after;
        }
        if !rest.is_empty() {
            pieces.push(Piece::Text(rest.into()));
        }
        if pieces.is_empty() { Err(BadTemplate) } else { Ok(Self(pieces)) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_template_is_text_and_placeholders() {
        let pieces = |text: &str| text.parse::<SessionTemplate>().map(|template| template.0);
        let text = |text: &str| Piece::Text(text.into());
        assert_eq!(pieces("{pod}"), Ok(vec![Piece::Field(Placeholder::Pod)]));
        assert_eq!(
            pieces("k8s.{namespace}{serviceaccount}-x"),
            Ok(vec![text("k8s."), Piece::Field(Placeholder::Namespace), Piece::Field(Placeholder::ServiceAccount), text("-x")])
        );
        assert_eq!(pieces("plain"), Ok(vec![text("plain")]));
        for (name, field) in Placeholder::NAMES {
            assert_eq!(pieces(&format!("{{{name}}}")), Ok(vec![Piece::Field(field)]));
        }
        for bad in ["", "{", "}", "{}", "{pod", "pod}", "{Pod}", "{ pod }", "{{pod}}", "{uid}", "{pod}{", "}{pod}"] {
            assert_eq!(pieces(bad), Err(BadTemplate), "{bad:?}");
        }
    }

    proptest::proptest! {
        #[test]
        fn no_text_makes_the_parser_panic(text in "([{}]|pod|role|\\PC){0,20}") {
            let _ = text.parse::<SessionTemplate>();
        }
    }
}
