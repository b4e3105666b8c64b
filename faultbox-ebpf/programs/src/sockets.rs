//! Connections that services have made, from the first packet to the last.
//!
//! Their ports are written down here, before the peer can have accepted: a proxy learns from them who is calling.

use aya_ebpf::EbpfContext;
use aya_ebpf::btf_maps::PerCpuArray;
use aya_ebpf::bindings::{
    BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB, BPF_SOCK_OPS_STATE_CB, BPF_SOCK_OPS_STATE_CB_FLAG,
    BPF_SOCK_OPS_TCP_CONNECT_CB, BPF_TCP_CLOSE, BPF_TCP_CLOSE_WAIT, BPF_TCP_CLOSING,
    BPF_TCP_FIN_WAIT1, BPF_TCP_FIN_WAIT2, BPF_TCP_LAST_ACK, BPF_TCP_SYN_SENT, BPF_TCP_TIME_WAIT,
};
use aya_ebpf::helpers::bpf_get_socket_cookie;
use aya_ebpf::macros::{btf_map, sock_ops};
use aya_ebpf::programs::SockOpsContext;
use aya_log_ebpf::debug;
use faultbox_ebpf_common::{ConnectRecord, Dial, kind, want};

use crate::maps::DIALS;
use crate::{dial, stream};

/// Offset of `sk_err` in `struct sock`, in whose place every TCP socket begins; 0 if not known, or if nobody asks.
#[unsafe(no_mangle)]
static SOCK_ERR: u32 = 0;

/// Where the address of a socket is put down. The verifier lets nothing be added to a socket, but to the number that is read back from here.
#[btf_map]
static ADDRESS: PerCpuArray<u64, 1> = PerCpuArray::new();

/// Follows TCP sockets. Its result only matters for questions that are not asked of it.
#[sock_ops]
pub fn follow(context: SockOpsContext) -> u32 {
    match context.op() {
        BPF_SOCK_OPS_TCP_CONNECT_CB => begin(&context),
        BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB => established(&context),
        BPF_SOCK_OPS_STATE_CB if context.arg(1) == BPF_TCP_CLOSE => closed(&context),
        _ => {}
    }
    0
}

#[inline(always)]
fn dialled(context: &SockOpsContext) -> Option<(u64, Dial)> {
    // SAFETY: the context is the one that this program was called with.
    let cookie = unsafe { bpf_get_socket_cookie(context.as_ptr()) };
    Some((cookie, dial::of_cookie(cookie)?))
}

#[inline(always)]
fn begin(context: &SockOpsContext) {
    let Some((cookie, dial)) = dialled(context) else {
        return;
    };
    dial::begun(cookie);
    // The port is known now, and the SYN has not left yet.
    debug!(context, "service {} owns port {}", dial.service.slot, context.local_port());
    dial::own_port(&dial.service, dial.sent.proto, context.local_port());
    let _ = context.set_cb_flags(BPF_SOCK_OPS_STATE_CB_FLAG as i32);
}

#[inline(always)]
fn established(context: &SockOpsContext) {
    let Some((_, dial)) = dialled(context) else {
        return;
    };
    if dial.service.wants & want::CONNECT != 0 {
        stream::send(&dial.service, &record(context, &dial, kind::CONNECTED));
    }
}

#[inline(always)]
fn closed(context: &SockOpsContext) {
    let Some((cookie, dial)) = dialled(context) else {
        return;
    };
    if dial.service.wants & want::CONNECT != 0 {
        let never = context.arg(0) == BPF_TCP_SYN_SENT;
        let mut record = record(
            context,
            &dial,
            if never { kind::FAILED } else { kind::CLOSED },
        );
        // SAFETY: the kernel passes a valid context.
        let ops = unsafe { &*context.ops };
        let (sent, received) = markers(context.arg(0), ops.snd_una == ops.snd_nxt);
        record.sent_bytes = ops.bytes_acked.saturating_sub(sent);
        record.received_bytes = ops.bytes_received.saturating_sub(received);
        record.errno = if never { cause(context) } else { 0 };
        stream::send(&dial.service, &record);
    }
    let _ = DIALS.remove(&cookie);
}

/// What ended this attempt to connect, which the kernel writes down before it closes the socket (net/ipv4/tcp_input.c, tcp_reset; tcp_timer.c,
/// tcp_write_err); 0 if the program gave up, or if it is not known.
#[inline(always)]
fn cause(context: &SockOpsContext) -> u32 {
    // SAFETY: a read of our own constant; volatile, because user space sets it after compilation. Where it is 0, the verifier never comes
    // to what follows.
    if unsafe { core::ptr::read_volatile(&raw const SOCK_ERR) } == 0 {
        return 0;
    }
    let Some(place) = ADDRESS.get_ptr_mut(0) else {
        return 0;
    };
    // SAFETY: the kernel passes a valid context; the place is this CPU's own. Volatile, so that what is read is no socket any more.
    let socket = unsafe {
        let ops = &*context.ops;
        core::ptr::write_volatile(place, ops.__bindgen_anon_2.sk as u64);
        core::ptr::read_volatile(place)
    };
    if socket == 0 {
        return 0;
    }
    let socket = socket as *const u8;
    field!(socket, SOCK_ERR, i32).map_or(0, |errno| errno as u32)
}

/// The kernel counts sequence numbers, of which SYN and FIN take one each (RFC 9293, section 3.4): how many of the sent and of the
/// received ones are no payload, by the state that the connection was in, and whether all that it sent has been acknowledged.
///
/// From FIN_WAIT2 a closed socket goes either with the peer's FIN or, once its own is acknowledged, without it; the former is taken for
/// granted, so that one byte may be missing from what was received.
#[inline(always)]
fn markers(state: u32, all_acked: bool) -> (u64, u64) {
    let fin_sent = match state {
        BPF_TCP_FIN_WAIT2 | BPF_TCP_TIME_WAIT => true,
        BPF_TCP_FIN_WAIT1 | BPF_TCP_CLOSING | BPF_TCP_LAST_ACK => all_acked,
        _ => false,
    };
    let fin_received = matches!(
        state,
        BPF_TCP_FIN_WAIT2
            | BPF_TCP_TIME_WAIT
            | BPF_TCP_CLOSING
            | BPF_TCP_CLOSE_WAIT
            | BPF_TCP_LAST_ACK
    );
    (1 + u64::from(fin_sent), u64::from(fin_received))
}

#[inline(always)]
fn record(context: &SockOpsContext, dial: &Dial, kind: u32) -> ConnectRecord {
    ConnectRecord {
        header: stream::header_of(kind, &dial.service, dial.by),
        wanted: dial.wanted,
        sent: dial.sent,
        local_port: context.local_port(),
        ..ConnectRecord::default()
    }
}
