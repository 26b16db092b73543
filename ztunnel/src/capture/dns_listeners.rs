//! The daemon's sockets for a pod's DNS queries.
//!
//! In: a pod's namespace and addresses. Out: sockets at these addresses. At each one of its own, because the answer to a
//! datagram must come from where the question was sent to. Who may reach them is decided by the kernel programs.

use std::{
    io,
    net::{IpAddr, SocketAddr, TcpListener, UdpSocket},
};

use socket2::{Domain, Protocol, Socket, Type};

use super::{listeners::pod_listener, netns::Netns, sockets::SocketOptions};

/// Queries that wait while the thread is busy, in bytes; the kernel counts each datagram as 768 bytes or more.
const RECEIVE_BUFFER: usize = 1 << 20;
/// How often a port is looked for that is free in both families.
const TRIES: u32 = 16;

/// The sockets for the DNS queries of one pod; all non-blocking.
#[derive(Debug)]
pub struct DnsListeners {
    /// One for the first address of each family, all at one port: the one wished, or another if a process of the pod holds that.
    pub datagrams: Vec<UdpSocket>,
    /// For all addresses.
    pub connections: TcpListener,
    pub(super) ips: Vec<IpAddr>,
    pub(super) port: u16,
}

impl DnsListeners {
    /// Opens them at the first address of each family, which is where the pod's own traffic is redirected to, and at
    /// `port` if it is free.
    ///
    /// # Errors
    /// The namespace cannot be entered, or the kernel's answer to socket(), bind() or listen().
    pub fn open(netns: &Netns, ips: &[IpAddr], port: u16) -> io::Result<Self> {
        let ips: Vec<IpAddr> = redirected_to(ips).into_iter().flatten().collect();
        let (datagrams, bound) = netns.enter(|| datagram_sockets(&ips, port))??;
        let connections = pod_listener(netns, port, &SocketOptions::default())?;
        Ok(Self { datagrams, connections, ips, port: bound })
    }

    /// The sockets alone: capture lasts while they are open.
    pub fn into_sockets(self) -> (Vec<UdpSocket>, TcpListener) {
        (self.datagrams, self.connections)
    }

    /// The same sockets once more: they stay open until both are dropped.
    ///
    /// # Errors
    /// No descriptor is left.
    pub fn try_clone(&self) -> io::Result<Self> {
        Ok(Self {
            datagrams: self
                .datagrams
                .iter()
                .map(UdpSocket::try_clone)
                .collect::<io::Result<_>>()?,
            connections: self.connections.try_clone()?,
            ips: self.ips.clone(),
            port: self.port,
        })
    }
}

/// Where a pod's own traffic is redirected to: its first address of IPv4 and of IPv6. Never a link-local one of IPv6,
/// which means nothing without an interface: neither a bound socket nor a rewritten address names one.
pub(super) fn redirected_to(ips: &[IpAddr]) -> [Option<IpAddr>; 2] {
    let canonical = || ips.iter().map(IpAddr::to_canonical);
    let is_reachable_v6 = |ip: &IpAddr| matches!(ip, IpAddr::V6(ip) if !ip.is_unicast_link_local());
    [canonical().find(IpAddr::is_ipv4), canonical().find(is_reachable_v6)]
}

fn datagram_sockets(ips: &[IpAddr], port: u16) -> io::Result<(Vec<UdpSocket>, u16)> {
    let mut result = at_one_port(ips, port);
    for _ in 0..TRIES {
        match result {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => result = at_one_port(ips, 0),
            other => return other,
        }
    }
    result
}

fn at_one_port(ips: &[IpAddr], mut port: u16) -> io::Result<(Vec<UdpSocket>, u16)> {
    let mut sockets = Vec::with_capacity(ips.len());
    for ip in ips {
        let socket = datagram_socket(SocketAddr::new(*ip, port))?;
        port = socket.local_addr()?.port();
        sockets.push(socket);
    }
    Ok((sockets, port))
}

fn datagram_socket(at: SocketAddr) -> io::Result<UdpSocket> {
    let kind = Type::DGRAM.nonblocking();
    let socket = Socket::new(Domain::for_address(at), kind, Some(Protocol::UDP))?;
    // Shared with the daemon that this one replaces.
    socket.set_reuse_port(true)?;
    // An address that the pod is still being given can be bound to.
    if at.is_ipv4() {
        socket.set_freebind_v4(true)?;
    } else {
        socket.set_only_v6(true)?;
        socket.set_freebind_v6(true)?;
    }
    socket.set_recv_buffer_size(RECEIVE_BUFFER)?;
    socket.bind(&at.into())?;
    Ok(socket.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn traffic_is_redirected_to_the_first_address_of_a_family_that_needs_no_interface() {
        for (ips, expected) in [
            (&["10.0.0.1", "10.0.0.2", "fd77::1", "fd77::2"][..], ["10.0.0.1", "fd77::1"]),
            (&["fe80::1", "fd77::2", "::ffff:10.0.0.1"], ["10.0.0.1", "fd77::2"]),
            (&["10.0.0.1", "fe80::1"], ["10.0.0.1", ""]),
            (&["fe80::1"], ["", ""]),
            (&["169.254.0.1"], ["169.254.0.1", ""]),
        ] {
            let ips: Vec<IpAddr> = ips.iter().map(|ip| ip.parse().unwrap()).collect();
            assert_eq!(redirected_to(&ips), expected.map(|ip| ip.parse().ok()), "{ips:?}");
        }
    }
}
