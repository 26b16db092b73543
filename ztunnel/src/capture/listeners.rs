//! The daemon's listening sockets inside a pod.
//!
//! In: a pod's namespace. Out: its listeners. Whom a connection reaches is decided by the kernel programs: they
//! assign these sockets by themselves, whatever address and port the sockets are bound to.

use std::{
    io,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener},
    num::NonZeroUsize,
    time::Duration,
};

use ebpf_common::{HBONE_PORT, OUTBOUND_PORT, PLAINTEXT_PORT};
use socket2::{Domain, Protocol, SockRef, Socket, TcpKeepalive, Type};

use super::{dns_listeners::DnsListeners, netns::Netns};

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
}

impl PodListeners {
    /// Opens `per_port` listeners for each port; all non-blocking.
    ///
    /// # Errors
    /// The namespace cannot be entered, or the kernel's answer to socket(), bind() or listen().
    pub fn open(netns: &Netns, per_port: NonZeroUsize) -> io::Result<Self> {
        let some = |port| -> io::Result<Vec<_>> {
            (0..per_port.get()).map(|_| pod_listener(netns, port)).collect()
        };
        Ok(Self {
            outbound: some(OUTBOUND_PORT)?,
            plaintext: some(PLAINTEXT_PORT)?,
            hbone: some(HBONE_PORT)?,
            dns: None,
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
pub fn pod_listener(netns: &Netns, port: u16) -> io::Result<TcpListener> {
    netns.enter(|| match listen(port) {
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => listen(0),
        other => other,
    })?
}

fn listen(port: u16) -> io::Result<TcpListener> {
    let socket = match Socket::new(Domain::IPV6, Type::STREAM.nonblocking(), Some(Protocol::TCP)) {
        Ok(socket) => {
            socket.set_only_v6(false)?;
            reuse_port(&socket)?;
            socket.bind(&SocketAddr::from((Ipv6Addr::UNSPECIFIED, port)).into())?;
            socket
        }
        // IPv6 is switched off.
        Err(error) if error.raw_os_error() == Some(libc::EAFNOSUPPORT) => {
            let socket =
                Socket::new(Domain::IPV4, Type::STREAM.nonblocking(), Some(Protocol::TCP))?;
            reuse_port(&socket)?;
            socket.bind(&SocketAddr::from((Ipv4Addr::UNSPECIFIED, port)).into())?;
            socket
        }
        Err(error) => return Err(error),
    };
    // What a listener has, the sockets accepted from it have: nothing is set for each connection.
    socket.set_tcp_nodelay(true)?;
    keep_alive(&socket)?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

/// Lets a peer that lost power while nothing was said be given up, with the intervals of Istio's ztunnel.
///
/// # Errors
/// The kernel's.
pub fn keep_alive<'socket>(socket: impl Into<SockRef<'socket>>) -> io::Result<()> {
    let interval = Duration::from_secs(180);
    let keepalive = TcpKeepalive::new().with_time(interval).with_interval(interval).with_retries(9);
    socket.into().set_tcp_keepalive(&keepalive)
}

/// The data threads share the port with one another, and with the daemon that they replace while it drains.
fn reuse_port(socket: &Socket) -> io::Result<()> {
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(true)
}

#[cfg(test)]
mod tests {
    use std::{net::TcpStream, thread};

    use super::*;

    #[test]
    fn accepted_sockets_have_what_the_listener_has() {
        let listener = listen(0).unwrap();
        listener.set_nonblocking(false).unwrap();
        let port = listener.local_addr().unwrap().port();
        let client = thread::spawn(move || TcpStream::connect(("127.0.0.1", port)).unwrap());
        let (accepted, _) = listener.accept().unwrap();
        let accepted = SockRef::from(&accepted);
        assert!(accepted.tcp_nodelay().unwrap());
        assert!(accepted.keepalive().unwrap());
        assert_eq!(accepted.tcp_keepalive_time().unwrap(), Duration::from_secs(180));
        drop(client.join().unwrap());
    }
}
