//! The endpoints of one service.
//!
//! In: workloads that name the service. Out: the list of them, at any index. Unhealthy ones are here too: who chooses one
//! looks at the service's policy then, not at what it was when the workload arrived.

use std::sync::Arc;

use imbl::Vector;

use super::Workload;

/// The workloads that name one service.
#[derive(Clone, Debug, Default)]
pub struct Endpoints {
    /// In the order of their uids.
    members: Vector<Arc<Workload>>,
    /// How many have another capacity than 1.
    uneven: usize,
}

impl Endpoints {
    /// All of them, in the order of their uids.
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
        match self.place(&workload.uid) {
            Ok(place) => {
                let former = self.members.set(place, workload);
                self.uneven -= usize::from(is_uneven(&former));
            }
            Err(place) => self.members.insert(place, workload),
        }
    }

    /// Removes a workload, if it is there.
    pub(super) fn remove(&mut self, uid: &str) {
        if let Ok(place) = self.place(uid) {
            let gone = self.members.remove(place);
            self.uneven -= usize::from(is_uneven(&gone));
        }
    }

    /// Where a workload is, or would be.
    fn place(&self, uid: &str) -> Result<usize, usize> {
        self.members.binary_search_by(|member| (*member.uid).cmp(uid))
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
    fn a_removed_endpoint_is_gone() {
        let mut endpoints = Endpoints::default();
        for uid in ["c", "a", "b"] {
            endpoints.put(workload(uid, 3));
        }
        endpoints.remove("a");
        endpoints.remove("never-was");
        assert_eq!(list(&endpoints), "b:3 c:3");
        endpoints.remove("b");
        endpoints.remove("c");
        assert!(endpoints.is_empty() && endpoints.is_even());
    }

    proptest::proptest! {
        #[test]
        fn endpoints_are_those_put_and_not_removed(
            changes in proptest::collection::vec((0..400_u32, proptest::option::weighted(0.7, 0..3_u32)), 0..1500),
        ) {
            let mut endpoints = Endpoints::default();
            let mut model = std::collections::BTreeMap::new();
            let mut former = (endpoints.clone(), list(&endpoints));
            for (uid, capacity) in changes {
                let uid = format!("{uid:03}");
                if let Some(capacity) = capacity {
                    endpoints.put(workload(&uid, capacity));
                    model.insert(uid, capacity);
                } else {
                    endpoints.remove(&uid);
                    model.remove(&uid);
                }
                if endpoints.len() % 97 == 0 {
                    former = (endpoints.clone(), list(&endpoints));
                }
            }
            let expected: Vec<String> = model.iter().map(|(uid, c)| format!("{uid}:{c}")).collect();
            proptest::prop_assert_eq!(list(&endpoints), expected.join(" "));
            proptest::prop_assert_eq!(endpoints.is_even(), model.values().all(|c| *c == 1));
            proptest::prop_assert_eq!(list(&former.0), former.1);
        }
    }
}
