//! Asks policy about inbound connections: about new ones, which may have to wait for a policy to arrive, and about open
//! ones after each change.
//!
//! In: a registered connection, the store, the time. Out: its [`Permit`], or why it is not let in.

use std::{rc::Rc, time::Instant};

use mesh::{
    policy::Permit,
    telemetry::{Failure, Reason},
};
use metrics::counter;
use tokio::sync::oneshot;

use super::{
    awaited,
    live::{Cut, NotPermitted, Registered, Subject},
    thread::{DataThread, LocalPod},
};

/// What policy says, unless it denies.
enum Decided {
    Permitted(Permit),
    /// It may permit until then; if not, this is why it did not.
    Pending {
        failure: Failure,
        until: Instant,
    },
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
    match decide(thread, connection, began, began)? {
        Decided::Permitted(permit) => Ok(permit),
        // Rare, and so not part of every connection's memory.
        Decided::Pending { failure, .. } => {
            Box::pin(wait(thread, pod, connection, began, failure, order)).await
        }
    }
}

/// Waits until the connection is decided on.
async fn wait(
    thread: &DataThread,
    pod: &LocalPod,
    connection: &Registered,
    began: Instant,
    failure: Failure,
    order: &mut oneshot::Receiver<Cut>,
) -> Result<Permit, Failure> {
    let Some(_held) = thread.live.hold(&pod.pod) else { return Err(failure) };
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
            Ok(Cut { why, error }) = &mut *order => return Err(Failure { reason: why.into(), error }),
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
) -> Result<Decided, Failure> {
    if !*thread.node.policies_known.borrow() {
        let error = "the control plane has not told its policies".to_owned();
        let failure = Failure { reason: Reason::PolicyMissing, error };
        let until = began + awaited::LIMIT;
        return if now < until { Ok(Decided::Pending { failure, until }) } else { Err(failure) };
    }
    match thread.live.decide(connection, &thread.node.store.load(), now) {
        Ok(permit) => Ok(Decided::Permitted(permit)),
        Err(NotPermitted::Pending { denied, until }) => {
            let failure = Failure::new(Reason::from(&denied), &denied);
            Ok(Decided::Pending { failure, until })
        }
        Err(NotPermitted::Denied(denied)) => Err(Failure::new(Reason::from(&denied), &denied)),
        Err(NotPermitted::NoRecord) => Err(Failure {
            reason: Reason::UnknownDestination,
            error: "the pod's record was taken away".into(),
        }),
    }
}

/// Judges open connections again after each change that could concern them, and those that are open until a policy
/// arrives when it has had its time.
pub(super) async fn keep_judging(thread: Rc<DataThread>) {
    let store = &thread.node.store;
    let mut changes = store.subscribe();
    let judged = counter!("aquifer_policy_rejudged_total");
    loop {
        let again = thread.live.judge(&store.load(), Instant::now());
        judged.increment(again as u64);
        let deadline = thread.live.deadline(Instant::now());
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
