//! One read or one write on a TCP socket, with as few system calls as the kernel allows.
//!
//! A read or write that moved less than it could have has emptied (or filled) the kernel's buffer. That is remembered as
//! "not ready", which saves the further call that would only answer `EAGAIN`. Everything works on `&TcpStream`, so that
//! both directions and a wait for the socket's failure can run side by side.

use std::{
    io::{self, Read, Write},
    task::{Context, Poll, ready},
};

use socket2::SockRef;
use tokio::{io::Interest, net::TcpStream};

/// Reads what there is, up to the length of `buffer`. Zero is the end of the stream.
pub(super) fn poll_read(
    tcp: &TcpStream,
    cx: &mut Context<'_>,
    buffer: &mut [u8],
) -> Poll<io::Result<usize>> {
    let wanted = buffer.len();
    loop {
        ready!(tcp.poll_read_ready(cx))?;
        let read = || (&*SockRef::from(tcp)).read(buffer);
        if let Some(moved) = attempt(tcp, Interest::READABLE, wanted, read) {
            return Poll::Ready(moved);
        }
    }
}

/// Writes as much of `bytes` as the kernel takes.
pub(super) fn poll_write(
    tcp: &TcpStream,
    cx: &mut Context<'_>,
    bytes: &[u8],
) -> Poll<io::Result<usize>> {
    loop {
        ready!(tcp.poll_write_ready(cx))?;
        let write = || (&*SockRef::from(tcp)).write(bytes);
        if let Some(moved) = attempt(tcp, Interest::WRITABLE, bytes.len(), write) {
            return Poll::Ready(moved);
        }
    }
}

/// Writes as much of `slices` as the kernel takes.
pub(super) fn poll_write_vectored(
    tcp: &TcpStream,
    cx: &mut Context<'_>,
    slices: &[io::IoSlice<'_>],
) -> Poll<io::Result<usize>> {
    let wanted = slices.iter().map(|slice| slice.len()).sum();
    loop {
        ready!(tcp.poll_write_ready(cx))?;
        let write = || (&*SockRef::from(tcp)).write_vectored(slices);
        if let Some(moved) = attempt(tcp, Interest::WRITABLE, wanted, write) {
            return Poll::Ready(moved);
        }
    }
}

/// Sends FIN. A socket that is no longer connected has nothing left to end.
pub(super) fn finish(tcp: &TcpStream) -> io::Result<()> {
    match SockRef::from(tcp).shutdown(std::net::Shutdown::Write) {
        Err(error) if error.kind() == io::ErrorKind::NotConnected => Ok(()),
        done => done,
    }
}

/// Makes the closing of the socket send RST, and throw away what has not left yet.
pub(super) fn reset_when_dropped(tcp: &TcpStream) {
    // It fails only where there is no peer to tell any more.
    let _ = tcp.set_zero_linger();
}

/// Why a socket failed that the kernel reports as failed. Somebody may have been told already: then it was reset.
pub(super) fn failure(tcp: &TcpStream) -> io::Error {
    tcp.take_error().ok().flatten().unwrap_or_else(|| io::ErrorKind::ConnectionReset.into())
}

/// `None`: the socket was not ready after all.
fn attempt(
    tcp: &TcpStream,
    interest: Interest,
    wanted: usize,
    call: impl FnOnce() -> io::Result<usize>,
) -> Option<io::Result<usize>> {
    let mut moved = None;
    let answer = tcp.try_io(interest, || {
        let count = call()?;
        moved = Some(count);
        // `WouldBlock` is how tokio is told that the socket is not ready any more.
        if 0 < count && count < wanted { Err(io::ErrorKind::WouldBlock.into()) } else { Ok(()) }
    });
    match (moved, answer) {
        (Some(count), _) => Some(Ok(count)),
        (None, Err(error)) if error.kind() != io::ErrorKind::WouldBlock => Some(Err(error)),
        (None, _) => None,
    }
}
