//! Socket operations: carries a connection's original destination to the accepted socket, and announces the
//! daemon's own connections to applications.
//!
//! In: a TCP socket that opens, is accepted or changes its state. Out: entries of `FLOWS` and `OWN_FLOWS`, and the
//! accepted socket's storage. Changes nothing about the connection itself.

use core::ptr::{addr_of, read_volatile};

use aya_ebpf::{
    bindings::{
        BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB, BPF_SOCK_OPS_STATE_CB, BPF_SOCK_OPS_STATE_CB_FLAG,
        BPF_SOCK_OPS_TCP_CONNECT_CB, bpf_sock_ops,
    },
    helpers::generated::{bpf_get_netns_cookie, bpf_sock_ops_cb_flags_set},
    programs::SockOpsContext,
};
use ebpf_common::{Counter, DNS_PORT, Flow, OUTBOUND_PORT, PRESERVED_SOURCE_MARK};

use crate::{
    both_families,
    maps::{FLOWS, OWN_FLOWS, PODS, Socket},
};

/// `BPF_TCP_SYN_SENT`: a connection being opened.
const SYN_SENT: u32 = 2;

/// Why a socket operation is none of ours.
pub enum Ignored {
    /// Another event of the socket's life.
    OtherEvent,
    /// The namespace is no enrolled pod's, or the context has no socket.
    NotEnrolled,
    /// The connection was not captured.
    NotCaptured,
    /// The map was full of younger entries, or the kernel had no memory.
    NoMemory,
}

/// Handles one event.
#[inline(always)]
pub fn observe(ctx: &SockOpsContext) -> Result<Option<Counter>, Ignored> {
    let ops = ctx.ops;
    // SAFETY: every sock_ops context has the field.
    match unsafe { read_volatile(addr_of!((*ops).op)) } {
        BPF_SOCK_OPS_TCP_CONNECT_CB => connecting(ops).map(|()| None),
        BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB => accepted(ops).map(Some),
        BPF_SOCK_OPS_STATE_CB => state_changed(ops).map(|()| None),
        // An integer of the kernel's, not an enum of ours.
        _ => Err(Ignored::OtherEvent),
    }
}

/// The local port is known and the SYN not sent yet.
#[inline(always)]
fn connecting(ops: *mut bpf_sock_ops) -> Result<(), Ignored> {
    let (netns, socket) = enrolled(ops)?;
    if socket.is_own() {
        return announce(ops, netns, socket);
    }
    // A socket may have been connected before, elsewhere: its storage alone says nothing.
    let original = socket.original_destination().ok_or(Ignored::NotCaptured)?;
    if remote_port(ops) != original.via {
        return Err(Ignored::NotCaptured);
    }
    FLOWS.insert(local_to_remote(ops, netns), original, 0).map_err(|_| Ignored::NoMemory)
}

/// Lets the daemon's own SYN pass the pod's steering, until it is answered or given up.
///
/// Such a connection carries a foreign source address and runs over loopback, yet the kernel reports the interface
/// that owns the destination: without this entry it would be captured again, for ever.
#[inline(always)]
fn announce(ops: *mut bpf_sock_ops, netns: u64, socket: Socket) -> Result<(), Ignored> {
    if socket.mark() != PRESERVED_SOURCE_MARK {
        return Err(Ignored::NotCaptured);
    }
    // SAFETY: every sock_ops context has the field.
    let flags = unsafe { read_volatile(addr_of!((*ops).bpf_sock_ops_cb_flags)) };
    let flags = (flags | BPF_SOCK_OPS_STATE_CB_FLAG) as i32;
    // Without the event the entry would outlive the SYN, and its 4-tuple could be used by the real client.
    // SAFETY: the helper takes this context.
    if unsafe { bpf_sock_ops_cb_flags_set(ops, flags) } != 0 {
        return Err(Ignored::NoMemory);
    }
    OWN_FLOWS.insert(local_to_remote(ops, netns), 1, 0).map_err(|_| Ignored::NoMemory)
}

/// One of the daemon's connections was answered, refused or given up.
#[inline(always)]
fn state_changed(ops: *mut bpf_sock_ops) -> Result<(), Ignored> {
    // SAFETY: the state event has the old and the new state as its first arguments.
    if unsafe { read_volatile(addr_of!((*ops).__bindgen_anon_1.args[0])) } != SYN_SENT {
        return Err(Ignored::OtherEvent);
    }
    let (netns, _) = enrolled(ops)?;
    OWN_FLOWS.remove(local_to_remote(ops, netns)).map_err(|_| Ignored::NotCaptured)
}

/// The handshake with one of the daemon's listeners is complete.
#[inline(always)]
fn accepted(ops: *mut bpf_sock_ops) -> Result<Counter, Ignored> {
    // SAFETY: every sock_ops context has the field, in host byte order.
    let local_port = unsafe { read_volatile(addr_of!((*ops).local_port)) };
    if local_port != u32::from(OUTBOUND_PORT) && local_port != u32::from(DNS_PORT) {
        return Err(Ignored::NotCaptured);
    }
    let (netns, socket) = enrolled(ops)?;
    let flow = Flow {
        netns,
        source: both_families!(ops, remote_ip4, remote_ip6),
        source_port: remote_port(ops),
        destination_port: local_port as u16,
        padding: 0,
    };
    // SAFETY: the value is copied at once; a concurrent write would be of another connection, with another key.
    let original = *unsafe { FLOWS.get(flow) }.ok_or(Ignored::NotCaptured)?;
    socket.set_original_destination(original).ok_or(Ignored::NoMemory)?;
    FLOWS.remove(flow).map_err(|_| Ignored::NotCaptured)?;
    Ok(Counter::OutboundHandedOver)
}

/// The pod's namespace and the socket, if the namespace is a pod's.
#[inline(always)]
fn enrolled(ops: *mut bpf_sock_ops) -> Result<(u64, Socket), Ignored> {
    // SAFETY: the helper takes this context.
    let netns = unsafe { bpf_get_netns_cookie(ops.cast()) };
    PODS.get_ptr(netns).ok_or(Ignored::NotEnrolled)?;
    // SAFETY: every sock_ops context has the field; it is a union with one member.
    let socket = Socket::new(unsafe { (*ops).__bindgen_anon_2.sk }).ok_or(Ignored::NotEnrolled)?;
    Ok((netns, socket))
}

/// The connection as its accepting side will see it.
#[inline(always)]
fn local_to_remote(ops: *mut bpf_sock_ops, netns: u64) -> Flow {
    // SAFETY: every sock_ops context has the field, in host byte order.
    let local_port = unsafe { read_volatile(addr_of!((*ops).local_port)) };
    Flow {
        netns,
        source: both_families!(ops, local_ip4, local_ip6),
        source_port: local_port as u16,
        destination_port: remote_port(ops),
        padding: 0,
    }
}

#[inline(always)]
fn remote_port(ops: *mut bpf_sock_ops) -> u16 {
    // SAFETY: every sock_ops context has the field: network order, in the upper half of the word.
    u32::from_be(unsafe { read_volatile(addr_of!((*ops).remote_port)) }) as u16
}
