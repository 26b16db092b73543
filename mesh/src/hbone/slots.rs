//! Which tunnel takes the next stream of a key, and who dials when none does.
//!
//! One dial per key at a time: others wait for it and for nothing else. Owned by one thread. It opens no connection and
//! reads no clock: what a tunnel is, it asks the tunnel.

use std::{
    cell::{Cell, RefCell},
    collections::hash_map::Entry,
    net::SocketAddr,
    num::NonZeroU32,
    rc::{Rc, Weak},
    sync::Arc,
    time::Instant,
};

use foldhash::HashMap;
use tokio::sync::Notify;

use super::OpenError;
use crate::identity::Spiffe;

/// What tunnels are shared by: streams of the same source to the same workload, which has one of the same identities, at
/// the same address.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub struct PoolKey {
    /// Whose certificate is shown.
    pub source: Spiffe,
    /// The identities any of which the peer must have.
    pub expected: Arc<[Spiffe]>,
    /// The TCP address.
    pub dial: SocketAddr,
    /// The uid of the workload that is at this address. Who gets the address after it is somebody else, even with the same
    /// identity. `None`: no workload is known there.
    pub workload: Option<Arc<str>>,
}

/// A tunnel, as far as it matters for who uses it. Tests have one without a connection.
pub(super) trait Pooled {
    fn key(&self) -> &PoolKey;

    /// Whether it takes new streams: it is alive, and the peer has not sent GOAWAY.
    fn is_open(&self) -> bool;

    /// Whether one more of at most `limit` streams has room. The peer may allow fewer, and may change its mind.
    fn has_room(&self, limit: NonZeroU32) -> bool;

    /// What has proved who the ends are.
    fn proof(&self) -> Proof;
}

/// What has proved who the ends of a tunnel are, in time.
#[derive(Clone, Copy, Debug)]
pub(super) struct Proof {
    /// When our credential was put together.
    pub(super) credential_built_at: Instant,
    /// When the first of both ends' certificates expires.
    pub(super) valid_until: Instant,
}

/// The tunnels of one pool.
pub(super) struct Slots<T> {
    by_key: RefCell<HashMap<PoolKey, Slot<T>>>,
    streams_per_tunnel: NonZeroU32,
    closed: Cell<bool>,
}

struct Slot<T> {
    tunnels: Vec<Rc<T>>,
    dial: Option<Rc<Dial>>,
}

/// What the next stream of a key is to do.
pub(super) enum Choice<T> {
    /// Use this tunnel, which has room.
    Use(Rc<T>),
    /// Wait for the dial that is under way, then choose again.
    Wait(Rc<Dial>),
    /// Dial.
    Dial(Dialing<T>),
    /// Give up: the pool is closed.
    Closed,
}

/// A dial that is under way, as those see it who wait for it.
#[derive(Default)]
pub(super) struct Dial {
    failure: RefCell<Option<OpenError>>,
    is_over: Cell<bool>,
    over: Notify,
}

impl Dial {
    /// Waits for the end of the dial.
    ///
    /// # Errors
    /// The error of the one who dialed.
    pub(super) async fn wait(&self) -> Result<(), OpenError> {
        if !self.is_over.get() {
            self.over.notified().await;
        }
        self.failure.borrow().clone().map_or(Ok(()), Err)
    }
}

/// The right to dial for a key. Dropping it ends the dial and wakes those who wait.
pub(super) struct Dialing<T> {
    slots: Weak<Slots<T>>,
    key: PoolKey,
    dial: Rc<Dial>,
}

impl<T: Pooled> Slots<T> {
    pub(super) fn new(streams_per_tunnel: NonZeroU32) -> Rc<Self> {
        Rc::new(Self { by_key: RefCell::default(), streams_per_tunnel, closed: Cell::new(false) })
    }

    /// Chooses for a stream of `key`, whose credential was put together at `credential_built_at`. New streams do not ride
    /// on a certificate, or on demands of the peer, that have been replaced, nor on one that has expired.
    pub(super) fn choose(
        self: &Rc<Self>,
        key: &PoolKey,
        credential_built_at: Instant,
        now: Instant,
    ) -> Choice<T> {
        if self.closed.get() {
            return Choice::Closed;
        }
        let is_good = |tunnel: &mut Rc<T>| {
            let proof = tunnel.proof();
            let is_proved =
                proof.credential_built_at >= credential_built_at && now < proof.valid_until;
            is_proved && tunnel.is_open()
        };
        let mut by_key = self.by_key.borrow_mut();
        if !by_key.contains_key(key) {
            by_key.insert(key.clone(), Slot { tunnels: Vec::new(), dial: None });
        }
        let slot = by_key.get_mut(key).expect("inserted above");
        let retired: Vec<_> = slot.tunnels.extract_if(.., |tunnel| !is_good(tunnel)).collect();
        let choice =
            match slot.tunnels.iter().find(|tunnel| tunnel.has_room(self.streams_per_tunnel)) {
                Some(tunnel) => Choice::Use(Rc::clone(tunnel)),
                None => match &slot.dial {
                    Some(dial) => Choice::Wait(Rc::clone(dial)),
                    None => {
                        let dial = Rc::new(Dial::default());
                        slot.dial = Some(Rc::clone(&dial));
                        Choice::Dial(Dialing { slots: Rc::downgrade(self), key: key.clone(), dial })
                    }
                },
            };
        // Dropped after the borrow has ended: a tunnel's end may come back here.
        drop(by_key);
        drop(retired);
        choice
    }

    /// Takes a tunnel out of use. Its streams go on.
    pub(super) fn retire(&self, tunnel: &T) {
        let mut retired = Vec::new();
        if let Entry::Occupied(mut entry) = self.by_key.borrow_mut().entry(tunnel.key().clone()) {
            let slot = entry.get_mut();
            let is_it = |other: &mut Rc<T>| std::ptr::eq(&raw const **other, tunnel);
            retired.extend(slot.tunnels.extract_if(.., is_it));
            if slot.tunnels.is_empty() && slot.dial.is_none() {
                entry.remove();
            }
        }
        // As above.
        drop(retired);
    }

    /// Takes the tunnels out of use of which `is_such` holds. Their streams go on.
    pub(super) fn retire_where(&self, is_such: impl Fn(&T) -> bool) {
        let mut retired = Vec::new();
        self.by_key.borrow_mut().retain(|_, slot| {
            retired.extend(slot.tunnels.extract_if(.., |tunnel| is_such(tunnel)));
            !slot.tunnels.is_empty() || slot.dial.is_some()
        });
        // As above.
        drop(retired);
    }

    /// Takes all tunnels out of use, for good.
    pub(super) fn close(&self) {
        self.closed.set(true);
        // As above.
        let tunnels = self.by_key.take();
        drop(tunnels);
    }

    /// Tunnels in use.
    pub(super) fn tunnels(&self) -> usize {
        self.by_key.borrow().values().map(|slot| slot.tunnels.len()).sum()
    }

    /// Keys that are remembered.
    #[cfg(test)]
    pub(super) fn keys(&self) -> usize {
        self.by_key.borrow().len()
    }
}

impl<T> Dialing<T> {
    pub(super) fn key(&self) -> &PoolKey {
        &self.key
    }

    pub(super) fn slots(&self) -> Weak<Slots<T>> {
        Weak::clone(&self.slots)
    }

    /// Adds the tunnel that was dialed. A pool that was closed meanwhile does not take it.
    pub(super) fn add(&self, tunnel: &Rc<T>) {
        if let Some(slots) = self.slots.upgrade()
            && let Some(slot) = slots.by_key.borrow_mut().get_mut(&self.key)
        {
            slot.tunnels.push(Rc::clone(tunnel));
        }
    }

    /// Ends the dial with an error that those who wait share.
    pub(super) fn fail(self, error: OpenError) {
        self.dial.failure.replace(Some(error));
    }
}

impl<T> Drop for Dialing<T> {
    fn drop(&mut self) {
        if let Some(slots) = self.slots.upgrade()
            && let Entry::Occupied(mut entry) = slots.by_key.borrow_mut().entry(self.key.clone())
        {
            let slot = entry.get_mut();
            slot.dial = None;
            if slot.tunnels.is_empty() {
                entry.remove();
            }
        }
        self.dial.is_over.set(true);
        self.dial.over.notify_waiters();
    }
}
