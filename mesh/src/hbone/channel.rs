//! A tunnel's stream in the place of a socket, for a tunnel inside it.
//!
//! In: a [`Stream`]. Out: bytes to read and to write, with its window as the back pressure. It does not reset the stream:
//! that is for whoever holds its other handle.

use std::{
    cell::RefCell,
    io,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, ready},
};

use bytes::{Buf, Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::{Stream, StreamError, transport::Witness};

/// Bytes that one write takes at most.
const WRITE_BYTES: usize = 256 * 1024;

/// One of several handles to a stream. All live in one task.
#[derive(Clone)]
pub(super) struct Channel(Rc<RefCell<State>>);

struct State {
    stream: Stream,
    /// Received, and not yet asked for.
    unread: Bytes,
    finished: bool,
    witness: Rc<Witness>,
}

impl Channel {
    pub(super) fn new(stream: Stream, witness: Rc<Witness>) -> Self {
        let state = State { stream, unread: Bytes::new(), finished: false, witness };
        Self(Rc::new(RefCell::new(state)))
    }

    /// Throws away what still comes, until the peer's end or its reset.
    pub(super) async fn drained(&self) {
        std::future::poll_fn(|cx| {
            let mut state = self.0.borrow_mut();
            loop {
                match ready!(state.stream.poll_read(cx)) {
                    Ok(Some(bytes)) => state.stream.release(bytes.len()),
                    Ok(None) | Err(_) => return Poll::Ready(()),
                }
            }
        })
        .await;
    }
}

impl State {
    fn poll_fill(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.unread.is_empty()
            && let Some(bytes) = ready!(self.stream.poll_read(cx)).map_err(into_io)?
        {
            self.witness.hear();
            self.unread = bytes;
        }
        Poll::Ready(Ok(()))
    }

    fn poll_send(
        &mut self,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let wanted: usize = slices.iter().map(|slice| slice.len()).sum();
        if wanted == 0 {
            return Poll::Ready(Ok(0));
        }
        ready!(self.stream.poll_writable(cx)).map_err(into_io)?;
        let mut bytes = BytesMut::with_capacity(wanted.min(WRITE_BYTES));
        for slice in slices {
            let room = WRITE_BYTES - bytes.len();
            bytes.extend_from_slice(&slice[..slice.len().min(room)]);
        }
        let count = bytes.len();
        self.stream.send(bytes.freeze()).map_err(into_io)?;
        Poll::Ready(Ok(count))
    }
}

impl AsyncRead for Channel {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        target: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let state = &mut *self.0.borrow_mut();
        ready!(state.poll_fill(cx))?;
        let count = target.remaining().min(state.unread.len());
        target.put_slice(&state.unread[..count]);
        state.unread.advance(count);
        if state.unread.is_empty() {
            // Even an empty piece would keep its frame's memory.
            state.unread = Bytes::new();
        }
        state.stream.release(count);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Channel {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.0.borrow_mut().poll_send(cx, &[io::IoSlice::new(bytes)])
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.0.borrow_mut().poll_send(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        let state = &mut *self.0.borrow_mut();
        if !std::mem::replace(&mut state.finished, true) {
            state.stream.finish().map_err(into_io)?;
        }
        Poll::Ready(Ok(()))
    }
}

/// What became of the outer stream, as the layer above it sees it.
fn into_io(error: StreamError) -> io::Error {
    let kind = match &error {
        StreamError::Reset { .. } => io::ErrorKind::ConnectionReset,
        StreamError::Goaway { .. } | StreamError::Misbehaved { .. } | StreamError::Lost { .. } => {
            io::ErrorKind::BrokenPipe
        }
    };
    io::Error::new(kind, error)
}
