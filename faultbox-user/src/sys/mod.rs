//! The kernel's edge: the only unsafe code in user space.

pub mod baton;
pub mod descriptors;
pub mod hurry;
pub mod inherit;
pub mod launch;
pub mod memory;
pub mod mute;
pub mod names;
pub mod path;
pub mod pidfd;
pub mod probe;
pub mod procfs;
pub mod ptrace;
pub mod seccomp;
pub mod shape;
pub mod signals;
pub mod socket;
pub mod tracepoint;
pub mod wake;
