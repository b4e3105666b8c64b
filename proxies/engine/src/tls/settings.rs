//! From PEM texts to what rustls works with.

use std::collections::{HashMap, HashSet};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};

use faultbox_contract::Tls;
use faultbox_contract::tls::{Identity, Verify};
use rustls::client::Resumption;
use rustls::crypto::{CryptoProvider, ring};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::server::NoServerSessionStorage;
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{ALL_VERSIONS, ClientConfig, ServerConfig, SupportedProtocolVersion};

use super::mint::Authority;
use super::verify::{Any, Flaw, Trust};

/// Both sides' settings of one interface.
pub struct Settings {
    tls: Arc<Tls>,
    provider: Arc<CryptoProvider>,
    /// What clients are shown; by what is wrong with the server's certificate, made when it is first needed.
    shown: Mutex<HashMap<Option<Flaw>, Arc<SingleCertAndKey>>>,
    /// What a server gets that asks for a client certificate.
    client: Option<Arc<SingleCertAndKey>>,
    trust: Option<Trust>,
    said: Mutex<HashSet<String>>,
}

impl Settings {
    /// Reads everything.
    ///
    /// # Errors
    /// What cannot be read, in a lower-case fragment.
    pub fn new(tls: &Arc<Tls>) -> Result<Settings, String> {
        let settings = Settings::client_only(tls)?;
        settings.server(None, ALL_VERSIONS)?;
        Ok(settings)
    }

    /// The same for who only ever is the client.
    ///
    /// # Errors
    /// As [`new`](Settings::new).
    pub(super) fn client_only(tls: &Arc<Tls>) -> Result<Settings, String> {
        let provider = Arc::new(ring::default_provider());
        let trust = match &tls.verify {
            Verify::Never => None,
            Verify::Against(pem) => Some(Trust::new(certificates(pem)?, &provider)?),
        };
        let client = match &tls.client {
            None => None,
            Some(identity) => Some(Arc::new(certified(identity, &provider)?.into())),
        };
        Ok(Settings {
            tls: tls.clone(),
            provider,
            shown: Mutex::default(),
            client,
            trust,
            said: Mutex::default(),
        })
    }

    /// What a client is handshaken with whose server's certificate has this flaw.
    pub(super) fn server(
        &self,
        flaw: Option<Flaw>,
        versions: &[&'static SupportedProtocolVersion],
    ) -> Result<ServerConfig, String> {
        let mut config = ServerConfig::builder_with_provider(self.provider.clone())
            .with_protocol_versions(versions)
            .map_err(|e| e.to_string())?
            .with_no_client_auth()
            .with_cert_resolver(self.shown(flaw)?);
        // No session outlives its connection: a client that resumed one would not see what has become of the server's certificate.
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        Ok(config)
    }

    fn shown(&self, flaw: Option<Flaw>) -> Result<Arc<SingleCertAndKey>, String> {
        let mut shown = self.shown.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(key) = shown.get(&flaw) {
            return Ok(key.clone());
        }
        let identity = match flaw {
            None => self.tls.shown.clone(),
            Some(flaw) => {
                let authority = match (&self.tls.issuer, flaw) {
                    (Some(issuer), Flaw::Expired | Flaw::Early | Flaw::Misnamed) => {
                        Authority::of(issuer)?
                    }
                    _ => Authority::stranger()?,
                };
                authority.issue_with(&self.tls.names, Some(flaw))?
            }
        };
        let key = Arc::new(SingleCertAndKey::from(certified(
            &identity,
            &self.provider,
        )?));
        shown.insert(flaw, key.clone());
        Ok(key)
    }

    /// What a server is handshaken with, offering these protocols.
    pub(super) fn client(
        &self,
        versions: &[&'static SupportedProtocolVersion],
        alpn: &[Vec<u8>],
    ) -> Result<Arc<ClientConfig>, rustls::Error> {
        let builder = ClientConfig::builder_with_provider(self.provider.clone())
            .with_protocol_versions(versions)?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(Any {
                provider: self.provider.clone(),
                signatures: self.trust.is_some(),
            }));
        let mut config = match &self.client {
            None => builder.with_no_client_auth(),
            Some(key) => builder.with_client_cert_resolver(key.clone()),
        };
        // A resumed session would show no certificate to look at.
        config.resumption = Resumption::disabled();
        config.alpn_protocols = alpn.to_vec();
        Ok(Arc::new(config))
    }

    /// What is wrong with the server's certificate, if it is to be looked at. `asked` is the name that the client asked for.
    pub(super) fn check(
        &self,
        chain: &[CertificateDer<'_>],
        asked: Option<&str>,
        addr: Option<SocketAddr>,
    ) -> Result<(), (Flaw, String)> {
        let Some(trust) = &self.trust else {
            return Ok(());
        };
        let mut names: Vec<ServerName<'static>> = asked
            .into_iter()
            .chain(self.tls.names.iter().map(String::as_str))
            .filter_map(|name| ServerName::try_from(name.to_owned()).ok())
            .collect();
        if let Some(addr) = addr {
            names.push(ServerName::IpAddress(addr.ip().into()));
        }
        trust.check(chain, &names)
    }

    /// The certificate that a client is shown if nothing is wrong.
    ///
    /// # Errors
    /// As [`new`](Settings::new).
    pub(super) fn leaf(&self) -> Result<CertificateDer<'static>, String> {
        let chain = certificates(&self.tls.shown.chain)?;
        chain.into_iter().next().ok_or_else(|| "empty".into())
    }

    /// Is this the first time that this is said? An event per connection would bury the others.
    pub(super) fn first(&self, text: &str) -> bool {
        let mut said = self.said.lock().unwrap_or_else(PoisonError::into_inner);
        // Texts hold a server's names, which a hostile one could vary without end.
        said.len() < 64 && said.insert(text.to_owned())
    }
}

impl std::fmt::Debug for Settings {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Settings").finish_non_exhaustive()
    }
}

/// Every certificate of a PEM text.
fn certificates(pem: &str) -> Result<Vec<CertificateDer<'static>>, String> {
    let all = CertificateDer::pem_slice_iter(pem.as_bytes())
        .collect::<Result<Vec<_>, _>>()
        .map_err(|e| format!("it is no PEM text: {e:?}"))?;
    if all.is_empty() {
        return Err("there is no PEM certificate in it".into());
    }
    Ok(all)
}

fn certified(identity: &Identity, provider: &CryptoProvider) -> Result<CertifiedKey, String> {
    let chain = certificates(&identity.chain)?;
    let key = PrivateKeyDer::from_pem_slice(identity.key.as_bytes())
        .map_err(|e| format!("there is no PEM private key in it: {e:?}"))?;
    CertifiedKey::from_der(chain, key, provider).map_err(|e| match e {
        rustls::Error::InconsistentKeys(_) => "the key does not belong to the certificate".into(),
        other => other.to_string(),
    })
}

/// Checks a certificate chain (PEM) for being one.
///
/// # Errors
/// Why it is none.
pub fn check_certificates(pem: &str) -> Result<(), String> {
    certificates(pem).map(drop)
}

/// Checks a certificate and its key (PEM) for belonging together.
///
/// # Errors
/// Why they do not.
pub fn check_identity(identity: &Identity) -> Result<(), String> {
    certified(identity, &ring::default_provider()).map(drop)
}
