//! Hands out what was compiled, and certificates.
//!
//! In: [`ServeConfig`]. Out: a running control plane: discovery for daemons and waypoints and the certificate service, on
//! TLS and on loopback, and a page for people. [`run`] returns when it was told to stop or cannot go on.

mod ads;
mod certificates;
mod clients;
mod debug;
mod dump;
mod follow;
#[cfg(test)]
mod follow_tests;
mod listen;
mod lookup;
#[cfg(test)]
mod lookup_tests;
mod publish;
mod sds;
mod secrets;
mod session;
#[cfg(test)]
mod session_tests;
#[cfg(test)]
mod sotw_tests;
mod state;
mod subscription;
mod tokens;
mod types;
mod view;
#[cfg(test)]
mod waypoint_session_tests;
mod webhook;
mod wire;

use std::{net::SocketAddr, num::NonZero, path::PathBuf, sync::Arc, time::Duration};

use mesh::telemetry::Metrics;
use tokio::{
    net::TcpListener,
    sync::{Semaphore, watch},
    task::JoinSet,
};
use tokio_util::sync::CancellationToken;
use tracing::info;

pub(crate) use tokens::ShownToken;
pub use tokens::{NodeTokens, Refused, TokenError};

use crate::{
    ca::{CertificateAuthority, ListenerError, OpenError},
    callers::{Callers, TokenReviewer},
    compile::MeshConfig,
    deploy,
    kubernetes::{self, ConnectError},
};

/// How long streams may take to end after a signal.
const DRAIN: Duration = Duration::from_secs(5);

/// What to serve, and where.
#[derive(Clone, Debug)]
pub struct ServeConfig {
    /// Where manifests come from.
    pub manifests: ManifestSource,
    /// The folder of the root's key and the nodes' tokens.
    pub data: PathBuf,
    /// The folder of an authority that others have made. Without one it may be in `data`, and else there is a root of our
    /// own.
    pub cacerts: Option<PathBuf>,
    /// Where nodes connect. Port 0 takes any that is free.
    pub listen_tls: SocketAddr,
    /// Where processes of this machine connect without TLS; a loopback address.
    pub listen_plain: SocketAddr,
    /// Where people and monitoring look.
    pub listen_debug: SocketAddr,
    /// Service accounts of node daemons, as `namespace/name`: they ask for certificates in the names of their node's
    /// pods.
    pub node_accounts: Vec<String>,
    /// Further DNS names and addresses for our own certificate.
    pub names: Vec<String>,
    /// Where an API server asks whether an object may be stored. With Kubernetes only.
    pub listen_webhook: SocketAddr,
    /// What the mesh is called.
    pub mesh: MeshConfig,
}

/// Where manifests come from.
#[derive(Clone, Debug)]
pub enum ManifestSource {
    /// A folder of YAML files.
    Folder(PathBuf),
    /// An API server.
    Kubernetes {
        /// How to reach it. Without one, `$KUBECONFIG` or the pod's service account says.
        kubeconfig: Option<PathBuf>,
        /// How the waypoints that Gateways ask for are run; without it somebody else runs them.
        waypoints: Option<deploy::Settings>,
    },
}

/// Why pilot cannot serve.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The root cannot be used.
    #[error("opening the certificate authority")]
    Authority {
        /// What is wrong with it.
        source: OpenError,
    },
    /// Our own certificate cannot be made.
    #[error("making pilot's own certificate")]
    OwnCertificate {
        /// What is wrong with it.
        source: ListenerError,
    },
    /// An address cannot be listened on.
    #[error("listening on {address}")]
    Listen {
        /// Which.
        address: SocketAddr,
        /// The system's reason.
        source: std::io::Error,
    },
    /// Plain text would be open to others.
    #[error(
        "{address} is no loopback address, and what is served there is neither encrypted nor asks who calls"
    )]
    NotLoopback {
        /// Which.
        address: SocketAddr,
    },
    /// The folder cannot be watched.
    #[error("watching the folder of manifests")]
    Watch {
        /// The system's reason.
        source: notify::Error,
    },
    /// There is no API server to watch.
    #[error("watching an API server")]
    Kubernetes {
        /// Why not.
        source: ConnectError,
    },
    /// A server ended without having been told to.
    #[error("serving {what}")]
    Server {
        /// Which.
        what: &'static str,
        /// Its reason.
        source: tonic::transport::Error,
    },
}

/// Serves until `stop` is cancelled.
///
/// # Errors
/// [`ServeError`] if it cannot begin or a server fails.
pub async fn run(
    config: ServeConfig,
    metrics: Metrics,
    stop: CancellationToken,
) -> Result<(), ServeError> {
    if !config.listen_plain.ip().is_loopback() {
        return Err(ServeError::NotLoopback { address: config.listen_plain });
    }
    let (data, cacerts) = (&config.data, config.cacerts.as_deref());
    let authority = CertificateAuthority::open_at(data, cacerts, &config.mesh.trust_domain)
        .map_err(|source| ServeError::Authority { source })?;
    authority.forget_ended();
    let tls = authority
        .server_config(&config.names)
        .map_err(|source| ServeError::OwnCertificate { source })?;
    let tls_listener = bind("tls", config.listen_tls).await?;
    let plain_listener = bind("plain", config.listen_plain).await?;
    let debug_listener = bind("debug", config.listen_debug).await?;

    let (publisher, state) = watch::channel(None);
    let loaded = Arc::new(publish::Loaded::default());
    let clients = Arc::new(clients::Clients::default());
    let (input, reviewer) = match &config.manifests {
        ManifestSource::Folder(folder) => {
            (publish::Input::Folder(publish::Watched::start(folder)?), None)
        }
        ManifestSource::Kubernetes { kubeconfig, waypoints } => {
            let client = kubernetes::connect(kubeconfig.as_deref()).await;
            let client = client.map_err(|source| ServeError::Kubernetes { source })?;
            let reviewer = TokenReviewer::new(client.clone());
            start_webhook(&config, &authority, client.clone(), &stop).await?;
            let source = kubernetes::Source::start(client, waypoints.clone());
            (publish::Input::Kubernetes(source), Some(reviewer))
        }
    };
    let callers = Callers::new(NodeTokens::new(&config.data), reviewer);
    let certificates = certificates::Certificates {
        authority,
        callers: callers.clone(),
        node_accounts: config.node_accounts,
        state: state.clone(),
        trust_domain: config.mesh.trust_domain.clone(),
    };
    let secrets = sds::Secrets {
        authority: certificates.authority.clone(),
        callers: callers.clone(),
        state: state.clone(),
        trust_domain: config.mesh.trust_domain.clone(),
        stop: stop.clone(),
    };
    let cores = std::thread::available_parallelism().map_or(1, NonZero::get);
    let room = Arc::new(Semaphore::new(cores));
    let discovery = |access| ads::Discovery {
        state: state.clone(),
        clients: Arc::clone(&clients),
        access,
        room: Arc::clone(&room),
        stop: stop.clone(),
    };
    let services = listen::Services {
        nodes: discovery(ads::Access::Proven(callers.clone())),
        local: discovery(ads::Access::Open(callers)),
        certificates,
        secrets,
    };
    let page = debug::Page { state: state.clone(), loaded: Arc::clone(&loaded), clients, metrics };

    let mut tasks = JoinSet::new();
    tasks.spawn(listen::serve_tls(tls_listener, tls, services.clone(), stop.clone()));
    tasks.spawn(listen::serve_plain(plain_listener, services, stop.clone()));
    tasks.spawn({
        let stop = stop.clone();
        async move {
            debug::serve(debug_listener, page, stop).await;
            Ok(())
        }
    });
    tasks.spawn({
        let stop = stop.clone();
        async move {
            input.publish(config.mesh, publisher, loaded, stop).await;
            Ok(())
        }
    });
    wait(tasks, stop).await
}

/// Answers an API server that asks whether an object may be stored, and tells it by which roots to know us.
async fn start_webhook(
    config: &ServeConfig,
    authority: &CertificateAuthority,
    client: kube::Client,
    stop: &CancellationToken,
) -> Result<(), ServeError> {
    let tls = authority
        .webhook_config(&config.names)
        .map_err(|source| ServeError::OwnCertificate { source })?;
    let listener = bind("webhook", config.listen_webhook).await?;
    let root_namespace = config.mesh.root_namespace.as_str().into();
    tokio::spawn(webhook::serve(listener, tls, root_namespace, stop.clone()));
    let authority = authority.clone();
    let told = kubernetes::keep_bundle(client, move || authority.root_pem());
    tokio::spawn(stop.clone().run_until_cancelled_owned(told));
    Ok(())
}

/// Waits for all to end, and no longer than [`DRAIN`] after the signal.
async fn wait(
    mut tasks: JoinSet<Result<(), ServeError>>,
    stop: CancellationToken,
) -> Result<(), ServeError> {
    let mut result = Ok(());
    let drained = async {
        stop.cancelled().await;
        tokio::time::sleep(DRAIN).await;
    };
    tokio::pin!(drained);
    loop {
        let ended = tokio::select! {
            ended = tasks.join_next() => ended,
            () = &mut drained => return result,
        };
        match ended {
            None => return result,
            Some(Ok(Ok(()))) => {}
            Some(Ok(Err(error))) => result = Err(error),
            Some(Err(panic)) => std::panic::resume_unwind(panic.into_panic()),
        }
        // One that ended takes the others with it: half a control plane is none.
        stop.cancel();
    }
}

async fn bind(what: &'static str, address: SocketAddr) -> Result<TcpListener, ServeError> {
    let failed = |source| ServeError::Listen { address, source };
    let listener = TcpListener::bind(address).await.map_err(failed)?;
    let bound = listener.local_addr().map_err(failed)?;
    info!(what, address = %bound, "listening");
    Ok(listener)
}
