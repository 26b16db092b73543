//! How much of what costs us and brings nobody anything is borne from one peer.
//!
//! In: what the peer did, and the time. Out: whether it does too much of it. It reads no clock and closes nothing. Memory
//! is bounded by `h2`, which answers one such frame before it reads the next; this bounds the work.

use std::{
    fmt,
    time::{Duration, Instant},
};

/// What a peer may do only so often.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Nuisance {
    /// SETTINGS: each one is applied to all streams and acknowledged.
    Settings,
    /// PING: each one is answered.
    Pings,
    /// PRIORITY and frames of unknown kinds: each one is read and ignored.
    OtherFrames,
    /// Requests that are taken back at once (CVE-2023-44487): each one is judged, and the application is dialed for it.
    AbandonedRequests,
}

/// A request that is taken back sooner was not meant: no application can have been waited for. One that is taken back
/// later may be any client's that has lost its patience, and then the application is at fault.
const MEANT: Duration = Duration::from_millis(10);

/// What one peer has left of each.
#[derive(Debug)]
pub(super) struct Patience {
    settings: Allowance,
    pings: Allowance,
    other_frames: Allowance,
    abandoned_requests: Allowance,
    /// Requests that are taken back later. It costs the peer none of what is open.
    given_up: Allowance,
}

/// A number that is used up by ones and comes back with time.
#[derive(Debug)]
struct Allowance {
    most: u32,
    /// After this long one more is allowed.
    each: Duration,
    left: u32,
    /// When `left` was right.
    at: Instant,
}

impl Patience {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            // Proxies send one at the start, and seldom another.
            settings: Allowance::new(now, 100, Duration::from_millis(100)),
            // Libraries that measure the path send one in each round trip while data moves.
            pings: Allowance::new(now, 10_000, Duration::from_millis(1)),
            other_frames: Allowance::new(now, 10_000, Duration::from_millis(1)),
            // More than all streams of a tunnel, whose applications may all give up at once.
            abandoned_requests: Allowance::new(now, 500, Duration::from_millis(10)),
            // Five times the streams of a tunnel. What comes after costs what short connections cost.
            given_up: Allowance::new(now, 1000, Duration::from_millis(2)),
        }
    }

    /// Whether this one is still borne.
    pub(super) fn bears(&mut self, nuisance: Nuisance, now: Instant) -> bool {
        let allowance = match nuisance {
            Nuisance::Settings => &mut self.settings,
            Nuisance::Pings => &mut self.pings,
            Nuisance::OtherFrames => &mut self.other_frames,
            Nuisance::AbandonedRequests => &mut self.abandoned_requests,
        };
        allowance.take(now)
    }

    /// Takes note of a request that was taken back unanswered `after` this time, and tells whether it is still borne.
    pub(super) fn bears_abandoned(&mut self, after: Duration, now: Instant) -> bool {
        if after < MEANT {
            return self.bears(Nuisance::AbandonedRequests, now);
        }
        self.given_up.take(now);
        true
    }

    /// Whether the peer may make another request, for all that it has given up.
    pub(super) fn takes_requests(&mut self, now: Instant) -> bool {
        self.given_up.refill(now);
        self.given_up.left > 0
    }
}

impl Allowance {
    fn new(now: Instant, most: u32, each: Duration) -> Self {
        Self { most, each, left: most, at: now }
    }

    fn take(&mut self, now: Instant) -> bool {
        self.refill(now);
        let is_left = self.left > 0;
        self.left = self.left.saturating_sub(1);
        is_left
    }

    fn refill(&mut self, now: Instant) {
        let passed = now.saturating_duration_since(self.at);
        let back = u32::try_from(passed.as_nanos() / self.each.as_nanos()).unwrap_or(u32::MAX);
        if back >= self.most - self.left {
            (self.left, self.at) = (self.most, now);
        } else {
            // What is less than one stays for the next time.
            self.at += self.each * back;
            self.left += back;
        }
    }
}

impl fmt::Display for Nuisance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Settings => "SETTINGS frames",
            Self::Pings => "PING frames",
            Self::OtherFrames => "frames that say nothing",
            Self::AbandonedRequests => "requests taken back at once",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: [(Nuisance, u32, u64); 4] = [
        (Nuisance::Settings, 100, 10),
        (Nuisance::Pings, 10_000, 1000),
        (Nuisance::OtherFrames, 10_000, 1000),
        (Nuisance::AbandonedRequests, 500, 100),
    ];

    /// How many of it are borne in a row.
    fn borne(patience: &mut Patience, nuisance: Nuisance, now: Instant) -> u32 {
        (0..20_000).take_while(|_| patience.bears(nuisance, now)).count() as u32
    }

    #[test]
    fn a_burst_is_borne_and_then_as_many_as_time_brings() {
        for (nuisance, burst, per_second) in ALL {
            let mut now = Instant::now();
            let mut patience = Patience::new(now);
            assert_eq!(borne(&mut patience, nuisance, now), burst, "{nuisance}");
            for _ in 0..3 {
                now += Duration::from_secs(1);
                let more = borne(&mut patience, nuisance, now);
                assert_eq!(u64::from(more), per_second.min(burst.into()), "{nuisance}");
            }
            now += Duration::from_secs(100_000_000);
            assert_eq!(borne(&mut patience, nuisance, now), burst, "{nuisance}");
        }
    }

    #[test]
    fn what_comes_slowly_is_borne_for_ever() {
        for (nuisance, _, per_second) in ALL {
            let mut now = Instant::now();
            let mut patience = Patience::new(now);
            for _ in 0..50_000 {
                now += Duration::from_secs(1) / u32::try_from(per_second).unwrap();
                assert!(patience.bears(nuisance, now), "{nuisance}");
            }
        }
    }

    #[test]
    fn only_requests_that_are_taken_back_at_once_are_not_borne() {
        for (after, most, takes_requests) in
            [(0, 500, true), (9, 500, true), (10, 20_000, false), (500, 20_000, false)]
        {
            let now = Instant::now();
            let mut patience = Patience::new(now);
            let after = Duration::from_millis(after);
            let borne = (0..20_000).take_while(|_| patience.bears_abandoned(after, now)).count();
            assert_eq!((borne, patience.takes_requests(now)), (most, takes_requests), "{after:?}");
        }
    }

    #[test]
    fn who_has_given_up_too_much_may_ask_again_with_time() {
        let mut now = Instant::now();
        let mut patience = Patience::new(now);
        // What an application that hangs costs 100 clients who wait for half a second each.
        for _ in 0..60 * 200 {
            now += Duration::from_millis(5);
            assert!(patience.bears_abandoned(Duration::from_millis(500), now));
            assert!(patience.takes_requests(now));
        }
        now += Duration::from_secs(1);
        let left = (0..2000)
            .take_while(|_| {
                patience.bears_abandoned(MEANT, now);
                patience.takes_requests(now)
            })
            .count();
        assert_eq!(left, 999);
        now += Duration::from_millis(1);
        assert!(!patience.takes_requests(now));
        now += Duration::from_millis(1);
        assert!(patience.takes_requests(now));
    }

    #[test]
    fn parts_of_the_time_for_one_add_up() {
        let mut now = Instant::now();
        let mut patience = Patience::new(now);
        assert_eq!(borne(&mut patience, Nuisance::Settings, now), 100);
        let mut more = 0;
        for _ in 0..20 {
            now += Duration::from_millis(50);
            more += u32::from(patience.bears(Nuisance::Settings, now));
        }
        assert_eq!(more, 10);
    }
}
