//! `interface(...)`.

use std::net::{SocketAddr, ToSocketAddrs};

use starlark::environment::GlobalsBuilder;
use starlark::eval::Evaluator;
use starlark::starlark_module;
use starlark::values::Value;

use crate::plan::InterfaceDecl;
use crate::spec::context::declaring;
use crate::spec::convert::kind_of;
use crate::spec::params::{boolean, given, int, name as read_name, text};
use crate::spec::problem::{Problem, one_of};
use crate::spec::values::certificate::CertificateValue;
use crate::spec::values::interface::InterfaceValue;

/// Where `host` is.
pub fn address(host: &str, port: u16) -> Option<SocketAddr> {
    // A name with addresses of both kinds means IPv4: that is what services bind that say "localhost".
    let addrs: Vec<_> = (host, port).to_socket_addrs().ok()?.collect();
    addrs
        .iter()
        .find(|a| a.is_ipv4())
        .or(addrs.first())
        .copied()
}

/// What is said of a `host`, given as `param`, that is nowhere.
pub fn no_address(param: &str, host: &str) -> Problem {
    Problem::param(param, format!("the host `{host}` has no address"))
        .help("give an IP address, or a name that this machine resolves")
}

#[starlark_module]
fn module(builder: &mut GlobalsBuilder) {
    /// A place where a service is reached: `interface("pg", "postgres", 5432)`.
    ///
    /// `protocol` is one of those that `faultbox protocols` lists. `port=0` asks for a free port. `proxy=False` leaves traffic alone,
    /// so no rule can act on it. With `tls=tls_cert(...)`
    /// it speaks TLS, and the proxy takes that off and puts it on again, so that rules act on the plain text. Attributes: `.addr .host .port` (where consumers reach it), `.internal_addr`, `.proxy_addr`, and the
    /// protocol's steps.
    fn interface<'v>(
        name: Value<'v>,
        protocol: Value<'v>,
        port: Value<'v>,
        #[starlark(require = named)] host: Option<Value<'v>>,
        #[starlark(require = named)] spec: Option<Value<'v>>,
        #[starlark(require = named)] tls: Option<Value<'v>>,
        #[starlark(require = named)] proxy: Option<Value<'v>>,
        eval: &mut Evaluator<'v, '_, '_>,
    ) -> starlark::Result<InterfaceValue> {
        let (world, site) = declaring(eval, "interface")?;
        if given(spec).is_some() {
            return Err(Problem::keyword("spec", "`spec=` is not yet supported").into());
        }
        let tls = match given(tls) {
            None => None,
            Some(value) => match CertificateValue::from_value(value) {
                Some(certificate) => Some(certificate.id),
                None => {
                    return Err(Problem::param(
                        "tls",
                        format!("`tls`: expected a tls_cert, got {}", kind_of(value)),
                    )
                    .help("write tls=tls_cert()")
                    .into());
                }
            },
        };
        let name = read_name("name", name)?;
        let wanted = text("protocol", protocol)?;
        let Some(protocol) = world.protocol(&wanted) else {
            let known: Vec<&str> = (world.registry)().iter().map(|p| p.doc().name).collect();
            return Err(
                Problem::param("protocol", format!("there is no protocol `{wanted}`"))
                    .help(one_of(&wanted, &known))
                    .into(),
            );
        };
        if tls.is_some() && protocol.transport().has_udp() {
            return Err(Problem::param(
                "tls",
                format!(
                    "`tls`: protocol {} travels in datagrams, which TLS does not encrypt",
                    protocol.doc().name
                ),
            )
            .into());
        }
        let host_given = given(host).is_some();
        let host = match given(host) {
            Some(host) => text("host", host)?,
            None => "127.0.0.1".to_owned(),
        };
        let mut port = int("port", port, 0, 65535)?;
        let free_port = port == 0;
        if free_port {
            let free = world
                .ports
                .free()
                .map_err(|e| Problem::param("port", format!("no free port could be found: {e}")))?;
            port = i64::from(free);
        }
        let port = u16::try_from(port).unwrap_or(u16::MAX);
        let addr = address(&host, port).ok_or_else(|| no_address("host", &host))?;
        let proxied = match given(proxy) {
            Some(proxy) => boolean("proxy", proxy)?,
            None => true,
        };
        let doc = protocol.doc();
        Ok(InterfaceValue {
            service: None,
            decl: InterfaceDecl {
                name,
                protocol: doc.name,
                addr,
                host,
                proxy_addr: None,
                tls,
            },
            host_given,
            free_port,
            proxied,
            transport: protocol.transport(),
            doc,
            site,
        })
    }
}

/// Adds it.
pub fn register(builder: &mut GlobalsBuilder) {
    module(builder);
}
