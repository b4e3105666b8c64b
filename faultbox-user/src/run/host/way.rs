//! The way that a test's own requests take to a service: through the proxy, as everybody's do, or around it, to see what the proxy adds.

use std::sync::{Arc, PoisonError};
use std::time::Duration;

use faultbox_contract::{Addresses, Endpoint};

use super::TestHost;
use crate::plan::{InterfaceDecl, ServiceDecl};
use crate::run::fleet;
use crate::workload;

/// Which proxies the test's own requests go around. What services say to each other takes its usual way in any case.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Bypass {
    /// None of them.
    #[default]
    None,
    /// That of one interface: service and interface.
    One(String, String),
    /// All of them.
    All,
}

impl TestHost {
    /// Sends what follows around these proxies.
    pub fn set_bypass(&self, bypass: Bypass) {
        *self.bypass.write().unwrap_or_else(PoisonError::into_inner) = bypass;
    }

    fn bypasses(&self, service: &str, interface: &str) -> bool {
        match &*self.bypass.read().unwrap_or_else(PoisonError::into_inner) {
            Bypass::None => false,
            Bypass::One(s, i) => s == service && i == interface,
            Bypass::All => true,
        }
    }

    /// Where a request of the test's own goes.
    pub(super) fn endpoint(
        &self,
        service: &ServiceDecl,
        interface: &InterfaceDecl,
        attempt: Duration,
    ) -> Endpoint {
        let around = self.bypasses(&service.name, &interface.name);
        let (addr, addresses) = match around {
            true => (interface.addr, Addresses::default()),
            false => (interface.consumer_addr(), fleet::addresses(&self.topology)),
        };
        Endpoint {
            addr,
            host: interface.host.clone(),
            env: Arc::new(service.env.clone()),
            attempt,
            addresses: Arc::new(addresses),
            tls: self.checker.certificates.of(interface),
            kept: workload::kept(),
        }
    }

    /// Asks once whether an interface is ready, in its protocol's own words, the way that steps go.
    ///
    /// # Errors
    /// It is not, or there is no such interface.
    pub async fn probe(
        &self,
        service: &str,
        interface: &str,
        attempt: Duration,
    ) -> Result<(), String> {
        let (decl, face) = self
            .topology
            .service(service)
            .and_then(|s| Some((s, s.interface(interface)?)))
            .ok_or_else(|| format!("there is no interface {service}.{interface}"))?;
        let protocol = fleet::protocol(face.protocol)
            .ok_or_else(|| format!("protocol {} is not in the fleet", face.protocol))?;
        let endpoint = self.endpoint(decl, face, attempt);
        tokio::time::timeout(attempt + super::STEP_GRACE, protocol.ready(endpoint))
            .await
            .unwrap_or_else(|_| Err("ETIMEDOUT".to_owned()))
    }
}
