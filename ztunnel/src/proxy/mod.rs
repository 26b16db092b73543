//! The data plane: pods' connections, from the accepted socket to the record of how they ended.
//!
//! One [`DataThreads`] per daemon; each thread accepts, decides, dials and copies by itself. [`Pods`] is what sources
//! of pods speak to.

mod accept;
mod accept_rest;
mod across;
mod attempts;
mod awaited;
mod counters;
mod credential;
mod denials;
mod dial;
mod dry_run;
mod failure;
mod inbound;
mod judge;
pub mod labels;
mod live;
mod names;
mod observe;
mod on_demand;
mod outbound;
mod plaintext;
mod pod;
mod pods;
mod retryable;
mod revocation;
mod share;
#[cfg(test)]
mod sizes;
mod socks;
mod stale;
mod thread;

use std::{sync::Arc, time::Duration};

use mesh::{hbone::HboneConfig, identity::Identities, store::Store, xds::OnDemand};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

pub use accept::Shortages;
pub use names::Names;
pub use observe::observer;
pub use pod::Pod;
pub use pods::{Listing, Pods, Source};
pub use share::{PodLimits, Share};
pub use thread::{DataThreads, StartError};

use crate::{
    admin::ConnectionTable,
    admission::AnnouncedAt,
    balance::Balance,
    capture::{Capture, Sources},
    dns::DnsSection,
    next_hop::{SOCKS_PORT, is_own_port},
};

/// What all data threads share.
pub struct Node {
    /// Network of this node's pods.
    pub network: Arc<str>,
    /// Workloads, services, policies.
    pub store: Arc<Store>,
    /// Where to ask for what the store does not have.
    pub on_demand: OnDemand,
    /// Whether the control plane has told its policies. Until then nothing is let in: those of a namespace or of the
    /// whole mesh are named by nobody, so their absence does not show.
    pub policies_known: watch::Sender<bool>,
    /// Whether decisions of policy are logged at info, not debug.
    pub policy_decisions_at_info: bool,
    /// Certificates of the node's pods.
    pub identities: Identities,
    /// The kernel's side of capture.
    pub capture: Arc<Capture>,
    /// How pods' DNS queries are answered.
    pub dns: DnsSection,
    /// Limits and deadlines of tunnels.
    pub hbone: HboneConfig,
    /// Whether baggage is read and answered.
    pub baggage: bool,
    /// Where applications that want to be told who comes are dialed.
    pub announced: AnnouncedAt,
    /// What one pod may use.
    pub limits: PodLimits,
    /// Whether applications see their clients' addresses.
    pub sources: Sources,
    /// Whether applications may ask for connections by SOCKS5.
    pub socks5: bool,
    /// Tells of a lack of descriptors.
    pub shortages: Shortages,
    /// How long open tunnels may go on once draining began.
    pub drain_limit: Duration,
    /// What this node has learnt of destinations.
    pub balance: Arc<Balance>,
    /// Addresses of workloads that have only a name.
    pub names: Names,
    /// Open connections, for operators.
    pub connections: Arc<ConnectionTable>,
    /// Cancelled when the daemon stops taking connections.
    pub draining: CancellationToken,
    /// Cancelled when connections still open are cut.
    pub ending: CancellationToken,
}

impl Node {
    /// Whether a port is one that the daemon itself listens on in pods' network namespaces.
    fn is_own_port(&self, port: u16) -> bool {
        is_own_port(port) || (self.socks5 && port == SOCKS_PORT)
    }
}
