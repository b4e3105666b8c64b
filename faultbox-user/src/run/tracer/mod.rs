//! What the kernel sees and decides for us: eBPF programs, loaded once per run and shared by its workers.
//!
//! The runner loads the programs and attaches them ([`Kernel`]); closing its descriptors, by whatever end, detaches them. Each worker
//! inherits the maps ([`Share`]) and writes its services into them ([`Watch`]). Where any of this is refused, the run goes on
//! with what is left: proxies are reached by the addresses that services are given, nothing is counted that seccomp does not see, and
//! what only the kernel can do (packet loss) is an error.

pub mod activity;
pub mod addresses;
mod btf;
mod cuts;
pub mod debug;
mod hooks;
mod lent;
mod object;
mod records;
mod stream;
mod watch;

use std::collections::BTreeMap;
use std::os::fd::RawFd;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::isolation::cgroup;
use crate::spec::LoadedSpec;

pub use cuts::{CutRule, Flow};
pub use object::{Kernel, knows_processes};
pub use watch::Watch;

/// A group of programs that is there or not as a whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Feature {
    /// System calls are counted and timed.
    Calls,
    /// Processes are followed.
    Processes,
    /// Connections are sent to proxies.
    Dial,
    /// Connections are refused, with an errno of ours.
    Refuse,
    /// Connections are followed, and proxies know at once who calls.
    Sockets,
    /// Connections that fail by themselves are told with their errno.
    Errnos,
    /// Packets are dropped between services.
    Packets,
}

impl Feature {
    /// All of them.
    pub const ALL: [Feature; 7] = [
        Feature::Calls,
        Feature::Processes,
        Feature::Dial,
        Feature::Refuse,
        Feature::Sockets,
        Feature::Errnos,
        Feature::Packets,
    ];

    /// Do its programs look into the kernel's structures, at places that its types tell?
    pub fn reads_types(self) -> bool {
        matches!(self, Feature::Processes | Feature::Errnos)
    }

    /// What a run loses without it.
    pub fn lost(self) -> &'static str {
        match self {
            Feature::Calls => "counts and latencies of system calls",
            Feature::Processes => "events about processes",
            Feature::Dial => {
                "redirection: services reach proxies only by the addresses that the spec gives them"
            }
            Feature::Refuse => {
                "refusals of connections in the kernel: the supervisor makes them, in microseconds each"
            }
            Feature::Sockets => "events about connections",
            Feature::Errnos => "errno of connections that fail by themselves",
            Feature::Packets => "packet loss, and partitions of UDP",
        }
    }
}

/// What a worker gets: descriptors that it has inherited, and its ring.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Share {
    /// The maps' names and descriptors.
    pub maps: BTreeMap<String, RawFd>,
    /// What is there.
    pub features: Vec<Feature>,
    /// What could not be attached, and why.
    pub missing: Vec<(Feature, String)>,
    /// The index of its own ring; `None` if too many tests run at once.
    pub ring: Option<u32>,
    /// Programs that are loaded and that the worker attaches when it wants: the tracepoint of each, if it has one, and its descriptor.
    pub lent: Vec<(Option<String>, RawFd)>,
}

/// What the tests of a spec may need. The rest is not attached: what counts system calls is asked at those of every process of the machine.
pub fn needed(spec: &LoadedSpec) -> Vec<Feature> {
    let streams = |kinds: &[&str]| kinds.iter().any(|kind| spec.streams().contains(kind));
    Feature::ALL
        .into_iter()
        .filter(|feature| match feature {
            Feature::Calls => spec.counts_calls() || streams(&["open", "call"]),
            Feature::Processes => streams(&["fork", "exec", "exit"]),
            Feature::Errnos => streams(&["connect"]),
            Feature::Packets => spec.cuts_packets(),
            Feature::Dial | Feature::Refuse | Feature::Sockets => true,
        })
        .collect()
}

/// The kernel's side of the run: these features of it, as far as they can be had. What is `lent` is loaded and left to the worker to attach.
/// `listener` hears what the programs do.
///
/// # Errors
/// Why none of it can be had, as a lower-case fragment.
pub fn load(
    cgroup: Option<&Path>,
    jobs: usize,
    wanted: &[Feature],
    lent: Option<Feature>,
    listener: Option<debug::Listener>,
) -> Result<Kernel, String> {
    if !crate::sys::probe::bpf_capability() {
        return Err("no CAP_BPF".to_owned());
    }
    let cgroup = cgroup.ok_or("no writable cgroup v2")?;
    // A service's cgroup is two below the run's: the test's, then its own.
    let level = cgroup::level(cgroup).map(|run| run + 2);
    Kernel::load(cgroup, level, jobs, wanted, lent, listener)
}

/// What the run has to do without, a line each.
pub fn notes(kernel: &Result<Kernel, String>) -> Vec<String> {
    match kernel {
        Err(why) => vec![format!(
            "no eBPF ({why}), so there is no redirection, no packet loss and no count of system calls, and partitions cut TCP only; `faultbox doctor` tells how to get it"
        )],
        Ok(kernel) => kernel
            .missing()
            .iter()
            .map(|(feature, why)| format!("no {}: {why}", Feature::lost(*feature)))
            .collect(),
    }
}
