//! HTTP/1.1 for Faultbox.
//!
//! `codec` finds where messages begin and end, `rules` says what can be matched and done, `proxy` (with `requests`, `replies` and
//! the `link` between them) stands between client and server, `steps` is the client for specs.

pub mod codec;
mod link;
mod proxy;
mod replies;
mod requests;
pub mod rules;
pub mod steps;

use std::any::Any;
use std::sync::Arc;

use faultbox_contract::{
    ArgError, BoxFuture, CheckedRule, CheckedStep, Endpoint, Protocol, ProtocolDoc, ProxyHost,
    Response,
};

/// HTTP/1.1.
#[derive(Debug)]
pub struct Http;

/// This crate's protocol.
pub fn protocol() -> &'static dyn Protocol {
    &Http
}

impl Protocol for Http {
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
        Box::pin(steps::step(endpoint, call))
    }

    fn ready(&self, endpoint: Endpoint) -> BoxFuture<'static, Result<(), String>> {
        Box::pin(steps::ready(endpoint))
    }
}
