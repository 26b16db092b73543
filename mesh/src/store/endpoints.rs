//! The endpoints of one service.
//!
//! In: workloads that name the service. Out: the list of them, at any index in no time. Unhealthy ones are here too: who
//! chooses one looks at the service's policy then, not at what it was when the workload arrived.

use std::sync::Arc;

use imbl::{HashMap, Vector};

use super::Workload;

/// The workloads that name one service.
#[derive(Clone, Debug, Default)]
pub struct Endpoints {
    members: Vector<Arc<Workload>>,
    /// Where in `members` each is, by uid.
    places: HashMap<Arc<str>, usize>,
    /// How many have another capacity than 1.
    uneven: usize,
}

impl Endpoints {
    /// All of them, in an order that changes only with them.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<Workload>> {
        self.members.iter()
    }

    /// The one at an index below [`len`](Self::len).
    pub fn get(&self, index: usize) -> Option<&Arc<Workload>> {
        self.members.get(index)
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.members.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.members.is_empty()
    }

    /// Whether all have the same capacity, so that each may be chosen as often as another.
    pub fn is_even(&self) -> bool {
        self.uneven == 0
    }

    /// Adds a workload, in place of one with the same uid.
    pub(super) fn put(&mut self, workload: Arc<Workload>) {
        self.uneven += usize::from(is_uneven(&workload));
        if let Some(place) = self.places.get(&workload.uid) {
            let former = self.members.set(*place, workload);
            self.uneven -= usize::from(is_uneven(&former));
        } else {
            self.places.insert(workload.uid.clone(), self.members.len());
            self.members.push_back(workload);
        }
    }

    /// Removes a workload, if it is there. The last one takes its place.
    pub(super) fn remove(&mut self, uid: &str) {
        let Some(place) = self.places.remove(uid) else { return };
        let last = self.members.pop_back().expect("not empty: a place was known");
        let gone = if place == self.members.len() {
            last
        } else {
            self.places.insert(last.uid.clone(), place);
            self.members.set(place, last)
        };
        self.uneven -= usize::from(is_uneven(&gone));
    }
}

fn is_uneven(workload: &Workload) -> bool {
    workload.capacity != 1
}

#[cfg(test)]
mod tests {
    use super::*;

    fn workload(uid: &str, capacity: u32) -> Arc<Workload> {
        let wire = proto::workload::Workload {
            uid: uid.into(),
            capacity: Some(capacity),
            ..Default::default()
        };
        Arc::new(wire.try_into().unwrap())
    }

    fn list(endpoints: &Endpoints) -> String {
        endpoints.iter().map(|w| format!("{}:{}", w.uid, w.capacity)).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn one_endpoint_has_one_place() {
        let mut endpoints = Endpoints::default();
        for (uid, capacity) in [("a", 1), ("b", 1), ("c", 1), ("b", 2)] {
            endpoints.put(workload(uid, capacity));
        }
        assert_eq!(list(&endpoints), "a:1 b:2 c:1");
        assert!(!endpoints.is_even());
        endpoints.put(workload("b", 1));
        assert!(endpoints.is_even());
    }

    #[test]
    fn the_last_takes_the_place_of_a_removed_one() {
        let mut endpoints = Endpoints::default();
        for uid in ["a", "b", "c"] {
            endpoints.put(workload(uid, 3));
        }
        endpoints.remove("a");
        endpoints.remove("never-was");
        assert_eq!(list(&endpoints), "c:3 b:3");
        endpoints.remove("b");
        endpoints.remove("c");
        assert!(endpoints.is_empty() && endpoints.is_even());
    }
}
