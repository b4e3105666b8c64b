//! What every Faultbox proxy shares: accepting, dialling, TLS, forwarding, faults at the level of bytes, exact timers, measuring.
//!
//! A protocol crate calls [`serve`] with a function that handles one [`Conn`]. Unless it has something better to do, that
//! function calls [`pump`], which forwards raw bytes until both sides are done.
//!
//! The invariants that everything here keeps:
//!
//! * A proxy with no armed rule forwards every byte unchanged, in order, with half-close intact and without an idle timeout.
//! * A FIN passes as a FIN and a reset as a reset: a client sees a dead or dying upstream as it would without the proxy.
//! * Buffers are bounded, and a slow reader slows its writer down.
//!
//! Datagrams go through [`serve_datagrams`]: unchanged, each flow in order, errors passed on.

mod accept;
mod added;
mod conn;
mod datagram;
mod directions;
mod effects;
mod fault;
mod front;
mod inbox;
mod pump;
mod socket;
#[cfg(feature = "testing")]
pub mod testing;
pub mod timer;
mod times;
pub mod tls;
pub mod web;

pub use accept::{serve, serve_upgrading};
pub use added::Added;
pub use conn::{Conn, Origin};
pub use datagram::{Datagrams, Flow, IDLE, Outbox, Way, serve_datagrams};
pub use directions::{Ending, both, close, finish};
pub use effects::Effects;
pub use fault::{Throttle, serve_delays};
pub use front::{send_front, send_front_watching};
pub use inbox::Inbox;
pub use pump::{End, forward, pump};
pub use socket::{
    dial, errno_name, gone, has_ended, heard, is_quiet, is_reset, linger, reset, send,
    send_watching,
};
pub use times::Times;
pub use tls::open;
