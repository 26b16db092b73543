//! The agent's `SOCK_SEQPACKET` socket: one message in each packet, and the descriptors that come with it.
//!
//! In: a path; messages to send. Out: packets received. What they say is read elsewhere.

use std::{io, io::IoSliceMut, mem::MaybeUninit, os::fd::OwnedFd, path::Path, time::Duration};

use prost::Message;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendFlags,
    SocketAddrUnix, SocketFlags, SocketType,
};
use tokio::{io::Interest, net::UnixStream, time::timeout};

/// The longest message either side sends, in bytes.
pub(super) const MAX_MESSAGE: usize = 1024;
/// The agent waits no longer for an answer, and reads as fast.
const SEND_LIMIT: Duration = Duration::from_secs(5);

/// What one packet was.
#[derive(Debug)]
pub(super) enum Packet {
    /// A message and the descriptors that came with it.
    Whole(Vec<u8>, Vec<OwnedFd>),
    /// More bytes or descriptors than there is room for; those that arrived are closed.
    Cut,
}

/// A `UnixStream` only in name: the descriptor is of a `SOCK_SEQPACKET` socket, and the type lends it to the runtime.
pub(super) fn connect(path: &Path) -> io::Result<UnixStream> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?;
    rustix::net::connect(&socket, &SocketAddrUnix::new(path)?)?;
    UnixStream::from_std(socket.into())
}

/// Sends one message, within five seconds.
pub(super) async fn send(socket: &UnixStream, message: &impl Message) -> io::Result<()> {
    let bytes = message.encode_to_vec();
    let send_now = || Ok(rustix::net::send(socket, &bytes, SendFlags::NOSIGNAL)?);
    timeout(SEND_LIMIT, socket.async_io(Interest::WRITABLE, send_now)).await?.map(drop)
}

/// Receives one packet. The end of the connection is `UnexpectedEof`.
pub(super) async fn receive(socket: &UnixStream) -> io::Result<Packet> {
    socket.async_io(Interest::READABLE, || receive_now(socket)).await
}

fn receive_now(socket: &UnixStream) -> io::Result<Packet> {
    // Room for more descriptors than any message may have, so that surplus ones arrive and are closed.
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(8))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let mut message = vec![0; MAX_MESSAGE];
    let received = rustix::net::recvmsg(
        socket,
        &mut [IoSliceMut::new(&mut message)],
        &mut ancillary,
        RecvFlags::CMSG_CLOEXEC,
    )?;
    let mut descriptors = Vec::new();
    for item in ancillary.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = item {
            descriptors.extend(rights);
        }
    }
    if received.flags.intersects(ReturnFlags::TRUNC | ReturnFlags::CTRUNC) {
        return Ok(Packet::Cut);
    }
    if received.bytes == 0 {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    message.truncate(received.bytes);
    Ok(Packet::Whole(message, descriptors))
}
