//! Copies between two TCP connections: traffic that no tunnel carries.
//!
//! In: both, and the proof that the connection is allowed. Out: how it ended. As in [`splice`](super::splice()), one
//! task does both ways, a FIN is passed on as a FIN and a reset as a reset, and while nothing moves no buffer is held.

use std::{
    future::{Future, poll_fn},
    io,
    pin::pin,
    task::{Context, Poll, ready},
};

use bytes::{Buf, Bytes};
use tokio::{io::Interest, net::TcpStream};

use super::{
    AbortSignal, ByteCounters, Ended, Outcome, Side,
    buffers::Buffer,
    rounds::Place,
    socket,
    source::Source,
    splice::{TURN_BYTES, Way},
};
use crate::policy::Permit;

/// Copies both ways until both have ended, one fails, or `abort` resolves. `near` is the connection that was accepted,
/// `far` the one that was dialed. Whatever fails or is cut on one side is reset on the other.
pub async fn relay(
    _permit: &Permit,
    near: TcpStream,
    far: TcpStream,
    counters: &impl ByteCounters,
    abort: impl AbortSignal,
) -> Outcome {
    let (mut sent_bytes, mut received_bytes) = (0, 0);
    // A connection that is gone already moves nothing.
    let source = near.peer_addr().map(|peer| Source::of(peer.ip())).unwrap_or_default();
    let mut up = OneWay::new(&near, &far, &source);
    let mut down = OneWay::new(&far, &near, &source);
    let mut first = Side::Near;
    let ended = {
        let mut abort = pin!(abort);
        let mut near_failure = pin!(near.ready(Interest::ERROR));
        let mut far_failure = pin!(far.ready(Interest::ERROR));
        poll_fn(|cx| {
            if let Poll::Ready(why) = abort.as_mut().poll(cx) {
                return Poll::Ready(Ended::Aborted { why });
            }
            let count_up = |count| {
                sent_bytes += count;
                counters.sent(count);
            };
            if up.way != Way::Ended
                && let Poll::Ready(done) = up.poll(cx, count_up)
            {
                if let Err(failed) = done {
                    return Poll::Ready(failed.ended(Side::Near, Side::Far));
                }
                first = if down.way == Way::Ended { Side::Far } else { Side::Near };
                up.way = Way::Ended;
            }
            let count_down = |count| {
                received_bytes += count;
                counters.received(count);
            };
            if down.way != Way::Ended
                && let Poll::Ready(done) = down.poll(cx, count_down)
            {
                if let Err(failed) = done {
                    return Poll::Ready(failed.ended(Side::Far, Side::Near));
                }
                first = if up.way == Way::Ended { Side::Near } else { Side::Far };
                down.way = Way::Ended;
            }
            if (up.way, down.way) == (Way::Ended, Way::Ended) {
                return Poll::Ready(Ended::Finished { first });
            }
            // Only reading from a side would show that it is gone, and nobody reads.
            if up.way != Way::Waiting && near_failure.as_mut().poll(cx).is_ready() {
                return Poll::Ready(Ended::Tcp {
                    side: Side::Near,
                    source: socket::failure(&near),
                });
            }
            if down.way != Way::Waiting && far_failure.as_mut().poll(cx).is_ready() {
                return Poll::Ready(Ended::Tcp { side: Side::Far, source: socket::failure(&far) });
            }
            Poll::Pending
        })
        .await
    };
    match &ended {
        Ended::Finished { .. } => {}
        Ended::Tcp { .. } | Ended::Stream { .. } | Ended::Aborted { .. } => {
            socket::reset_when_dropped(&near);
            socket::reset_when_dropped(&far);
        }
    }
    Outcome { sent_bytes, received_bytes, ended }
}

struct OneWay<'a> {
    from: &'a TcpStream,
    to: &'a TcpStream,
    way: Way,
    /// Read, and not yet taken.
    unwritten: Bytes,
    /// Whose turn it must be to read.
    source: &'a Source,
    /// Bytes of the last read.
    last_bytes: usize,
}

enum Failed {
    Reading(io::Error),
    Writing(io::Error),
}

impl Failed {
    fn ended(self, from: Side, to: Side) -> Ended {
        match self {
            Self::Reading(source) => Ended::Tcp { side: from, source },
            Self::Writing(source) => Ended::Tcp { side: to, source },
        }
    }
}

impl<'a> OneWay<'a> {
    fn new(from: &'a TcpStream, to: &'a TcpStream, source: &'a Source) -> Self {
        Self { from, to, way: Way::Waiting, unwritten: Bytes::new(), source, last_bytes: 0 }
    }

    /// Ready at the source's FIN, after it was passed on.
    fn poll(
        &mut self,
        cx: &mut Context<'_>,
        mut count: impl FnMut(u64),
    ) -> Poll<Result<(), Failed>> {
        let mut moved = 0;
        while moved < TURN_BYTES {
            while !self.unwritten.is_empty() {
                self.way = Way::Blocked;
                let written = ready!(socket::poll_write(self.to, cx, &self.unwritten))
                    .map_err(Failed::Writing)?;
                self.unwritten.advance(written);
                count(written as u64);
            }
            self.unwritten = Bytes::new();
            self.way = Way::Waiting;
            ready!(self.from.poll_read_ready(cx)).map_err(Failed::Reading)?;
            let most = ready!(self.source.poll_turn(cx, Place::Last, self.last_bytes));
            let mut buffer = Buffer::take();
            let most = most.min(buffer.len());
            let read = ready!(socket::poll_read(self.from, cx, &mut buffer[..most]))
                .map_err(Failed::Reading)?;
            self.source.moved(read);
            self.last_bytes = read;
            if read == 0 {
                return Poll::Ready(socket::finish(self.to).map_err(Failed::Writing));
            }
            moved += read;
            let written = match socket::poll_write(self.to, cx, &buffer[..read]) {
                Poll::Ready(written) => written.map_err(Failed::Writing)?,
                Poll::Pending => 0,
            };
            if written > 0 {
                count(written as u64);
            }
            if written < read {
                self.unwritten = buffer.freeze(read).slice(written..);
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }
}
