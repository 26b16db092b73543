//! Socket lookup in a pod's namespace: gives new inbound connections to the daemon's listeners.
//!
//! In: a SYN, or a datagram, that met no connected socket. Out: the listener it is given to, or why none. Runs once for
//! each connection, never for its data. Of datagrams, only those to the DNS proxy are steered. No verdicts: the entry point turns reasons into verdicts.

use core::ptr::{addr_of, read_volatile};

use aya_ebpf::{
    bindings::{bpf_sk_lookup, sk_action},
    btf_maps::lpm_trie::Key,
    programs::SkLookupContext,
};
use ebpf_common::{
    Address, Counter, DNS_PORT, FAIL_OPEN, Flow, HBONE_PORT, HOST, Ip, ListenKey, OUTBOUND_PORT,
    PLAINTEXT_PORT, TCP, UDP,
};

use crate::{
    both_families,
    maps::{ADDRESSES, EXEMPT, LISTEN, OWN_FLOWS, is_excluded_port},
};

/// The assigned socket is the one: no choice among the sockets that share its port, of which a process of the pod
/// or an older daemon may own some.
const NO_REUSEPORT: u64 = 2;

/// Which of the daemon's listeners.
#[derive(Clone, Copy)]
pub enum Listener {
    /// For captured outbound connections.
    Outbound,
    /// For plaintext from outside.
    Plaintext,
    /// For tunnels.
    Hbone,
    /// For captured DNS queries.
    Dns,
}

/// Why a SYN is left to the ordinary lookup, or dropped.
pub enum Unsteered {
    /// Only TCP, and UDP to the DNS proxy, are steered.
    OtherProtocol,
    /// To a loopback address.
    Loopback,
    /// From the pod to itself.
    Local,
    /// From the daemon to the application.
    Own,
    /// From an exempt source.
    Exempt,
    /// To a port of a host that is excluded.
    Excluded,
    /// Nobody listens, and the pod fails open.
    DaemonAwayFailOpen,
    /// Nobody listens.
    DaemonAway,
    /// From outside to a port that only the pod itself may use, or from the pod to one that only others may.
    OwnPort,
    /// To an address that the daemon does not know as the pod's.
    UnknownAddress,
}

/// Gives the SYN to the listener that its destination asks for.
#[inline(always)]
pub fn steer(ctx: &SkLookupContext) -> Result<Listener, Unsteered> {
    let lookup = ctx.lookup;
    // SAFETY: every sk_lookup context has the field.
    match unsafe { read_volatile(addr_of!((*lookup).protocol)) } {
        TCP => {}
        UDP => return datagram(ctx, &Syn::read(lookup)),
        // An integer of the kernel's, not an enum of ours.
        _ => return Err(Unsteered::OtherProtocol),
    }
    let syn = Syn::read(lookup);
    if syn.destination.is_loopback() {
        return Err(Unsteered::Loopback);
    }
    // The helper of the netns cookie is not available here, hence the way over the address.
    // SAFETY: elements are never freed while a program runs, and every write of user space is of a whole element.
    let to = unsafe { ADDRESSES.get(syn.destination) }.ok_or(Unsteered::UnknownAddress)?;
    let listener = syn.listener(to)?;
    if syn.assign(ctx, listener, to) {
        return Ok(listener);
    }
    match listener {
        // None of them is ever meant for the application.
        Listener::Outbound | Listener::Hbone | Listener::Dns => Err(Unsteered::DaemonAway),
        Listener::Plaintext if to.flags & FAIL_OPEN != 0 => Err(Unsteered::DaemonAwayFailOpen),
        Listener::Plaintext => Err(Unsteered::DaemonAway),
    }
}

/// Gives a DNS query of the pod to the daemon; to others the daemon's port is closed.
#[inline(always)]
fn datagram(ctx: &SkLookupContext, query: &Syn) -> Result<Listener, Unsteered> {
    // SAFETY: as for `ADDRESSES` in `steer`.
    let to = unsafe { ADDRESSES.get(query.destination) }.ok_or(Unsteered::OtherProtocol)?;
    if to.dns_port == 0 || query.port != to.dns_port {
        return Err(Unsteered::OtherProtocol);
    }
    if !query.is_local(to) {
        return Err(Unsteered::OwnPort);
    }
    let key = ListenKey { ip: query.destination, port: DNS_PORT, slot: 0, protocol: UDP };
    match LISTEN.redirect_sk_lookup(ctx, key, NO_REUSEPORT) {
        Ok(()) => Ok(Listener::Dns),
        Err(_) => Err(Unsteered::DaemonAway),
    }
}

/// Source and destination of the segment.
struct Syn {
    source: Ip,
    source_port: u16,
    destination: Ip,
    port: u16,
}

impl Syn {
    #[inline(always)]
    fn read(lookup: *mut bpf_sk_lookup) -> Self {
        Self {
            source: both_families!(lookup, remote_ip4, remote_ip6),
            // SAFETY: every sk_lookup context has the field, in network order.
            source_port: u16::from_be(unsafe { read_volatile(addr_of!((*lookup).remote_port)) }),
            destination: both_families!(lookup, local_ip4, local_ip6),
            // SAFETY: every sk_lookup context has the field, in host order.
            port: unsafe { read_volatile(addr_of!((*lookup).local_port)) } as u16,
        }
    }

    /// Which listener the SYN belongs to, if any.
    #[inline(always)]
    fn listener(&self, to: &Address) -> Result<Listener, Unsteered> {
        if self.port == HBONE_PORT {
            return Ok(Listener::Hbone);
        }
        if self.is_own(to) {
            return Err(Unsteered::Own);
        }
        if self.is_local(to) {
            return match self.port {
                OUTBOUND_PORT => Ok(Listener::Outbound),
                PLAINTEXT_PORT => Err(Unsteered::OwnPort),
                DNS_PORT if to.dns_port != 0 => Ok(Listener::Dns),
                _ => Err(Unsteered::Local),
            };
        }
        // A pod whose queries are not captured may use the DNS proxy's port.
        let is_own_port = matches!(self.port, OUTBOUND_PORT | PLAINTEXT_PORT)
            || (self.port == DNS_PORT && to.dns_port != 0);
        if is_own_port {
            return Err(Unsteered::OwnPort);
        }
        if to.flags & HOST != 0 && is_excluded_port(self.port, 1) {
            return Err(Unsteered::Excluded);
        }
        if EXEMPT.get(&Key::new(128, self.source.0)).is_some() {
            return Err(Unsteered::Exempt);
        }
        Ok(Listener::Plaintext)
    }

    /// Whether the pod connects to itself. By address: such traffic runs over loopback, yet the kernel reports the
    /// interface that owns the address.
    #[inline(always)]
    fn is_local(&self, to: &Address) -> bool {
        if self.source.same(&self.destination) || self.source.is_loopback() {
            return true;
        }
        // SAFETY: as for `ADDRESSES` in `steer`.
        unsafe { ADDRESSES.get(self.source) }.is_some_and(|from| from.netns == to.netns)
    }

    #[inline(always)]
    fn is_own(&self, to: &Address) -> bool {
        let flow = Flow {
            netns: to.netns,
            source: self.source,
            source_port: self.source_port,
            destination_port: self.port,
            padding: 0,
        };
        OWN_FLOWS.get_ptr(flow).is_some()
    }

    /// Assigns the listener that the client's port selects; its first one if that is gone.
    #[inline(always)]
    fn assign(&self, ctx: &SkLookupContext, listener: Listener, to: &Address) -> bool {
        let port = match listener {
            Listener::Outbound => OUTBOUND_PORT,
            Listener::Plaintext => PLAINTEXT_PORT,
            Listener::Hbone => HBONE_PORT,
            Listener::Dns => DNS_PORT,
        };
        // Fibonacci hashing: clients' ports are mostly even, so their low bits alone would leave threads idle.
        let hash = (u32::from(self.source_port) ^ self.source.0[3]).wrapping_mul(0x9e37_79b1) >> 16;
        let slot = match (listener, to.listeners) {
            (Listener::Dns, _) | (_, 0) => 0,
            (_, listeners) => hash % u32::from(listeners),
        };
        let key = ListenKey { ip: self.destination, port, slot: slot as u16, protocol: TCP };
        if LISTEN.redirect_sk_lookup(ctx, key, NO_REUSEPORT).is_ok() {
            return true;
        }
        LISTEN.redirect_sk_lookup(ctx, ListenKey { slot: 0, ..key }, NO_REUSEPORT).is_ok()
    }
}

/// What becomes of the SYN: passed ones go to the assigned socket or to the ordinary lookup, a dropped one is
/// answered by a reset.
#[inline(always)]
pub fn verdict(result: Result<Listener, Unsteered>) -> (u32, Option<Counter>) {
    const PASS: u32 = sk_action::SK_PASS;
    const DROP: u32 = sk_action::SK_DROP;
    match result {
        Ok(Listener::Outbound) => (PASS, Some(Counter::SteeredOutbound)),
        Ok(Listener::Plaintext) => (PASS, Some(Counter::SteeredPlaintext)),
        Ok(Listener::Hbone) => (PASS, Some(Counter::SteeredHbone)),
        Ok(Listener::Dns) => (PASS, Some(Counter::SteeredDns)),
        Err(Unsteered::OtherProtocol | Unsteered::Loopback) => (PASS, None),
        Err(Unsteered::Local) => (PASS, Some(Counter::InboundLocal)),
        Err(Unsteered::Own) => (PASS, Some(Counter::InboundOwn)),
        Err(Unsteered::Exempt) => (PASS, Some(Counter::InboundExempt)),
        Err(Unsteered::Excluded) => (PASS, Some(Counter::InboundExcluded)),
        Err(Unsteered::DaemonAwayFailOpen) => (PASS, Some(Counter::InboundFailedOpen)),
        Err(Unsteered::DaemonAway) => (DROP, Some(Counter::InboundDroppedDaemonAway)),
        Err(Unsteered::OwnPort) => (DROP, Some(Counter::InboundDroppedOwnPort)),
        Err(Unsteered::UnknownAddress) => (DROP, Some(Counter::InboundDroppedUnknownAddress)),
    }
}
