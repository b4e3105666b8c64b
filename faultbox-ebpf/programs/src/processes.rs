//! Processes of services: how they begin, what they become, how they end.
//!
//! These tracepoints hand out kernel structures (include/trace/events/sched.h); the few fields that are read are at offsets that user
//! space took from the kernel's BTF.

use aya_ebpf::btf_maps::PerCpuArray;
use aya_ebpf::helpers::{bpf_get_current_pid_tgid, bpf_probe_read_kernel_str_bytes};
use aya_ebpf::macros::{btf_map, raw_tracepoint};
use aya_ebpf::programs::RawTracePointContext;
use faultbox_ebpf_common::{OpenRecord, PATH, ProcessRecord, kind, want};

use crate::{service, stream};

/// Offset of `pid` in `struct task_struct`; 0 if not known, like all of these.
#[unsafe(no_mangle)]
static TASK_PID: u32 = 0;
/// Offset of `tgid` in `struct task_struct`.
#[unsafe(no_mangle)]
static TASK_TGID: u32 = 0;
/// Offset of `exit_code` in `struct task_struct`.
#[unsafe(no_mangle)]
static TASK_EXIT_CODE: u32 = 0;
/// Offset of `signal` in `struct task_struct`.
#[unsafe(no_mangle)]
static TASK_SIGNAL: u32 = 0;
/// Offset of `group_leader` in `struct task_struct`.
#[unsafe(no_mangle)]
static TASK_LEADER: u32 = 0;
/// Offset of `live` in `struct signal_struct`: how many threads have not ended.
#[unsafe(no_mangle)]
static SIGNAL_LIVE: u32 = 0;
/// Offset of `flags` in `struct signal_struct`.
#[unsafe(no_mangle)]
static SIGNAL_FLAGS: u32 = 0;
/// Offset of `group_exit_code` in `struct signal_struct`.
#[unsafe(no_mangle)]
static SIGNAL_EXIT_CODE: u32 = 0;
/// Offset of `filename` in `struct linux_binprm`.
#[unsafe(no_mangle)]
static BINPRM_FILENAME: u32 = 0;

/// Records with paths are too large for the stack.
#[btf_map]
static PROGRAM: PerCpuArray<OpenRecord, 1> = PerCpuArray::new();

/// A task was made, in its parent's context: `(struct task_struct *parent, struct task_struct *child)`.
#[raw_tracepoint(tracepoint = "sched_process_fork")]
pub fn fork(context: RawTracePointContext) -> i32 {
    let Some(service) = service::current() else {
        return 0;
    };
    if service.wants & want::PROCESS == 0 {
        return 0;
    }
    let child: *const u8 = context.arg(1);
    let (Some(pid), Some(tgid)) = (
        field!(child, TASK_PID, i32),
        field!(child, TASK_TGID, i32),
    ) else {
        return 0;
    };
    // A thread is no process of its own.
    if pid == tgid {
        let record = ProcessRecord {
            header: stream::header(kind::FORK, &service),
            value: i64::from(pid),
        };
        stream::send(&service, &record);
    }
    0
}

/// A process runs another program now: `(struct task_struct *p, pid_t old_pid, struct linux_binprm *bprm)`.
#[raw_tracepoint(tracepoint = "sched_process_exec")]
pub fn exec(context: RawTracePointContext) -> i32 {
    let Some(service) = service::current() else {
        return 0;
    };
    if service.wants & want::PROCESS == 0 {
        return 0;
    }
    let Some(scratch) = PROGRAM.get_ptr_mut(0) else {
        return 0;
    };
    // SAFETY: this CPU's own value; the hook runs in process context and does not nest.
    let record = unsafe { &mut *scratch };
    record.call.header = stream::header(kind::EXEC, &service);
    record.call.nr = 0;
    record.call.returned = 0;
    record.call.duration_ns = 0;
    record.directory = 0;
    let program: *const u8 = context.arg(2);
    record.length = match field!(program, BINPRM_FILENAME, *const u8) {
        // SAFETY: the helper checks the address.
        Some(name) => unsafe { bpf_probe_read_kernel_str_bytes(name, &mut record.path) }
            .map_or(0, |text| (text.len() + 1).min(PATH) as u32),
        None => 0,
    };
    stream::send_path(&service, record);
    0
}

/// A task ends, in its own context: `(struct task_struct *p)`. What ends with its last thread is the process.
#[raw_tracepoint(tracepoint = "sched_process_exit")]
pub fn end(context: RawTracePointContext) -> i32 {
    let Some(service) = service::current() else {
        return 0;
    };
    if service.wants & want::PROCESS == 0 {
        return 0;
    }
    let task: *const u8 = context.arg(0);
    let Some(status) = last_words(task) else {
        return 0;
    };
    let record = ProcessRecord {
        header: stream::header(kind::EXIT, &service),
        value: status,
    };
    stream::send(&service, &record);
    0
}

/// SIGNAL_GROUP_EXIT in `flags` of `struct signal_struct` (include/linux/sched/signal.h): the process was told to end as a whole.
const GROUP_EXIT: u32 = 4;

/// The status of the process whose thread `task` ends, as wait(2) has it; -1 if the kernel does not let it be known; `None` if other
/// threads go on.
#[inline(always)]
fn last_words(task: *const u8) -> Option<i64> {
    let Some(signal) = field!(task, TASK_SIGNAL, *const u8) else {
        // The first thread stands for its process.
        let id = bpf_get_current_pid_tgid();
        let first = (id >> 32) as u32 == id as u32;
        return first.then(|| field!(task, TASK_EXIT_CODE, i32).map_or(-1, i64::from));
    };
    // Counted down before the tracepoint.
    if field!(signal, SIGNAL_LIVE, i32)? != 0 {
        return None;
    }
    let whole = field!(signal, SIGNAL_FLAGS, u32).is_some_and(|flags| flags & GROUP_EXIT != 0);
    let status = match whole {
        true => field!(signal, SIGNAL_EXIT_CODE, i32),
        false => field!(task, TASK_LEADER, *const u8).and_then(|leader| field!(leader, TASK_EXIT_CODE, i32)),
    };
    Some(status.map_or(-1, i64::from))
}
