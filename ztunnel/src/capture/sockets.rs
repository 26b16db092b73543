//! Options that all of the daemon's sockets in pods have.
//!
//! In: settings. Out: sockets with them set. Where a socket is bound or connected to is decided elsewhere.

use std::{io, num::NonZeroU32, time::Duration};

use socket2::{SockRef, Socket, TcpKeepalive};

/// Options of the daemon's sockets in pods.
#[derive(Clone, Debug)]
pub struct SocketOptions {
    /// How peers that lost power while nothing was said are given up; none are without it.
    pub keep_alive: Option<KeepAlive>,
    /// Mark of what is sent; connections under a client's address have one of their own instead.
    pub mark: Option<NonZeroU32>,
    /// Which families listeners take.
    pub families: Families,
    /// Whether the ports of listeners are shared with another daemon.
    pub port_reuse: bool,
}

/// When a silent peer is asked, and when it is given up.
#[derive(Clone, Copy, Debug)]
pub struct KeepAlive {
    /// Silence before the first question.
    pub time: Duration,
    /// Between two questions.
    pub interval: Duration,
    /// Questions without an answer.
    pub retries: u16,
    /// Whether data that nobody acknowledges is given up after as long.
    pub user_timeout: bool,
}

/// Which families are served.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum Families {
    /// IPv4 and IPv6.
    #[default]
    Both,
    /// IPv4 alone.
    Ipv4,
}

impl Default for SocketOptions {
    /// Those of Istio's ztunnel, without a mark.
    fn default() -> Self {
        Self {
            keep_alive: Some(KeepAlive {
                time: Duration::from_secs(180),
                interval: Duration::from_secs(180),
                retries: 9,
                user_timeout: false,
            }),
            mark: None,
            families: Families::Both,
            port_reuse: true,
        }
    }
}

impl SocketOptions {
    /// Sets what a socket needs before it is connected or listened on, and marks what it sends. What a listener has, the
    /// sockets accepted from it have: nothing is set for each connection.
    pub(super) fn prepare(&self, socket: &Socket) -> io::Result<()> {
        self.mark(socket)?;
        self.prepare_unmarked(socket)
    }

    /// As [`SocketOptions::prepare`], for a socket that has a mark of its own.
    pub(super) fn prepare_unmarked(&self, socket: &Socket) -> io::Result<()> {
        // Nagle would hold a small frame back until the peer's delayed ACK, up to 40 ms on Linux.
        socket.set_tcp_nodelay(true)?;
        let Some(keep_alive) = self.keep_alive else { return Ok(()) };
        let options = TcpKeepalive::new()
            .with_time(keep_alive.time)
            .with_interval(keep_alive.interval)
            .with_retries(keep_alive.retries.into());
        socket.set_tcp_keepalive(&options)?;
        if keep_alive.user_timeout {
            let limit = keep_alive.time + keep_alive.interval * keep_alive.retries.into();
            socket.set_tcp_user_timeout(Some(limit))?;
        }
        Ok(())
    }

    /// Marks what the socket sends.
    pub(super) fn mark<'socket>(&self, socket: impl Into<SockRef<'socket>>) -> io::Result<()> {
        self.mark.map_or(Ok(()), |mark| socket.into().set_mark(mark.get()))
    }
}
