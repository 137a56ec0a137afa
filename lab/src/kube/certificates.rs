//! A certificate authority that lives as long as one server, and the certificate it gives it.

use std::io;
use std::net::IpAddr;
use std::sync::Arc;

use rcgen::{BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose};
use rustls::pki_types::PrivateKeyDer;

/// What a TLS server needs, and what its clients do.
pub(super) struct Certificates {
    pub(super) ca_pem: String,
    pub(super) server: Arc<rustls::ServerConfig>,
}

/// A fresh CA and a server certificate for `localhost`, the loopback addresses and `ip`.
pub(super) fn generate(ip: IpAddr) -> io::Result<Certificates> {
    let (ca_pem, chain, key) = issue(ip).map_err(io::Error::other)?;
    let key = PrivateKeyDer::try_from(key).map_err(io::Error::other)?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut server = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(io::Error::other)?
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .map_err(io::Error::other)?;
    server.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Certificates { ca_pem, server: Arc::new(server) })
}

type Issued = (String, Vec<rustls::pki_types::CertificateDer<'static>>, Vec<u8>);

fn issue(ip: IpAddr) -> Result<Issued, rcgen::Error> {
    let mut params = CertificateParams::new(Vec::new())?;
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.distinguished_name.push(DnType::CommonName, "lab-kubernetes-ca");
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    let ca_key = KeyPair::generate()?;
    let ca = params.self_signed(&ca_key)?;
    let issuer = Issuer::new(params, ca_key);

    let mut names: Vec<String> = ["localhost", "kubernetes", "kubernetes.default.svc", "127.0.0.1", "::1"].map(str::to_owned).to_vec();
    if !names.contains(&ip.to_string()) {
        names.push(ip.to_string());
    }
    let mut params = CertificateParams::new(names)?;
    params.distinguished_name.push(DnType::CommonName, "lab-kube-apiserver");
    params.use_authority_key_identifier_extension = true;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    let key = KeyPair::generate()?;
    let certificate = params.signed_by(&key, &issuer)?;
    Ok((ca.pem(), vec![certificate.der().clone()], key.serialize_der()))
}
