//! Carries the protocol: connects, streams, applies, reconnects.
//!
//! In: the configuration. Out: the store as the server describes it, the status, `istio_xds_*`. What to say is decided
//! by [`Session`], when to try again by [`Backoff`].

use std::{
    convert::Infallible,
    sync::Arc,
    time::{Instant, SystemTime, UNIX_EPOCH},
};

use metrics::{counter, gauge, histogram};
use prost::Message;
use proto::discovery::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse,
    aggregated_discovery_service_client::AggregatedDiscoveryServiceClient,
};
use tokio::{
    sync::{mpsc, watch},
    time::sleep,
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Request, Streaming};
use tracing::{info, warn};

use super::{
    Handled, Rejected, ResourceType, Scope, ServerError, Session, XdsConfig, XdsStatus,
    backoff::{Attempt, Backoff},
    session::complaint,
    subscription,
};
use crate::{policy::Reach, store::Store};

/// A push of 100,000 workloads is some 40 MB; Istio's own limit.
const LARGEST_RESPONSE: usize = 200 * 1024 * 1024;
/// Requests that wait for the transport. Each response is answered before the next is read, so more than the first
/// requests of a stream wait only while the server does not read; then we do not read either.
const REQUESTS_WAITING: usize = 8;

/// How a stream ended.
#[derive(Debug, thiserror::Error)]
enum Ended {
    #[error(transparent)]
    Unprepared(#[from] ServerError),
    #[error("connecting to `{address}`")]
    Connect { address: String, source: tonic::transport::Error },
    #[error("the server ended the stream: {:?}: {}", status.code(), status.message())]
    Status { status: Box<tonic::Status> },
    #[error("the server closed the stream")]
    Complete,
}

/// Keeps `store` as the server describes it, for as long as it is polled.
pub async fn run(
    config: XdsConfig,
    store: Arc<Store>,
    status: watch::Sender<XdsStatus>,
) -> Infallible {
    let scope = if config.on_demand.is_asking() { Scope::OnDemand } else { Scope::Everything };
    let mut session =
        Session::new(config.node(), scope).with_root_namespace(&config.root_namespace);
    let mut backoff = Backoff::default();
    loop {
        let mut attempt = Attempt::Fruitless;
        let ended = follow(&config, &mut session, &store, &status, &mut attempt).await;
        counter!("istio_xds_connection_terminations_total", "reason" => ended.label()).increment(1);
        let error = ended.sentence();
        let delay = backoff.after(attempt, rand::random());
        warn!(server = config.server.address, error, retry_in = ?delay, "xds stream ended");
        gauge!("aquifer_xds_connected").set(0);
        status.send_modify(|status| {
            status.connected = false;
            status.last_error = error;
        });
        sleep(delay).await;
    }
}

/// Opens one stream and follows it to its end.
async fn follow(
    config: &XdsConfig,
    session: &mut Session,
    store: &Store,
    status: &watch::Sender<XdsStatus>,
    attempt: &mut Attempt,
) -> Ended {
    let (requests, mut responses) = match open(config, session).await {
        Ok(stream) => stream,
        Err(ended) => return ended,
    };
    info!(server = config.server.address, "xds stream open");
    gauge!("aquifer_xds_connected").set(1);
    status.send_modify(|status| status.connected = true);
    loop {
        let replies = tokio::select! {
            response = responses.message() => match response {
                Ok(Some(response)) => {
                    *attempt = Attempt::Served;
                    let handled = handle(session, store, status, response);
                    config.on_demand.answered(&handled.named, &handled.absent, Instant::now());
                    vec![handled.reply]
                }
                Ok(None) => return Ended::Complete,
                Err(status) => return Ended::from(status),
            },
            () = config.on_demand.asked() => subscription::change(config, session, store),
        };
        for reply in replies {
            if requests.send(reply).await.is_err() {
                // The transport dropped the request half; the response half tells why.
                break;
            }
        }
    }
}

async fn open(
    config: &XdsConfig,
    session: &mut Session,
) -> Result<(mpsc::Sender<DeltaDiscoveryRequest>, Streaming<DeltaDiscoveryResponse>), Ended> {
    let server = &config.server;
    let channel = server
        .endpoint()?
        .connect()
        .await
        .map_err(|source| Ended::Connect { address: server.address.clone(), source })?;
    let first = session.connected(&config.on_demand.pending());
    let (requests, waiting) = mpsc::channel(REQUESTS_WAITING.max(first.len()));
    for request in first {
        requests.try_send(request).expect("the channel is new and holds the first requests");
    }
    let mut call = Request::new(ReceiverStream::new(waiting));
    for (name, value) in server.headers()? {
        call.metadata_mut().insert(name, value);
    }
    let mut client =
        AggregatedDiscoveryServiceClient::new(channel).max_decoding_message_size(LARGEST_RESPONSE);
    let responses = client.delta_aggregated_resources(call).await.map_err(Ended::from)?;
    Ok((requests, responses.into_inner()))
}

/// Applies one response.
fn handle(
    session: &mut Session,
    store: &Store,
    status: &watch::Sender<XdsStatus>,
    response: DeltaDiscoveryResponse,
) -> Handled {
    let url = response.type_url.clone();
    let bytes = response.encoded_len() as u64;
    counter!("istio_xds_message_total", "url" => url.clone()).increment(1);
    counter!("istio_xds_message_bytes_total", "url" => url.clone()).increment(bytes);
    let began = Instant::now();
    let handled = session.response(response, |updates| store.apply(updates));
    tell_rejected_policies(store, &handled);
    histogram!("aquifer_xds_apply_seconds", "url" => url.clone()).record(began.elapsed());
    let now = SystemTime::now();
    let since = now.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64();
    gauge!("aquifer_xds_last_response_timestamp_seconds", "url" => url.clone()).set(since);
    let (accepted, removed) = (handled.accepted, handled.removed);
    if handled.rejected.is_empty() {
        tracing::debug!(url, accepted, removed, "xds response applied");
    } else {
        let error = complaint(&handled.rejected);
        warn!(
            url,
            accepted,
            removed,
            rejected = handled.rejected.len(),
            error,
            "xds response rejected in part"
        );
    }
    if let Some(resource_type) = handled.resource_type {
        let held = session.held(resource_type).len();
        let faulty = session.faulty(resource_type);
        gauge!("aquifer_xds_rejected_resources", "url" => url).set(faulty.len() as f64);
        let faulty: Vec<Rejected> = faulty.cloned().collect();
        status.send_modify(|s| s.handled(resource_type, &handled, held, faulty, now));
    }
    handled
}

/// Says which policies deny because no version of them was understood, and counts all whose newest version was not.
fn tell_rejected_policies(store: &Store, handled: &Handled) {
    if handled.resource_type != Some(ResourceType::Authorization) {
        return;
    }
    let snapshot = store.load();
    let policies = snapshot.policies();
    let (mut harmless, mut denying) = (0_u32, 0_u32);
    for rejected in policies.rejected() {
        let is_harmless = policies.get(&rejected.key).is_some() || rejected.reach == Reach::NoOne;
        let of = if is_harmless { &mut harmless } else { &mut denying };
        *of += 1;
        let is_new = handled.rejected.iter().any(|new| *new.name == *rejected.key);
        if is_new && !is_harmless {
            warn!(policy = %rejected.key, reach = ?rejected.reach, error = %rejected.fault, "a policy cannot be understood: nothing is allowed where it would apply");
        }
    }
    gauge!("aquifer_policies_rejected", "denies" => "no").set(harmless);
    gauge!("aquifer_policies_rejected", "denies" => "yes").set(denying);
}

impl From<tonic::Status> for Ended {
    fn from(status: tonic::Status) -> Self {
        Self::Status { status: Box::new(status) }
    }
}

impl Ended {
    /// Istio's words for it.
    fn label(&self) -> &'static str {
        match self {
            Self::Unprepared(_) | Self::Connect { .. } => "ConnectionError",
            Self::Complete => "Complete",
            Self::Status { status } if restarts(status) => "Reconnect",
            Self::Status { .. } => "Error",
        }
    }

    fn sentence(&self) -> String {
        let mut text = self.to_string();
        let mut source = std::error::Error::source(self);
        while let Some(cause) = source {
            text.push_str(&format!(": {cause}"));
            source = cause.source();
        }
        text
    }
}

/// Whether this is how a server that restarts or sheds load says goodbye.
fn restarts(status: &tonic::Status) -> bool {
    match status.code() {
        Code::Unknown | Code::Cancelled | Code::DeadlineExceeded => true,
        Code::Unavailable => {
            let text = status.message();
            text.contains("transport is closing") || text.contains("received prior goaway")
        }
        Code::Ok
        | Code::InvalidArgument
        | Code::NotFound
        | Code::AlreadyExists
        | Code::PermissionDenied
        | Code::ResourceExhausted
        | Code::FailedPrecondition
        | Code::Aborted
        | Code::OutOfRange
        | Code::Unimplemented
        | Code::Internal
        | Code::DataLoss
        | Code::Unauthenticated => false,
    }
}
