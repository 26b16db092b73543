//! How fast each source makes new connections.
//!
//! In: who connects, the rate that holds for it, the time. Out: whether it may. Reads no clock. A source that has not
//! connected for long enough is as one that never did, and is not remembered.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use mesh::store::Rate;

/// Sources that are remembered before those that have their whole burst again are forgotten.
const SWEPT: usize = 1024;

/// The sources that have connected of late.
#[derive(Debug)]
pub(super) struct Rates {
    buckets: HashMap<Box<str>, Bucket>,
    sweep_at: usize,
}

/// A token bucket, kept as the moment at which it is full again.
#[derive(Clone, Copy, Debug)]
struct Bucket {
    full_at: Instant,
}

impl Default for Rates {
    fn default() -> Self {
        Self { buckets: HashMap::new(), sweep_at: SWEPT }
    }
}

impl Rates {
    /// Takes a token, if there is one.
    pub(super) fn take(&mut self, now: Instant, who: &str, rate: Rate) -> bool {
        if let Some(bucket) = self.buckets.get_mut(who) {
            return bucket.take(now, rate);
        }
        if self.buckets.len() >= self.sweep_at {
            self.buckets.retain(|_, bucket| bucket.full_at > now);
            self.sweep_at = (self.buckets.len() * 2).max(SWEPT);
        }
        let mut bucket = Bucket { full_at: now };
        let taken = bucket.take(now, rate);
        self.buckets.insert(who.into(), bucket);
        taken
    }
}

impl Bucket {
    fn take(&mut self, now: Instant, rate: Rate) -> bool {
        let one = Duration::from_secs(1) / rate.per_second.get();
        let whole = one.saturating_mul(rate.burst.get());
        let full_at = self.full_at.max(now) + one;
        // So much is missing as it takes to fill up.
        let fits = full_at.duration_since(now) <= whole;
        if fits {
            self.full_at = full_at;
        }
        fits
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn taken(rates: &mut Rates, now: Instant, who: &str, rate: &str, times: u32) -> usize {
        let rate = rate.parse().unwrap();
        (0..times).filter(|_| rates.take(now, who, rate)).count()
    }

    #[test]
    fn a_burst_is_let_through_and_then_the_rate() {
        let (mut rates, now) = (Rates::default(), Instant::now());
        assert_eq!(taken(&mut rates, now, "a", "10:30", 100), 30);
        assert_eq!(taken(&mut rates, now + Duration::from_millis(100), "a", "10:30", 100), 1);
        assert_eq!(taken(&mut rates, now + Duration::from_millis(600), "a", "10:30", 100), 5);
        assert_eq!(taken(&mut rates, now + Duration::from_secs(60), "a", "10:30", 100), 30);
    }

    #[test]
    fn one_source_does_not_take_anothers_share() {
        let (mut rates, now) = (Rates::default(), Instant::now());
        assert_eq!(taken(&mut rates, now, "a", "1", 5), 1);
        assert_eq!(taken(&mut rates, now, "b", "1", 5), 1);
    }

    #[test]
    fn a_changed_rate_holds_at_once() {
        let (mut rates, now) = (Rates::default(), Instant::now());
        assert_eq!(taken(&mut rates, now, "a", "1:1", 5), 1);
        assert_eq!(taken(&mut rates, now + Duration::from_secs(1), "a", "1000:100", 500), 100);
    }

    #[test]
    fn sources_that_have_their_burst_again_are_forgotten() {
        let (mut rates, now) = (Rates::default(), Instant::now());
        for n in 0..SWEPT {
            taken(&mut rates, now, &n.to_string(), "1", 1);
        }
        taken(&mut rates, now + Duration::from_secs(2), "one more", "1", 1);
        assert_eq!(rates.buckets.len(), 1);
    }
}
