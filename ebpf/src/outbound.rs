//! connect(): sends a pod's outbound connections to the daemon, and shows the application what it asked for.
//!
//! In: the address given to connect(). Out: the address rewritten and the original kept on the socket, or why not.
//! No verdicts: the entry points turn reasons into verdicts.

use core::ptr::{addr_of, addr_of_mut, read_volatile, write_volatile};

use aya_ebpf::{
    bindings::bpf_sock_addr, btf_maps::lpm_trie::Key, helpers::generated::bpf_get_netns_cookie,
    programs::SockAddrContext,
};
use ebpf_common::{
    Counter, DNS_PORT, DOMAIN_PORT, FAIL_OPEN, HBONE_PORT, HOST, Ip, ListenKey, OUTBOUND_PORT,
    OriginalDestination, PLAINTEXT_PORT, Pod, TCP, UDP,
};

use crate::{
    datagram,
    maps::{
        ADDRESSES, EXCLUDED_NETS, PODS, Socket, daemon_listens, is_daemon, is_excluded_port,
        note_daemon,
    },
};

/// What a socket's traffic is captured as.
#[derive(Clone, Copy)]
pub enum Captured {
    /// A connection to be carried.
    Connection,
    /// DNS queries to be answered.
    Dns,
}

/// Why a connection is not captured.
pub enum Uncaptured {
    /// Only TCP, and UDP to port 53, are.
    OtherProtocol,
    /// The namespace is no enrolled pod's.
    NotEnrolled,
    /// The daemon's own socket.
    Own,
    /// To the pod itself.
    Local,
    /// To a link-local address, which no tunnel can carry: it means nothing without an interface.
    LinkLocal,
    /// From a host, to what is excluded.
    Excluded,
    /// To one of the daemon's ports in the pod: relayed, it would come back for ever.
    OwnPort,
    /// The pod has no address of this family to redirect to.
    NoAddress,
    /// Nobody listens, and the pod fails open.
    DaemonAwayFailOpen,
    /// Nobody listens.
    DaemonAway,
    /// The original destination could not be kept.
    NoMemory,
}

/// How an address lies in `bpf_sock_addr`. The verifier allows a program only the fields of its own family.
pub trait Family {
    /// The address that the application gave.
    fn address(sock_addr: *mut bpf_sock_addr) -> Ip;
    /// Replaces it.
    fn set_address(sock_addr: *mut bpf_sock_addr, ip: Ip);
    /// Binds the socket of a connect hook to a free port of `ip`; none if there was none among those tried.
    fn bind(sock_addr: *mut bpf_sock_addr, ip: Ip) -> Option<u16>;
}

/// `sockaddr_in`: family in host byte order, port and address in network byte order.
#[repr(C)]
struct SocketAddress4 {
    family: u16,
    port: u16,
    ip: u32,
    zero: u64,
}

/// `sockaddr_in6`, likewise.
#[repr(C)]
struct SocketAddress6 {
    family: u16,
    port: u16,
    flow: u32,
    ip: [u32; 4],
    scope: u32,
}

const AF_INET: u16 = 2;
const AF_INET6: u16 = 10;

/// AF_INET.
pub struct Inet4;

impl Family for Inet4 {
    #[inline(always)]
    fn address(sock_addr: *mut bpf_sock_addr) -> Ip {
        // SAFETY: the context of an AF_INET program has this field; volatile keeps the access one 4-byte load.
        Ip::from_v4_be(unsafe { read_volatile(addr_of!((*sock_addr).user_ip4)) })
    }

    #[inline(always)]
    fn set_address(sock_addr: *mut bpf_sock_addr, ip: Ip) {
        // SAFETY: as above, and the field is writable.
        unsafe { write_volatile(addr_of_mut!((*sock_addr).user_ip4), ip.0[3]) }
    }

    #[inline(always)]
    fn bind(sock_addr: *mut bpf_sock_addr, ip: Ip) -> Option<u16> {
        datagram::bind_some_port(sock_addr, |port| SocketAddress4 {
            family: AF_INET,
            port: port.to_be(),
            ip: ip.0[3],
            zero: 0,
        })
    }
}

/// AF_INET6, mapped IPv4 addresses included.
pub struct Inet6;

impl Family for Inet6 {
    #[inline(always)]
    fn address(sock_addr: *mut bpf_sock_addr) -> Ip {
        let word = |index: usize| {
            // SAFETY: the context of an AF_INET6 program has this field of four words.
            unsafe { read_volatile(addr_of!((*sock_addr).user_ip6[index])) }
        };
        Ip([word(0), word(1), word(2), word(3)])
    }

    #[inline(always)]
    fn set_address(sock_addr: *mut bpf_sock_addr, ip: Ip) {
        let set = |index: usize| {
            // SAFETY: as above, and the field is writable.
            unsafe { write_volatile(addr_of_mut!((*sock_addr).user_ip6[index]), ip.0[index]) }
        };
        set(0);
        set(1);
        set(2);
        set(3);
    }

    #[inline(always)]
    fn bind(sock_addr: *mut bpf_sock_addr, ip: Ip) -> Option<u16> {
        datagram::bind_some_port(sock_addr, |port| SocketAddress6 {
            family: AF_INET6,
            port: port.to_be(),
            flow: 0,
            ip: ip.0,
            scope: 0,
        })
    }
}

/// Rewrites the destination to the daemon's listener at the pod's own address.
///
/// Not to loopback: getsockname() would show it, and sockets bound to the pod's interface could not reach it.
#[inline(always)]
pub fn capture<F: Family>(ctx: &SockAddrContext) -> Result<Captured, Uncaptured> {
    let sock_addr = ctx.sock_addr;
    // SAFETY: every sock_addr context has the field.
    match unsafe { read_volatile(addr_of!((*sock_addr).protocol)) } {
        TCP => connection::<F>(sock_addr),
        UDP => datagram::connect::<F>(ctx),
        // An integer of the kernel's, not an enum of ours.
        _ => Err(Uncaptured::OtherProtocol),
    }
}

#[inline(always)]
fn connection<F: Family>(sock_addr: *mut bpf_sock_addr) -> Result<Captured, Uncaptured> {
    // SAFETY: the helper takes this context.
    let netns = unsafe { bpf_get_netns_cookie(sock_addr.cast()) };
    // SAFETY: elements are never freed while a program runs, and every write of user space is of a whole element.
    let Some(pod) = (unsafe { PODS.get(netns) }) else {
        return Err(Uncaptured::NotEnrolled);
    };
    let Some(socket) = socket(sock_addr) else { return Err(Uncaptured::NoMemory) };
    if socket.is_own() {
        if pod.flags & HOST != 0 {
            note_daemon(netns);
        }
        return Err(Uncaptured::Own);
    }
    if is_daemon(pod) {
        return Err(Uncaptured::Own);
    }
    let ip = F::address(sock_addr);
    let port = port(sock_addr);
    if is_local(netns, ip) {
        let own = port == OUTBOUND_PORT
            || port == PLAINTEXT_PORT
            || port == HBONE_PORT
            || (port == DNS_PORT && pod.dns_port != 0);
        return Err(if own { Uncaptured::OwnPort } else { Uncaptured::Local });
    }
    if ip.is_link_local_v6() {
        return Err(Uncaptured::LinkLocal);
    }
    if pod.flags & HOST != 0 && is_excluded(ip, port) {
        return Err(Uncaptured::Excluded);
    }
    let is_dns = port == DOMAIN_PORT && pod.dns_port != 0;
    let via = if is_dns { DNS_PORT } else { OUTBOUND_PORT };
    let to = listener(pod, ip, via, TCP)?;
    let original = OriginalDestination { ip, port, via };
    if socket.set_original_destination(original).is_none() {
        return Err(Uncaptured::NoMemory);
    }
    F::set_address(sock_addr, to);
    set_port(sock_addr, via);
    Ok(if is_dns { Captured::Dns } else { Captured::Connection })
}

/// Gives getpeername() of a captured socket the address that the application asked for; likewise the source of a
/// datagram that recvmsg() tells.
#[inline(always)]
pub fn restore_peer<F: Family>(ctx: &SockAddrContext) {
    let sock_addr = ctx.sock_addr;
    let Some(original) = socket(sock_addr).and_then(Socket::original_destination) else { return };
    // A socket may have been captured before and talk to others since: only the daemon's port is translated back.
    if port(sock_addr) != original.via {
        return;
    }
    // SAFETY: the helper takes this context.
    if is_local(unsafe { bpf_get_netns_cookie(sock_addr.cast()) }, F::address(sock_addr)) {
        F::set_address(sock_addr, original.ip);
        set_port(sock_addr, original.port);
    }
}

/// Whether a host's connections there stay uncaptured.
#[inline(always)]
pub fn is_excluded(ip: Ip, port: u16) -> bool {
    is_excluded_port(port, 0) || EXCLUDED_NETS.get(&Key::new(128, ip.0)).is_some()
}

/// Whether the pod connects to itself, at whichever of its addresses.
#[inline(always)]
pub fn is_local(netns: u64, ip: Ip) -> bool {
    if ip.is_loopback() || ip.is_unspecified() {
        return true;
    }
    // SAFETY: as for `PODS` above.
    unsafe { ADDRESSES.get(ip) }.is_some_and(|address| address.netns == netns)
}

/// The pod's address at which the daemon listens, of the destination's family.
#[inline(always)]
pub fn listener(pod: &Pod, destination: Ip, port: u16, protocol: u32) -> Result<Ip, Uncaptured> {
    let to = if destination.is_v4() { pod.ip4 } else { pod.ip6 };
    if to.is_unspecified() {
        return Err(Uncaptured::NoAddress);
    }
    if daemon_listens(ListenKey { ip: to, port, slot: 0, protocol }) {
        return Ok(to);
    }
    if pod.flags & FAIL_OPEN != 0 {
        return Err(Uncaptured::DaemonAwayFailOpen);
    }
    Err(Uncaptured::DaemonAway)
}

#[inline(always)]
pub fn socket(sock_addr: *mut bpf_sock_addr) -> Option<Socket> {
    // SAFETY: every sock_addr context has the field; it is a union with one member.
    Socket::new(unsafe { (*sock_addr).__bindgen_anon_1.sk })
}

#[inline(always)]
pub fn port(sock_addr: *mut bpf_sock_addr) -> u16 {
    // SAFETY: every sock_addr context has the field, a port in network order in its low half.
    u16::from_be(unsafe { read_volatile(addr_of!((*sock_addr).user_port)) } as u16)
}

#[inline(always)]
pub fn set_port(sock_addr: *mut bpf_sock_addr, port: u16) {
    // SAFETY: as in `port`, and the field is writable.
    unsafe { write_volatile(addr_of_mut!((*sock_addr).user_port), u32::from(port.to_be())) }
}

/// What connect() and sendmsg() do: 1 goes on, 0 is EPERM to the application.
#[inline(always)]
pub fn verdict(result: Result<Captured, Uncaptured>) -> (i32, Option<Counter>) {
    match result {
        Ok(Captured::Connection) => (1, Some(Counter::OutboundCaptured)),
        Ok(Captured::Dns) => (1, Some(Counter::DnsCaptured)),
        Err(Uncaptured::OtherProtocol | Uncaptured::NotEnrolled) => (1, None),
        Err(Uncaptured::Own) => (1, Some(Counter::OutboundOwn)),
        Err(Uncaptured::Local) => (1, Some(Counter::OutboundLocal)),
        Err(Uncaptured::LinkLocal) => (1, Some(Counter::OutboundLinkLocal)),
        Err(Uncaptured::Excluded) => (1, Some(Counter::OutboundExcluded)),
        Err(Uncaptured::DaemonAwayFailOpen) => (1, Some(Counter::OutboundFailedOpen)),
        Err(Uncaptured::DaemonAway) => (0, Some(Counter::OutboundRefusedDaemonAway)),
        Err(Uncaptured::OwnPort) => (0, Some(Counter::OutboundRefusedOwnPort)),
        Err(Uncaptured::NoAddress) => (0, Some(Counter::OutboundRefusedNoAddress)),
        Err(Uncaptured::NoMemory) => (0, Some(Counter::OutboundRefusedNoMemory)),
    }
}
