//! Kafka's protocol for Faultbox.
//!
//! [`codec`] turns bytes into messages by a table of all versions, [`records`] looks into record batches, [`rules`] says what can be
//! matched and done. Between client and broker stands `proxy`, with `requests`, `replies` and the `link` between them; `judge` asks
//! the rules, `course` decides what becomes of a request, `answer` makes responses, `lose` and `losses` make records vanish without
//! a trace. `steps` is the client for specs.

mod advertised;
pub mod answer;
pub mod codec;
mod course;
pub mod errors;
mod judge;
mod link;
mod lose;
mod losses;
mod proxy;
pub mod records;
mod replies;
mod requests;
pub mod rules;
mod steps;
mod subjects;

use std::any::Any;
use std::sync::Arc;

use faultbox_contract::{
    ArgError, BoxFuture, CheckedRule, CheckedStep, Endpoint, Protocol, ProtocolDoc, ProxyHost,
    Response,
};

/// Kafka, for the fleet.
pub fn protocol() -> &'static dyn Protocol {
    &Kafka
}

struct Kafka;

impl Protocol for Kafka {
    fn doc(&self) -> &'static ProtocolDoc {
        &rules::DOC
    }

    fn compile(&self, rule: &CheckedRule) -> Result<Arc<dyn Any + Send + Sync>, ArgError> {
        rules::compile(rule)
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
