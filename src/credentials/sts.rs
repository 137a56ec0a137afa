//! Requests to STS through the AWS SDK. This is the only module that imports `aws_sdk_sts`.
//!
//! The daemon's own identity comes from the SDK's default chain, whose last provider is the metadata service at
//! `--metadata-addr`. The endpoint is regional: the SDK's default for the region from the environment, the profile or the
//! metadata service. The SDK's variables for FIPS, dual-stack and custom endpoints apply.

use std::borrow::Cow;
use std::path::PathBuf;
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
use aws_sdk_sts::config::{SharedCredentialsProvider, SharedHttpClient};
use aws_sdk_sts::types::Tag;
use aws_smithy_http_client::Connector;
use aws_smithy_http_client::proxy::ProxyConfig;
use aws_smithy_http_client::tls::{Provider, TlsContext, TrustStore, rustls_provider::CryptoMode};
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

mod authorities;
mod call;
mod observer;
mod own;
mod translate;
mod whose;

use authorities::AuthorityError;
pub(crate) use authorities::AuthorityFile;
use call::{AskedSession, AssumeRoleCall};
pub(crate) use observer::StsSighting;
use observer::{Date, Endpoint};
use own::Own;

/// Timeout for connecting to STS.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// Timeout of one attempt.
const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(3);
/// Attempts to determine the daemon's identity, including the first one.
const ATTEMPTS: u32 = 3;
/// Timeout of a metadata request that nothing waits for.
const METADATA_TIMEOUT: Duration = Duration::from_secs(3);
/// The metadata path whose only entry is the instance's role.
const INSTANCE_ROLE: &str = "/latest/meta-data/iam/security-credentials/";

/// Access to AWS as the daemon itself.
#[derive(Clone, Debug)]
pub(crate) struct Aws {
    /// The configuration with the daemon's own credentials.
    config: SdkConfig,
    /// The configuration with the credentials of the intermediate role, if there is one. That role assumes the pods' roles.
    intermediate: Option<(RoleArn, SdkConfig)>,
    metadata: imds::Client,
}

/// How STS is reached.
#[derive(Clone, Debug, Default)]
pub(crate) struct AwsConnection {
    /// The file of the only certificate authorities that are trusted; without it, those of the system.
    pub ca_bundle: Option<PathBuf>,
    /// The file of the system's certificate authorities, if the environment names one.
    pub system_authorities: Option<PathBuf>,
    /// Whether requests go through the proxies that the environment names.
    pub proxied: bool,
}

impl AwsConnection {
    /// Returns the files with certificate authorities that the environment names; one that alone counts comes first.
    pub(crate) fn authorities(&self) -> impl Iterator<Item = AuthorityFile> {
        let bundle = self.ca_bundle.clone().map(AuthorityFile::Bundle);
        bundle.into_iter().chain(self.system_authorities.clone().map(AuthorityFile::System))
    }

    /// Checks that the files with certificate authorities can be used.
    ///
    /// # Errors
    /// The first one that cannot.
    pub(crate) fn check_authorities(&self) -> Result<(), AwsError> {
        self.authorities().try_for_each(|file| Ok(file.read().map(drop)?))
    }

    fn client(&self) -> Result<SharedHttpClient, AwsError> {
        let mut store = TrustStore::default();
        for file in self.authorities() {
            // That of the system is read by the SDK, also where it is not used in the end.
            let authorities = file.read()?;
            if let AuthorityFile::Bundle(_) = file {
                store = TrustStore::empty().with_pem_certificate(authorities.pem);
            }
        }
        let tls = TlsContext::builder().with_trust_store(store).build().map_err(|error| AwsError::Client(chain(&error)))?;
        let proxied = self.proxied;
        Ok(aws_smithy_http_client::Builder::new().build_with_connector_fn(move |settings, components| {
            let mut connector = Connector::builder();
            connector.set_connector_settings(settings.cloned());
            if let Some(components) = components {
                connector.set_sleep_impl(components.sleep_impl());
            }
            let proxies = if proxied { ProxyConfig::from_env() } else { ProxyConfig::disabled() };
            connector.proxy_config(proxies).tls_provider(Provider::Rustls(CryptoMode::Ring)).tls_context(tls.clone()).build()
        }))
    }
}

/// The reason why the daemon could not get what it needs from AWS.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AwsError {
    /// Neither the environment nor the metadata service names a region.
    #[error("no AWS region: AWS_REGION is not set, and the metadata service at {0} does not answer")]
    NoRegion(String),
    /// `--metadata-addr` cannot be used.
    #[error("--metadata-addr is not valid: {0}")]
    MetadataAddress(String),
    /// A file with certificate authorities cannot be used.
    #[error(transparent)]
    Authorities(#[from] AuthorityError),
    /// The HTTP client cannot be made.
    #[error("cannot set up the client of AWS: {0}")]
    Client(String),
    /// The metadata service did not return a value that the daemon needs.
    #[error("cannot read {what} from the metadata service: {reason}")]
    Discovery {
        /// What was requested.
        what: &'static str,
        /// What happened.
        reason: String,
        /// The flag that makes the value unnecessary.
        instead: &'static str,
    },
    /// The metadata service did not name the instance's role. Nothing waits for it.
    #[error("cannot read this instance's role from the metadata service: {reason}")]
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
            Self::Authorities(error) => error.advice(),
            Self::Client(_) | Self::MetadataAddress(_) | Self::InstanceRole { .. } => None,
        }
    }
}

impl Aws {
    /// Loads the region, the endpoints and the credentials chain. `metadata_addr` is `host` or `host:port`. `timeout` is the
    /// total time of all attempts. `intermediate` is the role that assumes the pods' roles instead of the daemon's own
    /// identity, if any, and the name of its session.
    pub(crate) async fn load(
        metadata_addr: &str,
        timeout: Duration,
        intermediate: Option<(&RoleArn, &SessionName)>,
        connection: &AwsConnection,
    ) -> Result<Self, AwsError> {
        let http = connection.client()?;
        // Never by a proxy: what the service answers is secret, and only this machine is told.
        let direct = aws_smithy_http_client::Builder::new().tls_provider(Provider::Rustls(CryptoMode::Ring)).build_https();
        let of_metadata = ProviderConfig::default().with_http_client(direct);
        let provider = ProviderConfig::default().with_http_client(http.clone());
        let metadata = imds::Client::builder()
            .configure(&of_metadata)
            .endpoint(format!("http://{metadata_addr}"))
            .map_err(|error| AwsError::MetadataAddress(error.to_string()))?
            .build();
        let region = RegionProviderChain::first_try(EnvironmentVariableRegionProvider::new())
            .or_else(ProfileFileRegionProvider::builder().configure(&provider).build())
            .or_else(ImdsRegionProvider::builder().configure(&of_metadata).imds_client(metadata.clone()).build())
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
                // The SDK renews this session before it expires, like the daemon's own credentials. It has no source identity:
                // all pods share it, and STS does not allow the source identity to change along a role chain. Each pod's own is
                // set in the next request.
                let provider = AssumeRoleProvider::builder(role.as_str()).session_name(session.as_str()).configure(&config).build().await;
                let config = config.clone().into_builder().credentials_provider(SharedCredentialsProvider::new(provider)).build();
                Some((role.clone(), config))
            }
        };
        Ok(Self { config, intermediate, metadata })
    }

    /// Returns the region in use.
    pub(crate) fn region(&self) -> &str {
        self.config.region().map_or("", |region| region.as_ref())
    }

    /// Creates the STS client. Stores the daemon's identity in `node` once it is known.
    pub(crate) fn sts(&self, clock: Clock, node: NodeIdentity, metrics: Metrics) -> Sts {
        self.sts_seen(clock, node, metrics, None)
    }

    /// Creates the STS client, of whose requests `sighting` records what they show.
    pub(crate) fn sts_seen(&self, clock: Clock, node: NodeIdentity, metrics: Metrics, sighting: Option<&StsSighting>) -> Sts {
        let endpoint = Endpoint::default();
        let own = |config: &SdkConfig, intermediate: Option<&RoleArn>| {
            let mut config = aws_sdk_sts::config::Builder::from(config).interceptor(endpoint.clone());
            if let Some(sighting) = sighting {
                config = config.interceptor(sighting.clone());
            }
            Arc::new(Own::new(Client::from_conf(config.build()), intermediate.cloned(), node.clone(), metrics.clone()))
        };
        let base = own(&self.config, None);
        let intermediate = self.intermediate.as_ref().map(|(role, config)| own(config, Some(role)));
        // Retries are left to the gate and its pauses, so that each request passes the gate and is counted.
        let caller = Arc::new(intermediate.as_ref().unwrap_or(&base).without_retries());
        let identity = Arc::new(Inquiry::new(base, intermediate, node.clone()));
        let (doubt, durations, clock_skew, chained_duration) = Default::default();
        Sts { caller, clock, identity, doubt, durations, clock_skew, chained_duration }
    }

    /// Returns `arn:PARTITION:iam::ACCOUNT:role/` of the node, from its instance profile.
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

    /// Returns the node's own role, completed with `base`. `instead` is the flag that makes this request unnecessary.
    pub(crate) async fn discover_node_role(&self, base: &BaseArn, instead: &'static str) -> Result<RoleArn, AwsError> {
        let failed = |reason: String| AwsError::Discovery { what: "the node's role", reason, instead };
        let name = self.metadata.get(INSTANCE_ROLE).await.map_err(|error| failed(reason(&error)))?;
        base.complete(name.as_ref().trim_end()).map_err(|error| failed(error.to_string()))
    }

    /// Returns the instance's role, regardless of the daemon's own identity; `None` if the instance has none. Returns within a
    /// few seconds.
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

/// STS as the data path uses it.
#[derive(Clone, Debug)]
pub(crate) struct Sts {
    caller: Arc<Own>,
    clock: Clock,
    identity: Arc<Inquiry<Arc<Own>>>,
    /// Notified when STS does not accept the daemon's own credentials.
    doubt: Arc<Notify>,
    durations: Arc<Durations>,
    /// Ensures that a clock difference is logged once.
    clock_skew: Arc<Condition>,
    /// Ensures that the limit for target roles is logged once.
    chained_duration: Arc<Condition>,
}

impl Sts {
    /// Returns an STS client that does not repeat a request with new credentials, for requests that no pod waits for.
    pub(crate) fn asked_once(&self) -> Self {
        Self { caller: Arc::new(self.caller.asked_once()), ..self.clone() }
    }

    /// Requests the daemon's identity from STS, and publishes it to the policy. Returns the result and the time after which to
    /// try again. A known identity is kept when the request fails.
    pub(crate) async fn renew_identity(&self) -> (Result<Arc<KnownNode>, AssumeRoleError>, Duration) {
        self.identity.renew().await
    }

    /// Returns once a request has failed because of the daemon's own credentials since the last call. Supports one listener.
    pub(crate) async fn doubted(&self) {
        self.doubt.notified().await;
    }
}

impl AssumeRole for Sts {
    async fn assume_role(&self, request: &RoleRequest, source: Option<&Credentials>) -> Result<Credentials, AssumeRoleError> {
        // A decision made before the identity was known is made again before a pod gets credentials.
        self.identity.known().await.map_err(|error| AssumeRoleError::IdentityUnknown(Box::new(error)))?;
        let date = Date::default();
        let (sent, began) = (self.clock.now(), Instant::now());
        let call = AssumeRoleCall::of(request, source);
        if call.source.is_some() && request.duration() < request.configured_duration() && self.chained_duration.begins() {
            warn!(
                event = "session-duration-limited", role = %call.role,
                session_duration = %humantime::format_duration(request.configured_duration()),
                "AWS allows sessions of 1 hour for target roles, which another role assumes; using sessions of 1 hour for all of them; \
                 nothing needs to be done unless pods need longer sessions"
            );
        }
        let ask = |duration| self.ask(&call, duration, date.clone());
        let answer = self.durations.ask(call.role, call.duration, ask).await;
        let (given, duration) = answer.map_err(|error| error.in_chain(call.chain))?;
        let expires_at = Timestamp::new(given.expiration.secs(), 0).map_err(|_| incomplete())?;
        let texts = [&given.access_key_id, &given.secret_access_key, &given.session_token];
        // Expiration times follow this node's clock. Pods share it, and compute the remaining time from it.
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
        let asked = AskedSession { sent, duration, took: began.elapsed() };
        let expires_at = asked.at_the_latest(now).ok_or_else(incomplete)?.min(expires_at);
        // The SDK accepts a truncated response as complete. Its fields are then empty, and its time is in 1970.
        if expires_at <= now {
            return Err(AssumeRoleError::Expired { at: expires_at });
        }
        if texts.iter().any(|text| text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_graphic())) {
            return Err(incomplete());
        }
        let (secret, token) = (SecretString::from(given.secret_access_key), SecretString::from(given.session_token));
        Ok(Credentials::new(given.access_key_id, secret, token, now, expires_at))
    }
}

impl Sts {
    /// Returns whether a refusal names a caller of another account than the known one: `User: ARN is not authorized to perform …`.
    fn names_foreign_caller(&self, message: &str) -> bool {
        let named = message.split_once("User: ").and_then(|(_, rest)| rest.split_whitespace().next());
        let named = named.and_then(|arn| arn.parse::<CallerIdentity>().ok());
        let known = self.identity.node().known();
        named.zip(known.caller()).is_some_and(|(named, known)| !named.is_of_same_account(known))
    }

    /// Makes one request to STS. Stores the time at STS in `date`.
    async fn ask(
        &self,
        call: &AssumeRoleCall<'_>,
        duration: Duration,
        date: Date,
    ) -> Result<aws_sdk_sts::types::Credentials, AssumeRoleError> {
        let AssumeRoleCall { request, role, .. } = *call;
        let seconds = i32::try_from(duration.as_secs()).unwrap_or(3600);
        let tag = |tag: &policy::session::RequestTag| Tag::builder().key(tag.key()).value(tag.value()).build();
        let tags: Result<Vec<Tag>, _> = request.tags().iter().map(tag).collect();
        let tags = tags.map_err(|_| AssumeRoleError::Invalid { message: "the session tags could not be built".to_owned() })?;
        let transitive = call.has_transitive_tags().then(|| request.tags().iter().map(|tag| tag.key().to_owned()).collect());
        let ask = |client: Client| {
            let request = client
                .assume_role()
                .role_arn(role.as_str())
                .role_session_name(request.session_name().as_str())
                .set_source_identity(request.source_identity().map(|identity| identity.as_str().to_owned()))
                .set_external_id(call.external_id().map(|id| id.as_str().to_owned()))
                .set_tags((!tags.is_empty()).then(|| tags.clone()))
                .set_transitive_tag_keys(transitive.clone())
                .duration_seconds(seconds);
            request.customize().interceptor(date.clone()).send()
        };
        let answer = match call.source {
            Some(source) => self.caller.ask_as(source, ask).await?,
            None => {
                let answer = self.caller.ask(ask).await;
                match &answer {
                    Err(AssumeRoleError::OwnIdentity { .. }) => self.doubt.notify_one(),
                    // Credentials that the SDK renewed meanwhile may be anybody's: see `KnownNode::contradiction`.
                    Err(AssumeRoleError::Denied { message }) if self.names_foreign_caller(message) => self.doubt.notify_one(),
                    _ => {}
                }
                answer?
            }
        };
        whose::check(request, role, answer.assumed_role_user(), answer.source_identity()).inspect_err(|error| {
            error!(
                event = "sts-answered-for-another-role",
                role = role.as_str(),
                session = request.session_name().as_str(),
                advice = CHECK_ENDPOINT,
                %error,
                "STS returned credentials of another role or session; discarding them"
            );
        })?;
        answer.credentials.ok_or_else(incomplete)
    }
}

fn incomplete() -> AssumeRoleError {
    AssumeRoleError::Failed { message: "the credentials in its response are incomplete".to_owned() }
}

impl StsOfNode for Sts {
    async fn own_identity(&self) -> Result<String, AssumeRoleError> {
        self.identity.known().await?;
        let known = self.identity.node().known();
        Ok(known.caller().map(CallerIdentity::as_str).unwrap_or_default().to_owned())
    }
}

/// Describes an error of the metadata service. Includes only the status of a response: its body does not belong in the log.
fn reason(error: &ImdsError) -> String {
    match error {
        ImdsError::ErrorResponse(answer) => format!("it answered {}", answer.response().status().as_u16()),
        error => bounded(&chain(error)),
    }
}

#[cfg(test)]
pub(in crate::credentials) mod tests;
