//! What keeps tests apart: network namespaces and cgroups.

pub mod cgroup;
pub mod netns;

pub use netns::Network;
