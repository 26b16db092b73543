//! The daemon's own connections from inside a pod.
//!
//! In: a pod's namespace, where to, and under which source address. Out: a connected stream. Deadlines are the
//! caller's.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    ops::{Deref, DerefMut},
    os::fd::AsFd,
    sync::atomic::Ordering,
    time::Duration,
};

use ebpf_common::PRESERVED_SOURCE_MARK;
use socket2::{Domain, Protocol, SockRef, Socket, Type};
use tokio::net::{TcpStream, UdpSocket};

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

/// A connection that may be given up at any point of waiting, and is reset then: whoever has accepted it must not take
/// it for one that ended well.
#[derive(Debug)]
pub struct ResetUnlessKept(Option<TcpStream>);

impl ResetUnlessKept {
    /// Resets `stream` when dropped.
    pub fn new(stream: TcpStream) -> Self {
        Self(Some(stream))
    }

    /// The connection, which ends as its owner likes.
    pub fn keep(mut self) -> TcpStream {
        self.0.take().expect("there until it is kept or dropped")
    }
}

impl Deref for ResetUnlessKept {
    type Target = TcpStream;

    fn deref(&self) -> &TcpStream {
        self.0.as_ref().expect("there until it is kept or dropped")
    }
}

impl DerefMut for ResetUnlessKept {
    fn deref_mut(&mut self) -> &mut TcpStream {
        self.0.as_mut().expect("there until it is kept or dropped")
    }
}

impl Drop for ResetUnlessKept {
    fn drop(&mut self) {
        if let Some(stream) = self.0.take() {
            reset(stream);
        }
    }
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
        connect(socket, to).await
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
            self.sockets.prepare_unmarked(&socket)?;
            let connected = match bind_as(&socket, SocketAddr::new(source, self.source_port())) {
                Ok(()) => connect(socket, to).await,
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

async fn connect(socket: Socket, to: SocketAddr) -> io::Result<TcpStream> {
    match socket.connect(&to.into()) {
        Err(error) if error.raw_os_error() != Some(libc::EINPROGRESS) => return Err(error),
        Ok(()) | Err(_) => {}
    }
    let begun = ResetUnlessKept::new(TcpStream::from_std(socket.into())?);
    begun.writable().await?;
    match begun.take_error()? {
        Some(error) => Err(error),
        None => Ok(begun.keep()),
    }
}

#[cfg(test)]
mod tests {
    use std::{
        io::Read,
        net::TcpListener,
        task::{Context, Waker},
    };

    use super::*;

    #[test]
    fn the_port_range_ends_before_the_default_ephemeral_ports() {
        assert_eq!(FIRST_PORT + (PORTS - 1), 32767);
    }

    /// Over loopback the kernel makes the connection at once; the task hears of it later.
    #[tokio::test]
    async fn a_connection_that_is_given_up_when_it_is_made_already_is_reset() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let to = listener.local_addr().unwrap();
        let socket = Socket::new(Domain::IPV4, Type::STREAM.nonblocking(), None).unwrap();
        let mut connecting = Box::pin(connect(socket, to));
        let polled = connecting.as_mut().poll(&mut Context::from_waker(Waker::noop()));
        assert!(polled.is_pending(), "{polled:?}");
        drop(connecting);
        let (mut accepted, _) = listener.accept().unwrap();
        let error = accepted.read(&mut [0]).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
    }

    #[tokio::test]
    async fn a_connection_that_is_made_ends_as_its_owner_likes() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let to = listener.local_addr().unwrap();
        let socket = Socket::new(Domain::IPV4, Type::STREAM.nonblocking(), None).unwrap();
        drop(connect(socket, to).await.unwrap());
        assert_eq!(listener.accept().unwrap().0.read(&mut [0]).unwrap(), 0);
    }

    #[tokio::test]
    async fn a_refused_connection_tells_so() {
        let nobody = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let socket = Socket::new(Domain::IPV4, Type::STREAM.nonblocking(), None).unwrap();
        let error = connect(socket, nobody).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused);
    }
}
