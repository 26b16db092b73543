//! When an object's status may be written.
//!
//! In: that it differs, is as wanted, or could not be written. Out: now, later, or not until something changes. Where
//! another writes the same status, both would go on for ever: each time ours is undone it waits longer. Told the time.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use super::Key;

/// After a failure, and after the first time that ours was undone; grows fourfold.
const FIRST: Duration = Duration::from_secs(1);
const LONGEST: Duration = Duration::from_secs(600);
/// Ours that stood for so long was not undone by one that wants something else.
const CALM: Duration = Duration::from_secs(900);

/// What to do with a status that is not as wanted.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Verdict {
    Write,
    /// Look again then.
    At(Instant),
    /// Writing it again would change as little.
    Leave,
}

/// Every object that was written or could not be.
#[derive(Debug, Default)]
pub(super) struct Attempts(HashMap<Key, Attempt>);

#[derive(Debug)]
struct Attempt {
    /// What was wanted, and what was there, by hash.
    wanted: u64,
    there: u64,
    progress: Progress,
    /// How often ours was undone of late.
    undone: u32,
    failures: u32,
    not_before: Instant,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Progress {
    /// Something is to be written.
    Open,
    /// It was written, and the server has not shown it yet.
    Written,
    /// It was there at that moment.
    Settled(Instant),
}

impl Attempts {
    /// The status is not as wanted.
    pub(super) fn differs(&mut self, key: &Key, wanted: u64, there: u64, now: Instant) -> Verdict {
        let attempt = self.0.entry(key.clone()).or_insert(Attempt {
            wanted,
            there,
            progress: Progress::Open,
            undone: 0,
            failures: 0,
            not_before: now,
        });
        if attempt.wanted != wanted {
            attempt.progress = Progress::Open;
            attempt.wanted = wanted;
        }
        if let Progress::Settled(at) = attempt.progress {
            attempt.progress = Progress::Open;
            attempt.undone = if now.duration_since(at) > CALM { 1 } else { attempt.undone + 1 };
            attempt.not_before = now + delay(attempt.undone);
        }
        if attempt.progress == Progress::Written && attempt.there == there {
            return Verdict::Leave;
        }
        if now < attempt.not_before {
            return Verdict::At(attempt.not_before);
        }
        attempt.there = there;
        Verdict::Write
    }

    /// It was written.
    pub(super) fn written(&mut self, key: &Key) {
        if let Some(attempt) = self.0.get_mut(key) {
            attempt.progress = Progress::Written;
            attempt.failures = 0;
        }
    }

    /// It could not be written. Says when to try again.
    pub(super) fn failed(&mut self, key: &Key, now: Instant) -> Option<Instant> {
        let attempt = self.0.get_mut(key)?;
        attempt.failures += 1;
        attempt.progress = Progress::Open;
        attempt.not_before = now + delay(attempt.failures);
        Some(attempt.not_before)
    }

    /// It is as wanted.
    pub(super) fn settled(&mut self, key: &Key, now: Instant) {
        if let Some(attempt) = self.0.get_mut(key) {
            if !matches!(attempt.progress, Progress::Settled(_)) {
                attempt.progress = Progress::Settled(now);
            }
            attempt.failures = 0;
        }
    }

    /// It is gone.
    pub(super) fn forget(&mut self, key: &Key) {
        self.0.remove(key);
    }

    /// How many another writer keeps undoing.
    pub(super) fn contended(&self) -> usize {
        self.0.values().filter(|attempt| attempt.undone > 1).count()
    }
}

fn delay(times: u32) -> Duration {
    (FIRST * 4_u32.saturating_pow(times.saturating_sub(1).min(8))).min(LONGEST)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::manifests::Kind;

    fn key() -> Key {
        (Kind::Service, "shop".into(), "web".into())
    }

    fn seconds(count: u64) -> Duration {
        Duration::from_secs(count)
    }

    #[test]
    fn what_another_undoes_is_written_less_and_less_often() {
        let (mut attempts, mut now) = (Attempts::default(), Instant::now());
        let mut waits = Vec::new();
        for there in 0..7 {
            match attempts.differs(&key(), 1, there, now) {
                Verdict::Write => waits.push(0),
                Verdict::At(at) => {
                    waits.push((at - now).as_secs());
                    now = at;
                    assert_eq!(attempts.differs(&key(), 1, there, now), Verdict::Write);
                }
                Verdict::Leave => panic!("there is something else"),
            }
            attempts.written(&key());
            attempts.settled(&key(), now);
        }
        assert_eq!(waits, [0, 1, 4, 16, 64, 256, 600]);
        assert_eq!(attempts.contended(), 1);
        // What stood for long is written again soon.
        now += CALM + seconds(1);
        assert_eq!(attempts.differs(&key(), 1, 99, now), Verdict::At(now + FIRST));
        assert_eq!(attempts.contended(), 0);
        // And what is newly wanted as well, but for the wait that began.
        assert_eq!(attempts.differs(&key(), 2, 99, now + FIRST), Verdict::Write);
    }

    #[test]
    fn what_changes_nothing_is_not_written_again() {
        let (mut attempts, now) = (Attempts::default(), Instant::now());
        assert_eq!(attempts.differs(&key(), 1, 7, now), Verdict::Write);
        attempts.written(&key());
        assert_eq!(attempts.differs(&key(), 1, 7, now), Verdict::Leave);
        assert_eq!(attempts.differs(&key(), 1, 7, now + seconds(9999)), Verdict::Leave);
        assert_eq!(attempts.differs(&key(), 1, 8, now), Verdict::Write);
        attempts.written(&key());
        assert_eq!(attempts.differs(&key(), 2, 8, now), Verdict::Write);
    }

    #[test]
    fn a_failure_is_tried_again_later_and_an_object_that_is_gone_is_not() {
        let (mut attempts, now) = (Attempts::default(), Instant::now());
        attempts.differs(&key(), 1, 7, now);
        assert_eq!(attempts.failed(&key(), now), Some(now + seconds(1)));
        assert_eq!(attempts.differs(&key(), 1, 7, now), Verdict::At(now + seconds(1)));
        assert_eq!(attempts.differs(&key(), 1, 7, now + seconds(1)), Verdict::Write);
        assert_eq!(attempts.failed(&key(), now), Some(now + seconds(4)));
        attempts.forget(&key());
        assert_eq!(attempts.failed(&key(), now), None);
    }
}
