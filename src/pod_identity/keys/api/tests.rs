#![allow(clippy::unwrap_used, reason = "a test says loudly what failed")]

use std::net::{Ipv4Addr, TcpListener};
use std::sync::Arc;
use std::time::Duration;

use jiff::SignedDuration;
use rolegate_lab::kube::{Attack, KubeApi, PodBuilder, Resource, SigningKey, Verb, namespace, node, service_account};

use super::*;
use crate::advice::Advise as _;
use crate::clock::Clock;
use crate::config::ApiConfig;
use crate::config::flags::DEFAULT_POD_IDENTITY_AUDIENCE as AUDIENCE;
use crate::metrics::Metrics;
use crate::pod_identity::keys::{IssuerKeys, LEAST_BETWEEN, issuer_keys};
use crate::pod_identity::token::{BearerToken, TokenError};
use crate::pod_identity::verifier::Verifier;

struct Setup {
    api: KubeApi,
    keys: IssuerKeys,
    verifier: Verifier,
    _files: tempfile::TempDir,
}

async fn source(api: &KubeApi) -> (ApiKeySource, tempfile::TempDir) {
    let files = tempfile::tempdir().unwrap();
    let path = files.path().join("kubeconfig");
    std::fs::write(&path, api.kubeconfig()).unwrap();
    let client = crate::kubernetes::client::connect(&ApiConfig { kubeconfig: Some(path), ..ApiConfig::default() }).await.unwrap();
    (ApiKeySource::new(client), files)
}

fn lab() -> KubeApi {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let api = KubeApi::start(TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap()).unwrap();
    api.apply(Resource::Namespaces, namespace("shop", &[]));
    api.apply(Resource::Nodes, node("node-a", &["10.0.0.10"]));
    api.apply(Resource::ServiceAccounts, service_account("shop", "web", &[]));
    api.apply(Resource::Pods, PodBuilder::new("shop", "web-1").service_account("web").build());
    api
}

async fn start() -> Setup {
    let api = lab();
    let (source, files) = source(&api).await;
    let (keys, refresher) = issuer_keys(Arc::new(source), Vec::new(), Metrics::new());
    tokio::spawn(refresher.run());
    let known = async {
        while keys.any().await.is_err() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), known).await.unwrap();
    Setup { api, verifier: Verifier::new(keys.clone(), AUDIENCE, Clock::system()), keys, _files: files }
}

fn token(text: &str) -> BearerToken {
    BearerToken::new(text.as_bytes()).unwrap()
}

#[tokio::test]
async fn a_token_that_the_api_issued_names_its_pod_service_account_and_node() {
    let setup = start().await;
    let uid = |resource, namespace, name| setup.api.get(resource, namespace, name).unwrap()["metadata"]["uid"].as_str().unwrap().to_owned();
    let issuer = setup.api.token_issuer();
    let pod_token = setup.api.pod_token("shop", "web-1").unwrap();
    let claims = setup.verifier.verify(&token(&issuer.issue(&pod_token))).await.unwrap();
    assert_eq!((&*claims.namespace, &*claims.pod, &*claims.service_account), ("shop", "web-1", "web"));
    assert_eq!(*claims.pod_uid.0, *uid(Resource::Pods, Some("shop"), "web-1"));
    assert_eq!(claims.service_account_uid, uid(Resource::ServiceAccounts, Some("shop"), "web"));
    let node = claims.node.as_ref().unwrap();
    assert_eq!((&*node.name, node.uid.clone()), ("node-a", Some(uid(Resource::Nodes, None, "node-a"))));
    for attack in Attack::ALL.into_iter().filter(|attack| *attack != Attack::PathAsId) {
        assert!(setup.verifier.verify(&token(&issuer.forge(attack, &pod_token))).await.is_err(), "{attack:?}");
    }
    let expired = pod_token.valid_for(SignedDuration::ZERO);
    assert_eq!(setup.verifier.verify(&token(&issuer.issue(&expired))).await, Err(TokenError::Expired));
}

#[tokio::test]
async fn a_rotation_at_the_api_refuses_no_token() {
    let setup = start().await;
    // The fetch for the new key may begin at once.
    tokio::time::pause();
    tokio::time::advance(LEAST_BETWEEN).await;
    tokio::time::resume();
    let issuer = setup.api.token_issuer();
    issuer.rotate(SigningKey::es384());
    let issued = token(&issuer.issue(&setup.api.pod_token("shop", "web-1").unwrap()));
    let verified = async {
        while let Err(error) = setup.verifier.verify(&issued).await {
            assert_eq!(error, TokenError::KeysOutdated, "a loaded machine may be slow, and a client then retries");
        }
    };
    tokio::time::timeout(Duration::from_secs(60), verified).await.unwrap();
    assert_eq!(setup.keys.known().unwrap().keys.len(), 2);
}

#[tokio::test]
async fn a_source_without_permission_says_which_role_is_needed() {
    let api = lab();
    let (source, _files) = source(&api).await;
    api.deny(Verb::Get, KEYS);
    let error = source.keys().await.unwrap_err();
    assert!(matches!(&error, KeySourceError::Request(error) if error.code() == Some(403)), "{error}");
    assert!(error.advice().unwrap().contains("system:service-account-issuer-discovery"));
    assert!(source.configuration().await.is_ok(), "the other document is not denied");
    api.allow(Verb::Get, KEYS);
    assert!(source.keys().await.is_ok());
}

#[tokio::test]
async fn documents_are_bounded() {
    let api = lab();
    let (source, _files) = source(&api).await;
    api.token_issuer().rename(&"a".repeat(MAX_DOCUMENT));
    let error = source.configuration().await.unwrap_err();
    assert!(matches!(&error, KeySourceError::Request(error) if error.code().is_none()), "{error}");
    assert!(source.keys().await.is_ok());
}
