//! When to ask the certificate authority for one identity's certificate.
//!
//! In: what happened and when. Out: the state, and the next moment to be woken. Reads no clock, opens no socket and
//! throws no dice: times and [`Jitter`] come from the owner.

use std::time::{Duration, Instant};

/// The first wait after a failure.
const BACKOFF_START: Duration = Duration::from_secs(1);
/// The longest wait after a failure. A certificate is in use for half a day while its renewal fails, so this is short.
const BACKOFF_LIMIT: Duration = Duration::from_secs(150);
/// How far a wait after a failure is spread, to both sides: nodes that failed together must not return together.
const BACKOFF_SPREAD: f64 = 0.2;
/// How far the half of a lifetime is spread, to both sides: identities that were issued together are not renewed
/// together.
const RENEWAL_SPREAD: f64 = 0.1;
/// Certificates that come nearly expired, again and again, do not make a busy loop.
const RENEWAL_MINIMUM: Duration = Duration::from_secs(1);

/// Where in a spread to land: from -1, the earliest, to 1, the latest.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Jitter(f64);

impl Jitter {
    /// In the middle.
    pub const NONE: Self = Self(0.0);

    /// `position` outside of -1 to 1 is brought to the nearer end.
    pub fn new(position: f64) -> Self {
        Self(if position.is_nan() { 0.0 } else { position.clamp(-1.0, 1.0) })
    }

    fn spread(self, middle: Duration, spread: f64) -> Duration {
        middle.mul_f64(1.0 + spread * self.0)
    }
}

/// When to ask for a certificate. The owner feeds `handle_*`, sends a request when [`Renewal::Due`], sleeps until
/// [`Renewal::poll_timeout`], then calls [`Renewal::handle_timeout`]. `now` never goes back.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Renewal {
    /// A request is to be sent.
    Due {
        /// Attempts since the last certificate.
        failures: u32,
    },
    /// A request is with the certificate authority.
    Requested {
        /// Attempts since the last certificate, without this one.
        failures: u32,
    },
    /// A certificate is in use; about half of its lifetime ends at `renew_at`.
    Held {
        /// When to renew.
        renew_at: Instant,
    },
    /// The attempt failed; the back-off ends at `retry_at`.
    Waiting {
        /// Attempts since the last certificate.
        failures: u32,
        /// When to try again.
        retry_at: Instant,
    },
}

impl Renewal {
    /// Nothing is there yet, so a request is due.
    pub fn new() -> Self {
        Self::Due { failures: 0 }
    }

    /// The request that was due is on its way.
    pub fn handle_sent(&mut self) {
        *self = Self::Requested { failures: self.failures() };
    }

    /// A certificate of `lifetime` came, `age` of which is over.
    ///
    /// One that comes past its half (clocks differ, or the authority hands out old ones) is renewed at the half of
    /// what is left.
    pub fn handle_issued(
        &mut self,
        now: Instant,
        age: Duration,
        lifetime: Duration,
        jitter: Jitter,
    ) {
        let half = jitter.spread(lifetime / 2, RENEWAL_SPREAD);
        let renew_in = half.checked_sub(age).unwrap_or_else(|| lifetime.saturating_sub(age) / 2);
        *self = Self::Held { renew_at: now + renew_in.max(RENEWAL_MINIMUM) };
    }

    /// The attempt failed. `left` is what remains of the certificate in use: if it ends before the back-off does,
    /// the next attempt is at its end.
    pub fn handle_failed(&mut self, now: Instant, left: Option<Duration>, jitter: Jitter) {
        let failures = self.failures().saturating_add(1);
        let doubled =
            BACKOFF_START.saturating_mul(1_u32.checked_shl(failures - 1).unwrap_or(u32::MAX));
        let backoff = jitter.spread(doubled.min(BACKOFF_LIMIT), BACKOFF_SPREAD).min(BACKOFF_LIMIT);
        let wait = match left {
            Some(left) if left > Duration::ZERO => backoff.min(left),
            Some(_) | None => backoff,
        };
        *self = Self::Waiting { failures, retry_at: now + wait };
    }

    /// The certificate in use ended before its renewal was due: the wall clock was set, or the machine slept.
    pub fn handle_expired(&mut self) {
        if matches!(self, Self::Held { .. }) {
            *self = Self::new();
        }
    }

    /// The certificate in use is to be replaced at `at`, if that is sooner than its renewal.
    pub fn handle_outdated(&mut self, at: Instant) {
        if let Self::Held { renew_at } = self {
            *renew_at = at.min(*renew_at);
        }
    }

    /// The next moment this machine must be woken, and why (for the log).
    pub fn poll_timeout(&self) -> Option<(Instant, &'static str)> {
        match *self {
            Self::Due { .. } | Self::Requested { .. } => None,
            Self::Held { renew_at } => Some((renew_at, "half of lifetime")),
            Self::Waiting { retry_at, .. } => Some((retry_at, "retry")),
        }
    }

    /// Makes the request due if its moment has come.
    pub fn handle_timeout(&mut self, now: Instant) {
        match self.poll_timeout() {
            Some((at, _)) if at <= now => *self = Self::Due { failures: self.failures() },
            Some(_) | None => {}
        }
    }

    fn failures(&self) -> u32 {
        match *self {
            Self::Due { failures }
            | Self::Requested { failures }
            | Self::Waiting { failures, .. } => failures,
            Self::Held { .. } => 0,
        }
    }
}

impl Default for Renewal {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: Duration = Duration::from_secs(3600);

    /// Plays a script and writes down each state with its distance from the start, in seconds.
    ///
    /// Events: `sent`, `issued AGE LIFETIME JITTER`, `failed LEFT JITTER` (`-` for no certificate), `expired`,
    /// `at SECOND` (time passes, then the timeout is handled).
    fn check(script: &str, expected: &[&str]) {
        let start = Instant::now();
        let (mut now, mut machine, mut states) = (start, Renewal::new(), Vec::new());
        for event in script.split(';') {
            let words: Vec<&str> = event.split_whitespace().collect();
            let number = |i: usize| words[i].parse::<f64>().unwrap();
            let seconds = |i: usize| Duration::from_secs_f64(number(i));
            match words[0] {
                "sent" => machine.handle_sent(),
                "issued" => {
                    machine.handle_issued(now, seconds(1), seconds(2), Jitter::new(number(3)));
                }
                "failed" => {
                    let left = (words[1] != "-").then(|| seconds(1));
                    machine.handle_failed(now, left, Jitter::new(number(2)));
                }
                "expired" => machine.handle_expired(),
                "at" => {
                    now = start + seconds(1);
                    machine.handle_timeout(now);
                }
                other => panic!("unknown event {other}"),
            }
            let at = |moment: Instant| (moment - start).as_secs_f64();
            states.push(match machine {
                Renewal::Due { failures } => format!("due after {failures}"),
                Renewal::Requested { failures } => format!("requested after {failures}"),
                Renewal::Held { renew_at } => format!("held until {}", at(renew_at)),
                Renewal::Waiting { failures, retry_at } => {
                    format!("waiting after {failures} until {}", at(retry_at))
                }
            });
        }
        assert_eq!(states, expected, "{script}");
    }

    #[test]
    fn a_certificate_is_renewed_at_half_of_its_lifetime() {
        check(
            "sent; issued 0 86400 0; at 43199; at 43200; sent",
            &[
                "requested after 0",
                "held until 43200",
                "held until 43200",
                "due after 0",
                "requested after 0",
            ],
        );
    }

    #[test]
    fn the_half_counts_from_the_beginning_of_validity() {
        check("sent; issued 600 86400 0", &["requested after 0", "held until 42600"]);
    }

    #[test]
    fn renewals_are_spread_by_a_tenth() {
        check("sent; issued 0 1000 -1", &["requested after 0", "held until 450"]);
        check("sent; issued 0 1000 1", &["requested after 0", "held until 550"]);
        check("sent; issued 0 1000 7", &["requested after 0", "held until 550"]);
    }

    #[test]
    fn a_certificate_past_its_half_is_renewed_at_half_of_the_rest() {
        check("sent; issued 800 1000 0", &["requested after 0", "held until 100"]);
        check("sent; issued 1000 1000 0", &["requested after 0", "held until 1"]);
        check("sent; issued 2000 1000 0", &["requested after 0", "held until 1"]);
    }

    #[test]
    fn failures_double_the_wait_up_to_its_limit() {
        let (mut machine, mut now) = (Renewal::new(), Instant::now());
        let waits: Vec<u64> = (0..10)
            .map(|_| {
                machine.handle_sent();
                machine.handle_failed(now, None, Jitter::NONE);
                let (at, reason) = machine.poll_timeout().unwrap();
                assert_eq!(reason, "retry");
                let wait = at - now;
                now = at;
                machine.handle_timeout(now);
                wait.as_secs()
            })
            .collect();
        assert_eq!(waits, [1, 2, 4, 8, 16, 32, 64, 128, 150, 150]);
    }

    #[test]
    fn retries_are_spread_by_a_fifth_within_the_limit() {
        check("sent; failed - -1", &["requested after 0", "waiting after 1 until 0.8"]);
        check("sent; failed - 1", &["requested after 0", "waiting after 1 until 1.2"]);
        let mut machine = Renewal::Requested { failures: u32::MAX };
        let now = Instant::now();
        machine.handle_failed(now, None, Jitter::new(1.0));
        assert_eq!(machine, Renewal::Waiting { failures: u32::MAX, retry_at: now + BACKOFF_LIMIT });
    }

    #[test]
    fn the_last_attempt_for_a_held_certificate_is_at_its_end() {
        let now = Instant::now();
        let mut machine = Renewal::Requested { failures: 9 };
        machine.handle_failed(now, Some(Duration::from_secs(40)), Jitter::NONE);
        assert_eq!(machine.poll_timeout(), Some((now + Duration::from_secs(40), "retry")));
    }

    #[test]
    fn a_certificate_that_has_ended_does_not_shorten_the_wait() {
        check("sent; failed 0 0", &["requested after 0", "waiting after 1 until 1"]);
    }

    #[test]
    fn success_ends_the_back_off() {
        check(
            "sent; failed - 0; at 1; sent; issued 0 100 0; at 51; sent; failed 49 0",
            &[
                "requested after 0",
                "waiting after 1 until 1",
                "due after 1",
                "requested after 1",
                "held until 51",
                "due after 0",
                "requested after 0",
                "waiting after 1 until 52",
            ],
        );
    }

    #[test]
    fn an_early_end_makes_the_request_due_at_once() {
        check(
            "sent; issued 0 86400 0; expired; expired",
            &["requested after 0", "held until 43200", "due after 0", "due after 0"],
        );
    }

    #[test]
    fn an_early_end_does_not_cut_a_back_off() {
        check(
            "sent; failed - 0; expired",
            &["requested after 0", "waiting after 1 until 1", "waiting after 1 until 1"],
        );
    }

    #[test]
    fn an_outdated_certificate_is_renewed_sooner_and_never_later() {
        let now = Instant::now();
        let mut machine = Renewal::Held { renew_at: now + HOUR };
        machine.handle_outdated(now + HOUR / 2);
        assert_eq!(machine, Renewal::Held { renew_at: now + HOUR / 2 });
        machine.handle_outdated(now + HOUR);
        assert_eq!(machine, Renewal::Held { renew_at: now + HOUR / 2 });
        let mut waiting = Renewal::Waiting { failures: 1, retry_at: now + HOUR };
        waiting.handle_outdated(now);
        assert_eq!(waiting, Renewal::Waiting { failures: 1, retry_at: now + HOUR });
    }

    proptest::proptest! {
        #[test]
        fn a_renewal_comes_before_the_end_of_what_lasts(
            age in 0_u64..100_000, left in 2_u64..100_000, position in -2.0..2.0_f64,
        ) {
            let now = Instant::now();
            let (age, left) = (Duration::from_secs(age), Duration::from_secs(left));
            let mut machine = Renewal::new();
            machine.handle_issued(now, age, age + left, Jitter::new(position));
            let (at, _) = machine.poll_timeout().unwrap();
            proptest::prop_assert!(at > now && at < now + left);
            proptest::prop_assert!(at <= now + left.max(HOUR));
        }
    }
}
