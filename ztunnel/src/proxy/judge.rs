//! Asks policy about inbound connections: about new ones, which may have to wait for a policy to arrive, and about open
//! ones after each change.
//!
//! In: a registered connection, the store, the time. Out: its [`Permit`], or why it is not let in, which is also told.

use std::{rc::Rc, time::Instant};

use mesh::{
    policy::{Denied, Grounds, Permit},
    telemetry::{Failure, Reason},
};
use metrics::counter;
use tokio::sync::oneshot;

use super::{
    awaited,
    live::{Cut, JudgedAgain, NotPermitted, Registered, Subject},
    thread::{DataThread, LocalPod},
};

/// What policy says, unless it refuses.
enum Decided {
    Permitted(Permit),
    /// It may permit until then; if not, this is why it did not.
    Pending {
        refusal: Refusal,
        until: Instant,
    },
}

/// Why a connection is not let in.
enum Refusal {
    Denied(Denied),
    /// Not by a policy.
    Other(Failure),
}

impl From<Refusal> for Failure {
    fn from(refusal: Refusal) -> Self {
        match refusal {
            Refusal::Denied(denied) => Self::new(Reason::from(&denied), &denied),
            Refusal::Other(failure) => failure,
        }
    }
}

/// Leave for a new inbound connection. Waits for a policy that may be on its way, for a short time.
pub(super) async fn permit(
    thread: &DataThread,
    pod: &LocalPod,
    subject: &Subject,
    connection: &Registered,
    order: &mut oneshot::Receiver<Cut>,
) -> Result<Permit, Failure> {
    let began = Instant::now();
    thread.dry_runs.report(&thread.node.store.load(), &pod.pod, subject);
    let decided = match decide(thread, connection, began, began) {
        Ok(Decided::Permitted(permit)) => Ok(permit),
        // Rare, and so not part of every connection's memory.
        Ok(Decided::Pending { refusal, .. }) => {
            Box::pin(wait(thread, pod, connection, began, refusal, order)).await
        }
        Err(refusal) => Err(refusal),
    };
    log(thread, subject, &decided);
    decided.map_err(|refusal| {
        if let Refusal::Denied(denied) = &refusal {
            let (snapshot, reason) = (thread.node.store.load(), Reason::from(denied));
            thread.denials.report(&snapshot, &pod.pod, subject, denied, reason, Instant::now());
        }
        refusal.into()
    })
}

/// Logs a decision, at the level that the settings ask for.
fn log(thread: &DataThread, subject: &Subject, decided: &Result<Permit, Refusal>) {
    let (verdict, policy, rule) = match decided {
        Ok(permit) => match permit.grounds() {
            Grounds::Allowed { policy, rule } => ("allowed", Some(&**policy), Some(*rule)),
            Grounds::Unrestricted | Grounds::Originated => ("allowed", None, None),
        },
        Err(Refusal::Denied(denied)) => {
            ("denied", denied.policy().map(|key| &**key), denied.rule())
        }
        Err(Refusal::Other(_)) => return,
    };
    let (source, destination) = (subject.source, subject.destination);
    let peer = subject.peer.as_ref().map(|peer| peer.as_str());
    if thread.node.policy_decisions_at_info {
        tracing::info!(target: "policy", verdict, policy, rule, %source, peer, %destination, "decided");
    } else {
        tracing::debug!(target: "policy", verdict, policy, rule, %source, peer, %destination, "decided");
    }
}

/// Waits until the connection is decided on.
async fn wait(
    thread: &DataThread,
    pod: &LocalPod,
    connection: &Registered,
    began: Instant,
    refusal: Refusal,
    order: &mut oneshot::Receiver<Cut>,
) -> Result<Permit, Refusal> {
    let Some(_held) = thread.live.hold(&pod.pod) else { return Err(refusal) };
    let mut changes = thread.node.store.subscribe();
    let mut known = thread.node.policies_known.subscribe();
    loop {
        // What changed before this look is seen by it, what changes later wakes.
        changes.mark_unchanged();
        known.mark_unchanged();
        let until = match decide(thread, connection, began, Instant::now())? {
            Decided::Permitted(permit) => return Ok(permit),
            Decided::Pending { until, .. } => until,
        };
        tokio::select! {
            Ok(Cut { why, error }) = &mut *order => {
                return Err(Refusal::Other(Failure { reason: why.into(), error }));
            }
            Ok(()) = changes.changed() => {}
            Ok(()) = known.changed() => {}
            () = tokio::time::sleep_until(until.into()) => {}
        }
    }
}

/// Decides by the pod's record and the policies of this moment.
fn decide(
    thread: &DataThread,
    connection: &Registered,
    began: Instant,
    now: Instant,
) -> Result<Decided, Refusal> {
    if !*thread.node.policies_known.borrow() {
        let error = "the control plane has not told its policies".to_owned();
        let refusal = Refusal::Other(Failure { reason: Reason::PolicyMissing, error });
        let until = began + awaited::LIMIT;
        return if now < until { Ok(Decided::Pending { refusal, until }) } else { Err(refusal) };
    }
    match thread.live.decide(connection, &thread.node.store.load(), now) {
        Ok(permit) => Ok(Decided::Permitted(permit)),
        Err(NotPermitted::Pending { denied, until }) => {
            Ok(Decided::Pending { refusal: Refusal::Denied(denied), until })
        }
        Err(NotPermitted::Denied(denied)) => Err(Refusal::Denied(denied)),
        Err(NotPermitted::NoRecord) => Err(Refusal::Other(Failure {
            reason: Reason::UnknownDestination,
            error: "the pod's record was taken away".into(),
        })),
    }
}

/// Judges open connections again after each change that could concern them, and those that are open until a policy
/// arrives when it has had its time.
pub(super) async fn keep_judging(thread: Rc<DataThread>) {
    let store = &thread.node.store;
    let mut changes = store.subscribe();
    let judged = counter!("aquifer_policy_rejudged_total");
    loop {
        let (snapshot, now) = (store.load(), Instant::now());
        let JudgedAgain { count, cut } = thread.live.judge(&snapshot, now);
        judged.increment(count as u64);
        for denied in &cut {
            let reason = Reason::PolicyChanged;
            thread.denials.report(
                &snapshot,
                &denied.pod,
                &denied.subject,
                &denied.denied,
                reason,
                now,
            );
        }
        let deadline = thread.live.deadline(now);
        let expiry = async {
            match deadline {
                Some(deadline) => tokio::time::sleep_until(deadline.into()).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            changed = changes.changed() => if changed.is_err() { return },
            () = expiry => {}
        }
    }
}
