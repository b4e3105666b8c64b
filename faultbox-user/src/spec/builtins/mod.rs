//! The builtins of the spec language: one small family per file, the user's documentation on the function.
// A builtin has as many parameters as the language gives it.
#![allow(clippy::too_many_arguments)]

pub mod actions;
pub mod assertions;
pub mod assumption;
pub mod certificate;
pub mod concurrency;
pub mod events;
pub mod expectations;
pub mod fault;
pub mod health;
pub mod interface;
pub mod matrix;
pub mod mock;
pub mod mock_calls;
mod names;
pub mod partition;
pub mod process;
pub mod scenario;
pub mod service;
pub mod time;
pub mod trace;
pub mod unsupported;
pub mod workload;

use std::sync::OnceLock;

use starlark::environment::{Globals, GlobalsBuilder, LibraryExtension};

/// Starlark's own names and ours.
pub fn globals() -> &'static Globals {
    static GLOBALS: OnceLock<Globals> = OnceLock::new();
    GLOBALS.get_or_init(|| {
        GlobalsBuilder::extended_by(&[
            LibraryExtension::StructType,
            LibraryExtension::RecordType,
            LibraryExtension::EnumType,
            LibraryExtension::Map,
            LibraryExtension::Filter,
            LibraryExtension::Partial,
            LibraryExtension::Print,
            LibraryExtension::Json,
            LibraryExtension::Typing,
            LibraryExtension::SetType,
        ])
        .with(ours)
        .build()
    })
}

/// Our names alone: what the pages about the language are generated from.
pub fn ours(builder: &mut GlobalsBuilder) {
    service::register(builder);
    interface::register(builder);
    mock::register(builder);
    mock_calls::register(builder);
    certificate::register(builder);
    health::register(builder);
    actions::register(builder);
    fault::register(builder);
    assumption::register(builder);
    scenario::register(builder);
    matrix::register(builder);
    expectations::register(builder);
    assertions::register(builder);
    events::register(builder);
    concurrency::register(builder);
    partition::register(builder);
    process::register(builder);
    time::register(builder);
    trace::register(builder);
    workload::register(builder);
    builder.namespace("observe", service::observe);
}
