//! Datagrams to port 53: sends a pod's DNS queries to the daemon.
//!
//! In: the address given to connect() or sendmsg() of a UDP socket. Out: the address rewritten, the original kept on
//! the socket and under the socket's port, where the daemon finds it; or why not. Other datagrams pass untouched.

use core::ptr;

use aya_ebpf::{
    bindings::bpf_sock_addr,
    helpers::generated::{bpf_bind, bpf_get_netns_cookie, bpf_get_prandom_u32},
    programs::SockAddrContext,
};
use ebpf_common::{Asker, DNS_PORT, DOMAIN_PORT, HOST, Ip, OriginalDestination, Pod, UDP};

use crate::{
    maps::{ASKED, PODS, Socket, is_daemon},
    outbound::{
        Captured, Family, Uncaptured, is_excluded, is_local, listener, port, set_port, socket,
    },
};

/// First of the ports tried for a socket that has none: the usual range of ephemeral ones.
const FIRST_PORT: u16 = 32768;
/// How many ports there are: up to and including 60999.
const PORTS: u64 = 28232;
/// Ports tried; with a tenth of them taken, 8 tries fail once in 100 million.
const TRIES: u32 = 8;

/// A query on its way.
struct Query {
    asked: Ip,
    netns: u64,
    socket: Socket,
    /// The pod's own address, of the family of `asked`.
    to: Ip,
    to_port: u16,
}

/// Rewrites the server that a socket is being connected to.
///
/// The kernel chooses the socket's port only afterwards, and the daemon knows the asker by its port. So the port is
/// chosen here, and the address that the connection would get goes with it.
#[inline(always)]
pub fn connect<F: Family>(ctx: &SockAddrContext) -> Result<Captured, Uncaptured> {
    let query = Query::of::<F>(ctx.sock_addr)?;
    let port = match query.socket.local_port() {
        0 => F::bind(ctx.sock_addr, query.to),
        port => Some(port),
    };
    query.redirect::<F>(ctx.sock_addr, port)
}

/// Rewrites the server that one datagram is being sent to.
#[inline(always)]
pub fn send<F: Family>(ctx: &SockAddrContext) -> Result<Captured, Uncaptured> {
    let query = Query::of::<F>(ctx.sock_addr)?;
    let port = query.socket.local_port();
    query.redirect::<F>(ctx.sock_addr, Some(port))
}

impl Query {
    /// Finds out whether these are DNS queries of a pod to somebody else.
    #[inline(always)]
    fn of<F: Family>(sock_addr: *mut bpf_sock_addr) -> Result<Self, Uncaptured> {
        if port(sock_addr) != DOMAIN_PORT {
            return Err(Uncaptured::OtherProtocol);
        }
        // SAFETY: the helper takes this context.
        let netns = unsafe { bpf_get_netns_cookie(sock_addr.cast()) };
        // SAFETY: elements are never freed while a program runs, and every write of user space is of a whole element.
        let pod: &Pod = unsafe { PODS.get(netns) }.ok_or(Uncaptured::NotEnrolled)?;
        let to_port = pod.dns_port;
        if to_port == 0 {
            return Err(Uncaptured::OtherProtocol);
        }
        let Some(socket) = socket(sock_addr) else { return Err(Uncaptured::NoMemory) };
        if socket.is_own() || is_daemon(pod) {
            return Err(Uncaptured::Own);
        }
        let asked = F::address(sock_addr);
        if is_local(netns, asked) {
            return Err(Uncaptured::Local);
        }
        if asked.is_link_local_v6() {
            return Err(Uncaptured::LinkLocal);
        }
        if pod.flags & HOST != 0 && is_excluded(asked, DOMAIN_PORT) {
            return Err(Uncaptured::Excluded);
        }
        let to = listener(pod, asked, DNS_PORT, UDP)?;
        Ok(Self { asked, netns, socket, to, to_port })
    }

    /// Without a port, the daemon will not know which server was meant.
    #[inline(always)]
    fn redirect<F: Family>(
        &self,
        sock_addr: *mut bpf_sock_addr,
        port: Option<u16>,
    ) -> Result<Captured, Uncaptured> {
        let original = OriginalDestination { ip: self.asked, port: DOMAIN_PORT, via: self.to_port };
        if self.socket.set_original_destination(original).is_none() {
            return Err(Uncaptured::NoMemory);
        }
        if let Some(port) = port {
            let is_v4 = u16::from(self.asked.is_v4());
            let asker = Asker { netns: self.netns, port, is_v4, padding: 0 };
            ASKED.insert(asker, original, 0).map_err(|_| Uncaptured::NoMemory)?;
        }
        F::set_address(sock_addr, self.to);
        set_port(sock_addr, self.to_port);
        Ok(Captured::Dns)
    }
}

/// Binds the socket of a connect hook to a free port of the address that `at` makes; none if those tried are taken.
#[inline(always)]
pub fn bind_some_port<A>(sock_addr: *mut bpf_sock_addr, at: impl Fn(u16) -> A) -> Option<u16> {
    for _ in 0..TRIES {
        // SAFETY: the helper takes nothing.
        let random = u64::from(unsafe { bpf_get_prandom_u32() });
        let port = FIRST_PORT + (((random & 0xffff_ffff) * PORTS) >> 32) as u16;
        let mut address = at(port);
        // SAFETY: the helper takes this context, and an address of this size.
        let bound = unsafe {
            bpf_bind(sock_addr, ptr::from_mut(&mut address).cast(), size_of::<A>() as i32)
        };
        if bound == 0 {
            return Some(port);
        }
    }
    None
}
