//! The aggregated discovery service: one task for each stream.
//!
//! In: requests and views. Out: responses, as [`Session`] decides, by either protocol. A client that is slow to read or
//! to answer holds up its own stream only, and finds the newest state when it goes on.

use std::{
    pin::Pin,
    sync::Arc,
    time::{Instant, SystemTime},
};

use proto::{
    discovery::{
        DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse,
        aggregated_discovery_service_server::AggregatedDiscoveryService,
    },
    envoy::envoy::config::core::v3::Node,
    google::value::Kind,
};
use tokio::sync::{Semaphore, mpsc, watch};
use tokio_stream::{Stream, wrappers::ReceiverStream};
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, Streaming};
use tracing::warn;

use super::{
    clients::{Clients, Entry, Identification},
    follow::{self, Newest, Waypoint},
    session::{Audience, Event, Session},
    state::State,
    view::View,
    wire,
};
use crate::callers::{self, Callers, Proof};

/// What the node id of a waypoint begins with.
const WAYPOINT: &str = "waypoint~";

/// Who may ask.
#[derive(Clone, Debug)]
pub(crate) enum Access {
    /// Whoever proves who it is.
    Proven(Callers),
    /// Whoever can connect; a token that is shown proves something nevertheless.
    Open(Callers),
}

/// The service, for one listener.
#[derive(Clone, Debug)]
pub(crate) struct Discovery {
    pub state: watch::Receiver<Option<Arc<State>>>,
    pub clients: Arc<Clients>,
    pub access: Access,
    /// For compilations at the same time.
    pub room: Arc<Semaphore>,
    pub stop: CancellationToken,
}

type Responses<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl AggregatedDiscoveryService for Discovery {
    type StreamAggregatedResourcesStream = Responses<DiscoveryResponse>;
    type DeltaAggregatedResourcesStream = Responses<DeltaDiscoveryResponse>;

    async fn stream_aggregated_resources(
        &self,
        request: Request<Streaming<DiscoveryRequest>>,
    ) -> Result<Response<Self::StreamAggregatedResourcesStream>, Status> {
        self.open(request).await
    }

    async fn delta_aggregated_resources(
        &self,
        request: Request<Streaming<DeltaDiscoveryRequest>>,
    ) -> Result<Response<Self::DeltaAggregatedResourcesStream>, Status> {
        self.open(request).await
    }
}

/// Where a client's views come from.
enum Views {
    Daemon { states: watch::Receiver<Option<Arc<State>>>, view: Option<Arc<View>> },
    Waypoint(Newest),
}

impl Discovery {
    async fn open<R: wire::Request>(
        &self,
        request: Request<Streaming<R>>,
    ) -> Result<Response<Responses<R::Response>>, Status> {
        let certificates = request.peer_certs();
        let shown = certificates.as_ref().map(|all| all.as_slice());
        let proof = match &self.access {
            Access::Proven(callers) => Some(callers.prove(request.metadata(), shown).await?),
            Access::Open(callers) if request.metadata().contains_key("authorization") => {
                Some(callers.prove(request.metadata(), shown).await?)
            }
            Access::Open(_) => None,
        };
        let node = proof.as_ref().and_then(|proof| proof.caller().node()).map(str::to_owned);
        let address = request.remote_addr();
        // One response waits here while HTTP/2 sends the one before: the stream's task waits for room.
        let (responses, receiver) = mpsc::channel(1);
        let service = self.clone();
        tokio::spawn(async move {
            let mut requests = request.into_inner();
            let who = Identification {
                authenticated: proof.is_some(),
                node: node.unwrap_or_default(),
                address,
                ..Identification::default()
            };
            let ended = tokio::select! {
                ended = service.stream(who, proof, &mut requests, &responses) => ended,
                () = service.stop.cancelled() => Err(Status::unavailable("pilot is stopping")),
            };
            if let Err(status) = ended {
                // Nobody is there to be told if this fails.
                responses.try_send(Err(status)).ok();
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }

    async fn stream<R: wire::Request>(
        &self,
        mut who: Identification,
        proof: Option<Proof>,
        requests: &mut Streaming<R>,
        responses: &mpsc::Sender<Result<R::Response, Status>>,
    ) -> Result<(), Status> {
        let Some(first) = requests.message().await? else { return Ok(()) };
        let said = first.node().cloned().unwrap_or_default();
        who.describe(&said);
        if let Some(proof) = &proof {
            callers::may_call_itself(proof.caller(), &who.id).map_err(|reason| {
                warn!(caller = %proof.caller(), reason, "refusing an xds stream");
                Status::permission_denied(reason)
            })?;
        }
        if !who.authenticated {
            // A client on loopback says itself which node it is on.
            who.node = text(&said, "NODE_NAME");
        }
        let is_waypoint = said.id.starts_with(WAYPOINT);
        let audience = if is_waypoint { Audience::Waypoint } else { Audience::Daemon };
        let mut session = Session::new(audience, R::PROTOCOL, &who.node);
        let mut views = if is_waypoint {
            let caller = proof.as_ref().map(|proof| proof.caller().clone());
            let waypoint = Waypoint { node: said, caller };
            let room = Arc::clone(&self.room);
            Views::Waypoint(follow::follow(waypoint, self.state.clone(), room))
        } else {
            Views::Daemon { states: self.state.clone(), view: None }
        };
        let entry = self.clients.enter(who);
        take(&mut session, &entry, first)?;
        loop {
            let current = views.current()?;
            if let Some(view) = current.as_ref().filter(|_| session.looks_up()) {
                make_index(&view.state).await;
            }
            while let Some(push) =
                current.as_ref().and_then(|view| session.next(view, Instant::now()))
            {
                let Ok(room) = responses.reserve().await else { return Ok(()) };
                // A token that was revoked since ends the stream that it began.
                if let Some(proof) = &proof {
                    proof.holds(SystemTime::now())?;
                }
                entry.sent(&push, current.as_ref());
                room.send(Ok(R::response(push)));
            }
            let timeout = async {
                // Without a state there is nothing to hold back, and a moment that has passed would come at once again.
                match current.as_ref().and_then(|_| session.poll_timeout()) {
                    Some(at) => tokio::time::sleep_until(at.into()).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                request = requests.message() => match request? {
                    Some(request) => take(&mut session, &entry, request)?,
                    None => return Ok(()),
                },
                changed = views.changed() => if changed.is_err() {
                    return Err(Status::unavailable("pilot is stopping"));
                },
                () = timeout => {}
            }
        }
    }
}

impl Views {
    /// The newest one; none before there is a state.
    fn current(&mut self) -> Result<Option<Arc<View>>, Status> {
        match self {
            Self::Daemon { states, view } => {
                let state = states.borrow_and_update().clone();
                let is_old = |view: &Arc<View>| {
                    state.as_ref().is_some_and(|state| !Arc::ptr_eq(&view.state, state))
                };
                if view.as_ref().is_none_or(is_old) {
                    *view = state.map(|state| Arc::new(View::of_daemon(state)));
                }
                Ok(view.clone())
            }
            Self::Waypoint(newest) => newest.borrow_and_update().clone().transpose(),
        }
    }

    async fn changed(&mut self) -> Result<(), watch::error::RecvError> {
        match self {
            Self::Daemon { states, .. } => states.changed().await,
            Self::Waypoint(newest) => newest.changed().await,
        }
    }
}

/// Reading every workload takes a while, in which a thread of the runtime would serve nobody.
async fn make_index(state: &Arc<State>) {
    if state.lacks_index() {
        let state = Arc::clone(state);
        // If it fails, the session makes it itself.
        tokio::task::spawn_blocking(move || {
            state.index();
        })
        .await
        .ok();
    }
}

fn take<R: wire::Request>(
    session: &mut Session,
    entry: &Entry<'_>,
    request: R,
) -> Result<(), Status> {
    let Some(ask) = request.ask(session) else {
        entry.event(Event::Stale);
        return Ok(());
    };
    match session.handle(ask, Instant::now()) {
        Ok(event) => {
            entry.event(event);
            Ok(())
        }
        Err(unserved) => {
            warn!(%unserved, "refusing an xds stream");
            Err(Status::unimplemented(unserved.to_string()))
        }
    }
}

/// A text of a node's metadata.
pub(crate) fn text(node: &Node, key: &str) -> String {
    let value = node.metadata.as_ref().and_then(|metadata| metadata.fields.get(key));
    match value.and_then(|value| value.kind.as_ref()) {
        Some(Kind::StringValue(text)) => text.clone(),
        _ => String::new(),
    }
}
