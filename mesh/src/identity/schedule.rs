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

/// How long a certificate is kept when the last pod that needs it has left the node: pods that are made anew, as in a
/// rollout or a crash loop, do not have the authority sign again each time.
const RETENTION: Duration = Duration::from_secs(300);
/// How many such certificates are kept. The one that left first goes first.
const RETAINED: usize = 256;

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
    /// Nobody on the node has the identity; its certificate is kept until then, and not renewed.
    released_until: Option<Instant>,
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
            released_until: None,
        });
        entry.released_until = None;
        entry.urgency = entry.urgency.max(urgency);
    }

    /// The certificate of `who` is to be replaced at `at`, whatever is left of it.
    pub(super) fn handle_outdated(&mut self, who: &Spiffe, at: Instant) {
        if let Some(entry) = self.identities.get_mut(who) {
            entry.renewal.handle_outdated(at);
        }
    }

    /// Nobody on the node has the identity any more. What is held of it is kept for [`RETENTION`]; out is who is
    /// dropped at once: `who` itself, if nothing `is_held`, or one that left before, if too many are kept.
    pub(super) fn handle_released(
        &mut self,
        who: &Spiffe,
        is_held: bool,
        now: Instant,
    ) -> Option<Spiffe> {
        let entry = self.identities.get_mut(who)?;
        if !is_held {
            self.identities.remove(who);
            return Some(who.clone());
        }
        entry.released_until = Some(now + RETENTION);
        entry.urgency = Urgency::Renewal;
        let retained =
            || self.identities.iter().filter_map(|(who, e)| Some((e.released_until?, who)));
        if retained().count() <= RETAINED {
            return None;
        }
        let first = retained().min()?.1.clone();
        self.identities.remove(&first);
        Some(first)
    }

    /// Whether somebody on the node has the identity.
    pub(super) fn is_wanted(&self, who: &Spiffe) -> bool {
        self.identities.get(who).is_some_and(|entry| entry.released_until.is_none())
    }

    /// The certificate of `who` ended by the wall clock, whatever the timers say.
    pub(super) fn handle_expired(&mut self, who: &Spiffe) {
        let turn = self.next_number();
        if let Some(entry) = self.identities.get_mut(who) {
            entry.renewal.handle_expired();
            entry.turn = turn;
        }
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

    /// Puts those whose moment has come into the queue. Out: those that were kept long enough without being wanted;
    /// an answer that is still to come for them will be stale.
    pub(super) fn handle_timeout(&mut self, now: Instant) -> Vec<Spiffe> {
        let is_over = |entry: &Entry| entry.released_until.is_some_and(|until| until <= now);
        let over = self.identities.extract_if(|_, entry| is_over(entry));
        let dropped = over.map(|(who, _)| who).collect();
        let mut due: Vec<(Instant, &mut Entry)> = self
            .identities
            .values_mut()
            .filter(|entry| entry.released_until.is_none())
            .filter_map(|entry| Some((entry.renewal.poll_timeout()?.0, entry)))
            .filter(|(at, _)| *at <= now)
            .collect();
        due.sort_by_key(|(at, _)| *at);
        for (_, entry) in due {
            entry.renewal.handle_timeout(now);
            self.counter += 1;
            entry.turn = self.counter;
        }
        dropped
    }

    /// The next request to send, marked as sent: the most urgent, and of these the one that waits longest.
    pub(super) fn poll_request(&mut self) -> Option<Request> {
        if self.in_flight >= CONCURRENT_REQUESTS {
            return None;
        }
        let (who, entry) = self
            .identities
            .iter_mut()
            .filter(|(_, entry)| {
                entry.released_until.is_none() && matches!(entry.renewal, Renewal::Due { .. })
            })
            .min_by_key(|(_, entry)| (std::cmp::Reverse(entry.urgency), entry.turn))?;
        entry.renewal.handle_sent();
        self.in_flight += 1;
        Some(Request { who: who.clone(), ticket: entry.ticket })
    }

    /// The next moment to call [`Schedule::handle_timeout`].
    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        let moment = |entry: &Entry| match entry.released_until {
            Some(until) => Some(until),
            None => Some(entry.renewal.poll_timeout()?.0),
        };
        self.identities.values().filter_map(moment).min()
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
#[path = "schedule_tests.rs"]
mod tests;
