//! Faultbox's eBPF programs, one file per concern.
//!
//! * [`calls`] counts and times the system calls of services, and streams those that somebody asked for.
//! * [`processes`] streams how a service's processes begin and end.
//! * [`dial`] sends connections to proxies, refuses them, and remembers who made them.
//! * [`sockets`] follows connections from the first packet to the last.
//! * [`packets`] drops what a partition or a lossy link takes.
//!
//! The hooks on system calls and the scheduler are the machine's, so each program asks first whether the current process belongs to
//! a service of this run, and returns at once if not. All others are attached to the run's own cgroup.
//!
//! No program reads a kernel structure at an offset of its own: arguments come from UAPI structures, and where there is none, user
//! space reads the offset from the kernel's own BTF and hands it in as a constant; 0 there means "not known", and the program goes
//! without.

#![no_std]
#![no_main]
#![feature(asm_experimental_arch)]

#[macro_use]
mod field;

mod calls;
mod dial;
mod maps;
mod packets;
mod processes;
mod service;
mod sockets;
mod stream;
mod threads;

/// The verifier has shown that this is never reached.
#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

/// Some of the helpers are for GPL-compatible programs only.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
