//! Mocks: servers that speak a protocol to real clients and answer as a spec says.
//!
//! [`plan`] is what a spec says, [`script`] makes routes ready and chooses, [`calls`] records what was asked, [`functions`] asks the
//! spec's own functions. Each protocol has a folder: [`http`], [`redis`], [`kafka`], [`grpc`].

pub mod calls;
pub mod functions;
pub mod grpc;
pub mod http;
pub mod kafka;
pub mod plan;
pub mod redis;
pub mod script;
mod serve;

use faultbox_contract::{ArgError, ParamDoc};

pub use functions::Functions;
pub use plan::Plan;
pub use script::Mistake;
pub use serve::run;

use plan::Face;
use script::{Routes, Script};

/// The protocols that can be mocked, by their canonical names.
pub const PROTOCOLS: &[&str] = &["http", "redis", "kafka", "grpc"];

/// Checks all that can be known of an interface before it runs.
///
/// # Errors
/// A pattern or a reply that is none, with its place.
pub fn check(face: &Face) -> Result<(), Mistake> {
    let functions = Functions::default();
    match face.protocol.as_str() {
        "http" => Routes::new(http::Http, face, functions).map(drop),
        "redis" => Routes::new(redis::Redis, face, functions).map(drop),
        "kafka" => Routes::new(kafka::Kafka, face, functions).map(drop),
        "grpc" => grpc::Grpc::open(face.descriptors.as_deref())
            .map_err(Mistake::of_face)
            .and_then(|grpc| Routes::new(grpc, face, functions).map(drop)),
        other => Err(Mistake {
            route: None,
            answer: None,
            error: ArgError::new("", format!("protocol {other} cannot be mocked"))
                .hint(format!("those that can are {}", PROTOCOLS.join(", "))),
        }),
    }
}

/// The keywords that `reply()` takes, of all protocols together; each once.
pub fn keywords() -> Vec<&'static ParamDoc> {
    let mut all: Vec<&ParamDoc> = vec![&script::DELAY];
    for one in [
        http::Http.keywords(),
        redis::Redis.keywords(),
        kafka::Kafka.keywords(),
        grpc::Grpc::default().keywords(),
    ] {
        for param in one {
            if all.iter().all(|p| p.name != param.name) {
                all.push(param);
            }
        }
    }
    all
}

/// The fields that the record of a call can have, besides those that the records of all protocols have; none of what is no mock.
pub fn call_fields(protocol: &str) -> &'static [&'static str] {
    match protocol {
        "http" => http::CALL_FIELDS,
        "redis" => redis::CALL_FIELDS,
        "kafka" => kafka::CALL_FIELDS,
        "grpc" => grpc::CALL_FIELDS,
        _ => &[],
    }
}
