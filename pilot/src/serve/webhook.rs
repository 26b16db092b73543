//! Answers the API server's question whether an object may be stored (port 15017, `/validate`).
//!
//! In: HTTPS requests. Out: answers of [`crate::manifests::review`]. An API server that gets none goes by the failure
//! policy of its configuration.

use std::{convert::Infallible, pin::pin, sync::Arc, time::Duration};

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use metrics::counter;
use rustls::ServerConfig;
use serde_json::Value;
use tokio::{net::TcpListener, time::timeout};
use tokio_rustls::TlsAcceptor;
use tokio_stream::StreamExt;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info};

use super::listen::handshakes;
use crate::manifests::review;

/// An object is at most 1.5 MiB with etcd's defaults, and comes with the one before.
const MAX_BODY_BYTES: usize = 8 * 1024 * 1024;
/// An API server waits ten seconds by default.
const PATIENCE: Duration = Duration::from_secs(10);

/// Serves until told to stop.
pub(crate) async fn serve(
    listener: TcpListener,
    tls: Arc<ServerConfig>,
    root_namespace: Arc<str>,
    stop: CancellationToken,
) {
    let mut incoming = pin!(handshakes(listener, TlsAcceptor::from(tls), stop.clone()));
    while let Some(Some(accepted)) = stop.run_until_cancelled(incoming.next()).await {
        let Ok(tls) = accepted else { continue };
        let root_namespace = Arc::clone(&root_namespace);
        let connection = async move {
            let answer = service_fn(|request| {
                let root_namespace = Arc::clone(&root_namespace);
                async move { Ok::<_, Infallible>(answer(request, &root_namespace).await) }
            });
            let mut server = http1::Builder::new();
            let served = server.timer(TokioTimer::new()).header_read_timeout(PATIENCE * 6);
            if let Err(error) = served.serve_connection(TokioIo::new(tls), answer).await {
                debug!(%error, "webhook connection");
            }
        };
        tokio::spawn(stop.clone().run_until_cancelled_owned(connection));
    }
}

async fn answer(request: Request<Incoming>, root_namespace: &str) -> Response<Full<Bytes>> {
    match (request.method(), request.uri().path()) {
        (&Method::POST, "/validate") => {}
        (_, "/validate") => return text(StatusCode::METHOD_NOT_ALLOWED, "only POST\n"),
        _ => return text(StatusCode::NOT_FOUND, "there is /validate\n"),
    }
    let body = Limited::new(request.into_body(), MAX_BODY_BYTES).collect();
    let body = match timeout(PATIENCE, body).await {
        Ok(Ok(body)) => body.to_bytes(),
        Ok(Err(error)) => {
            debug!(%error, "reading a review");
            return text(StatusCode::PAYLOAD_TOO_LARGE, "too large, or cut off\n");
        }
        Err(_) => return text(StatusCode::REQUEST_TIMEOUT, "took too long\n"),
    };
    let reviewed = serde_json::from_slice::<Value>(&body).ok();
    let Some(reviewed) = reviewed.and_then(|body| review(&body, root_namespace)) else {
        return text(StatusCode::BAD_REQUEST, "no AdmissionReview of admission.k8s.io/v1\n");
    };
    let kind = reviewed.kind.map_or("other", |kind| kind.name());
    match reviewed.refused {
        Some(reason) => {
            counter!("galley_validation_failed", "type" => kind).increment(1);
            info!(reason, "refused before it was stored");
        }
        None => counter!("galley_validation_passed", "type" => kind).increment(1),
    }
    let mut response = text(StatusCode::OK, reviewed.answer.to_string());
    let json = header::HeaderValue::from_static("application/json");
    response.headers_mut().insert(header::CONTENT_TYPE, json);
    response
}

fn text(status: StatusCode, body: impl Into<Bytes>) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body.into()));
    *response.status_mut() = status;
    response
}
