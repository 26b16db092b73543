//! Accepts what a listener that is being closed has already made: the kernel would reset it.
//!
//! In: the listener. Out: its connections, and then its end.

use std::{io, net::SocketAddr};

use tokio::net::{TcpListener, TcpStream};

/// Hands each connection over that waits in the listener's queue.
pub(super) fn accept_rest(listener: TcpListener, serve: impl FnMut(TcpStream, SocketAddr)) {
    if let Err(error) = each(listener, serve)
        && error.kind() != io::ErrorKind::WouldBlock
    {
        tracing::warn!(%error, "connections of a closing listener are lost");
    }
}

/// Ends with `WouldBlock` when the queue is empty. The runtime's own word for that may be late.
fn each(listener: TcpListener, mut serve: impl FnMut(TcpStream, SocketAddr)) -> io::Result<()> {
    let listener = listener.into_std()?;
    loop {
        let (tcp, peer) = listener.accept()?;
        tcp.set_nonblocking(true)?;
        serve(TcpStream::from_std(tcp)?, peer);
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    #[tokio::test(flavor = "current_thread")]
    async fn what_waits_is_served_and_then_the_port_is_closed() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let mut clients: Vec<_> =
            (0..20).map(|_| std::net::TcpStream::connect(addr).unwrap()).collect();
        let mut accepted = Vec::new();
        accept_rest(listener, |tcp, _| accepted.push(tcp));
        assert_eq!(accepted.len(), 20);
        std::net::TcpStream::connect(addr).unwrap_err();
        let last = clients.pop().unwrap();
        last.set_nonblocking(true).unwrap();
        let mut last = TcpStream::from_std(last).unwrap();
        last.write_all(b"x").await.unwrap();
        assert_eq!(accepted.pop().unwrap().read_u8().await.unwrap(), b'x');
    }
}
