//! Copies between an application's TCP connection and a tunnel's stream.
//!
//! In: both, and the proof that the connection is allowed. Out: how it ended. One task does both ways. A FIN becomes the
//! end of the stream's way and the other way round; a reset becomes a reset. While nothing moves, no buffer is held.

use std::{
    future::{Future, poll_fn},
    io,
    pin::{Pin, pin},
    task::{Context, Poll, ready},
};

use bytes::{Buf, Bytes};
use tokio::{
    io::{Interest, Ready},
    net::TcpStream,
};

use super::{
    AbortSignal, ByteCounters, Ended, ErrorCode, Outcome, Side, Stream, StreamError,
    buffers::Buffer, rounds::Place, socket, turn,
};
use crate::policy::Permit;

/// Bytes moved one way before other tasks get their turn.
pub(super) const TURN_BYTES: usize = 256 * 1024;

/// Copies both ways until both have ended, one fails, or `abort` resolves.
///
/// The near side is `tcp`, the application's connection; the far side is `stream`. Whatever fails or is cut on one side
/// is reset on the other: a connection that did not end well never looks as if it did.
pub async fn splice(
    _permit: &Permit,
    tcp: TcpStream,
    stream: Stream,
    counters: &impl ByteCounters,
    abort: impl AbortSignal,
) -> Outcome {
    let mut copy = Copy {
        tcp: &tcp,
        stream,
        counters,
        up: Way::Waiting,
        down: Way::Waiting,
        unwritten: Bytes::new(),
        gave_way: false,
        last_bytes: 0,
        first: Side::Near,
        sent_bytes: 0,
        received_bytes: 0,
    };
    let ended = {
        let mut abort = pin!(abort);
        let mut failure = pin!(tcp.ready(Interest::ERROR));
        poll_fn(|cx| match abort.as_mut().poll(cx) {
            Poll::Ready(why) => Poll::Ready(Ended::Aborted { why }),
            Poll::Pending => copy.poll(cx, failure.as_mut()),
        })
        .await
    };
    match &ended {
        Ended::Finished { .. } => {}
        Ended::Tcp { .. } => copy.stream.reset(ErrorCode::CONNECT_ERROR),
        Ended::Stream { .. } => socket::reset_when_dropped(&tcp),
        Ended::Aborted { .. } => {
            copy.stream.reset(ErrorCode::CANCEL);
            socket::reset_when_dropped(&tcp);
        }
    }
    Outcome { sent_bytes: copy.sent_bytes, received_bytes: copy.received_bytes, ended }
}

/// One way of a connection.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Way {
    /// The source has nothing.
    Waiting,
    /// The target takes no more.
    Blocked,
    /// The source's end was passed on.
    Ended,
}

struct Copy<'a, C> {
    tcp: &'a TcpStream,
    stream: Stream,
    counters: &'a C,
    /// From the application to the tunnel.
    up: Way,
    /// From the tunnel to the application.
    down: Way,
    /// Received from the tunnel, and not yet taken by the application.
    unwritten: Bytes,
    /// Whether a tunnel was let run since the last read.
    gave_way: bool,
    /// Bytes of the last read from the application.
    last_bytes: usize,
    /// The side that ended its way first, once one has.
    first: Side,
    sent_bytes: u64,
    received_bytes: u64,
}

impl<C: ByteCounters> Copy<'_, C> {
    fn poll(
        &mut self,
        cx: &mut Context<'_>,
        failure: Pin<&mut impl Future<Output = io::Result<Ready>>>,
    ) -> Poll<Ended> {
        if self.up != Way::Ended
            && let Poll::Ready(done) = self.poll_up(cx)
        {
            match done {
                Ok(()) => self.end_up(),
                // The peer takes no more. What it has sent is still to be delivered.
                Err(Ended::Stream { source }) if source.says_no_error() => {
                    self.first = Side::Far;
                    self.up = Way::Ended;
                }
                Err(ended) => return Poll::Ready(ended),
            }
        }
        if self.down != Way::Ended
            && let Poll::Ready(done) = self.poll_down(cx)
        {
            if let Err(ended) = done {
                return Poll::Ready(ended);
            }
            self.end_down();
        }
        // While the application takes nothing, nobody reads from the stream either. What it holds is still delivered if
        // the peer only wants no more.
        if self.down == Way::Blocked
            && let Poll::Ready(source) = self.stream.poll_reset(cx)
            && !source.says_no_error()
        {
            return Poll::Ready(Ended::Stream { source });
        }
        match (self.up, self.down) {
            (Way::Ended, Way::Ended) => Poll::Ready(Ended::Finished { first: self.first }),
            // Only reading from the application would show that it is gone, and nobody reads.
            (Way::Ended | Way::Blocked, _) => {
                ready!(failure.poll(cx)).ok();
                Poll::Ready(near_failure(self.tcp))
            }
            // Only reading from the stream would show that it was reset, and nobody reads.
            (Way::Waiting, Way::Ended) => {
                let source = ready!(self.stream.poll_reset(cx));
                Poll::Ready(if source.says_no_error() {
                    Ended::Finished { first: Side::Far }
                } else {
                    Ended::Stream { source }
                })
            }
            (Way::Waiting, Way::Waiting | Way::Blocked) => Poll::Pending,
        }
    }

    fn end_up(&mut self) {
        if self.down != Way::Ended {
            self.first = Side::Near;
        }
        self.up = Way::Ended;
    }

    fn end_down(&mut self) {
        if self.up != Way::Ended {
            self.first = Side::Far;
        }
        self.down = Way::Ended;
    }

    /// Ready at the application's FIN, after it was passed on.
    fn poll_up(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Ended>> {
        loop {
            self.up = Way::Waiting;
            // Only when there is something to read is window asked for, and then a buffer.
            ready!(self.tcp.poll_read_ready(cx)).map_err(near)?;
            if turn::is_over() && !std::mem::replace(&mut self.gave_way, true) {
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
            self.gave_way = false;
            self.up = Way::Blocked;
            ready!(self.stream.poll_writable(cx)).map_err(far)?;
            self.up = Way::Waiting;
            let most = ready!(self.stream.source().poll_turn(cx, Place::Last, self.last_bytes));
            let mut buffer = Buffer::take();
            let most = most.min(buffer.len());
            let count =
                ready!(socket::poll_read(self.tcp, cx, &mut buffer[..most])).map_err(near)?;
            self.stream.source().moved(count);
            self.last_bytes = count;
            if count == 0 {
                return Poll::Ready(self.stream.finish().map_err(far));
            }
            self.stream.send(buffer.freeze(count)).map_err(far)?;
            turn::read(count);
            self.sent_bytes += count as u64;
            self.counters.sent(count as u64);
        }
    }

    /// Ready at the end of the peer's way, after it was passed on.
    fn poll_down(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Ended>> {
        let mut moved = 0;
        while moved < TURN_BYTES {
            if self.unwritten.is_empty() {
                self.down = Way::Waiting;
                match ready!(self.stream.poll_read(cx)).map_err(far)? {
                    Some(bytes) => self.unwritten = bytes,
                    None => return Poll::Ready(socket::finish(self.tcp).map_err(near)),
                }
            }
            self.down = Way::Blocked;
            let wanted = self.unwritten.len();
            let most = ready!(self.stream.source().poll_turn(cx, Place::Last, wanted));
            let piece = &self.unwritten[..most.min(wanted)];
            let count = ready!(socket::poll_write(self.tcp, cx, piece)).map_err(near)?;
            self.stream.source().moved(count);
            self.unwritten.advance(count);
            if self.unwritten.is_empty() {
                // Even an empty piece would keep its frame's memory.
                self.unwritten = Bytes::new();
            }
            self.stream.release(count);
            self.received_bytes += count as u64;
            self.counters.received(count as u64);
            moved += count;
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }
}

fn near(source: io::Error) -> Ended {
    Ended::Tcp { side: Side::Near, source }
}

fn far(source: StreamError) -> Ended {
    Ended::Stream { source }
}

fn near_failure(tcp: &TcpStream) -> Ended {
    near(socket::failure(tcp))
}
