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
/// Names kept at most. A pod that tries every address there is gets no answers beyond it, and others keep theirs.
const MOST_NAMES: usize = 65_536;

/// All names that were asked for.
#[derive(Debug, Default)]
pub(super) struct Lookups {
    names: HashMap<Box<str>, Name>,
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

    pub(super) fn want(&mut self, name: &str, now: Instant) -> Want {
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
            Some(Name::Absent { .. }) | None => self.ask(name, now),
        }
    }

    fn ask(&mut self, name: &str, now: Instant) -> Want {
        if self.names.len() >= MOST_NAMES && !self.names.contains_key(name) {
            return Want::Known(Lookup::Unanswered);
        }
        let (tell, answer) = oneshot::channel();
        let pending = Name::Pending { since: now, state: Asking::Unsent, waiters: vec![tell] };
        self.names.insert(name.into(), pending);
        Want::Wait(answer)
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
        let mut unused: HashSet<Arc<str>> = HashSet::new();
        self.names.retain(|name, known| {
            let is_kept = match known {
                Name::Pending { .. } => true,
                Name::Absent { until } => now < *until,
                Name::Known { used, resources } => {
                    let is_used = now < *used + UNUSED_LIMIT;
                    if !is_used {
                        unused.extend(resources.drain(..));
                    }
                    is_used
                }
            };
            if !is_kept {
                change.unsubscribe.push((**name).to_owned());
            }
            is_kept
        });
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
            self.lookups.want(name, self.at(seconds))
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

    #[test]
    fn names_are_bounded() {
        let mut fixture = Fixture::new();
        for number in 0..MOST_NAMES {
            let _waiter = fixture.wait(&number.to_string(), 0);
        }
        fixture.check_known("one more", 0, Lookup::Unanswered);
    }
}
