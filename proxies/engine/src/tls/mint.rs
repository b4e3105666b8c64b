//! Certificates made on the spot.

use faultbox_contract::tls::Identity;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose, date_time_ymd,
};

use super::verify::Flaw;

/// The authority's name where the spec gives none of its own.
const NAME: &str = "Faultbox test authority";
/// The issuer of what no client is to trust.
const STRANGER: &str = "Faultbox: an authority that nobody trusts";

/// A certificate authority that lives as long as a test.
pub struct Authority {
    identity: Identity,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    /// A new one (ECDSA P-256, which every TLS stack of today takes).
    ///
    /// # Errors
    /// The system has no random numbers.
    pub fn new() -> Result<Authority, String> {
        Authority::named(NAME, KeyPair::generate().map_err(|e| e.to_string())?, None)
    }

    /// One that nobody trusts.
    pub(super) fn stranger() -> Result<Authority, String> {
        let key = KeyPair::generate().map_err(|e| e.to_string())?;
        Authority::named(STRANGER, key, None)
    }

    /// The one whose [`identity`](Authority::identity) this is.
    ///
    /// # Errors
    /// The key is none.
    pub fn of(identity: &Identity) -> Result<Authority, String> {
        let key = KeyPair::from_pem(&identity.key).map_err(|e| e.to_string())?;
        Authority::named(NAME, key, Some(identity.chain.clone()))
    }

    fn named(name: &str, key: KeyPair, chain: Option<String>) -> Result<Authority, String> {
        // Two authorities of one name would be mistaken for one: clients would speak of a bad signature, not of an unknown issuer.
        let public = key.public_key_raw();
        let mark: String = public
            .iter()
            .rev()
            .take(4)
            .map(|b| format!("{b:02x}"))
            .collect();
        let mut params = params(&format!("{name} {mark}"), &[])?;
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let chain = match chain {
            Some(chain) => chain,
            None => params.self_signed(&key).map_err(|e| e.to_string())?.pem(),
        };
        let identity = Identity {
            chain,
            key: key.serialize_pem(),
        };
        Ok(Authority {
            identity,
            issuer: Issuer::new(params, key),
        })
    }

    /// Its own certificate and key.
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// A certificate for servers and clients alike, with a key of its own. The first name is its common name, too.
    ///
    /// # Errors
    /// A name that cannot stand in a certificate.
    pub fn issue(&self, names: &[String]) -> Result<Identity, String> {
        self.issue_with(names, None)
    }

    /// The same with a flaw: out of its time or for somebody else.
    pub(super) fn issue_with(
        &self,
        names: &[String],
        flaw: Option<Flaw>,
    ) -> Result<Identity, String> {
        let nobody = ["somebody-else.invalid".to_owned()];
        let names = match flaw {
            Some(Flaw::Misnamed) => &nobody,
            _ => names,
        };
        let common = names.first().map_or("faultbox", String::as_str);
        let mut params = params(common, names)?;
        match flaw {
            Some(Flaw::Expired) => params.not_after = date_time_ymd(2001, 1, 1),
            Some(Flaw::Early) => params.not_before = date_time_ymd(2099, 1, 1),
            _ => {}
        }
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![
            ExtendedKeyUsagePurpose::ServerAuth,
            ExtendedKeyUsagePurpose::ClientAuth,
        ];
        params.use_authority_key_identifier_extension = true;
        let key = KeyPair::generate().map_err(|e| e.to_string())?;
        let certificate = params
            .signed_by(&key, &self.issuer)
            .map_err(|e| e.to_string())?;
        Ok(Identity {
            chain: certificate.pem(),
            key: key.serialize_pem(),
        })
    }
}

impl std::fmt::Debug for Authority {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Authority")
    }
}

/// In force from 2000 to 2100: a test that moves its clock shall not stumble over it.
fn params(common_name: &str, names: &[String]) -> Result<CertificateParams, String> {
    let mut params = CertificateParams::new(names).map_err(|e| e.to_string())?;
    let mut subject = DistinguishedName::new();
    subject.push(DnType::CommonName, common_name);
    params.distinguished_name = subject;
    params.not_before = date_time_ymd(2000, 1, 1);
    params.not_after = date_time_ymd(2100, 1, 1);
    Ok(params)
}
