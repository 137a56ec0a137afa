//! The parameters of AssumeRole and their bounds, with STS's own error texts.

use std::time::Duration;

use super::answer::Fault;
use super::model::{Identity, Role};

/// The lifetime of a session without a stated duration, and the maximum lifetime of a chained one, in seconds.
const HOUR: u32 = 3600;
const SHORTEST: u32 = 900;
const LONGEST: u32 = 43_200;

/// Tags, by key and value.
type Tags = Vec<(String, String)>;

/// The form fields of one request.
pub(super) struct Form(Vec<(String, String)>);

impl Form {
    pub(super) fn parse(body: &[u8]) -> Form {
        Form(form_urlencoded::parse(body).into_owned().collect())
    }

    pub(super) fn get(&self, name: &str) -> Option<&str> {
        let (_, value) = self.0.iter().find(|(key, _)| key == name)?;
        Some(value)
    }

    /// Returns `Tags.member.N.Key` and `.Value`, by ascending N.
    pub(super) fn tags(&self) -> Vec<(String, String)> {
        let mut tags: Vec<(u32, String, String)> = self
            .0
            .iter()
            .filter_map(|(name, key)| {
                let number = name.strip_prefix("Tags.member.")?.strip_suffix(".Key")?;
                let value = self.get(&format!("Tags.member.{number}.Value"));
                let value = value.unwrap_or_default().to_owned();
                Some((number.parse().ok()?, key.clone(), value))
            })
            .collect();
        tags.sort_by_key(|(number, ..)| *number);
        tags.into_iter().map(|(_, key, value)| (key, value)).collect()
    }

    /// Returns `TransitiveTagKeys.member.N`, by ascending N.
    pub(super) fn transitive_tag_keys(&self) -> Vec<String> {
        let number = |name: &str| name.strip_prefix("TransitiveTagKeys.member.")?.parse::<u32>().ok();
        let mut keys: Vec<(u32, String)> = self.0.iter().filter_map(|(name, key)| Some((number(name)?, key.clone()))).collect();
        keys.sort_unstable();
        keys.into_iter().map(|(_, key)| key).collect()
    }
}

/// The parameters of AssumeRole, each within its model.
#[derive(Debug)]
pub(super) struct Request {
    pub(super) role_arn: String,
    pub(super) session_name: String,
    pub(super) duration_seconds: u32,
    external_id: Option<String>,
    source_identity: Option<String>,
    tags: Vec<(String, String)>,
    transitive_tag_keys: Vec<String>,
}

impl Request {
    pub(super) fn parse(form: &Form) -> Result<Request, Fault> {
        let request = Request {
            role_arn: role_arn(form.get("RoleArn"))?,
            session_name: session_name(form.get("RoleSessionName"))?,
            duration_seconds: duration(form.get("DurationSeconds"))?,
            external_id: external_id(form.get("ExternalId"))?,
            source_identity: source_identity(form.get("SourceIdentity"))?,
            tags: tags(form.tags())?,
            transitive_tag_keys: form.transitive_tag_keys(),
        };
        if !request.transitive_tag_keys.iter().all(|key| request.tags.iter().any(|(tag, _)| tag == key)) {
            return Err(Fault::validation("Specified transitive tag key must be included in the requested tags."));
        }
        Ok(request)
    }

    /// Checks whether the role's trust policy and limits let this caller have the session.
    pub(super) fn authorize(&self, caller: &Identity, role: Option<&Role>) -> Result<(), Fault> {
        let role = role
            .filter(|role| role.trusts(caller))
            .filter(|role| role.external_id.is_none() || role.external_id == self.external_id)
            .ok_or_else(|| Fault::access_denied(&caller.arn, &self.role_arn))?;
        let changed = caller.source_identity.is_some() && self.source_identity.is_some() && caller.source_identity != self.source_identity;
        if changed || (self.source_identity_of_session(caller).is_some() && !role.may_set_source_identity) {
            return Err(Fault::no_source_identity(&caller.arn, &self.role_arn));
        }
        let inherits = |key: &String| caller.transitive_tags.iter().any(|(inherited, _)| inherited == key);
        if self.tags.iter().any(|(key, _)| inherits(key)) {
            return Err(Fault::new(
                400,
                "InvalidParameterValue",
                "One of the specified transitive tag keys can't be set because it conflicts with a transitive tag key from the calling \
                 session.",
            ));
        }
        let is_tagged = !self.tags.is_empty() || !caller.transitive_tags.is_empty();
        if is_tagged && !role.may_tag {
            return Err(Fault::no_tags(&caller.arn, &self.role_arn));
        }
        if caller.chained && self.duration_seconds > HOUR {
            return Err(Fault::validation(
                "The requested DurationSeconds exceeds the 1 hour session limit for roles assumed by role chaining",
            ));
        }
        if Duration::from_secs(self.duration_seconds.into()) > role.max_session {
            return Err(Fault::validation("The requested DurationSeconds exceeds the MaxSessionDuration set for this role."));
        }
        Ok(())
    }

    /// Returns the source identity of the session. The caller's own is kept through role chaining, and needs permission again
    /// at each step.
    pub(super) fn source_identity_of_session(&self, caller: &Identity) -> Option<String> {
        caller.source_identity.clone().or_else(|| self.source_identity.clone())
    }

    /// Returns the tags of the session, and those of them that are transitive. The caller's transitive ones are kept through role
    /// chaining.
    pub(super) fn tags_of_session(&self, caller: &Identity) -> (Tags, Tags) {
        let is_transitive = |tag: &&(String, String)| self.transitive_tag_keys.contains(&tag.0);
        let inherited = &caller.transitive_tags;
        let tags = self.tags.iter().chain(inherited).cloned().collect();
        (tags, self.tags.iter().filter(is_transitive).chain(inherited).cloned().collect())
    }
}

fn role_arn(value: Option<&str>) -> Result<String, Fault> {
    let arn = bounded(value, "roleArn", 20, 2048)?;
    if is_role_arn(arn) {
        return Ok(arn.to_owned());
    }
    Err(Fault::validation(format!("{arn} is invalid")))
}

fn session_name(value: Option<&str>) -> Result<String, Fault> {
    let name = bounded(value, "roleSessionName", 2, 64)?;
    matching(name, "roleSessionName", "+=,.@-", r"[\w+=,.@-]*")
}

fn source_identity(value: Option<&str>) -> Result<Option<String>, Fault> {
    let Some(value) = value else { return Ok(None) };
    let identity = bounded(Some(value), "sourceIdentity", 2, 64)?;
    matching(identity, "sourceIdentity", "+=,.@-", r"[\w+=,.@-]*").map(Some)
}

fn external_id(value: Option<&str>) -> Result<Option<String>, Fault> {
    let Some(value) = value else { return Ok(None) };
    let id = bounded(Some(value), "externalId", 2, 1224)?;
    matching(id, "externalId", "+=,.@:/-", r"[\w+=,.@:\/-]*").map(Some)
}

fn duration(value: Option<&str>) -> Result<u32, Fault> {
    let Some(value) = value else { return Ok(HOUR) };
    let seconds: i64 = value.parse().map_err(|_| Fault::new(400, "MalformedInput", "NULL"))?;
    let outside = |constraint: &str| Fault::constraint(Some(value), "durationSeconds", constraint);
    let seconds = u32::try_from(seconds.max(0)).unwrap_or(u32::MAX);
    match seconds {
        ..SHORTEST => Err(outside("Member must have value greater than or equal to 900")),
        SHORTEST..=LONGEST => Ok(seconds),
        _ => Err(outside("Member must have value less than or equal to 43200")),
    }
}

fn tags(tags: Vec<(String, String)>) -> Result<Vec<(String, String)>, Fault> {
    if tags.len() > 50 {
        let constraint = "Member must have length less than or equal to 50";
        return Err(Fault::constraint(Some("[...]"), "tags", constraint));
    }
    for (number, (key, value)) in tags.iter().enumerate() {
        let member = |field: &str| format!("tags.{}.member.{field}", number + 1);
        bounded(Some(key), &member("key"), 1, 128)?;
        bounded(Some(value), &member("value"), 0, 256)?;
    }
    Ok(tags)
}

/// Returns a required member of `shortest..=longest` characters.
fn bounded<'a>(value: Option<&'a str>, member: &str, shortest: usize, longest: usize) -> Result<&'a str, Fault> {
    let value = value.ok_or_else(|| Fault::constraint(None, member, "Member must not be null"))?;
    let length = value.chars().count();
    let bound = if length < shortest {
        format!("greater than or equal to {shortest}")
    } else if length > longest {
        format!("less than or equal to {longest}")
    } else {
        return Ok(value);
    };
    let constraint = format!("Member must have length {bound}");
    Err(Fault::constraint(Some(value), member, &constraint))
}

/// Checks that a value consists of ASCII word characters and `others`. The pattern is for the message.
fn matching(value: &str, member: &str, others: &str, pattern: &str) -> Result<String, Fault> {
    if value.chars().all(|c| is_word(c) || others.contains(c)) {
        return Ok(value.to_owned());
    }
    let constraint = format!("Member must satisfy regular expression pattern: {pattern}");
    Err(Fault::constraint(Some(value), member, &constraint))
}

fn is_word(character: char) -> bool {
    character.is_ascii_alphanumeric() || character == '_'
}

/// Returns whether this has the form `arn:PARTITION:iam::123456789012:role/optional/path/NAME`.
fn is_role_arn(arn: &str) -> bool {
    let parts: Vec<&str> = arn.splitn(6, ':').collect();
    let ["arn", partition, "iam", "", account, resource] = parts[..] else {
        return false;
    };
    let Some(path) = resource.strip_prefix("role/") else {
        return false;
    };
    let (path, name) = path.rsplit_once('/').unwrap_or(("", path));
    (partition == "aws" || partition.starts_with("aws-"))
        && account.len() == 12
        && account.chars().all(|digit| digit.is_ascii_digit())
        && path.chars().all(|c| c.is_ascii_graphic())
        && (1..=64).contains(&name.len())
        && name.chars().all(|c| is_word(c) || "+=,.@-".contains(c))
}
