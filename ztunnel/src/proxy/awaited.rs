//! Policies that a pod's record names and that have not arrived: for how long they are waited for.
//!
//! In: what is missing, and the time. Out: until when a connection may wait instead of being refused. A control plane
//! may send the reference before the policy, which then follows at once; one that does not follow denies. Reads no
//! clock.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

/// How long a policy that is missing is waited for, from the moment it was missed.
pub(super) const LIMIT: Duration = Duration::from_secs(2);

/// What one pod's record names in vain, and since when.
#[derive(Debug, Default)]
pub(super) struct Awaited {
    since: BTreeMap<Arc<str>, Instant>,
}

impl Awaited {
    /// Notes what is missing: what was missing before keeps its moment, what is not any more loses it.
    pub(super) fn observe<'a>(
        &mut self,
        missing: impl Iterator<Item = &'a Arc<str>>,
        now: Instant,
    ) {
        let mut former = std::mem::take(&mut self.since);
        for policy in missing {
            let since = former.remove(policy).unwrap_or(now);
            self.since.insert(policy.clone(), since);
        }
    }

    /// Until when a connection may wait: for the first of the missing policies to have had its time. None if one has, or
    /// nothing is missing.
    pub(super) fn until(&self, now: Instant) -> Option<Instant> {
        let until = *self.since.values().min()? + LIMIT;
        (now < until).then_some(until)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn observe(awaited: &mut Awaited, missing: &[&str], now: Instant) {
        let missing: Vec<Arc<str>> = missing.iter().map(|policy| (*policy).into()).collect();
        awaited.observe(missing.iter(), now);
    }

    #[test]
    fn a_missing_policy_is_waited_for_from_the_moment_it_was_missed() {
        let (mut awaited, start) = (Awaited::default(), Instant::now());
        assert_eq!(awaited.until(start), None, "nothing is missing");
        observe(&mut awaited, &["shop/a"], start);
        assert_eq!(awaited.until(start), Some(start + LIMIT));
        let later = start + LIMIT / 2;
        observe(&mut awaited, &["shop/a"], later);
        assert_eq!(awaited.until(later), Some(start + LIMIT), "looking again gives no more time");
        assert_eq!(awaited.until(start + LIMIT), None);
    }

    #[test]
    fn of_several_missing_policies_the_first_to_have_had_its_time_denies() {
        let (mut awaited, start) = (Awaited::default(), Instant::now());
        observe(&mut awaited, &["shop/old"], start);
        let later = start + LIMIT / 2;
        observe(&mut awaited, &["shop/old", "shop/new"], later);
        assert_eq!(awaited.until(later), Some(start + LIMIT));
        observe(&mut awaited, &["shop/new"], later);
        assert_eq!(awaited.until(later), Some(later + LIMIT), "the old one has arrived");
    }

    #[test]
    fn a_policy_that_arrived_and_went_away_is_missed_anew() {
        let (mut awaited, start) = (Awaited::default(), Instant::now());
        observe(&mut awaited, &["shop/a"], start);
        observe(&mut awaited, &[], start + LIMIT);
        let gone = start + LIMIT * 2;
        observe(&mut awaited, &["shop/a"], gone);
        assert_eq!(awaited.until(gone), Some(gone + LIMIT));
    }
}
