//! How long to wait before the next attempt to reach the server.
//!
//! In: how the last attempt went, and a random number. Out: a delay. Reads no clock.

use std::time::Duration;

const FIRST: Duration = Duration::from_millis(10);
const LONGEST: Duration = Duration::from_secs(15);

/// Doubles from 10 ms to 15 s while attempts bring nothing.
#[derive(Debug, Default)]
pub(super) struct Backoff {
    fruitless: u32,
}

/// Whether the last stream was worth opening.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Attempt {
    /// The server sent at least one response.
    Served,
    /// No stream, or one without a response.
    Fruitless,
}

impl Backoff {
    /// The delay after `attempt`: `fraction`, from 0 to 1, places it in the upper half of its range, so that nodes
    /// cut off together do not come back together.
    pub(super) fn after(&mut self, attempt: Attempt, fraction: f64) -> Duration {
        self.fruitless = match attempt {
            Attempt::Served => 0,
            Attempt::Fruitless => self.fruitless.saturating_add(1),
        };
        let doublings = self.fruitless.saturating_sub(1).min(20);
        let range = (FIRST * 2u32.pow(doublings)).min(LONGEST);
        range.mul_f64(0.5 + fraction.clamp(0.0, 1.0) / 2.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_double_up_to_fifteen_seconds() {
        let mut backoff = Backoff::default();
        let delays: Vec<u128> =
            (0..13).map(|_| backoff.after(Attempt::Fruitless, 1.0).as_millis()).collect();
        let doubled = [10, 20, 40, 80, 160, 320, 640, 1280, 2560, 5120, 10_240, 15_000, 15_000];
        assert_eq!(delays, doubled);
    }

    #[test]
    fn a_stream_that_served_starts_over() {
        let mut backoff = Backoff::default();
        for _ in 0..5 {
            backoff.after(Attempt::Fruitless, 1.0);
        }
        assert_eq!(backoff.after(Attempt::Served, 1.0), FIRST);
        assert_eq!(backoff.after(Attempt::Fruitless, 1.0), FIRST);
    }

    #[test]
    fn jitter_takes_away_up_to_half() {
        assert_eq!(Backoff::default().after(Attempt::Fruitless, 0.0), FIRST / 2);
    }

    #[test]
    fn a_million_failures_do_not_overflow() {
        let mut backoff = Backoff { fruitless: u32::MAX - 1 };
        assert_eq!(backoff.after(Attempt::Fruitless, 1.0), LONGEST);
        assert_eq!(backoff.after(Attempt::Fruitless, 1.0), LONGEST);
    }
}
