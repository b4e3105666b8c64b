//! The certificates of one test: made before anything starts, in the test's own folder, and gone with it.

use std::collections::BTreeSet;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;

use faultbox_contract::Tls;
use faultbox_contract::tls::{Identity, Verify};
use faultbox_engine::tls::mint::Authority;

use super::services::user::{self, Account};
use crate::plan::{CertificateDecl, CertificateSource, InterfaceDecl, Topology, VerifyDecl};

/// The names under which every interface on this machine is reached.
const LOCAL: [&str; 3] = ["localhost", "127.0.0.1", "::1"];

/// What interfaces with `tls=` show and trust.
#[derive(Debug, Default)]
pub struct Certificates {
    all: Vec<One>,
    authority: Option<Identity>,
}

#[derive(Debug)]
struct One {
    shown: Identity,
    made: bool,
    verify: Verify,
    client: Option<usize>,
    names: Vec<String>,
}

impl Certificates {
    /// Makes those that are to be made, below `folder`, and reads those that are given.
    ///
    /// # Errors
    /// What cannot be written or read, as a lower-case fragment.
    pub fn make(topology: &Topology, folder: &Path) -> Result<Certificates, String> {
        let mut made = Certificates::default();
        let to_make = |c: &CertificateDecl| c.source != CertificateSource::Given;
        let authority = match topology.certificates.iter().any(to_make) {
            false => None,
            true => {
                create(folder).map_err(|e| at(folder, &e))?;
                let authority = Authority::new()?;
                write(&folder.join("ca.pem"), &authority.identity().chain, 0o644)?;
                Some(authority)
            }
        };
        for (id, decl) in topology.certificates.iter().enumerate() {
            let names = names(topology, id, decl);
            let shown = match (&decl.source, &authority) {
                (CertificateSource::Made { .. }, Some(authority)) => {
                    let shown = authority.issue(&names)?;
                    if let Some(parent) = decl.cert.parent() {
                        create(parent).map_err(|e| at(parent, &e))?;
                    }
                    write(&decl.cert, &shown.chain, 0o644)?;
                    write_key(topology, id, decl, &shown.key)?;
                    shown
                }
                _ => Identity {
                    chain: read(&decl.cert)?,
                    key: read(&decl.key)?,
                },
            };
            let verify = match (&decl.verify, &authority, &decl.ca) {
                (VerifyDecl::Never, ..) => Verify::Never,
                (VerifyDecl::File(path), ..) => Verify::Against(read(path)?),
                (VerifyDecl::Own, Some(authority), _) if to_make(decl) => {
                    Verify::Against(authority.identity().chain.clone())
                }
                // The server is likely to show the same certificate, and then it needs no authority.
                (VerifyDecl::Own, _, Some(ca)) => {
                    Verify::Against(format!("{}\n{}", read(ca)?, shown.chain))
                }
                (VerifyDecl::Own, _, None) => Verify::Against(shown.chain.clone()),
            };
            made.all.push(One {
                shown,
                made: to_make(decl),
                verify,
                client: decl.client,
                names,
            });
        }
        made.authority = authority.map(|a| a.identity().clone());
        Ok(made)
    }

    /// What the proxy and the steps of an interface work with; `None` if it has no TLS.
    pub fn of(&self, interface: &InterfaceDecl) -> Option<Arc<Tls>> {
        let one = self.all.get(interface.tls?)?;
        Some(Arc::new(Tls {
            shown: one.shown.clone(),
            issuer: self.authority.clone().filter(|_| one.made),
            verify: one.verify.clone(),
            names: one.names.clone(),
            client: one
                .client
                .and_then(|id| Some(self.all.get(id)?.shown.clone())),
        }))
    }

    /// The same for a question whether the server is there at all: its certificate is another matter.
    pub fn of_probe(&self, interface: &InterfaceDecl) -> Option<Arc<Tls>> {
        let tls = self.of(interface)?;
        Some(Arc::new(Tls {
            verify: Verify::Never,
            ..Tls::clone(&tls)
        }))
    }
}

/// The names of a certificate, those that the spec gives first: the first is the common name, too.
fn names(topology: &Topology, id: usize, decl: &CertificateDecl) -> Vec<String> {
    let mut names = match &decl.source {
        CertificateSource::Made { names } => names.clone(),
        CertificateSource::Given => vec![],
    };
    let interfaces = topology.services.iter().flat_map(|s| &s.interfaces);
    let hosts = interfaces
        .filter(|i| i.tls == Some(id))
        .flat_map(|i| [i.host.clone(), i.addr.ip().to_string()]);
    let local = LOCAL.iter().map(|name| (*name).to_owned());
    for name in local.chain(hosts) {
        if !names.contains(&name) {
            names.push(name);
        }
    }
    names
}

/// A key belongs to the user of whoever is given its path, or else to that of the services that show it; where these are several users,
/// everybody may read it. Servers such as PostgreSQL refuse a key that others may read.
fn write_key(
    topology: &Topology,
    id: usize,
    decl: &CertificateDecl,
    key: &str,
) -> Result<(), String> {
    let path = decl.key.to_string_lossy();
    let named: Vec<_> = topology
        .services
        .iter()
        .filter(|s| {
            let mut texts = s.args.iter().chain(s.env.values());
            texts.any(|text| text.contains(&*path))
        })
        .collect();
    let shows = |s: &&Arc<crate::plan::ServiceDecl>| s.interfaces.iter().any(|i| i.tls == Some(id));
    let readers = match named.is_empty() {
        true => topology.services.iter().filter(shows).collect(),
        false => named,
    };
    let users: BTreeSet<&str> = readers.iter().filter_map(|s| s.user.as_deref()).collect();
    // Whoever has no `user=` runs as we do: as root, who reads everything, if others have one.
    match users.into_iter().collect::<Vec<_>>().as_slice() {
        [] => write(&decl.key, key, 0o600),
        [user] => {
            let account: Account = user::resolve(user)?;
            write(&decl.key, key, 0o600)?;
            std::os::unix::fs::chown(&decl.key, Some(account.ids.uid), Some(account.ids.gid))
                .map_err(|e| at(&decl.key, &e))
        }
        _ => write(&decl.key, key, 0o644),
    }
}

/// A folder that every user may pass.
fn create(folder: &Path) -> io::Result<()> {
    std::fs::create_dir_all(folder)?;
    std::fs::set_permissions(folder, std::fs::Permissions::from_mode(0o755))
}

fn write(path: &Path, text: &str, mode: u32) -> Result<(), String> {
    use std::io::Write as _;
    use std::os::unix::fs::OpenOptionsExt;
    let written = std::fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(mode)
        .open(path)
        .and_then(|mut file| {
            // The umask does not decide who reads it.
            file.set_permissions(std::fs::Permissions::from_mode(mode))?;
            file.write_all(text.as_bytes())
        });
    written.map_err(|e| at(path, &e))
}

fn read(path: &Path) -> Result<String, String> {
    std::fs::read_to_string(path).map_err(|e| at(path, &e))
}

fn at(path: &Path, error: &io::Error) -> String {
    format!("{}: {error}", path.display())
}
