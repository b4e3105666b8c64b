//! Records on their way to user space.

use core::arch::asm;

use aya_ebpf::helpers::{
    bpf_get_current_comm, bpf_get_current_pid_tgid, bpf_ktime_get_ns, bpf_ringbuf_output,
};
use faultbox_ebpf_common::{Caller, Header, OpenRecord, PATH, Service, lost};

use crate::maps::{LOST, STREAMS};

/// Adds to a counter that other CPUs add to at the same time, and returns what it was before.
///
/// The target offers no atomics to Rust, because its early versions had none that return a value; version 3 of the instruction
/// set has (Linux 5.12, Documentation/bpf/standardization/instruction-set.rst).
#[inline(always)]
fn fetch_add(counter: *mut u64, n: u64) -> u64 {
    let mut value = n;
    // SAFETY: every caller passes a place in a map's value that it has just looked up, which stays until the program returns.
    unsafe {
        asm!(
            "{value} = atomic_fetch_add((u64 *)({counter} + 0), {value})",
            value = inout(reg) value,
            counter = in(reg) counter,
        );
    }
    value
}

/// Adds to a counter that other CPUs add to at the same time.
#[inline(always)]
pub fn add(counter: *mut u64, n: u64) {
    fetch_add(counter, n);
}

/// Counts one more, and says how many that makes.
#[inline(always)]
pub fn next(counter: *mut u64) -> u64 {
    fetch_add(counter, 1) + 1
}

/// Counts something that was lost.
#[inline(always)]
pub fn lose(service: &Service, cause: u32) {
    if let Some(count) = LOST.get_ptr_mut(service.ring * lost::CAUSES + cause) {
        add(count, 1);
    }
}

/// The current thread.
#[inline(always)]
pub fn caller() -> Caller {
    let id = bpf_get_current_pid_tgid();
    Caller {
        pid: (id >> 32) as u32,
        tid: id as u32,
        comm: bpf_get_current_comm().unwrap_or_default(),
    }
}

/// The beginning of a record about the current thread.
#[inline(always)]
pub fn header(kind: u32, service: &Service) -> Header {
    header_of(kind, service, caller())
}

/// The beginning of a record about what a thread began earlier.
#[inline(always)]
pub fn header_of(kind: u32, service: &Service, by: Caller) -> Header {
    Header {
        kind,
        slot: service.slot,
        // SAFETY: a helper without pointers.
        at_ns: unsafe { bpf_ktime_get_ns() },
        pid: by.pid,
        tid: by.tid,
        comm: by.comm,
    }
}

/// Puts a record into the service's ring, or counts it as lost.
#[inline(always)]
pub fn send<T>(service: &Service, record: &T) {
    output(service, core::ptr::from_ref(record).cast(), size_of::<T>());
}

/// The same for one with a path, which need not be full.
#[inline(always)]
pub fn send_path(service: &Service, record: &OpenRecord) {
    // The verifier wants to see a limit, and the compiler knows of one and would leave it out.
    let mut length = core::hint::black_box(record.length) as usize;
    if length > PATH {
        length = PATH;
    }
    let size = size_of::<OpenRecord>() - PATH + length;
    output(service, core::ptr::from_ref(record).cast(), size);
}

#[inline(always)]
fn output(service: &Service, data: *const u8, size: usize) {
    let Some(ring) = STREAMS.get(service.ring) else {
        return;
    };
    // SAFETY: the record is the caller's for the length of the call, which copies it.
    let sent = unsafe {
        bpf_ringbuf_output(
            core::ptr::from_ref(ring).cast_mut().cast(),
            data.cast_mut().cast(),
            size as u64,
            0,
        )
    };
    if sent < 0 {
        lose(service, lost::RING_FULL);
    }
}
