//! One compiled state of the mesh, and how it differs from the one before.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, OnceLock},
    time::SystemTime,
};

use twox_hash::XxHash64;

use super::{follow::Configurations, lookup::Index};
use crate::compile::{Compiled, Resource, ResourceType, Resources, Snapshot};

/// What daemons are to have: never changes.
#[derive(Debug)]
pub(crate) struct State {
    /// Counts the states of this process.
    pub generation: u64,
    /// When it was compiled.
    pub at: SystemTime,
    pub compiled: Compiled,
    /// What it was compiled from, for clients that are sent something of their own.
    pub snapshot: Arc<Snapshot>,
    /// What waypoints are sent, as far as they have asked.
    pub configurations: Configurations,
    /// Made when the first client needs it.
    index: OnceLock<Index>,
    /// One word for all resources of a type: equal for equal content.
    digests: BTreeMap<ResourceType, String>,
    /// What the state before differs in; most clients hold that one.
    changes: BTreeMap<ResourceType, Changes>,
}

/// How one state's resources differ from another's.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(crate) struct Changes {
    /// New or different.
    pub updated: Vec<Arc<str>>,
    /// No longer there.
    pub removed: BTreeSet<Arc<str>>,
}

impl State {
    /// The state that follows `previous`.
    pub(crate) fn after(
        previous: Option<&Self>,
        snapshot: Arc<Snapshot>,
        compiled: Compiled,
        at: SystemTime,
    ) -> Self {
        let generation = previous.map_or(1, |previous| previous.generation + 1);
        let mut changes = BTreeMap::new();
        let mut digests = BTreeMap::new();
        for of in ResourceType::ALL {
            let resources = compiled.resources(of);
            if let Some(previous) = previous {
                changes.insert(of, Changes::between(previous.compiled.resources(of), resources));
            }
            digests.insert(of, digest(resources));
        }
        let index = OnceLock::new();
        if previous.is_some_and(|previous| previous.index.get().is_some()) {
            // There are clients that need it: better made here than where they wait.
            index.get_or_init(|| Index::of(&compiled.addresses));
        }
        let configurations = Configurations::default();
        Self { generation, at, compiled, snapshot, configurations, index, digests, changes }
    }

    /// Whether it differs at all from the one before.
    pub(crate) fn is_news(&self) -> bool {
        self.changes.len() < ResourceType::ALL.len()
            || self.changes.values().any(|changes| *changes != Changes::default())
    }

    /// One word for all resources of a type.
    pub(crate) fn digest(&self, of: ResourceType) -> &str {
        &self.digests[&of]
    }

    /// Whether nobody has needed [`State::index`] yet, which takes a while then.
    pub(crate) fn lacks_index(&self) -> bool {
        self.index.get().is_none()
    }

    /// What resources are found by besides their names.
    pub(crate) fn index(&self) -> &Index {
        self.index.get_or_init(|| Index::of(&self.compiled.addresses))
    }

    /// How this state differs from `older`.
    pub(crate) fn changes_since(&self, older: &Self, of: ResourceType) -> Changes {
        match self.changes.get(&of) {
            Some(changes) if older.generation + 1 == self.generation => changes.clone(),
            Some(_) | None => {
                Changes::between(older.compiled.resources(of), self.compiled.resources(of))
            }
        }
    }
}

impl Changes {
    /// Walks both once: names are sorted on each side.
    pub(crate) fn between(older: &Resources, newer: &Resources) -> Self {
        let mut changes = Self::default();
        let mut old = older.iter().peekable();
        for (name, resource) in newer {
            while let Some((gone, _)) = old.next_if(|(candidate, _)| *candidate < name) {
                changes.removed.insert(Arc::clone(gone));
            }
            let before = old.next_if(|(candidate, _)| *candidate == name);
            if before.is_none_or(|(_, before)| before.hash != resource.hash) {
                changes.updated.push(Arc::clone(name));
            }
        }
        changes.removed.extend(old.map(|(gone, _)| Arc::clone(gone)));
        changes
    }
}

/// One word for all resources: equal for equal content.
pub(crate) fn digest(resources: &Resources) -> String {
    let mut words = Vec::with_capacity(resources.len() * 16);
    for (name, Resource { hash, .. }) in resources {
        words.extend_from_slice(&XxHash64::oneshot(0, name.as_bytes()).to_le_bytes());
        words.extend_from_slice(&hash.to_le_bytes());
    }
    format!("{:016x}", XxHash64::oneshot(0, &words))
}
