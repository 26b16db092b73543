//! The gRPC listeners.

use std::{io, sync::Arc, time::Duration};

use proto::{
    ca::istio_certificate_service_server::IstioCertificateServiceServer,
    discovery::aggregated_discovery_service_server::AggregatedDiscoveryServiceServer,
    envoy::envoy::service::secret::v3::secret_discovery_service_server::SecretDiscoveryServiceServer,
};
use rustls::ServerConfig;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{Semaphore, mpsc},
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};
use tokio_stream::{
    Stream, StreamExt,
    wrappers::{ReceiverStream, TcpListenerStream},
};
use tokio_util::sync::CancellationToken;
use tonic::transport::{Server, server::Router};
use tracing::{debug, warn};

use super::{ServeError, ads::Discovery, certificates::Certificates, sds::Secrets};

/// A reconnecting daemon lists every resource it holds: 100,000 names take some megabytes.
const MAX_REQUEST_BYTES: usize = 200 * 1024 * 1024;
/// A peer that connects and says nothing.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// Handshakes at once; more wait in the kernel's backlog.
const HANDSHAKES: usize = 256;
/// A node that vanished is noticed after both.
const KEEPALIVE: Duration = Duration::from_secs(30);
const KEEPALIVE_ANSWER: Duration = Duration::from_secs(10);
/// After an error such as too many open files, accepting at once would only spin.
const ACCEPT_AGAIN: Duration = Duration::from_millis(100);

/// What the listeners offer.
#[derive(Clone)]
pub(crate) struct Services {
    /// Discovery for nodes.
    pub nodes: Discovery,
    /// Discovery for processes of this machine.
    pub local: Discovery,
    pub certificates: Certificates,
    pub secrets: Secrets,
}

/// Serves nodes.
pub(crate) async fn serve_tls(
    listener: TcpListener,
    tls: Arc<ServerConfig>,
    services: Services,
    stop: CancellationToken,
) -> Result<(), ServeError> {
    let incoming = handshakes(listener, TlsAcceptor::from(tls), stop.clone());
    router(services.nodes, services.certificates, services.secrets)
        .serve_with_incoming_shutdown(incoming, stop.cancelled())
        .await
        .map_err(|source| ServeError::Server { what: "TLS", source })
}

/// Serves processes of this machine.
pub(crate) async fn serve_plain(
    listener: TcpListener,
    services: Services,
    stop: CancellationToken,
) -> Result<(), ServeError> {
    let incoming = TcpListenerStream::new(listener).map(|accepted| accepted.inspect(no_delay));
    router(services.local, services.certificates, services.secrets)
        .serve_with_incoming_shutdown(incoming, stop.cancelled())
        .await
        .map_err(|source| ServeError::Server { what: "loopback", source })
}

fn router(discovery: Discovery, certificates: Certificates, secrets: Secrets) -> Router {
    let discovery = AggregatedDiscoveryServiceServer::new(discovery)
        .max_decoding_message_size(MAX_REQUEST_BYTES);
    Server::builder()
        .http2_keepalive_interval(Some(KEEPALIVE))
        .http2_keepalive_timeout(Some(KEEPALIVE_ANSWER))
        .add_service(discovery)
        .add_service(IstioCertificateServiceServer::new(certificates))
        .add_service(SecretDiscoveryServiceServer::new(secrets))
}

/// Connections whose handshake is done, each made in a task of its own so that none waits for a slow one.
pub(super) fn handshakes(
    listener: TcpListener,
    acceptor: TlsAcceptor,
    stop: CancellationToken,
) -> impl Stream<Item = io::Result<TlsStream<TcpStream>>> {
    // A full channel makes finished handshakes wait, and with them, by the semaphore, new connections.
    let (done, ready) = mpsc::channel(16);
    let room = Arc::new(Semaphore::new(HANDSHAKES));
    tokio::spawn(stop.run_until_cancelled_owned(async move {
        loop {
            let Ok(permit) = Arc::clone(&room).acquire_owned().await else { return };
            let (tcp, peer) = match listener.accept().await {
                Ok(accepted) => accepted,
                Err(error) => {
                    warn!(%error, "accepting a connection");
                    tokio::time::sleep(ACCEPT_AGAIN).await;
                    continue;
                }
            };
            no_delay(&tcp);
            let (acceptor, done) = (acceptor.clone(), done.clone());
            tokio::spawn(async move {
                match tokio::time::timeout(HANDSHAKE, acceptor.accept(tcp)).await {
                    Ok(Ok(stream)) => {
                        // Fails only when the server has ended.
                        done.send(Ok(stream)).await.ok();
                    }
                    Ok(Err(error)) => debug!(%peer, %error, "TLS handshake failed"),
                    Err(_) => debug!(%peer, "TLS handshake took too long"),
                }
                drop(permit);
            });
        }
    }));
    ReceiverStream::new(ready)
}

/// A change is one small message, which would wait for the answer to the one before.
fn no_delay(tcp: &TcpStream) {
    if let Err(error) = tcp.set_nodelay(true) {
        debug!(%error, "setting TCP_NODELAY");
    }
}
