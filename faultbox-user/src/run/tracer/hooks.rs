//! Where each program of the object is attached.

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};

use aya::programs::links::CgroupAttachMode;
use aya::programs::{
    CgroupSkb, CgroupSkbAttachType, CgroupSock, CgroupSockAddr, FEntry, FExit, Program,
    RawTracePoint, SockOps,
};
use aya::{Btf, Ebpf};

use super::Feature;
use super::object::explain;

/// How a program is attached.
pub enum Hook {
    /// To a tracepoint of the machine.
    Tracepoint(&'static str),
    /// To a function of the kernel, where it begins or where it ends.
    Function(&'static str),
    /// To the run's cgroup.
    Cgroup,
}

/// A program of the object, and what it is for.
pub type Entry = (Feature, &'static str, Hook);

/// System calls, where the kernel has a function that all of them pass (x86_64, since the mitigation of branch history injection of April
/// 2024): programs at a function cost a few instructions, while a tracepoint in use sends every call of every process a longer way.
const CALLS_AT_FUNCTION: &[Entry] = &[
    (Feature::Calls, "called", Hook::Function(EVERY_CALL)),
    (Feature::Calls, "done", Hook::Function(EVERY_CALL)),
];
const EVERY_CALL: &str = "x64_sys_call";

/// The calls of 32-bit programs, if the kernel runs such (CONFIG_IA32_EMULATION).
const CALLS_AT_FUNCTION_32: &[Entry] = &[
    (Feature::Calls, "called32", Hook::Function(EVERY_CALL_32)),
    (Feature::Calls, "done32", Hook::Function(EVERY_CALL_32)),
];
const EVERY_CALL_32: &str = "ia32_sys_call";

/// System calls, on all other kernels.
const CALLS_AT_TRACEPOINTS: &[Entry] = &[
    (Feature::Calls, "enter", Hook::Tracepoint("sys_enter")),
    (Feature::Calls, "exit", Hook::Tracepoint("sys_exit")),
];

/// Every other program of the object.
pub const PROGRAMS: &[Entry] = &[
    (
        Feature::Processes,
        "fork",
        Hook::Tracepoint("sched_process_fork"),
    ),
    (
        Feature::Processes,
        "exec",
        Hook::Tracepoint("sched_process_exec"),
    ),
    (
        Feature::Processes,
        "end",
        Hook::Tracepoint("sched_process_exit"),
    ),
    (Feature::Dial, "connect4", Hook::Cgroup),
    (Feature::Dial, "connect6", Hook::Cgroup),
    (Feature::Dial, "sendmsg4", Hook::Cgroup),
    (Feature::Dial, "sendmsg6", Hook::Cgroup),
    (Feature::Dial, "recvmsg4", Hook::Cgroup),
    (Feature::Dial, "recvmsg6", Hook::Cgroup),
    (Feature::Dial, "getpeername4", Hook::Cgroup),
    (Feature::Dial, "getpeername6", Hook::Cgroup),
    (Feature::Sockets, "follow", Hook::Cgroup),
    (Feature::Sockets, "released", Hook::Cgroup),
    (Feature::Packets, "leaves", Hook::Cgroup),
    (Feature::Packets, "arrives", Hook::Cgroup),
];

/// What attaches them.
pub struct Hooks {
    cgroup: File,
    /// What is loaded and left to the workers to attach.
    lends: Option<Feature>,
    lent: Vec<Lent>,
    /// Where calls are seen.
    calls_at: &'static str,
}

/// A program that a worker attaches, and its tracepoint, if that is where it goes.
pub type Lent = (Option<String>, OwnedFd);

type Failed = Box<dyn std::error::Error>;

impl Hooks {
    /// Hooks of the run with this cgroup, of which one feature's are only lent.
    pub fn new(cgroup: File, lends: Option<Feature>) -> Hooks {
        Hooks {
            cgroup,
            lends,
            lent: vec![],
            calls_at: "",
        }
    }

    /// Attaches the programs at system calls, in the cheapest way that this kernel has.
    ///
    /// # Errors
    /// It has none: why, as a lower-case fragment.
    pub fn calls(&mut self, ebpf: &mut Ebpf) -> Result<(), String> {
        if cfg!(target_arch = "x86_64")
            && let Ok(types) = Btf::from_sys_fs()
        {
            let mut all = CALLS_AT_FUNCTION.iter();
            if all.all(|entry| self.hang(ebpf, entry, Some(&types)).is_ok()) {
                for entry in CALLS_AT_FUNCTION_32 {
                    // A kernel without it has no such calls.
                    let _ = self.hang(ebpf, entry, Some(&types));
                }
                self.calls_at = EVERY_CALL;
                return Ok(());
            }
            self.lent.clear();
            for (_, name, _) in CALLS_AT_FUNCTION {
                // One that is not loaded says so.
                let _ = match ebpf.program_mut(name) {
                    Some(Program::FEntry(program)) => program.unload(),
                    Some(Program::FExit(program)) => program.unload(),
                    _ => Ok(()),
                };
            }
        }
        self.calls_at = "sys_enter, sys_exit";
        let mut all = CALLS_AT_TRACEPOINTS.iter();
        all.try_for_each(|entry| self.hang(ebpf, entry, None))
    }

    /// Loads and attaches one program; `types` are the kernel's.
    ///
    /// # Errors
    /// Why the kernel does not let it, as a lower-case fragment.
    pub fn hang(
        &mut self,
        ebpf: &mut Ebpf,
        (feature, name, hook): &Entry,
        types: Option<&Btf>,
    ) -> Result<(), String> {
        let program = ebpf.program_mut(name);
        let program = program.ok_or_else(|| format!("the object has no program `{name}`"))?;
        match self.lends == Some(*feature) {
            true => lend(program, hook, types).map(|lent| self.lent.push(lent)),
            false => attach(program, hook, &self.cgroup, types),
        }
        .map_err(|e| explain(&*e))
    }

    /// Where calls are seen: the function or the tracepoints; empty if nowhere.
    pub fn calls_at(&self) -> &'static str {
        self.calls_at
    }

    /// What has been lent.
    pub fn lent(self) -> Vec<Lent> {
        self.lent
    }
}

const NO_TYPES: &str = "the kernel's types are not known";

/// Loads a program and attaches it.
fn attach(
    program: &mut Program,
    hook: &Hook,
    cgroup: &File,
    types: Option<&Btf>,
) -> Result<(), Failed> {
    let mode = CgroupAttachMode::Single;
    match (program, hook) {
        (Program::FEntry(program), Hook::Function(name)) => {
            let program: &mut FEntry = program;
            program.load(name, types.ok_or(NO_TYPES)?)?;
            program.attach()?;
        }
        (Program::FExit(program), Hook::Function(name)) => {
            let program: &mut FExit = program;
            program.load(name, types.ok_or(NO_TYPES)?)?;
            program.attach()?;
        }
        (Program::RawTracePoint(program), Hook::Tracepoint(name)) => {
            let program: &mut RawTracePoint = program;
            program.load()?;
            program.attach(name)?;
        }
        (Program::CgroupSockAddr(program), Hook::Cgroup) => {
            let program: &mut CgroupSockAddr = program;
            program.load()?;
            program.attach(cgroup, mode)?;
        }
        (Program::CgroupSock(program), Hook::Cgroup) => {
            let program: &mut CgroupSock = program;
            program.load()?;
            program.attach(cgroup, mode)?;
        }
        (Program::SockOps(program), Hook::Cgroup) => {
            let program: &mut SockOps = program;
            program.load()?;
            program.attach(cgroup, mode)?;
        }
        (Program::CgroupSkb(program), Hook::Cgroup) => {
            let program: &mut CgroupSkb = program;
            program.load()?;
            let kind = program
                .expected_attach_type()
                .unwrap_or(CgroupSkbAttachType::Egress);
            program.attach(cgroup, kind, mode)?;
        }
        _ => return Err("the program is not of the kind that its hook takes".into()),
    }
    Ok(())
}

/// Loads a program without attaching it; what its hook is called, for the tracepoints.
fn lend(program: &mut Program, hook: &Hook, types: Option<&Btf>) -> Result<Lent, Failed> {
    match (program, hook) {
        (Program::RawTracePoint(program), Hook::Tracepoint(name)) => {
            program.load()?;
            Ok((
                Some((*name).to_owned()),
                program.fd()?.as_fd().try_clone_to_owned()?,
            ))
        }
        (Program::FEntry(program), Hook::Function(name)) => {
            program.load(name, types.ok_or(NO_TYPES)?)?;
            // Whether the kernel was built for it (CONFIG_DYNAMIC_FTRACE_WITH_DIRECT_CALLS) shows only then.
            let link = program.attach()?;
            program.detach(link)?;
            Ok((None, program.fd()?.as_fd().try_clone_to_owned()?))
        }
        (Program::FExit(program), Hook::Function(name)) => {
            program.load(name, types.ok_or(NO_TYPES)?)?;
            Ok((None, program.fd()?.as_fd().try_clone_to_owned()?))
        }
        _ => Err("only programs of tracepoints and functions can be attached by a worker".into()),
    }
}
