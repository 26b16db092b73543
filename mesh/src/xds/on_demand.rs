//! Asks the control plane for one thing at a time, when somebody needs it.
//!
//! In: keys that connections and DNS queries want. Out: whether the store has them now. A node that subscribes to
//! everything has nothing to ask: then every answer is there at once. What to ask for is decided by [`Lookups`].

mod lookups;

use std::{
    fmt,
    net::IpAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use tokio::{sync::Notify, time::timeout};

pub(super) use self::lookups::Change;
use self::lookups::{Lookups, Want};

/// Whoever wants something waits no longer than this for the control plane.
const WAIT_LIMIT: Duration = Duration::from_secs(5);

/// What the control plane can be asked for.
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub enum Key {
    /// Whatever has an address.
    Address {
        /// The address's network.
        network: Arc<str>,
        /// The address.
        ip: IpAddr,
    },
    /// A service.
    Host {
        /// Its namespace.
        namespace: Arc<str>,
        /// Its full DNS name.
        hostname: Arc<str>,
    },
    /// A workload, by its name in xDS.
    Uid(Arc<str>),
}

impl fmt::Display for Key {
    /// Its name in xDS.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address { network, ip } => write!(f, "{network}/{}", ip.to_canonical()),
            Self::Host { namespace, hostname } => write!(f, "{namespace}/{hostname}"),
            Self::Uid(uid) => f.write_str(uid),
        }
    }
}

/// What came of wanting something.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Lookup {
    /// Whatever there is of it is in the store.
    Answered,
    /// The control plane says that there is no such thing.
    Absent,
    /// The control plane has not answered in time: nothing is known about it.
    Unanswered,
}

/// Where to ask. Clones ask the same control plane.
#[derive(Clone, Debug)]
pub struct OnDemand(Option<Arc<Shared>>);

#[derive(Debug)]
struct Shared {
    /// Held for a few map operations at a time.
    lookups: Mutex<Lookups>,
    /// Told when there is something to ask for.
    asked: Notify,
}

impl OnDemand {
    /// For a node that subscribes to everything: whatever exists is in the store.
    pub fn everything() -> Self {
        Self(None)
    }

    /// For a node that asks for what it needs.
    pub fn asking() -> Self {
        Self(Some(Arc::new(Shared { lookups: Mutex::default(), asked: Notify::new() })))
    }

    /// Whether things have to be asked for.
    pub fn is_asking(&self) -> bool {
        self.0.is_some()
    }

    /// Notes that something is in use, so that it is kept. Whether it was asked for before and its answer holds: then there
    /// is no need to want it again.
    pub fn touch(&self, key: &Key) -> bool {
        match &self.0 {
            None => true,
            Some(shared) => shared.lookups().touch(&key.to_string(), Instant::now()),
        }
    }

    /// Waits until the store has what there is of `key`, for at most five seconds.
    ///
    /// An answer that there is nothing holds for some seconds, and so does a failure to answer.
    /// An asker, which is named by its uid, has a share of what can be asked for: beyond it there is no answer.
    pub async fn want(&self, asker: &Arc<str>, key: &Key) -> Lookup {
        let Some(shared) = &self.0 else { return Lookup::Answered };
        let name = key.to_string();
        let want = shared.lookups().want(asker, &name, Instant::now());
        match want {
            Want::Known(answer) => answer,
            Want::Wait(answer) => {
                shared.asked.notify_one();
                match timeout(WAIT_LIMIT, answer).await {
                    Ok(Ok(answer)) => answer,
                    // Nobody is left to answer, or nobody did in time.
                    Ok(Err(_)) | Err(_) => Lookup::Unanswered,
                }
            }
        }
    }

    /// Waits until there is something to ask for; forever if everything is subscribed.
    pub(super) async fn asked(&self) {
        match &self.0 {
            None => std::future::pending().await,
            Some(shared) => shared.asked.notified().await,
        }
    }

    /// What to ask for on an open stream, and what to give up with the same request.
    pub(super) fn change(&self, now: Instant) -> Option<Change> {
        self.0.as_ref()?.lookups().change(now)
    }

    /// A stream is new: the names that are still to be answered. It is as if they had been asked for on it.
    pub(super) fn pending(&self) -> Vec<String> {
        self.0.as_ref().map(|shared| shared.lookups().pending()).unwrap_or_default()
    }

    /// A response was applied: the names it answers, each with the resources that came for it, and the names of which
    /// there is nothing.
    pub(super) fn answered(&self, names: &[Named], absent: &[String], now: Instant) {
        if let Some(shared) = &self.0 {
            shared.lookups().answered(names, absent, now);
        }
    }
}

/// A resource of a response and the names by which it may have been asked for.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Named {
    /// Its name.
    pub name: Arc<str>,
    /// Its addresses as names.
    pub aliases: Vec<String>,
}

impl Shared {
    fn lookups(&self) -> MutexGuard<'_, Lookups> {
        // Every operation leaves it whole.
        self.lookups.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(ip: &str) -> Key {
        Key::Address { network: "".into(), ip: ip.parse().unwrap() }
    }

    #[test]
    fn keys_are_named_as_istiod_names_them() {
        let host = Key::Host { namespace: "data".into(), hostname: "redis.example".into() };
        let network = Key::Address { network: "n1".into(), ip: "fd00::1".parse().unwrap() };
        let uid = Key::Uid("Kubernetes//Pod/data/redis-1".into());
        let names = [key("10.0.0.1"), key("::ffff:10.0.0.1"), network, host, uid];
        let expected = [
            "/10.0.0.1",
            "/10.0.0.1",
            "n1/fd00::1",
            "data/redis.example",
            "Kubernetes//Pod/data/redis-1",
        ];
        assert_eq!(names.map(|name| name.to_string()), expected);
    }

    #[tokio::test(start_paused = true)]
    async fn without_asking_everything_is_there() {
        let everything = OnDemand::everything();
        assert_eq!(everything.want(&"web".into(), &key("10.0.0.1")).await, Lookup::Answered);
        assert!(everything.touch(&key("10.0.0.1")) && !everything.is_asking());
    }

    #[tokio::test(start_paused = true)]
    async fn every_waiter_for_a_name_is_woken() {
        let asking = OnDemand::asking();
        let (first, second) = (asking.clone(), asking.clone());
        let answer = async {
            asking.asked().await;
            let change = asking.change(Instant::now()).unwrap();
            assert_eq!(change.subscribe, ["/10.0.0.1"]);
            let named = Named { name: "uid".into(), aliases: vec!["/10.0.0.1".into()] };
            asking.answered(&[named], &[], Instant::now());
        };
        let (web, key) = ("web".into(), key("10.0.0.1"));
        let (first, second, ()) =
            tokio::join!(first.want(&web, &key), second.want(&web, &key), answer);
        assert_eq!([first, second], [Lookup::Answered; 2]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_control_plane_that_does_not_answer_is_waited_for_five_seconds() {
        let asking = OnDemand::asking();
        let began = tokio::time::Instant::now();
        assert_eq!(asking.want(&"web".into(), &key("10.0.0.1")).await, Lookup::Unanswered);
        assert_eq!(began.elapsed(), WAIT_LIMIT);
    }
}
