//! Where services' connections go: to proxies, or nowhere.
//!
//! connect(2) and sendto(2) of a service pass here with the address that the program wrote (`bpf_sock_addr`, a UAPI structure). An
//! address that an interface declares is replaced by its proxy's, whatever the program has it from: a configuration file, another
//! server's advertisement, a resolver. getpeername(2) and recvfrom(2) then show what the program wrote.

use aya_ebpf::EbpfContext;
use aya_ebpf::bindings::bpf_sock_addr;
use aya_ebpf::helpers::{bpf_get_socket_cookie, bpf_set_retval};
use aya_ebpf::macros::{cgroup_sock, cgroup_sock_addr};
use aya_ebpf::programs::{SockAddrContext, SockContext};
use aya_log_ebpf::debug;
use faultbox_ebpf_common::{
    Address, BY_PROXY, ConnectRecord, CutKey, Dial, PortKey, REFUSALS as MOST_REFUSALS, Redirect, RedirectKey, Refusal,
    Service, dialling, kind, want,
};

use crate::maps::{ARMED, CUTS, DECLARED, DIALS, PORTS, REDIRECTS, REFUSALS, REFUSED};
use crate::{service, stream};

/// What a program returns so that the call goes on.
const PROCEED: i32 = 1;
/// What it returns so that the call ends with the errno that was set.
const REFUSE: i32 = 0;

/// Whether the kernel lets these programs choose the errno of a refusal (`bpf_set_retval`), set by user space. Where it does not, nobody
/// asks for refusals here, and the verifier never comes to the call.
#[unsafe(no_mangle)]
static CHOOSES_ERRNO: u32 = 0;

fn chooses_errno() -> bool {
    // SAFETY: a read of our own constant; volatile, because user space sets it after compilation.
    unsafe { core::ptr::read_volatile(&CHOOSES_ERRNO) != 0 }
}

/// IPPROTO_TCP (RFC 790).
const TCP: u32 = 6;

/// The third word of an IPv4-mapped address, in memory order.
const MAPPED: u32 = 0xffff_u32.to_be();

fn v4(context: &bpf_sock_addr) -> Address {
    Address {
        ip: [0, 0, MAPPED, context.user_ip4],
        port: u32::from(u16::from_be(context.user_port as u16)),
        proto: context.protocol,
    }
}

fn v6(context: &bpf_sock_addr) -> Address {
    Address {
        ip: [
            context.user_ip6[0],
            context.user_ip6[1],
            context.user_ip6[2],
            context.user_ip6[3],
        ],
        port: u32::from(u16::from_be(context.user_port as u16)),
        proto: context.protocol,
    }
}

fn set_port(context: &mut bpf_sock_addr, port: u32) {
    context.user_port = u32::from((port as u16).to_be());
}

fn set_v6(context: &mut bpf_sock_addr, ip: [u32; 4]) {
    context.user_ip6[0] = ip[0];
    context.user_ip6[1] = ip[1];
    context.user_ip6[2] = ip[2];
    context.user_ip6[3] = ip[3];
}

/// The proxy that stands at this address for this service, if any.
#[inline(always)]
fn redirect(service: &Service, wanted: Address) -> Option<Redirect> {
    let key = RedirectKey {
        worker: service.worker,
        to: wanted,
    };
    // SAFETY: user space adds and removes whole entries only.
    let redirect = unsafe { REDIRECTS.get(&key) }?;
    (redirect.owner != service.slot).then_some(*redirect)
}

/// The errno that this connect is to be refused with, and the rule that wants it, if any does.
#[inline(always)]
fn refusal(service: &Service, wanted: &Address) -> Option<(u32, u64)> {
    // SAFETY: user space replaces whole entries only.
    let refusals = unsafe { REFUSALS.get(&service.slot) }?;
    // Without a branch, or the verifier would follow both arms of each, which takes it a hundred times as long. Backwards, so that
    // the first that selects the address is the one that stays.
    let (mut errno, mut rule) = (0, 0);
    for at in (0..MOST_REFUSALS).rev() {
        let refusal = &refusals.list[at];
        let mask = !is_nonzero(misses(refusal, wanted));
        errno = (errno & !mask) | (u64::from(refusal.errno) & mask);
        rule = (rule & !mask) | (refusal.rule & mask);
    }
    (errno != 0).then_some((errno as u32, rule))
}

/// Not zero if the refusal does not select this address. Entries past the last have errno 0, so it does not matter what they select.
#[inline(always)]
fn misses(refusal: &Refusal, wanted: &Address) -> u64 {
    let ip = (wanted.ip[0] & refusal.mask[0] ^ refusal.ip[0])
        | (wanted.ip[1] & refusal.mask[1] ^ refusal.ip[1])
        | (wanted.ip[2] & refusal.mask[2] ^ refusal.ip[2])
        | (wanted.ip[3] & refusal.mask[3] ^ refusal.ip[3]);
    let port = u64::from(refusal.port ^ wanted.port) & is_nonzero(u64::from(refusal.port));
    u64::from(ip) | port
}

/// All ones if the value is not zero, else zero.
#[inline(always)]
fn is_nonzero(value: u64) -> u64 {
    // Only of zero are neither the value nor its negation negative.
    (((value | value.wrapping_neg()) as i64) >> 63) as u64
}

/// The errno that a partition refuses this connect with, if one does.
#[inline(always)]
fn cut_off(service: &Service, sent: &Address) -> Option<u32> {
    if ARMED.get(0).copied().unwrap_or(0) == 0 {
        return None;
    }
    let to = owner(service, sent.proto, sent.port)? & !BY_PROXY;
    let key = CutKey {
        from: service.slot,
        to,
    };
    let cut = CUTS.get_ptr_mut(&key)?;
    // SAFETY: a map's value, which stays until the program returns; this field never changes while it lives.
    let (errno, dropped) = unsafe { ((*cut).refuse, &raw mut (*cut).dropped) };
    if errno == 0 {
        return None;
    }
    stream::add(dropped, 1);
    Some(errno)
}

#[inline(always)]
fn record(service: &Service, kind: u32, wanted: Address, sent: Address, errno: u32, rule: u64) {
    let record = ConnectRecord {
        header: stream::header(kind, service),
        wanted,
        sent,
        errno,
        value: rule,
        ..ConnectRecord::default()
    };
    stream::send(service, &record);
}

/// Decides about a connect, or a datagram that names its destination (`connecting` tells them apart). What goes on is told where,
/// even if that is where it wanted to: a value that is there on one path only would be read on the other, too, by the code that comes of
/// it, and verifiers before Linux 6.3 refuse that.
#[inline(always)]
fn decide(
    context: &SockAddrContext,
    wanted: Address,
    connecting: bool,
    go: impl FnOnce(&Address),
) -> i32 {
    let Some(service) = service::current() else {
        return PROCEED;
    };
    let sent = redirect(&service, wanted).map_or(wanted, |r| Address {
        proto: wanted.proto,
        ..r.to
    });
    let refusal = if connecting {
        refusal(&service, &wanted)
    } else {
        None
    };
    let refused = match refusal {
        Some(refused) => Some(refused),
        None => cut_off(&service, &sent).map(|errno| (errno, 0)),
    };
    if let Some((errno, rule)) = refused {
        if rule != 0 {
            if let Some(count) = REFUSED.get_ptr_mut(&rule) {
                stream::add(count, 1);
            }
        }
        // A fault that fires is an event, wanted or not.
        if rule != 0 || service.wants & want::CONNECT != 0 {
            record(&service, kind::REFUSED, wanted, sent, errno, rule);
        }
        debug!(context, "service {} to port {}: refused with errno {}", service.slot, wanted.port, errno);
        if chooses_errno() {
            // SAFETY: a helper without pointers.
            unsafe { bpf_set_retval(-(errno as i32)) };
        }
        return REFUSE;
    }
    // SAFETY: the context is the one that this program was called with.
    let cookie = unsafe { bpf_get_socket_cookie(context.as_ptr()) };
    // A socket that is tried again has come to nothing before.
    gone(cookie);
    let dial = Dial {
        service,
        wanted,
        sent,
        by: stream::caller(),
        // A datagram socket that is connected has its destination, and sends nothing.
        state: match connecting && wanted.proto == TCP {
            true => dialling::ASKED,
            false => dialling::DATAGRAM,
        },
    };
    debug!(context, "service {} to port {}: sent to port {}", service.slot, wanted.port, sent.port);
    // The table forgets the least recently used: a peer's name may be wrong then, never a connection.
    let _ = DIALS.insert(&cookie, &dial, 0);
    go(&sent);
    PROCEED
}

/// connect(2) of an IPv4 socket.
#[cgroup_sock_addr(connect4)]
pub fn connect4(context: SockAddrContext) -> i32 {
    to_v4(&context, true)
}

/// sendto(2) and sendmsg(2) with an address, of an IPv4 datagram socket.
#[cgroup_sock_addr(sendmsg4)]
pub fn sendmsg4(context: SockAddrContext) -> i32 {
    to_v4(&context, false)
}

#[inline(always)]
fn to_v4(context: &SockAddrContext, connecting: bool) -> i32 {
    // SAFETY: the kernel passes a valid context, and lets these fields be read and written.
    let address = unsafe { &mut *context.sock_addr };
    decide(context, v4(address), connecting, |to| {
        address.user_ip4 = to.ip[3];
        set_port(address, to.port);
    })
}

/// connect(2) of an IPv6 socket, which may well lead to an IPv4 address.
#[cgroup_sock_addr(connect6)]
pub fn connect6(context: SockAddrContext) -> i32 {
    to_v6(&context, true)
}

/// sendto(2) and sendmsg(2) with an address, of an IPv6 datagram socket.
#[cgroup_sock_addr(sendmsg6)]
pub fn sendmsg6(context: SockAddrContext) -> i32 {
    to_v6(&context, false)
}

#[inline(always)]
fn to_v6(context: &SockAddrContext, connecting: bool) -> i32 {
    // SAFETY: as for IPv4.
    let address = unsafe { &mut *context.sock_addr };
    decide(context, v6(address), connecting, |to| {
        set_v6(address, to.ip);
        set_port(address, to.port);
    })
}

/// What the program wrote when it dialled, if this socket was sent elsewhere and `shown` is where.
#[inline(always)]
fn written(context: &SockAddrContext, shown: Address) -> Option<Address> {
    // SAFETY: the context is the one that this program was called with.
    let cookie = unsafe { bpf_get_socket_cookie(context.as_ptr()) };
    // SAFETY: the socket's own calls write its entry, and this is one of them.
    let dial = unsafe { DIALS.get(&cookie) }?;
    (dial.sent.port == shown.port && dial.sent.port != dial.wanted.port).then_some(dial.wanted)
}

/// getpeername(2) of an IPv4 socket.
#[cgroup_sock_addr(getpeername4)]
pub fn getpeername4(context: SockAddrContext) -> i32 {
    from_v4(&context)
}

/// recvfrom(2) and recvmsg(2) of an IPv4 datagram socket.
#[cgroup_sock_addr(recvmsg4)]
pub fn recvmsg4(context: SockAddrContext) -> i32 {
    from_v4(&context)
}

#[inline(always)]
fn from_v4(context: &SockAddrContext) -> i32 {
    // SAFETY: as for connect.
    let address = unsafe { &mut *context.sock_addr };
    if let Some(wanted) = written(context, v4(address)) {
        address.user_ip4 = wanted.ip[3];
        set_port(address, wanted.port);
    }
    PROCEED
}

/// getpeername(2) of an IPv6 socket.
#[cgroup_sock_addr(getpeername6)]
pub fn getpeername6(context: SockAddrContext) -> i32 {
    from_v6(&context)
}

/// recvfrom(2) and recvmsg(2) of an IPv6 datagram socket.
#[cgroup_sock_addr(recvmsg6)]
pub fn recvmsg6(context: SockAddrContext) -> i32 {
    from_v6(&context)
}

#[inline(always)]
fn from_v6(context: &SockAddrContext) -> i32 {
    // SAFETY: as for connect.
    let address = unsafe { &mut *context.sock_addr };
    if let Some(wanted) = written(context, v6(address)) {
        set_v6(address, wanted.ip);
        set_port(address, wanted.port);
    }
    PROCEED
}

/// Whose port this is, perhaps with [`BY_PROXY`].
#[inline(always)]
pub fn owner(service: &Service, proto: u32, port: u32) -> Option<u32> {
    let key = PortKey {
        worker: service.worker,
        proto,
        port,
    };
    // SAFETY: entries are one word each.
    unsafe { DECLARED.get(&key).or_else(|| PORTS.get(&key)) }.copied()
}

/// Says that `port` is the service's.
#[inline(always)]
pub fn own_port(service: &Service, proto: u32, port: u32) {
    if owner(service, proto, port) != Some(service.slot) {
        let key = PortKey {
            worker: service.worker,
            proto,
            port,
        };
        let _ = PORTS.insert(&key, &service.slot, 0);
    }
}

/// A socket is closed, or tries anew: if what it asked for never began, for want of a route or of a port, that is told now.
#[inline(always)]
pub fn gone(cookie: u64) {
    let Some(dial) = of_cookie(cookie) else {
        return;
    };
    if dial.state == dialling::ASKED && dial.service.wants & want::CONNECT != 0 {
        let record = ConnectRecord {
            header: stream::header_of(kind::FAILED, &dial.service, dial.by),
            wanted: dial.wanted,
            sent: dial.sent,
            ..ConnectRecord::default()
        };
        stream::send(&dial.service, &record);
    }
}

/// The first packet of what a socket asked for is about to leave.
#[inline(always)]
pub fn begun(cookie: u64) {
    if let Some(dial) = DIALS.get_ptr_mut(&cookie) {
        // SAFETY: a map's value, which stays until the program returns; a word of it, which nobody else writes while the socket is in
        // connect(2).
        unsafe { (*dial).state = dialling::BEGUN };
    }
}

/// A socket is closed for good.
#[cgroup_sock(sock_release)]
pub fn released(context: SockContext) -> i32 {
    // SAFETY: the context is the one that this program was called with.
    let cookie = unsafe { bpf_get_socket_cookie(context.as_ptr()) };
    gone(cookie);
    PROCEED
}

/// The service that made this connection, as connect(2) saw it.
#[inline(always)]
pub fn of_cookie(cookie: u64) -> Option<Dial> {
    // SAFETY: whole entries are inserted; a torn read would show a connection's end with another's start, and no decision rests
    // on it.
    unsafe { DIALS.get(&cookie) }.copied()
}
