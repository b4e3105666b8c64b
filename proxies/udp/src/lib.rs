//! Plain UDP for Faultbox: any datagram protocol that has no proxy of its own.

mod proxy;
pub mod rules;
pub mod steps;

use std::any::Any;
use std::sync::Arc;

use faultbox_contract::{
    ArgError, BoxFuture, CheckedRule, CheckedStep, Endpoint, Protocol, ProtocolDoc, ProxyHost,
    Response, Transport,
};

/// Plain UDP.
#[derive(Debug)]
pub struct Udp;

/// This crate's protocol.
pub fn protocol() -> &'static dyn Protocol {
    &Udp
}

impl Protocol for Udp {
    fn doc(&self) -> &'static ProtocolDoc {
        &rules::DOC
    }

    fn transport(&self) -> Transport {
        Transport::Udp
    }

    fn compile(&self, rule: &CheckedRule) -> Result<Arc<dyn Any + Send + Sync>, ArgError> {
        rules::compile(rule)
    }

    fn serve(&self, host: ProxyHost) -> BoxFuture<'static, ()> {
        Box::pin(faultbox_engine::serve_datagrams(host, proxy::Proxy))
    }

    fn step(
        &self,
        endpoint: Endpoint,
        call: CheckedStep,
    ) -> BoxFuture<'static, Result<Response, ArgError>> {
        Box::pin(async move { Ok(steps::send(&endpoint, &call).await) })
    }

    fn ready(&self, endpoint: Endpoint) -> BoxFuture<'static, Result<(), String>> {
        Box::pin(async move { steps::ready(&endpoint) })
    }
}
