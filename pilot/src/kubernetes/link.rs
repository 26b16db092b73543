//! Whether the API server answers.
//!
//! In: watches that failed. Out: a wait until it answers again, and the gauge `pilot_k8s_connected`. One probe asks for
//! all watches: thirty that ask at once would be the first thing a server that comes back has to endure.

use std::time::Duration;

use kube::Client;
use metrics::gauge;
use tokio::{
    sync::watch,
    time::{sleep, timeout},
};
use tracing::{info, warn};

/// An answer that takes longer is none.
const PATIENCE: Duration = Duration::from_secs(5);

/// What all watches know about the server.
#[derive(Debug)]
pub(super) struct Link(watch::Sender<bool>);

impl Link {
    /// A server of which nothing is known yet.
    pub(super) fn new() -> Self {
        Self(watch::Sender::new(false))
    }

    /// A watch got no answer.
    pub(super) fn lost(&self) {
        self.0.send_if_modified(|connected| {
            let was = std::mem::replace(connected, false);
            if was {
                gauge!("pilot_k8s_connected").set(0.0);
                warn!("the API server does not answer: what it said last is served");
            }
            was
        });
    }

    /// Waits until the server answers.
    pub(super) async fn up(&self) {
        // The sender is in `self`.
        self.0.subscribe().wait_for(|connected| *connected).await.ok();
    }

    /// Asks the server, whenever it was lost, until it answers.
    pub(super) async fn probe(&self, client: Client) {
        gauge!("pilot_k8s_connected").set(0.0);
        let mut delay = Delay::default();
        let mut state = self.0.subscribe();
        loop {
            state.wait_for(|connected| !*connected).await.ok();
            match timeout(PATIENCE, client.apiserver_version()).await {
                // An answer all the same: whoever may not ask for the version is told by a server that is there.
                Ok(Ok(_) | Err(kube::Error::Api(_))) => {
                    delay = Delay::default();
                    gauge!("pilot_k8s_connected").set(1.0);
                    info!("the API server answers");
                    self.0.send_replace(true);
                }
                Ok(Err(error)) => {
                    warn!(%error, "asking the API server");
                    sleep(delay.next()).await;
                }
                Err(_) => sleep(delay.next()).await,
            }
        }
    }
}

/// Waits that grow from 100 ms to 5 s, each shortened by chance, so that not all pilots ask at once.
#[derive(Debug)]
pub(super) struct Delay(Duration);

impl Default for Delay {
    fn default() -> Self {
        Self(Duration::from_millis(100))
    }
}

impl Delay {
    const LONGEST: Duration = Duration::from_secs(5);

    /// How long to wait this time.
    pub(super) fn next(&mut self) -> Duration {
        let wait = self.0;
        self.0 = (wait * 2).min(Self::LONGEST);
        wait.mul_f64(rand::random_range(0.5..1.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_to_five_seconds() {
        let mut delay = Delay::default();
        assert!(delay.next() <= Duration::from_millis(100));
        for _ in 0..10 {
            delay.next();
        }
        let wait = delay.next();
        assert!(wait >= Duration::from_millis(2500) && wait <= Duration::from_secs(5), "{wait:?}");
    }
}
