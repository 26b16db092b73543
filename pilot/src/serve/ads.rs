//! The aggregated discovery service: one task for each stream.
//!
//! In: requests and states. Out: responses, as [`Session`] decides. A client that is slow to read or to answer holds up
//! its own stream only, and finds the newest state when it goes on.

use std::{
    pin::Pin,
    sync::Arc,
    time::{Instant, SystemTime},
};

use proto::discovery::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse,
    aggregated_discovery_service_server::AggregatedDiscoveryService,
};
use proto::google::value::Kind;
use tokio::sync::{mpsc, watch};
use tokio_stream::{Stream, wrappers::ReceiverStream};
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, Streaming};
use tracing::warn;

use super::{
    clients::{Clients, Entry, Identification},
    session::Session,
    state::State,
};
use crate::callers::{self, Callers, Proof};

/// Who may ask.
#[derive(Clone, Debug)]
pub(crate) enum Access {
    /// Whoever proves who it is.
    Proven(Callers),
    /// Whoever can connect.
    Open,
}

/// The service, for one listener.
#[derive(Clone, Debug)]
pub(crate) struct Discovery {
    pub state: watch::Receiver<Option<Arc<State>>>,
    pub clients: Arc<Clients>,
    pub access: Access,
    pub stop: CancellationToken,
}

type Responses<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl AggregatedDiscoveryService for Discovery {
    type StreamAggregatedResourcesStream = Responses<DiscoveryResponse>;
    type DeltaAggregatedResourcesStream = Responses<DeltaDiscoveryResponse>;

    async fn stream_aggregated_resources(
        &self,
        _: Request<Streaming<DiscoveryRequest>>,
    ) -> Result<Response<Self::StreamAggregatedResourcesStream>, Status> {
        Err(Status::unimplemented("only delta discovery is served"))
    }

    async fn delta_aggregated_resources(
        &self,
        request: Request<Streaming<DeltaDiscoveryRequest>>,
    ) -> Result<Response<Self::DeltaAggregatedResourcesStream>, Status> {
        let proof = match &self.access {
            Access::Proven(callers) => {
                let certificates = request.peer_certs();
                let shown = certificates.as_ref().map(|all| all.as_slice());
                Some(callers.prove(request.metadata(), shown).await?)
            }
            Access::Open => None,
        };
        let node = proof.as_ref().and_then(|proof| proof.caller().node()).map(str::to_owned);
        let address = request.remote_addr();
        // One response waits here while HTTP/2 sends the one before: the stream's task waits for room.
        let (responses, receiver) = mpsc::channel(1);
        let service = self.clone();
        tokio::spawn(async move {
            let mut requests = request.into_inner();
            let who = Identification {
                id: String::new(),
                authenticated: proof.is_some(),
                node: node.unwrap_or_default(),
                address,
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
}

type Outgoing = mpsc::Sender<Result<DeltaDiscoveryResponse, Status>>;

impl Discovery {
    async fn stream(
        &self,
        mut who: Identification,
        proof: Option<Proof>,
        requests: &mut Streaming<DeltaDiscoveryRequest>,
        responses: &Outgoing,
    ) -> Result<(), Status> {
        let Some(first) = requests.message().await? else { return Ok(()) };
        identify(&mut who, &first);
        if let Some(proof) = &proof {
            callers::may_call_itself(proof.caller(), &who.id).map_err(|reason| {
                warn!(caller = %proof.caller(), reason, "refusing an xds stream");
                Status::permission_denied(reason)
            })?;
        }
        let entry = self.clients.enter(who);
        let mut session = Session::default();
        take(&mut session, &entry, first)?;
        let mut state = self.state.clone();
        loop {
            let current = state.borrow_and_update().clone();
            while let Some(push) =
                current.as_ref().and_then(|current| session.next(current, Instant::now()))
            {
                let Ok(room) = responses.reserve().await else { return Ok(()) };
                // A token that was revoked since ends the stream that it began.
                if let Some(proof) = &proof {
                    proof.holds(SystemTime::now())?;
                }
                entry.sent(&push);
                room.send(Ok(push.message));
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
                changed = state.changed() => if changed.is_err() {
                    return Err(Status::unavailable("pilot is stopping"));
                },
                () = timeout => {}
            }
        }
    }
}

fn take(
    session: &mut Session,
    entry: &Entry<'_>,
    request: DeltaDiscoveryRequest,
) -> Result<(), Status> {
    match session.handle(request, Instant::now()) {
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

/// A client on loopback says itself which node it is on.
fn identify(who: &mut Identification, first: &DeltaDiscoveryRequest) {
    let Some(node) = &first.node else { return };
    who.id.clone_from(&node.id);
    let named = node.metadata.as_ref().and_then(|metadata| metadata.fields.get("NODE_NAME"));
    if let Some(Kind::StringValue(name)) = named.and_then(|value| value.kind.as_ref())
        && !who.authenticated
    {
        who.node.clone_from(name);
    }
}
