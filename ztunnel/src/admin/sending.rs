//! A connection on which sending has limits.
//!
//! In: an operator's connection. Out: the same, which fails once its client takes nothing of an answer for too long, or takes
//! too long for the whole of it. How long an answer takes to make is of no interest here, nor is what the client sends.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use metrics::counter;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::{Instant, Sleep, sleep},
};

/// A client takes something of an answer at least this often.
const STALL_LIMIT: Duration = Duration::from_secs(30);
/// A client has taken the whole of an answer after this long: a large dump over a slow line, but no trickle.
const WHOLE_LIMIT: Duration = Duration::from_secs(300);

/// A connection whose client may not hold up answers.
#[derive(Debug)]
pub(super) struct Sending<T> {
    inner: T,
    /// Since the client was first waited for in this answer.
    waiting: Option<Waiting>,
}

#[derive(Debug)]
struct Waiting {
    /// The end of the whole answer.
    whole: Instant,
    /// The end of the current stall.
    end: Pin<Box<Sleep>>,
    /// Whether nothing has been taken since `end` was set.
    is_stalled: bool,
}

impl<T> Sending<T> {
    pub(super) fn new(inner: T) -> Self {
        Self { inner, waiting: None }
    }

    /// Judges what became of an attempt to write.
    fn judge<R>(
        &mut self,
        context: &mut Context<'_>,
        written: Poll<io::Result<R>>,
    ) -> Poll<io::Result<R>> {
        if written.is_ready() {
            if let Some(waiting) = &mut self.waiting {
                waiting.is_stalled = false;
            }
            return written;
        }
        let now = Instant::now();
        let waiting = self.waiting.get_or_insert_with(|| Waiting {
            whole: now + WHOLE_LIMIT,
            end: Box::pin(sleep(STALL_LIMIT)),
            is_stalled: true,
        });
        if !waiting.is_stalled {
            waiting.is_stalled = true;
            waiting.end.as_mut().reset((now + STALL_LIMIT).min(waiting.whole));
        }
        ready!(waiting.end.as_mut().poll(context));
        counter!("aquifer_admin_stalled_total").increment(1);
        Poll::Ready(Err(io::Error::new(
            io::ErrorKind::TimedOut,
            "the client does not take the answer",
        )))
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for Sending<T> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_read(context, buffer)
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Sending<T> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.inner).poll_write(context, bytes);
        self.judge(context, written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.inner).poll_write_vectored(context, slices);
        self.judge(context, written)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    /// All of an answer has been written when hyper flushes.
    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = ready!(Pin::new(&mut self.inner).poll_flush(context));
        self.waiting = None;
        Poll::Ready(flushed)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};

    use super::*;

    /// A connection with room for four bytes.
    fn connection() -> (Sending<DuplexStream>, DuplexStream) {
        let (ours, theirs) = duplex(4);
        (Sending::new(ours), theirs)
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_takes_nothing_is_given_up_after_thirty_seconds() {
        let (mut ours, _theirs) = connection();
        let began = Instant::now();
        let failed = ours.write_all(b"answer").await.unwrap_err();
        assert_eq!((failed.kind(), began.elapsed()), (io::ErrorKind::TimedOut, STALL_LIMIT));
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_takes_an_answer_in_trickles_is_given_up_after_five_minutes() {
        let (mut ours, mut theirs) = connection();
        let began = Instant::now();
        let trickle = async {
            loop {
                sleep(STALL_LIMIT - Duration::from_secs(1)).await;
                theirs.read_u8().await.unwrap();
            }
        };
        let failed = tokio::select! {
            ended = ours.write_all(&[0; 1000]) => ended.unwrap_err(),
            () = trickle => unreachable!("it never ends"),
        };
        assert_eq!((failed.kind(), began.elapsed()), (io::ErrorKind::TimedOut, WHOLE_LIMIT));
    }

    #[tokio::test(start_paused = true)]
    async fn each_answer_has_its_own_time_and_none_is_counted_before_it_is_sent() {
        let (mut ours, mut theirs) = connection();
        for _ in 0..20 {
            sleep(WHOLE_LIMIT).await;
            let take = async {
                sleep(STALL_LIMIT - Duration::from_secs(1)).await;
                theirs.read_exact(&mut [0; 6]).await.unwrap();
            };
            let send = async {
                ours.write_all(b"answer").await.unwrap();
                ours.flush().await.unwrap();
            };
            tokio::join!(take, send);
        }
    }
}
