//! What the kernel programs count: one counter for each thing they decide.

macro_rules! counters {
    ($($(#[$doc:meta])* $variant:ident = $name:literal,)*) => {
        /// A decision of the kernel programs; the number is its index in the `STATS` map.
        #[repr(u32)]
        #[derive(Clone, Copy, Debug, Eq, PartialEq)]
        pub enum Counter {
            $($(#[$doc])* $variant,)*
        }

        impl Counter {
            /// Every counter, in the order of the map.
            pub const ALL: &[Self] = &[$(Self::$variant,)*];

            /// The counter's name in metrics and logs.
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$variant => $name,)*
                }
            }
        }
    };
}

counters! {
    /// connect(): rewritten to the daemon.
    OutboundCaptured = "outbound_captured",
    /// connect(): one of the daemon's own sockets.
    OutboundOwn = "outbound_own",
    /// connect(): to the pod itself.
    OutboundLocal = "outbound_local",
    /// connect(): to a link-local IPv6 address.
    OutboundLinkLocal = "outbound_link_local",
    /// connect(): of a host, to what is excluded.
    OutboundExcluded = "outbound_excluded",
    /// connect(): passed, the daemon is away and the pod fails open.
    OutboundFailedOpen = "outbound_failed_open",
    /// connect(): refused, the daemon is away.
    OutboundRefusedDaemonAway = "outbound_refused_daemon_away",
    /// connect(): refused, an application dialed one of the daemon's ports in its own pod.
    OutboundRefusedOwnPort = "outbound_refused_own_port",
    /// connect(): refused, the pod has no address of the destination's family.
    OutboundRefusedNoAddress = "outbound_refused_no_address",
    /// connect(): refused, the kernel had no memory for the original destination.
    OutboundRefusedNoMemory = "outbound_refused_no_memory",
    /// A captured connection arrived at the daemon with its original destination.
    OutboundHandedOver = "outbound_handed_over",
    /// connect() or a datagram to port 53: rewritten to the daemon's DNS proxy.
    DnsCaptured = "dns_captured",
    /// A datagram or SYN given to the DNS proxy.
    SteeredDns = "steered_dns",
    /// A SYN given to the listener of captured outbound connections.
    SteeredOutbound = "steered_outbound",
    /// A SYN given to the plaintext listener.
    SteeredPlaintext = "steered_plaintext",
    /// A SYN given to the tunnel listener.
    SteeredHbone = "steered_hbone",
    /// A SYN from the pod to itself.
    InboundLocal = "inbound_local",
    /// A SYN of the daemon to the application.
    InboundOwn = "inbound_own",
    /// A SYN from an exempt source.
    InboundExempt = "inbound_exempt",
    /// A SYN to a port of a host that is excluded.
    InboundExcluded = "inbound_excluded",
    /// A SYN passed, the daemon is away and the pod fails open.
    InboundFailedOpen = "inbound_failed_open",
    /// A SYN dropped, the daemon is away.
    InboundDroppedDaemonAway = "inbound_dropped_daemon_away",
    /// A SYN dropped, it came from outside to a port that only the pod itself may use.
    InboundDroppedOwnPort = "inbound_dropped_own_port",
    /// A SYN dropped, its destination is not a known address of the pod.
    InboundDroppedUnknownAddress = "inbound_dropped_unknown_address",
}

#[cfg(test)]
mod tests {
    use super::Counter;

    #[test]
    fn a_counter_is_its_own_index_and_names_are_unique() {
        for (index, counter) in Counter::ALL.iter().enumerate() {
            assert_eq!(*counter as usize, index);
            let same = Counter::ALL.iter().filter(|other| other.name() == counter.name());
            assert_eq!(same.count(), 1, "{}", counter.name());
        }
    }
}
