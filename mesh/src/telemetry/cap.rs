//! How many label sets the traffic metrics may have.
//!
//! In: a connection's labels. Out: whether they get time series of their own. Peers choose some of the values (baggage), and
//! a peer must not fill the memory of this process, or of whoever scrapes it, by choosing ever new ones.

use std::{
    collections::HashSet,
    hash::{BuildHasher, RandomState},
    sync::{Mutex, PoisonError},
};

use super::Traffic;

/// Label sets of one process that get time series of their own. A node with 250 pods, each with 40 peers, has 10,000.
const MOST: usize = 10_000;

/// The cap of this process.
pub(super) static CAP: std::sync::LazyLock<Cap> = std::sync::LazyLock::new(|| Cap::new(MOST));

/// The label sets that have time series, by hash: two that share one are admitted together, which harms nobody.
pub(super) struct Cap {
    most: usize,
    hasher: RandomState,
    known: Mutex<HashSet<u64>>,
}

impl Cap {
    fn new(most: usize) -> Self {
        Self { most, hasher: RandomState::new(), known: Mutex::default() }
    }

    /// Whether a label set has, or may get, time series of its own. Asked once for each label set and thread.
    pub(super) fn admits(&self, traffic: &Traffic) -> bool {
        let hash = self.hasher.hash_one(traffic);
        // A set of numbers is whole even if a holder panicked.
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.contains(&hash) || (known.len() < self.most && known.insert(hash))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::{Party, Reporter, Security};

    fn traffic(name: &str) -> Traffic {
        Traffic {
            reporter: Reporter::Destination,
            source: Party { workload: Some(name.into()), ..Party::default() },
            destination: Party::default(),
            service: None,
            security: Security::MutualTls,
        }
    }

    #[test]
    fn known_label_sets_stay_and_new_ones_come_until_the_cap() {
        let cap = Cap::new(2);
        assert!(cap.admits(&traffic("a")));
        assert!(cap.admits(&traffic("b")));
        assert!(!cap.admits(&traffic("c")));
        assert!(cap.admits(&traffic("a")));
        assert!(!cap.admits(&traffic("c")));
    }
}
