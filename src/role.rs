//! The names that AWS knows a session by: parsed once, valid ever after.
//!
//! Every type here can only be made by its parser, so a value that exists is one that STS accepts in form. The patterns
//! are those of the IAM and STS API references: `roleNameType` and `pathType` of IAM, `roleSessionNameType` and
//! `externalIdType` of STS. All of them are checked over bytes, so that nothing outside ASCII gets through.

use std::fmt;
use std::str::FromStr;

/// Why a text is not the name that it should be. The text itself is not repeated: it comes from whoever may edit a pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ParseError {
    /// Not `arn:PARTITION:iam::ACCOUNT:role/...`.
    #[error("not a role ARN; expected the form arn:aws:iam::123456789012:role/NAME")]
    NotARoleArn,
    /// A partition that AWS does not have.
    #[error("unknown AWS partition; expected one of aws, aws-cn, aws-us-gov, aws-eusc, aws-iso, aws-iso-b, aws-iso-e, aws-iso-f")]
    UnknownPartition,
    /// The account is not twelve digits.
    #[error("the account of a role ARN has exactly 12 digits")]
    Account,
    /// The path has more than 512 characters, some outside `!` to `~`, or an empty segment.
    #[error("the path of a role has at most 512 characters, printable ASCII ones only, and no empty segment")]
    Path,
    /// `[A-Za-z0-9_+=,.@-]{1,64}`.
    #[error("a role name has 1 to 64 characters of A-Z a-z 0-9 _ + = , . @ -")]
    RoleName,
    /// `[A-Za-z0-9_+=,.@-]{2,64}`.
    #[error("a session name has 2 to 64 characters of A-Z a-z 0-9 _ + = , . @ -")]
    SessionName,
    /// `[A-Za-z0-9_+=,.@:/-]{2,1224}`.
    #[error("an external id has 2 to 1224 characters of A-Z a-z 0-9 _ + = , . @ : / -")]
    ExternalId,
    /// An ARN has at most 2048 characters.
    #[error("an ARN has at most 2048 characters")]
    TooLong,
    /// Not `arn:PARTITION:SERVICE::ACCOUNT:...`, as GetCallerIdentity says who asks.
    #[error("not the ARN of an identity")]
    NotAnIdentity,
}

/// The longest ARN that AWS takes, in bytes (`arnType` of the STS API).
pub const MAX_ARN_LENGTH: usize = 2048;

/// The longest path of a role, in bytes, with its first slash (`pathType` of the IAM API).
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
    /// Every partition, with its name in ARNs (botocore's partitions.json).
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

    /// The partition's name in an ARN.
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
    /// The whole ARN.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// The partition that the role is in.
    pub fn partition(&self) -> Partition {
        self.partition
    }

    /// The bare name, without path: what the metadata service lists.
    pub fn name(&self) -> &str {
        &self.text[self.name_at..]
    }

    /// The twelve digits of the account.
    pub fn account(&self) -> &str {
        self.text.split(':').nth(4).unwrap_or_default()
    }

    /// Whether it is the same role as `other`, of which the path is not known. The names of roles are unique in an account,
    /// whatever their paths and their case.
    pub fn has_name_of(&self, other: &RoleArn) -> bool {
        let same_name = self.name().eq_ignore_ascii_case(other.name());
        same_name && self.partition == other.partition && self.account() == other.account()
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

/// What a short role name is completed with: `arn:PARTITION:iam::ACCOUNT:role/[PATH/]`, always ending in `/`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BaseArn(Box<str>);

impl BaseArn {
    /// The base for the roles of one account, without a path.
    pub fn of_account(partition: Partition, account: &str) -> Result<Self, ParseError> {
        format!("arn:{}:iam::{account}:role/", partition.name()).parse()
    }

    /// The partition of the roles under it.
    pub fn partition(&self) -> Partition {
        // Its parser saw that there is one.
        self.0.split(':').nth(1).and_then(|name| name.parse().ok()).unwrap_or(Partition::Aws)
    }

    /// The twelve digits of the account of the roles under it.
    pub fn account(&self) -> &str {
        self.0.split(':').nth(4).unwrap_or_default()
    }

    /// The prefix, with its closing slash.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The role that `name` (which may have a path, and one leading slash) means under this base.
    pub fn complete(&self, name: &str) -> Result<RoleArn, ParseError> {
        format!("{}{}", self.0, name.strip_prefix('/').unwrap_or(name)).parse()
    }
}

impl FromStr for BaseArn {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        let base = if text.ends_with('/') { text.to_owned() } else { format!("{text}/") };
        // A base is good when a role can be made of it.
        format!("{base}x").parse::<RoleArn>()?;
        Ok(Self(base.into()))
    }
}

/// Who the daemon itself is, as GetCallerIdentity says: of a session, `arn:PARTITION:sts::ACCOUNT:assumed-role/ROLE/SESSION`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CallerIdentity {
    arn: Box<str>,
    partition: Partition,
    account: Box<str>,
    role_name: Option<Box<str>>,
}

impl CallerIdentity {
    /// The whole ARN.
    pub fn as_str(&self) -> &str {
        &self.arn
    }

    /// The partition that the daemon is in.
    pub fn partition(&self) -> Partition {
        self.partition
    }

    /// Whether this identity belongs to the account. Accounts of two partitions may have the same digits.
    pub fn is_of_account(&self, partition: Partition, account: &str) -> bool {
        self.partition == partition && *self.account == *account
    }

    /// Whether this identity is a session of the role. A session's ARN has the role's name and not its path: see
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

/// A role session's name: what CloudTrail shows beside the role. `[A-Za-z0-9_+=,.@-]{2,64}`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct SessionName(Box<str>);

impl SessionName {
    /// The longest session name, in bytes.
    pub const MAX_LENGTH: usize = 64;

    /// The session name of a text that need not be one: other characters become `-`, of a longer text the end is kept
    /// (that is where the names of pods differ), and a shorter one is lengthened.
    pub fn derived_from(text: &str) -> Self {
        Self(fitted(text))
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// Makes a session name or a source identity of any text: see [`SessionName::derived_from`].
fn fitted(text: &str) -> Box<str> {
    let mut name: String = text.chars().map(|c| if is_name_char(c) { c } else { '-' }).collect();
    if name.len() > SessionName::MAX_LENGTH {
        name.drain(..name.len() - SessionName::MAX_LENGTH);
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
    /// Makes a source identity of any text, in the way of [`SessionName::derived_from`]: the two have the same form.
    pub fn derived_from(text: &str) -> Self {
        Self(fitted(text))
    }

    /// The source identity.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// The external id that a role's trust policy may ask for. `[A-Za-z0-9_+=,.@:/-]{2,1224}`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ExternalId(Box<str>);

impl ExternalId {
    /// The id.
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

/// `[\w+=,.@-]` as IAM means it: ASCII only.
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
