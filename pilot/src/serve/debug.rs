//! The page for people and for monitoring, on port 15014.

use std::{convert::Infallible, sync::Arc, time::Duration};

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, Uri, header};
use http_body_util::Full;
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use mesh::telemetry::{Exposition, Metrics};
use serde_json::{Value, json};
use tokio::{net::TcpListener, sync::watch};
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use super::{
    clients::{Client, Clients, timestamp},
    dump,
    publish::Loaded,
    state::State,
    view::View,
};
use crate::{
    compile::ResourceType,
    manifests::{Problem, Severity},
};

/// A peer that connects and asks nothing.
const HEADER_LIMIT: Duration = Duration::from_secs(2);

const PAGES: &str = "there are /debug/syncz, /debug/clients, /debug/config, /debug/config_dump?proxy=, \
                     /debug/endpointz?proxy=, /metrics and /ready\n";

/// What the page shows.
#[derive(Clone)]
pub(crate) struct Page {
    pub state: watch::Receiver<Option<Arc<State>>>,
    pub loaded: Arc<Loaded>,
    pub clients: Arc<Clients>,
    pub metrics: Metrics,
}

/// Serves the page until told to stop.
pub(crate) async fn serve(listener: TcpListener, page: Page, stop: CancellationToken) {
    while let Some(accepted) = stop.run_until_cancelled(listener.accept()).await {
        let tcp = match accepted {
            Ok((tcp, _)) => tcp,
            Err(error) => {
                warn!(%error, "accepting a debug connection");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let page = page.clone();
        let connection = async move {
            let answer = service_fn(|request| {
                let page = page.clone();
                async move { Ok::<_, Infallible>(page.answer(&request).await) }
            });
            let mut server = http1::Builder::new();
            let served = server.timer(TokioTimer::new()).header_read_timeout(HEADER_LIMIT);
            if let Err(error) = served.serve_connection(TokioIo::new(tcp), answer).await {
                debug!(%error, "debug connection");
            }
        };
        tokio::spawn(stop.clone().run_until_cancelled_owned(connection));
    }
}

impl Page {
    async fn answer(&self, request: &Request<Incoming>) -> Response<Full<Bytes>> {
        if request.method() != Method::GET {
            return text(StatusCode::METHOD_NOT_ALLOWED, "only GET\n");
        }
        match request.uri().path() {
            "/debug/syncz" => json_response(&self.syncz()),
            "/debug/clients" => json_response(&self.clients()),
            "/debug/config" => json_response(&self.config()),
            "/debug/config_dump" => self.dump(request.uri(), dump::config).await,
            "/debug/endpointz" => self.dump(request.uri(), dump::endpoints).await,
            "/metrics" => text(StatusCode::OK, self.metrics.render(Exposition::Prometheus)),
            "/ready" if self.state.borrow().is_some() => text(StatusCode::OK, "ready\n"),
            "/ready" => text(StatusCode::SERVICE_UNAVAILABLE, "no good configuration yet\n"),
            _ => text(StatusCode::NOT_FOUND, PAGES),
        }
    }

    /// How far each client is, as istiod says it.
    fn syncz(&self) -> Value {
        self.clients.list().iter().map(Client::sync_status).collect()
    }

    /// What a client has: the one that `proxy=` names.
    async fn dump(
        &self,
        uri: &Uri,
        of: impl FnOnce(&View) -> anyhow::Result<Value> + Send + 'static,
    ) -> Response<Full<Bytes>> {
        let named = uri.query().and_then(|query| {
            let mut pairs = query.split('&').filter_map(|pair| pair.split_once('='));
            pairs.find(|(key, _)| matches!(*key, "proxy" | "proxyID"))
        });
        let Some((_, proxy)) = named else {
            return text(
                StatusCode::BAD_REQUEST,
                "say whose: ?proxy=POD.NAMESPACE or its node id\n",
            );
        };
        let proxy = proxy.replace("%7E", "~");
        let Some(client) = self.clients.find(&proxy) else {
            return text(StatusCode::NOT_FOUND, format!("no client {proxy} is connected\n"));
        };
        let Some(view) = client.view().cloned() else { return json_response(&json!({})) };
        // Large ones take a while, in which a thread of the runtime would serve nobody.
        match tokio::task::spawn_blocking(move || of(&view)).await {
            Ok(Ok(value)) => json_response(&value),
            Ok(Err(error)) => text(StatusCode::INTERNAL_SERVER_ERROR, format!("{error:#}\n")),
            Err(error) => text(StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")),
        }
    }

    /// Who has what.
    fn clients(&self) -> Value {
        let attempt = self.loaded.last();
        json!({
            "published": self.published(),
            "config": {
                "loaded": attempt.at.map(timestamp),
                "unreadable": attempt.unreadable,
                "errors": attempt.count(Severity::Error),
                "warnings": attempt.count(Severity::Warning),
            },
            "clients": self.clients.list(),
        })
    }

    /// What was read, and what is wrong with it.
    fn config(&self) -> Value {
        let attempt = self.loaded.last();
        let listed = |severity| -> Vec<Value> {
            let problems = attempt.problems.iter();
            problems.filter(|problem| problem.severity == severity).map(problem_json).collect()
        };
        json!({
            "published": self.published(),
            "loaded": attempt.at.map(timestamp),
            "unreadable": attempt.unreadable,
            "errors": listed(Severity::Error),
            "warnings": listed(Severity::Warning),
        })
    }

    fn published(&self) -> Value {
        let Some(state) = self.state.borrow().clone() else { return Value::Null };
        let types = ResourceType::ALL.into_iter().map(|of| {
            let resources = state.compiled.resources(of).len();
            (of.name().to_owned(), json!({ "version": state.digest(of), "resources": resources }))
        });
        json!({
            "generation": state.generation,
            "time": timestamp(state.at),
            "types": types.collect::<serde_json::Map<_, _>>(),
        })
    }
}

fn problem_json(problem: &Problem) -> Value {
    json!({
        "file": problem.place.file.to_string_lossy(),
        "line": problem.place.line,
        "object": problem.object,
        "field": problem.field,
        "reason": problem.reason,
    })
}

fn json_response(value: &Value) -> Response<Full<Bytes>> {
    let mut response = text(StatusCode::OK, format!("{value:#}\n"));
    let kind = header::HeaderValue::from_static("application/json");
    response.headers_mut().insert(header::CONTENT_TYPE, kind);
    response
}

fn text(status: StatusCode, body: impl Into<Bytes>) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body.into()));
    *response.status_mut() = status;
    response
}
