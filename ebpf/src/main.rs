//! The kernel programs that capture pod traffic: the entry points.
//!
//! In: the kernel's hooks. Out: a verdict for each, counted. How a verdict comes about is in the modules; what is
//! shared with the daemon is in `ebpf_common`. Of UDP, only DNS queries are touched.

#![no_std]
#![no_main]

mod datagram;
mod handover;
mod inbound;
mod maps;
mod outbound;

use aya_ebpf::{
    EbpfContext,
    macros::{cgroup_sock_addr, sk_lookup, sock_ops},
    programs::{SkLookupContext, SockAddrContext, SockOpsContext},
};
use ebpf_common::Counter;
use handover::Ignored;
use outbound::{Inet4, Inet6};

/// Reads an address of a context in either family, as an `Ip`.
///
/// Both forms are read before one is chosen: a choice between fields becomes one load through a computed context
/// pointer, which the verifier refuses.
#[macro_export]
macro_rules! both_families {
    ($context:expr, $field4:ident, $field6:ident) => {{
        use core::ptr::{addr_of, read_volatile};
        const AF_INET6: u32 = 10;
        let context = $context;
        // SAFETY: every context of this type has these fields, whichever the family.
        let (family, ip4, ip6) = unsafe {
            (
                read_volatile(addr_of!((*context).family)),
                read_volatile(addr_of!((*context).$field4)),
                [
                    read_volatile(addr_of!((*context).$field6[0])),
                    read_volatile(addr_of!((*context).$field6[1])),
                    read_volatile(addr_of!((*context).$field6[2])),
                    read_volatile(addr_of!((*context).$field6[3])),
                ],
            )
        };
        if family == AF_INET6 { ebpf_common::Ip(ip6) } else { ebpf_common::Ip::from_v4_be(ip4) }
    }};
}

/// connect() of an AF_INET socket.
#[cgroup_sock_addr(connect4)]
pub fn connect4(ctx: SockAddrContext) -> i32 {
    counted(&ctx, outbound::verdict(outbound::capture::<Inet4>(&ctx)))
}

/// connect() of an AF_INET6 socket.
#[cgroup_sock_addr(connect6)]
pub fn connect6(ctx: SockAddrContext) -> i32 {
    counted(&ctx, outbound::verdict(outbound::capture::<Inet6>(&ctx)))
}

/// sendmsg() of an unconnected AF_INET datagram socket, or of an AF_INET6 one to a mapped address.
#[cgroup_sock_addr(sendmsg4)]
pub fn sendmsg4(ctx: SockAddrContext) -> i32 {
    counted(&ctx, outbound::verdict(datagram::send::<Inet4>(&ctx)))
}

/// sendmsg() of an unconnected AF_INET6 datagram socket.
#[cgroup_sock_addr(sendmsg6)]
pub fn sendmsg6(ctx: SockAddrContext) -> i32 {
    counted(&ctx, outbound::verdict(datagram::send::<Inet6>(&ctx)))
}

/// The source that recvmsg() of an AF_INET datagram socket tells; 1 is its only verdict.
#[cgroup_sock_addr(recvmsg4)]
pub fn recvmsg4(ctx: SockAddrContext) -> i32 {
    outbound::restore_peer::<Inet4>(&ctx);
    1
}

/// The source that recvmsg() of an AF_INET6 datagram socket tells; 1 is its only verdict.
#[cgroup_sock_addr(recvmsg6)]
pub fn recvmsg6(ctx: SockAddrContext) -> i32 {
    outbound::restore_peer::<Inet6>(&ctx);
    1
}

/// getpeername() of an AF_INET socket; 1 is its only verdict.
#[cgroup_sock_addr(getpeername4)]
pub fn getpeername4(ctx: SockAddrContext) -> i32 {
    outbound::restore_peer::<Inet4>(&ctx);
    1
}

/// getpeername() of an AF_INET6 socket; 1 is its only verdict.
#[cgroup_sock_addr(getpeername6)]
pub fn getpeername6(ctx: SockAddrContext) -> i32 {
    outbound::restore_peer::<Inet6>(&ctx);
    1
}

/// Events of TCP sockets; 1 is the verdict of a program that replies nothing.
#[sock_ops]
pub fn observe_sockets(ctx: SockOpsContext) -> u32 {
    let counter = match handover::observe(&ctx) {
        Ok(counter) => counter,
        Err(
            Ignored::OtherEvent | Ignored::NotEnrolled | Ignored::NotCaptured | Ignored::NoMemory,
        ) => None,
    };
    counted(&ctx, (1, counter))
}

/// New inbound connections and datagrams of a pod's namespace.
#[sk_lookup]
pub fn steer(ctx: SkLookupContext) -> u32 {
    counted(&ctx, inbound::verdict(inbound::steer(&ctx)))
}

/// Counts a decision and gives its verdict.
#[inline(always)]
fn counted<V>(ctx: &impl EbpfContext, (verdict, counter): (V, Option<Counter>)) -> V {
    if let Some(counter) = counter {
        maps::count(counter);
        log(ctx, counter);
    }
    verdict
}

#[cfg(feature = "log")]
#[inline(always)]
fn log(ctx: &impl EbpfContext, counter: Counter) {
    aya_log_ebpf::debug!(ctx, "{}", counter.name());
}

#[cfg(not(feature = "log"))]
#[inline(always)]
fn log(_: &impl EbpfContext, _: Counter) {}

/// None of the helpers used is reserved to GPL programs.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 11] = *b"Apache-2.0\0";

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}
