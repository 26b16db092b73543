//! Writes statuses back to the API server, says there what was refused, and runs waypoints.
//!
//! In: the manifests that are served, and the statuses that objects have. Out: server-side applies of what differs, and
//! Events. Of several pilots one writes, by a Lease; whoever is not sure to hold it writes nothing. Decides nothing
//! about what a status says.

mod attempts;
mod classes;
mod election;
mod events;
mod merge;
mod waypoints;

use std::{
    collections::{BTreeMap, HashMap},
    hash::{DefaultHasher, Hash, Hasher},
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use kube::{
    Api, Client,
    api::{DynamicObject, Patch, PatchParams},
    core::ApiResource,
};
use metrics::{counter, gauge};
use serde_json::{Value, json};
use time::{OffsetDateTime, format_description::well_known::Rfc3339};
use tokio::{sync::watch, task::JoinSet, time::timeout};
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use self::{
    attempts::{Attempts, Verdict},
    election::Held,
};
use super::{objects::Refused, seen::Seen, source::Shared};
use crate::{
    compile::MeshConfig,
    deploy,
    manifests::{Kind, Manifests},
    status::{self, Key, Statuses},
};

/// In whose name fields are applied.
const FIELD_MANAGER: &str = "aquifer-pilot";
/// Writes under way at once.
const AT_ONCE: usize = 8;
/// A write that takes longer has failed. With the time that the Lease is sure, less than others wait for its end.
const PATIENCE: Duration = Duration::from_secs(4);
/// Between two times that all statuses are computed: what is served changes several times a second where pods come and go.
const PERIOD: Duration = Duration::from_secs(1);

/// What statuses are computed from.
pub(crate) type Served = (Manifests, MeshConfig);

/// Writes statuses.
pub(crate) struct StatusWriter {
    client: Client,
    shared: Arc<Shared>,
    root_namespace: String,
    /// How waypoints are run, if they are ours to run.
    waypoints: Option<deploy::Settings>,
    /// Tells this process from other pilots.
    me: String,
}

impl StatusWriter {
    pub(super) fn new(
        client: Client,
        shared: Arc<Shared>,
        root_namespace: String,
        waypoints: Option<deploy::Settings>,
    ) -> Self {
        let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
        let me = format!("{}_{:08x}", host.trim(), rand::random::<u32>());
        Self { client, shared, root_namespace, waypoints, me }
    }

    /// Writes until told to stop.
    pub(crate) async fn run(
        self,
        served: watch::Receiver<Option<Arc<Served>>>,
        stop: CancellationToken,
    ) {
        let (sender, held) = watch::channel(None);
        let (client, namespace, me) =
            (self.client.clone(), self.root_namespace.clone(), self.me.clone());
        let election = tokio::spawn(election::run(client, namespace, me, sender));
        let mut writing = Writing {
            client: self.client.clone(),
            shared: Arc::clone(&self.shared),
            held,
            wanted: Statuses::new(),
            refused: HashMap::new(),
            attempts: Attempts::default(),
            due: BTreeMap::new(),
            compute_at: Instant::now(),
            events: events::Events::new(self.client.clone(), self.me.clone()),
            waypoints: waypoints::Waypoints::new(self.client.clone(), self.waypoints),
        };
        stop.run_until_cancelled(writing.run(served)).await;
        let was_held = writing.held.borrow().is_some();
        drop(writing);
        election.await.ok();
        if was_held {
            election::release(self.client, &self.root_namespace, &self.me).await;
        }
    }
}

struct Writing {
    client: Client,
    shared: Arc<Shared>,
    held: Held,
    /// As of the last time that we held the Lease.
    wanted: Statuses,
    /// Why objects are refused.
    refused: HashMap<Key, Refused>,
    attempts: Attempts,
    /// What may differ, and when to look.
    due: BTreeMap<Key, Instant>,
    /// Not sooner.
    compute_at: Instant,
    events: events::Events,
    waypoints: waypoints::Waypoints,
}

/// One write.
struct Write {
    key: Key,
    resource: ApiResource,
    body: Value,
}

impl Writing {
    async fn run(&mut self, mut served: watch::Receiver<Option<Arc<Served>>>) {
        loop {
            // Never an error: the election runs as long as this has a receiver.
            self.held.wait_for(Option::is_some).await.ok();
            self.begin();
            self.compute(&mut served).await;
            while self.is_held() {
                self.write_due().await;
                let next = self.due.values().min().copied();
                let next = next.into_iter().chain(self.events.retry_at());
                let next = next.chain(self.waypoints.due()).min();
                let wait = async {
                    match next {
                        Some(at) => tokio::time::sleep_until(at.into()).await,
                        None => std::future::pending().await,
                    }
                };
                let compute_at = self.compute_at.into();
                let changed = async {
                    tokio::time::sleep_until(compute_at).await;
                    served.changed().await
                };
                tokio::select! {
                    changed = changed => match changed {
                        Ok(()) => self.compute(&mut served).await,
                        Err(_) => return,
                    },
                    () = self.shared.reported() => {
                        let now = Instant::now();
                        for key in self.shared.take_reported() {
                            self.due.entry(key).or_insert(now);
                        }
                    }
                    _ = self.held.changed() => {}
                    () = wait => {}
                }
                if self.waypoints.due().is_some_and(|at| at <= Instant::now()) {
                    let held = self.held.clone();
                    self.waypoints.apply(&self.shared, || is_sure(&held)).await;
                }
                self.events.announce(&self.refused, &self.shared).await;
            }
        }
    }

    /// Whatever others wrote in the meantime is looked at.
    fn begin(&mut self) {
        self.wanted.clear();
        self.refused.clear();
        self.shared.take_reported();
        self.waypoints.begin();
        let now = Instant::now();
        self.due = self.shared.lock().all_reported().map(|key| (key, now)).collect();
    }

    fn is_held(&self) -> bool {
        is_sure(&self.held)
    }

    /// What is to be said from now on.
    async fn compute(&mut self, served: &mut watch::Receiver<Option<Arc<Served>>>) {
        let Some(served) = served.borrow_and_update().clone() else { return };
        self.compute_at = Instant::now() + PERIOD;
        // Keeps a core busy, which must not be one that streams wait for.
        let multi_network = served.1.multi_network;
        let to_run = Arc::clone(&served);
        let all = tokio::task::spawn_blocking(move || status::all(&served.0, &served.1)).await;
        let mut wanted = match all {
            Ok(wanted) => wanted,
            Err(panic) => std::panic::resume_unwind(panic.into_panic()),
        };
        self.refused = self.shared.lock().refused().collect();
        for (key, refused) in &self.refused {
            refuse(&mut wanted, key, &refused.reason);
        }
        let now = Instant::now();
        let both = wanted.keys().chain(self.wanted.keys());
        let changed = both.filter(|key| wanted.get(*key) != self.wanted.get(*key));
        for key in changed.cloned().collect::<Vec<_>>() {
            self.due.insert(key, now);
        }
        self.wanted = wanted;
        self.events.announce(&self.refused, &self.shared).await;
        classes::create_missing(&self.client, &self.shared, multi_network).await;
        let held = self.held.clone();
        self.waypoints.follow(to_run, &self.shared, || is_sure(&held)).await;
    }

    /// Looks at all that is due, and writes what differs.
    async fn write_due(&mut self) {
        let now = Instant::now();
        let due: Vec<Key> =
            self.due.iter().filter(|(_, at)| **at <= now).map(|(key, _)| key.clone()).collect();
        let mut writes = Vec::new();
        for key in due {
            self.due.remove(&key);
            writes.extend(self.look(key, now));
        }
        let mut writes = writes.into_iter();
        let mut running = JoinSet::new();
        loop {
            while running.len() < AT_ONCE && self.is_held() {
                let Some(write) = writes.next() else { break };
                running.spawn(apply(self.client.clone(), write));
            }
            match running.join_next().await {
                Some(Ok((key, done))) => self.take(key, done),
                Some(Err(panic)) => std::panic::resume_unwind(panic.into_panic()),
                None => break,
            }
        }
        gauge!("pilot_status_contended")
            .set(u32::try_from(self.attempts.contended()).unwrap_or(u32::MAX));
    }

    /// What is to be written for an object, if anything is and it is time.
    fn look(&mut self, key: Key, now: Instant) -> Option<Write> {
        let seen = self.shared.lock().seen(&key).cloned();
        let resource = self.shared.resource(key.0);
        let (Some(seen), Some(resource)) = (seen, resource) else {
            self.attempts.forget(&key);
            return None;
        };
        let wanted = self.wanted.get(&key);
        let time = OffsetDateTime::from(SystemTime::now()).replace_nanosecond(0);
        let time = time.ok().and_then(|time| time.format(&Rfc3339).ok()).unwrap_or_default();
        let Some(status) = merge::to_apply(key.0, wanted, &seen.status, &time) else {
            self.attempts.settled(&key, now);
            return None;
        };
        match self.attempts.differs(&key, hash(&wanted), hash(&seen.status), now) {
            Verdict::Write => {
                let body = body(&key, &resource, &seen, status);
                Some(Write { key, resource, body })
            }
            Verdict::At(at) => {
                self.due.insert(key, at);
                None
            }
            Verdict::Leave => None,
        }
    }

    fn take(&mut self, key: Key, done: Result<(), WriteError>) {
        let result = match &done {
            Ok(()) => "written",
            Err(WriteError::Gone) => "gone",
            Err(WriteError::Failed(_)) => "failed",
        };
        counter!("pilot_status_writes", "type" => key.0.name(), "result" => result).increment(1);
        match done {
            Ok(()) => self.attempts.written(&key),
            Err(WriteError::Gone) => self.attempts.forget(&key),
            Err(WriteError::Failed(reason)) => {
                let (kind, namespace, name) = &key;
                warn!(kind = kind.name(), %namespace, %name, reason, "writing a status");
                if let Some(at) = self.attempts.failed(&key, Instant::now()) {
                    self.due.insert(key, at);
                }
            }
        }
    }
}

fn is_sure(held: &Held) -> bool {
    held.borrow().is_some_and(|until| Instant::now() < until)
}

/// Why a status was not written.
enum WriteError {
    /// There is no such object any more.
    Gone,
    Failed(String),
}

async fn apply(client: Client, write: Write) -> (Key, Result<(), WriteError>) {
    let Write { key, resource, body } = write;
    let api: Api<DynamicObject> = if key.0.is_namespaced() {
        Api::namespaced_with(client, &key.1, &resource)
    } else {
        Api::all_with(client, &resource)
    };
    let how = PatchParams::apply(FIELD_MANAGER).force();
    let patch = Patch::Apply(&body);
    let done = match timeout(PATIENCE, api.patch_status(&key.2, &how, &patch)).await {
        Ok(Ok(_)) => {
            debug!(kind = key.0.name(), namespace = %key.1, name = %key.2, "status written");
            Ok(())
        }
        Ok(Err(kube::Error::Api(status))) if status.code == 404 => Err(WriteError::Gone),
        Ok(Err(error)) => Err(WriteError::Failed(error.to_string())),
        Err(_) => Err(WriteError::Failed(format!("no answer within {PATIENCE:?}"))),
    };
    (key, done)
}

/// An object of that name that is another by now is not meant.
fn body(key: &Key, resource: &ApiResource, seen: &Seen, status: Value) -> Value {
    let mut metadata = json!({ "name": key.2, "uid": seen.uid });
    if key.0.is_namespaced() {
        metadata["namespace"] = (*key.1).into();
    }
    // Lists that are replaced as a whole repeat what others say: not of a moment ago.
    if status.get("parents").is_some() || key.0.group().ends_with(".istio.io") {
        metadata["resourceVersion"] = (*seen.version).into();
    }
    json!({
        "apiVersion": resource.api_version,
        "kind": resource.kind,
        "metadata": metadata,
        "status": status,
    })
}

/// Says in an object's status that it is refused, where its status has a place for it.
fn refuse(wanted: &mut Statuses, key: &Key, reason: &str) {
    // Routes say it of each parent, and what cannot be read has none.
    const WITHOUT: [Kind; 6] = [
        Kind::HttpRoute,
        Kind::GrpcRoute,
        Kind::TcpRoute,
        Kind::TlsRoute,
        Kind::ReferenceGrant,
        Kind::BackendTlsPolicy,
    ];
    if WITHOUT.contains(&key.0) || !super::seen::is_reported(key.0) {
        return;
    }
    let status = wanted.entry(key.clone()).or_insert_with(|| json!({}));
    let condition = json!({
        "type": merge::ACCEPTED,
        "status": "False",
        "reason": "Invalid",
        "message": reason,
    });
    match status["conditions"].as_array_mut() {
        Some(conditions) => conditions.push(condition),
        None => status["conditions"] = json!([condition]),
    }
}

fn hash(of: &impl Hash) -> u64 {
    let mut hasher = DefaultHasher::new();
    of.hash(&mut hasher);
    hasher.finish()
}
