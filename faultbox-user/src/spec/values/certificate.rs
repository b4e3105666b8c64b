//! `tls_cert(...)`.

use std::fmt;
use std::path::PathBuf;

use allocative::Allocative;
use starlark::values::{
    Heap, NoSerialize, ProvidesStaticType, StarlarkPagablePanic, StarlarkValue, Value,
    starlark_value,
};

use crate::spec::context::{missing_attribute, no_attribute};
use crate::spec::problem::Problem;

/// A certificate with its key and its authority: `.cert .key .ca`, as paths.
#[derive(Debug, Clone, ProvidesStaticType, NoSerialize, StarlarkPagablePanic, Allocative)]
#[allocative(skip)]
pub struct CertificateValue {
    /// Its place among the spec's certificates.
    pub id: usize,
    /// The certificate.
    pub cert: PathBuf,
    /// Its key.
    pub key: PathBuf,
    /// The authority.
    pub ca: Option<PathBuf>,
}
starlark::starlark_simple_value!(CertificateValue);

const ATTRIBUTES: &[&str] = &["ca", "cert", "key"];

impl fmt::Display for CertificateValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "tls_cert({})", self.cert.display())
    }
}

#[starlark_value(type = "tls_cert")]
impl<'v> StarlarkValue<'v> for CertificateValue {
    fn get_attr(&self, attribute: &str, heap: Heap<'v>) -> Option<Value<'v>> {
        let path = match attribute {
            "cert" => Some(&self.cert),
            "key" => Some(&self.key),
            "ca" => self.ca.as_ref(),
            _ => None,
        };
        match path {
            Some(path) => Some(heap.alloc(path.to_string_lossy().as_ref())),
            None if attribute == "ca" => {
                missing_attribute(
                    attribute,
                    Problem::call("this tls_cert has no authority, because `ca=` was not given")
                        .help("write tls_cert(cert=..., key=..., ca=\"ca.pem\")"),
                );
                None
            }
            None => {
                no_attribute("a tls_cert", attribute, ATTRIBUTES);
                None
            }
        }
    }

    fn has_attr(&self, attribute: &str, _heap: Heap<'v>) -> bool {
        ATTRIBUTES.contains(&attribute)
    }

    fn dir_attr(&self) -> Vec<String> {
        // Left empty on purpose: the problem noted by `get_attr` tells more than Starlark's own "did you mean".
        vec![]
    }
}
