//! The daemon's listening sockets inside a pod.
//!
//! In: a pod's namespace. Out: its listeners. Whom a connection reaches is decided by the kernel programs: they
//! assign these sockets by themselves, whatever address and port the sockets are bound to.

use std::{
    io,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener},
    num::NonZeroUsize,
};

use ebpf_common::{HBONE_PORT, OUTBOUND_PORT, PLAINTEXT_PORT};
use socket2::{Domain, Protocol, Socket, Type};

use super::{
    dns_listeners::DnsListeners,
    netns::Netns,
    sockets::{Families, SocketOptions},
};

/// Connections that wait to be accepted: 2000 at once must not lose a SYN, which is repeated after a second only.
const BACKLOG: i32 = 4096;

/// The listeners of one pod, one of each kind for each data thread.
#[derive(Debug)]
pub struct PodListeners {
    /// Captured outbound connections, port 15001.
    pub outbound: Vec<TcpListener>,
    /// Captured inbound plaintext, port 15006.
    pub plaintext: Vec<TcpListener>,
    /// Tunnels, port 15008.
    pub hbone: Vec<TcpListener>,
    /// Captured DNS queries; without them DNS is not captured.
    pub dns: Option<DnsListeners>,
    /// SOCKS5 at the pod's loopback address, where that is switched on.
    pub socks: Option<TcpListener>,
}

impl PodListeners {
    /// Opens `per_port` listeners for each port; all non-blocking.
    ///
    /// # Errors
    /// The namespace cannot be entered, or the kernel's answer to socket(), bind() or listen().
    pub fn open(
        netns: &Netns,
        per_port: NonZeroUsize,
        options: &SocketOptions,
    ) -> io::Result<Self> {
        let some = |port| -> io::Result<Vec<_>> {
            (0..per_port.get()).map(|_| pod_listener(netns, port, options)).collect()
        };
        Ok(Self {
            outbound: some(OUTBOUND_PORT)?,
            plaintext: some(PLAINTEXT_PORT)?,
            hbone: some(HBONE_PORT)?,
            dns: None,
            socks: None,
        })
    }

    /// The same sockets once more: they stay open until both are dropped.
    ///
    /// # Errors
    /// No descriptor is left.
    pub fn try_clone(&self) -> io::Result<Self> {
        let again = |some: &[TcpListener]| -> io::Result<Vec<_>> {
            some.iter().map(TcpListener::try_clone).collect()
        };
        Ok(Self {
            outbound: again(&self.outbound)?,
            plaintext: again(&self.plaintext)?,
            hbone: again(&self.hbone)?,
            dns: self.dns.as_ref().map(DnsListeners::try_clone).transpose()?,
            socks: self.socks.as_ref().map(TcpListener::try_clone).transpose()?,
        })
    }
}

/// Opens a non-blocking listener for all addresses of the pod, both families.
///
/// If a process of the pod holds the port, another one is taken: the kernel programs steer to the socket, so that
/// squatting on a port keeps no pod out of the mesh. Peers of IPv4 appear as mapped addresses.
///
/// # Errors
/// The namespace cannot be entered, or the kernel's answer to socket(), bind() or listen().
pub fn pod_listener(netns: &Netns, port: u16, options: &SocketOptions) -> io::Result<TcpListener> {
    netns.enter(|| match listen(port, options) {
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => listen(0, options),
        other => other,
    })?
}

/// Opens a non-blocking listener at `port` of the pod's IPv4 loopback address, for the pod alone.
///
/// # Errors
/// The namespace cannot be entered, or the kernel's answer to socket(), bind() or listen(): nothing steers to it, so that the
/// port must be free.
pub fn loopback_listener(
    netns: &Netns,
    port: u16,
    options: &SocketOptions,
) -> io::Result<TcpListener> {
    netns.enter(|| {
        let socket = listen_v4_at(Ipv4Addr::LOCALHOST, port, options)?;
        options.prepare(&socket)?;
        socket.listen(BACKLOG)?;
        Ok(socket.into())
    })?
}

/// Opens a non-blocking listener at `port` and no other one: nothing steers to it.
///
/// # Errors
/// The kernel's answer to socket(), bind() or listen(), such as that the port is taken.
pub fn home_listener(port: u16, options: &SocketOptions) -> io::Result<TcpListener> {
    listen(port, options)
}

fn listen(port: u16, options: &SocketOptions) -> io::Result<TcpListener> {
    let socket = match options.families {
        Families::Ipv4 => listen_v4(port, options)?,
        Families::Both => match listen_v6(port, options) {
            // IPv6 is switched off.
            Err(error) if error.raw_os_error() == Some(libc::EAFNOSUPPORT) => {
                listen_v4(port, options)?
            }
            other => other?,
        },
    };
    options.prepare(&socket)?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

fn listen_v4(port: u16, options: &SocketOptions) -> io::Result<Socket> {
    listen_v4_at(Ipv4Addr::UNSPECIFIED, port, options)
}

fn listen_v4_at(ip: Ipv4Addr, port: u16, options: &SocketOptions) -> io::Result<Socket> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM.nonblocking(), Some(Protocol::TCP))?;
    reuse_port(&socket, options)?;
    socket.bind(&SocketAddr::from((ip, port)).into())?;
    Ok(socket)
}

fn listen_v6(port: u16, options: &SocketOptions) -> io::Result<Socket> {
    let socket = Socket::new(Domain::IPV6, Type::STREAM.nonblocking(), Some(Protocol::TCP))?;
    socket.set_only_v6(false)?;
    reuse_port(&socket, options)?;
    socket.bind(&SocketAddr::from((Ipv6Addr::UNSPECIFIED, port)).into())?;
    Ok(socket)
}

/// The data threads share the port with one another, and with the daemon that they replace while it drains. Without
/// it, all but the first get other ports: they are steered to just the same.
fn reuse_port(socket: &Socket, options: &SocketOptions) -> io::Result<()> {
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(options.port_reuse)
}

#[cfg(test)]
mod tests {
    use std::{net::TcpStream, thread, time::Duration};

    use socket2::SockRef;

    use super::*;
    use crate::capture::sockets::KeepAlive;

    fn accepted(options: &SocketOptions) -> TcpStream {
        let listener = listen(0, options).unwrap();
        listener.set_nonblocking(false).unwrap();
        let port = listener.local_addr().unwrap().port();
        let client = thread::spawn(move || TcpStream::connect(("127.0.0.1", port)).unwrap());
        let (accepted, _) = listener.accept().unwrap();
        drop(client.join().unwrap());
        accepted
    }

    #[test]
    fn accepted_sockets_have_what_the_listener_has() {
        let accepted = accepted(&SocketOptions::default());
        let accepted = SockRef::from(&accepted);
        assert!(accepted.tcp_nodelay().unwrap());
        assert!(accepted.keepalive().unwrap());
        assert_eq!(accepted.tcp_keepalive_time().unwrap(), Duration::from_secs(180));
        assert_eq!(accepted.tcp_user_timeout().unwrap(), None);
    }

    #[test]
    fn the_user_timeout_is_as_long_as_a_silent_peer_is_asked() {
        let keep_alive = KeepAlive {
            time: Duration::from_secs(10),
            interval: Duration::from_secs(5),
            retries: 2,
            user_timeout: true,
        };
        let accepted =
            accepted(&SocketOptions { keep_alive: Some(keep_alive), ..SocketOptions::default() });
        let limit = SockRef::from(&accepted).tcp_user_timeout().unwrap();
        assert_eq!(limit, Some(Duration::from_secs(20)));
    }

    #[test]
    fn without_ipv6_listeners_have_the_other_family_alone() {
        let options = SocketOptions { families: Families::Ipv4, ..SocketOptions::default() };
        assert!(listen(0, &options).unwrap().local_addr().unwrap().is_ipv4());
        assert!(listen(0, &SocketOptions::default()).unwrap().local_addr().unwrap().is_ipv6());
    }
}
