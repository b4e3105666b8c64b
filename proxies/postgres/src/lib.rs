//! PostgreSQL's protocol v3 for Faultbox.
//!
//! [`codec`] turns bytes into messages, [`faultbox_sql`] says which statements a pattern means, [`rules`] holds the tables, [`session`]
//! keeps requests and answers together, [`proxy`] moves the bytes, [`steps`] is the client for specs.

mod answer;
pub mod codec;
mod effects;
mod encode;
mod encryption;
mod formats;
mod proxy;
pub mod rules;
mod session;
pub mod sqlstate;
mod steps;
mod values;

use std::any::Any;
use std::sync::Arc;

use faultbox_contract::{
    ArgError, BoxFuture, CheckedRule, CheckedStep, Endpoint, Protocol, ProtocolDoc, ProxyHost,
    Response,
};

/// PostgreSQL, for the fleet.
pub fn protocol() -> &'static dyn Protocol {
    &Postgres
}

struct Postgres;

impl Protocol for Postgres {
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
