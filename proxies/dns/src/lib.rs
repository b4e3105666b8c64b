//! DNS for Faultbox, over UDP and over TCP on the same port.
//!
//! `codec` reads messages and names, `records` what resource records hold, `answer` writes replies; `rules` says what can be matched
//! and done, `proxy` (with `stream` for TCP) stands between client and server, `steps` is the client for specs.

pub mod answer;
pub mod codec;
mod proxy;
pub mod records;
pub mod rules;
pub mod steps;
mod stream;

use std::any::Any;
use std::sync::Arc;

use faultbox_contract::{
    ArgError, BoxFuture, CheckedRule, CheckedStep, Endpoint, Protocol, ProtocolDoc, ProxyHost,
    Response, Transport,
};

/// DNS.
#[derive(Debug)]
pub struct Dns;

/// This crate's protocol.
pub fn protocol() -> &'static dyn Protocol {
    &Dns
}

impl Protocol for Dns {
    fn doc(&self) -> &'static ProtocolDoc {
        &rules::DOC
    }

    fn transport(&self) -> Transport {
        Transport::TcpAndUdp
    }

    fn compile(&self, rule: &CheckedRule) -> Result<Arc<dyn Any + Send + Sync>, ArgError> {
        rules::compile(rule)
    }

    fn serve(&self, host: ProxyHost) -> BoxFuture<'static, ()> {
        Box::pin(async move {
            tokio::join!(
                faultbox_engine::serve_datagrams(host.clone(), proxy::Proxy),
                faultbox_engine::serve(host, stream::run),
            );
        })
    }

    fn step(
        &self,
        endpoint: Endpoint,
        call: CheckedStep,
    ) -> BoxFuture<'static, Result<Response, ArgError>> {
        Box::pin(steps::query(endpoint, call))
    }

    fn ready(&self, endpoint: Endpoint) -> BoxFuture<'static, Result<(), String>> {
        Box::pin(steps::ready(endpoint))
    }
}
