//! Puts the daemon together, runs it, and takes it down.
//!
//! In: settings. Out: a daemon that serves until SIGTERM, SIGINT or `/quitquitquit`, then drains. Control work runs
//! here, on one thread: configuration, certificates, pods, administration. Data threads are [`DataThreads`]' own.

use std::{
    io,
    path::PathBuf,
    rc::Rc,
    sync::{Arc, PoisonError},
    time::Duration,
};

use anyhow::Context;
use mesh::{
    hbone::HboneConfig,
    identity::{CaClient, CertificateSource, Identities, LocalCa},
    store::Store,
    telemetry::{self, LogHandle, Metrics},
    xds::{OnDemand, XdsStatus},
};
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::watch,
    task::{LocalSet, spawn_local},
};
use tokio_util::sync::CancellationToken;

use crate::{
    admin::{Addresses, ConnectionTable, Handles, Readiness, ReadyTask, Servers},
    admission::AnnouncedAt,
    balance::{Balance, DefaultLimits},
    capture::{
        Capture, CaptureConfig, CaptureError, Exclusions, Families, KeepAlive, SocketOptions,
        Sources, self_check,
    },
    config::{Config, HostSection, Mode, SocketSection},
    control_plane,
    identity::{self, metrics::CertificateMetrics},
    pods::{
        AddError, Announced, PodTable,
        folder::Folder,
        socket,
        zds::{self, Snapshot},
    },
    proxy::{self, DataThreads, Names, Node, PodLimits, Pods, Shortages, Source},
};

/// Pods that could not be served are tried again this often.
const RETRY_INTERVAL: Duration = Duration::from_secs(5);

/// Runs the daemon until it is told to end.
///
/// # Errors
/// What keeps it from starting: a missing privilege or kernel feature, an address in use, a folder that cannot be made.
pub fn run(config: &Config, log: LogHandle) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("starting the control thread")?;
    LocalSet::new().block_on(&runtime, serve(config, log))
}

async fn serve(config: &Config, log: LogHandle) -> anyhow::Result<()> {
    let metrics = Metrics::install().context("collecting metrics")?;
    telemetry::record_build("ztunnel", &config.node.istio_version);
    let servers = Servers::bind(&Addresses {
        admin: config.listen.admin,
        stats: config.listen.stats,
        readiness: config.listen.readiness,
    })?;
    let node = Arc::new(node(config)?);
    // A dedicated host has one identity, whoever else the control plane has on its node.
    if matches!(config.mode, Mode::Shared) {
        spawn_local(identity::prefetch::keep_prefetching(
            config.node.name.clone(),
            node.store.clone(),
            node.identities.clone(),
        ));
    }
    let readiness = Readiness::new();
    let threads = DataThreads::start(&node, config.threads.get())?;
    let pods = Pods::new(node.clone(), threads);

    let xds = control_plane::follow(config, &node, &readiness)?;
    spawn_local(metrics.clone().keep_up());
    let handles = handles(config, &node, &pods, xds.clone(), log, metrics, &readiness);
    spawn_local(async move {
        if let Err(error) = servers.serve(Arc::new(handles), CancellationToken::new()).await {
            tracing::error!(%error, "administration ended");
        }
    });
    let host = match &config.mode {
        Mode::Shared => {
            serve_pods(config, &pods, &xds, &readiness)?;
            None
        }
        Mode::Dedicated(host) => Some(serve_host(config, host, &pods, &readiness)?),
    };
    spawn_local(retry(pods.clone(), host));
    spawn_local(node.balance.clone().keep(node.store.clone()));
    // Queries are answered by the same threads, of which each pod has its own sockets before it is captured.
    readiness.task("dns proxy").ready();
    readiness.task("proxy").ready();

    wait_for_end(&node).await?;
    pods.let_go_of_host();
    end(&node, config.drain_limit).await;
    pods.join();
    tracing::info!("ended");
    Ok(())
}

/// What all data threads share, made of the settings.
fn node(config: &Config) -> anyhow::Result<Node> {
    let capture = Arc::new(open_capture(config)?);
    Ok(Node {
        network: config.node.network.as_str().into(),
        store: Store::new(),
        on_demand: if config.control_plane.on_demand {
            OnDemand::asking()
        } else {
            OnDemand::everything()
        },
        policies_known: watch::Sender::new(false),
        policy_decisions_at_info: config.policy_decisions_at_info,
        identities: identities(config)?,
        capture,
        dns: config.dns.clone(),
        hbone: tunnels(config),
        baggage: config.tunnels.baggage,
        announced: match config.tunnels.announce_on_loopback {
            true => AnnouncedAt::Loopback,
            false => AnnouncedAt::Pod,
        },
        limits: PodLimits {
            connections: config.limits.pod_connections,
            tunnels: config.limits.pod_tunnels,
            buffer_bytes: config.limits.pod_buffer_bytes.get(),
        },
        sources: match config.sockets.original_source {
            None => Sources::WherePossible,
            Some(true) => Sources::Preserved,
            Some(false) => Sources::Own,
        },
        socks5: config.sockets.socks5,
        shortages: Shortages::new(descriptor_limit()),
        drain_limit: config.drain_limit,
        balance: Balance::new(DefaultLimits {
            max_connections: config.limits.max_connections_per_destination,
            connection_rate: config.limits.connection_rate_per_identity,
        }),
        names: Names::default(),
        connections: ConnectionTable::new(),
        draining: CancellationToken::new(),
        ending: CancellationToken::new(),
    })
}

/// Serves the pods of this node, from our own registry and from Istio's node agent.
fn serve_pods(
    config: &Config,
    pods: &Rc<Pods>,
    xds: &watch::Receiver<XdsStatus>,
    readiness: &Readiness,
) -> anyhow::Result<()> {
    if let Some(who) = &config.node.workload {
        let metrics_port = config.listen.stats.port();
        pods.add_itself(who, metrics_port)
            .context("serving the daemon's own metrics in tunnels")?;
    }
    let folder = Folder::open(&config.pods.directory)
        .with_context(|| format!("opening the pod registry {}", config.pods.directory.display()))?;
    let registry = socket::listen(&config.pods.socket)
        .with_context(|| format!("listening on {}", config.pods.socket.display()))?;
    let folder_pods = Rc::new(pods.of(Source::Registry));
    let restored = restore(&folder, &*folder_pods);
    spawn_local(socket::serve(registry, folder_pods, folder));
    match &config.pods.node_agent {
        Some(path) => follow_node_agent(path.clone(), xds, pods, readiness, restored),
        None => restored.release_leftovers(pods),
    }
    Ok(())
}

/// Serves the processes of this host, as one workload. Not ready while it is not: its traffic may go out as it is.
fn serve_host(
    config: &Config,
    host: &HostSection,
    pods: &Pods,
    readiness: &Readiness,
) -> anyhow::Result<ReadyTask> {
    let own = [config.listen.stats.port(), config.listen.readiness.port()];
    let exclusions = Exclusions {
        inbound_ports: host.inbound_ports.iter().chain(&own).copied().collect(),
        outbound_ports: host.outbound_ports.clone(),
        destinations: host.destinations.clone(),
    };
    pods.exclude(&exclusions).context("excluding what is not to be captured")?;
    let task = readiness.task("host");
    match pods.add_host(&host.workload) {
        Ok(()) => task.ready(),
        Err(error) => tracing::error!(%error, "the host is not served yet"),
    }
    pods.release_leftovers();
    Ok(task)
}

fn open_capture(config: &Config) -> anyhow::Result<Capture> {
    let defaults = CaptureConfig::default();
    let cgroup = match &config.capture.cgroup {
        Some(cgroup) => cgroup.clone(),
        None => cgroup_root().unwrap_or(defaults.cgroup),
    };
    let sockets = socket_options(&config.sockets);
    let missing = match config.mode {
        Mode::Shared => self_check(&sockets),
        // No namespace but its own is entered.
        Mode::Dedicated(_) => Vec::new(),
    };
    if !missing.is_empty() {
        return Err(CaptureError::Unsupported { missing }.into());
    }
    let pin_dir = config.capture.pin_dir.clone();
    let capture = Capture::open(&CaptureConfig { pin_dir, cgroup, sockets })?;
    capture.exempt(&config.capture.exempt)?;
    Ok(capture)
}

fn socket_options(sockets: &SocketSection) -> SocketOptions {
    SocketOptions {
        keep_alive: sockets.keepalive.then_some(KeepAlive {
            time: sockets.keepalive_time,
            interval: sockets.keepalive_interval,
            retries: sockets.keepalive_retries.get(),
            user_timeout: sockets.user_timeout,
        }),
        mark: sockets.mark(),
        families: if sockets.ipv6 { Families::Both } else { Families::Ipv4 },
        port_reuse: sockets.port_reuse,
    }
}

/// How many descriptors the process may have; `main` has raised it as far as it may.
fn descriptor_limit() -> u64 {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    limit.current.unwrap_or(u64::MAX)
}

/// Where the machine has mounted cgroup v2: beside v1 it is not at `/sys/fs/cgroup`.
fn cgroup_root() -> Option<PathBuf> {
    let mounts = std::fs::read_to_string("/proc/self/mounts").ok()?;
    let mut mounts = mounts.lines().map(|line| line.split(' '));
    mounts.find_map(|mut fields| {
        let (path, kind) = (fields.nth(1)?, fields.next()?);
        (kind == "cgroup2").then(|| path.into())
    })
}

fn identities(config: &Config) -> anyhow::Result<Identities> {
    let plane = &config.control_plane;
    let server = control_plane::certificate_service(config);
    let authority: Arc<dyn CertificateSource> = match config.mode {
        _ if plane.own_authority => {
            tracing::warn!(
                "FAKE_CA: certificates are of a root of this process, and no other node knows it"
            );
            Arc::new(LocalCa::new(&config.node.trust_domain).context("making the root of FAKE_CA")?)
        }
        Mode::Shared => Arc::new(CaClient::new(server)),
        Mode::Dedicated(_) => Arc::new(CaClient::of_caller(server)),
    };
    identity::start(&config.identity, plane.certificate_lifetime, authority, &plane.ca_root)
}

fn tunnels(config: &Config) -> HboneConfig {
    let tunnels = &config.tunnels;
    HboneConfig {
        streams_per_tunnel: tunnels.streams_per_tunnel,
        idle_limit: tunnels.idle_limit,
        stream_window_bytes: tunnels.stream_window_bytes.get(),
        tunnel_window_bytes: tunnels.connection_window_bytes.get(),
        frame_bytes: tunnels.frame_bytes.get(),
        observer: proxy::observer(),
        ..HboneConfig::default()
    }
}

fn handles(
    config: &Config,
    node: &Arc<Node>,
    pods: &Pods,
    xds: watch::Receiver<XdsStatus>,
    log: LogHandle,
    metrics: Metrics,
    readiness: &Readiness,
) -> Handles {
    let (listing, capture) = (pods.listing(), node.capture.clone());
    Handles {
        network: node.network.clone(),
        store: node.store.clone(),
        identities: node.identities.clone(),
        certificate_metrics: CertificateMetrics::default(),
        balance: node.balance.clone(),
        connections: node.connections.clone(),
        pods: Box::new(move || {
            let listing = listing.lock().unwrap_or_else(PoisonError::into_inner);
            listing.values().cloned().collect()
        }),
        xds,
        log,
        metrics,
        capture_counters: Box::new(move || {
            capture.counters().unwrap_or_else(|error| {
                tracing::warn!(%error, "cannot read the capture programs' counters");
                Vec::new()
            })
        }),
        runtimes: pods.runtimes(),
        readiness: readiness.clone(),
        drain: node.draining.clone(),
        config: serde_json::to_value(config).unwrap_or_default(),
        istio_version: config.node.istio_version.clone(),
    }
}

/// Whether all pods that were recorded or announced are known to the table, served or refused.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Known {
    All,
    /// Some could not be read or opened, so that it is not known which captured pods are theirs.
    Some,
}

impl Known {
    /// Takes away what an earlier daemon captured and nobody names; unless somebody may have named it.
    fn release_leftovers(self, pods: &Pods) {
        match self {
            Self::All => pods.release_leftovers(),
            Self::Some => tracing::error!(
                "not every announced pod is known, so what an earlier daemon captured stays captured, and so refused"
            ),
        }
    }
}

/// Serves the pods that a former daemon served. A pod whose namespace is gone is forgotten.
fn restore(folder: &Folder, table: &impl PodTable) -> Known {
    let (records, bad) = match folder.load() {
        Ok(loaded) => loaded,
        Err(error) => {
            tracing::error!(%error, "cannot read the pod registry");
            return Known::Some;
        }
    };
    let mut known = if bad.is_empty() { Known::All } else { Known::Some };
    for error in bad {
        tracing::error!(%error, "a pod's record is passed over");
    }
    for record in records {
        match Announced::open(&record).and_then(|pod| table.add(pod)) {
            Ok(()) => {}
            Err(AddError::Netns { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
                tracing::info!(uid = %record.uid, pod = %record.name, "a recorded pod is gone");
                if let Err(error) = folder.delete(&record.uid) {
                    tracing::warn!(uid = %record.uid, %error, "the record of a pod that is gone stays");
                }
            }
            Err(error) => {
                if matches!(error, AddError::Netns { .. } | AddError::Enter { .. }) {
                    known = Known::Some;
                }
                tracing::error!(uid = %record.uid, pod = %record.name, %error, "a recorded pod is not served");
            }
        }
    }
    known
}

/// Follows Istio's node agent, and takes away what an earlier daemon captured and nobody names.
fn follow_node_agent(
    path: PathBuf,
    xds: &watch::Receiver<XdsStatus>,
    pods: &Rc<Pods>,
    readiness: &Readiness,
    restored: Known,
) {
    let task = readiness.task("workload proxy manager");
    let (tell, mut snapshot) = watch::channel(Snapshot::Pending);
    let (table, pods) = (Rc::new(pods.of(Source::NodeAgent)), pods.clone());
    let mut synced = xds.clone();
    spawn_local(async move {
        // Pods are taken over only once there are records and policies to serve them by.
        if synced.wait_for(XdsStatus::synced).await.is_ok() {
            zds::run(&path, table, tell).await;
        }
    });
    let mut waiting = pods.waiting();
    spawn_local(async move {
        let mut named = Snapshot::Pending;
        loop {
            let changed = tokio::select! {
                changed = snapshot.changed() => {
                    named = *snapshot.borrow_and_update();
                    match named {
                        Snapshot::Pending => {}
                        Snapshot::Complete => restored.release_leftovers(&pods),
                        Snapshot::Incomplete => Known::Some.release_leftovers(&pods),
                    }
                    changed
                }
                changed = waiting.changed() => changed,
            };
            if changed.is_err() {
                return;
            }
            // Ready: connected, all pods told, and none of them failing to start.
            if named == Snapshot::Pending || *waiting.borrow_and_update() > 0 {
                task.pending();
            } else {
                task.ready();
            }
        }
    });
}

/// Tries refused pods again, as often as Istio's ztunnel does.
async fn retry(pods: Rc<Pods>, host: Option<ReadyTask>) {
    loop {
        tokio::time::sleep(RETRY_INTERVAL).await;
        pods.retry();
        if let Some(host) = host.as_ref().filter(|_| pods.has_host()) {
            host.ready();
        }
        pods.follow_host();
    }
}

async fn wait_for_end(node: &Node) -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate()).context("listening for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("listening for SIGINT")?;
    tokio::select! {
        _ = terminate.recv() => tracing::info!("SIGTERM"),
        _ = interrupt.recv() => tracing::info!("SIGINT"),
        () = node.draining.cancelled() => tracing::info!("told to end"),
    }
    Ok(())
}

/// Takes no new connections, lets the open ones end, and cuts those that do not in time.
async fn end(node: &Node, limit: Duration) {
    node.draining.cancel();
    tracing::info!(?limit, "draining");
    let idle = async {
        let mut look = tokio::time::interval(Duration::from_millis(100));
        look.tick().await;
        loop {
            // Not at once: what the data threads accept last has to show first.
            look.tick().await;
            if node.connections.list().is_empty() {
                break;
            }
        }
    };
    if tokio::time::timeout(limit, idle).await.is_err() {
        tracing::warn!(
            open = node.connections.list().len(),
            "cutting connections that did not end"
        );
    }
    node.ending.cancel();
}
