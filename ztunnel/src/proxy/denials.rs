//! Refusals by policy as events: one line with both identities, the policy, its rule and the reason.
//!
//! In: who was refused and why, and the time. Out: lines with target `aquifer::denied`, at most one in [`QUIET`] for each
//! policy and source; the next one says how many were left out. Reads no clock.

use std::{
    cell::RefCell,
    collections::HashMap,
    net::IpAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use mesh::{
    identity::Spiffe,
    policy::Denied,
    store::{Snapshot, Workload},
    telemetry::Reason,
};

use super::{Pod, live::Subject};

/// For how long the refusals of one source by one policy are counted and not told, after one was told.
const QUIET: Duration = Duration::from_secs(10);
/// Policies and sources that are remembered by each thread. When there are more, those that are quiet are forgotten, and if
/// none is, all.
const REMEMBERED: usize = 1024;

/// What one thread has told.
#[derive(Default)]
pub(super) struct Denials(RefCell<Told>);

/// What was told, and what was left out since.
#[derive(Default)]
struct Told(HashMap<(Option<Arc<str>>, Source), Last>);

/// Who is refused: by identity, or without one by address.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
enum Source {
    Identity(Spiffe),
    Address(IpAddr),
}

struct Last {
    at: Instant,
    suppressed: u64,
}

impl Denials {
    /// Tells that policy refused a connection to `pod`, or ended it.
    pub(super) fn report(
        &self,
        snapshot: &Snapshot,
        pod: &Pod,
        subject: &Subject,
        denied: &Denied,
        reason: Reason,
        now: Instant,
    ) {
        let source = match &subject.peer {
            Some(peer) => Source::Identity(peer.clone()),
            None => Source::Address(subject.source.ip()),
        };
        let policy = denied.policy();
        let Some(suppressed) = self.0.borrow_mut().tell((policy.cloned(), source), now) else {
            return;
        };
        let record = snapshot.workload_of(&pod.namespace, &pod.name, &pod.service_account);
        let identity = record.and_then(|workload| Workload::identity(workload));
        tracing::info!(
            target: "aquifer::denied",
            {
                reason = reason.as_str(),
                policy = policy.map(|policy| &**policy),
                rule = denied.rule(),
                src.identity = subject.peer.as_ref().map(Spiffe::as_str),
                src.addr = %subject.source,
                dst.identity = identity.map(Spiffe::as_str),
                dst.addr = %subject.destination,
                dst.workload = pod.name,
                dst.namespace = pod.namespace,
                suppressed,
            },
            "{denied}"
        );
    }
}

impl Told {
    /// Whether a refusal is to be told, and how many were left out before it.
    fn tell(&mut self, of: (Option<Arc<str>>, Source), now: Instant) -> Option<u64> {
        if let Some(last) = self.0.get_mut(&of) {
            if now < last.at + QUIET {
                last.suppressed += 1;
                return None;
            }
            last.at = now;
            return Some(std::mem::take(&mut last.suppressed));
        }
        if self.0.len() >= REMEMBERED {
            self.0.retain(|_, last| now < last.at + QUIET);
            if self.0.len() >= REMEMBERED {
                self.0.clear();
            }
        }
        self.0.insert(of, Last { at: now, suppressed: 0 });
        Some(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(policy: &str, host: u8) -> (Option<Arc<str>>, Source) {
        (Some(policy.into()), Source::Address(IpAddr::from([10, 0, 0, host])))
    }

    #[test]
    fn of_one_source_and_policy_one_refusal_is_told_and_the_others_are_counted() {
        let (mut told, start) = (Told::default(), Instant::now());
        assert_eq!(told.tell(of("shop/a", 1), start), Some(0));
        assert_eq!(told.tell(of("shop/a", 1), start), None);
        assert_eq!(told.tell(of("shop/a", 1), start + QUIET / 2), None);
        assert_eq!(told.tell(of("shop/a", 2), start), Some(0), "another source");
        assert_eq!(told.tell(of("shop/b", 1), start), Some(0), "another policy");
        assert_eq!(told.tell(of("shop/a", 1), start + QUIET), Some(2));
        assert_eq!(told.tell(of("shop/a", 1), start + QUIET * 2), Some(0));
    }

    #[test]
    fn a_flood_of_sources_is_forgotten_and_not_kept() {
        let (mut told, start) = (Told::default(), Instant::now());
        for index in 0..REMEMBERED * 3 {
            told.tell((Some(format!("shop/{index}").into()), of("", 1).1), start);
            assert!(told.0.len() <= REMEMBERED);
        }
    }
}
