//! TLS on an interface, as data; the engine makes connections of it.

/// What an interface with `tls=` needs to stand between a client and its server.
#[derive(Debug, Clone, Default)]
pub struct Tls {
    /// What clients are shown.
    pub shown: Identity,
    /// Who issued [`shown`](Tls::shown), where its key is at hand: what is wrong with a server's certificate is then shown to the client
    /// in a certificate of the same issuer.
    pub issuer: Option<Identity>,
    /// How the server's certificate is looked at.
    pub verify: Verify,
    /// The names, besides the one that a client asks for, under which the server may be known: host names and addresses.
    pub names: Vec<String>,
    /// What the server gets when it asks for a client certificate.
    pub client: Option<Identity>,
}

/// A certificate with the key that belongs to it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Identity {
    /// PEM: the certificate first, then what leads from it to its authority.
    pub chain: String,
    /// PEM: PKCS #8, PKCS #1 or SEC 1.
    pub key: String,
}

/// How a server's certificate is looked at.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Verify {
    /// Whatever it shows is taken.
    #[default]
    Never,
    /// It must lead to one of these (PEM), be in force, and be for one of the right names. A certificate that is itself among them is
    /// trusted under any name.
    Against(String),
}
