//! The daemon's own connections from inside a pod.
//!
//! In: a pod's namespace, where to, and under which source address. Out: a connected stream. Deadlines are the
//! caller's.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    os::fd::{AsFd, OwnedFd},
    sync::atomic::Ordering,
    time::Duration,
};

use ebpf_common::PRESERVED_SOURCE_MARK;
use socket2::{Domain, Protocol, SockRef, Socket, Type};
use tokio::net::{TcpSocket, TcpStream, UdpSocket};

use super::{Capture, netns::Netns};

/// First source port of connections under a client's address.
///
/// The client's own port is taken by the connection that it has made, and any other one may be the next it makes. So
/// the range lies below the default ephemeral range, 32768-60999, and above what services commonly listen on.
const FIRST_PORT: u16 = 10240;
/// How many ports there are: up to and including 32767.
const PORTS: u16 = 22528;
/// Ports tried before giving up; with half of the range taken, 64 tries fail once in 2^64.
const TRIES: u32 = 64;

/// Makes a non-blocking TCP socket in the pod's namespace, of the family of `to`. It is captured like any other
/// socket of the pod until [`Capture::tag_own`].
///
/// # Errors
/// The namespace cannot be entered, or the kernel's answer to socket().
pub fn pod_socket(netns: &Netns, to: SocketAddr) -> io::Result<Socket> {
    let kind = Type::STREAM.nonblocking();
    netns.enter(|| Socket::new(Domain::for_address(to), kind, Some(Protocol::TCP)))?
}

/// Closes a connection by a reset, so that its peer sees a refusal rather than an orderly end.
pub fn reset(stream: TcpStream) {
    // A socket that is gone already has nothing to reset.
    let _ = SockRef::from(&stream).set_linger(Some(Duration::ZERO));
}

impl Capture {
    /// Connects from the pod's namespace, under an address that the kernel chooses.
    ///
    /// # Errors
    /// The kernel's answer to socket() or connect(), or the namespace cannot be entered.
    pub async fn dial(&self, netns: &Netns, to: SocketAddr) -> io::Result<TcpStream> {
        let socket = pod_socket(netns, to)?;
        self.tag_own(socket.as_fd())?;
        self.sockets.prepare(&socket)?;
        tokio_socket(socket).connect(to).await
    }

    /// Makes a datagram socket in the pod's namespace, at a port that the kernel chooses, which takes answers from `to`
    /// only.
    ///
    /// # Errors
    /// The kernel's answer to socket() or connect(), or the namespace cannot be entered.
    pub fn datagram_socket(&self, netns: &Netns, to: SocketAddr) -> io::Result<UdpSocket> {
        let kind = Type::DGRAM.nonblocking();
        let made = netns.enter(|| Socket::new(Domain::for_address(to), kind, Some(Protocol::UDP)));
        let socket = made??;
        self.tag_own(socket.as_fd())?;
        self.sockets.mark(&socket)?;
        socket.connect(&to.into())?;
        UdpSocket::from_std(socket.into())
    }

    /// Connects from the pod's namespace to an application of the pod, under the client's address `source`.
    ///
    /// # Errors
    /// As [`Capture::dial`]; `AddrInUse` or `AddrNotAvailable` if no source port is free.
    pub async fn dial_as(
        &self,
        netns: &Netns,
        source: IpAddr,
        to: SocketAddr,
    ) -> io::Result<TcpStream> {
        let source = source.to_canonical();
        let to = SocketAddr::new(to.ip().to_canonical(), to.port());
        let mut tries = 1;
        loop {
            let socket = pod_socket(netns, to)?;
            self.tag_own(socket.as_fd())?;
            self.sockets.prepare(&socket)?;
            let connected = match bind_as(&socket, SocketAddr::new(source, self.source_port())) {
                Ok(()) => tokio_socket(socket).connect(to).await,
                Err(error) => Err(error),
            };
            match connected {
                Err(error) if tries < TRIES && port_taken(&error) => tries += 1,
                other => return other,
            }
        }
    }

    /// The next port of the range. In turn, so that a port rests in TIME_WAIT as long as possible.
    fn source_port(&self) -> u16 {
        FIRST_PORT + self.next_port.fetch_add(1, Ordering::Relaxed) % PORTS
    }
}

/// Gives the socket a foreign source address, and the mark that brings the replies back.
fn bind_as(socket: &Socket, source: SocketAddr) -> io::Result<()> {
    socket.set_mark(PRESERVED_SOURCE_MARK)?;
    if source.is_ipv4() {
        socket.set_ip_transparent_v4(true)?;
    } else {
        socket.set_ip_transparent_v6(true)?;
    }
    // Other connections of the daemon may use the port towards other destinations.
    socket.set_reuse_address(true)?;
    socket.bind(&source.into())
}

/// bind() finds an application listening on the port, connect() finds the same pair of addresses in use.
fn port_taken(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::AddrInUse | io::ErrorKind::AddrNotAvailable)
}

fn tokio_socket(socket: Socket) -> TcpSocket {
    TcpSocket::from_std_stream(OwnedFd::from(socket).into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_port_range_ends_before_the_default_ephemeral_ports() {
        assert_eq!(FIRST_PORT + (PORTS - 1), 32767);
    }
}
