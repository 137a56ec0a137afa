//! The certificate authorities of one server: one for its own certificate, one for those of its clients. Either can be replaced
//! while the server runs, which invalidates what the old one signed.

use std::collections::HashMap;
use std::io;
use std::net::IpAddr;
use std::sync::Arc;

use rcgen::{BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;

/// A client's certificate and key, as PEM.
#[derive(Clone, Debug)]
pub struct ClientIdentity {
    /// The certificate.
    pub certificate: String,
    /// Its key.
    pub key: String,
}

/// Signs and recognizes the certificates of one server.
pub(super) struct Authorities {
    ip: IpAddr,
    of_server: Authority,
    of_clients: Authority,
    /// The client that each certificate was issued to.
    issued: HashMap<CertificateDer<'static>, String>,
}

struct Authority {
    pem: String,
    der: CertificateDer<'static>,
    issuer: Issuer<'static, KeyPair>,
}

impl std::fmt::Debug for Authorities {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Authorities").field("issued", &self.issued.values()).finish_non_exhaustive()
    }
}

impl Authorities {
    /// Creates new authorities for a server at `ip`.
    pub(super) fn new(ip: IpAddr) -> io::Result<Authorities> {
        let of_server = Authority::new("lab-kubernetes-ca").map_err(io::Error::other)?;
        let of_clients = Authority::new("lab-client-ca").map_err(io::Error::other)?;
        Ok(Authorities { ip, of_server, of_clients, issued: HashMap::new() })
    }

    /// The certificate with which clients verify the server.
    pub(super) fn ca_pem(&self) -> &str {
        &self.of_server.pem
    }

    /// Replaces the authority of the server's certificate.
    pub(super) fn replace_of_server(&mut self) -> io::Result<()> {
        self.of_server = Authority::new("lab-kubernetes-ca").map_err(io::Error::other)?;
        Ok(())
    }

    /// Replaces the authority of the clients' certificates.
    pub(super) fn replace_of_clients(&mut self) -> io::Result<()> {
        self.of_clients = Authority::new("lab-client-ca").map_err(io::Error::other)?;
        Ok(())
    }

    /// Issues a certificate to the client of this name.
    pub(super) fn issue_to_client(&mut self, name: &str) -> io::Result<ClientIdentity> {
        let issued = self.of_clients.sign(name, Vec::new(), ExtendedKeyUsagePurpose::ClientAuth);
        let (certificate, key) = issued.map_err(io::Error::other)?;
        self.issued.insert(certificate.der().clone(), name.to_owned());
        Ok(ClientIdentity { certificate: certificate.pem(), key: key.serialize_pem() })
    }

    /// Returns the client that a certificate was issued to.
    pub(super) fn name_of(&self, certificate: &CertificateDer<'_>) -> Option<String> {
        self.issued.get(certificate).cloned()
    }

    /// Returns a TLS configuration with a new certificate for `localhost`, the loopback addresses and the server's address. A
    /// client certificate is optional, as at a real API server, but one that the current authority did not sign ends the
    /// handshake.
    pub(super) fn server(&self) -> io::Result<Arc<rustls::ServerConfig>> {
        let mut names = ["localhost", "kubernetes", "kubernetes.default.svc", "127.0.0.1", "::1"].map(str::to_owned).to_vec();
        if !names.contains(&self.ip.to_string()) {
            names.push(self.ip.to_string());
        }
        let issued = self.of_server.sign("lab-kube-apiserver", names, ExtendedKeyUsagePurpose::ServerAuth);
        let (certificate, key) = issued.map_err(io::Error::other)?;
        let key = PrivateKeyDer::try_from(key.serialize_der()).map_err(io::Error::other)?;
        let mut roots = rustls::RootCertStore::empty();
        roots.add(self.of_clients.der.clone()).map_err(io::Error::other)?;
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let clients = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider)).allow_unauthenticated();
        let mut server = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(io::Error::other)?
            .with_client_cert_verifier(clients.build().map_err(io::Error::other)?)
            .with_single_cert(vec![certificate.der().clone()], key)
            .map_err(io::Error::other)?;
        server.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Arc::new(server))
    }
}

impl Authority {
    fn new(name: &str) -> Result<Authority, rcgen::Error> {
        let mut params = CertificateParams::new(Vec::new())?;
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, name);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let key = KeyPair::generate()?;
        let certificate = params.self_signed(&key)?;
        Ok(Authority { pem: certificate.pem(), der: certificate.der().clone(), issuer: Issuer::new(params, key) })
    }

    fn sign(
        &self,
        name: &str,
        alternatives: Vec<String>,
        usage: ExtendedKeyUsagePurpose,
    ) -> Result<(rcgen::Certificate, KeyPair), rcgen::Error> {
        let mut params = CertificateParams::new(alternatives)?;
        params.distinguished_name.push(DnType::CommonName, name);
        params.use_authority_key_identifier_extension = true;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![usage];
        let key = KeyPair::generate()?;
        Ok((params.signed_by(&key, &self.issuer)?, key))
    }
}
