//! YAML in and out. Documents are written with comments beside their values, and read again before they are handed out: no text
//! of a manifest can become a line of its own.

use serde_json::{Map, Value};

/// The largest input, in bytes.
pub(crate) const MAX_INPUT: usize = 16 * 1024 * 1024;
/// The largest list of a cluster's workloads, in bytes.
pub(crate) const MAX_WORKLOADS_INPUT: usize = 256 * 1024 * 1024;
/// Columns that comments are wrapped at.
const WIDTH: usize = 120;
/// Columns that a comment has at least, however deep it stands.
const MIN_COMMENT: usize = 50;

/// Why a text is no YAML, or a value cannot be written.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(crate) struct YamlError(String);

/// A value, with comments that are written above it.
#[derive(Debug)]
pub(super) struct Noted {
    pub notes: Vec<String>,
    pub node: YamlNode,
}

/// A value that has comments inside. Those in `trailing` come after its last entry.
#[derive(Debug)]
pub(super) enum YamlNode {
    Plain(Value),
    Map { entries: Vec<(String, Noted)>, trailing: Vec<String> },
    List { items: Vec<Noted>, trailing: Vec<String> },
}

/// One document, with comments above all of it.
#[derive(Debug)]
pub(super) struct NotedDocument {
    pub notes: Vec<String>,
    pub root: YamlNode,
}

impl NotedDocument {
    /// The kind and the name of the object.
    pub(super) fn identity(&self) -> (String, String) {
        let value = self.root.plain();
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        (text(&value["kind"]), text(&value["metadata"]["name"]))
    }
}

/// Builds a mapping in the order in which it is to be read.
#[derive(Debug, Default)]
pub(super) struct MapBuilder {
    entries: Vec<(String, Noted)>,
    pending: Vec<String>,
}

impl MapBuilder {
    pub(super) fn put(&mut self, key: &str, value: impl Into<YamlNode>) -> &mut Self {
        self.noted(key, value, Vec::new())
    }

    pub(super) fn noted(&mut self, key: &str, value: impl Into<YamlNode>, notes: Vec<String>) -> &mut Self {
        let mut all = std::mem::take(&mut self.pending);
        all.extend(notes);
        self.entries.push((key.to_owned(), Noted { notes: all, node: value.into() }));
        self
    }

    /// Adds a comment above the next entry, or at the end.
    pub(super) fn comment(&mut self, note: impl Into<String>) -> &mut Self {
        self.pending.push(note.into());
        self
    }

    /// Adds a value, if there is one.
    pub(super) fn put_some(&mut self, key: &str, value: Option<Value>) -> &mut Self {
        if let Some(value) = value {
            self.put(key, value);
        }
        self
    }

    pub(super) fn build(self) -> YamlNode {
        YamlNode::Map { entries: self.entries, trailing: self.pending }
    }
}

impl From<Value> for YamlNode {
    fn from(value: Value) -> Self {
        match value {
            Value::Object(map) => Self::from(map),
            Value::Array(items) => Self::List { items: items.into_iter().map(Noted::from).collect(), trailing: Vec::new() },
            plain => Self::Plain(plain),
        }
    }
}

impl From<Map<String, Value>> for YamlNode {
    fn from(map: Map<String, Value>) -> Self {
        Self::Map { entries: map.into_iter().map(|(key, value)| (key, Noted::from(value))).collect(), trailing: Vec::new() }
    }
}

impl From<&str> for YamlNode {
    fn from(text: &str) -> Self {
        Self::Plain(Value::from(text))
    }
}

impl From<MapBuilder> for YamlNode {
    fn from(map: MapBuilder) -> Self {
        map.build()
    }
}

impl From<Vec<Noted>> for YamlNode {
    fn from(items: Vec<Noted>) -> Self {
        Self::List { items, trailing: Vec::new() }
    }
}

impl From<Value> for Noted {
    fn from(value: Value) -> Self {
        Self { notes: Vec::new(), node: value.into() }
    }
}

impl YamlNode {
    /// Adds an entry to a mapping.
    pub(super) fn push(&mut self, key: &str, value: Value) {
        if let Self::Map { entries, .. } = self {
            entries.push((key.to_owned(), value.into()));
        }
    }

    /// The value without its comments.
    fn plain(&self) -> Value {
        match self {
            Self::Plain(value) => value.clone(),
            Self::Map { entries, .. } => Value::Object(entries.iter().map(|(key, noted)| (key.clone(), noted.node.plain())).collect()),
            Self::List { items, .. } => items.iter().map(|noted| noted.node.plain()).collect(),
        }
    }
}

/// Returns the documents of a text; empty ones are left out.
pub(super) fn parse(text: &str) -> Result<Vec<Value>, YamlError> {
    let options = serde_saphyr::options! {
        // Manifests are shallow and small; what is not must not take the machine.
        budget: serde_saphyr::budget! {
            max_depth: 48,
            max_documents: 4096,
            max_buffered_comment_events: 100_000,
        },
        alias_limits: serde_saphyr::alias_limits! { max_total_replayed_events: 100_000 },
        // An error must not quote secrets of the manifest.
        with_snippet: false,
    };
    let documents: Vec<Value> = serde_saphyr::from_multiple_with_options(text, options).map_err(|error| YamlError(error.to_string()))?;
    Ok(documents.into_iter().filter(|document| !document.is_null()).collect())
}

/// Writes documents, and reads them again.
pub(super) fn write(documents: &[NotedDocument]) -> Result<String, YamlError> {
    let mut out = String::new();
    for (index, document) in documents.iter().enumerate() {
        if index > 0 {
            out.push_str("---\n");
        }
        write_notes(&mut out, 0, &document.notes);
        match &document.root {
            YamlNode::Map { entries, trailing } => write_map(&mut out, 0, entries, trailing)?,
            _ => return Err(YamlError("a document is no mapping".to_owned())),
        }
    }
    let wanted: Vec<Value> = documents.iter().map(|document| document.root.plain()).collect();
    if parse(&out)? == wanted { Ok(out) } else { Err(YamlError("the output does not have the values that it is to have".to_owned())) }
}

fn write_map(out: &mut String, indent: usize, entries: &[(String, Noted)], trailing: &[String]) -> Result<(), YamlError> {
    for (key, noted) in entries {
        write_notes(out, indent, &noted.notes);
        out.push_str(&" ".repeat(indent));
        write_entry(out, indent, key, noted)?;
    }
    write_notes(out, indent, trailing);
    Ok(())
}

fn write_entry(out: &mut String, indent: usize, key: &str, noted: &Noted) -> Result<(), YamlError> {
    out.push_str(&scalar(&Value::from(key))?);
    out.push(':');
    match &noted.node {
        YamlNode::Plain(value) => {
            out.push(' ');
            out.push_str(&scalar(value)?);
            out.push('\n');
        }
        YamlNode::Map { entries, trailing } => {
            out.push_str(if entries.is_empty() { " {}\n" } else { "\n" });
            write_map(out, indent + 2, entries, trailing)?;
        }
        YamlNode::List { items, trailing } => {
            out.push_str(if items.is_empty() { " []\n" } else { "\n" });
            write_list(out, indent + 2, items, trailing)?;
        }
    }
    Ok(())
}

fn write_list(out: &mut String, indent: usize, items: &[Noted], trailing: &[String]) -> Result<(), YamlError> {
    for noted in items {
        write_notes(out, indent, &noted.notes);
        match &noted.node {
            YamlNode::Plain(value) => {
                out.push_str(&format!("{}- {}\n", " ".repeat(indent), scalar(value)?));
            }
            YamlNode::Map { entries, trailing } => match entries.split_first() {
                None => out.push_str(&format!("{}- {{}}\n", " ".repeat(indent))),
                Some(((key, first), rest)) => {
                    write_notes(out, indent, &first.notes);
                    out.push_str(&format!("{}- ", " ".repeat(indent)));
                    write_entry(out, indent + 2, key, first)?;
                    write_map(out, indent + 2, rest, trailing)?;
                }
            },
            YamlNode::List { items, trailing } if items.is_empty() => {
                out.push_str(&format!("{}- []\n", " ".repeat(indent)));
                write_notes(out, indent + 2, trailing);
            }
            YamlNode::List { items, trailing } => {
                out.push_str(&format!("{}-\n", " ".repeat(indent)));
                write_list(out, indent + 2, items, trailing)?;
            }
        }
    }
    write_notes(out, indent, trailing);
    Ok(())
}

/// Returns a scalar in one line, quoted where it must be.
fn scalar(value: &Value) -> Result<String, YamlError> {
    let options = || serde_saphyr::ser_options! { prefer_block_scalars: false };
    let failed = |error: serde_saphyr::SerializeError| YamlError(error.to_string());
    let is_line = |text: &str| !text.is_empty() && text.chars().all(is_shown);
    let text = serde_saphyr::to_string_with_options(value, options()).map_err(failed)?;
    let line = text.strip_suffix('\n').unwrap_or(&text);
    if is_line(line) {
        return Ok(line.to_owned());
    }
    let Some(string) = value.as_str() else { return Err(YamlError("a value takes more than one line".to_owned())) };
    let text = serde_saphyr::to_string_with_options(&serde_saphyr::DoubleQuoted(string), options()).map_err(failed)?;
    let line = text.strip_suffix('\n').unwrap_or(&text);
    if !line.starts_with('"') || line.contains(['\n', '\r']) {
        return Err(YamlError("a value takes more than one line".to_owned()));
    }
    // What the library leaves as it is because YAML allows it: it would still show as something else.
    let escape = |c: char| if is_shown(c) { c.to_string() } else { format!("\\U{:08X}", u32::from(c)) };
    Ok(line.chars().map(escape).collect())
}

fn write_notes(out: &mut String, indent: usize, notes: &[String]) {
    let width = WIDTH.saturating_sub(indent + 2).max(MIN_COMMENT);
    for note in notes {
        let note: String = note.chars().map(|c| if is_shown(c) { c } else { '?' }).collect();
        // A command is copied as one line.
        let is_command = note.starts_with("kubectl ");
        // A note of several sentences hangs together: its further lines are indented.
        let mut line = String::new();
        let mut lead = "";
        for word in note.split(' ').filter(|word| !word.is_empty()) {
            if !is_command && !line.is_empty() && line.chars().count() + 1 + word.chars().count() > width {
                out.push_str(&format!("{}# {lead}{line}\n", " ".repeat(indent)));
                line.clear();
                lead = if note.starts_with("- ") { "  " } else { "" };
            }
            if !line.is_empty() {
                line.push(' ');
            }
            line.push_str(word);
        }
        if !line.is_empty() {
            out.push_str(&format!("{}# {lead}{line}\n", " ".repeat(indent)));
        }
    }
}

/// Whether a character shows as itself and moves nothing: neither a control character nor one that breaks lines, reverses the
/// direction of text, or has no width.
fn is_shown(c: char) -> bool {
    matches!(c, ' '..='~') || c.escape_debug().count() == 1
}
