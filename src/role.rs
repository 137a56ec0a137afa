//! The names that identify a role session to AWS. They are parsed once, and always valid afterwards.
//!
//! Values of these types are created only by their parsers and constructors, so STS accepts the form of every value. The
//! patterns are those of the IAM and STS API references: `roleNameType` and `pathType` of IAM, `roleSessionNameType` and
//! `externalIdType` of STS. All of them allow only ASCII characters.

use std::fmt;
use std::str::FromStr;

/// The reason why a text is not a valid name. The text itself is not repeated, because it comes from whoever may edit a pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ParseError {
    /// The text is not of the form `arn:PARTITION:iam::ACCOUNT:role/...`.
    #[error("not a role ARN; expected the form arn:aws:iam::123456789012:role/NAME")]
    NotARoleArn,
    /// AWS has no such partition.
    #[error("unknown AWS partition; expected one of aws, aws-cn, aws-us-gov, aws-eusc, aws-iso, aws-iso-b, aws-iso-e, aws-iso-f")]
    UnknownPartition,
    /// The account does not have exactly twelve digits.
    #[error("the account of a role ARN has exactly 12 digits")]
    Account,
    /// The path has more than 512 characters, a character outside `!` to `~`, or an empty segment.
    #[error("the path of a role has at most 512 characters, printable ASCII ones only, and no empty segment")]
    Path,
    /// The role name does not match `[A-Za-z0-9_+=,.@-]{1,64}`.
    #[error("a role name has 1 to 64 characters of A-Z a-z 0-9 _ + = , . @ -")]
    RoleName,
    /// The session name does not match `[A-Za-z0-9_+=,.@-]{2,64}`.
    #[error("a session name has 2 to 64 characters of A-Z a-z 0-9 _ + = , . @ -")]
    SessionName,
    /// The external ID does not match `[A-Za-z0-9_+=,.@:/-]{2,1224}`.
    #[error("an external ID has 2 to 1224 characters of A-Z a-z 0-9 _ + = , . @ : / -")]
    ExternalId,
    /// The ARN has more than 2048 characters.
    #[error("an ARN has at most 2048 characters")]
    TooLong,
    /// The text is not of the form `arn:PARTITION:SERVICE::ACCOUNT:...`, as returned by GetCallerIdentity.
    #[error("not the ARN of an AWS identity (a user, a role or a session)")]
    NotAnIdentity,
}

/// The longest ARN that AWS accepts, in bytes (`arnType` of the STS API).
pub const MAX_ARN_LENGTH: usize = 2048;

/// The longest path of a role, in bytes, including its leading slash (`pathType` of the IAM API).
const MAX_PATH_LENGTH: usize = 512;

/// A part of AWS with its own accounts, endpoints and ARNs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Partition {
    /// The commercial regions.
    Aws,
    /// China.
    AwsCn,
    /// GovCloud (US).
    AwsUsGov,
    /// The European Sovereign Cloud.
    AwsEusc,
    /// The isolated partitions.
    AwsIso,
    /// The isolated partition B.
    AwsIsoB,
    /// The isolated partition E.
    AwsIsoE,
    /// The isolated partition F.
    AwsIsoF,
}

impl Partition {
    /// All partitions with their names in ARNs (botocore's partitions.json).
    const NAMES: [(Partition, &'static str); 8] = [
        (Partition::Aws, "aws"),
        (Partition::AwsCn, "aws-cn"),
        (Partition::AwsUsGov, "aws-us-gov"),
        (Partition::AwsEusc, "aws-eusc"),
        (Partition::AwsIso, "aws-iso"),
        (Partition::AwsIsoB, "aws-iso-b"),
        (Partition::AwsIsoE, "aws-iso-e"),
        (Partition::AwsIsoF, "aws-iso-f"),
    ];

    /// Returns the partition's name in ARNs.
    pub fn name(self) -> &'static str {
        Self::NAMES.iter().find(|(partition, _)| *partition == self).map_or("aws", |(_, name)| name)
    }
}

impl FromStr for Partition {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        let found = Self::NAMES.iter().find(|(_, name)| *name == text);
        found.map(|(partition, _)| *partition).ok_or(ParseError::UnknownPartition)
    }
}

/// The ARN of an IAM role: `arn:PARTITION:iam::ACCOUNT:role/[PATH/]NAME`.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct RoleArn {
    text: Box<str>,
    partition: Partition,
    name_at: usize,
}

impl RoleArn {
    /// Returns the whole ARN.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// Returns the role's partition.
    pub fn partition(&self) -> Partition {
        self.partition
    }

    /// Returns the bare name, without the path, as the metadata service lists it.
    pub fn name(&self) -> &str {
        &self.text[self.name_at..]
    }

    /// Returns the path and the name, without a slash in front.
    pub fn path_and_name(&self) -> &str {
        self.text.split_once(":role/").map_or(self.name(), |(_, rest)| rest)
    }

    /// Returns the twelve digits of the account.
    pub fn account(&self) -> &str {
        self.text.split(':').nth(4).unwrap_or_default()
    }

    /// Whether this is the same role as `other`, whose path is not known. Role names are unique in an account, regardless of
    /// path and case.
    pub fn has_name_of(&self, other: &RoleArn) -> bool {
        let same_name = self.name().eq_ignore_ascii_case(other.name());
        same_name && self.partition == other.partition && self.account() == other.account()
    }

    /// Returns the identity that STS would name for a session of this role.
    pub fn session(&self, name: &str) -> CallerIdentity {
        let (partition, account, role_name) = (self.partition, self.account(), self.name());
        CallerIdentity {
            arn: format!("arn:{}:sts::{account}:assumed-role/{role_name}/{name}", partition.name()).into(),
            partition,
            account: account.into(),
            role_name: Some(role_name.into()),
        }
    }
}

impl FromStr for RoleArn {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        if text.len() > MAX_ARN_LENGTH {
            return Err(ParseError::TooLong);
        }
        let rest = text.strip_prefix("arn:").ok_or(ParseError::NotARoleArn)?;
        let (partition, rest) = rest.split_once(':').ok_or(ParseError::NotARoleArn)?;
        let rest = rest.strip_prefix("iam::").ok_or(ParseError::NotARoleArn)?;
        let (account, resource) = rest.split_once(':').ok_or(ParseError::NotARoleArn)?;
        let path = resource.strip_prefix("role/").ok_or(ParseError::NotARoleArn)?;
        let partition = partition.parse()?;
        check_account(account)?;
        let mut segments = path.split('/');
        let name = segments.next_back().unwrap_or_default();
        if path.len() - name.len() > MAX_PATH_LENGTH - 1
            || !segments.all(|segment| !segment.is_empty() && segment.bytes().all(|byte| byte.is_ascii_graphic()))
        {
            return Err(ParseError::Path);
        }
        if !is_name(name, 1..=64) {
            return Err(ParseError::RoleName);
        }
        Ok(Self { text: text.into(), partition, name_at: text.len() - name.len() })
    }
}

impl fmt::Display for RoleArn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl fmt::Debug for RoleArn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RoleArn({})", self.text)
    }
}

/// The prefix that completes short role names: `arn:PARTITION:iam::ACCOUNT:role/[PATH/]`. It always ends in `/`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BaseArn(Box<str>);

impl BaseArn {
    /// Returns the base of an account's roles, without a path.
    pub fn of_account(partition: Partition, account: &str) -> Result<Self, ParseError> {
        format!("arn:{}:iam::{account}:role/", partition.name()).parse()
    }

    /// Returns the partition of the roles under this base.
    pub fn partition(&self) -> Partition {
        // The parser has checked the partition, so the fallback is never used.
        self.0.split(':').nth(1).and_then(|name| name.parse().ok()).unwrap_or(Partition::Aws)
    }

    /// Returns the twelve digits of the account of the roles under this base.
    pub fn account(&self) -> &str {
        self.0.split(':').nth(4).unwrap_or_default()
    }

    /// Returns the prefix, with its trailing slash.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Completes `name`, which may have a path and one leading slash, to a role ARN under this base.
    pub fn complete(&self, name: &str) -> Result<RoleArn, ParseError> {
        format!("{}{}", self.0, name.strip_prefix('/').unwrap_or(name)).parse()
    }
}

impl FromStr for BaseArn {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        let base = if text.ends_with('/') { text.to_owned() } else { format!("{text}/") };
        // A base is valid if it can be completed to a role ARN.
        format!("{base}x").parse::<RoleArn>()?;
        Ok(Self(base.into()))
    }
}

/// The daemon's own identity as returned by GetCallerIdentity. For a role session, it has the form
/// `arn:PARTITION:sts::ACCOUNT:assumed-role/ROLE/SESSION`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CallerIdentity {
    arn: Box<str>,
    partition: Partition,
    account: Box<str>,
    role_name: Option<Box<str>>,
}

impl CallerIdentity {
    /// Returns the whole ARN.
    pub fn as_str(&self) -> &str {
        &self.arn
    }

    /// Returns the partition of the identity.
    pub fn partition(&self) -> Partition {
        self.partition
    }

    /// Whether this identity belongs to the account. Accounts of two partitions may have the same digits.
    pub fn is_of_account(&self, partition: Partition, account: &str) -> bool {
        self.partition == partition && *self.account == *account
    }

    /// Whether this is a session that EC2 made for an instance: such sessions are named after the instance (EC2 user guide, "Retrieve
    /// security credentials from instance metadata").
    pub fn is_of_instance(&self) -> bool {
        let session = self.role_name.as_ref().and_then(|_| self.arn.rsplit('/').next());
        let id = session.and_then(|session| session.strip_prefix("i-")).unwrap_or_default();
        matches!(id.len(), 8 | 17) && id.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
    }

    /// Whether both identities belong to one account.
    pub fn is_of_same_account(&self, other: &Self) -> bool {
        self.is_of_account(other.partition, &other.account)
    }

    /// Whether this identity is a session of the role. A session's ARN has the role's name but not its path: see
    /// [`RoleArn::has_name_of`].
    pub fn is_session_of(&self, role: &RoleArn) -> bool {
        let same_name = self.role_name.as_deref().is_some_and(|name| name.eq_ignore_ascii_case(role.name()));
        same_name && self.is_of_account(role.partition(), role.account())
    }
}

impl FromStr for CallerIdentity {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        let mut fields = text.splitn(6, ':');
        let mut field = || fields.next().ok_or(ParseError::NotAnIdentity);
        let (prefix, partition, service, region, account, resource) = (field()?, field()?, field()?, field()?, field()?, field()?);
        if text.len() > MAX_ARN_LENGTH || prefix != "arn" || !matches!(service, "sts" | "iam") || !region.is_empty() {
            return Err(ParseError::NotAnIdentity);
        }
        check_account(account)?;
        let role_name = match resource.strip_prefix("assumed-role/") {
            Some(session) => {
                let (name, _) = session.split_once('/').filter(|(name, _)| is_name(name, 1..=64)).ok_or(ParseError::NotAnIdentity)?;
                Some(name.into())
            }
            None => None,
        };
        Ok(Self { arn: text.into(), partition: partition.parse()?, account: account.into(), role_name })
    }
}

/// The name of a role session, which CloudTrail shows beside the role: `[A-Za-z0-9_+=,.@-]{2,64}`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct SessionName(Box<str>);

impl SessionName {
    /// The longest session name, in bytes.
    pub const MAX_LENGTH: usize = 64;

    /// Derives a session name from any text. Invalid characters become `-`. A text that is too long keeps its end, where the
    /// names of pods differ. A text that is too short gets the prefix `pod-`.
    pub fn derived_from(text: &str) -> Self {
        Self(fitted(text, Keep::End))
    }

    /// Makes a session name of what somebody chose as one, as kiam does: like [`SessionName::derived_from`], but the end of a longer
    /// text is cut.
    pub fn chosen_as(text: &str) -> Self {
        Self(fitted(text, Keep::Beginning))
    }

    /// Returns the name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// Which part of a text that is too long is kept.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Keep {
    Beginning,
    End,
}

/// Derives a session name or a source identity from any text: see [`SessionName::derived_from`].
fn fitted(text: &str, keep: Keep) -> Box<str> {
    let mut name: String = text.chars().map(|c| if is_name_char(c) { c } else { '-' }).collect();
    match name.len().saturating_sub(SessionName::MAX_LENGTH) {
        0 => {}
        excess if keep == Keep::End => drop(name.drain(..excess)),
        _ => name.truncate(SessionName::MAX_LENGTH),
    }
    if name.len() < 2 {
        name.insert_str(0, "pod-");
    }
    name.into()
}

impl FromStr for SessionName {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        if is_name(text, 2..=Self::MAX_LENGTH) { Ok(Self(text.into())) } else { Err(ParseError::SessionName) }
    }
}

/// A session's source identity, which stays with it through role chaining: `[A-Za-z0-9_+=,.@-]{2,64}` (`sourceIdentityType` of
/// the STS API). The reserved prefix `aws:` cannot occur, because a source identity has no colon.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct SourceIdentity(Box<str>);

impl SourceIdentity {
    /// Derives a source identity from any text, like [`SessionName::derived_from`]: both have the same form.
    pub fn derived_from(text: &str) -> Self {
        Self(fitted(text, Keep::End))
    }

    /// Returns the source identity.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// The external ID that a role's trust policy may require: `[A-Za-z0-9_+=,.@:/-]{2,1224}`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ExternalId(Box<str>);

impl ExternalId {
    /// Returns the external ID.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for ExternalId {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        let allowed = |c: char| is_name_char(c) || matches!(c, ':' | '/');
        let good = (2..=1224).contains(&text.len()) && text.chars().all(allowed);
        if good { Ok(Self(text.into())) } else { Err(ParseError::ExternalId) }
    }
}

fn check_account(account: &str) -> Result<(), ParseError> {
    let good = account.len() == 12 && account.bytes().all(|byte| byte.is_ascii_digit());
    if good { Ok(()) } else { Err(ParseError::Account) }
}

fn is_name(text: &str, length: std::ops::RangeInclusive<usize>) -> bool {
    length.contains(&text.len()) && text.chars().all(is_name_char)
}

/// Whether a character matches `[\w+=,.@-]` as IAM defines it: ASCII only.
fn is_name_char(c: char) -> bool {
    c.is_ascii_alphanumeric() || matches!(c, '_' | '+' | '=' | ',' | '.' | '@' | '-')
}

macro_rules! serialized_as_text {
    ($($name:ty),*) => {
        $(impl serde::Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(self.as_str())
            }
        })*
    };
}

serialized_as_text!(RoleArn, SessionName, SourceIdentity, ExternalId);

#[cfg(test)]
mod tests;
