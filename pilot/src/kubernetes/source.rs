//! The API server as a source of manifests: a watch for each kind, and one for the kinds themselves.
//!
//! In: a kubeconfig. Out: manifests as of now, and news when they have changed. While the server does not answer, what
//! it said last stays; before it has said everything once, there are none.

use std::{
    collections::{HashMap, HashSet},
    mem,
    path::Path,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use kube::{Client, core::ApiResource, runtime::watcher::Event};
use metrics::{counter, gauge};
use tokio::{
    sync::Notify,
    task::{AbortHandle, JoinSet},
};
use tracing::info;

use super::{
    definitions,
    link::Link,
    objects::{Came, Change, Decoded, Objects, key},
    raw::Raw,
    seen::{Seen, is_reported},
    watch::watch,
    writing::StatusWriter,
};
use crate::{
    deploy,
    manifests::{Kind, Manifests, Problem, read_object, stand_in},
    status::Key,
};

/// Where an object stands that is in no file.
const PLACE: &str = "kubernetes";

/// A watched API server. Its watches end with it.
pub(crate) struct Source {
    client: Client,
    /// How waypoints are run, if they are ours to run.
    waypoints: Option<deploy::Settings>,
    shared: Arc<Shared>,
    _watches: JoinSet<()>,
}

/// What all watches write.
#[derive(Debug)]
pub(super) struct Shared {
    place: Arc<Path>,
    objects: Mutex<Objects>,
    /// Something that is published has changed.
    news: Notify,
    /// Where the objects of each kind are.
    resources: Mutex<HashMap<Kind, ApiResource>>,
    /// Objects whose status may have changed since somebody asked: each once.
    reported: Mutex<HashSet<Key>>,
    reports: Notify,
    link: Link,
}

impl Source {
    /// Begins to watch. A server that does not answer yet is waited for.
    pub(crate) fn start(client: Client, waypoints: Option<deploy::Settings>) -> Self {
        let shared = Arc::new(Shared {
            place: Path::new(PLACE).into(),
            objects: Mutex::default(),
            news: Notify::new(),
            resources: Mutex::default(),
            reported: Mutex::default(),
            reports: Notify::new(),
            link: Link::new(),
        });
        let mut watches = JoinSet::new();
        {
            let (shared, client) = (Arc::clone(&shared), client.clone());
            watches.spawn(async move { shared.link.probe(client).await });
        }
        for (kind, resource) in definitions::builtin() {
            shared.expect(kind, &resource);
            watches.spawn(watch_kind(Arc::clone(&shared), client.clone(), kind, resource));
        }
        watches.spawn(watch_definitions(Arc::clone(&shared), client.clone()));
        Self { client, waypoints, shared, _watches: watches }
    }

    /// What writes the statuses of the watched objects. The Lease by which one of several pilots does is in
    /// `root_namespace`.
    pub(crate) fn writer(&self, root_namespace: &str) -> StatusWriter {
        let (client, shared) = (self.client.clone(), Arc::clone(&self.shared));
        StatusWriter::new(client, shared, root_namespace.to_owned(), self.waypoints.clone())
    }

    /// Waits for a change.
    pub(crate) async fn changed(&self) {
        self.shared.news.notified().await;
    }

    /// What the server said last; nothing before it has said everything once.
    pub(crate) fn load(&self, root_namespace: &str) -> Option<(Manifests, Vec<Problem>)> {
        let mut objects = self.shared.lock();
        if !objects.is_whole() {
            return None;
        }
        for (kind, bad) in objects.bad() {
            let bad = u32::try_from(bad).unwrap_or(u32::MAX);
            gauge!("pilot_k8s_object_errors", "type" => kind.name()).set(bad);
        }
        Some(objects.load(root_namespace))
    }

    /// What has not been listed yet, for people to see why nothing is served.
    pub(crate) fn missing(&self) -> String {
        let kinds: Vec<_> = self.shared.lock().missing().map(Kind::name).collect();
        format!("the API server has not listed everything yet: {}", kinds.join(", "))
    }
}

impl Shared {
    /// Waits until a status may have changed.
    pub(super) async fn reported(&self) {
        self.reports.notified().await;
    }

    /// The objects whose status may have changed since this was last called.
    pub(super) fn take_reported(&self) -> HashSet<Key> {
        mem::take(&mut *self.reported.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Where the objects of a kind are, if the server has it.
    pub(super) fn resource(&self, kind: Kind) -> Option<ApiResource> {
        self.resources.lock().unwrap_or_else(PoisonError::into_inner).get(&kind).cloned()
    }

    fn expect(&self, kind: Kind, resource: &ApiResource) {
        // Whoever reads both takes the objects first: neither is taken here while the other is held.
        {
            let mut resources = self.resources.lock().unwrap_or_else(PoisonError::into_inner);
            resources.insert(kind, resource.clone());
        }
        self.lock().expect(kind);
    }

    fn forget(&self, kind: Kind) {
        self.resources.lock().unwrap_or_else(PoisonError::into_inner).remove(&kind);
        self.lock().forget(kind);
    }

    fn report(&self, keys: impl IntoIterator<Item = Key>) {
        self.reported.lock().unwrap_or_else(PoisonError::into_inner).extend(keys);
        self.reports.notify_one();
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, Objects> {
        self.objects.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn take(&self, kind: Kind, event: Event<Raw>) {
        let change = match event {
            Event::Init => Change::ListBegins,
            Event::InitApply(raw) => Change::Listed(self.decode(kind, raw)),
            Event::InitDone => Change::ListEnds,
            Event::Apply(raw) => Change::Applied(self.decode(kind, raw)),
            Event::Delete(raw) => Change::Deleted(raw.name()),
        };
        // Nothing that is listed counts before the list is whole.
        let is_news = !matches!(change, Change::ListBegins | Change::Listed(_));
        let one = match &change {
            Change::Applied(decoded) => Some(key(kind, &decoded.name)),
            Change::Deleted(name) => Some(key(kind, name)),
            Change::ListBegins | Change::Listed(_) | Change::ListEnds => None,
        };
        let list_ends = matches!(change, Change::ListEnds);
        let came = self.lock().apply(kind, change);
        if is_reported(kind) && is_news {
            let listed = list_ends.then(|| self.lock().all_reported().collect::<Vec<_>>());
            let listed = listed.into_iter().flatten().filter(|(of, ..)| *of == kind);
            self.report(one.into_iter().chain(listed));
        }
        let event = match came {
            Came::Add => "add",
            Came::Update => "update",
            Came::Delete => "delete",
            Came::Nothing => return,
        };
        let name = if kind.is_builtin() { "pilot_k8s_reg_events" } else { "pilot_k8s_cfg_events" };
        counter!(name, "type" => kind.name(), "event" => event).increment(1);
        if is_news {
            self.news.notify_one();
        }
    }

    fn decode(&self, kind: Kind, raw: Raw) -> Decoded {
        let name = raw.name();
        let seen = Seen::of(kind, &raw.value);
        let mut problems = Vec::new();
        // Taken apart a second time only if it is bad; others than policies need not be.
        let object = kind.is_closing().then(|| raw.value.clone());
        let resource = read_object(kind, raw.value, &self.place, &mut problems);
        let stand_in = match (&resource, object) {
            (None, Some(object)) => stand_in(kind, &name.0, &name.1, &object, &self.place),
            (Some(_), _) | (None, None) => None,
        };
        Decoded { name, resource, stand_in, problems, seen }
    }
}

async fn watch_kind(shared: Arc<Shared>, client: Client, kind: Kind, resource: ApiResource) {
    watch(client, resource, &shared.link, |event| shared.take(kind, event)).await;
}

/// Watches the definitions of kinds, and the kinds that they define.
async fn watch_definitions(shared: Arc<Shared>, client: Client) {
    let mut watches = Watches {
        shared: Arc::clone(&shared),
        client: client.clone(),
        tasks: JoinSet::new(),
        running: HashMap::new(),
        listing: None,
    };
    watch(client, definitions::definitions(), &shared.link, |event| watches.take(event)).await;
}

/// The watches of kinds that definitions define.
struct Watches {
    shared: Arc<Shared>,
    client: Client,
    tasks: JoinSet<()>,
    running: HashMap<Kind, Watch>,
    /// The kinds that a list in progress has brought.
    listing: Option<Vec<Kind>>,
}

struct Watch {
    resource: ApiResource,
    task: AbortHandle,
}

impl Watches {
    fn take(&mut self, event: Event<Raw>) {
        match event {
            Event::Init => self.listing = Some(Vec::new()),
            Event::InitApply(raw) | Event::Apply(raw) => {
                if let Some((kind, resource)) = definitions::defined(&raw.value) {
                    if let Some(listing) = &mut self.listing {
                        listing.push(kind);
                    }
                    self.begin(kind, resource);
                }
            }
            Event::InitDone => {
                let present = self.listing.take().unwrap_or_default();
                let gone = self.running.keys().filter(|kind| !present.contains(kind));
                for kind in gone.copied().collect::<Vec<_>>() {
                    self.end(kind);
                }
                if self.shared.lock().know_kinds() {
                    self.shared.news.notify_one();
                }
            }
            Event::Delete(raw) => {
                if let Some(kind) = definitions::kind_of(&raw.value) {
                    self.end(kind);
                }
            }
        }
    }

    fn begin(&mut self, kind: Kind, resource: ApiResource) {
        if self.running.get(&kind).is_some_and(|running| running.resource == resource) {
            return;
        }
        info!(kind = kind.name(), version = %resource.api_version, "watching");
        self.shared.expect(kind, &resource);
        let shared = Arc::clone(&self.shared);
        let watching = watch_kind(shared, self.client.clone(), kind, resource.clone());
        let task = self.tasks.spawn(watching);
        if let Some(other) = self.running.insert(kind, Watch { resource, task }) {
            other.task.abort();
        }
    }

    fn end(&mut self, kind: Kind) {
        let Some(running) = self.running.remove(&kind) else { return };
        running.task.abort();
        info!(kind = kind.name(), "its definition is gone, and its objects with it");
        self.shared.forget(kind);
        self.shared.news.notify_one();
    }
}
