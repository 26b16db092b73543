//! What one pod uses of the daemon, and may use at most.
//!
//! In: connections and tunnels that begin. Out: a [`Held`] to keep as long as they last, or why there is no room. Shared
//! by the threads that serve the pod; counted once for each connection, never for each read.

use std::{
    num::NonZeroU32,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
};

use mesh::{
    hbone::WindowBudget,
    telemetry::{Failure, Reason},
};

/// The most that one pod may use.
#[derive(Clone, Copy, Debug)]
pub struct PodLimits {
    /// Connections at a time.
    pub connections: NonZeroU32,
    /// Tunnels at a time that others have opened to it, and as many that it has dialed.
    pub tunnels: NonZeroU32,
    /// Bytes that tunnels may have received and nobody has taken.
    pub buffer_bytes: u64,
}

/// What one pod uses.
#[derive(Debug)]
pub struct Share {
    connections: Count,
    tunnels: Count,
    windows: Arc<WindowBudget>,
}

#[derive(Debug)]
struct Count {
    limit: u32,
    used: AtomicU32,
}

/// Keeps a place in a pod's share, until dropped.
#[derive(Debug)]
pub(super) struct Held {
    share: Arc<Share>,
    kind: Kind,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Kind {
    Connection,
    Tunnel,
}

/// The pod has as many as it may have.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Full {
    kind: Kind,
    limit: u32,
}

impl Share {
    /// Nothing is used yet.
    pub fn new(limits: &PodLimits) -> Arc<Self> {
        let count = |limit: NonZeroU32| Count { limit: limit.get(), used: AtomicU32::new(0) };
        Arc::new(Self {
            connections: count(limits.connections),
            tunnels: count(limits.tunnels),
            windows: WindowBudget::new(limits.buffer_bytes),
        })
    }

    /// A place for one more connection.
    pub(super) fn connection(self: &Arc<Self>) -> Result<Held, Full> {
        self.hold(Kind::Connection)
    }

    /// A place for one more tunnel that a peer opens.
    pub(super) fn tunnel(self: &Arc<Self>) -> Result<Held, Full> {
        self.hold(Kind::Tunnel)
    }

    /// What the windows of its tunnels may add up to.
    pub(super) fn windows(&self) -> Arc<WindowBudget> {
        self.windows.clone()
    }

    fn hold(self: &Arc<Self>, kind: Kind) -> Result<Held, Full> {
        let count = self.count(kind);
        // Taken back if it was one too many: threads that race can refuse one too many, never let in one.
        if count.used.fetch_add(1, Ordering::Relaxed) >= count.limit {
            count.used.fetch_sub(1, Ordering::Relaxed);
            return Err(Full { kind, limit: count.limit });
        }
        Ok(Held { share: self.clone(), kind })
    }

    fn count(&self, kind: Kind) -> &Count {
        match kind {
            Kind::Connection => &self.connections,
            Kind::Tunnel => &self.tunnels,
        }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.share.count(self.kind).used.fetch_sub(1, Ordering::Relaxed);
    }
}

impl From<Full> for Failure {
    fn from(full: Full) -> Self {
        let (reason, what) = match full.kind {
            Kind::Connection => (Reason::PodConnectionLimit, "connections"),
            Kind::Tunnel => (Reason::PodTunnelLimit, "tunnels"),
        };
        Self { reason, error: format!("the pod has {} {what} open", full.limit) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn share(connections: u32, tunnels: u32) -> Arc<Share> {
        let count = |n| NonZeroU32::new(n).unwrap();
        Share::new(&PodLimits {
            connections: count(connections),
            tunnels: count(tunnels),
            buffer_bytes: 1 << 20,
        })
    }

    #[test]
    fn what_ends_makes_room_for_what_begins() {
        let share = share(2, 1);
        let first = share.connection().unwrap();
        let _second = share.connection().unwrap();
        let full = Failure::from(share.connection().unwrap_err());
        assert_eq!(full.reason, Reason::PodConnectionLimit);
        assert_eq!(full.error, "the pod has 2 connections open");
        drop(first);
        let _third = share.connection().unwrap();
        share.connection().unwrap_err();
    }

    #[test]
    fn tunnels_are_counted_apart() {
        let share = share(1, 1);
        let _connection = share.connection().unwrap();
        let _tunnel = share.tunnel().unwrap();
        let full = Failure::from(share.tunnel().unwrap_err());
        assert_eq!(full.reason, Reason::PodTunnelLimit);
    }

    #[test]
    fn threads_that_race_never_exceed_the_limit() {
        let share = share(100, 1);
        let held: Vec<_> = std::thread::scope(|scope| {
            let takers: Vec<_> = (0..4)
                .map(|_| scope.spawn(|| (0..100).filter_map(|_| share.connection().ok()).collect()))
                .collect();
            takers.into_iter().flat_map(|taker| -> Vec<Held> { taker.join().unwrap() }).collect()
        });
        assert_eq!(held.len(), 100);
    }
}
