//! When to fetch which keys. Reads no clock and opens no socket.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

use super::Location;

/// How old keys may get.
const REFRESH: Duration = Duration::from_secs(20 * 60);
/// How long the first failure is waited out; each further one twice as long.
const FIRST_RETRY: Duration = Duration::from_secs(1);
/// No failure is waited out longer.
const LAST_RETRY: Duration = Duration::from_secs(5 * 60);

/// What is wanted, and when each is next to be fetched.
#[derive(Debug, Default)]
pub(crate) struct Schedule {
    entries: BTreeMap<Location, Entry>,
}

#[derive(Debug)]
struct Entry {
    /// When to fetch it; nothing while that is under way.
    due: Option<Instant>,
    failures: u32,
}

impl Schedule {
    /// Takes over what is wanted: what is new is due at once.
    pub(crate) fn want(&mut self, wanted: BTreeSet<Location>, now: Instant) {
        self.entries.retain(|location, _| wanted.contains(location));
        for location in wanted {
            self.entries.entry(location).or_insert(Entry { due: Some(now), failures: 0 });
        }
    }

    /// Whether it is still wanted.
    pub(crate) fn wants(&self, location: &Location) -> bool {
        self.entries.contains_key(location)
    }

    /// The next moment at which something is due.
    pub(crate) fn poll_timeout(&self) -> Option<Instant> {
        self.entries.values().filter_map(|entry| entry.due).min()
    }

    /// Something that is due, which is then under way.
    pub(crate) fn take_due(&mut self, now: Instant) -> Option<Location> {
        let mut entries = self.entries.iter_mut();
        let (location, entry) =
            entries.find(|(_, entry)| entry.due.is_some_and(|due| due <= now))?;
        entry.due = None;
        Some(location.clone())
    }

    /// It was had.
    pub(crate) fn handle_fetched(&mut self, location: &Location, now: Instant) {
        if let Some(entry) = self.entries.get_mut(location) {
            *entry = Entry { due: Some(now + REFRESH), failures: 0 };
        }
    }

    /// It was not; says for how long that is waited out.
    pub(crate) fn handle_failed(&mut self, location: &Location, now: Instant) -> Duration {
        let Some(entry) = self.entries.get_mut(location) else { return LAST_RETRY };
        let wait = FIRST_RETRY.saturating_mul(1 << entry.failures.min(16)).min(LAST_RETRY);
        *entry = Entry { due: Some(now + wait), failures: entry.failures.saturating_add(1) };
        wait
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys(uri: &str) -> Location {
        Location::Keys(uri.to_owned())
    }

    #[test]
    fn what_is_new_is_due_at_once_and_again_after_twenty_minutes() {
        let start = Instant::now();
        let mut schedule = Schedule::default();
        schedule.want(BTreeSet::from([keys("a"), keys("b")]), start);
        assert_eq!(schedule.take_due(start), Some(keys("a")));
        assert_eq!(schedule.take_due(start), Some(keys("b")));
        assert_eq!(schedule.take_due(start), None, "both are under way");
        schedule.handle_fetched(&keys("a"), start);
        assert_eq!(schedule.poll_timeout(), Some(start + REFRESH));
        assert_eq!(schedule.take_due(start + REFRESH), Some(keys("a")));
    }

    #[test]
    fn failures_are_waited_out_ever_longer_up_to_five_minutes() {
        let mut now = Instant::now();
        let mut schedule = Schedule::default();
        schedule.want(BTreeSet::from([keys("a")]), now);
        for seconds in [1, 2, 4, 8, 16, 32, 64, 128, 256, 300, 300] {
            assert_eq!(schedule.take_due(now), Some(keys("a")));
            assert_eq!(schedule.handle_failed(&keys("a"), now).as_secs(), seconds);
            assert_eq!(schedule.take_due(now), None);
            now += Duration::from_secs(seconds);
        }
        assert_eq!(schedule.take_due(now), Some(keys("a")));
        schedule.handle_fetched(&keys("a"), now);
        now += REFRESH;
        assert_eq!(schedule.take_due(now), Some(keys("a")));
        assert_eq!(schedule.handle_failed(&keys("a"), now).as_secs(), 1, "a success forgives");
    }

    #[test]
    fn what_is_not_wanted_any_more_is_forgotten() {
        let now = Instant::now();
        let mut schedule = Schedule::default();
        schedule.want(BTreeSet::from([keys("a")]), now);
        assert_eq!(schedule.take_due(now), Some(keys("a")));
        schedule.want(BTreeSet::new(), now);
        schedule.handle_failed(&keys("a"), now);
        assert!(!schedule.wants(&keys("a")));
        assert_eq!(schedule.poll_timeout(), None);
    }
}
