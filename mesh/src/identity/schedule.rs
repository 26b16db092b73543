//! Which identity's request goes to the certificate authority next.
//!
//! In: who is wanted and how urgently, what the authority answered, the time. Out: the requests to send, at most
//! [`CONCURRENT_REQUESTS`] at once, and the next moment to be woken. Pure, as [`Renewal`] is.
//!
//! A node has tens of identities, at most some thousands: the scans below are shorter than one signature.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use super::{
    Spiffe,
    renewal::{Jitter, Renewal},
};

/// A daemon that starts has all its pods' certificates to ask for; an authority serves many such daemons.
const CONCURRENT_REQUESTS: usize = 8;

/// Why a certificate is wanted, the most urgent last.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(super) enum Urgency {
    /// The one in use reached half of its lifetime.
    Renewal,
    /// A pod will need it.
    Prefetch,
    /// A connection waits for it.
    Connection,
}

/// One request to send. The ticket tells its answer from that to a request before the identity was forgotten.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Request {
    pub(super) who: Spiffe,
    ticket: u64,
}

/// Whether an answer still belongs to an identity that is wanted.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Answer {
    Wanted,
    Stale,
}

/// All identities of the node.
#[derive(Default)]
pub(super) struct Schedule {
    identities: HashMap<Spiffe, Entry>,
    in_flight: usize,
    counter: u64,
}

struct Entry {
    renewal: Renewal,
    urgency: Urgency,
    /// Position in the queue of its urgency.
    turn: u64,
    ticket: u64,
}

impl Schedule {
    /// Adds `who`, or makes its request more urgent. A back-off is not cut short.
    pub(super) fn handle_wanted(&mut self, who: &Spiffe, urgency: Urgency) {
        let turn = self.next_number();
        let entry = self.identities.entry(who.clone()).or_insert(Entry {
            renewal: Renewal::new(),
            urgency,
            turn,
            ticket: turn,
        });
        entry.urgency = entry.urgency.max(urgency);
    }

    /// The certificate of `who` ended by the wall clock, whatever the timers say.
    pub(super) fn handle_expired(&mut self, who: &Spiffe) {
        let turn = self.next_number();
        if let Some(entry) = self.identities.get_mut(who) {
            entry.renewal.handle_expired();
            entry.turn = turn;
        }
    }

    /// Removes `who`. An answer that is still to come will be stale.
    pub(super) fn handle_forgotten(&mut self, who: &Spiffe) {
        self.identities.remove(who);
    }

    /// `request` was answered with a certificate of `lifetime`, `age` of which is over.
    pub(super) fn handle_issued(
        &mut self,
        request: &Request,
        now: Instant,
        age: Duration,
        lifetime: Duration,
        jitter: Jitter,
    ) -> Answer {
        let Some(entry) = self.answered(request) else { return Answer::Stale };
        entry.renewal.handle_issued(now, age, lifetime, jitter);
        entry.urgency = Urgency::Renewal;
        Answer::Wanted
    }

    /// `request` failed; `left` is what remains of the certificate in use.
    pub(super) fn handle_failed(
        &mut self,
        request: &Request,
        now: Instant,
        left: Option<Duration>,
        jitter: Jitter,
    ) -> Answer {
        let Some(entry) = self.answered(request) else { return Answer::Stale };
        entry.renewal.handle_failed(now, left, jitter);
        Answer::Wanted
    }

    /// Puts those whose moment has come into the queue.
    pub(super) fn handle_timeout(&mut self, now: Instant) {
        let mut due: Vec<(Instant, &mut Entry)> = self
            .identities
            .values_mut()
            .filter_map(|entry| Some((entry.renewal.poll_timeout()?.0, entry)))
            .filter(|(at, _)| *at <= now)
            .collect();
        due.sort_by_key(|(at, _)| *at);
        for (_, entry) in due {
            entry.renewal.handle_timeout(now);
            self.counter += 1;
            entry.turn = self.counter;
        }
    }

    /// The next request to send, marked as sent: the most urgent, and of these the one that waits longest.
    pub(super) fn poll_request(&mut self) -> Option<Request> {
        if self.in_flight >= CONCURRENT_REQUESTS {
            return None;
        }
        let (who, entry) = self
            .identities
            .iter_mut()
            .filter(|(_, entry)| matches!(entry.renewal, Renewal::Due { .. }))
            .min_by_key(|(_, entry)| (std::cmp::Reverse(entry.urgency), entry.turn))?;
        entry.renewal.handle_sent();
        self.in_flight += 1;
        Some(Request { who: who.clone(), ticket: entry.ticket })
    }

    /// The next moment to call [`Schedule::handle_timeout`].
    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        self.identities.values().filter_map(|entry| Some(entry.renewal.poll_timeout()?.0)).min()
    }

    /// When the next attempt for `who` is, if its last one failed.
    pub(super) fn retry_at(&self, who: &Spiffe) -> Option<Instant> {
        match self.identities.get(who)?.renewal {
            Renewal::Waiting { retry_at, .. } => Some(retry_at),
            Renewal::Due { .. } | Renewal::Requested { .. } | Renewal::Held { .. } => None,
        }
    }

    fn answered(&mut self, request: &Request) -> Option<&mut Entry> {
        self.in_flight = self.in_flight.saturating_sub(1);
        self.identities.get_mut(&request.who).filter(|entry| entry.ticket == request.ticket)
    }

    fn next_number(&mut self) -> u64 {
        self.counter += 1;
        self.counter
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY: Duration = Duration::from_secs(86_400);

    fn who(account: &str) -> Spiffe {
        Spiffe::new("cluster.local", "shop", account).unwrap()
    }

    fn wanted(wishes: &[(&str, Urgency)]) -> Schedule {
        let mut schedule = Schedule::default();
        for (account, urgency) in wishes {
            schedule.handle_wanted(&who(account), *urgency);
        }
        schedule
    }

    fn sent(schedule: &mut Schedule) -> Vec<Request> {
        std::iter::from_fn(|| schedule.poll_request()).collect()
    }

    fn accounts(requests: &[Request]) -> Vec<&str> {
        requests.iter().map(|request| request.who.service_account()).collect()
    }

    #[test]
    fn connections_go_before_prefetches_and_each_in_its_order() {
        use Urgency::{Connection, Prefetch};
        let mut schedule =
            wanted(&[("a", Prefetch), ("b", Connection), ("c", Prefetch), ("d", Connection)]);
        assert_eq!(accounts(&sent(&mut schedule)), ["b", "d", "a", "c"]);
    }

    #[test]
    fn a_connection_raises_a_prefetch_and_a_prefetch_lowers_nothing() {
        use Urgency::{Connection, Prefetch};
        let mut schedule = wanted(&[
            ("a", Prefetch),
            ("b", Prefetch),
            ("b", Connection),
            ("c", Connection),
            ("c", Prefetch),
        ]);
        assert_eq!(accounts(&sent(&mut schedule)), ["b", "c", "a"]);
    }

    #[test]
    fn renewals_go_last() {
        let now = Instant::now();
        let mut schedule = wanted(&[("old", Urgency::Connection)]);
        let request = schedule.poll_request().unwrap();
        schedule.handle_issued(&request, now, Duration::ZERO, DAY, Jitter::NONE);
        assert_eq!(schedule.poll_timeout(), Some(now + DAY / 2));
        schedule.handle_timeout(now + DAY / 2);
        schedule.handle_wanted(&who("new"), Urgency::Prefetch);
        assert_eq!(accounts(&sent(&mut schedule)), ["new", "old"]);
    }

    #[test]
    fn eight_requests_are_with_the_authority_at_once() {
        let names: Vec<String> = (0..10).map(|i| format!("sa-{i}")).collect();
        let wishes: Vec<_> = names.iter().map(|n| (n.as_str(), Urgency::Prefetch)).collect();
        let mut schedule = wanted(&wishes);
        let first = sent(&mut schedule);
        assert_eq!(first.len(), 8);
        schedule.handle_failed(&first[0], Instant::now(), None, Jitter::NONE);
        assert_eq!(accounts(&sent(&mut schedule)), ["sa-8"]);
    }

    #[test]
    fn one_request_per_identity() {
        let mut schedule = wanted(&[("a", Urgency::Prefetch)]);
        assert_eq!(sent(&mut schedule).len(), 1);
        schedule.handle_wanted(&who("a"), Urgency::Connection);
        assert_eq!(sent(&mut schedule), []);
    }

    #[test]
    fn a_waiting_connection_does_not_cut_the_back_off() {
        let now = Instant::now();
        let mut schedule = wanted(&[("a", Urgency::Prefetch)]);
        let request = schedule.poll_request().unwrap();
        assert_eq!(schedule.handle_failed(&request, now, None, Jitter::NONE), Answer::Wanted);
        schedule.handle_wanted(&who("a"), Urgency::Connection);
        assert_eq!(schedule.poll_request(), None);
        assert_eq!(schedule.retry_at(&who("a")), Some(now + Duration::from_secs(1)));
        schedule.handle_timeout(now + Duration::from_secs(1));
        assert_eq!(accounts(&sent(&mut schedule)), ["a"]);
    }

    #[test]
    fn the_answer_for_a_forgotten_identity_is_stale_even_if_it_is_wanted_again() {
        let now = Instant::now();
        let mut schedule = wanted(&[("a", Urgency::Prefetch)]);
        let before = schedule.poll_request().unwrap();
        schedule.handle_forgotten(&who("a"));
        schedule.handle_wanted(&who("a"), Urgency::Prefetch);
        let after = schedule.poll_request().unwrap();
        let issued = |schedule: &mut Schedule, request: &Request| {
            schedule.handle_issued(request, now, Duration::ZERO, DAY, Jitter::NONE)
        };
        assert_eq!(issued(&mut schedule, &before), Answer::Stale);
        assert_eq!(issued(&mut schedule, &after), Answer::Wanted);
    }

    #[test]
    fn forgetting_frees_nothing_that_is_still_with_the_authority() {
        let names: Vec<String> = (0..9).map(|i| format!("sa-{i}")).collect();
        let wishes: Vec<_> = names.iter().map(|n| (n.as_str(), Urgency::Prefetch)).collect();
        let mut schedule = wanted(&wishes);
        let first = sent(&mut schedule);
        schedule.handle_forgotten(&first[0].who);
        assert_eq!(schedule.poll_request(), None);
        schedule.handle_failed(&first[0], Instant::now(), None, Jitter::NONE);
        assert_eq!(accounts(&sent(&mut schedule)), ["sa-8"]);
    }

    #[test]
    fn the_earliest_deadline_is_served_first() {
        let now = Instant::now();
        let mut schedule = wanted(&[("late", Urgency::Prefetch), ("early", Urgency::Prefetch)]);
        for request in sent(&mut schedule) {
            let lifetime = if request.who == who("late") { DAY } else { DAY / 2 };
            schedule.handle_issued(&request, now, Duration::ZERO, lifetime, Jitter::NONE);
        }
        assert_eq!(schedule.poll_timeout(), Some(now + DAY / 4));
        schedule.handle_timeout(now + DAY);
        assert_eq!(accounts(&sent(&mut schedule)), ["early", "late"]);
    }

    #[test]
    fn an_early_end_is_asked_for_at_once() {
        let mut schedule = wanted(&[("a", Urgency::Prefetch)]);
        let request = schedule.poll_request().unwrap();
        schedule.handle_issued(&request, Instant::now(), Duration::ZERO, DAY, Jitter::NONE);
        schedule.handle_expired(&who("a"));
        assert_eq!(accounts(&sent(&mut schedule)), ["a"]);
    }
}
