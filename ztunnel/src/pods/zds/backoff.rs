//! When to connect to the node agent again.
//!
//! In: how far the last connection came. Out: the pause before the next. Reads no clock.

use std::time::Duration;

/// The agent's socket is not there, or nobody accepts.
const FIRST_AFTER_CONNECT: Duration = Duration::from_millis(20);
/// The agent accepted and did not take the hello.
const FIRST_AFTER_HELLO: Duration = Duration::from_millis(5);
const LAST: Duration = Duration::from_secs(15);

/// How far a connection came before it ended.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Reached {
    /// There was none.
    Nothing,
    /// The socket was connected.
    Connected,
    /// The hello was sent, and the snapshot not completed: an agent may break the protocol each time.
    Greeted,
    /// The agent told all its pods.
    Snapshot,
}

/// The pauses between connections, with those of Istio's ztunnel.
#[derive(Debug)]
pub(super) struct Backoff {
    connect: Duration,
    hello: Duration,
}

impl Backoff {
    pub(super) fn new() -> Self {
        Self { connect: FIRST_AFTER_CONNECT, hello: FIRST_AFTER_HELLO }
    }

    /// The pause after a connection that came so far.
    pub(super) fn after(&mut self, reached: Reached) -> Duration {
        let pause = match reached {
            Reached::Snapshot => {
                *self = Self::new();
                &mut self.connect
            }
            Reached::Nothing | Reached::Greeted => &mut self.connect,
            Reached::Connected => {
                self.connect = FIRST_AFTER_CONNECT;
                &mut self.hello
            }
        };
        let now = *pause;
        *pause = (now * 2).min(LAST);
        now
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pauses(reached: &[Reached]) -> Vec<u128> {
        let mut backoff = Backoff::new();
        reached.iter().map(|reached| backoff.after(*reached).as_millis()).collect()
    }

    #[test]
    fn a_failed_connect_waits_from_20_milliseconds_up_to_15_seconds() {
        let found = pauses(&[Reached::Nothing; 12]);
        assert_eq!(found[..4], [20, 40, 80, 160]);
        assert_eq!(found[10..], [15_000, 15_000]);
    }

    #[test]
    fn a_failed_hello_waits_from_5_milliseconds_up_to_15_seconds() {
        let found = pauses(&[Reached::Connected; 14]);
        assert_eq!(found[..4], [5, 10, 20, 40]);
        assert_eq!(found[13], 15_000);
    }

    #[test]
    fn only_a_whole_snapshot_ends_the_backoff() {
        use Reached::{Greeted, Nothing, Snapshot};
        assert_eq!(pauses(&[Nothing, Greeted, Greeted, Snapshot, Nothing]), [20, 40, 80, 20, 40]);
    }
}
