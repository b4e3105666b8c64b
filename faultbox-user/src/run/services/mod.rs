//! Services: start, readiness, logs, stop.
//!
//! - [`nursery`]: the one thread that starts processes and learns of their end
//! - [`service`]: one service's life, from start to the last process of its tree
//! - [`health`]: when a service counts as ready
//! - [`logs`]: where its output goes
//! - [`env`]: what it finds in its environment
//! - [`user`]: the user it runs as

pub mod env;
pub mod health;
pub mod logs;
pub mod nursery;
pub mod service;
pub mod user;

pub use nursery::Nursery;
pub use service::Service;
