//! `tls_cert(...)`.

use std::path::{Path, PathBuf};

use faultbox_contract::tls::Identity;
use faultbox_engine::tls::{check_certificates, check_identity};
use starlark::environment::GlobalsBuilder;
use starlark::eval::Evaluator;
use starlark::starlark_module;
use starlark::values::Value;

use crate::plan::{CertificateDecl, CertificateSource, VerifyDecl};
use crate::spec::context::{declaring, site_pos};
use crate::spec::convert::kind_of;
use crate::spec::params::{given, text, texts};
use crate::spec::problem::{Place, Problem};
use crate::spec::values::certificate::CertificateValue;

/// The path of a file named by a parameter, and what is in it.
fn read(folder: &Path, param: &str, value: Value) -> Result<(PathBuf, String), Problem> {
    let written = text(param, value)?;
    let path: PathBuf = folder.join(&written).components().collect();
    match std::fs::read_to_string(&path) {
        Ok(text) => Ok((path, text)),
        Err(e) => Err(
            Problem::param(param, format!("`{param}`: `{written}` cannot be read: {e}"))
                .help("a relative path resolves against the spec's folder"),
        ),
    }
}

fn names(value: Option<Value>) -> Result<Vec<String>, Problem> {
    let Some(value) = given(value) else {
        return Ok(vec![]);
    };
    let names = texts("names", value)?;
    for (i, name) in names.iter().enumerate() {
        let fits = |c: char| c.is_ascii_alphanumeric() || "-._*:".contains(c);
        if name.is_empty() || name.len() > 253 || !name.chars().all(fits) {
            return Err(Problem::new(
                Place::Item("names".into(), i),
                format!("`names`: {name:?} is neither a host name nor an address"),
            )
            .help("for example names=[\"db.test\", \"10.0.0.7\", \"*.shop.test\"]"));
        }
    }
    Ok(names)
}

#[starlark_module]
fn module(builder: &mut GlobalsBuilder) {
    /// A certificate for an interface that speaks TLS: `interface("pg", "postgres", 5432, tls=tls_cert())`.
    ///
    /// Without arguments, it is made for each test by an authority that all `tls_cert()` of the test share: for "localhost", 127.0.0.1, ::1, the
    /// hosts of the interfaces that have it, and `names`. `cert`, `key` and `ca` name files (PEM) instead. Attributes `.ca .cert .key` are
    /// paths, for the arguments and environments of servers and clients. `verify` says what the server's own certificate must lead to:
    /// True, the same authority; a path, what that file has; False, nothing. `client` is a tls_cert that the proxy shows to a server
    /// that asks its clients for one.
    fn tls_cert<'v>(
        #[starlark(require = named)] names: Option<Value<'v>>,
        #[starlark(require = named)] cert: Option<Value<'v>>,
        #[starlark(require = named)] key: Option<Value<'v>>,
        #[starlark(require = named)] ca: Option<Value<'v>>,
        #[starlark(require = named)] verify: Option<Value<'v>>,
        #[starlark(require = named)] client: Option<Value<'v>>,
        eval: &mut Evaluator<'v, '_, '_>,
    ) -> starlark::Result<CertificateValue> {
        let (world, site) = declaring(eval, "tls_cert")?;
        let verify = match given(verify) {
            None => VerifyDecl::Own,
            Some(value) => match (value.unpack_bool(), value.unpack_str()) {
                (Some(true), _) => VerifyDecl::Own,
                (Some(false), _) => VerifyDecl::Never,
                (_, Some(_)) => {
                    let (path, pem) = read(&world.folder, "verify", value)?;
                    check_certificates(&pem).map_err(|e| {
                        Problem::param("verify", format!("`verify`: {}: {e}", path.display()))
                    })?;
                    VerifyDecl::File(path)
                }
                _ => {
                    let kind = kind_of(value);
                    return Err(Problem::param(
                        "verify",
                        format!("`verify`: expected a bool or a path, got {kind}"),
                    )
                    .into());
                }
            },
        };
        let client = match given(client) {
            None => None,
            Some(value) => match CertificateValue::from_value(value) {
                Some(client) => Some(client.id),
                None => {
                    return Err(Problem::param(
                        "client",
                        format!("`client`: expected a tls_cert, got {}", kind_of(value)),
                    )
                    .help("write client=tls_cert(names=[\"app\"])")
                    .into());
                }
            },
        };
        let given_names = self::names(names)?;
        let mut declared = world.declared();
        let id = declared.certificates.len();
        let folder = world.ports.certificates();
        let decl = match (given(cert), given(key)) {
            (None, None) => {
                if given(ca).is_some() {
                    return Err(Problem::keyword("ca", "`ca=` goes with `cert=` and `key=`")
                        .help("without them, the certificate and its authority are made; what the server's certificate must lead to is verify=\"ca.pem\"")
                        .into());
                }
                CertificateDecl {
                    source: CertificateSource::Made { names: given_names },
                    cert: folder.join(format!("{id}/cert.pem")),
                    key: folder.join(format!("{id}/key.pem")),
                    ca: Some(folder.join("ca.pem")),
                    verify,
                    client,
                    pos: site_pos(&site),
                }
            }
            (Some(cert), Some(key)) => {
                if !given_names.is_empty() {
                    return Err(Problem::keyword(
                        "names",
                        "`names=` is for a certificate that is made; this one is given",
                    )
                    .help("leave `names=` out, or `cert=` and `key=`")
                    .into());
                }
                let (cert, chain) = read(&world.folder, "cert", cert)?;
                let (key, key_text) = read(&world.folder, "key", key)?;
                check_certificates(&chain).map_err(|e| {
                    Problem::param("cert", format!("`cert`: {}: {e}", cert.display()))
                })?;
                check_identity(&Identity {
                    chain,
                    key: key_text,
                })
                .map_err(|e| Problem::param("key", format!("`key`: {}: {e}", key.display())))?;
                let ca = given(ca)
                    .map(|ca| {
                        let (path, pem) = read(&world.folder, "ca", ca)?;
                        check_certificates(&pem).map_err(|e| {
                            Problem::param("ca", format!("`ca`: {}: {e}", path.display()))
                        })?;
                        Ok::<_, Problem>(path)
                    })
                    .transpose()?;
                CertificateDecl {
                    source: CertificateSource::Given,
                    cert,
                    key,
                    ca,
                    verify,
                    client,
                    pos: site_pos(&site),
                }
            }
            (Some(_), None) => {
                return Err(Problem::keyword("cert", "`cert=` needs its `key=`").into());
            }
            (None, Some(_)) => {
                return Err(Problem::keyword("key", "`key=` needs its `cert=`").into());
            }
        };
        let value = CertificateValue {
            id,
            cert: decl.cert.clone(),
            key: decl.key.clone(),
            ca: decl.ca.clone(),
        };
        declared.certificates.push(decl);
        Ok(value)
    }
}

/// Adds it.
pub fn register(builder: &mut GlobalsBuilder) {
    module(builder);
}
