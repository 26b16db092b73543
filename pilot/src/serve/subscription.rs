//! What a client has asked for of one type, what it has, and what is due to it.
//!
//! In: names that are asked for and no longer, and the client's [`View`]. Out: [`Due`]. A client asks for everything or
//! for single ones; a daemon that asks for single workloads and services gets those of its own node unasked, and
//! workloads by their addresses and services. No I/O, no clock.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
};

use super::{types::Type, view::View};
use crate::compile::{Resource, Resources};

/// One client's subscription to one type.
#[derive(Debug)]
pub(crate) struct Subscription {
    of: Type,
    /// Whether it wants everything.
    all: bool,
    /// What it wants besides, as it has written it.
    names: BTreeSet<Arc<str>>,
    /// Of these, what is to be answered whatever the client has.
    owed: BTreeSet<Arc<str>>,
    /// What it had when it connected, if it wants everything: name and version.
    claimed: BTreeMap<Arc<str>, String>,
    /// What it has been sent everything of.
    seen: Option<Arc<View>>,
    /// What it has, if it wants single ones.
    sent: BTreeMap<Arc<str>, u64>,
    /// What is no longer there and may still be referred to.
    obsolete: Resources,
    under_way: Option<UnderWay>,
    /// The nonce of the last response.
    nonce: Option<String>,
}

/// A response that has not been answered.
#[derive(Debug)]
pub(crate) struct UnderWay {
    nonce: String,
    pub names: Vec<Arc<str>>,
}

/// What is due to a client.
#[derive(Debug, Default, Eq, PartialEq)]
pub(crate) struct Due {
    /// New, different, or asked for.
    pub updated: BTreeSet<Arc<str>>,
    /// No longer there.
    pub removed: BTreeSet<Arc<str>>,
    /// Asked for, and not there.
    pub absent: BTreeSet<Arc<str>>,
}

impl Subscription {
    /// Nothing is asked for yet.
    pub(crate) fn new(of: Type) -> Self {
        Self {
            of,
            all: false,
            names: BTreeSet::new(),
            owed: BTreeSet::new(),
            claimed: BTreeMap::new(),
            seen: None,
            sent: BTreeMap::new(),
            obsolete: Resources::new(),
            under_way: None,
            nonce: None,
        }
    }

    /// Takes a client's first request. No names mean all where there is such a thing; `*` means all in any case.
    pub(crate) fn begin(&mut self, wanted: Vec<String>, claimed: HashMap<String, String>) {
        self.all = wanted.is_empty() && self.of.has_wildcard();
        self.ask(wanted);
        for (name, version) in claimed {
            let name: Arc<str> = name.into();
            if !self.all {
                // A version is believed where nothing waits for the resource itself: an Envoy whose cluster is warming
                // needs its endpoints again.
                match u64::from_str_radix(&version, 16) {
                    Ok(hash) if self.of.has_aliases() => drop(self.sent.insert(name.clone(), hash)),
                    Ok(_) | Err(_) => drop(self.owed.insert(name.clone())),
                }
                self.names.insert(name);
            } else {
                self.claimed.insert(name, version);
            }
        }
    }

    /// Adds names; each is answered, also one that was asked for before.
    pub(crate) fn ask(&mut self, wanted: Vec<String>) {
        for name in wanted {
            if name == "*" {
                if !self.all {
                    self.all = true;
                    self.seen = None;
                    let sent = std::mem::take(&mut self.sent).into_iter();
                    self.claimed =
                        sent.map(|(name, hash)| (name, format!("{hash:016x}"))).collect();
                }
            } else {
                let name: Arc<str> = name.into();
                self.names.insert(Arc::clone(&name));
                self.owed.insert(name);
            }
        }
    }

    /// Takes names away: the client forgets by itself what it had by them.
    pub(crate) fn give_up(&mut self, unwanted: &[String], node: &str) {
        if unwanted.is_empty() {
            return;
        }
        for name in unwanted {
            if name == "*" {
                self.all = false;
                // Names that it had when it connected count as asked for.
                for (name, version) in std::mem::take(&mut self.claimed) {
                    match u64::from_str_radix(&version, 16) {
                        Ok(hash) => drop(self.sent.insert(Arc::clone(&name), hash)),
                        Err(_) => drop(self.owed.insert(Arc::clone(&name))),
                    }
                    self.names.insert(name);
                }
            } else {
                self.names.remove(&**name);
                self.owed.remove(&**name);
            }
        }
        if let Some(seen) = self.seen.clone()
            && !self.all
        {
            let wanted = self.wanted(&seen, node);
            self.sent.retain(|name, _| wanted.contains(name));
        }
    }

    /// Has what the client asked for by these names be sent again, if it did.
    pub(crate) fn repeat<'a>(&mut self, names: impl Iterator<Item = &'a Arc<str>>) {
        self.owed.extend(names.filter(|name| self.names.contains(*name)).cloned());
    }

    /// Whether a name has been asked for.
    pub(crate) fn names_it(&self, name: &str) -> bool {
        self.names.contains(name)
    }

    /// The names that have been asked for.
    pub(crate) fn names(&self) -> impl Iterator<Item = &Arc<str>> {
        self.names.iter()
    }

    /// Whether it wants everything.
    pub(crate) fn wants_all(&self) -> bool {
        self.all
    }

    /// Whether it wants single ones that are found by more than their names.
    pub(crate) fn looks_up(&self) -> bool {
        self.of.has_aliases() && (!self.all || !self.owed.is_empty())
    }

    /// Whether it has not been sent everything of `view`.
    pub(crate) fn is_behind(&self, view: &Arc<View>) -> bool {
        !self.owed.is_empty() || self.seen.as_ref().is_none_or(|seen| !Arc::ptr_eq(seen, view))
    }

    /// Whether nothing has been sent yet.
    pub(crate) fn is_first(&self) -> bool {
        self.nonce.is_none()
    }

    /// Whether a response has not been answered.
    pub(crate) fn is_under_way(&self) -> bool {
        self.under_way.is_some()
    }

    /// The nonce of the last response.
    pub(crate) fn nonce(&self) -> Option<&str> {
        self.nonce.as_deref()
    }

    /// What is no longer there and has not been removed yet.
    pub(crate) fn obsolete(&self) -> &Resources {
        &self.obsolete
    }

    /// The same, which is to be removed from here on.
    pub(crate) fn take_obsolete(&mut self) -> Resources {
        std::mem::take(&mut self.obsolete)
    }

    /// Notes a response.
    pub(crate) fn sent(&mut self, nonce: &str, names: Vec<Arc<str>>) {
        self.nonce = Some(nonce.to_owned());
        self.under_way = Some(UnderWay { nonce: nonce.to_owned(), names });
    }

    /// The response that this is the answer to.
    pub(crate) fn answered(&mut self, nonce: &str) -> Option<UnderWay> {
        self.under_way.take_if(|sent| sent.nonce == nonce)
    }

    /// What is due to the client.
    pub(crate) fn due(&self, view: &Arc<View>, node: &str) -> Due {
        let mut due = if self.all { self.due_of_all(view) } else { self.due_of_names(view, node) };
        for name in &self.owed {
            let mut found = self.find(view, name);
            if found.is_empty() {
                due.absent.insert(Arc::clone(name));
            }
            due.updated.append(&mut found);
        }
        due
    }

    fn due_of_all(&self, view: &Arc<View>) -> Due {
        let Some(seen) = &self.seen else {
            let lacks = view.all(self.of).filter(|(name, found)| {
                // A policy has no version to go by.
                self.of == Type::Authorization
                    || self.claimed.get(*name).is_none_or(|version| *version != found.version())
            });
            let surplus = self.claimed.keys().filter(|name| view.find(self.of, name).is_none());
            return Due {
                updated: lacks.map(|(name, _)| Arc::clone(name)).collect(),
                removed: surplus.cloned().collect(),
                absent: BTreeSet::new(),
            };
        };
        if Arc::ptr_eq(seen, view) {
            return Due::default();
        }
        let changes = view.changes_since(seen, self.of);
        let updated = changes.updated.into_iter().collect();
        Due { updated, removed: changes.removed, absent: BTreeSet::new() }
    }

    fn due_of_names(&self, view: &Arc<View>, node: &str) -> Due {
        let wanted = self.wanted(view, node);
        let is_new = |name: &&Arc<str>| {
            let found = view.find(self.of, name);
            found.is_some_and(|found| self.sent.get(*name) != Some(&found.hash))
        };
        let updated = wanted.iter().filter(is_new).cloned().collect();
        let removed = self.sent.keys().filter(|name| !wanted.contains(*name));
        Due { updated, removed: removed.cloned().collect(), absent: BTreeSet::new() }
    }

    /// All that the client's names mean, and what it gets unasked.
    fn wanted(&self, view: &View, node: &str) -> BTreeSet<Arc<str>> {
        let mut wanted: BTreeSet<_> =
            self.names.iter().flat_map(|name| self.find(view, name)).collect();
        if self.of.has_aliases() && !node.is_empty() {
            let own = view.index().on_node(node);
            wanted.extend(own.filter(|name| view.find(self.of, name).is_some()).cloned());
        }
        wanted
    }

    /// All that a name means.
    pub(crate) fn find(&self, view: &View, name: &str) -> BTreeSet<Arc<str>> {
        if !self.of.has_aliases() {
            return view.name(self.of, name).into_iter().collect();
        }
        let found = view.index().find(&view.state.compiled.addresses, name);
        found.into_iter().filter(|name| view.find(self.of, name).is_some()).collect()
    }

    /// Notes that all that is due is being sent. What is to be removed later is kept.
    pub(crate) fn settle(&mut self, view: &Arc<View>, due: &Due, later: &BTreeSet<Arc<str>>) {
        let before = self.seen.replace(Arc::clone(view));
        self.owed.clear();
        self.claimed.clear();
        if !self.all {
            for name in &due.updated {
                if let Some(found) = view.find(self.of, name) {
                    self.sent.insert(Arc::clone(name), found.hash);
                }
            }
            for name in &due.removed {
                self.sent.remove(name);
            }
        }
        let of = self.of;
        let obsolete = std::mem::take(&mut self.obsolete).into_iter();
        self.obsolete = obsolete.filter(|(name, _)| view.find(of, name).is_none()).collect();
        for name in later {
            let gone = before.as_ref().and_then(|before| before.find(of, name));
            let body = gone.map_or_else(
                || Resource { encoded: Vec::new(), hash: 0 },
                |gone| Resource { encoded: gone.encoded.to_vec(), hash: gone.hash },
            );
            self.obsolete.insert(Arc::clone(name), body);
        }
    }
}
