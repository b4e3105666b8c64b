//! RESP, the protocol of Redis and Valkey, for Faultbox.
//!
//! [`codec`] turns bytes into commands and replies, [`value`] holds what replies say, [`commands`] is the servers' own command
//! table, [`rules`] holds the tables of rules, [`session`] keeps commands and replies together, [`proxy`] moves the bytes, [`steps`]
//! is the client for specs.

pub mod codec;
pub mod commands;
mod effects;
mod proxy;
mod redirect;
pub mod rules;
mod session;
mod steps;
pub mod value;

use std::any::Any;
use std::sync::Arc;

use faultbox_contract::{
    ArgError, BoxFuture, CheckedRule, CheckedStep, Endpoint, Protocol, ProtocolDoc, ProxyHost,
    Response,
};

/// Redis, for the fleet.
pub fn protocol() -> &'static dyn Protocol {
    &Redis
}

struct Redis;

impl Protocol for Redis {
    fn doc(&self) -> &'static ProtocolDoc {
        &rules::DOC
    }

    fn compile(&self, rule: &CheckedRule) -> Result<Arc<dyn Any + Send + Sync>, ArgError> {
        Ok(Arc::new(rules::compile(rule)?))
    }

    fn serve(&self, host: ProxyHost) -> BoxFuture<'static, ()> {
        Box::pin(proxy::serve(host))
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
