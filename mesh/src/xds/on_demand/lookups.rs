//! What has been asked for, what is known of it, and what is to be asked for next.
//!
//! In: names that somebody wants, and answers. Out: what to put into the next request. Reads no clock: the caller tells the
//! time.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::sync::oneshot;

use super::{Lookup, Named, WAIT_LIMIT};

/// An answer that there is nothing holds this long: an application that tries again does not ask each time.
const ABSENT_FOR: Duration = Duration::from_secs(5);
/// What was not answered is asked for again after this long, if somebody still wants it.
const ASK_AGAIN: Duration = Duration::from_secs(30);
/// What nobody has used for this long is given up.
const UNUSED_LIMIT: Duration = Duration::from_secs(600);
/// Names kept at most.
const MOST_NAMES: usize = 65_536;
/// Names that one asker may have asked for anew within [`ASK_AGAIN`]. A pod that tries every address there is gets no
/// answers beyond it, and leaves room for others.
const MOST_OF_ONE: usize = 4096;
/// While all places are taken, what can be given up is looked for no more often than this.
const PURGE_PAUSE: Duration = Duration::from_secs(1);

/// All names that were asked for.
#[derive(Debug, Default)]
pub(super) struct Lookups {
    names: HashMap<Box<str>, Name>,
    /// Names that are given up and still subscribed, with the resources that came for them.
    given_up: HashMap<Box<str>, Vec<Arc<str>>>,
    askers: HashMap<Arc<str>, Share>,
    /// When room was last made.
    purged: Option<Instant>,
}

/// What an asker has asked for since some moment.
#[derive(Debug)]
struct Share {
    since: Instant,
    asked: usize,
}

#[derive(Debug)]
enum Name {
    /// To be asked for, or asked for and not answered.
    Pending { since: Instant, state: Asking, waiters: Vec<oneshot::Sender<Lookup>> },
    /// Answered, with these resources.
    Known { used: Instant, resources: Vec<Arc<str>> },
    /// There is none.
    Absent { until: Instant },
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Asking {
    Unsent,
    Sent,
}

/// What to do for who wants a name.
#[derive(Debug)]
pub(super) enum Want {
    Known(Lookup),
    Wait(oneshot::Receiver<Lookup>),
}

/// A change of the subscription. It always subscribes to something: istiod takes a request that only gives up names for one
/// that wants nothing at all.
#[derive(Debug, Default, Eq, PartialEq)]
pub(crate) struct Change {
    /// Names to ask for.
    pub(crate) subscribe: Vec<String>,
    /// Names to give up.
    pub(crate) unsubscribe: Vec<String>,
    /// Resources that came for names that are given up, and for no others.
    pub(crate) unused: Vec<Arc<str>>,
}

impl Lookups {
    pub(super) fn touch(&mut self, name: &str, now: Instant) -> bool {
        match self.names.get_mut(name) {
            Some(Name::Known { used, .. }) => {
                *used = now;
                true
            }
            Some(Name::Pending { .. } | Name::Absent { .. }) | None => false,
        }
    }

    pub(super) fn want(&mut self, asker: &Arc<str>, name: &str, now: Instant) -> Want {
        match self.names.get_mut(name) {
            Some(Name::Known { used, .. }) => {
                *used = now;
                Want::Known(Lookup::Answered)
            }
            Some(Name::Absent { until }) if now < *until => Want::Known(Lookup::Absent),
            Some(Name::Pending { since, state, waiters }) if now >= *since + ASK_AGAIN => {
                let (tell, answer) = oneshot::channel();
                (*since, *state, *waiters) = (now, Asking::Unsent, vec![tell]);
                Want::Wait(answer)
            }
            Some(Name::Pending { since, .. }) if now >= *since + WAIT_LIMIT => {
                // It is still asked for; but nobody else waits as long as the first did.
                Want::Known(Lookup::Unanswered)
            }
            Some(Name::Pending { waiters, .. }) => {
                let (tell, answer) = oneshot::channel();
                waiters.push(tell);
                Want::Wait(answer)
            }
            Some(Name::Absent { .. }) | None => self.ask(asker, name, now),
        }
    }

    fn ask(&mut self, asker: &Arc<str>, name: &str, now: Instant) -> Want {
        let has_place =
            self.has_share(asker, now) && (self.names.contains_key(name) || self.has_room(now));
        if !has_place {
            return Want::Known(Lookup::Unanswered);
        }
        // It stays subscribed; its resources count again once the answer has come.
        self.given_up.remove(name);
        let (tell, answer) = oneshot::channel();
        let pending = Name::Pending { since: now, state: Asking::Unsent, waiters: vec![tell] };
        self.names.insert(name.into(), pending);
        Want::Wait(answer)
    }

    fn has_share(&mut self, asker: &Arc<str>, now: Instant) -> bool {
        let unused = Share { since: now, asked: 0 };
        let share = self.askers.entry(Arc::clone(asker)).or_insert(unused);
        if now >= share.since + ASK_AGAIN {
            *share = Share { since: now, asked: 0 };
        }
        let has_share = share.asked < MOST_OF_ONE;
        share.asked += usize::from(has_share);
        has_share
    }

    /// Whether there is a place for one more name, if need be that of one that can be given up.
    fn has_room(&mut self, now: Instant) -> bool {
        let is_due = self.purged.is_none_or(|purged| now >= purged + PURGE_PAUSE);
        if self.names.len() >= MOST_NAMES && is_due {
            self.purge(now);
        }
        self.names.len() < MOST_NAMES
    }

    /// Gives up what nobody uses, waits for, or may take for an answer any more.
    fn purge(&mut self, now: Instant) {
        self.purged = Some(now);
        self.askers.retain(|_, share| now < share.since + ASK_AGAIN);
        let given_up = &mut self.given_up;
        self.names.retain(|name, known| {
            let (is_kept, is_subscribed) = match known {
                Name::Pending { since, state, waiters } => {
                    let is_awaited = waiters.iter().any(|waiter| !waiter.is_closed());
                    (is_awaited || now < *since + ASK_AGAIN, *state == Asking::Sent)
                }
                Name::Absent { until } => (now < *until, true),
                Name::Known { used, .. } => (now < *used + UNUSED_LIMIT, true),
            };
            if !is_kept && is_subscribed {
                let resources = match known {
                    Name::Known { resources, .. } => std::mem::take(resources),
                    Name::Pending { .. } | Name::Absent { .. } => Vec::new(),
                };
                given_up.insert(name.clone(), resources);
            }
            is_kept
        });
    }

    /// What to ask for; none if nothing is new.
    pub(super) fn change(&mut self, now: Instant) -> Option<Change> {
        let mut change = Change::default();
        for (name, known) in &mut self.names {
            if let Name::Pending { state: state @ Asking::Unsent, .. } = known {
                *state = Asking::Sent;
                change.subscribe.push((**name).to_owned());
            }
        }
        if change.subscribe.is_empty() {
            return None;
        }
        change.subscribe.sort();
        self.purge(now);
        let mut unused: HashSet<Arc<str>> = HashSet::new();
        for (name, resources) in self.given_up.drain() {
            // What was asked for just now is not given up, however long ago it was first wanted.
            if change.subscribe.binary_search_by(|asked| (**asked).cmp(&name)).is_err() {
                change.unsubscribe.push(name.into());
            }
            unused.extend(resources);
        }
        for known in self.names.values() {
            if let Name::Known { resources, .. } = known {
                unused.retain(|resource| !resources.contains(resource));
            }
        }
        change.unused = unused.into_iter().collect();
        change.unused.sort();
        change.unsubscribe.sort();
        Some(change)
    }

    /// The names that are still to be answered, which a new stream is told. Answers that there is nothing are forgotten:
    /// the server no longer watches for what they are about.
    pub(super) fn pending(&mut self) -> Vec<String> {
        self.names.retain(|_, known| !matches!(known, Name::Absent { .. }));
        // On this stream they were never asked for; what came for them before is held still.
        self.given_up.retain(|_, resources| !resources.is_empty());
        let mut pending = Vec::new();
        for (name, known) in &mut self.names {
            if let Name::Pending { state, .. } = known {
                *state = Asking::Sent;
                pending.push((**name).to_owned());
            }
        }
        pending.sort();
        pending
    }

    /// Wakes whoever waits for a resource by its name or an address, and for what there is none of.
    pub(super) fn answered(&mut self, named: &[Named], absent: &[String], now: Instant) {
        // The endpoints of a service come with it, so that everything in the response may be part of each answer.
        let all: Vec<Arc<str>> = named.iter().map(|one| one.name.clone()).collect();
        for one in named {
            self.answer(&one.name, &all, now);
            for alias in &one.aliases {
                self.answer(alias, &all, now);
            }
        }
        let gone: HashSet<&str> = absent.iter().map(String::as_str).collect();
        if gone.is_empty() {
            return;
        }
        for (name, known) in &mut self.names {
            let is_gone = match known {
                Name::Pending { state, .. } => *state == Asking::Sent && gone.contains(&**name),
                Name::Known { resources, .. } => {
                    resources.retain(|resource| !gone.contains(&**resource));
                    resources.is_empty() || gone.contains(&**name)
                }
                Name::Absent { .. } => false,
            };
            if is_gone {
                let absent = Name::Absent { until: now + ABSENT_FOR };
                tell(std::mem::replace(known, absent), Lookup::Absent);
            }
        }
    }

    /// A resource came that `name` stands for.
    fn answer(&mut self, name: &str, resources: &[Arc<str>], now: Instant) {
        let Some(known) = self.names.get_mut(name) else { return };
        match known {
            Name::Known { .. } => {}
            Name::Pending { .. } | Name::Absent { .. } => {
                let answered = Name::Known { used: now, resources: resources.to_vec() };
                tell(std::mem::replace(known, answered), Lookup::Answered);
            }
        }
    }
}

fn tell(name: Name, answer: Lookup) {
    if let Name::Pending { waiters, .. } = name {
        for waiter in waiters {
            // Whoever has stopped waiting needs no answer.
            waiter.send(answer).ok();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Lookups, at moments counted in seconds.
    struct Fixture {
        lookups: Lookups,
        began: Instant,
    }

    impl Fixture {
        fn new() -> Self {
            Self { lookups: Lookups::default(), began: Instant::now() }
        }

        fn at(&self, seconds: u64) -> Instant {
            self.began + Duration::from_secs(seconds)
        }

        fn want(&mut self, name: &str, seconds: u64) -> Want {
            self.want_by("shop/web", name, seconds)
        }

        fn want_by(&mut self, asker: &str, name: &str, seconds: u64) -> Want {
            self.lookups.want(&asker.into(), name, self.at(seconds))
        }

        fn check_known(&mut self, name: &str, seconds: u64, expected: Lookup) {
            match self.want(name, seconds) {
                Want::Known(found) => assert_eq!(found, expected, "{name} at {seconds} s"),
                Want::Wait(_) => panic!("{name} at {seconds} s is asked for"),
            }
        }

        fn wait(&mut self, name: &str, seconds: u64) -> oneshot::Receiver<Lookup> {
            match self.want(name, seconds) {
                Want::Wait(answer) => answer,
                Want::Known(found) => panic!("{name} at {seconds} s is {found:?}"),
            }
        }

        fn change(&mut self, seconds: u64) -> Option<(String, String, String)> {
            let change = self.lookups.change(self.at(seconds))?;
            let unused: Vec<&str> = change.unused.iter().map(|name| &**name).collect();
            Some((change.subscribe.join(" "), change.unsubscribe.join(" "), unused.join(" ")))
        }

        fn answer(&mut self, name: &str, aliases: &[&str], seconds: u64) {
            let aliases = aliases.iter().map(ToString::to_string).collect();
            let (named, now) = (Named { name: name.into(), aliases }, self.at(seconds));
            self.lookups.answered(&[named], &[], now);
        }

        fn absent(&mut self, name: &str, seconds: u64) {
            let now = self.at(seconds);
            self.lookups.answered(&[], &[name.to_owned()], now);
        }
    }

    fn asked(subscribe: &str, unsubscribe: &str, unused: &str) -> Option<(String, String, String)> {
        Some((subscribe.into(), unsubscribe.into(), unused.into()))
    }

    #[test]
    fn a_name_is_asked_for_once_for_all_who_want_it() {
        let mut fixture = Fixture::new();
        let (_first, _second) = (fixture.wait("/10.0.0.1", 0), fixture.wait("/10.0.0.1", 1));
        assert_eq!(fixture.change(1), asked("/10.0.0.1", "", ""));
        assert_eq!(fixture.change(1), None);
    }

    #[test]
    fn a_waiter_is_woken_by_name_by_alias_and_by_absence() {
        let mut fixture = Fixture::new();
        let mut by_name = fixture.wait("uid", 0);
        let mut by_alias = fixture.wait("/10.0.0.1", 0);
        let mut by_absence = fixture.wait("/10.9.9.9", 0);
        fixture.change(0);
        fixture.answer("uid", &["/10.0.0.1"], 0);
        fixture.absent("/10.9.9.9", 0);
        assert_eq!(by_name.try_recv(), Ok(Lookup::Answered));
        assert_eq!(by_alias.try_recv(), Ok(Lookup::Answered));
        assert_eq!(by_absence.try_recv(), Ok(Lookup::Absent));
        fixture.check_known("/10.0.0.1", 1, Lookup::Answered);
    }

    #[test]
    fn absence_holds_for_five_seconds_or_until_it_comes_into_being() {
        let mut fixture = Fixture::new();
        for name in ["/10.0.0.1", "/10.0.0.2"] {
            let _waiter = fixture.wait(name, 0);
            fixture.change(0);
            fixture.absent(name, 0);
        }
        fixture.check_known("/10.0.0.1", 4, Lookup::Absent);
        fixture.answer("uid", &["/10.0.0.2"], 4);
        fixture.check_known("/10.0.0.2", 4, Lookup::Answered);
        let _waiter = fixture.wait("/10.0.0.1", 5);
    }

    #[test]
    fn an_unanswered_name_holds_up_nobody_twice_and_is_asked_for_again() {
        let mut fixture = Fixture::new();
        let _waiter = fixture.wait("/10.0.0.1", 0);
        assert_eq!(fixture.change(0), asked("/10.0.0.1", "", ""));
        fixture.check_known("/10.0.0.1", 5, Lookup::Unanswered);
        let mut second = fixture.wait("/10.0.0.1", 30);
        assert_eq!(fixture.change(30), asked("/10.0.0.1", "", ""));
        fixture.answer("uid", &["/10.0.0.1"], 31);
        assert_eq!(second.try_recv(), Ok(Lookup::Answered));
    }

    #[test]
    fn absence_told_before_the_request_was_sent_is_not_its_answer() {
        let mut fixture = Fixture::new();
        let mut waiter = fixture.wait("/10.0.0.1", 0);
        fixture.absent("/10.0.0.1", 0);
        assert!(waiter.try_recv().is_err());
    }

    #[test]
    fn what_nobody_uses_is_given_up_with_the_next_request_and_never_alone() {
        let mut fixture = Fixture::new();
        for name in ["/10.0.0.1", "/10.0.0.2", "/10.0.0.3"] {
            let _waiter = fixture.wait(name, 0);
        }
        fixture.change(0);
        fixture.answer("one", &["/10.0.0.1"], 0);
        fixture.answer("two", &["/10.0.0.2"], 0);
        fixture.absent("/10.0.0.3", 0);
        assert!(fixture.lookups.touch("/10.0.0.2", fixture.at(599)));
        assert_eq!(fixture.change(700), None, "a request that only gives up names is never sent");
        let _waiter = fixture.wait("/10.0.0.4", 700);
        assert_eq!(fixture.change(700), asked("/10.0.0.4", "/10.0.0.1 /10.0.0.3", "one"));
        let _waiter = fixture.wait("/10.0.0.1", 701);
        assert_eq!(fixture.change(701), asked("/10.0.0.1", "", ""));
    }

    #[test]
    fn what_a_name_in_use_stands_for_too_is_kept() {
        let mut fixture = Fixture::new();
        for name in ["/10.0.0.1", "/10.0.0.2"] {
            let _waiter = fixture.wait(name, 0);
        }
        fixture.change(0);
        fixture.answer("uid", &["/10.0.0.1", "/10.0.0.2"], 0);
        fixture.lookups.touch("/10.0.0.2", fixture.at(500));
        let _waiter = fixture.wait("/10.0.0.4", 700);
        assert_eq!(fixture.change(700), asked("/10.0.0.4", "/10.0.0.1", ""));
    }

    #[test]
    fn a_name_whose_resources_are_gone_is_asked_for_again() {
        let mut fixture = Fixture::new();
        let _waiter = fixture.wait("/10.0.0.1", 0);
        fixture.change(0);
        fixture.answer("uid", &["/10.0.0.1"], 0);
        fixture.absent("uid", 10);
        assert!(!fixture.lookups.touch("/10.0.0.1", fixture.at(11)));
        fixture.check_known("/10.0.0.1", 11, Lookup::Absent);
        let _waiter = fixture.wait("/10.0.0.1", 15);
    }

    #[test]
    fn a_new_stream_is_told_what_is_pending() {
        let mut fixture = Fixture::new();
        for name in ["/10.0.0.1", "/10.0.0.2", "/10.0.0.3"] {
            let _waiter = fixture.wait(name, 0);
        }
        fixture.change(0);
        fixture.answer("uid", &["/10.0.0.1"], 0);
        fixture.absent("/10.0.0.3", 0);
        assert_eq!(fixture.lookups.pending(), ["/10.0.0.2"]);
        assert_eq!(fixture.change(1), None, "it was told already");
        let _waiter = fixture.wait("/10.0.0.3", 1);
    }

    /// Takes all places, as many askers as it takes.
    fn full(state: fn(&mut Fixture)) -> Fixture {
        let mut fixture = Fixture::new();
        for number in 0..MOST_NAMES {
            let asker = format!("pod-{}", number / MOST_OF_ONE);
            assert!(matches!(fixture.want_by(&asker, &number.to_string(), 0), Want::Wait(_)));
        }
        fixture.check_known("one more", 0, Lookup::Unanswered);
        fixture.change(0);
        state(&mut fixture);
        fixture
    }

    /// What is given up for `one more`, how much of it, and how many resources.
    fn given_up(fixture: &mut Fixture, seconds: u64) -> (usize, usize) {
        let _waiter = fixture.wait("one more", seconds);
        let change = fixture.lookups.change(fixture.at(seconds)).unwrap();
        assert_eq!(change.subscribe, ["one more"]);
        (change.unsubscribe.len(), change.unused.len())
    }

    #[test]
    fn what_nobody_waits_for_makes_room() {
        let mut fixture = full(|_| {});
        fixture.check_known("one more", 29, Lookup::Unanswered);
        assert_eq!(given_up(&mut fixture, 31), (MOST_NAMES, 0));
    }

    #[test]
    fn what_somebody_waits_for_keeps_its_place() {
        let mut fixture = full(|_| {});
        let mut waiter = fixture.wait("7", 0);
        assert_eq!(given_up(&mut fixture, 31), (MOST_NAMES - 1, 0));
        fixture.answer("uid", &["7"], 31);
        assert_eq!(waiter.try_recv(), Ok(Lookup::Answered));
    }

    #[test]
    fn what_there_is_none_of_makes_room_once_that_may_have_changed() {
        let mut fixture = full(|fixture| {
            let all: Vec<String> = (0..MOST_NAMES).map(|number| number.to_string()).collect();
            fixture.lookups.answered(&[], &all, fixture.at(0));
        });
        fixture.check_known("one more", 4, Lookup::Unanswered);
        assert_eq!(given_up(&mut fixture, 6), (MOST_NAMES, 0));
    }

    #[test]
    fn what_is_not_used_makes_room_with_what_came_for_it() {
        let mut fixture = full(|fixture| {
            let aliases = (0..MOST_NAMES).map(|number| number.to_string()).collect();
            let named = Named { name: "uid".into(), aliases };
            fixture.lookups.answered(&[named], &[], fixture.at(0));
        });
        fixture.check_known("one more", 599, Lookup::Unanswered);
        assert_eq!(given_up(&mut fixture, 601), (MOST_NAMES, 1));
    }

    #[test]
    fn what_is_wanted_again_before_it_was_given_up_stays_subscribed() {
        let mut fixture = full(|_| {});
        let _waiters = (fixture.wait("one more", 31), fixture.wait("7", 31));
        let change = fixture.lookups.change(fixture.at(31)).unwrap();
        assert_eq!(change.subscribe, ["7", "one more"]);
        assert_eq!(change.unsubscribe.len(), MOST_NAMES - 1);
        assert!(!change.unsubscribe.contains(&"7".to_owned()));
    }

    #[test]
    fn one_asker_leaves_room_for_others() {
        let mut fixture = Fixture::new();
        for number in 0..MOST_OF_ONE {
            let _waiter = fixture.wait(&number.to_string(), 0);
        }
        fixture.check_known("one more", 29, Lookup::Unanswered);
        assert!(matches!(fixture.want_by("shop/cart", "one more", 29), Want::Wait(_)));
        let _waiter = fixture.wait("another", 30);
    }
}
