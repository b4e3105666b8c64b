//! Plain TCP for Faultbox: any protocol that has no proxy of its own, with faults at the level of bytes.

mod proxy;
pub mod rules;
pub mod steps;

use std::any::Any;
use std::sync::Arc;

use faultbox_contract::{
    ArgError, BoxFuture, CheckedRule, CheckedStep, Endpoint, Protocol, ProtocolDoc, ProxyHost,
    Response,
};

/// Plain TCP.
#[derive(Debug)]
pub struct Tcp;

/// This crate's protocol.
pub fn protocol() -> &'static dyn Protocol {
    &Tcp
}

impl Protocol for Tcp {
    fn doc(&self) -> &'static ProtocolDoc {
        &rules::DOC
    }

    fn compile(&self, rule: &CheckedRule) -> Result<Arc<dyn Any + Send + Sync>, ArgError> {
        rules::compile(rule)
    }

    fn serve(&self, host: ProxyHost) -> BoxFuture<'static, ()> {
        Box::pin(faultbox_engine::serve(host, proxy::run))
    }

    fn step(
        &self,
        endpoint: Endpoint,
        call: CheckedStep,
    ) -> BoxFuture<'static, Result<Response, ArgError>> {
        Box::pin(async move { Ok(steps::send(&endpoint, &call).await) })
    }

    fn ready(&self, endpoint: Endpoint) -> BoxFuture<'static, Result<(), String>> {
        Box::pin(steps::ready(endpoint))
    }
}
