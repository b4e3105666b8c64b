//! The maps. User space may raise the number of entries when it loads them.

use aya_ebpf::btf_maps::{Array, ArrayOfMaps, HashMap, LruHashMap, PerCpuArray, RingBuf, Stack};
use aya_ebpf::macros::btf_map;
use faultbox_ebpf_common::{
    CallClass, CallKey, CallStats, Cut, CutKey, Dial, PortKey, RINGS, Redirect, RedirectKey, Refusals,
    Service, lost,
};

use crate::threads::TaskStorage;

/// The services by their cgroups' ids.
#[btf_map]
pub static SERVICES: HashMap<u64, Service, 1024> = HashMap::new();

/// What came of services' calls, at places that [`PLACES`] knows.
#[btf_map]
pub static STATS: PerCpuArray<CallStats, 1024> = PerCpuArray::new();

/// Where in [`STATS`] a service's calls of one number are counted.
#[btf_map]
pub static PLACES: HashMap<CallKey, u32, 1024> = HashMap::new();

/// The places that nobody has. User space fills it, and puts back what a test has had.
#[btf_map]
pub static FREE: Stack<u32, 1024> = Stack::new();

/// Which calls have a meaning beyond their number.
#[btf_map]
pub static CLASSES: Array<CallClass, 512> = Array::new();

/// A thread of a service: whose it is, and what it is in.
#[repr(C)]
pub struct Thread {
    /// The [`EPOCH`] in which `service` was found.
    pub epoch: u64,
    /// Whose it is; slot 0 if nobody's.
    pub service: Service,
    /// When it entered the call.
    pub at_ns: u64,
    /// Which call.
    pub nr: u64,
    /// Its path argument, if it has one.
    pub path: u64,
    /// The directory of a relative path.
    pub directory: i64,
    /// Where its service's calls are counted, as far as it has made any: their number in the upper half, the place plus 1 in the lower;
    /// or 0. Calls whose numbers end alike share an entry, and take turns in it.
    pub places: [u64; KNOWN],
}

/// How many places a thread remembers; a power of two. Those of the calls that servers make all the time do not collide.
pub const KNOWN: usize = 64;

/// The threads of services. What belongs to a thread ends with it, and is found without a hash.
#[btf_map]
pub static THREADS: TaskStorage<Thread> = TaskStorage::new();

/// Another number each time that [`SERVICES`] has changed: what was found before must be looked up again.
#[btf_map]
pub static EPOCH: Array<u64, 1> = Array::new();

/// One ring per test that is running.
#[btf_map]
pub static STREAMS: ArrayOfMaps<RingBuf<u8, 4096>, { RINGS as usize }> = ArrayOfMaps::new();

/// What was not counted or not streamed, by ring and cause; the last are of tests that have no ring.
#[btf_map]
pub static LOST: Array<u64, { ((RINGS + 1) * lost::CAUSES) as usize }> = Array::new();

/// Destinations that lead to proxies.
#[btf_map]
pub static REDIRECTS: HashMap<RedirectKey, Redirect, 4096> = HashMap::new();

/// Destinations that are refused, by the slot of the service that is refused them.
#[btf_map]
pub static REFUSALS: HashMap<u32, Refusals, 256> = HashMap::new();

/// How often each rule refused.
#[btf_map]
pub static REFUSED: HashMap<u64, u64, 4096> = HashMap::new();

/// Connections that services have made, by their socket's cookie.
#[btf_map]
pub static DIALS: LruHashMap<u64, Dial, 16384> = LruHashMap::new();

/// Which service a port of an interface or of its proxy belongs to; written by user space when a test begins.
#[btf_map]
pub static DECLARED: HashMap<PortKey, u32, 4096> = HashMap::new();

/// Which service any other port belongs to, as far as is known: the table forgets the least recently used, and a packet that its service
/// sends puts a port back.
#[btf_map]
pub static PORTS: LruHashMap<PortKey, u32, 16384> = LruHashMap::new();

/// Flows that are cut or lossy.
#[btf_map]
pub static CUTS: HashMap<CutKey, Cut, 1024> = HashMap::new();

/// Not zero once the run has cut anything: before, packets are not looked at.
#[btf_map]
pub static ARMED: Array<u64, 1> = Array::new();
