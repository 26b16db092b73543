//! How many connections are open to each destination.
//!
//! In: connections that begin and end, on any thread. Out: counts, and refusals where a limit is reached. Only destinations
//! with open connections have an entry.

use std::{
    hash::BuildHasher as _,
    num::NonZeroU32,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use foldhash::{HashMap, fast::RandomState};

/// Data threads seldom meet in one of as many.
const SHARDS: usize = 64;

/// Counts of open connections by destination.
#[derive(Debug)]
pub(super) struct OpenCounts {
    shards: [Mutex<HashMap<Arc<str>, u32>>; SHARDS],
    hasher: RandomState,
}

/// A counted connection; dropping it ends it.
#[derive(Debug)]
pub struct Opened {
    counts: Arc<OpenCounts>,
    key: Arc<str>,
}

/// A destination has as many connections as it may have.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("{destination} has {limit} connections from this node, as many as it may")]
pub struct Full {
    destination: Arc<str>,
    limit: NonZeroU32,
}

impl OpenCounts {
    pub(super) fn new() -> Arc<Self> {
        let shards = std::array::from_fn(|_| Mutex::default());
        Arc::new(Self { shards, hasher: RandomState::default() })
    }

    pub(super) fn count(&self, key: &str) -> u32 {
        self.shard(key).get(key).copied().unwrap_or(0)
    }

    pub(super) fn open(
        self: &Arc<Self>,
        key: &Arc<str>,
        limit: Option<NonZeroU32>,
    ) -> Result<Opened, Full> {
        let mut shard = self.shard(key);
        let open = shard.get(key).copied().unwrap_or(0);
        if let Some(limit) = limit.filter(|limit| open >= limit.get()) {
            return Err(Full { destination: key.clone(), limit });
        }
        shard.insert(key.clone(), open.saturating_add(1));
        drop(shard);
        Ok(Opened { counts: self.clone(), key: key.clone() })
    }

    fn shard(&self, key: &str) -> MutexGuard<'_, HashMap<Arc<str>, u32>> {
        let hash = usize::try_from(self.hasher.hash_one(key) % SHARDS as u64);
        let shard = &self.shards[hash.expect("below the number of shards")];
        shard.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Opened {
    fn drop(&mut self) {
        let mut shard = self.counts.shard(&self.key);
        match shard.get_mut(&self.key) {
            Some(open) if *open > 1 => *open -= 1,
            Some(_) | None => drop(shard.remove(&self.key)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connection_counts_until_it_ends() {
        let (counts, key) = (OpenCounts::new(), Arc::from("a"));
        let first = counts.open(&key, None).unwrap();
        let second = std::thread::scope(|scope| {
            scope.spawn(|| counts.open(&key, None).unwrap()).join().unwrap()
        });
        assert_eq!(counts.count("a"), 2);
        drop((first, second));
        assert_eq!(counts.count("a"), 0);
        assert!(counts.shard("a").is_empty());
    }

    #[test]
    fn one_more_than_the_limit_is_refused_until_one_ends() {
        let (counts, key, limit) = (OpenCounts::new(), Arc::from("a"), NonZeroU32::new(1));
        let first = counts.open(&key, limit).unwrap();
        let full = counts.open(&key, limit).unwrap_err();
        assert_eq!(full.to_string(), "a has 1 connections from this node, as many as it may");
        drop(first);
        assert!(counts.open(&key, limit).is_ok());
    }
}
