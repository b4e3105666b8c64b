//! The values that the builtins make.

pub mod action;
pub mod assumption;
pub mod certificate;
pub mod counts;
pub mod event;
pub mod expectation;
pub mod handle;
pub mod health;
pub mod interface;
pub mod observe;
pub mod op;
pub mod reply;
pub mod response;
pub mod service;
pub mod step;
pub mod workload;
