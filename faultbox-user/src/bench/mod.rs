//! `faultbox bench`: what mediation costs an interface of a spec, with and without it in turns, and how sure that is.
//!
//! The command makes a [plan](plan) of what is driven, a worker starts the topology once and [drives](drive) it, and the command
//! [concludes](analysis) from the blocks that come back.

pub mod analysis;
pub mod cost;
pub mod document;
pub mod drive;
pub mod html;
pub mod judge;
pub mod log;
pub mod machine;
pub mod plan;
mod states;
pub mod stats;
pub mod text;
