//! System calls: counted and timed in the kernel, streamed when somebody asked.

use aya_ebpf::bindings::BPF_NOEXIST;
use aya_ebpf::helpers::{bpf_ktime_get_ns, bpf_probe_read_kernel, bpf_probe_read_user_str_bytes};
use aya_ebpf::macros::{btf_map, fentry, fexit, raw_tracepoint};
use aya_ebpf::programs::{FEntryContext, FExitContext, RawTracePointContext};
use faultbox_ebpf_common::{COMPAT, CallKey, CallRecord, OpenRecord, PATH, Service, bucket, kind, lost, want};

use aya_ebpf::btf_maps::PerCpuArray;

use crate::maps::{CLASSES, EPOCH, FREE, KNOWN, PLACES, STATS, THREADS, Thread};
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

/// A system call begins: `long x64_sys_call(const struct pt_regs *regs, unsigned int nr)`, arch/x86/entry/syscall_64.c.
#[fentry(function = "x64_sys_call")]
pub fn called(context: FEntryContext) -> i32 {
    if let Some(thread) = thread() {
        // Not so when the kernel may be preempted, and then does not run a program on a CPU where it is running.
        if thread.nr != NONE {
            stream::lose(&thread.service, lost::NOT_RUN);
        }
        let nr: u32 = context.arg(1);
        entered(thread, nr.into(), context.arg(0));
    }
    0
}

/// It returns: behind the arguments stands what it returns.
#[fexit(function = "x64_sys_call")]
pub fn done(context: FExitContext) -> i32 {
    if let Some(mut thread) = THREADS.get() {
        // SAFETY: as in `thread`.
        let thread = unsafe { thread.as_mut() };
        if !returned(thread, context.arg(2)) && thread.service.slot != 0 {
            stream::lose(&thread.service, lost::NOT_RUN);
        }
    }
    0
}

/// A 32-bit system call begins: `long ia32_sys_call(const struct pt_regs *regs, unsigned int nr)`, arch/x86/entry/syscall_32.c.
#[fentry(function = "ia32_sys_call")]
pub fn called32(context: FEntryContext) -> i32 {
    if let Some(thread) = thread() {
        let nr: u32 = context.arg(1);
        entered(thread, (nr | COMPAT).into(), context.arg(0));
    }
    0
}

/// It returns.
#[fexit(function = "ia32_sys_call")]
pub fn done32(context: FExitContext) -> i32 {
    if let Some(mut thread) = THREADS.get() {
        // SAFETY: as in `thread`.
        returned(unsafe { thread.as_mut() }, context.arg(2));
    }
    0
}

/// A system call begins: `(struct pt_regs *regs, long id)`, include/trace/events/syscalls.h.
#[raw_tracepoint(tracepoint = "sys_enter")]
pub fn enter(context: RawTracePointContext) -> i32 {
    if let Some(thread) = thread() {
        entered(thread, context.arg(1), context.arg(0));
    }
    0
}

/// No call: a thread whose call has returned.
const NONE: u64 = u64::MAX;

/// The current thread, if it is a service's.
#[inline(always)]
fn thread() -> Option<&'static mut Thread> {
    // Before the service is looked for: what changes meanwhile has another number.
    // SAFETY: a read of a map's value; volatile, because user space changes it.
    let epoch = unsafe { core::ptr::read_volatile(EPOCH.get(0)?) };
    let mut known = THREADS.get();
    if let Some(mut thread) = known {
        // SAFETY: the current thread's own value, which lives as long as it does and which nobody else writes.
        let thread = unsafe { thread.as_mut() };
        if thread.epoch == epoch {
            return (thread.service.slot != 0).then_some(thread);
        }
    }
    let service = service::current();
    if known.is_none() {
        // Whoever is no service's leaves no trace.
        let service = service?;
        known = THREADS.get_or_make();
        if known.is_none() {
            stream::lose(&service, lost::NO_MEMORY);
        }
    }
    // SAFETY: as above.
    let thread = unsafe { known?.as_mut() };
    let now = service.unwrap_or_default();
    if thread.service.slot != now.slot {
        for place in &mut thread.places {
            // SAFETY: a write through a reference. Volatile, or it becomes a call of memset, which there is not.
            unsafe { core::ptr::write_volatile(place, 0) };
        }
    }
    thread.epoch = epoch;
    thread.nr = NONE;
    thread.service = now;
    service.map(|_| thread)
}

#[inline(always)]
fn entered(thread: &mut Thread, nr: u64, registers: *const u8) {
    thread.nr = nr;
    thread.path = 0;
    if thread.service.wants != 0 {
        if let Some(class) = CLASSES.get(thread.nr as u32) {
            if class.want & thread.service.wants != 0 {
                thread.path = argument(registers, class.path);
                thread.directory = match class.directory {
                    0 => i64::from(AT_FDCWD),
                    n => i64::from(argument(registers, n - 1) as i32),
                };
            }
        }
    }
    // SAFETY: a helper without pointers. Last, so that our own work is not counted as the call's.
    thread.at_ns = unsafe { bpf_ktime_get_ns() };
}

const AT_FDCWD: i32 = -100;

/// It returns: `(struct pt_regs *regs, long ret)`.
#[raw_tracepoint(tracepoint = "sys_exit")]
pub fn exit(context: RawTracePointContext) -> i32 {
    if let Some(mut thread) = THREADS.get() {
        // SAFETY: as in `thread`.
        returned(unsafe { thread.as_mut() }, context.arg(1));
    }
    0
}

/// Counts the call that returns `value`; false if it is not known which.
#[inline(always)]
fn returned(thread: &mut Thread, value: i64) -> bool {
    // A thread may return from what it entered before it was watched: clone(2) in the child, or a cgroup joined in mid-call.
    if thread.nr == NONE {
        return false;
    }
    // SAFETY: a helper without pointers. First, so that our own work is not counted as the call's.
    let now = unsafe { bpf_ktime_get_ns() };
    let nr = thread.nr as u32;
    let took = now.saturating_sub(thread.at_ns);
    let failed = (-4095..0).contains(&value);
    count(thread, nr, took, failed);
    let service = &thread.service;
    if service.wants != 0 {
        if service.wants & want::SYSCALL != 0 {
            stream::send(service, &call(kind::SYSCALL, thread, value, took));
        }
        if let Some(class) = CLASSES.get(nr) {
            if class.want & service.wants & want::OPEN != 0 {
                opened(thread, value, took);
            }
        }
    }
    thread.nr = NONE;
    true
}

#[inline(always)]
fn call(kind: u32, thread: &Thread, value: i64, took: u64) -> CallRecord {
    CallRecord {
        header: stream::header(kind, &thread.service),
        nr: thread.nr,
        returned: value,
        duration_ns: took,
    }
}

#[inline(always)]
fn count(thread: &mut Thread, nr: u32, took: u64, failed: bool) {
    let service = thread.service;
    let known = &mut thread.places[nr as usize % KNOWN];
    if *known >> 32 != u64::from(nr) || *known as u32 == 0 {
        let Some(place) = place(&service, nr) else {
            stream::lose(&service, lost::STATS_FULL);
            return;
        };
        *known = u64::from(nr) << 32 | u64::from(place + 1);
    }
    let Some(stats) = STATS.get_ptr_mut(*known as u32 - 1) else {
        return;
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

/// Where calls of this number are counted for this service; None if there is no place left.
#[inline(always)]
fn place(service: &Service, nr: u32) -> Option<u32> {
    let key = CallKey {
        slot: service.slot,
        nr,
    };
    // SAFETY: an entry is never changed, it is only added and removed.
    if let Some(place) = unsafe { PLACES.get(&key) } {
        return Some(*place);
    }
    let place = FREE.pop().ok()??;
    if PLACES.insert(&key, &place, u64::from(BPF_NOEXIST)).is_ok() {
        return Some(place);
    }
    // Two CPUs may be here at once; the first one's is as good for the second.
    let _ = FREE.push(&place, 0);
    // SAFETY: as above.
    unsafe { PLACES.get(&key) }.copied()
}

#[inline(always)]
fn opened(thread: &Thread, value: i64, took: u64) {
    let Some(scratch) = SCRATCH.get_ptr_mut(0) else {
        return;
    };
    // SAFETY: this CPU's own value, as in `count`.
    let record = unsafe { &mut *scratch };
    record.call = call(kind::OPEN, thread, value, took);
    record.directory = thread.directory as i32;
    // The pages were touched by the call itself, so they are there to be read now even if they were not before it.
    // SAFETY: the helper checks the address.
    record.length = unsafe { bpf_probe_read_user_str_bytes(thread.path as *const u8, &mut record.path) }
        .map_or(0, |text| (text.len() + 1).min(PATH) as u32);
    stream::send_path(&thread.service, record);
}
