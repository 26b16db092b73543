//! What this node has learnt of the destinations of its pods: open connections, failures, and how fast sources connect.
//!
//! In: connections that begin, fail and end, told the time. Out: loads, ejections, refusals. Shared by all data threads;
//! a lock is held for a few lookups when a connection begins or ends, never while bytes are copied.

mod ejections;
mod open_counts;
mod rates;

use std::{
    net::IpAddr,
    num::NonZeroU32,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::Instant,
};

use mesh::{
    store::{Rate, Snapshot, Store, Workload},
    telemetry::Reason,
};
use metrics::{counter, gauge};
use tokio::sync::Notify;

use self::{
    ejections::{Ejections, Peers},
    open_counts::OpenCounts,
    rates::Rates,
};
pub use self::{
    ejections::{Endpoint, Standing},
    open_counts::{Full, Opened},
};

/// Limits that hold where a resource sets none. None by default.
#[derive(Clone, Copy, Debug, Default)]
pub struct DefaultLimits {
    /// Connections that this node may have open to one service, or to one workload that is dialed by itself.
    pub max_connections: Option<NonZeroU32>,
    /// New connections a second from one identity.
    pub connection_rate: Option<Rate>,
}

/// What this node has learnt of destinations.
#[derive(Debug)]
pub struct Balance {
    limits: DefaultLimits,
    workloads: Arc<OpenCounts>,
    services: Arc<OpenCounts>,
    ejections: Mutex<Ejections>,
    /// Endpoints with failures, so that nobody takes the lock while there are none.
    failing: AtomicUsize,
    /// An endpoint was ejected: its return is waited for.
    ejected: Notify,
    rates: Mutex<Rates>,
}

impl Balance {
    /// Nothing is known yet.
    pub fn new(limits: DefaultLimits) -> Arc<Self> {
        Arc::new(Self {
            limits,
            workloads: OpenCounts::new(),
            services: OpenCounts::new(),
            ejections: Mutex::default(),
            failing: AtomicUsize::new(0),
            ejected: Notify::new(),
            rates: Mutex::default(),
        })
    }

    /// Connections of this node that are open to a workload.
    pub fn open_to(&self, uid: &str) -> u32 {
        self.workloads.count(uid)
    }

    /// Counts a connection to a workload until the guard is dropped.
    ///
    /// # Errors
    /// [`Full`]: the workload's own limit is reached.
    pub fn open_workload(&self, workload: &Workload) -> Result<Opened, Full> {
        self.workloads.open(&workload.uid, workload.limits.max_connections)
    }

    /// Counts a connection to what was dialed, a service or else a workload, until the guard is dropped.
    ///
    /// # Errors
    /// [`Full`]: the limit is reached, its own or the default.
    pub fn open_destination(
        &self,
        key: &Arc<str>,
        own: Option<NonZeroU32>,
    ) -> Result<Opened, Full> {
        self.services.open(key, own.or(self.limits.max_connections))
    }

    /// Whether one more connection of this source may begin.
    ///
    /// # Errors
    /// The rate that it would exceed.
    pub fn admit(&self, now: Instant, source: &Workload) -> Result<(), Rate> {
        let Some(rate) = source.limits.connection_rate.or(self.limits.connection_rate) else {
            return Ok(());
        };
        let who = source.identity().map_or(&*source.uid, |identity| identity.principal());
        let mut rates = self.rates.lock().unwrap_or_else(PoisonError::into_inner);
        if rates.take(now, who, rate) { Ok(()) } else { Err(rate) }
    }

    /// Whether an endpoint is to be left alone.
    pub fn is_ejected(&self, now: Instant, uid: &str, ip: Option<IpAddr>) -> bool {
        let Some(ip) = ip else { return false };
        self.failing.load(Ordering::Relaxed) > 0 && self.ejections().is_ejected(now, uid, ip)
    }

    /// A connection to an endpoint could not be made.
    pub fn failed(
        &self,
        now: Instant,
        snapshot: &Snapshot,
        workload: &Workload,
        ip: IpAddr,
        reason: Reason,
    ) {
        let peers: Vec<Peers> = workload
            .services
            .iter()
            .filter_map(|membership| {
                let service = snapshot.service(&membership.service)?;
                let endpoints = snapshot.endpoints(service)?.len();
                Some(Peers { service: membership.service.clone(), endpoints })
            })
            .collect();
        let endpoint = Endpoint { uid: workload.uid.clone(), ip };
        let mut ejections = self.ejections();
        let ejected = ejections.handle_failure(now, &endpoint, &peers);
        self.failing.store(ejections.len(), Ordering::Relaxed);
        drop(ejections);
        if let Some(pause) = ejected {
            counter!("aquifer_endpoint_ejections_total", "reason" => reason.as_str()).increment(1);
            gauge!("aquifer_endpoints_ejected").increment(1.0);
            tracing::warn!(uid = %workload.uid, %ip, %reason, ?pause, "endpoint ejected");
            self.ejected.notify_one();
        }
    }

    /// A connection to an endpoint was made.
    pub fn succeeded(&self, now: Instant, uid: &Arc<str>, ip: IpAddr) {
        if self.failing.load(Ordering::Relaxed) == 0 {
            return;
        }
        let endpoint = Endpoint { uid: uid.clone(), ip };
        let mut ejections = self.ejections();
        let returned = ejections.handle_success(now, &endpoint);
        self.failing.store(ejections.len(), Ordering::Relaxed);
        drop(ejections);
        if returned {
            tell_return(&endpoint, "a connection was made");
        }
    }

    /// The endpoints with failures, for operators.
    pub fn standings(&self, now: Instant) -> Vec<(Endpoint, Standing)> {
        self.ejections().standings(now)
    }

    /// Lets endpoints return when their time is over, and forgets those that leave the store. Forever.
    pub async fn keep(self: Arc<Self>, store: Arc<Store>) {
        let mut changes = store.subscribe();
        loop {
            let due = self.ejections().poll_timeout();
            tokio::select! {
                () = at(due) => {}
                () = self.ejected.notified() => {}
                changed = changes.changed() => if changed.is_err() { return },
            }
            // One look at everything known for many changes, and none while nothing fails.
            if self.failing.load(Ordering::Relaxed) == 0 {
                continue;
            }
            let (now, snapshot) = (Instant::now(), store.load());
            let mut ejections = self.ejections();
            let returned = ejections.handle_timeout(now);
            let gone = ejections.retain(now, |endpoint| {
                let known = snapshot.workload(&endpoint.uid);
                // One that has a name and no address is known by what the name stood for.
                known.is_some_and(|known| {
                    known.addresses.is_empty() || known.addresses.contains(&endpoint.ip)
                })
            });
            self.failing.store(ejections.len(), Ordering::Relaxed);
            drop(ejections);
            for endpoint in &returned {
                tell_return(endpoint, "its time is over");
            }
            for endpoint in &gone {
                tell_return(endpoint, "it left the mesh");
            }
        }
    }

    fn ejections(&self) -> MutexGuard<'_, Ejections> {
        // Each step leaves the records whole.
        self.ejections.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn tell_return(endpoint: &Endpoint, why: &'static str) {
    gauge!("aquifer_endpoints_ejected").decrement(1.0);
    tracing::info!(uid = %endpoint.uid, ip = %endpoint.ip, why, "endpoint returned");
}

async fn at(due: Option<Instant>) {
    match due {
        Some(due) => tokio::time::sleep_until(due.into()).await,
        None => std::future::pending().await,
    }
}
