//! The endpoints of one service, laid out so that one is chosen quickly.
//!
//! In: workloads that name the service, and what the service prefers. Out: the list of them, and stretches of it that have
//! the client's locality in common. Unhealthy ones are here too: they weigh nothing where the service does not allow them.
//!
//! The list is sorted by what the service's preferences compare, from the first to the last, then by uid: endpoints near a
//! client are neighbours. It is cut into short runs that snapshots share, so that one change copies one run.

use std::{cmp::Ordering, sync::Arc};

use super::{Health, HealthPolicy, LoadBalancing, LoadBalancingMode, RoutingScope, Workload};

/// Endpoints in a run. A run is copied by each change, and passed over by each choice.
const RUN: usize = 64;

/// The workloads that name one service. A clone is a pointer.
#[derive(Clone, Debug, Default)]
pub struct Endpoints {
    list: Arc<List>,
}

#[derive(Clone, Debug, Default)]
struct List {
    layout: Layout,
    len: usize,
    /// None is empty.
    runs: Vec<Run>,
}

/// What the order and the weights depend on besides the endpoints.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(super) struct Layout {
    /// Empty if locality does not count.
    scopes: Box<[RoutingScope]>,
    allows_unhealthy: bool,
}

/// Neighbours in the list.
#[derive(Clone, Debug)]
struct Run {
    members: Arc<Vec<Member>>,
    weight: u64,
}

#[derive(Clone, Debug)]
struct Member {
    workload: Arc<Workload>,
    weight: u32,
}

/// Neighbours in a list of endpoints.
#[derive(Clone, Copy, Debug)]
pub struct Stretch<'a> {
    list: &'a List,
    from: Place,
    to: Place,
}

/// A place in a list: the index of a run, and of a member in it.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
struct Place {
    run: usize,
    member: usize,
}

impl Layout {
    pub(super) fn of(balancing: &LoadBalancing) -> Self {
        let scopes = match balancing.mode {
            LoadBalancingMode::Strict | LoadBalancingMode::Failover => {
                balancing.preferences.clone()
            }
            LoadBalancingMode::Any | LoadBalancingMode::Passthrough => Box::default(),
        };
        Self { scopes, allows_unhealthy: balancing.health_policy == HealthPolicy::AllowAll }
    }

    fn order(&self, a: &Workload, b: &Workload) -> Ordering {
        order_by(&self.scopes, a, b).then_with(|| a.uid.cmp(&b.uid))
    }

    fn member(&self, workload: Arc<Workload>) -> Member {
        let gets_traffic = self.allows_unhealthy || workload.health == Health::Healthy;
        let weight = if gets_traffic { workload.capacity } else { 0 };
        Member { workload, weight }
    }
}

impl Endpoints {
    /// No endpoints, of a service that is laid out so.
    pub(super) fn laid_out(layout: Layout) -> Self {
        Self { list: Arc::new(List { layout, ..List::default() }) }
    }

    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<Workload>> {
        self.list.runs.iter().flat_map(|run| run.members.iter().map(|member| &member.workload))
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.list.len
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.list.len == 0
    }

    /// How many preferences the list is sorted by.
    pub fn depth(&self) -> usize {
        self.list.layout.scopes.len()
    }

    /// Those that have the first `depth` preferences in common with a workload; all of them for 0.
    ///
    /// # Panics
    /// If `depth` is more than [`depth`](Self::depth).
    pub fn near(&self, like: &Workload, depth: usize) -> Stretch<'_> {
        let list = &*self.list;
        let scopes = &list.layout.scopes[..depth];
        if scopes.is_empty() {
            let to = Place { run: list.runs.len(), member: 0 };
            return Stretch { list, from: Place { run: 0, member: 0 }, to };
        }
        let from = list.first_not(|held| order_by(scopes, held, like) == Ordering::Less);
        let to = list.first_not(|held| order_by(scopes, held, like) != Ordering::Greater);
        Stretch { list, from, to }
    }

    /// Sorts and weighs as the service says from here on.
    pub(super) fn lay_out(&mut self, layout: Layout) {
        if self.list.layout == layout {
            return;
        }
        let mut members: Vec<Member> =
            self.iter().map(|workload| layout.member(workload.clone())).collect();
        members.sort_by(|a, b| layout.order(&a.workload, &b.workload));
        let len = members.len();
        let runs = members.chunks(RUN).map(|run| Run::of(run.to_vec())).collect();
        self.list = Arc::new(List { layout, len, runs });
    }

    /// Adds a workload, in place of its former version if there is one.
    pub(super) fn put(&mut self, workload: Arc<Workload>, former: Option<&Workload>) {
        let list = Arc::make_mut(&mut self.list);
        let member = list.layout.member(workload);
        match list.place(&member.workload) {
            Ok(place) => list.runs[place.run].replace(place.member, member),
            Err(place) => {
                // It stood elsewhere, if what the order depends on has changed.
                let moved = former.is_some_and(|former| list.remove(former));
                let place = if moved { list.place(&member.workload) } else { Err(place) };
                list.insert(place.unwrap_or_else(|place| place), member);
            }
        }
    }

    /// Removes a workload, if it is there in this version.
    pub(super) fn remove(&mut self, workload: &Workload) {
        if self.list.place(workload).is_ok() {
            Arc::make_mut(&mut self.list).remove(workload);
        }
    }
}

impl List {
    /// The first place whose workload is not `before`, which holds for a beginning of the list.
    fn first_not(&self, before: impl Fn(&Workload) -> bool) -> Place {
        let is_before = |run: &Run| run.members.last().is_some_and(|last| before(&last.workload));
        let run = self.runs.partition_point(is_before);
        let in_run = |run: &Run| run.members.partition_point(|held| before(&held.workload));
        Place { run, member: self.runs.get(run).map_or(0, in_run) }
    }

    /// Where a workload is, or would be.
    fn place(&self, workload: &Workload) -> Result<Place, Place> {
        let place = self.first_not(|held| self.layout.order(held, workload) == Ordering::Less);
        let held = self.runs.get(place.run).and_then(|run| run.members.get(place.member));
        match held {
            Some(held) if held.workload.uid == workload.uid => Ok(place),
            Some(_) | None => Err(place),
        }
    }

    fn insert(&mut self, place: Place, member: Member) {
        self.len += 1;
        // Past the last run is the end of the last run.
        let place = match self.runs.len().checked_sub(1) {
            None => {
                self.runs.push(Run::of(vec![member]));
                return;
            }
            Some(last) if place.run > last => {
                Place { run: last, member: self.runs[last].members.len() }
            }
            Some(_) => place,
        };
        let run = &mut self.runs[place.run];
        run.weight += u64::from(member.weight);
        let members = Arc::make_mut(&mut run.members);
        members.insert(place.member, member);
        if members.len() > RUN {
            // What comes in order, as resources do at start, leaves full runs behind.
            let half = if place.member == RUN { RUN } else { RUN / 2 };
            let upper = Run::of(members.split_off(half));
            run.weight -= upper.weight;
            self.runs.insert(place.run + 1, upper);
        }
    }

    /// Whether it was there.
    fn remove(&mut self, workload: &Workload) -> bool {
        let Ok(place) = self.place(workload) else { return false };
        self.len -= 1;
        let run = &mut self.runs[place.run];
        let members = Arc::make_mut(&mut run.members);
        let gone = members.remove(place.member);
        run.weight -= u64::from(gone.weight);
        if members.is_empty() {
            self.runs.remove(place.run);
            return true;
        }
        // Two that fit into half a run become one: runs do not dwindle.
        let next = place.run + 1;
        if self
            .runs
            .get(next)
            .is_some_and(|next| next.members.len() + self.runs[place.run].members.len() <= RUN / 2)
        {
            let next = self.runs.remove(next);
            let run = &mut self.runs[place.run];
            run.weight += next.weight;
            Arc::make_mut(&mut run.members).extend(next.members.iter().cloned());
        }
        true
    }
}

impl Run {
    fn of(members: Vec<Member>) -> Self {
        let weight = weight(&members);
        Self { members: Arc::new(members), weight }
    }

    fn replace(&mut self, index: usize, member: Member) {
        self.weight += u64::from(member.weight);
        let former = std::mem::replace(&mut Arc::make_mut(&mut self.members)[index], member);
        self.weight -= u64::from(former.weight);
    }
}

impl<'a> Stretch<'a> {
    /// The sum of the capacities that get traffic.
    pub fn weight(&self) -> u64 {
        let whole: u64 = self.list.runs[self.from.run..self.to.run].iter().map(|r| r.weight).sum();
        whole + self.list.weight_before(self.to) - self.list.weight_before(self.from)
    }

    /// The one whose share of the [`weight`](Self::weight) a number below it is in.
    pub fn at(&self, number: u64) -> Option<&'a Arc<Workload>> {
        let mut left = number + self.list.weight_before(self.from);
        for run in self.list.runs.get(self.from.run..)? {
            if left >= run.weight {
                left -= run.weight;
                continue;
            }
            for member in run.members.iter() {
                let weight = u64::from(member.weight);
                if left < weight {
                    return Some(&member.workload);
                }
                left -= weight;
            }
        }
        None
    }
}

impl List {
    /// What weighs before a place within its run.
    fn weight_before(&self, place: Place) -> u64 {
        self.runs.get(place.run).map_or(0, |run| weight(&run.members[..place.member]))
    }
}

fn weight(members: &[Member]) -> u64 {
    members.iter().map(|member| u64::from(member.weight)).sum()
}

fn order_by(scopes: &[RoutingScope], a: &Workload, b: &Workload) -> Ordering {
    let mut orders = scopes.iter().map(|scope| {
        let (a, b) = (scope.of(a), scope.of(b));
        // Nearly always one shared text: equal without a look at it.
        if Arc::ptr_eq(a, b) { Ordering::Equal } else { a.cmp(b) }
    });
    orders.find(|order| order.is_ne()).unwrap_or(Ordering::Equal)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn workload(uid: &str, zone: &str, capacity: u32) -> Arc<Workload> {
        let wire = proto::workload::Workload {
            uid: uid.into(),
            capacity: Some(capacity),
            locality: Some(proto::workload::Locality { zone: zone.into(), ..Default::default() }),
            ..Default::default()
        };
        Arc::new(wire.try_into().unwrap())
    }

    fn by_zone() -> Endpoints {
        let scopes = [RoutingScope::Zone].into();
        Endpoints::laid_out(Layout { scopes, allows_unhealthy: false })
    }

    fn list(endpoints: &Endpoints) -> String {
        let one = |w: &Arc<Workload>| format!("{}{}:{}", w.locality.zone, w.uid, w.capacity);
        endpoints.iter().map(one).collect::<Vec<_>>().join(" ")
    }

    /// Every member of a stretch as often as it weighs.
    fn shares(stretch: Stretch<'_>) -> String {
        let mut found: Vec<&str> =
            (0..stretch.weight()).map(|number| &*stretch.at(number).unwrap().uid).collect();
        found.sort_unstable();
        found.join(" ")
    }

    #[test]
    fn one_endpoint_has_one_place() {
        let mut endpoints = Endpoints::default();
        let mut held = BTreeMap::new();
        for (uid, capacity) in [("a", 1), ("b", 1), ("c", 1), ("b", 2)] {
            let workload = workload(uid, "", capacity);
            let former = held.insert(uid, workload.clone());
            endpoints.put(workload, former.as_deref());
        }
        assert_eq!(list(&endpoints), "a:1 b:2 c:1");
        assert_eq!(endpoints.len(), 3);
    }

    #[test]
    fn an_endpoint_that_moves_is_found_where_it_went() {
        let mut endpoints = by_zone();
        let (before, after) = (workload("a", "x", 1), workload("a", "y", 1));
        endpoints.put(before.clone(), None);
        endpoints.put(workload("b", "x", 1), None);
        endpoints.put(after.clone(), Some(&before));
        assert_eq!(list(&endpoints), "xb:1 ya:1");
        assert_eq!(shares(endpoints.near(&after, 1)), "a");
        endpoints.remove(&after);
        assert_eq!((list(&endpoints), endpoints.len()), ("xb:1".to_owned(), 1));
    }

    #[test]
    fn those_near_a_client_are_chosen_by_capacity() {
        let mut endpoints = by_zone();
        for (uid, zone, capacity) in
            [("a", "x", 1), ("b", "y", 2), ("c", "y", 0), ("d", "y", 1), ("e", "z", 1)]
        {
            endpoints.put(workload(uid, zone, capacity), None);
        }
        let near = |zone| shares(endpoints.near(&workload("client", zone, 1), 1));
        assert_eq!([near("x"), near("y"), near("z"), near("none")], ["a", "b b d", "e", ""]);
        assert_eq!(shares(endpoints.near(&workload("client", "x", 1), 0)), "a b b d e");
    }

    #[test]
    fn unhealthy_endpoints_weigh_nothing_until_the_service_allows_them() {
        let mut endpoints = Endpoints::default();
        let mut sick = (*workload("sick", "", 1)).clone();
        sick.health = Health::Unhealthy;
        endpoints.put(Arc::new(sick.clone()), None);
        endpoints.put(workload("well", "", 1), None);
        assert_eq!(shares(endpoints.near(&sick, 0)), "well");
        endpoints.lay_out(Layout { allows_unhealthy: true, ..Layout::default() });
        assert_eq!(shares(endpoints.near(&sick, 0)), "sick well");
    }

    proptest::proptest! {
        #[test]
        fn endpoints_are_those_put_and_not_removed(
            changes in proptest::collection::vec(
                (0..400_u32, 0..3_u8, proptest::option::weighted(0.7, 0..3_u32)), 0..1500),
        ) {
            let mut endpoints = by_zone();
            let mut model = BTreeMap::<String, Arc<Workload>>::new();
            let mut former = (endpoints.clone(), list(&endpoints));
            for (uid, zone, capacity) in changes {
                let uid = format!("{uid:03}");
                if let Some(capacity) = capacity {
                    let workload = workload(&uid, &zone.to_string(), capacity);
                    let before = model.insert(uid, workload.clone());
                    endpoints.put(workload, before.as_deref());
                } else if let Some(gone) = model.remove(&uid) {
                    endpoints.remove(&gone);
                }
                if endpoints.len().is_multiple_of(97) {
                    former = (endpoints.clone(), list(&endpoints));
                }
            }
            let mut expected: Vec<&Arc<Workload>> = model.values().collect();
            expected.sort_by_key(|w| (w.locality.zone.clone(), w.uid.clone()));
            let text = |w: &&Arc<Workload>| format!("{}{}:{}", w.locality.zone, w.uid, w.capacity);
            let expected: Vec<String> = expected.iter().map(text).collect();
            proptest::prop_assert_eq!(list(&endpoints), expected.join(" "));
            proptest::prop_assert_eq!(endpoints.len(), model.len());
            for zone in 0..3_u8 {
                let client = workload("client", &zone.to_string(), 1);
                let here = model.values().filter(|w| w.locality.zone == client.locality.zone);
                let mut expected: Vec<&str> = here
                    .flat_map(|w| std::iter::repeat_n(&*w.uid, w.capacity as usize)).collect();
                expected.sort_unstable();
                proptest::prop_assert_eq!(shares(endpoints.near(&client, 1)), expected.join(" "));
            }
            // What others hold stays as it was.
            proptest::prop_assert_eq!(list(&former.0), former.1);
        }
    }
}
