//! What the daemon waits for before it is ready.
//!
//! In: tasks that become ready, and sometimes pending again. Out: which are pending.

use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex, PoisonError},
};

/// The tasks that are pending.
#[derive(Clone, Debug, Default)]
pub struct Readiness {
    pending: Arc<Mutex<BTreeSet<&'static str>>>,
}

/// One task. Dropped, it stays as it was.
#[derive(Clone, Debug)]
pub struct ReadyTask {
    readiness: Readiness,
    name: &'static str,
}

impl Readiness {
    /// Nothing is pending yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// A task the daemon is not ready without, pending from here on. Istio's names: `state manager`, `proxy`,
    /// `dns proxy`, `workload proxy manager`. In dedicated mode `host` is in place of the last.
    pub fn task(&self, name: &'static str) -> ReadyTask {
        self.with(|pending| pending.insert(name));
        ReadyTask { readiness: self.clone(), name }
    }

    /// The names of pending tasks, in order.
    pub fn pending(&self) -> Vec<&'static str> {
        self.with(|pending| pending.iter().copied().collect())
    }

    fn with<T>(&self, act: impl FnOnce(&mut BTreeSet<&'static str>) -> T) -> T {
        // A set of names is whole even if a holder panicked.
        act(&mut self.pending.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl ReadyTask {
    /// It is done.
    pub fn ready(&self) {
        self.readiness.with(|pending| pending.remove(self.name));
    }

    /// It has to be done again.
    pub fn pending(&self) {
        self.readiness.with(|pending| pending.insert(self.name));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_task_is_pending_until_it_is_ready_and_again_when_it_says_so() {
        let readiness = Readiness::new();
        let (proxy, state) = (readiness.task("proxy"), readiness.task("state manager"));
        assert_eq!(readiness.pending(), ["proxy", "state manager"]);
        proxy.ready();
        state.ready();
        assert!(readiness.pending().is_empty());
        state.pending();
        assert_eq!(readiness.pending(), ["state manager"]);
    }
}
