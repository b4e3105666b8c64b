//! What is wrong with a server's certificate.

use std::sync::Arc;

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{CertificateError, DigitallySignedStruct, Error, RootCertStore, SignatureScheme};

/// What is wrong with a certificate: what its clients would have found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Flaw {
    /// It is over.
    Expired,
    /// It has not begun.
    Early,
    /// It is for other names.
    Misnamed,
    /// Nobody who is trusted has issued it, or it is not fit for a server.
    Untrusted,
}

/// What a server's certificate must lead to.
#[derive(Debug)]
pub(super) struct Trust {
    anchors: Vec<CertificateDer<'static>>,
    verifier: Arc<WebPkiServerVerifier>,
}

impl Trust {
    /// Takes what can be read of `anchors`, as every TLS library does with a bundle.
    ///
    /// # Errors
    /// None of them can be.
    pub(super) fn new(
        anchors: Vec<CertificateDer<'static>>,
        provider: &Arc<CryptoProvider>,
    ) -> Result<Trust, String> {
        let mut roots = RootCertStore::empty();
        roots.add_parsable_certificates(anchors.iter().cloned());
        let verifier =
            WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider.clone())
                .build()
                .map_err(|_| "there is no X.509 certificate in it".to_owned())?;
        Ok(Trust { anchors, verifier })
    }

    /// Is this chain fit for a server with one of these names, now? Else what is wrong with it, and in words.
    pub(super) fn check(
        &self,
        chain: &[CertificateDer<'_>],
        names: &[ServerName<'static>],
    ) -> Result<(), (Flaw, String)> {
        let Some((leaf, rest)) = chain.split_first() else {
            return Err((
                Flaw::Untrusted,
                "the server has shown no certificate".into(),
            ));
        };
        let pinned = self.anchors.iter().any(|a| a == leaf);
        let now = UnixTime::now();
        let mut presented = None;
        for name in names {
            let Err(error) = self.verifier.verify_server_cert(leaf, rest, name, &[], now) else {
                return Ok(());
            };
            let Error::InvalidCertificate(error) = error else {
                return Err((Flaw::Untrusted, error.to_string()));
            };
            match error {
                CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
                    return Err((Flaw::Expired, "the server's certificate has expired".into()));
                }
                CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
                    let text = "the server's certificate is not in force yet";
                    return Err((Flaw::Early, text.into()));
                }
                // Who names this very certificate as trusted has said all there is to say: that it is self-signed, or for which
                // names it was once made, does not matter.
                _ if pinned => return Ok(()),
                CertificateError::NotValidForName => {}
                CertificateError::NotValidForNameContext { presented: p, .. } => {
                    presented = Some(p);
                }
                other => {
                    let text =
                        format!("the server's certificate is not trusted: {}", words(&other));
                    return Err((Flaw::Untrusted, text));
                }
            }
        }
        let wanted: Vec<_> = names.iter().map(ServerName::to_str).collect();
        let text = format!(
            "the server's certificate is for {}, not for {}",
            presented
                .filter(|p| !p.is_empty())
                .map_or_else(|| "no name at all".into(), |p| p.join(", ")),
            wanted.join(" or ")
        );
        Err((Flaw::Misnamed, text))
    }
}

fn words(error: &CertificateError) -> String {
    match error {
        CertificateError::UnknownIssuer => "unknown issuer".into(),
        CertificateError::BadSignature => "bad signature".into(),
        CertificateError::BadEncoding => "it cannot be read".into(),
        other => other.to_string(),
    }
}

/// Takes any certificate: what is wrong with it is looked at after the handshake, when the client can be told by what it is shown. With
/// `signatures`, the server must all the same prove that it has the certificate's key.
#[derive(Debug)]
pub(super) struct Any {
    pub(super) provider: Arc<CryptoProvider>,
    pub(super) signatures: bool,
}

impl ServerCertVerifier for Any {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        if !self.signatures {
            return Ok(HandshakeSignatureValid::assertion());
        }
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls12_signature(message, cert, signed, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        if !self.signatures {
            return Ok(HandshakeSignatureValid::assertion());
        }
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls13_signature(message, cert, signed, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider
            .signature_verification_algorithms
            .supported_schemes()
    }
}
