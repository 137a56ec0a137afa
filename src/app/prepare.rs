//! The way of a request, made of what the configuration says and AWS tells.

use std::sync::{Arc, OnceLock};

use anyhow::{Context as _, bail};
use tracing::{info, warn};

use super::failure::Failure;
use super::settings::log_refusals;
use crate::advice::{Advise as _, chain};
use crate::clock::Clock;
use crate::config::{AwsConfig, BaseRole, Config, DefaultRole, PatternFormat};
use crate::connections::ConnectionRecord;
use crate::credentials::cache::{self, Sessions};
use crate::credentials::gate::StsLimits;
use crate::credentials::refresh::Refresh;
use crate::credentials::sts::{Aws, AwsConnection, AwsError, Sts};
use crate::drain::Drain;
use crate::events::Reporter;
use crate::explain::By;
use crate::explain::explainer::{ExplainRate, Explainer, OfDaemon, PacedManifests};
use crate::explain::modes::RequestModes;
use crate::metrics::Metrics;
use crate::pods::{PodManifests, Pods};
use crate::policy::Discovered;
use crate::policy::node::NodeIdentity;
use crate::policy::patterns::Patterns;
use crate::policy::session::SessionRules;
use crate::policy::{Policy, Rules};
use crate::proxy::metadata::{Access, MetadataValues};
use crate::proxy::migration::Migration;
use crate::proxy::pod_identity::settings::PodIdentity;
use crate::proxy::token::{KeyFile, Tokens};
use crate::proxy::{Proxy, ProxySettings};
use crate::readiness::Readiness;
use crate::report::recorder::Recorder;
use crate::report::reporter::MigrationReporter;
use crate::role::{BaseArn, RoleArn, SessionName};
use crate::server::Server;

/// What serves pods, and what it asks.
pub(super) struct Prepared {
    pub(super) server: Server<Sts>,
    pub(super) refresh: Refresh<Sts>,
    pub(super) sts: Sts,
    pub(super) tokens: Tokens,
    pub(super) key_file: Option<KeyFile>,
    pub(super) metadata: MetadataValues,
    pub(super) aws: Aws,
    pub(super) node: NodeIdentity,
    pub(super) policy: Arc<Policy>,
}

/// The parts of the request path that the operators' port uses.
pub(super) struct SharedWithAdmin {
    /// Set once.
    pub(super) explainer: Arc<OnceLock<Explainer<Sts>>>,
    /// Set once, with `--migrate`.
    pub(super) reporter: Arc<OnceLock<MigrationReporter>>,
    pub(super) record: ConnectionRecord,
}

/// What requests are answered from, besides AWS.
pub(super) struct RequestSources {
    /// Who sends a request.
    pub(super) pods: Pods,
    /// Receives what pods' owners should know.
    pub(super) events: Reporter,
    /// The parts that serve Pod Identity; `None` if it is off.
    pub(super) pod_identity: Option<PodIdentity>,
    /// Records the requests that the migration report is about.
    pub(super) recorder: Recorder,
    /// Where the manifests of pods are read, for `rolegate explain`.
    pub(super) manifests: Arc<dyn PodManifests>,
}

/// Makes the way of a request, once AWS has told what it takes.
pub(super) async fn prepare(
    config: &Config,
    sources: RequestSources,
    metrics: &Metrics,
    readiness: &Readiness,
    drain: &Drain,
    shared: SharedWithAdmin,
) -> anyhow::Result<Prepared> {
    let RequestSources { pods, events, pod_identity, recorder, manifests } = sources;
    let (clock, SharedWithAdmin { explainer, reporter, record }) = (Clock::system(), shared);
    let aws = load_aws(config).await?;
    let node = NodeIdentity::default();
    let sts = aws.sts(clock.clone(), node.clone(), metrics.clone());
    let rules = rules(Some(&aws), config, &node).await?;
    let modes = RequestModes { tokens: config.server.tokens, profile: config.metadata.profile, node_info: node_info_namespaces(config)? };
    log_refusals(config, &modes, &rules);
    let policy = Policy::new(rules, node.clone()).context("--allowed-roles")?;
    if !policy.allows_default_role() {
        bail!(Failure::new(
            "--allowed-roles does not allow --default-role, so every pod without a role annotation would be refused",
            "add the role to --allowed-roles, or remove --default-role"
        ));
    }
    info!(event = "sts-region", region = aws.region(), "using the STS endpoint of this region");
    let policy = Arc::new(policy);
    let of_sts = &config.sessions;
    let limits = StsLimits { rate: of_sts.rate, max_rate: of_sts.max_rate, concurrency: of_sts.concurrency };
    let of_cache = cache::CacheSettings { error_ttl: of_sts.error_ttl, timeout: of_sts.timeout, limits };
    let sessions = Sessions::new(sts.clone(), of_cache, clock.clone(), metrics.clone());
    let refresh = Refresh {
        pods: pods.clone(),
        policy: policy.clone(),
        sessions: sessions.clone(),
        prefetch: of_sts.prefetch,
        spread: of_sts.prefetch_spread,
    };
    // It is given once: this runs once.
    let _ = explainer.set(Explainer {
        node: config.pods.node.clone(),
        by: By::Daemon,
        policy: policy.clone(),
        pods: pods.clone(),
        sts: sts.asked_once(),
        metrics: metrics.clone(),
        pace: ExplainRate::default(),
        manifests: PacedManifests::new(manifests),
        pod_identity: config.pod_identity.clone(),
        daemon: Some(OfDaemon { readiness: readiness.clone(), sessions: sessions.clone(), limits: record.clone(), modes }),
    });
    let access = Access::new(config.metadata.profile, node_info_namespaces(config)?);
    let settings = ProxySettings { policy: policy.clone(), tokens: config.server.tokens, pod_wait: config.pods.wait, access };
    let tokens = Tokens::new(clock.clone())?;
    let key_file = config.server.token_key_file.clone().map(KeyFile::new);
    if let Some(file) = &key_file
        && let Err(error) = tokens.sync(file)
    {
        warn!(
            event = "token-key-file-unavailable",
            error = chain(&error),
            advice = error.advice().as_deref(),
            "cannot use --token-key-file; retrying, keeping the keys in memory only; until it works, a restart invalidates all session \
             tokens"
        );
    }
    let proxy = Proxy::new(settings, pods, sessions, tokens.clone(), clock, metrics.clone(), events).with_pod_identity(pod_identity);
    let proxy = proxy.with_recorder(recorder.clone());
    // It is given once: this runs once.
    let _ = reporter.set(MigrationReporter {
        node: config.pods.node.clone(),
        recorder: recorder.clone(),
        pods: proxy.pods().clone(),
        policy: policy.clone(),
        strict: config.migrate.clone(),
        allowed_roles: config.pods.annotations.allowed_roles.clone(),
        patterns: config.roles.patterns,
    });
    let proxy = match &config.migrate {
        Some(strict) => {
            proxy.with_migration(Migration::new(recorder, strict.tokens, Access::new(strict.profile, node_info_namespaces(config)?)))
        }
        None => proxy,
    };
    let metadata = proxy.values();
    if config.server.accept_direct {
        warn!(
            event = "direct-connections-accepted",
            "--accept-direct-connections is on; serving every client that connects to the app port from a pod's address; do not use this \
             flag on a node"
        );
    }
    let server = Server::new(proxy, config.server.accept_direct, config.server.limits, metrics.clone(), drain.clone(), record);
    Ok(Prepared { server, refresh, sts, aws, node, policy, tokens, key_file, metadata })
}

fn node_info_namespaces(config: &Config) -> anyhow::Result<Patterns> {
    Patterns::new(PatternFormat::Glob, None, config.metadata.node_info_namespaces.clone()).context("--node-info-namespaces")
}

pub(super) async fn load_aws(config: &Config) -> Result<Aws, AwsError> {
    let session = SessionName::derived_from(&format!("rolegate-{}", config.pods.node));
    let intermediate = config.sessions.intermediate.as_ref().map(|role| (role, &session));
    if let Some((role, _)) = intermediate {
        info!(event = "intermediate-role", %role, "assuming pods' roles through the intermediate role of --assume-role-arn");
    }
    Aws::load(&config.metadata.address, config.sessions.timeout, intermediate, &connection_of(&config.aws)).await
}

/// How STS is reached.
pub(super) fn connection_of(config: &AwsConfig) -> AwsConnection {
    let AwsConfig { ca_bundle, system_authorities, proxied } = config.clone();
    AwsConnection { ca_bundle, system_authorities, proxied }
}

/// What pods may have. Without AWS, nothing may be discovered: see [`needs_aws`].
pub(super) async fn rules(aws: Option<&Aws>, config: &Config, node: &NodeIdentity) -> anyhow::Result<Rules> {
    let (roles, sessions) = (&config.roles, &config.sessions);
    let aws = || aws.context("--auto-discover-base-arn and --auto-discover-default-role need the metadata service");
    let (base, mut instance_role) = match &roles.base {
        BaseRole::None => (None, None),
        BaseRole::Given(base) => (Some(base.clone()), None),
        BaseRole::Discover => {
            let base = aws()?.discover_base().await?;
            let role = aws()?.discover_node_role(&base, "--base-role-arn").await?;
            (Some(base), Some(role))
        }
    };
    node.set_instance_role(instance_role.clone());
    if let Some(base) = &base {
        info!(event = "base-role", base = base.as_str(), "completing short role names with this base ARN");
    }
    let default_role = match &roles.default {
        DefaultRole::None => None,
        DefaultRole::Given(role) => Some(complete(role, base.as_ref())?),
        DefaultRole::NodeRole => {
            if instance_role.is_none() {
                instance_role = Some(aws()?.discover_node_role(&aws()?.discover_base().await?, "--default-role").await?);
                node.set_instance_role(instance_role.clone());
            }
            instance_role.clone()
        }
    };
    if let (DefaultRole::NodeRole, Some(role)) = (&roles.default, &default_role) {
        warn!(
            event = "node-role-is-default", %role,
            "--auto-discover-default-role gives the node's own role to every pod without a role; prefer --default-role with a role of few \
             permissions"
        );
    }
    Ok(Rules {
        base,
        default_role,
        discovered: Discovered { base: roles.base == BaseRole::Discover, default_role: roles.default == DefaultRole::NodeRole },
        service_accounts: roles.service_accounts,
        allowed_roles: roles.allowed.clone(),
        allow_node_role: roles.allow_node_role,
        restrictions: roles.restrictions,
        patterns: roles.patterns,
        sessions: SessionRules {
            cluster: sessions.cluster.clone().unwrap_or_default(),
            node: config.pods.node.clone(),
            name: sessions.name.clone(),
            pod_may_name: sessions.pod_may_name,
            scope: sessions.scope,
            source_identity: sessions.source_identity.clone(),
            tags: sessions.tags.clone(),
            transitive_tags: sessions.transitive_tags,
        },
        session_duration: sessions.duration,
    })
}

/// Whether the settings leave something to the metadata service.
pub(super) fn needs_aws(config: &Config) -> bool {
    config.roles.base == BaseRole::Discover || config.roles.default == DefaultRole::NodeRole
}

fn complete(role: &str, base: Option<&BaseArn>) -> anyhow::Result<RoleArn> {
    let completed = match base {
        _ if role.starts_with("arn:") => role.parse(),
        Some(base) => base.complete(role),
        None => bail!("--default-role is a short name, but there is no base role ARN"),
    };
    completed.context("--default-role")
}
