//! Which tunnel takes the next stream of a key, and who dials when none does.
//!
//! One dial per key at a time: others wait for it and for nothing else. Owned by one thread.

use std::{
    cell::{Cell, RefCell},
    collections::{HashMap, hash_map::Entry},
    net::SocketAddr,
    num::NonZeroU32,
    rc::{Rc, Weak},
    sync::Arc,
};

use tokio::sync::Notify;

use super::{
    OpenError,
    client::{ClientTunnel, Place},
};
use crate::identity::{Credential, PeerChain, Spiffe};

/// What tunnels are shared by: streams of the same source to the same peers at the same address.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub struct PoolKey {
    /// Whose certificate is shown.
    pub source: Spiffe,
    /// The identities any of which the peer must have.
    pub expected: Arc<[Spiffe]>,
    /// The TCP address.
    pub dial: SocketAddr,
}

/// The tunnels of one pool.
pub(super) struct Slots {
    by_key: RefCell<HashMap<PoolKey, Slot>>,
    streams_per_tunnel: NonZeroU32,
    closed: Cell<bool>,
}

#[derive(Default)]
struct Slot {
    tunnels: Vec<Rc<ClientTunnel>>,
    dial: Option<Rc<Dial>>,
}

/// What the next stream of a key is to do.
pub(super) enum Choice {
    /// Use this place.
    Use(Place),
    /// Wait for the dial that is under way, then choose again.
    Wait(Rc<Dial>),
    /// Dial.
    Dial(Dialing),
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
pub(super) struct Dialing {
    slots: Weak<Slots>,
    key: PoolKey,
    dial: Rc<Dial>,
}

impl Slots {
    pub(super) fn new(streams_per_tunnel: NonZeroU32) -> Rc<Self> {
        Rc::new(Self { by_key: RefCell::default(), streams_per_tunnel, closed: Cell::new(false) })
    }

    pub(super) fn choose(self: &Rc<Self>, key: &PoolKey, credential: &Credential) -> Choice {
        if self.closed.get() {
            return Choice::Closed;
        }
        let mut by_key = self.by_key.borrow_mut();
        if !by_key.contains_key(key) {
            by_key.insert(key.clone(), Slot::default());
        }
        let slot = by_key.get_mut(key).expect("inserted above");
        slot.tunnels.retain(|tunnel| tunnel.is_open() && tunnel.is_as_new_as(credential));
        if let Some(place) =
            slot.tunnels.iter().find_map(|tunnel| tunnel.place(self.streams_per_tunnel))
        {
            return Choice::Use(place);
        }
        if let Some(dial) = &slot.dial {
            return Choice::Wait(Rc::clone(dial));
        }
        let dial = Rc::new(Dial::default());
        slot.dial = Some(Rc::clone(&dial));
        Choice::Dial(Dialing { slots: Rc::downgrade(self), key: key.clone(), dial })
    }

    /// Takes a tunnel out of use. Its streams go on.
    pub(super) fn retire(&self, tunnel: &ClientTunnel) {
        if let Entry::Occupied(mut entry) = self.by_key.borrow_mut().entry(tunnel.key().clone()) {
            let slot = entry.get_mut();
            slot.tunnels.retain(|other| !std::ptr::eq(&raw const **other, tunnel));
            if slot.tunnels.is_empty() && slot.dial.is_none() {
                entry.remove();
            }
        }
    }

    /// Takes the tunnels out of use whose peer is like this. Their streams go on.
    pub(super) fn retire_peers(&self, is_such: impl Fn(&PeerChain) -> bool) {
        let mut retired = Vec::new();
        for slot in self.by_key.borrow_mut().values_mut() {
            retired.extend(slot.tunnels.extract_if(.., |tunnel| is_such(tunnel.chain())));
        }
        // Dropped after the borrow has ended: a tunnel's end may come back here.
        drop(retired);
    }

    /// Takes all tunnels out of use, for good.
    pub(super) fn close(&self) {
        self.closed.set(true);
        // Dropped after the borrow has ended: a tunnel's end may come back here.
        let tunnels = self.by_key.take();
        drop(tunnels);
    }

    /// Tunnels in use.
    pub(super) fn tunnels(&self) -> usize {
        self.by_key.borrow().values().map(|slot| slot.tunnels.len()).sum()
    }
}

impl Dialing {
    pub(super) fn key(&self) -> &PoolKey {
        &self.key
    }

    pub(super) fn slots(&self) -> Weak<Slots> {
        Weak::clone(&self.slots)
    }

    /// Adds the tunnel that was dialed. A pool that was closed meanwhile does not take it.
    pub(super) fn add(&self, tunnel: &Rc<ClientTunnel>) {
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

impl Drop for Dialing {
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
