//! Partitions and lossy links: packets between two services that do not arrive.
//!
//! A packet of a service passes here when it leaves (its source port is then known to be that service's) and again when it reaches
//! the socket of the receiver. It is decided about where it leaves if the receiver's port is known there, and else where it arrives,
//! so that each packet is decided about once. What a proxy says for a service leaves through no hook, and is decided about where
//! it arrives.

use aya_ebpf::macros::cgroup_skb;
use aya_ebpf::programs::SkBuffContext;
use aya_log_ebpf::debug;
use faultbox_ebpf_common::{BY_PROXY, CutKey, draw};

use crate::maps::{ARMED, CUTS};
use crate::{dial, service, stream};

/// The packet goes on.
const PASS: i32 = 1;
/// The packet does not arrive.
const DROP: i32 = 0;
/// The packet is gone as if a full queue had dropped it: its sender, UDP included, is not told (bpf-cgroup.h,
/// BPF_RET_SET_CN without the bit that keeps the packet: NET_XMIT_DROP).
const DROP_SILENTLY: i32 = 2;

const TCP: u8 = 6;
const UDP: u8 = 17;

/// The ends of a packet.
struct Ends {
    proto: u32,
    source: u32,
    destination: u32,
}

/// The packet begins with its IP header here (RFC 791 section 3.1, RFC 8200 section 3). A packet with IPv6 extension headers or a
/// fragment other than the first is nobody's on loopback, where nothing fragments TCP.
#[inline(always)]
fn ends(packet: &SkBuffContext) -> Option<Ends> {
    let first: u8 = packet.load(0).ok()?;
    let (proto, at): (u8, usize) = if first >> 4 == 4 {
        (packet.load(9).ok()?, usize::from(first & 0x0f) * 4)
    } else {
        (packet.load(6).ok()?, 40)
    };
    if proto != TCP && proto != UDP {
        return None;
    }
    let ports: [u8; 4] = packet.load(at).ok()?;
    Some(Ends {
        proto: u32::from(proto),
        source: u32::from(u16::from_be_bytes([ports[0], ports[1]])),
        destination: u32::from(u16::from_be_bytes([ports[2], ports[3]])),
    })
}

#[inline(always)]
fn armed() -> bool {
    ARMED.get(0).copied().unwrap_or(0) != 0
}

/// Does this packet from one service to another get lost?
#[inline(always)]
fn lost(packet: &SkBuffContext, from: u32, to: u32) -> bool {
    let Some(cut) = CUTS.get_ptr_mut(&CutKey { from, to }) else {
        return false;
    };
    // SAFETY: a map's value, which stays until the program returns. The counters are only ever added to, the rest never changes.
    let (seed, below, met, dropped) = unsafe {
        (
            (*cut).seed,
            (*cut).below,
            &raw mut (*cut).met,
            &raw mut (*cut).dropped,
        )
    };
    let n = stream::next(met);
    if draw(seed, n) >= below {
        return false;
    }
    stream::add(dropped, 1);
    debug!(packet, "packet {} from service {} to service {}: dropped", n, from, to);
    true
}

/// A packet leaves a service.
#[cgroup_skb(egress)]
pub fn leaves(packet: SkBuffContext) -> i32 {
    if !armed() {
        return PASS;
    }
    let Some(service) = service::of_packet(&packet) else {
        return PASS;
    };
    let Some(ends) = ends(&packet) else {
        return PASS;
    };
    dial::own_port(&service, ends.proto, ends.source);
    match dial::owner(&service, ends.proto, ends.destination) {
        Some(to) if to & !BY_PROXY != service.slot && lost(&packet, service.slot, to & !BY_PROXY) => {
            DROP_SILENTLY
        }
        _ => PASS,
    }
}

/// A packet reaches a service.
#[cgroup_skb(ingress)]
pub fn arrives(packet: SkBuffContext) -> i32 {
    if !armed() {
        return PASS;
    }
    let Some(service) = service::of_packet(&packet) else {
        return PASS;
    };
    let Some(ends) = ends(&packet) else {
        return PASS;
    };
    let Some(from) = dial::owner(&service, ends.proto, ends.source) else {
        return PASS;
    };
    let (from, by_proxy) = (from & !BY_PROXY, from & BY_PROXY != 0);
    if from == service.slot {
        return PASS;
    }
    let decided = !by_proxy && dial::owner(&service, ends.proto, ends.destination) == Some(service.slot);
    if !decided && lost(&packet, from, service.slot) {
        return DROP;
    }
    PASS
}
