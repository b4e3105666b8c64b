//! Certificates as declared.

use std::path::PathBuf;

use super::SpecPos;

/// One `tls_cert(...)`.
#[derive(Debug, Clone)]
pub struct CertificateDecl {
    /// Where it comes from.
    pub source: CertificateSource,
    /// The certificate (PEM).
    pub cert: PathBuf,
    /// Its key (PEM).
    pub key: PathBuf,
    /// The authority that clients trust, if there is a file of it (PEM).
    pub ca: Option<PathBuf>,
    /// How a server's certificate is looked at.
    pub verify: VerifyDecl,
    /// What servers get that ask for a client certificate: its place in [`Topology::certificates`](super::Topology::certificates).
    pub client: Option<usize>,
    /// Where it was declared.
    pub pos: SpecPos,
}

/// Where a certificate comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CertificateSource {
    /// It is made for each test, by an authority of that test's own; with these names besides those of its interfaces.
    Made {
        /// Host names and addresses.
        names: Vec<String>,
    },
    /// It is in files.
    Given,
}

/// How a server's certificate is looked at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum VerifyDecl {
    /// Not at all.
    Never,
    /// It must be what clients trust, too.
    Own,
    /// It must lead to what this file (PEM) has.
    File(PathBuf),
}
