//! Which of several pilots writes: whoever holds a Lease.
//!
//! In: the Lease as the API server has it. Out: whether we hold it, and until when that is sure. Clocks of two machines
//! are not compared: a Lease has ended when it has not changed for its duration by our own clock.

use std::time::{Duration, Instant, SystemTime};

use k8s_openapi::{
    api::coordination::v1::{Lease, LeaseSpec},
    apimachinery::pkg::apis::meta::v1::MicroTime,
    jiff::Timestamp,
};
use kube::{
    Api, Client,
    api::{ObjectMeta, PostParams},
};
use metrics::gauge;
use tokio::{sync::watch, time::timeout};
use tracing::{debug, info, warn};

const NAME: &str = "aquifer-pilot-status";
/// Others wait so long for a holder that says nothing.
const DURATION: Duration = Duration::from_secs(15);
/// The holder writes no more after so long without having renewed it: well before others take it.
const SURE: Duration = Duration::from_secs(10);
/// Between two looks.
const PERIOD: Duration = Duration::from_secs(2);

/// Until when it is sure that nobody else holds the Lease; nothing if we do not.
pub(super) type Held = watch::Receiver<Option<Instant>>;

/// What one look at the Lease leads to.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Step {
    /// There is none.
    Create,
    /// It is ours, or has ended.
    Take,
    Wait,
}

/// What was seen of a Lease of others.
#[derive(Debug, Default)]
struct Watched {
    last: Option<(String, Instant)>,
}

impl Watched {
    fn step(&mut self, me: &str, lease: Option<&Lease>, now: Instant) -> Step {
        let Some(lease) = lease else { return Step::Create };
        let spec = lease.spec.as_ref();
        let holder = spec.and_then(|spec| spec.holder_identity.as_deref()).unwrap_or_default();
        if holder.is_empty() || holder == me {
            return Step::Take;
        }
        let version = lease.metadata.resource_version.clone().unwrap_or_default();
        let since = match &self.last {
            Some((last, since)) if *last == version => *since,
            Some(_) | None => {
                self.last = Some((version, now));
                now
            }
        };
        let lasts = spec.and_then(|spec| u64::try_from(spec.lease_duration_seconds?).ok());
        let lasts = lasts.map_or(DURATION, Duration::from_secs);
        if now.duration_since(since) >= lasts { Step::Take } else { Step::Wait }
    }
}

/// Holds the Lease whenever it can, until `held` has no receiver.
pub(super) async fn run(
    client: Client,
    namespace: String,
    me: String,
    held: watch::Sender<Option<Instant>>,
) {
    let leases: Api<Lease> = Api::namespaced(client, &namespace);
    let mut watched = Watched::default();
    let mut said = String::new();
    loop {
        let begun = Instant::now();
        let looked = timeout(SURE / 2, look(&leases, &mut watched, &me)).await;
        match looked {
            Ok(Ok(true)) => {
                // Counted from before the request: that is when it was surely ours.
                if held.send_replace(Some(begun + SURE)).is_none() {
                    info!(namespace, lease = NAME, "writing statuses");
                }
            }
            Ok(Ok(false)) => {
                if held.send_replace(None).is_some() {
                    warn!(namespace, lease = NAME, "another pilot writes statuses");
                }
            }
            // What is held stays held until it is not sure any more.
            Ok(Err(error)) => {
                let reason = error.to_string();
                // Said once, however long it lasts.
                if reason != said {
                    warn!(namespace, lease = NAME, reason, "looking at the lease");
                    said = reason;
                }
            }
            Err(_) => debug!("looking at the lease: no answer"),
        }
        held.send_if_modified(|until| {
            let over = until.is_some_and(|until| until <= Instant::now());
            if over {
                warn!(namespace, lease = NAME, "the lease could not be renewed: writing no more");
                *until = None;
            }
            over
        });
        gauge!("pilot_status_leader").set(u32::from(held.borrow().is_some()));
        tokio::select! {
            () = tokio::time::sleep(PERIOD) => {}
            () = held.closed() => return,
        }
    }
}

/// Gives the Lease back, so that another need not wait for its end.
pub(super) async fn release(client: Client, namespace: &str, me: &str) {
    let leases: Api<Lease> = Api::namespaced(client, namespace);
    let given_back = async {
        let mut lease = leases.get(NAME).await?;
        if let Some(spec) = &mut lease.spec
            && spec.holder_identity.as_deref() == Some(me)
        {
            spec.holder_identity = Some(String::new());
            leases.replace(NAME, &PostParams::default(), &lease).await?;
        }
        Ok::<_, kube::Error>(())
    };
    if let Ok(Err(error)) = timeout(PERIOD, given_back).await {
        debug!(%error, "giving the lease back");
    }
}

/// Looks once. Says whether it is ours.
async fn look(leases: &Api<Lease>, watched: &mut Watched, me: &str) -> Result<bool, kube::Error> {
    let found = leases.get_opt(NAME).await?;
    let how = PostParams::default();
    let done = match (watched.step(me, found.as_ref(), Instant::now()), found) {
        (Step::Wait, _) => return Ok(false),
        (Step::Create, _) | (Step::Take, None) => {
            let metadata = ObjectMeta { name: Some(NAME.into()), ..ObjectMeta::default() };
            let lease = Lease { metadata, spec: Some(spec(me, None)) };
            leases.create(&how, &lease).await
        }
        (Step::Take, Some(mut lease)) => {
            // Its version goes along: of two who take it at once, one is refused.
            lease.spec = Some(spec(me, lease.spec.as_ref()));
            leases.replace(NAME, &how, &lease).await
        }
    };
    match done {
        Ok(_) => Ok(true),
        Err(kube::Error::Api(status)) if status.code == 409 => Ok(false),
        Err(error) => Err(error),
    }
}

fn spec(me: &str, before: Option<&LeaseSpec>) -> LeaseSpec {
    let now = Timestamp::try_from(SystemTime::now()).unwrap_or_default();
    let same = before.filter(|before| before.holder_identity.as_deref() == Some(me));
    let changes = before.and_then(|before| before.lease_transitions).unwrap_or_default();
    LeaseSpec {
        holder_identity: Some(me.to_owned()),
        lease_duration_seconds: i32::try_from(DURATION.as_secs()).ok(),
        acquire_time: same.and_then(|same| same.acquire_time.clone()).or(Some(MicroTime(now))),
        renew_time: Some(MicroTime(now)),
        lease_transitions: Some(if same.is_some() { changes } else { changes + 1 }),
        ..LeaseSpec::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lease(holder: &str, version: &str) -> Lease {
        let metadata =
            ObjectMeta { resource_version: Some(version.into()), ..ObjectMeta::default() };
        Lease { metadata, spec: Some(spec(holder, None)) }
    }

    #[test]
    fn a_lease_is_taken_when_it_is_free_or_has_ended_by_our_clock() {
        let mut watched = Watched::default();
        let begun = Instant::now();
        let at = |seconds| begun + Duration::from_secs(seconds);
        assert_eq!(watched.step("a", None, begun), Step::Create);
        assert_eq!(watched.step("a", Some(&lease("a", "1")), begun), Step::Take);
        assert_eq!(watched.step("a", Some(&lease("", "1")), begun), Step::Take);
        assert_eq!(watched.step("a", Some(&lease("b", "2")), begun), Step::Wait);
        assert_eq!(watched.step("a", Some(&lease("b", "2")), at(14)), Step::Wait);
        assert_eq!(watched.step("a", Some(&lease("b", "3")), at(15)), Step::Wait);
        assert_eq!(watched.step("a", Some(&lease("b", "3")), at(29)), Step::Wait);
        assert_eq!(watched.step("a", Some(&lease("b", "3")), at(30)), Step::Take);
    }

    #[test]
    fn a_change_of_the_holder_is_counted() {
        let first = spec("a", None);
        let renewed = spec("a", Some(&first));
        assert_eq!(renewed.acquire_time, first.acquire_time);
        let transitions = |spec: &LeaseSpec| spec.lease_transitions.unwrap();
        assert_eq!(transitions(&renewed), transitions(&first));
        assert_eq!(transitions(&spec("b", Some(&renewed))), transitions(&first) + 1);
    }
}
