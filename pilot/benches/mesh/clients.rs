//! Simulated daemons: streams that take everything and look at nothing.

use std::time::Instant;

use anyhow::{Context, Result};
use proto::discovery::DeltaDiscoveryRequest;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{client::Grpc, transport::Channel};
use tonic_prost::ProstCodec;

/// What of a response is read; the resources are passed over.
#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Seen {
    /// `type_url`.
    #[prost(string, tag = "4")]
    type_url: String,
    /// `nonce`.
    #[prost(string, tag = "5")]
    nonce: String,
}

const PATH: &str =
    "/envoy.service.discovery.v3.AggregatedDiscoveryService/DeltaAggregatedResources";

/// Subscribes to both types, and says for each response when it was acknowledged.
pub(crate) async fn run(
    address: String,
    acknowledged: mpsc::UnboundedSender<Instant>,
) -> Result<()> {
    let channel = Channel::from_shared(format!("http://{address}"))?.connect().await?;
    let (requests, outgoing) = mpsc::channel(16);
    for type_url in [proto::ADDRESS_TYPE, proto::AUTHORIZATION_TYPE] {
        let first =
            DeltaDiscoveryRequest { type_url: type_url.into(), ..DeltaDiscoveryRequest::default() };
        requests.send(first).await?;
    }
    let mut client = Grpc::new(channel).max_decoding_message_size(usize::MAX);
    client.ready().await?;
    let codec: ProstCodec<DeltaDiscoveryRequest, Seen> = ProstCodec::default();
    let path = http::uri::PathAndQuery::from_static(PATH);
    let request = tonic::Request::new(ReceiverStream::new(outgoing));
    let mut responses = client.streaming(request, path, codec).await?.into_inner();
    while let Some(Seen { type_url, nonce }) = responses.message().await? {
        let answer = DeltaDiscoveryRequest {
            type_url,
            response_nonce: nonce,
            ..DeltaDiscoveryRequest::default()
        };
        requests.send(answer).await?;
        acknowledged.send(Instant::now()).context("nobody waits any more")?;
    }
    anyhow::bail!("pilot ended the stream")
}
