//! What the API server said last, object by object.
//!
//! In: decoded objects, as lists and watches bring them. Out: [`Manifests`] and problems. An object that became bad
//! keeps its last good form; one that never was good is left out, or stood in for where that would open what it was to
//! close. No I/O.

use std::{
    collections::{BTreeMap, HashMap},
    mem,
};

use super::seen::{Seen, is_reported};
use crate::{
    manifests::{Kind, Manifests, Problem, Resource, Severity},
    status::Key,
};

/// Namespace, empty for a kind that has none, and name.
pub(super) type Name = (Box<str>, Box<str>);

/// One object, decoded.
#[derive(Debug)]
pub(super) struct Decoded {
    pub name: Name,
    /// Nothing if the object is bad.
    pub resource: Option<Resource>,
    /// What counts in place of a bad object that never was good.
    pub stand_in: Option<Resource>,
    pub problems: Vec<Problem>,
    pub seen: Seen,
}

/// An object that is refused.
#[derive(Clone, Debug)]
pub(super) struct Refused {
    pub reason: String,
    /// What was refused: the object may be another by now.
    pub seen: Seen,
}

/// What happened to the objects of a kind.
#[derive(Debug)]
pub(super) enum Change {
    /// All objects follow.
    ListBegins,
    Listed(Decoded),
    /// Those that did not come are gone.
    ListEnds,
    Applied(Decoded),
    Deleted(Name),
}

/// What a change came to, as Istio's metrics say it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Came {
    Add,
    Update,
    Delete,
    /// To nothing that anybody would see.
    Nothing,
}

/// Everything that is known.
#[derive(Debug, Default)]
pub(super) struct Objects {
    /// Whether it is known which kinds there are.
    kinds_known: bool,
    /// Whether everything has been known once. A kind that comes later is waited for by nobody.
    whole: bool,
    kinds: BTreeMap<Kind, Held>,
}

/// The objects of one kind.
#[derive(Debug, Default)]
struct Held {
    /// Whether a list of them has been whole once.
    listed: bool,
    objects: BTreeMap<Name, Entry>,
    /// What a list in progress has brought.
    listing: BTreeMap<Name, Entry>,
}

#[derive(Debug, Default)]
struct Entry {
    good: Option<Resource>,
    stand_in: Option<Resource>,
    problems: Vec<Problem>,
    seen: Seen,
}

impl Objects {
    /// A kind that the server has.
    pub(super) fn expect(&mut self, kind: Kind) {
        self.kinds.entry(kind).or_default();
    }

    /// The server has no such kind any more, and with it none of its objects.
    pub(super) fn forget(&mut self, kind: Kind) {
        self.kinds.remove(&kind);
    }

    /// All kinds that the server has are expected now. Says whether that is news.
    pub(super) fn know_kinds(&mut self) -> bool {
        !mem::replace(&mut self.kinds_known, true)
    }

    /// Takes a change.
    pub(super) fn apply(&mut self, kind: Kind, change: Change) -> Came {
        // What a watch had on its way when its kind was forgotten.
        let Some(held) = self.kinds.get_mut(&kind) else { return Came::Nothing };
        match change {
            Change::ListBegins => {
                held.listing.clear();
                Came::Nothing
            }
            Change::Listed(decoded) => {
                let before = held.objects.get(&decoded.name);
                let (name, entry, came) = decoded.after(before);
                held.listing.insert(name, entry);
                came
            }
            Change::ListEnds => {
                held.objects = mem::take(&mut held.listing);
                held.listed = true;
                Came::Update
            }
            Change::Applied(decoded) => {
                let before = held.objects.get(&decoded.name);
                let (name, entry, came) = decoded.after(before);
                held.objects.insert(name, entry);
                came
            }
            Change::Deleted(name) => {
                if held.objects.remove(&name).is_some() {
                    Came::Delete
                } else {
                    Came::Nothing
                }
            }
        }
    }

    /// Whether nothing is missing: half a mesh would be served as if the other half were gone.
    pub(super) fn is_whole(&mut self) -> bool {
        self.whole |= self.kinds_known && self.kinds.values().all(|held| held.listed);
        self.whole
    }

    /// The kinds of which no list has been whole yet.
    pub(super) fn missing(&self) -> impl Iterator<Item = Kind> {
        self.kinds.iter().filter(|(_, held)| !held.listed).map(|(kind, _)| *kind)
    }

    /// Everything good, checked against each other, and everything wrong.
    pub(super) fn load(&self, root_namespace: &str) -> (Manifests, Vec<Problem>) {
        let entries = || self.kinds.values().flat_map(|held| held.objects.values());
        let (manifests, across) = Manifests::gather(entries().filter_map(Entry::counting));
        let mut problems: Vec<_> = entries().flat_map(|one| &one.problems).cloned().collect();
        problems.extend(across);
        problems.extend(manifests.check_root(root_namespace));
        problems.sort();
        (manifests, problems)
    }

    /// What an object looks like.
    pub(super) fn seen(&self, (kind, namespace, name): &Key) -> Option<&Seen> {
        let name: Name = ((&**namespace).into(), (&**name).into());
        self.kinds.get(kind)?.objects.get(&name).map(|entry| &entry.seen)
    }

    /// Whether a list of a kind has been whole once.
    pub(super) fn has_listed(&self, kind: Kind) -> bool {
        self.kinds.get(&kind).is_some_and(|held| held.listed)
    }

    /// All objects with a status that is ours to write.
    pub(super) fn all_reported(&self) -> impl Iterator<Item = Key> {
        let kinds = self.kinds.iter().filter(|(kind, _)| is_reported(**kind));
        kinds.flat_map(|(kind, held)| held.objects.keys().map(|name| key(*kind, name)))
    }

    /// The objects that are refused, and why.
    pub(super) fn refused(&self) -> impl Iterator<Item = (Key, Refused)> {
        self.kinds.iter().flat_map(|(kind, held)| {
            let bad = held.objects.iter().filter(|(_, entry)| entry.is_bad());
            bad.map(|(name, entry)| {
                (key(*kind, name), Refused { reason: entry.reasons(), seen: entry.seen.clone() })
            })
        })
    }

    /// How many objects of each kind are bad.
    pub(super) fn bad(&self) -> HashMap<Kind, usize> {
        let bad = |held: &Held| held.objects.values().filter(|one| one.is_bad()).count();
        self.kinds.iter().map(|(kind, held)| (*kind, bad(held))).collect()
    }
}

/// How statuses name an object.
pub(super) fn key(kind: Kind, (namespace, name): &Name) -> Key {
    (kind, (&**namespace).into(), (&**name).into())
}

impl Entry {
    fn counting(&self) -> Option<&Resource> {
        self.good.as_ref().or(self.stand_in.as_ref())
    }

    fn is_bad(&self) -> bool {
        self.problems.iter().any(|one| one.severity == Severity::Error)
    }

    /// What is wrong with it, for people.
    fn reasons(&self) -> String {
        let errors = self.problems.iter().filter(|one| one.severity == Severity::Error);
        let errors = errors.map(|one| match &*one.field {
            "" => one.reason.clone(),
            field => format!("{field}: {}", one.reason),
        });
        errors.collect::<Vec<_>>().join("; ")
    }
}

impl Decoded {
    /// What is held of the object from now on.
    fn after(self, before: Option<&Entry>) -> (Name, Entry, Came) {
        let came = match before {
            Some(before) if before.seen.digest == self.seen.digest => Came::Nothing,
            Some(_) => Came::Update,
            None => Came::Add,
        };
        let last_good = || before.and_then(|before| before.good.clone());
        let good = self.resource.or_else(last_good);
        (
            self.name,
            Entry { good, stand_in: self.stand_in, problems: self.problems, seen: self.seen },
            came,
        )
    }
}

#[cfg(test)]
mod tests {
    use std::{path::Path, sync::Arc};

    use serde_json::{Value, json};

    use super::*;
    use crate::manifests::read_object;

    fn decoded(kind: Kind, value: Value) -> Decoded {
        let name = value["metadata"]["name"].as_str().unwrap().into();
        let mut problems = Vec::new();
        let seen = Seen::of(kind, &value);
        let resource = read_object(kind, value, &Arc::from(Path::new("api")), &mut problems);
        Decoded { name: ("shop".into(), name), resource, stand_in: None, problems, seen }
    }

    fn policy(name: &str, action: &str) -> Decoded {
        decoded(
            Kind::AuthorizationPolicy,
            json!({
                "metadata": {"name": name, "namespace": "shop"},
                "spec": {"action": action, "rules": []},
            }),
        )
    }

    fn listed(kind: Kind, all: Vec<Decoded>) -> Objects {
        let mut objects = Objects::default();
        objects.expect(kind);
        objects.know_kinds();
        objects.apply(kind, Change::ListBegins);
        for one in all {
            objects.apply(kind, Change::Listed(one));
        }
        objects.apply(kind, Change::ListEnds);
        objects
    }

    fn names(objects: &Objects) -> Vec<String> {
        let (manifests, _) = objects.load("istio-system");
        manifests.authorization_policies.iter().map(|one| one.meta.name.to_string()).collect()
    }

    const KIND: Kind = Kind::AuthorizationPolicy;

    #[test]
    fn nothing_is_whole_before_each_kind_was_listed() {
        let mut objects = Objects::default();
        assert!(!objects.is_whole());
        objects.expect(KIND);
        objects.know_kinds();
        assert!(!objects.is_whole());
        assert_eq!(objects.missing().collect::<Vec<_>>(), [KIND]);
        objects.apply(KIND, Change::ListBegins);
        assert!(!objects.is_whole());
        objects.apply(KIND, Change::ListEnds);
        assert!(objects.is_whole());
    }

    #[test]
    fn a_bad_object_is_refused_alone_and_named() {
        let objects = listed(KIND, vec![policy("good", "DENY"), policy("bad", "DENIED")]);
        assert_eq!(names(&objects), ["good"]);
        let (_, problems) = objects.load("istio-system");
        let [problem] = &*problems else { panic!("{problems:?}") };
        assert_eq!(problem.object, "AuthorizationPolicy shop/bad");
        assert_eq!(problem.field, "spec.action");
        assert_eq!(problem.place.to_string(), "api");
        assert_eq!(objects.bad()[&KIND], 1);
    }

    #[test]
    fn an_object_that_becomes_bad_keeps_its_last_good_form() {
        let mut objects = listed(KIND, vec![policy("web", "DENY")]);
        let came = objects.apply(KIND, Change::Applied(policy("web", "DENIED")));
        assert_eq!(came, Came::Update);
        assert_eq!(names(&objects), ["web"]);
        assert_eq!(objects.bad()[&KIND], 1);
        // A list that begins anew says the same.
        objects.apply(KIND, Change::ListBegins);
        objects.apply(KIND, Change::Listed(policy("web", "DENIED")));
        objects.apply(KIND, Change::ListEnds);
        assert_eq!(names(&objects), ["web"]);
        objects.apply(KIND, Change::Applied(policy("web", "DENY")));
        assert_eq!(objects.bad()[&KIND], 0);
    }

    #[test]
    fn a_list_replaces_what_was_known_once_it_ends() {
        let mut objects = listed(KIND, vec![policy("a", "DENY"), policy("b", "DENY")]);
        objects.apply(KIND, Change::ListBegins);
        objects.apply(KIND, Change::Listed(policy("c", "DENY")));
        assert_eq!(names(&objects), ["a", "b"]);
        objects.apply(KIND, Change::ListEnds);
        assert_eq!(names(&objects), ["c"]);
    }

    #[test]
    fn what_is_deleted_is_gone_however_bad_it_was() {
        let mut objects = listed(KIND, vec![policy("a", "DENY"), policy("b", "DENIED")]);
        for name in ["a", "b"] {
            let name = ("shop".into(), name.into());
            assert_eq!(objects.apply(KIND, Change::Deleted(name)), Came::Delete);
        }
        let (manifests, problems) = objects.load("istio-system");
        assert!(manifests.authorization_policies.is_empty() && problems.is_empty());
    }

    #[test]
    fn a_kind_that_is_forgotten_takes_its_objects_along() {
        let mut objects = listed(KIND, vec![policy("a", "DENY")]);
        objects.forget(KIND);
        assert!(names(&objects).is_empty());
        assert_eq!(objects.apply(KIND, Change::Applied(policy("b", "DENY"))), Came::Nothing);
        assert!(objects.is_whole());
    }

    #[test]
    fn fields_of_a_newer_kubernetes_are_no_problem_and_others_are() {
        let newer = decoded(
            Kind::ServiceAccount,
            json!({"metadata": {"name": "web", "namespace": "shop"}, "tomorrow": 1}),
        );
        assert!(newer.resource.is_some() && newer.problems.is_empty(), "{newer:?}");
        let unknown = decoded(
            KIND,
            json!({"metadata": {"name": "web", "namespace": "shop"}, "spec": {"tomorrow": 1}}),
        );
        assert!(unknown.resource.is_none(), "{unknown:?}");
        assert_eq!(unknown.problems[0].field, "spec.tomorrow");
    }
}
