//! Faultbox: a tester writes a Starlark spec of services, faults, scenarios and what must hold; `faultbox test` starts the services,
//! injects the faults, and tells which scenario × fault cells hold and why.
//!
//! spec → plan → run (services, supervisor, fleet) → events → verdict → report. `ARCHITECTURE.md` tells how they hang together.

pub mod bench;
pub mod cli;
pub mod events;
pub mod plan;
pub mod report;
pub mod run;
pub mod spec;
pub mod sys;
pub mod verdict;
pub mod workload;
