//! System calls: counted and timed in the kernel, streamed when somebody asked.

use aya_ebpf::bindings::{BPF_ANY, BPF_NOEXIST};
use aya_ebpf::helpers::{
    bpf_get_current_pid_tgid, bpf_ktime_get_ns, bpf_probe_read_kernel, bpf_probe_read_user_str_bytes,
};
use aya_ebpf::macros::{btf_map, raw_tracepoint};
use aya_ebpf::programs::RawTracePointContext;
use faultbox_ebpf_common::{CallKey, CallRecord, CallStats, OpenRecord, PATH, Service, bucket, kind, lost, want};

use aya_ebpf::btf_maps::PerCpuArray;

use crate::maps::{CLASSES, STARTS, STATS, Start};
use crate::{service, stream};

/// Where the six arguments stand in `struct pt_regs` (x86_64) or `struct user_pt_regs` (aarch64), asm/ptrace.h: set by user space
/// for the machine it runs on, so that one object serves both.
#[unsafe(no_mangle)]
static ARGUMENTS: [u32; 6] = [0; 6];

/// Records with paths are too large for the stack.
#[btf_map]
static SCRATCH: PerCpuArray<OpenRecord, 1> = PerCpuArray::new();

/// An argument of the call that is being entered.
#[inline(always)]
fn argument(registers: *const u8, index: u32) -> u64 {
    let index = (index & 7) as usize;
    if index >= ARGUMENTS.len() {
        return 0;
    }
    // SAFETY: a read of our own constant; the index is in bounds. Volatile, because user space sets it after compilation.
    let offset = unsafe { core::ptr::read_volatile(&raw const ARGUMENTS[index]) } as usize;
    // SAFETY: the helper checks the address.
    unsafe { bpf_probe_read_kernel(registers.wrapping_add(offset).cast::<u64>()) }.unwrap_or(0)
}

/// A system call begins: `(struct pt_regs *regs, long id)`, include/trace/events/syscalls.h.
#[raw_tracepoint(tracepoint = "sys_enter")]
pub fn enter(context: RawTracePointContext) -> i32 {
    if let Some(service) = service::current() {
        entered(&service, &context);
    }
    0
}

#[inline(always)]
fn entered(service: &Service, context: &RawTracePointContext) {
    let registers: *const u8 = context.arg(0);
    let nr: u64 = context.arg(1);
    let mut start = Start {
        at_ns: 0,
        nr,
        path: 0,
        directory: 0,
    };
    let class = CLASSES.get(nr as u32);
    if let Some(class) = class {
        if class.want & service.wants != 0 {
            start.path = argument(registers, class.path);
            start.directory = match class.directory {
                0 => i64::from(AT_FDCWD),
                n => i64::from(argument(registers, n - 1) as i32),
            };
        }
    }
    let tid = bpf_get_current_pid_tgid() as u32;
    // SAFETY: a helper without pointers. Last, so that our own work is not counted as the call's.
    start.at_ns = unsafe { bpf_ktime_get_ns() };
    match STARTS.get_ptr_mut(&tid) {
        // SAFETY: a map's value; only this thread writes its own entry, and it is here.
        Some(slot) => unsafe { *slot = start },
        None => {
            if STARTS.insert(&tid, &start, u64::from(BPF_ANY)).is_err() {
                stream::lose(service, lost::STARTS_FULL);
            }
        }
    }
}

const AT_FDCWD: i32 = -100;

/// A system call returns: `(struct pt_regs *regs, long ret)`.
#[raw_tracepoint(tracepoint = "sys_exit")]
pub fn exit(context: RawTracePointContext) -> i32 {
    if let Some(service) = service::current() {
        returned(&service, context.arg(1));
    }
    0
}

/// No call: an entry whose call has returned.
const NONE: u64 = u64::MAX;

#[inline(always)]
fn returned(service: &Service, value: i64) {
    // SAFETY: a helper without pointers. First, so that our own work is not counted as the call's.
    let now = unsafe { bpf_ktime_get_ns() };
    let tid = bpf_get_current_pid_tgid() as u32;
    // A thread may return from what it entered before it was watched: clone(2) in the child, or a cgroup joined in mid-call.
    let Some(slot) = STARTS.get_ptr_mut(&tid) else {
        return;
    };
    // SAFETY: as in `entered`.
    let start = unsafe { *slot };
    if start.nr == NONE {
        return;
    }
    // SAFETY: as in `entered`.
    unsafe { (*slot).nr = NONE };
    let took = now.saturating_sub(start.at_ns);
    let failed = (-4095..0).contains(&value);
    count(service, start.nr as u32, took, failed);
    if service.wants == 0 {
        return;
    }
    if service.wants & want::SYSCALL != 0 {
        stream::send(service, &call(kind::SYSCALL, service, &start, value, took));
    }
    if let Some(class) = CLASSES.get(start.nr as u32) {
        if class.want & service.wants & want::OPEN != 0 {
            opened(service, &start, value, took);
        }
    }
}

#[inline(always)]
fn call(kind: u32, service: &Service, start: &Start, value: i64, took: u64) -> CallRecord {
    CallRecord {
        header: stream::header(kind, service),
        nr: start.nr,
        returned: value,
        duration_ns: took,
    }
}

#[inline(always)]
fn count(service: &Service, nr: u32, took: u64, failed: bool) {
    let key = CallKey {
        slot: service.slot,
        nr,
    };
    let stats = match STATS.get_ptr_mut(&key) {
        Some(stats) => stats,
        None => {
            // Two CPUs may be here at once; the entry of the first is as good for the second.
            let _ = STATS.insert(&key, &CallStats::EMPTY, u64::from(BPF_NOEXIST));
            match STATS.get_ptr_mut(&key) {
                Some(stats) => stats,
                None => {
                    stream::lose(service, lost::STATS_FULL);
                    return;
                }
            }
        }
    };
    // SAFETY: this CPU's own value. Raw tracepoints do not nest on one CPU, and a system call's entry and return are never in an
    // interrupt.
    let stats = unsafe { &mut *stats };
    stats.count += 1;
    stats.errors += u64::from(failed);
    stats.total_ns += took;
    let at = bucket(took);
    if at < stats.histogram.len() {
        stats.histogram[at] += 1;
    }
}

#[inline(always)]
fn opened(service: &Service, start: &Start, value: i64, took: u64) {
    let Some(scratch) = SCRATCH.get_ptr_mut(0) else {
        return;
    };
    // SAFETY: this CPU's own value, as in `count`.
    let record = unsafe { &mut *scratch };
    record.call = call(kind::OPEN, service, start, value, took);
    record.directory = start.directory as i32;
    // The pages were touched by the call itself, so they are there to be read now even if they were not before it.
    // SAFETY: the helper checks the address.
    record.length = unsafe { bpf_probe_read_user_str_bytes(start.path as *const u8, &mut record.path) }
        .map_or(0, |text| (text.len() + 1).min(PATH) as u32);
    stream::send(service, record);
}
