//! HTTP/2 and gRPC for Faultbox: one crate, two protocols.
//!
//! [`codec`] knows frames and HPACK, [`rules`] says what can be matched and done, [`session`] is what goes on over one connection
//! without any I/O, `proxy` moves its bytes, `steps` is the client for specs. [`status`] and `details` are gRPC's errors, [`reflection`] is how it tells its types.

pub mod codec;
mod details;
mod proxy;
pub mod reflection;
pub mod rules;
mod session;
pub mod status;
mod steps;
mod upgrade;

use std::any::Any;
use std::sync::Arc;

use faultbox_contract::{
    ArgError, BoxFuture, CheckedRule, CheckedStep, Endpoint, Protocol, ProtocolDoc, ProxyHost,
    Response,
};
use rules::Flavour;

/// HTTP/2, for the fleet.
pub fn http2() -> &'static dyn Protocol {
    &Http2(Flavour::Http2)
}

/// gRPC, for the fleet.
pub fn grpc() -> &'static dyn Protocol {
    &Http2(Flavour::Grpc)
}

struct Http2(Flavour);

impl Protocol for Http2 {
    fn doc(&self) -> &'static ProtocolDoc {
        match self.0 {
            Flavour::Http2 => &rules::HTTP2,
            Flavour::Grpc => &rules::GRPC,
        }
    }

    fn compile(&self, rule: &CheckedRule) -> Result<Arc<dyn Any + Send + Sync>, ArgError> {
        rules::compile(rule, self.0)
    }

    fn serve(&self, host: ProxyHost) -> BoxFuture<'static, ()> {
        let flavour = self.0;
        Box::pin(faultbox_engine::serve(host, move |conn| {
            proxy::run(conn, flavour)
        }))
    }

    fn step(
        &self,
        endpoint: Endpoint,
        call: CheckedStep,
    ) -> BoxFuture<'static, Result<Response, ArgError>> {
        match self.0 {
            Flavour::Http2 => Box::pin(steps::request(endpoint, call)),
            Flavour::Grpc => Box::pin(steps::call(endpoint, call)),
        }
    }

    fn ready(&self, endpoint: Endpoint) -> BoxFuture<'static, Result<(), String>> {
        match self.0 {
            Flavour::Http2 => Box::pin(steps::ready_http2(endpoint)),
            Flavour::Grpc => Box::pin(steps::ready_grpc(endpoint)),
        }
    }
}
