//! What exists: workloads, services, waypoints and policies, as one immutable [`Snapshot`].
//!
//! In: a batch of [`Update`]s in whatever order they arrived. Out: lookups on the [`Snapshot`] that a reader holds. The
//! store decides nothing and knows no wire beyond the resource types it decodes.

mod address_index;
mod apply;
#[cfg(test)]
mod decode_tests;
mod endpoints;
mod few;
mod gateway;
mod interner;
mod keys;
mod limits;
mod prefix_tree;
mod service;
mod snapshot;
#[cfg(test)]
mod tests;
mod workload;

use std::sync::{Arc, Mutex, PoisonError};

use arc_swap::ArcSwap;
use tokio::sync::watch;

use self::interner::Interner;
pub use self::{
    endpoints::{Endpoints, Stretch},
    gateway::{GatewayAddress, GatewayTarget, HBONE_PORT, WeightedWaypoint},
    limits::{BadRate, Limits, Rate},
    service::{
        HealthPolicy, IpFamilies, LoadBalancing, LoadBalancingMode, NetworkAddress, RoutingScope,
        Service, Visibility,
    },
    snapshot::{Found, Snapshot},
    workload::{
        AppProtocol, AppTunnelProtocol, ApplicationTunnel, Health, Locality, Membership,
        NetworkMode, Port, TunnelProtocol, Workload, WorkloadType,
    },
};
use crate::policy::{Policy, Rejected};
pub use crate::wire::DecodeError;

/// One change of what exists.
#[derive(Clone, Debug)]
pub enum Update {
    /// A workload is new or changed.
    Workload(Workload),
    /// A service is new or changed. Its endpoints are the workloads that name it, before or after.
    Service(Service),
    /// A workload or service is gone, by its xDS name: a workload's uid, else `<namespace>/<hostname>`.
    RemoveAddress(String),
    /// A policy is new or changed.
    Policy(Policy),
    /// A policy was sent and cannot be understood.
    RejectPolicy(Rejected),
    /// A policy is gone, by `<namespace>/<name>`.
    RemovePolicy(String),
}

impl TryFrom<proto::workload::Address> for Update {
    type Error = DecodeError;

    fn try_from(wire: proto::workload::Address) -> Result<Self, DecodeError> {
        use proto::workload::address::Type;
        match wire.r#type {
            Some(Type::Workload(workload)) => Ok(Self::Workload(workload.try_into()?)),
            Some(Type::Service(service)) => Ok(Self::Service(service.try_into()?)),
            None => Err(DecodeError::new("type", crate::wire::Fault::Unset)),
        }
    }
}

/// The current [`Snapshot`], and its only writer.
///
/// Readers take no lock. Writers take turns.
#[derive(Debug)]
pub struct Store {
    current: ArcSwap<Snapshot>,
    /// Held while a batch is applied; texts that many workloads share are kept once.
    interner: Mutex<Interner>,
    generation: watch::Sender<u64>,
}

impl Store {
    /// A store in which nothing exists.
    pub fn new() -> Arc<Self> {
        Arc::new(Self {
            current: ArcSwap::default(),
            interner: Mutex::default(),
            generation: watch::Sender::new(0),
        })
    }

    /// What exists at this moment. It stays as it is for as long as the caller holds it.
    pub fn load(&self) -> Arc<Snapshot> {
        self.current.load_full()
    }

    /// Applies a batch: readers see all of it or nothing. Decoding may happen inside the iterator, one item at a time.
    pub fn apply(&self, updates: impl IntoIterator<Item = Update>) {
        // The interner is a cache: whatever a panicking writer left in it is still right.
        let mut interner = self.interner.lock().unwrap_or_else(PoisonError::into_inner);
        let mut next = Snapshot::clone(&self.current.load());
        for update in updates {
            next.apply(update, &mut interner);
        }
        next.next_generation();
        let generation = next.generation();
        self.current.store(Arc::new(next));
        self.generation.send_replace(generation);
    }

    /// Tells the generation of the snapshot after each batch. A slow receiver sees the last one only.
    pub fn subscribe(&self) -> watch::Receiver<u64> {
        self.generation.subscribe()
    }
}
