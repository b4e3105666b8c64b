//! What a protocol is, for the rest of Faultbox.
//!
//! A protocol crate describes itself with tables ([`ProtocolDoc`]): which matchers and actions its rules take, which steps a
//! spec may call. The spec language, `faultbox protocols` and the proxies all read the same tables, so an unknown matcher is an
//! error that lists the known ones. Nothing here knows Starlark, seccomp or reports.
//!
//! Dependencies point one way: contract ← engine ← protocol ← fleet ← faultbox.

pub mod addresses;
pub mod args;
pub mod clock;
pub mod doc;
pub mod duration;
pub mod glob;
pub mod kept;
pub mod lanes;
pub mod meter;
pub mod protocol;
pub mod rule;
pub mod step;
pub mod tls;
pub mod trigger;

pub use addresses::{Address, Addresses};
pub use args::Arg;
pub use doc::{ActionDoc, Kind, ParamDoc, ProtocolDoc, StepDoc};
pub use glob::{Dialect, Glob};
pub use kept::Kept;
pub use lanes::{Lanes, Seat};
pub use meter::Meter;
pub use protocol::{
    BoxFuture, Endpoint, EventSink, Protocol, ProxyEvent, ProxyHost, SourceLookup, Transport,
};
pub use rule::{ArgError, ArmedRule, CheckedRule, RuleSet, RuleSpec};
pub use step::{CheckedStep, Response};
pub use tls::Tls;
pub use trigger::{Trigger, TriggerSpec};
