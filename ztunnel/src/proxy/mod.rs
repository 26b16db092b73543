//! The data plane: pods' connections, from the accepted socket to the record of how they ended.
//!
//! One [`DataThreads`] per daemon; each thread accepts, decides, dials and copies by itself. [`Pods`] is what sources
//! of pods speak to.

mod counters;
mod dial;
mod failure;
mod inbound;
pub mod labels;
mod live;
mod outbound;
mod plaintext;
mod pod;
mod pods;
mod proxy_protocol;
mod thread;

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use mesh::{hbone::HboneConfig, identity::Identities, store::Store};
use tokio_util::sync::CancellationToken;

pub use pod::Pod;
pub use pods::{Listing, Pods, Source};
pub use thread::{DataThreads, StartError};

use crate::{admin::ConnectionTable, capture::Capture};

/// What all data threads share.
pub struct Node {
    /// Network of this node's pods.
    pub network: Arc<str>,
    /// Workloads, services, policies.
    pub store: Arc<Store>,
    /// Certificates of the node's pods.
    pub identities: Identities,
    /// The kernel's side of capture.
    pub capture: Arc<Capture>,
    /// Limits and deadlines of tunnels.
    pub hbone: HboneConfig,
    /// How long open tunnels may go on once draining began.
    pub drain_limit: Duration,
    /// Open connections, for operators.
    pub connections: Arc<ConnectionTable>,
    /// Cancelled when the daemon stops taking connections.
    pub draining: CancellationToken,
    /// Cancelled when connections still open are cut.
    pub ending: CancellationToken,
}

/// Random enough to spread choices and to name connections, not to keep secrets: SplitMix64 over a counter.
#[derive(Debug)]
pub(crate) struct Dice(AtomicU64);

impl Dice {
    /// A sequence that begins at `seed`.
    pub(crate) fn new(seed: u64) -> Self {
        Self(AtomicU64::new(seed))
    }

    /// The next number.
    pub(crate) fn roll(&self) -> u64 {
        let mut z = self.0.fetch_add(0x9e37_79b9_7f4a_7c15, Ordering::Relaxed);
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}
