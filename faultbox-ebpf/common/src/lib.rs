//! The records that Faultbox's eBPF programs and its user space share: keys and values of maps, and what streams through rings.
//!
//! Everything here is `repr(C)` without padding, because the kernel compares map keys byte by byte and the verifier refuses to copy
//! out what was never written. Addresses are IPv6 in network byte order, IPv4 ones mapped (`::ffff:a.b.c.d`, RFC 4291 section 2.5.5.2);
//! ports are in host byte order.

#![no_std]

/// How many rings there are, and so how many tests of one run can stream at the same time.
pub const RINGS: u32 = 64;

/// How many refused destinations one service may have in the kernel; more are left to seccomp. The loop over them is unrolled.
pub const REFUSALS: usize = 16;

/// Buckets of a latency histogram: two per power of two, from 1 ns to 2^32 ns (4.3 s); what is longer counts in the last.
pub const BUCKETS: usize = 64;

/// The longest path that the kernel takes, its terminating zero included (PATH_MAX in linux/limits.h).
pub const PATH: usize = 4096;

/// Marks the number of a 32-bit call on a 64-bit machine, which has numbers of its own.
pub const COMPAT: u32 = 1 << 31;

/// A service of a run, found by its cgroup.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Service {
    /// Unique in the run; never 0.
    pub slot: u32,
    /// The worker that it belongs to. Workers have networks of their own, so ports and addresses mean something only together with it.
    pub worker: u32,
    /// Where its records go: below [`RINGS`].
    pub ring: u32,
    /// A set of `want::*`.
    pub wants: u32,
}

/// What of a service is streamed; everything else is only counted.
pub mod want {
    /// Every system call.
    pub const SYSCALL: u32 = 1;
    /// Files opened, with their paths.
    pub const OPEN: u32 = 2;
    /// Processes that begin, become another program, and end.
    pub const PROCESS: u32 = 4;
    /// Connections opened, refused and closed.
    pub const CONNECT: u32 = 8;
    /// All of them.
    pub const ALL: u32 = SYSCALL | OPEN | PROCESS | CONNECT;
}

/// Where a packet or a connection goes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Address {
    /// IPv6, or IPv4 mapped; network byte order.
    pub ip: [u32; 4],
    /// Host byte order.
    pub port: u32,
    /// IPPROTO_TCP or IPPROTO_UDP.
    pub proto: u32,
}

/// A destination that leads elsewhere, in one worker's network.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[repr(C)]
pub struct RedirectKey {
    /// The worker.
    pub worker: u32,
    /// The destination as the program wrote it.
    pub to: Address,
}

/// Where a redirected connection goes instead.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Redirect {
    /// The proxy.
    pub to: Address,
    /// The slot of the service whose interface this is: its own connections to itself stay as they are.
    pub owner: u32,
}

/// Marks a port's owner as spoken for by a proxy: what comes from there was not sent by the service itself, and passes no program of
/// ours when it leaves.
pub const BY_PROXY: u32 = 1 << 31;

/// A socket's own port in one worker's network; the value is the slot of the service that it belongs to, perhaps with [`BY_PROXY`].
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[repr(C)]
pub struct PortKey {
    /// The worker.
    pub worker: u32,
    /// IPPROTO_TCP or IPPROTO_UDP.
    pub proto: u32,
    /// Host byte order.
    pub port: u32,
}

/// A connection that a service is making, by its socket's cookie.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Dial {
    /// Who makes it.
    pub service: Service,
    /// Where the program wanted to go.
    pub wanted: Address,
    /// Where it was sent; the same if nothing redirects it.
    pub sent: Address,
    /// Who makes it.
    pub by: Caller,
    /// One of `dialling::*`.
    pub state: u64,
}

/// How far a connection has come.
pub mod dialling {
    /// connect(2) has been called.
    pub const ASKED: u64 = 0;
    /// Its first packet has been made.
    pub const BEGUN: u64 = 1;
    /// It is none, but a datagram or the destination of datagrams.
    pub const DATAGRAM: u64 = 2;
}

/// A thread, when it makes a call; see [`Header`].
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Caller {
    /// The process.
    pub pid: u32,
    /// The thread.
    pub tid: u32,
    /// Its name (prctl(2), PR_SET_NAME), filled up with zeros.
    pub comm: [u8; 16],
}

/// Flows from one service to another.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
#[repr(C)]
pub struct CutKey {
    /// The slot of the sender.
    pub from: u32,
    /// The slot of the receiver.
    pub to: u32,
}

/// What happens to the packets of such a flow.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Cut {
    /// A packet is dropped if its draw (53 bits) is below this; `1 << 53` drops all.
    pub below: u64,
    /// What the draws depend on.
    pub seed: u64,
    /// Packets that met this cut.
    pub met: u64,
    /// Packets that it dropped, and connects that it refused.
    pub dropped: u64,
    /// New connections are refused with this errno instead; 0 if they too are merely dropped.
    pub refuse: u32,
    /// Keeps the size a multiple of 8.
    pub reserved: u32,
}

/// One destination that a service's connects are refused to.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Refusal {
    /// The network, already masked.
    pub ip: [u32; 4],
    /// Which bits of the address count.
    pub mask: [u32; 4],
    /// The port; 0 for any.
    pub port: u32,
    /// What connect(2) returns, a positive errno.
    pub errno: u32,
    /// The rule that wants it.
    pub rule: u64,
}

/// The refusals of one service, the one that decides first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C)]
pub struct Refusals {
    /// How many there are.
    pub count: u32,
    /// Keeps the size a multiple of 8.
    pub reserved: u32,
    /// Those beyond `count` mean nothing.
    pub list: [Refusal; REFUSALS],
}

/// A service's calls of one number.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[repr(C)]
pub struct CallKey {
    /// The service.
    pub slot: u32,
    /// The system call's number.
    pub nr: u32,
}

/// What came of them, on one CPU.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C)]
pub struct CallStats {
    /// Calls that returned.
    pub count: u64,
    /// Those that returned an error.
    pub errors: u64,
    /// The time between entry and return of them all, in nanoseconds.
    pub total_ns: u64,
    /// How many took how long: see [`bucket`].
    pub histogram: [u32; BUCKETS],
}

impl CallStats {
    /// Nothing yet.
    pub const EMPTY: CallStats = CallStats {
        count: 0,
        errors: 0,
        total_ns: 0,
        histogram: [0; BUCKETS],
    };
}

/// The bucket of a duration: its power of two, and whether it lies in the upper half of that.
#[inline(always)]
pub const fn bucket(ns: u64) -> usize {
    if ns < 2 {
        return 0;
    }
    let power = 63 - ns.leading_zeros() as usize;
    let upper = ((ns >> (power - 1)) & 1) as usize;
    let at = power * 2 + upper;
    if at < BUCKETS { at } else { BUCKETS - 1 }
}

/// The shortest duration of a bucket, in nanoseconds.
const fn shortest(at: usize) -> u64 {
    if at < 2 {
        // 0 and 1 share the first bucket, and there is nothing between 1 and 2.
        return 2 * at as u64;
    }
    let power = at / 2;
    (1 << power) + ((at % 2) as u64) * (1 << (power - 1))
}

/// The shortest and the longest duration of a bucket, in nanoseconds; the last one is open above.
pub const fn bucket_bounds(at: usize) -> (u64, u64) {
    (shortest(at), shortest(at + 1) - 1)
}

/// What a system call means to the programs, by its number: numbers differ between machines, so user space fills this in.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[repr(C)]
pub struct CallClass {
    /// A set of `want::*` that ask for a record of this call.
    pub want: u32,
    /// Which argument is the path.
    pub path: u32,
    /// Which argument is the directory that a relative path starts from, plus 1; 0 if there is none.
    pub directory: u32,
}

/// Why something was not counted or not streamed: indices of a map of counters, `ring * CAUSES + cause`.
pub mod lost {
    /// The ring was full.
    pub const RING_FULL: u32 = 0;
    /// The table of (service, call) was full.
    pub const STATS_FULL: u32 = 1;
    /// There was no memory to remember what a thread is in.
    pub const NO_MEMORY: u32 = 2;
    /// The kernel did not run the program: on a kernel that may be preempted anywhere, another call had it running on this CPU.
    pub const NOT_RUN: u32 = 3;
    /// How many causes there are.
    pub const CAUSES: u32 = 4;
}

/// What a record is about.
pub mod kind {
    /// A [`super::CallRecord`]: a system call returned.
    pub const SYSCALL: u32 = 1;
    /// A [`super::OpenRecord`]: a file was opened, or could not be.
    pub const OPEN: u32 = 2;
    /// A [`super::ProcessRecord`]: a process began.
    pub const FORK: u32 = 3;
    /// A [`super::OpenRecord`] whose path is the program: a process became another program.
    pub const EXEC: u32 = 4;
    /// A [`super::ProcessRecord`]: a process ended.
    pub const EXIT: u32 = 5;
    /// A [`super::ConnectRecord`]: a connection is established.
    pub const CONNECTED: u32 = 6;
    /// A [`super::ConnectRecord`]: a connection could not be established.
    pub const FAILED: u32 = 7;
    /// A [`super::ConnectRecord`]: an established connection has ended.
    pub const CLOSED: u32 = 8;
    /// A [`super::ConnectRecord`] whose `value` is the rule: a connect was refused by a fault.
    pub const REFUSED: u32 = 9;
}

/// How every record begins.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Header {
    /// One of `kind::*`.
    pub kind: u32,
    /// The service.
    pub slot: u32,
    /// CLOCK_MONOTONIC, in nanoseconds.
    pub at_ns: u64,
    /// The process.
    pub pid: u32,
    /// The thread.
    pub tid: u32,
    /// Its name (prctl(2), PR_SET_NAME), filled up with zeros.
    pub comm: [u8; 16],
}

/// A system call returned.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[repr(C)]
pub struct CallRecord {
    /// Who and when.
    pub header: Header,
    /// Its number.
    pub nr: u64,
    /// What it returned; -errno for errors.
    pub returned: i64,
    /// How long it took.
    pub duration_ns: u64,
}

/// A call that names a file returned. What streams ends with the last byte of the path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C)]
pub struct OpenRecord {
    /// The call.
    pub call: CallRecord,
    /// Where a relative path starts: a descriptor, or AT_FDCWD.
    pub directory: i32,
    /// How much of `path` there is, its terminating zero included; 0 if the path could not be read.
    pub length: u32,
    /// As the program wrote it.
    pub path: [u8; PATH],
}

/// A process began or ended.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[repr(C)]
pub struct ProcessRecord {
    /// Who and when.
    pub header: Header,
    /// The child's pid, or the status as wait(2) has it; -1 if the kernel does not let it be known.
    pub value: i64,
}

/// A connection changed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[repr(C)]
pub struct ConnectRecord {
    /// Who dialled, and when it is told.
    pub header: Header,
    /// Where the program wanted to go.
    pub wanted: Address,
    /// Where it was sent.
    pub sent: Address,
    /// The socket's own port.
    pub local_port: u32,
    /// An errno, if it failed.
    pub errno: u32,
    /// A rule, if one refused it.
    pub value: u64,
    /// Bytes that the peer has acknowledged, if it has ended.
    pub sent_bytes: u64,
    /// Bytes that came, if it has ended.
    pub received_bytes: u64,
}

/// One step of SplitMix64 (Steele, Lea, Flood: "Fast splittable pseudorandom number generators", OOPSLA 2014).
#[inline(always)]
pub const fn mix(mut z: u64) -> u64 {
    z = z.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// The draw of the n-th packet under a seed: 53 bits, as the triggers of all other faults draw.
#[inline(always)]
pub const fn draw(seed: u64, n: u64) -> u64 {
    mix(seed ^ mix(n)) >> 11
}

#[cfg(feature = "user")]
mod user {
    use super::*;

    macro_rules! pod {
        ($($record:ty)*) => {$(
            // SAFETY: repr(C), made of integers and arrays of them, without padding: any bytes are a value.
            unsafe impl aya::Pod for $record {}
        )*};
    }
    pod!(Service RedirectKey Redirect PortKey CutKey Cut Refusals CallKey CallStats CallClass Dial);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_cover_every_duration_once() {
        for at in 0..BUCKETS - 1 {
            let (low, high) = bucket_bounds(at);
            if low > high {
                // What lies between 1 and 2.
                assert_eq!(at, 1, "{at}");
                continue;
            }
            assert_eq!((bucket(low), bucket(high)), (at, at), "{low}..={high}");
            assert_eq!(bucket_bounds(bucket(high + 1)).0, high + 1);
        }
        assert_eq!(bucket(u64::MAX), BUCKETS - 1);
    }

    #[test]
    fn records_have_no_padding() {
        assert_eq!(size_of::<Dial>(), 16 + 24 + 24 + 24 + 8);
        assert_eq!(size_of::<Cut>(), 4 * 8 + 8);
        assert_eq!(size_of::<Refusal>(), 16 + 16 + 8 + 8);
        assert_eq!(size_of::<Refusals>(), 8 + REFUSALS * size_of::<Refusal>());
        assert_eq!(size_of::<CallStats>(), 24 + 4 * BUCKETS);
        assert_eq!(size_of::<Header>(), 40);
        assert_eq!(size_of::<CallRecord>(), 64);
        assert_eq!(size_of::<OpenRecord>(), 64 + 8 + PATH);
        assert_eq!(size_of::<ConnectRecord>(), 40 + 24 + 24 + 8 + 24);
    }
}
