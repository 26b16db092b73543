//! What the kernel programs and the daemon share: ports, marks, map names, keys and values.
//!
//! In: nothing. Out: plain integers with a fixed layout. No map is touched here.
//!
//! The layouts are an interface between versions of the daemon, because maps stay pinned while the daemon is
//! replaced: whoever changes one raises [`LAYOUT`].

#![no_std]

mod counter;
mod ip;

pub use counter::Counter;
pub use ip::Ip;

/// Version of the layouts below, part of the pin directory's name.
pub const LAYOUT: &str = "v3";

/// Where captured outbound connections arrive in the pod's namespace.
pub const OUTBOUND_PORT: u16 = 15001;
/// Where captured inbound plaintext connections arrive in the pod's namespace.
pub const PLAINTEXT_PORT: u16 = 15006;
/// Where tunnels (HBONE) arrive, at the pod's own address.
pub const HBONE_PORT: u16 = 15008;
/// Where captured DNS queries arrive in the pod's namespace; datagrams at another port if the pod holds this one.
pub const DNS_PORT: u16 = 15053;
/// Where applications send DNS queries.
pub const DOMAIN_PORT: u16 = 53;

/// [`ListenKey::protocol`] of listeners for connections.
pub const TCP: u32 = 6;
/// [`ListenKey::protocol`] of sockets for datagrams.
pub const UDP: u32 = 17;

/// Mark of the daemon's connections to an application under the client's own address.
///
/// The application's replies inherit it and a rule routes them back to the pod's loopback. Marks do not cross
/// a veth, so nothing outside of the pod can bring one in.
pub const PRESERVED_SOURCE_MARK: u32 = 0x111;

/// Flag of [`Pod`] and [`Address`]: traffic passes uncaptured while the daemon is away. Without it the traffic is
/// refused.
pub const FAIL_OPEN: u32 = 1;

/// Flag of [`Pod`] and [`Address`]: the pod is the host itself. The daemon's own process, and what is excluded, is not
/// captured.
pub const HOST: u32 = 2;

/// Names of the maps, as the object and the pins have them.
pub mod map {
    /// Hash, netns cookie -> [`Pod`](crate::Pod): whose outbound connections are captured.
    pub const PODS: &str = "PODS";
    /// Hash, pod address -> [`Address`](crate::Address): whose inbound connections are steered.
    pub const ADDRESSES: &str = "ADDRESSES";
    /// Sockhash, [`ListenKey`](crate::ListenKey) -> the daemon's listening socket.
    pub const LISTEN: &str = "LISTEN";
    /// LPM trie over source addresses: their inbound connections stay uncaptured.
    pub const EXEMPT: &str = "EXEMPT";
    /// LRU hash, [`Flow`](crate::Flow) -> original destination, from SYN to the accepted socket.
    pub const FLOWS: &str = "FLOWS";
    /// LRU hash of [`Flow`](crate::Flow): connections that the daemon itself is opening to applications.
    pub const OWN_FLOWS: &str = "OWN_FLOWS";
    /// LRU hash, [`Asker`](crate::Asker) -> the DNS server that the application asked last from there.
    pub const ASKED: &str = "ASKED";
    /// Socket storage: the [`OriginalDestination`](crate::OriginalDestination) of client and accepted socket.
    pub const ORIGINAL_DESTINATION: &str = "ORIG_DST";
    /// Socket storage: tags the daemon's own sockets.
    pub const OWN_SOCKETS: &str = "OWN_SOCKETS";
    /// Hash of [`ExcludedPort`](crate::ExcludedPort): what of a host is not captured.
    pub const EXCLUDED_PORTS: &str = "EXCLUDED_PORTS";
    /// LPM trie over destination addresses: a host's connections to them stay uncaptured.
    pub const EXCLUDED_NETS: &str = "EXCLUDED_NETS";
    /// Per-CPU array, indexed by [`Counter`](crate::Counter).
    pub const STATS: &str = "STATS";

    /// Every map above.
    pub const ALL: [&str; 12] = [
        PODS,
        ADDRESSES,
        LISTEN,
        EXEMPT,
        FLOWS,
        OWN_FLOWS,
        ASKED,
        ORIGINAL_DESTINATION,
        OWN_SOCKETS,
        EXCLUDED_PORTS,
        EXCLUDED_NETS,
        STATS,
    ];
}

/// A pod whose outbound connections are captured.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Pod {
    /// The pod's own IPv6 address; unspecified if it has none.
    pub ip6: Ip,
    /// The pod's own IPv4 address in mapped form; unspecified if it has none.
    pub ip4: Ip,
    /// [`FAIL_OPEN`] and [`HOST`].
    pub flags: u32,
    /// Where the pod is the host: the process of the daemon, for as long as it listens; 0 before it has shown itself.
    pub daemon: u32,
    /// Where its DNS queries in datagrams are redirected to, in host byte order; 0 if DNS is not captured.
    pub dns_port: u16,
    /// Zero.
    pub padding: u16,
}

/// An address of an enrolled pod.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Address {
    /// Cookie of the pod's network namespace.
    pub netns: u64,
    /// [`FAIL_OPEN`] and [`HOST`].
    pub flags: u32,
    /// Listening sockets per port; their slots in [`ListenKey`] are `0..listeners`. For DNS there is one.
    pub listeners: u16,
    /// As [`Pod::dns_port`].
    pub dns_port: u16,
}

/// One of the daemon's listening sockets.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct ListenKey {
    /// The pod's address.
    pub ip: Ip,
    /// [`OUTBOUND_PORT`], [`PLAINTEXT_PORT`], [`HBONE_PORT`] or [`DNS_PORT`], in host byte order, whatever port the
    /// socket is bound to.
    pub port: u16,
    /// Which of the port's sockets.
    pub slot: u16,
    /// [`TCP`] or [`UDP`].
    pub protocol: u32,
}

/// A connection being opened, as it looks in the namespace where it is accepted.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Flow {
    /// Cookie of the network namespace.
    pub netns: u64,
    /// The client's address.
    pub source: Ip,
    /// The client's port, in host byte order.
    pub source_port: u16,
    /// The port connected to, in host byte order.
    pub destination_port: u16,
    /// Zero.
    pub padding: u32,
}

/// Where the application meant to connect.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct OriginalDestination {
    /// The address dialed.
    pub ip: Ip,
    /// The port dialed, in host byte order.
    pub port: u16,
    /// The daemon's port that it was redirected to, in host byte order.
    pub via: u16,
}

/// A socket that sends DNS queries in datagrams, as the daemon sees it.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Asker {
    /// Cookie of the network namespace.
    pub netns: u64,
    /// The socket's port, in host byte order.
    pub port: u16,
    /// 1 for IPv4, 0 for IPv6: a port of each may belong to different sockets.
    pub is_v4: u16,
    /// Zero.
    pub padding: u32,
}

/// A port of a host whose connections are not captured.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, Eq, Hash, PartialEq)]
pub struct ExcludedPort {
    /// The port connected to, in host byte order.
    pub port: u16,
    /// 1 for connections to the host, 0 for those that it makes.
    pub is_inbound: u16,
}

const _: () = assert!(size_of::<ExcludedPort>() == 4);
const _: () = assert!(size_of::<Pod>() == 44);
const _: () = assert!(size_of::<Address>() == 16);
const _: () = assert!(size_of::<ListenKey>() == 24);
const _: () = assert!(size_of::<Flow>() == 32);
const _: () = assert!(size_of::<OriginalDestination>() == 20);
const _: () = assert!(size_of::<Asker>() == 16);

#[cfg(feature = "user")]
mod user {
    use super::{Address, Asker, ExcludedPort, Flow, Ip, ListenKey, OriginalDestination, Pod};

    // SAFETY: `repr(transparent)` over an array of integers: no padding, any bytes are a value.
    unsafe impl aya::Pod for Ip {}
    // SAFETY: `repr(C)` integers without implicit padding (asserted by size above).
    unsafe impl aya::Pod for Pod {}
    // SAFETY: as for `Pod`.
    unsafe impl aya::Pod for ExcludedPort {}
    // SAFETY: as for `Pod`.
    unsafe impl aya::Pod for Address {}
    // SAFETY: as for `Pod`.
    unsafe impl aya::Pod for ListenKey {}
    // SAFETY: as for `Pod`.
    unsafe impl aya::Pod for Flow {}
    // SAFETY: as for `Pod`.
    unsafe impl aya::Pod for OriginalDestination {}
    // SAFETY: as for `Pod`.
    unsafe impl aya::Pod for Asker {}
}
