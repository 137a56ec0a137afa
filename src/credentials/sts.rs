//! STS through the AWS SDK: the only importer of `aws_sdk_sts`.
//!
//! The daemon's own identity is the SDK's default chain, with the metadata service at `--metadata-addr` as its last link.
//! The endpoint is regional: the SDK's default, of the region that the environment, the profile or the metadata service
//! names; the SDKs' variables for FIPS, dual-stack and other endpoints count.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::Duration;

use aws_config::default_provider::credentials::DefaultCredentialsChain;
use aws_config::environment::EnvironmentVariableRegionProvider;
use aws_config::imds;
use aws_config::imds::client::error::ImdsError;
use aws_config::imds::region::ImdsRegionProvider;
use aws_config::meta::region::RegionProviderChain;
use aws_config::profile::ProfileFileRegionProvider;
use aws_config::provider_config::ProviderConfig;
use aws_config::retry::RetryConfig;
use aws_config::sts::AssumeRoleProvider;
use aws_config::timeout::TimeoutConfig;
use aws_config::{BehaviorVersion, SdkConfig};
use aws_sdk_sts::Client;
use aws_sdk_sts::config::SharedCredentialsProvider;
use aws_sdk_sts::types::Tag;
use aws_smithy_http_client::tls::{Provider, rustls_provider::CryptoMode};
use jiff::Timestamp;
use secrecy::SecretString;
use tokio::sync::Notify;
use tokio::time::Instant;
use tracing::{error, warn};

use super::duration::Durations;
use super::identity::Inquiry;
use super::{AssumeRole, AssumeRoleError, CHECK_ENDPOINT, Credentials, StsOfNode};
use crate::advice::{Advise, chain};
use crate::clock::Clock;
use crate::log_once::Condition;
use crate::metrics::Metrics;
use crate::policy::node::{KnownNode, NodeIdentity};
use crate::policy::{self, RoleRequest};
use crate::role::{BaseArn, CallerIdentity, RoleArn, SessionName};
use crate::text::bounded;

mod observer;
mod own;
mod translate;
mod whose;

use observer::{Date, Endpoint};
use own::Own;

/// Time to connect to STS.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// Time of one attempt.
const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(3);
/// Attempts to learn who the daemon is, the first included.
const ATTEMPTS: u32 = 3;
/// The longest question to the metadata service that nothing waits for.
const METADATA_TIMEOUT: Duration = Duration::from_secs(3);
/// The directory whose one member is the role of the instance.
const INSTANCE_ROLE: &str = "/latest/meta-data/iam/security-credentials/";

/// AWS as the daemon itself sees it.
#[derive(Clone, Debug)]
pub(crate) struct Aws {
    /// By the daemon's own credentials.
    config: SdkConfig,
    /// By those of the role between, where there is one: it assumes the pods'.
    intermediate: Option<(RoleArn, SdkConfig)>,
    metadata: imds::Client,
}

/// Why the daemon does not know what it needs of AWS.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AwsError {
    /// Neither the environment nor the metadata service names a region.
    #[error("no AWS region: AWS_REGION is not set, and the metadata service at {0} does not answer")]
    NoRegion(String),
    /// `--metadata-addr` cannot be used.
    #[error("--metadata-addr: {0}")]
    MetadataAddress(String),
    /// The metadata service did not give a value that the daemon needs.
    #[error("cannot learn {what} from the metadata service: {reason}")]
    Discovery {
        /// What was asked for.
        what: &'static str,
        /// What happened.
        reason: String,
        /// The flag that makes it unnecessary.
        instead: &'static str,
    },
    /// The metadata service did not name the role of the instance. Nothing waits for it.
    #[error("the role of this instance is not known, so pods that name it are not refused for that reason: {reason}")]
    InstanceRole {
        /// What happened.
        reason: String,
    },
}

impl Advise for AwsError {
    fn advice(&self) -> Option<Cow<'static, str>> {
        match self {
            Self::NoRegion(_) => Some("set AWS_REGION, or let the daemon reach the metadata service".into()),
            Self::Discovery { instead, .. } => {
                Some(format!("give {instead}, or let the daemon reach the metadata service (HttpPutResponseHopLimit, HttpTokens)").into())
            }
            Self::MetadataAddress(_) | Self::InstanceRole { .. } => None,
        }
    }
}

impl Aws {
    /// Loads region, endpoints and the credentials chain. `metadata_addr` is `host` or `host:port`,
    /// `timeout` the time of all attempts together, `between` the role that pods' roles are assumed by, if not by the daemon's
    /// own, and its session's name.
    pub(crate) async fn load(
        metadata_addr: &str,
        timeout: Duration,
        intermediate: Option<(&RoleArn, &SessionName)>,
    ) -> Result<Self, AwsError> {
        let http = aws_smithy_http_client::Builder::new().tls_provider(Provider::Rustls(CryptoMode::Ring)).build_https();
        let provider = ProviderConfig::default().with_http_client(http.clone());
        let metadata = imds::Client::builder()
            .configure(&provider)
            .endpoint(format!("http://{metadata_addr}"))
            .map_err(|error| AwsError::MetadataAddress(error.to_string()))?
            .build();
        let region = RegionProviderChain::first_try(EnvironmentVariableRegionProvider::new())
            .or_else(ProfileFileRegionProvider::builder().configure(&provider).build())
            .or_else(ImdsRegionProvider::builder().configure(&provider).imds_client(metadata.clone()).build())
            .region()
            .await
            .ok_or_else(|| AwsError::NoRegion(metadata_addr.to_owned()))?;
        let credentials =
            DefaultCredentialsChain::builder().configure(provider).imds_client(metadata.clone()).region(region.clone()).build().await;
        let config = aws_config::defaults(BehaviorVersion::latest())
            .http_client(http)
            .region(region)
            .credentials_provider(credentials)
            .retry_config(RetryConfig::standard().with_max_attempts(ATTEMPTS))
            .timeout_config(
                TimeoutConfig::builder()
                    .connect_timeout(CONNECT_TIMEOUT.min(timeout))
                    .operation_attempt_timeout(ATTEMPT_TIMEOUT.min(timeout))
                    .operation_timeout(timeout)
                    .build(),
            )
            .load()
            .await;
        let intermediate = match intermediate {
            None => None,
            Some((role, session)) => {
                // Renewed by the SDK before it ends, as the daemon's own. It gets no source identity: all pods share it, and STS
                // changes none along a chain of roles. Each pod's own is set at the next step.
                let provider = AssumeRoleProvider::builder(role.as_str()).session_name(session.as_str()).configure(&config).build().await;
                let config = config.clone().into_builder().credentials_provider(SharedCredentialsProvider::new(provider)).build();
                Some((role.clone(), config))
            }
        };
        Ok(Self { config, intermediate, metadata })
    }

    /// The region in use.
    pub(crate) fn region(&self) -> &str {
        self.config.region().map_or("", |region| region.as_ref())
    }

    /// STS. Who the daemon is to it is told to `node`, once that is known.
    pub(crate) fn sts(&self, clock: Clock, node: NodeIdentity, metrics: Metrics) -> Sts {
        let endpoint = Endpoint::default();
        let own = |config: &SdkConfig, intermediate: Option<&RoleArn>| {
            let config = aws_sdk_sts::config::Builder::from(config).interceptor(endpoint.clone()).build();
            Arc::new(Own::new(Client::from_conf(config), intermediate.cloned(), node.clone(), metrics.clone()))
        };
        let base = own(&self.config, None);
        let intermediate = self.intermediate.as_ref().map(|(role, config)| own(config, Some(role)));
        // The gate and its pauses are what asks again: so that each request passes the gate, and is counted.
        let caller = Arc::new(intermediate.as_ref().unwrap_or(&base).without_retries());
        let identity = Arc::new(Inquiry::new(base, intermediate, node.clone()));
        Sts { caller, clock, identity, doubt: Arc::default(), durations: Arc::default(), clock_skew: Arc::default() }
    }

    /// `arn:PARTITION:iam::ACCOUNT:role/` of the node, from its instance profile.
    pub(crate) async fn discover_base(&self) -> Result<BaseArn, AwsError> {
        let failed = |reason: String| AwsError::Discovery { what: "the base ARN", reason, instead: "--base-role-arn" };
        let info = self.metadata.get("/latest/meta-data/iam/info").await.map_err(|error| failed(reason(&error)))?;
        let info: serde_json::Value = serde_json::from_str(info.as_ref()).map_err(|_| failed("iam/info is not JSON".to_owned()))?;
        let arn = info.get("InstanceProfileArn").and_then(serde_json::Value::as_str);
        // arn:PARTITION:iam::ACCOUNT:instance-profile/NAME
        let mut fields = arn.unwrap_or_default().split(':').skip(1);
        let (partition, account) = (fields.next().unwrap_or_default(), fields.nth(2).unwrap_or_default());
        let partition = partition.parse().map_err(|_| failed("iam/info has no instance profile".to_owned()))?;
        BaseArn::of_account(partition, account).map_err(|error| failed(error.to_string()))
    }

    /// The node's own role, completed with `base`. `instead` is the flag that makes it unnecessary.
    pub(crate) async fn discover_node_role(&self, base: &BaseArn, instead: &'static str) -> Result<RoleArn, AwsError> {
        let failed = |reason: String| AwsError::Discovery { what: "the node's role", reason, instead };
        let name = self.metadata.get(INSTANCE_ROLE).await.map_err(|error| failed(reason(&error)))?;
        base.complete(name.as_ref().trim_end()).map_err(|error| failed(error.to_string()))
    }

    /// The role of this instance, whoever the daemon is; `None` where it has none. Answers in a few seconds.
    pub(crate) async fn instance_role(&self) -> Result<Option<RoleArn>, AwsError> {
        let failed = |reason: String| AwsError::InstanceRole { reason };
        let ask = async {
            match self.metadata.get(INSTANCE_ROLE).await {
                Err(ImdsError::ErrorResponse(answer)) if answer.response().status().as_u16() == 404 => Ok(None),
                Err(error) => Err(failed(reason(&error))),
                Ok(name) => {
                    let base = self.discover_base().await.map_err(|error| failed(error.to_string()))?;
                    base.complete(name.as_ref().trim_end()).map(Some).map_err(|error| failed(error.to_string()))
                }
            }
        };
        tokio::time::timeout(METADATA_TIMEOUT, ask).await.unwrap_or_else(|_| Err(failed("no answer in time".to_owned())))
    }
}

/// STS as the data path sees it: one question.
#[derive(Clone, Debug)]
pub(crate) struct Sts {
    caller: Arc<Own>,
    clock: Clock,
    identity: Arc<Inquiry<Arc<Own>>>,
    /// That the daemon's own credentials did not serve.
    doubt: Arc<Notify>,
    durations: Arc<Durations>,
    /// That the clocks are apart is said once.
    clock_skew: Arc<Condition>,
}

impl Sts {
    /// Returns an STS client that does not repeat a request with new credentials, for requests that no pod waits for.
    pub(crate) fn asked_once(&self) -> Self {
        Self { caller: Arc::new(self.caller.asked_once()), ..self.clone() }
    }

    /// Asks STS who the daemon is, and tells it to whoever decides; with the time after which to ask again. What is known
    /// stays when it fails.
    pub(crate) async fn renew_identity(&self) -> (Result<Arc<KnownNode>, AssumeRoleError>, Duration) {
        self.identity.renew().await
    }

    /// Returns once a role could not be assumed for the sake of the daemon's own credentials, since this returned last. For one
    /// listener.
    pub(crate) async fn doubted(&self) {
        self.doubt.notified().await;
    }
}

impl AssumeRole for Sts {
    async fn assume_role(&self, request: &RoleRequest) -> Result<Credentials, AssumeRoleError> {
        // What was decided before it was known is decided again with it, before a pod gets anything.
        self.identity.known().await.map_err(|error| AssumeRoleError::IdentityUnknown(Box::new(error)))?;
        let date = Date::default();
        let (sent, began) = (self.clock.now(), Instant::now());
        let ask = |duration| self.ask(request, duration, date.clone());
        let (given, duration) = self.durations.ask(request.role(), request.duration(), ask).await?;
        let expires_at = Timestamp::new(given.expiration.secs(), 0).map_err(|_| incomplete())?;
        let texts = [&given.access_key_id, &given.secret_access_key, &given.session_token];
        // By this node's clock, which pods share: what they take the time from that is left.
        let now = self.clock.now();
        let ahead = date.ahead_of(now);
        if !ahead.is_zero() && self.clock_skew.begins() {
            warn!(
                event = "clock-skew",
                seconds = ahead.as_secs(),
                "the clocks of STS and this node differ (seconds is negative if STS is behind); adjusting expiration times to this node's \
                 clock; check the node's time synchronization"
            );
        }
        let expires_at = expires_at.checked_sub(ahead).map_err(|_| incomplete())?;
        let asked = AssumeRoleCall { sent, duration, took: began.elapsed() };
        let expires_at = asked.at_the_latest(now).ok_or_else(incomplete)?.min(expires_at);
        // The SDK takes an answer that was cut short for a whole one: the fields are then empty, the time is 1970.
        if expires_at <= now {
            return Err(AssumeRoleError::Failed {
                message: format!("its credentials ended at {expires_at} already; check the node's clock"),
            });
        }
        if texts.iter().any(|text| text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_graphic())) {
            return Err(incomplete());
        }
        let (secret, token) = (SecretString::from(given.secret_access_key), SecretString::from(given.session_token));
        Ok(Credentials::new(given.access_key_id, secret, token, now, expires_at))
    }
}

impl Sts {
    /// One question to STS, and when it was there.
    async fn ask(&self, request: &RoleRequest, duration: Duration, date: Date) -> Result<aws_sdk_sts::types::Credentials, AssumeRoleError> {
        let seconds = i32::try_from(duration.as_secs()).unwrap_or(3600);
        let tag = |tag: &policy::session::RequestTag| Tag::builder().key(tag.key()).value(tag.value()).build();
        let tags: Result<Vec<Tag>, _> = request.tags().iter().map(tag).collect();
        let tags = tags.map_err(|_| AssumeRoleError::Invalid { message: "its tags could not be made".to_owned() })?;
        let question = |client: Client| {
            let question = client
                .assume_role()
                .role_arn(request.role().as_str())
                .role_session_name(request.session_name().as_str())
                .set_source_identity(request.source_identity().map(|identity| identity.as_str().to_owned()))
                .set_external_id(request.external_id().map(|id| id.as_str().to_owned()))
                // None of them is transitive.
                .set_tags((!tags.is_empty()).then(|| tags.clone()))
                .duration_seconds(seconds);
            question.customize().interceptor(date.clone()).send()
        };
        let answer = self.caller.ask(question).await;
        if let Err(AssumeRoleError::OwnIdentity { .. }) = &answer {
            self.doubt.notify_one();
        }
        let answer = answer?;
        whose::check(request, answer.assumed_role_user(), answer.source_identity()).inspect_err(|error| {
            error!(
                event = "sts-answered-for-another-role",
                role = request.role().as_str(),
                session = request.session_name().as_str(),
                advice = CHECK_ENDPOINT,
                %error,
                "STS returned credentials of another role or session; discarding them"
            );
        })?;
        answer.credentials.ok_or_else(incomplete)
    }
}

/// One question to STS.
struct AssumeRoleCall {
    /// When, by the wall clock.
    sent: Timestamp,
    /// The session's duration.
    duration: Duration,
    /// The time that passed until the answer, by the clock that nobody sets.
    took: Duration,
}

impl AssumeRoleCall {
    /// The latest end of the session that came, at the time of the answer. STS gave it after it was asked, so that it ends no
    /// later than its duration after that, by whichever clock: the date of the answer may be wrong, and the clock may have been
    /// set meanwhile, or the machine have slept.
    fn at_the_latest(&self, now: Timestamp) -> Option<Timestamp> {
        let by_wall = self.sent.checked_add(self.duration).ok()?;
        let by_time_passed = now.checked_add(self.duration.saturating_sub(self.took)).ok()?;
        Some(by_wall.min(by_time_passed))
    }
}

fn incomplete() -> AssumeRoleError {
    AssumeRoleError::Failed { message: "its answer has no whole credentials".to_owned() }
}

impl StsOfNode for Sts {
    async fn own_identity(&self) -> Result<String, AssumeRoleError> {
        self.identity.known().await?;
        let known = self.identity.node().known();
        Ok(known.caller().map(CallerIdentity::as_str).unwrap_or_default().to_owned())
    }
}

/// Of an answer only its status is said: what else is in it is not for the log.
fn reason(error: &ImdsError) -> String {
    match error {
        ImdsError::ErrorResponse(answer) => format!("it answers {}", answer.response().status().as_u16()),
        error => bounded(&chain(error)),
    }
}

#[cfg(test)]
pub(in crate::credentials) mod tests;
