//! When to ask a peer whether it is alive, and when to give it up.
//!
//! In: the time, and whether bytes came. Out: what to do and when to be called again. It reads no clock and sends nothing.
//! Anything that a peer sends shows that it is alive, so a busy tunnel sends no PING.

use std::time::{Duration, Instant};

/// One tunnel's question whether its peer is alive. `now` never goes back.
#[derive(Debug)]
pub(super) struct Keepalive {
    interval: Duration,
    limit: Duration,
    state: State,
}

#[derive(Debug)]
enum State {
    /// If nothing has come by `check_at`, a PING goes out.
    Listening { check_at: Instant },
    /// A PING is out. If nothing has come by `dead_at`, the peer is gone.
    Asked { check_at: Instant, dead_at: Instant },
}

/// What the owner of a [`Keepalive`] does next.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Verdict {
    /// Nothing, until the next timeout.
    Wait,
    /// Send a PING.
    Ping,
    /// Close the tunnel.
    Dead,
}

impl Keepalive {
    pub(super) fn new(now: Instant, interval: Duration, limit: Duration) -> Self {
        Self { interval, limit, state: State::Listening { check_at: now + interval } }
    }

    /// The next moment to call [`Self::handle_timeout`].
    pub(super) fn timeout(&self) -> Instant {
        match self.state {
            State::Listening { check_at } | State::Asked { check_at, .. } => check_at,
        }
    }

    /// Tells that the timeout has passed. `heard` is whether bytes came since the last call.
    pub(super) fn handle_timeout(&mut self, now: Instant, heard: bool) -> Verdict {
        let check_at = now + self.interval;
        match self.state {
            State::Listening { .. } | State::Asked { .. } if heard => {
                self.state = State::Listening { check_at };
                Verdict::Wait
            }
            State::Listening { .. } => {
                let dead_at = now + self.limit;
                self.state = State::Asked { check_at: check_at.min(dead_at), dead_at };
                Verdict::Ping
            }
            State::Asked { dead_at, .. } if now < dead_at => {
                self.state = State::Asked { check_at: check_at.min(dead_at), dead_at };
                Verdict::Wait
            }
            State::Asked { .. } => Verdict::Dead,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const INTERVAL: Duration = Duration::from_secs(10);
    const LIMIT: Duration = Duration::from_secs(25);

    /// `h` is a timeout before which bytes came, `-` one without: what is done, and the seconds between timeouts.
    fn check(heard: &str, expected: &str) {
        let mut now = Instant::now();
        let mut keepalive = Keepalive::new(now, INTERVAL, LIMIT);
        let mut found = Vec::new();
        for heard in heard.chars() {
            let waited = keepalive.timeout() - now;
            now = keepalive.timeout();
            let verdict = keepalive.handle_timeout(now, heard == 'h');
            found.push(format!("{} {verdict:?}", waited.as_secs()));
        }
        assert_eq!(found.join(", "), expected);
    }

    #[test]
    fn a_busy_tunnel_sends_no_ping() {
        check("hhh", "10 Wait, 10 Wait, 10 Wait");
    }

    #[test]
    fn a_quiet_peer_is_asked_and_lives_if_it_answers() {
        check("-h--h", "10 Ping, 10 Wait, 10 Ping, 10 Wait, 10 Wait");
    }

    #[test]
    fn a_peer_that_does_not_answer_is_dead() {
        check("h----", "10 Wait, 10 Ping, 10 Wait, 10 Wait, 5 Dead");
    }
}
