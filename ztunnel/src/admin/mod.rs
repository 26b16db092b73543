//! Where operators ask the daemon: administration on 15000 (loopback only), metrics on 15020, readiness on 15021.
//!
//! In: [`Handles`] to what the daemon holds. Out: answers. Except for the log's level and the order to drain, nothing
//! here changes the daemon, and nothing here is on a connection's path but a [`ConnectionTable`] entry.

mod config_dump;
mod connections;
mod endpoints;
mod explain;
mod gauges;
mod http;
mod profile;
mod readiness;
mod routes;
mod sending;
#[cfg(test)]
mod tests;

use std::{
    io,
    net::{SocketAddr, TcpListener as StdListener},
    sync::Arc,
};

use mesh::{
    identity::Identities,
    store::Store,
    telemetry::{LogHandle, Metrics},
    xds::XdsStatus,
};
use serde::Serialize;
use tokio::{net::TcpListener, runtime::RuntimeMetrics, sync::watch};
use tokio_util::sync::CancellationToken;

pub use connections::{ConnectionTable, Direction, Listed, OpenConnection, Protocol};
pub use readiness::{Readiness, ReadyTask};

use crate::{balance::Balance, identity::metrics::CertificateMetrics, pods::PodUid};

/// What the daemon lets its operators see and do.
pub struct Handles {
    /// Network of this node's pods.
    pub network: Arc<str>,
    /// Workloads, services, policies.
    pub store: Arc<Store>,
    /// Certificates of the node's pods.
    pub identities: Identities,
    /// Their metrics, brought up to date when they are scraped.
    pub certificate_metrics: CertificateMetrics,
    /// What this node has learnt of destinations.
    pub balance: Arc<Balance>,
    /// Open connections.
    pub connections: Arc<ConnectionTable>,
    /// The pods being served, as they are when asked.
    pub pods: Box<dyn Fn() -> Vec<PodStatus> + Send + Sync>,
    /// State of the subscription.
    pub xds: watch::Receiver<XdsStatus>,
    /// The running log.
    pub log: LogHandle,
    /// The process's metrics.
    pub metrics: Metrics,
    /// Counters of the capture programs, added to the metrics when they are scraped.
    pub capture_counters: Box<dyn Fn() -> Vec<(&'static str, u64)> + Send + Sync>,
    /// The data threads' runtimes.
    pub runtimes: Vec<RuntimeMetrics>,
    /// What the daemon still waits for.
    pub readiness: Readiness,
    /// Cancelled by `/quitquitquit`.
    pub drain: CancellationToken,
    /// The settings, as `config` of the dump.
    pub config: serde_json::Value,
    /// Istio's version this daemon stands for, `unknown` if it was not told.
    pub istio_version: String,
}

/// A pod this daemon serves, or tries to.
#[derive(Clone, Debug)]
pub struct PodStatus {
    /// Its unique name.
    pub uid: PodUid,
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its service account.
    pub service_account: String,
    /// Whether its traffic is carried.
    pub state: PodState,
    /// Whether it is this daemon: a workload like others, and none of the pods that it serves.
    pub is_daemon: bool,
}

/// Whether a pod's traffic is carried.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize)]
pub enum PodState {
    /// Its capture is being set up, or failed and is tried again.
    Pending,
    /// It is carried.
    Up,
}

/// Where the daemon answers.
#[derive(Clone, Copy, Debug)]
pub struct Addresses {
    /// Administration. Must be a loopback address.
    pub admin: SocketAddr,
    /// Metrics.
    pub stats: SocketAddr,
    /// Readiness.
    pub readiness: SocketAddr,
}

/// Why the daemon cannot answer operators.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// Who reaches the administration port may stop the daemon.
    #[error("administration listens on loopback only, not on {address}")]
    NotLoopback {
        /// The address as configured.
        address: SocketAddr,
    },
    /// An address cannot be used.
    #[error("listening on {address} for {purpose}")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// What for.
        purpose: &'static str,
        /// What the system said.
        source: io::Error,
    },
}

/// The three open listeners.
#[derive(Debug)]
pub struct Servers {
    admin: StdListener,
    stats: StdListener,
    readiness: StdListener,
}

impl Servers {
    /// Opens the listeners.
    ///
    /// # Errors
    /// [`ServeError`] names the address and its purpose.
    pub fn bind(addresses: &Addresses) -> Result<Self, ServeError> {
        if !addresses.admin.ip().is_loopback() {
            return Err(ServeError::NotLoopback { address: addresses.admin });
        }
        Ok(Self {
            admin: listen(addresses.admin, "administration")?,
            stats: listen(addresses.stats, "metrics")?,
            readiness: listen(addresses.readiness, "readiness")?,
        })
    }

    /// Where administration listens.
    ///
    /// # Errors
    /// What the system says.
    pub fn admin_address(&self) -> io::Result<SocketAddr> {
        self.admin.local_addr()
    }

    /// Where metrics are served.
    ///
    /// # Errors
    /// What the system says.
    pub fn stats_address(&self) -> io::Result<SocketAddr> {
        self.stats.local_addr()
    }

    /// Where readiness is served.
    ///
    /// # Errors
    /// What the system says.
    pub fn readiness_address(&self) -> io::Result<SocketAddr> {
        self.readiness.local_addr()
    }

    /// Answers until `stop` is cancelled; then answers what was asked and returns.
    ///
    /// # Errors
    /// The listeners cannot be watched by the current tokio runtime.
    pub async fn serve(self, handles: Arc<Handles>, stop: CancellationToken) -> io::Result<()> {
        let admin = TcpListener::from_std(self.admin)?;
        let stats = TcpListener::from_std(self.stats)?;
        let readiness = TcpListener::from_std(self.readiness)?;
        let answer = |route: fn(&Handles, &http::Request) -> http::Response| {
            let handles = Arc::clone(&handles);
            move |request: Arc<http::Request>| -> http::Answer {
                Box::pin(std::future::ready(route(&handles, &request)))
            }
        };
        let page = answer(routes::admin);
        let dumped = Arc::clone(&handles);
        let administer = move |request: Arc<http::Request>| match profile::requested(&request) {
            Some(profile) => profile,
            None if routes::is_long(&request) => {
                let handles = Arc::clone(&dumped);
                Box::pin(http::aside(move || routes::admin(&handles, &request)))
            }
            None => page(request),
        };
        // A page of a large mesh takes as long as a push of it.
        let scraped = Arc::clone(&handles);
        let measured = move |request: Arc<http::Request>| -> http::Answer {
            let handles = Arc::clone(&scraped);
            Box::pin(http::aside(move || routes::stats(&handles, &request)))
        };
        tokio::join!(
            http::serve(admin, administer, stop.clone()),
            http::serve(stats, measured, stop.clone()),
            http::serve(readiness, answer(routes::readiness), stop.clone()),
        );
        Ok(())
    }
}

fn listen(address: SocketAddr, purpose: &'static str) -> Result<StdListener, ServeError> {
    let open = || {
        let listener = StdListener::bind(address)?;
        listener.set_nonblocking(true)?;
        Ok(listener)
    };
    open().map_err(|source| ServeError::Listen { address, purpose, source })
}
