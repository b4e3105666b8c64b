//! Loading the programs and attaching them to the run's cgroup.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, IntoRawFd, OwnedFd};
use std::path::Path;

use aya::maps::MapData;
use aya::programs::ProgramType;
use aya::sys::{BpfHelper, is_helper_supported};
use aya::{Ebpf, EbpfLoader};
use faultbox_ebpf_common::{CallClass, RINGS, want};

use super::btf::Btf;
use super::debug::{self, DebugLog, Listener};
use super::hooks::{Hooks, PROGRAMS};
use super::{Feature, Share};
use crate::sys::{inherit, names};

/// Built by `cargo xtask ebpf`, which also tells whether it is up to date.
static OBJECT: &[u8] =
    aya::include_bytes_aligned!("../../../../faultbox-ebpf/prebuilt/faultbox.bpf.o");

/// The maps that workers read and write.
const SHARED: &[&str] = &[
    "SERVICES",
    "EPOCH",
    "STATS",
    "PLACES",
    "FREE",
    "STREAMS",
    "LOST",
    "REDIRECTS",
    "REFUSALS",
    "REFUSED",
    "PORTS",
    "DECLARED",
    "CUTS",
    "ARMED",
];

/// Where the arguments of a system call stand in the registers that its tracepoint shows: `struct pt_regs` of x86_64 (rdi, rsi, rdx,
/// r10, r8, r9) and `struct user_pt_regs` of aarch64 (x0 to x5), asm/ptrace.h.
#[cfg(target_arch = "x86_64")]
const ARGUMENTS: [u32; 6] = [14 * 8, 13 * 8, 12 * 8, 7 * 8, 9 * 8, 8 * 8];
#[cfg(target_arch = "aarch64")]
const ARGUMENTS: [u32; 6] = [0, 8, 16, 24, 32, 40];

/// Why processes cannot be followed.
const NO_TYPES: &str = "the kernel does not tell where its structures hold a process's number, status and program (/sys/kernel/btf/vmlinux)";

/// Why connections that fail are told without their errno.
const NO_ERRNO: &str = "the kernel does not tell where its sockets hold an error (/sys/kernel/btf/vmlinux), or its memory may not be read (lockdown in confidentiality mode)";

/// How many different system calls a service makes, generously: the table of counts has so many entries per test that may run.
const CALLS_PER_TEST: u32 = 512;

/// The programs of a run. Dropping it, or dying, detaches them.
pub struct Kernel {
    /// Keeps programs, links and maps alive.
    _ebpf: Ebpf,
    _log: Option<DebugLog>,
    maps: BTreeMap<String, OwnedFd>,
    lent: Vec<(Option<String>, OwnedFd)>,
    features: Vec<Feature>,
    missing: Vec<(Feature, String)>,
    calls_at: &'static str,
}

impl Kernel {
    /// Loads everything and attaches what is wanted, not `lent`, and goes; `cgroup` is the run's, `level` how deep below the hierarchy's root its services'
    /// cgroups will be (`None` if that cannot be known), `jobs` how many tests run at a time. With a `listener`, the programs tell it what
    /// they do.
    ///
    /// # Errors
    /// Why nothing of it can be had, as a lower-case fragment.
    pub fn load(
        cgroup: &Path,
        level: Option<u32>,
        jobs: usize,
        wanted: &[Feature],
        lent: Option<Feature>,
        listener: Option<Listener>,
    ) -> Result<Kernel, String> {
        // Megabytes to read, for what only these programs look at.
        let types = match wanted.iter().any(|feature| feature.reads_types()) {
            true => Btf::of_kernel(),
            false => None,
        };
        let offset = |structure, member| {
            types
                .as_ref()
                .and_then(|t| t.offset(structure, member))
                .unwrap_or(0)
        };
        let [pid, tgid, exit_code, filename] = of_processes(types.as_ref());
        let mut signal = [
            ("TASK_SIGNAL", offset("task_struct", "signal")),
            ("TASK_LEADER", offset("task_struct", "group_leader")),
            ("SIGNAL_LIVE", offset("signal_struct", "live")),
            ("SIGNAL_FLAGS", offset("signal_struct", "flags")),
            (
                "SIGNAL_EXIT_CODE",
                offset("signal_struct", "group_exit_code"),
            ),
        ];
        if signal.iter().any(|(_, offset)| *offset == 0) {
            // All or nothing.
            signal = signal.map(|(name, _)| (name, 0));
        }
        let socket_error = match wanted.contains(&Feature::Errnos) && !confidential() {
            true => offset("sock", "sk_err"),
            false => 0,
        };
        let refuses = chooses_errno();
        let level = level.unwrap_or(0);
        let jobs = u32::try_from(jobs).unwrap_or(u32::MAX).clamp(1, RINGS);
        let places = CALLS_PER_TEST * jobs;
        let talk = match &listener {
            Some(_) => debug::TALKATIVE,
            None => debug::SILENT,
        };
        let mut loader = EbpfLoader::new();
        for (name, offset) in &signal {
            loader.override_global(name, offset, true);
        }
        let mut ebpf = loader
            // No program needs the kernel's types, and reading them all takes longer than loading.
            .btf(None)
            .override_global("LEVEL", &level, true)
            .override_global(debug::LEVEL, &talk, true)
            .override_global("CHOOSES_ERRNO", &u32::from(refuses.is_ok()), true)
            .override_global("ARGUMENTS", &ARGUMENTS, true)
            .override_global("SOCK_ERR", &socket_error, true)
            .override_global("TASK_PID", &pid, true)
            .override_global("TASK_TGID", &tgid, true)
            .override_global("TASK_EXIT_CODE", &exit_code, true)
            .override_global("BINPRM_FILENAME", &filename, true)
            // What belongs to threads is the programs' alone.
            .allow_unsupported_maps()
            .map_max_entries("STATS", places)
            .map_max_entries("PLACES", places)
            .map_max_entries("FREE", places)
            .load(OBJECT)
            .map_err(|e| explain(&e))?;
        let log = listener
            .map(|listener| DebugLog::follow(&mut ebpf, listener))
            .transpose()?;
        classify(&mut ebpf)?;
        if wanted.contains(&Feature::Calls) {
            free(&mut ebpf, places)?;
        }
        let group =
            File::open(cgroup).map_err(|e| format!("cannot open {}: {e}", cgroup.display()))?;
        let mut missing: Vec<(Feature, String)> = vec![];
        if let Err(why) = refuses {
            missing.push((Feature::Refuse, why));
        }
        let follows = wanted.contains(&Feature::Processes);
        if follows && [pid, tgid, exit_code, filename].contains(&0) {
            // Events without what they are about would be taken for events that never happened.
            missing.push((Feature::Processes, NO_TYPES.to_owned()));
        }
        if wanted.contains(&Feature::Errnos) && socket_error == 0 {
            missing.push((Feature::Errnos, NO_ERRNO.to_owned()));
        }
        let mut hooks = Hooks::new(group, lent);
        let at_calls = wanted
            .contains(&Feature::Calls)
            .then(|| hooks.calls(&mut ebpf));
        if let Some(Err(why)) = at_calls {
            missing.push((Feature::Calls, why));
        }
        for entry in PROGRAMS {
            let (feature, ..) = entry;
            if !wanted.contains(feature) || missing.iter().any(|(f, _)| f == feature) {
                continue;
            }
            if let Err(why) = hooks.hang(&mut ebpf, entry, None) {
                missing.push((*feature, why));
            }
        }
        let features: Vec<Feature> = wanted
            .iter()
            .copied()
            .filter(|f| missing.iter().all(|(m, _)| m != f))
            .collect();
        if features.is_empty() && !missing.is_empty() {
            let (_, why) = missing.swap_remove(0);
            return Err(why);
        }
        let maps = share(&ebpf)?;
        Ok(Kernel {
            _ebpf: ebpf,
            _log: log,
            maps,
            calls_at: hooks.calls_at(),
            lent: hooks.lent(),
            features,
            missing,
        })
    }

    /// What a worker that is about to start inherits.
    ///
    /// # Errors
    /// As fcntl(2), as a lower-case fragment.
    pub fn share(&self, ring: Option<u32>) -> Result<Share, String> {
        let allow = |(name, fd): (&String, &OwnedFd)| {
            inherit::allow(fd).map_err(|e| format!("map `{name}`: {e}"))?;
            Ok((name.clone(), fd.as_raw_fd()))
        };
        Ok(Share {
            maps: self.maps.iter().map(allow).collect::<Result<_, String>>()?,
            features: self.features.clone(),
            missing: self.missing.clone(),
            ring,
            lent: self
                .lent
                .iter()
                .map(|(name, fd)| {
                    inherit::allow(fd).map_err(|e| format!("a program of {name:?}: {e}"))?;
                    Ok((name.clone(), fd.as_raw_fd()))
                })
                .collect::<Result<_, String>>()?,
        })
    }

    /// What this process itself takes over: descriptors of its own, which no child inherits.
    ///
    /// # Errors
    /// No descriptor is left, as a lower-case fragment.
    pub fn share_here(&self, ring: u32) -> Result<Share, String> {
        let copy = |(name, fd): (&String, &OwnedFd)| {
            let fd = fd.try_clone().map_err(|e| format!("map `{name}`: {e}"))?;
            Ok((name.clone(), fd.into_raw_fd()))
        };
        Ok(Share {
            maps: self.maps.iter().map(copy).collect::<Result<_, String>>()?,
            features: self.features.clone(),
            missing: self.missing.clone(),
            ring: Some(ring),
            lent: vec![],
        })
    }

    /// Where system calls are seen: a function of the kernel, or tracepoints; empty if nowhere.
    pub fn calls_at(&self) -> &'static str {
        self.calls_at
    }

    /// What could not be attached, and why.
    pub fn missing(&self) -> &[(Feature, String)] {
        &self.missing
    }
}

/// Is the kernel locked down so far that no program may read its memory (kernel_lockdown(7))? Where that cannot be seen, it says so itself when the
/// program is loaded.
fn confidential() -> bool {
    std::fs::read_to_string("/sys/kernel/security/lockdown")
        .is_ok_and(|modes| modes.contains("[confidentiality]"))
}

/// Where the kernel's structures hold a process's numbers, its status and its program; 0 where that is not known, which none of
/// them is at.
fn of_processes(types: Option<&Btf>) -> [u32; 4] {
    [
        ("task_struct", "pid"),
        ("task_struct", "tgid"),
        ("task_struct", "exit_code"),
        ("linux_binprm", "filename"),
    ]
    .map(|(structure, member)| types.and_then(|t| t.offset(structure, member)).unwrap_or(0))
}

/// Why processes cannot be followed on this kernel, if its types are the reason.
///
/// # Errors
/// They are, as a lower-case fragment.
pub fn knows_processes() -> Result<(), String> {
    match of_processes(Btf::of_kernel().as_ref()).contains(&0) {
        false => Ok(()),
        true => Err(NO_TYPES.to_owned()),
    }
}

/// Whether programs at connect(2) choose the errno of what they refuse; without it, every refusal is EPERM.
fn chooses_errno() -> Result<(), String> {
    match is_helper_supported(ProgramType::CgroupSockAddr, BpfHelper::BPF_FUNC_set_retval) {
        Ok(true) => Ok(()),
        Ok(false) => Err("this kernel has no bpf_set_retval at connect (Linux 6.1)".to_owned()),
        Err(e) => Err(explain(&e)),
    }
}

/// Hands the programs all places where calls can be counted.
fn free(ebpf: &mut Ebpf, places: u32) -> Result<(), String> {
    let map = ebpf.map_mut("FREE").ok_or("the object has no map `FREE`")?;
    let mut free = aya::maps::Stack::<_, u32>::try_from(map).map_err(|e| explain(&e))?;
    (0..places)
        .rev()
        .try_for_each(|place| free.push(place, 0))
        .map_err(|e| explain(&e))
}

/// Tells the programs which calls name files.
fn classify(ebpf: &mut Ebpf) -> Result<(), String> {
    let map = ebpf
        .map_mut("CLASSES")
        .ok_or("the object has no map `CLASSES`")?;
    let mut classes = aya::maps::Array::<_, CallClass>::try_from(map).map_err(|e| explain(&e))?;
    for (name, path, directory) in [
        ("open", 0, 0),
        ("creat", 0, 0),
        ("openat", 1, 1),
        ("openat2", 1, 1),
    ] {
        // Not every machine has all of them.
        let Some(nr) = names::syscall_number(name).and_then(|nr| u32::try_from(nr).ok()) else {
            continue;
        };
        let class = CallClass {
            want: want::OPEN,
            path,
            directory,
        };
        classes.set(nr, class, 0).map_err(|e| explain(&e))?;
    }
    Ok(())
}

/// Duplicates of the shared maps' descriptors.
fn share(ebpf: &Ebpf) -> Result<BTreeMap<String, OwnedFd>, String> {
    SHARED
        .iter()
        .map(|name| {
            let map = ebpf
                .map(name)
                .ok_or_else(|| format!("the object has no map `{name}`"))?;
            let fd = data(map)
                .fd()
                .as_fd()
                .try_clone_to_owned()
                .map_err(|e| format!("map `{name}`: {e}"))?;
            Ok(((*name).to_owned(), fd))
        })
        .collect()
}

fn data(map: &aya::maps::Map) -> &MapData {
    use aya::maps::Map;
    match map {
        Map::Array(d)
        | Map::HashMap(d)
        | Map::LruHashMap(d)
        | Map::PerCpuArray(d)
        | Map::Stack(d)
        | Map::ArrayOfMaps(d) => d,
        _ => unreachable!("the object declares no other kind of map that is shared"),
    }
}

/// An error with its causes: aya's own says what failed, the last one why. The verifier's log, which may be a thousand lines, is cut
/// to its end.
pub(super) fn explain(error: &dyn std::error::Error) -> String {
    const MOST: usize = 2_000;
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(more) = cause {
        text = format!("{text}: {more}");
        cause = more.source();
    }
    if text.len() > MOST {
        let from = text.ceil_char_boundary(text.len() - MOST);
        text = format!("…{}", &text[from..]);
    }
    text
}
