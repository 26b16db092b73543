//! Which path is answered by what.
//!
//! In: a request and the [`Handles`]. Out: its response.

use std::time::{Instant, SystemTime};

use hyper::{Method, StatusCode};
use mesh::telemetry::Exposition;
use serde::Serialize;

use super::{
    Handles, OpenConnection,
    config_dump::ConfigDump,
    endpoints,
    explain::Question,
    gauges,
    http::{Request, Response, html, json, respond, text},
};
use crate::next_hop::Experience;

const INDEX: &str = "<!DOCTYPE html>
<title>ztunnel</title>
<h1>ztunnel</h1>
<ul>
<li><a href=\"/config_dump\">/config_dump</a>: what the daemon knows and does
<li><a href=\"/connections\">/connections</a>: open connections
<li><a href=\"/aquifer/endpoints\">/aquifer/endpoints</a>: endpoints that connections failed to
<li>/explain?from=NAMESPACE/POD|outside&amp;to=ADDRESS:PORT: what would happen to a connection
<li>POST /logging?level=DIRECTIVES&amp;reset: the log's level
<li><a href=\"/debug/pprof/profile\">/debug/pprof/profile</a>?seconds=10&amp;frequency=100: where processor time goes
<li><a href=\"/debug/pprof/heap\">/debug/pprof/heap</a>: what holds memory, after POST /debug/pprof/heap/profiling?activate=true
<li>POST /quitquitquit: drain and stop
</ul>
";

/// Whether an answer of administration grows with the mesh or with the node's connections.
pub(super) fn is_long(request: &Request) -> bool {
    matches!(request.path.as_str(), "/config_dump" | "/connections")
}

/// Administration.
pub(super) fn admin(handles: &Handles, request: &Request) -> Response {
    match (&request.method, request.path.as_str()) {
        (&Method::GET, "/") => html(INDEX),
        (&Method::GET, "/config_dump") => json(StatusCode::OK, &ConfigDump::of(handles)),
        (&Method::GET, "/connections") => json(StatusCode::OK, &connections(handles)),
        (&Method::GET, "/aquifer/endpoints") => json(StatusCode::OK, &endpoints::shown(handles)),
        (&Method::GET, "/explain") => explain(handles, request),
        (&Method::POST, "/logging") => logging(handles, request),
        (&Method::POST, "/quitquitquit") => {
            handles.drain.cancel();
            text(StatusCode::OK, "shutting down now\n")
        }
        (_, "/" | "/config_dump" | "/connections" | "/aquifer/endpoints" | "/explain") => {
            only("GET")
        }
        (_, "/logging" | "/quitquitquit") => only("POST"),
        (_, _) => unknown(),
    }
}

/// Metrics.
pub(super) fn stats(handles: &Handles, request: &Request) -> Response {
    match (&request.method, request.path.as_str()) {
        (&Method::GET, "/metrics" | "/stats/prometheus") => {
            gauges::record(handles);
            let form = Exposition::accepted(request.accept());
            respond(StatusCode::OK, form.content_type(), handles.metrics.render(form).into())
        }
        (_, "/metrics" | "/stats/prometheus") => only("GET"),
        (_, _) => unknown(),
    }
}

/// Readiness.
pub(super) fn readiness(handles: &Handles, request: &Request) -> Response {
    match (&request.method, request.path.as_str()) {
        (&Method::GET, "/healthz/ready") => match handles.readiness.pending()[..] {
            [] => text(StatusCode::OK, "ready\n"),
            ref pending => {
                let sentence = format!("not ready, pending: {}\n", pending.join(", "));
                text(StatusCode::INTERNAL_SERVER_ERROR, sentence)
            }
        },
        (_, "/healthz/ready") => only("GET"),
        (_, _) => unknown(),
    }
}

fn logging(handles: &Handles, request: &Request) -> Response {
    let reset = request.parameter("reset").map(|_| handles.log.reset());
    let level = request.parameter("level").filter(|level| !level.is_empty());
    let added = level.map(|directives| handles.log.add(directives));
    match reset.into_iter().chain(added).find_map(Result::err) {
        Some(error) => text(StatusCode::BAD_REQUEST, format!("{error}\n")),
        None => {
            let current = handles.log.current();
            text(StatusCode::OK, format!("current log level is {current}\n"))
        }
    }
}

fn explain(handles: &Handles, request: &Request) -> Response {
    let answer = Question::of(request).and_then(|question| {
        let (snapshot, pods) = (handles.store.load(), (handles.pods)());
        let (balance, now) = (&handles.balance, Instant::now());
        let experience = Experience {
            open: &|workload| balance.open_to(&workload.uid),
            ejected: &|workload, ip| balance.is_ejected(now, &workload.uid, ip),
            tried: &[],
        };
        question.answer(&snapshot, &handles.network, &pods, &experience, rand::random())
    });
    match answer {
        Ok(explanation) => json(StatusCode::OK, &explanation),
        Err(bad) => json(StatusCode::BAD_REQUEST, &serde_json::json!({ "error": bad.to_string() })),
    }
}

/// An open connection as `/connections` shows it.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Shown {
    pod: String,
    direction: &'static str,
    source: String,
    original_destination: String,
    actual_destination: String,
    protocol: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    peer: Option<String>,
    age_seconds: u64,
}

fn connections(handles: &Handles) -> Vec<Shown> {
    let now = SystemTime::now();
    let shown = |(since, open): (SystemTime, OpenConnection)| Shown {
        pod: open.pod.as_str().to_owned(),
        direction: open.direction.as_str(),
        source: open.source.to_string(),
        original_destination: open.original_destination.to_string(),
        actual_destination: open.actual_destination.to_string(),
        protocol: open.protocol.as_str(),
        peer: open.peer.as_ref().map(ToString::to_string),
        age_seconds: now.duration_since(since).unwrap_or_default().as_secs(),
    };
    handles.connections.list().into_iter().map(shown).collect()
}

fn only(method: &str) -> Response {
    text(StatusCode::METHOD_NOT_ALLOWED, format!("only {method} is answered here\n"))
}

fn unknown() -> Response {
    text(StatusCode::NOT_FOUND, "no such page\n")
}
