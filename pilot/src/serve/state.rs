//! One compiled state of the mesh, and how it differs from the one before.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    sync::{Arc, OnceLock},
    time::SystemTime,
};

use imbl::ordmap::DiffItem;
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
    digests: BTreeMap<ResourceType, Digest>,
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
            let digest = match previous {
                Some(previous) => {
                    let older = previous.compiled.resources(of);
                    let change = Changes::between(older, resources);
                    let digest = previous.digests[&of].after(older, resources, &change);
                    changes.insert(of, change);
                    digest
                }
                None => Digest::of(resources),
            };
            digests.insert(of, digest);
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
    pub(crate) fn digest(&self, of: ResourceType) -> String {
        self.digests[&of].to_string()
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
    /// Passes over what both share.
    pub(crate) fn between(older: &Resources, newer: &Resources) -> Self {
        let mut changes = Self::default();
        for difference in older.diff(newer) {
            match difference {
                DiffItem::Add(name, _) | DiffItem::Update { new: (name, _), .. } => {
                    changes.updated.push(Arc::clone(name));
                }
                DiffItem::Remove(name, _) => {
                    changes.removed.insert(Arc::clone(name));
                }
            }
        }
        changes
    }
}

/// One word for all resources: equal for equal content. A sum, so that what changes can be taken out and put in.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Digest(u64);

impl Digest {
    pub(crate) fn of(resources: &Resources) -> Self {
        let words = resources.iter().map(|(name, resource)| word(name, resource));
        Self(words.fold(0, u64::wrapping_add))
    }

    fn after(self, older: &Resources, newer: &Resources, changes: &Changes) -> Self {
        let of = |all: &Resources, name: &Arc<str>| {
            all.get(name).map_or(0, |resource| word(name, resource))
        };
        let names = changes.updated.iter().chain(&changes.removed);
        Self(names.fold(self.0, |sum, name| {
            sum.wrapping_sub(of(older, name)).wrapping_add(of(newer, name))
        }))
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

fn word(name: &str, resource: &Resource) -> u64 {
    XxHash64::oneshot(resource.hash, name.as_bytes())
}
