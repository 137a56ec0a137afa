//! Files with the certificate authorities that connections to AWS trust.
//!
//! The SDK panics, or trusts nobody, where such a file has no certificate that it can parse. So each file is read before the SDK is
//! given it.

use std::borrow::Cow;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use rustls::RootCertStore;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;

use crate::advice::Advise;

/// The most bytes of a file that are read. Those of all public authorities take less than a tenth of it.
const MAX_BYTES: u64 = 4 << 20;

/// A file with certificate authorities, and the variable that names it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum AuthorityFile {
    /// `AWS_CA_BUNDLE`: the only authorities that are trusted.
    Bundle(PathBuf),
    /// `SSL_CERT_FILE`: it stands for the system's file.
    System(PathBuf),
}

/// A file with certificate authorities cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("{variable}: cannot use the certificates in {path}: {reason}")]
pub(crate) struct AuthorityError {
    variable: &'static str,
    path: String,
    reason: String,
}

impl Advise for AuthorityError {
    fn advice(&self) -> Option<Cow<'static, str>> {
        Some(format!("correct {}, which must name a file with certificates in PEM, or unset it", self.variable).into())
    }
}

/// The content of such a file.
#[derive(Debug)]
pub(crate) struct Authorities {
    /// The file.
    pub pem: Vec<u8>,
    /// How many certificates of it can be used; at least one.
    pub number: usize,
}

impl AuthorityFile {
    /// Returns the name of the variable.
    pub(crate) fn variable(&self) -> &'static str {
        match self {
            Self::Bundle(_) => "AWS_CA_BUNDLE",
            Self::System(_) => "SSL_CERT_FILE",
        }
    }

    /// Returns the path of the file.
    pub(crate) fn path(&self) -> &Path {
        match self {
            Self::Bundle(path) | Self::System(path) => path,
        }
    }

    /// Reads the file.
    ///
    /// # Errors
    /// If it has no certificate that can be used. In a bundle, every certificate must be usable: the SDK panics otherwise. Of the
    /// system's file, it skips the others.
    pub(crate) fn read(&self) -> Result<Authorities, AuthorityError> {
        let failed = |reason: String| AuthorityError { variable: self.variable(), path: self.path().display().to_string(), reason };
        let mut pem = Vec::new();
        let file = std::fs::File::open(self.path()).map_err(|error| failed(error.to_string()))?;
        file.take(MAX_BYTES + 1).read_to_end(&mut pem).map_err(|error| failed(error.to_string()))?;
        if pem.len() as u64 > MAX_BYTES {
            return Err(failed(format!("it has more than {MAX_BYTES} bytes")));
        }
        let mut roots = RootCertStore::empty();
        for certificate in CertificateDer::pem_slice_iter(&pem) {
            let added = certificate
                .map_err(|error| error.to_string())
                .and_then(|certificate| roots.add(certificate).map_err(|error| error.to_string()));
            match (added, self) {
                (Err(error), Self::Bundle(_)) => return Err(failed(error)),
                (Ok(()), _) | (Err(_), Self::System(_)) => {}
            }
        }
        if roots.is_empty() { Err(failed("it has no certificates".to_owned())) } else { Ok(Authorities { pem, number: roots.len() }) }
    }
}
