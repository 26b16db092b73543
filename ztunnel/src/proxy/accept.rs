//! Accepts a pod's connections: in turn with the other pods of the thread, within the pod's share, and while there are
//! descriptors for them.
//!
//! In: a listener. Out: connections, each with its [`Held`] place, given to those who serve them; or refused with the
//! reason. A lack of descriptors makes all accepting of the thread pause: what is open goes on.

use std::{
    cell::Cell,
    io,
    net::SocketAddr,
    os::fd::{AsFd, AsRawFd},
    rc::Rc,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use mesh::{
    hbone::Source,
    telemetry::{Failure, Reason, Reporter},
};
use metrics::counter;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::Notify,
};

use super::{
    accept_rest::accept_rest,
    outbound::refuse,
    share::{Full, Held, Share},
    thread::{DataThread, LocalPod},
};

/// Connections that a listener accepts before others get their turn.
const TURN: u32 = 16;
/// Pauses while descriptors are lacking. Other threads and the control thread give some back without telling.
const FIRST_PAUSE: Duration = Duration::from_millis(10);
const LAST_PAUSE: Duration = Duration::from_secs(1);
/// Descriptors that new connections do not get.
const RESERVED: u64 = 64;
/// The log tells of a lack of descriptors at most this often.
const TOLD_INTERVAL: Duration = Duration::from_secs(60);

/// What is accepted.
#[derive(Clone, Copy)]
pub(super) struct Kind {
    pub(super) reporter: Reporter,
    pub(super) claim: fn(&Arc<Share>) -> Result<Held, Full>,
}

/// Accepts until the pod is removed or the daemon drains.
pub(super) async fn accept(
    thread: Rc<DataThread>,
    pod: Rc<LocalPod>,
    listener: TcpListener,
    kind: Kind,
    serve: impl Fn(Rc<DataThread>, Rc<LocalPod>, TcpStream, SocketAddr, Held),
) {
    let stop = async {
        tokio::select! {
            () = pod.pod.removed.cancelled() => {}
            () = thread.node.draining.cancelled() => {}
        }
    };
    let mut stop = std::pin::pin!(stop);
    let hand_over = |tcp: TcpStream, peer: SocketAddr| {
        let peer = SocketAddr::new(peer.ip().to_canonical(), peer.port());
        match (kind.claim)(&pod.pod.share) {
            Ok(held) => serve(thread.clone(), pod.clone(), tcp, peer, held),
            Err(full) => {
                let to = tcp.local_addr().unwrap_or(peer);
                refuse(kind.reporter, tcp, peer, to, &Failure::from(full));
            }
        }
    };
    let own = pod.pod.ips.first().map(|ip| Source::of(*ip)).unwrap_or_default();
    let (mut pause, mut in_turn) = (FIRST_PAUSE, 0);
    loop {
        let accepted = tokio::select! {
            biased;
            () = &mut stop => break,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((tcp, peer)) => {
                pause = FIRST_PAUSE;
                while thread.node.shortages.is_near(&tcp) {
                    tokio::select! {
                        biased;
                        () = &mut stop => return,
                        () = thread.freed.after(&mut pause) => {}
                    }
                }
                match kind.reporter {
                    Reporter::Source => own.begin_connection().await,
                    Reporter::Destination => Source::of(peer.ip()).begin_connection().await,
                }
                hand_over(tcp, peer);
                in_turn += 1;
                if in_turn == TURN {
                    in_turn = 0;
                    tokio::task::yield_now().await;
                }
            }
            Err(error) => {
                if is_shortage(&error) {
                    thread.node.shortages.note(&error);
                } else {
                    tracing::warn!(pod = %pod.pod.uid, %error, "cannot accept");
                }
                tokio::select! {
                    biased;
                    () = &mut stop => return,
                    () = thread.freed.after(&mut pause) => {}
                }
            }
        }
    }
    // A removed pod's connections are cut, those that wait too.
    if !pod.pod.removed.is_cancelled() {
        accept_rest(listener, hand_over);
    }
}

/// Whether the process or the machine lacks what a socket is made of.
fn is_shortage(error: &io::Error) -> bool {
    let code = error.raw_os_error();
    matches!(code, Some(libc::EMFILE | libc::ENFILE | libc::ENOBUFS | libc::ENOMEM))
}

/// Wakes those who lack descriptors when a connection of their thread has ended.
#[derive(Default)]
pub(super) struct Freed {
    waiting: Cell<u32>,
    ended: Notify,
}

impl Freed {
    /// A connection has ended. Costs nothing while nobody waits.
    pub(super) fn tell(&self) {
        if self.waiting.get() > 0 {
            self.ended.notify_one();
        }
    }

    /// Waits until a connection ends, but no longer than `pause`, which is longer the next time.
    async fn after(&self, pause: &mut Duration) {
        tokio::select! {
            () = self.next() => {}
            () = tokio::time::sleep(*pause) => {}
        }
        *pause = (*pause * 2).min(LAST_PAUSE);
    }

    async fn next(&self) {
        struct Waiting<'a>(&'a Cell<u32>);
        impl Drop for Waiting<'_> {
            fn drop(&mut self) {
                self.0.set(self.0.get() - 1);
            }
        }
        self.waiting.set(self.waiting.get() + 1);
        let _waiting = Waiting(&self.waiting);
        self.ended.notified().await;
    }
}

/// Tells of a lack of descriptors: each in the metric, now and then in the log.
#[derive(Debug)]
pub struct Shortages {
    /// Descriptors from this number on are for what is open already, and for the daemon's control.
    first_reserved: i32,
    told: Mutex<Option<Instant>>,
}

impl Shortages {
    /// For a process that may have `limit` descriptors.
    pub fn new(limit: u64) -> Self {
        let first_reserved = limit - RESERVED.min(limit / 4);
        let first_reserved = i32::try_from(first_reserved).unwrap_or(i32::MAX);
        Self { first_reserved, told: Mutex::default() }
    }

    /// Whether the process has hardly any descriptor left: the kernel gives the lowest that is free.
    fn is_near(&self, accepted: &TcpStream) -> bool {
        if accepted.as_raw_fd() < self.first_reserved {
            return false;
        }
        // The socket keeps its number; another one tells whether lower ones have become free.
        let error = match accepted.as_fd().try_clone_to_owned() {
            Ok(probe) if probe.as_raw_fd() < self.first_reserved => return false,
            Ok(_) => io::Error::from_raw_os_error(libc::EMFILE),
            Err(error) => error,
        };
        self.note(&error);
        true
    }

    fn note(&self, error: &io::Error) {
        let reason = Reason::OutOfResources;
        counter!("aquifer_accept_pauses_total", "reason" => reason.as_str()).increment(1);
        if self.is_news(Instant::now()) {
            tracing::warn!(%reason, %error, "accepting pauses until connections end");
        }
    }

    fn is_news(&self, now: Instant) -> bool {
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        if told.is_some_and(|told| now.duration_since(told) < TOLD_INTERVAL) {
            return false;
        }
        *told = Some(now);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shortage_is_told_once_a_minute() {
        let (shortages, start) = (Shortages::new(1024), Instant::now());
        let news = |seconds| shortages.is_news(start + Duration::from_secs(seconds));
        assert_eq!(
            [news(0), news(1), news(59), news(60), news(61)],
            [true, false, false, true, false]
        );
    }

    #[test]
    fn a_part_of_the_descriptors_is_kept_back() {
        let kept = |limit| limit as i32 - Shortages::new(limit).first_reserved;
        assert_eq!([kept(1_048_576), kept(200), kept(8), kept(0)], [64, 50, 2, 0]);
    }

    #[test]
    fn only_a_lack_of_means_is_a_shortage() {
        for (code, expected) in
            [(libc::EMFILE, true), (libc::ENFILE, true), (libc::ECONNABORTED, false)]
        {
            assert_eq!(is_shortage(&io::Error::from_raw_os_error(code)), expected, "{code}");
        }
    }

    #[tokio::test(flavor = "current_thread")]
    async fn an_end_wakes_one_who_waits_and_none_who_comes_later() {
        let freed = Freed::default();
        freed.tell();
        let mut waiting = std::pin::pin!(freed.next());
        assert!(futures_pending(waiting.as_mut()));
        freed.tell();
        waiting.await;
        assert!(futures_pending(std::pin::pin!(freed.next())));
    }

    fn futures_pending(future: std::pin::Pin<&mut impl Future<Output = ()>>) -> bool {
        let mut context = std::task::Context::from_waker(std::task::Waker::noop());
        future.poll(&mut context).is_pending()
    }
}
