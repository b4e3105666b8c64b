//! Whose process or packet is this?

use aya_ebpf::EbpfContext;
use aya_ebpf::helpers::{
    bpf_get_current_ancestor_cgroup_id, bpf_get_current_cgroup_id, bpf_skb_ancestor_cgroup_id,
    bpf_skb_cgroup_id,
};
use aya_ebpf::programs::SkBuffContext;
use faultbox_ebpf_common::Service;

use crate::maps::SERVICES;

/// How deep below the hierarchy's root the cgroups of services are, set by user space; 0 if it cannot know (inside a cgroup
/// namespace), and then processes that a service has put into cgroups of its own are not found.
#[unsafe(no_mangle)]
static LEVEL: u32 = 0;

fn level() -> i32 {
    // SAFETY: a read of our own constant; volatile, because user space sets it after compilation.
    unsafe { core::ptr::read_volatile(&LEVEL) as i32 }
}

fn lookup(cgroup: u64) -> Option<Service> {
    // Most of the machine is not that deep in the hierarchy, and has no such ancestor.
    if cgroup == 0 {
        return None;
    }
    // SAFETY: user space never changes an entry, it only adds and removes whole ones.
    unsafe { SERVICES.get(&cgroup) }.copied()
}

/// The service of the current process.
#[inline(always)]
pub fn current() -> Option<Service> {
    let level = level();
    // SAFETY: helpers without pointers.
    lookup(unsafe {
        if level == 0 {
            bpf_get_current_cgroup_id()
        } else {
            bpf_get_current_ancestor_cgroup_id(level)
        }
    })
}

/// The service whose socket sends or receives this packet.
#[inline(always)]
pub fn of_packet(packet: &SkBuffContext) -> Option<Service> {
    let level = level();
    let skb = packet.as_ptr().cast();
    // SAFETY: the context is the packet that this program was called for.
    lookup(unsafe {
        if level == 0 {
            bpf_skb_cgroup_id(skb)
        } else {
            bpf_skb_ancestor_cgroup_id(skb, level)
        }
    })
}
