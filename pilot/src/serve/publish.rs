//! Keeps the published state up to date with the folder, or with an API server.
//!
//! In: the folder and the kernel's news about it, or what the API server says. Out: a new [`State`] for each change. What
//! has an error keeps its last good form, and every error is logged; the last state stays while the folder or the mesh's
//! settings cannot be read.

use std::{
    collections::{BTreeSet, HashSet},
    fs, mem,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant, SystemTime},
};

use metrics::{counter, gauge};
use notify::{RecommendedWatcher, RecursiveMode, Watcher};
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use super::{ServeError, state::State};
use crate::{
    compile::{MeshConfig, ResourceType, Snapshot},
    jwks::{self, Fetcher, KeySets, Location},
    kubernetes,
    manifests::{Folder, Manifests, Problem, Severity},
};

/// How long a change may still be in the middle of being written.
const QUIET: Duration = Duration::from_millis(50);
/// A folder that never comes to rest is read after this long.
const AT_MOST: Duration = Duration::from_millis(250);
/// How often the folder is looked through although nothing was said: not every file system tells.
const LOOK_ANYWAY: Duration = Duration::from_secs(10);

/// How the last attempt to load went.
#[derive(Clone, Debug, Default)]
pub(crate) struct Attempt {
    /// Why the folder could not be read, if so.
    pub unreadable: Option<String>,
    /// Everything found in it.
    pub problems: Arc<[Problem]>,
    pub at: Option<SystemTime>,
}

impl Attempt {
    /// How many problems of that severity there are.
    pub(crate) fn count(&self, severity: Severity) -> usize {
        self.problems.iter().filter(|problem| problem.severity == severity).count()
    }
}

/// The last attempt, for people to see.
#[derive(Debug, Default)]
pub(crate) struct Loaded(Mutex<Attempt>);

impl Loaded {
    /// How it went.
    pub(crate) fn last(&self) -> Attempt {
        self.lock().clone()
    }

    fn lock(&self) -> MutexGuard<'_, Attempt> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What the kernel said about the folder since it was last read.
#[derive(Debug, Default)]
struct News {
    /// Each path once, however often it changes: bounded by the folder's size.
    touched: Mutex<HashSet<PathBuf>>,
    arrived: Notify,
}

/// A watched folder.
pub(crate) struct Watched {
    folder: Folder,
    news: Arc<News>,
    watcher: RecommendedWatcher,
    /// The folder that is watched, by device and inode.
    watched: Option<(u64, u64)>,
}

impl Watched {
    /// Watches before the first look, so that nothing happens in between.
    pub(crate) fn start(path: &Path) -> Result<Self, ServeError> {
        // The kernel's news have absolute paths.
        let root = std::path::absolute(path)
            .map_err(|source| ServeError::Watch { source: notify::Error::io(source) })?;
        let news = Arc::new(News::default());
        let (heard, below) = (Arc::clone(&news), root.clone());
        let watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
            match event {
                // Reading the folder causes these.
                Ok(event) if event.kind.is_access() => return,
                Ok(event) => {
                    let rescan = event.need_rescan();
                    // What lies beside the folder is nobody's business here.
                    let mut ours = event.paths;
                    ours.retain(|path| path.starts_with(&below));
                    if ours.is_empty() && !rescan {
                        return;
                    }
                    heard.lock().extend(ours);
                }
                Err(error) => warn!(%error, "watching the folder"),
            }
            heard.arrived.notify_one();
        });
        let mut watcher = watcher.map_err(|source| ServeError::Watch { source })?;
        // The folder itself may be removed, renamed or be a link that is swapped: its parent is told.
        if let Some(parent) = root.parent() {
            watcher
                .watch(parent, RecursiveMode::NonRecursive)
                .map_err(|source| ServeError::Watch { source })?;
        }
        let mut watched = Self { folder: Folder::new(root), news, watcher, watched: None };
        watched.watch();
        Ok(watched)
    }

    /// Watches the folder that is at the path, if it is another than before.
    fn watch(&mut self) {
        let path = self.folder.root();
        let present = fs::metadata(path).ok().map(|metadata| (metadata.dev(), metadata.ino()));
        if present == self.watched {
            return;
        }
        // Fails if the folder is gone, and its watch with it.
        self.watcher.unwatch(path).ok();
        self.watched = None;
        if present.is_some() {
            match self.watcher.watch(path, RecursiveMode::Recursive) {
                Ok(()) => self.watched = present,
                Err(error) => {
                    warn!(%error, "watching the folder: it is looked through from time to time");
                }
            }
        }
    }
}

/// Where manifests come from.
pub(crate) enum Input {
    Folder(Watched),
    Kubernetes(kubernetes::Source),
}

impl Input {
    /// Publishes until told to stop.
    pub(crate) async fn publish(
        mut self,
        config: MeshConfig,
        publisher: watch::Sender<Option<Arc<State>>>,
        loaded: Arc<Loaded>,
        stop: CancellationToken,
    ) {
        let (wanted, to_fetch) = watch::channel(BTreeSet::new());
        let (fetched, mut keys) = watch::channel(Arc::default());
        match Fetcher::new() {
            Ok(fetcher) => {
                tokio::spawn(jwks::run(fetcher, to_fetch, fetched.clone(), stop.clone()));
            }
            Err(error) => warn!(%error, "no roots to trust: no issuer's keys can be fetched"),
        }
        let served = watch::Sender::new(None);
        let writer = match &self {
            Self::Kubernetes(source) => {
                let writer = source.writer(&config.root_namespace);
                Some(tokio::spawn(writer.run(served.subscribe(), stop.clone())))
            }
            Self::Folder(_) => None,
        };
        let mut reloader = Reloader { config, publisher, loaded, settings: None, wanted, served };
        loop {
            let known = Arc::clone(&keys.borrow_and_update());
            // Reading and compiling keep a core busy, which must not be one that streams wait for.
            let reload = tokio::task::spawn_blocking(move || {
                self.reload(&mut reloader, known);
                (self, reloader)
            });
            match reload.await {
                Ok(both) => (self, reloader) = both,
                Err(panic) => std::panic::resume_unwind(panic.into_panic()),
            }
            tokio::select! {
                () = stop.cancelled() => break,
                () = self.wait() => {}
                // Never an error: a sender is held here.
                _ = keys.changed() => {}
            }
        }
        // It gives its Lease back.
        if let Some(writer) = writer {
            writer.await.ok();
        }
    }

    fn reload(&mut self, reloader: &mut Reloader, keys: Arc<KeySets>) {
        match self {
            Self::Folder(watched) => {
                let touched = mem::take(&mut *watched.news.lock());
                // Watched first: what is written while the folder is read is then told.
                if touched.contains(watched.folder.root()) {
                    // The watcher drops its watch when the folder's name goes, and cannot tell whether that is the
                    // folder it was put on or the one that came after.
                    watched.watched = None;
                }
                watched.watch();
                reloader.reload(&mut watched.folder, &touched, keys);
            }
            Self::Kubernetes(source) => reloader.reload_objects(source, keys),
        }
    }

    async fn wait(&self) {
        match self {
            Self::Folder(watched) => watched.news.wait().await,
            Self::Kubernetes(source) => {
                source.changed().await;
                settle(|| source.changed()).await;
            }
        }
    }
}

impl News {
    fn lock(&self) -> MutexGuard<'_, HashSet<PathBuf>> {
        self.touched.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for a change, and until it is over.
    async fn wait(&self) {
        if tokio::time::timeout(LOOK_ANYWAY, self.arrived.notified()).await.is_err() {
            return;
        }
        settle(|| self.arrived.notified()).await;
    }
}

/// Waits until changes are over.
async fn settle<F: Future<Output = ()>>(changed: impl Fn() -> F) {
    let latest = Instant::now() + AT_MOST;
    while Instant::now() < latest {
        if tokio::time::timeout(QUIET, changed()).await.is_err() {
            return;
        }
    }
}

struct Reloader {
    config: MeshConfig,
    publisher: watch::Sender<Option<Arc<State>>>,
    loaded: Arc<Loaded>,
    /// The mesh's settings as they last were good.
    settings: Option<MeshConfig>,
    /// Whose keys are to be fetched.
    wanted: watch::Sender<BTreeSet<Location>>,
    /// What is served, for whoever writes statuses.
    served: watch::Sender<Option<Arc<kubernetes::Served>>>,
}

impl Reloader {
    fn reload(&mut self, folder: &mut Folder, touched: &HashSet<PathBuf>, keys: Arc<KeySets>) {
        let other_keys = self.config.keys != keys;
        self.config.keys = keys;
        let begun = Instant::now();
        let at = SystemTime::now();
        let before = self.loaded.last();
        match folder.refresh(touched) {
            Ok(changed) => {
                if !changed && !other_keys && before.at.is_some() && before.unreadable.is_none() {
                    return;
                }
            }
            Err(error) => {
                let source = std::error::Error::source(&error);
                let source = source.map_or(String::new(), |source| format!(": {source}"));
                let reason = format!("{error}{source}");
                if before.unreadable.as_ref() != Some(&reason) {
                    error!(reason, "the last good state stays");
                }
                gauge!("aquifer_pilot_config_errors").set(1.0);
                let attempt = Attempt { unreadable: Some(reason), at: Some(at), ..before };
                *self.loaded.lock() = attempt;
                return;
            }
        }
        let (manifests, problems) = folder.load(&self.config.root_namespace);
        let opaque = folder.opaque().map(|path| {
            format!(
                "nobody knows what {} was to close: it has to be readable first",
                path.display()
            )
        });
        self.take(&manifests, problems, opaque, begun);
    }

    fn reload_objects(&mut self, source: &kubernetes::Source, keys: Arc<KeySets>) {
        self.config.keys = keys;
        let begun = Instant::now();
        match source.load(&self.config.root_namespace) {
            Some((manifests, problems)) => self.take(&manifests, problems, None, begun),
            None => {
                let before = self.loaded.last();
                let attempt = Attempt { unreadable: Some(source.missing()), ..before };
                *self.loaded.lock() = attempt;
            }
        }
    }

    /// Publishes what was read. `opaque` says why nothing may be published that would be the first.
    fn take(
        &mut self,
        manifests: &Manifests,
        mut problems: Vec<Problem>,
        opaque: Option<String>,
        begun: Instant,
    ) {
        let at = SystemTime::now();
        let before = self.loaded.last();
        let (config, found) = self.config.with_settings_of(manifests);
        let bad_settings = found.iter().any(|problem| problem.severity == Severity::Error);
        problems.extend(found);
        let attempt = Attempt { unreadable: None, problems: problems.into(), at: Some(at) };
        log(&before, &attempt);
        let errors = attempt.count(Severity::Error);
        gauge!("aquifer_pilot_config_errors").set(u32::try_from(errors).unwrap_or(u32::MAX));
        *self.loaded.lock() = attempt;
        let first = self.publisher.borrow().is_none();
        let held = opaque.filter(|_| first);
        if !bad_settings {
            self.settings = Some(config);
        }
        let (None, Some(config)) = (held.as_ref(), &self.settings) else {
            counter!("aquifer_pilot_config_loads", "result" => "refused").increment(1);
            let reason = held.unwrap_or("the mesh's settings have to be good first".to_owned());
            error!(errors, reason, "nothing is served yet");
            return;
        };
        let config = MeshConfig { keys: Arc::clone(&self.config.keys), ..config.clone() };
        let result = if errors > 0 { "partly_refused" } else { "taken" };
        counter!("aquifer_pilot_config_loads", "result" => result).increment(1);
        let wanted = jwks::wanted(manifests);
        self.wanted.send_if_modified(|known| {
            let news = *known != wanted;
            *known = wanted;
            news
        });
        if self.served.receiver_count() > 0 {
            self.served.send_replace(Some(Arc::new((manifests.clone(), config.clone()))));
        }
        let previous = self.publisher.borrow().clone();
        let snapshot = match &previous {
            Some(previous) => Snapshot::after(&previous.snapshot, manifests.clone(), &config),
            None => Snapshot::of(manifests.clone(), &config),
        };
        let compiled = snapshot.compiled().clone();
        let snapshot = Arc::new(snapshot);
        let state = State::after(previous.as_deref(), snapshot, compiled, at);
        let [addresses, authorizations] =
            ResourceType::ALL.map(|of| state.compiled.resources(of).len());
        let milliseconds = u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX);
        if state.is_news() {
            info!(
                generation = state.generation,
                addresses, authorizations, milliseconds, "published"
            );
        }
        // Identities may have changed even if no resource has.
        self.publisher.send_replace(Some(Arc::new(state)));
    }
}

/// Every problem once, when it appears.
fn log(before: &Attempt, attempt: &Attempt) {
    let known: HashSet<&Problem> = before.problems.iter().collect();
    for problem in attempt.problems.iter().filter(|problem| !known.contains(problem)) {
        match problem.severity {
            Severity::Error => error!(%problem, "manifest"),
            Severity::Warning => warn!(%problem, "manifest"),
        }
    }
}
