//! Which endpoints are left alone because connections to them keep failing.
//!
//! In: failures and successes of dials, and the time. Out: who is ejected, until when, who returns. Reads no clock: the
//! owner feeds `handle_*`, sleeps until `poll_timeout`, then calls `handle_timeout`. `now` never goes back.

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::Arc,
    time::{Duration, Instant},
};

/// Failures in a row that eject an endpoint.
const FAILURES: u32 = 3;
/// How long the first time.
const FIRST_PAUSE: Duration = Duration::from_secs(5);
/// Each further time it is doubled, up to this.
const LONGEST_PAUSE: Duration = Duration::from_secs(300);
/// What nobody has tried for this long after its last failure or return is not remembered.
const MEMORY: Duration = Duration::from_secs(600);

/// One address of a workload.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub struct Endpoint {
    /// The workload.
    pub uid: Arc<str>,
    /// What was dialed.
    pub ip: IpAddr,
}

/// A service that an endpoint belongs to.
#[derive(Clone, Debug)]
pub(super) struct Peers {
    pub(super) service: Arc<str>,
    /// How many endpoints it has.
    pub(super) endpoints: usize,
}

/// How an endpoint stands.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Standing {
    /// Failures since the last success.
    pub failures: u32,
    /// How long it is still left alone.
    pub ejected_for: Option<Duration>,
}

/// The endpoints that connections failed to.
#[derive(Debug, Default)]
pub(super) struct Ejections {
    records: HashMap<Endpoint, Record>,
}

#[derive(Debug)]
struct Record {
    failures: u32,
    ejections: u32,
    until: Option<Instant>,
    /// When it failed or returned last.
    last: Instant,
    services: Vec<Arc<str>>,
}

impl Ejections {
    /// How many endpoints are remembered.
    pub(super) fn len(&self) -> usize {
        self.records.len()
    }

    /// A dial failed. Out: for how long the endpoint is left alone, if it is from here on.
    ///
    /// An endpoint is ejected only if others of its services stay: at most half of each.
    pub(super) fn handle_failure(
        &mut self,
        now: Instant,
        endpoint: &Endpoint,
        peers: &[Peers],
    ) -> Option<Duration> {
        let bearable = self.is_bearable(now, endpoint, peers);
        let fresh =
            || Record { failures: 0, ejections: 0, until: None, last: now, services: vec![] };
        let record = self.records.entry(endpoint.clone()).or_insert_with(fresh);
        record.failures = record.failures.saturating_add(1);
        record.last = now;
        // One that has returned is on probation.
        let enough = record.failures >= FAILURES || record.ejections > 0;
        if record.until.is_some() || !enough || !bearable {
            return None;
        }
        let pause = FIRST_PAUSE.saturating_mul(1 << record.ejections.min(16)).min(LONGEST_PAUSE);
        record.ejections = record.ejections.saturating_add(1);
        record.until = Some(now + pause);
        record.services = peers.iter().map(|peers| peers.service.clone()).collect();
        Some(pause)
    }

    /// A dial succeeded: everything is forgiven. Out: whether it was ejected.
    pub(super) fn handle_success(&mut self, now: Instant, endpoint: &Endpoint) -> bool {
        let record = self.records.remove(endpoint);
        record.is_some_and(|record| record.is_ejected(now))
    }

    /// The next moment this machine must be woken.
    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        let wake = |record: &Record| record.until.unwrap_or(record.last + MEMORY);
        self.records.values().map(wake).min()
    }

    /// Out: whose time is over.
    pub(super) fn handle_timeout(&mut self, now: Instant) -> Vec<Endpoint> {
        let mut returned = Vec::new();
        for (endpoint, record) in &mut self.records {
            if record.until.is_some_and(|until| until <= now) {
                record.until = None;
                record.last = now;
                returned.push(endpoint.clone());
            }
        }
        returned
    }

    /// Forgets endpoints that are no more, and old failures. Out: those of them that were ejected.
    pub(super) fn retain(
        &mut self,
        now: Instant,
        exists: impl Fn(&Endpoint) -> bool,
    ) -> Vec<Endpoint> {
        let is_old = |record: &Record| record.until.is_none() && record.last + MEMORY <= now;
        self.records
            .extract_if(|endpoint, record| !exists(endpoint) || is_old(record))
            .filter(|(_, record)| record.until.is_some())
            .map(|(endpoint, _)| endpoint)
            .collect()
    }

    /// Whether an endpoint is to be left alone.
    pub(super) fn is_ejected(&self, now: Instant, uid: &str, ip: IpAddr) -> bool {
        let of = |(endpoint, record): (&Endpoint, &Record)| {
            *endpoint.uid == *uid && endpoint.ip == ip && record.is_ejected(now)
        };
        self.records.iter().any(of)
    }

    /// How each remembered endpoint stands, in the order of their uids.
    pub(super) fn standings(&self, now: Instant) -> Vec<(Endpoint, Standing)> {
        let standing = |record: &Record| Standing {
            failures: record.failures,
            ejected_for: record.until.map(|until| until.saturating_duration_since(now)),
        };
        let records = self.records.iter();
        let mut all: Vec<_> =
            records.map(|(endpoint, record)| (endpoint.clone(), standing(record))).collect();
        all.sort_by(|(a, _), (b, _)| (&a.uid, a.ip).cmp(&(&b.uid, b.ip)));
        all
    }

    fn is_bearable(&self, now: Instant, endpoint: &Endpoint, peers: &[Peers]) -> bool {
        let several = || peers.iter().filter(|peers| peers.endpoints > 1);
        let leaves_half = |peers: &Peers| {
            let others = self.records.iter().filter(|(held, record)| {
                *held != endpoint
                    && record.is_ejected(now)
                    && record.services.contains(&peers.service)
            });
            (others.count() + 1) * 2 <= peers.endpoints
        };
        several().next().is_some() && several().all(leaves_half)
    }
}

impl Record {
    fn is_ejected(&self, now: Instant) -> bool {
        self.until.is_some_and(|until| until > now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn endpoint(n: u8) -> Endpoint {
        Endpoint { uid: format!("e{n}").into(), ip: [10, 0, 0, n].into() }
    }

    fn of(endpoints: usize) -> [Peers; 1] {
        [Peers { service: "shop/s".into(), endpoints }]
    }

    fn fail(ejections: &mut Ejections, now: Instant, n: u8, times: u32) -> Option<Duration> {
        (0..times).filter_map(|_| ejections.handle_failure(now, &endpoint(n), &of(4))).last()
    }

    fn is_ejected(ejections: &Ejections, now: Instant, n: u8) -> bool {
        ejections.is_ejected(now, &endpoint(n).uid, endpoint(n).ip)
    }

    #[test]
    fn three_failures_in_a_row_eject() {
        let (mut ejections, now) = (Ejections::default(), Instant::now());
        assert_eq!(fail(&mut ejections, now, 1, 2), None);
        ejections.handle_success(now, &endpoint(1));
        assert_eq!(fail(&mut ejections, now, 1, 2), None);
        assert_eq!(fail(&mut ejections, now, 1, 1), Some(FIRST_PAUSE));
        assert!(is_ejected(&ejections, now, 1) && !is_ejected(&ejections, now, 2));
    }

    #[test]
    fn another_address_of_the_workload_is_another_endpoint() {
        let (mut ejections, now) = (Ejections::default(), Instant::now());
        fail(&mut ejections, now, 1, 3);
        assert!(!ejections.is_ejected(now, "e1", [10, 0, 0, 9].into()));
    }

    #[test]
    fn one_that_fails_after_its_return_is_ejected_at_once_and_for_twice_as_long() {
        let (mut ejections, mut now) = (Ejections::default(), Instant::now());
        let mut pause = fail(&mut ejections, now, 1, 3).unwrap();
        let mut pauses = vec![pause.as_secs()];
        for _ in 0..7 {
            now = ejections.poll_timeout().unwrap();
            assert!(!is_ejected(&ejections, now, 1));
            assert_eq!(ejections.handle_timeout(now), [endpoint(1)]);
            pause = fail(&mut ejections, now, 1, 1).unwrap();
            pauses.push(pause.as_secs());
        }
        assert_eq!(pauses, [5, 10, 20, 40, 80, 160, 300, 300]);
    }

    #[test]
    fn a_success_resets_the_pause_too() {
        let (mut ejections, now) = (Ejections::default(), Instant::now());
        fail(&mut ejections, now, 1, 3);
        let later = now + FIRST_PAUSE;
        ejections.handle_timeout(later);
        assert!(!ejections.handle_success(later, &endpoint(1)));
        assert_eq!(ejections.len(), 0);
        assert_eq!(fail(&mut ejections, later, 1, 2), None);
    }

    #[test]
    fn at_most_half_of_a_service_is_ejected() {
        let (mut ejections, now) = (Ejections::default(), Instant::now());
        let ejected = [1, 2, 3, 4].map(|n| fail(&mut ejections, now, n, 5).is_some());
        assert_eq!(ejected, [true, true, false, false]);
        // As soon as one returns there is room.
        ejections.handle_success(now, &endpoint(1));
        assert!(fail(&mut ejections, now, 3, 1).is_some());
    }

    #[test]
    fn the_only_endpoint_of_a_service_is_never_ejected() {
        let (mut ejections, now) = (Ejections::default(), Instant::now());
        for peers in [&of(1)[..], &[]] {
            for _ in 0..10 {
                assert_eq!(ejections.handle_failure(now, &endpoint(1), peers), None);
            }
        }
    }

    #[test]
    fn what_is_gone_or_long_ago_is_forgotten() {
        let (mut ejections, now) = (Ejections::default(), Instant::now());
        fail(&mut ejections, now, 1, 3);
        fail(&mut ejections, now, 2, 1);
        assert_eq!(ejections.retain(now + SECOND, |held| *held != endpoint(1)), [endpoint(1)]);
        assert_eq!(ejections.len(), 1);
        assert_eq!(ejections.poll_timeout(), Some(now + MEMORY));
        assert!(ejections.retain(now + MEMORY, |_| true).is_empty());
        assert_eq!(ejections.len(), 0);
    }
}
