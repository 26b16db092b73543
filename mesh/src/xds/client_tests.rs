//! The client against a real gRPC server on loopback that says what each test tells it to.

use std::{collections::BTreeMap, net::SocketAddr, pin::Pin, sync::Arc, time::Duration};

use prost::Message;
use proto::{
    ADDRESS_TYPE, AUTHORIZATION_TYPE,
    discovery::{
        DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse,
        Resource,
        aggregated_discovery_service_server::{
            AggregatedDiscoveryService, AggregatedDiscoveryServiceServer,
        },
    },
    google::Any,
    workload::{Address, Workload, address::Type},
};
use tokio::{
    net::TcpListener,
    sync::{mpsc, watch},
    task::JoinHandle,
    time::timeout,
};
use tokio_stream::{
    Stream, StreamExt,
    wrappers::{ReceiverStream, TcpListenerStream},
};
use tonic::{
    Request, Response, Status, Streaming,
    metadata::MetadataMap,
    transport::{Identity, Server, ServerTlsConfig},
};

use super::*;
use crate::{identity::TlsVersions, store::Store};

/// Far more than any step takes; reached only if a step never happens.
const LIMIT: Duration = Duration::from_secs(20);

/// One stream as the server sees it.
struct Served {
    headers: MetadataMap,
    requests: Streaming<DeltaDiscoveryRequest>,
    responses: mpsc::Sender<Result<DeltaDiscoveryResponse, Status>>,
}

impl Served {
    async fn request(&mut self) -> DeltaDiscoveryRequest {
        let next = timeout(LIMIT, self.requests.next()).await.expect("a request within the limit");
        next.expect("an open stream").unwrap()
    }

    /// Takes the two subscriptions of a new stream and returns that for addresses.
    async fn subscriptions(&mut self) -> DeltaDiscoveryRequest {
        assert_eq!(self.request().await.type_url, AUTHORIZATION_TYPE);
        let address = self.request().await;
        assert_eq!(address.type_url, ADDRESS_TYPE);
        address
    }

    /// Sends a response and returns what the client answers.
    async fn push(
        &mut self,
        type_url: &str,
        resources: Vec<Resource>,
        removed: &[&str],
    ) -> DeltaDiscoveryRequest {
        let response = DeltaDiscoveryResponse {
            type_url: type_url.into(),
            nonce: format!("nonce of {} and {}", resources.len(), removed.len()),
            resources,
            removed_resources: removed.iter().map(ToString::to_string).collect(),
            ..Default::default()
        };
        let nonce = response.nonce.clone();
        self.responses.send(Ok(response)).await.unwrap();
        let answer = self.request().await;
        assert_eq!(answer.response_nonce, nonce);
        answer
    }
}

struct Script(mpsc::Sender<Served>);

#[tonic::async_trait]
impl AggregatedDiscoveryService for Script {
    type StreamAggregatedResourcesStream =
        Pin<Box<dyn Stream<Item = Result<DiscoveryResponse, Status>> + Send>>;
    type DeltaAggregatedResourcesStream = ReceiverStream<Result<DeltaDiscoveryResponse, Status>>;

    async fn stream_aggregated_resources(
        &self,
        _: Request<Streaming<DiscoveryRequest>>,
    ) -> Result<Response<Self::StreamAggregatedResourcesStream>, Status> {
        Err(Status::unimplemented("only delta"))
    }

    async fn delta_aggregated_resources(
        &self,
        request: Request<Streaming<DeltaDiscoveryRequest>>,
    ) -> Result<Response<Self::DeltaAggregatedResourcesStream>, Status> {
        let (responses, queued) = mpsc::channel(8);
        let headers = request.metadata().clone();
        let served = Served { headers, requests: request.into_inner(), responses };
        self.0.send(served).await.map_err(|_| Status::cancelled("the test is over"))?;
        Ok(Response::new(ReceiverStream::new(queued)))
    }
}

/// A server and a client that follows it.
struct Fixture {
    address: SocketAddr,
    server: JoinHandle<()>,
    streams: mpsc::Receiver<Served>,
    store: Arc<Store>,
    status: watch::Receiver<XdsStatus>,
    client: JoinHandle<()>,
}

impl Fixture {
    async fn plaintext() -> Self {
        Self::start(None, |address| server_config(format!("http://{address}"))).await
    }

    async fn start(
        tls: Option<ServerTlsConfig>,
        config: impl FnOnce(SocketAddr) -> ServerConfig,
    ) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (server, streams) = serve(listener, tls);
        let store = Store::new();
        let (told, status) = watch::channel(XdsStatus::default());
        let config = XdsConfig {
            server: config(address),
            node_id: "ztunnel~test".into(),
            node_metadata: BTreeMap::from([("NODE_NAME".into(), "node-a".into())]),
            root_namespace: "istio-system".into(),
            on_demand: OnDemand::everything(),
        };
        let following = run(config, Arc::clone(&store), told);
        let client = tokio::spawn(async { match following.await {} });
        Self { address, server, streams, store, status, client }
    }

    async fn stream(&mut self) -> Served {
        let next = timeout(LIMIT, self.streams.recv()).await;
        next.expect("a stream within the limit").expect("a running server")
    }

    async fn status(&mut self, wanted: impl FnMut(&XdsStatus) -> bool) -> XdsStatus {
        let reached = timeout(LIMIT, self.status.wait_for(wanted)).await;
        reached.expect("the status within the limit").unwrap().clone()
    }

    fn holds(&self, uid: &str) -> bool {
        self.store.load().workload(uid).is_some()
    }
}

impl Drop for Fixture {
    fn drop(&mut self) {
        self.client.abort();
        self.server.abort();
    }
}

fn serve(
    listener: TcpListener,
    tls: Option<ServerTlsConfig>,
) -> (JoinHandle<()>, mpsc::Receiver<Served>) {
    let (script, streams) = mpsc::channel(4);
    let mut server = Server::builder();
    if let Some(tls) = tls {
        server = server.tls_config(tls).unwrap();
    }
    let service = AggregatedDiscoveryServiceServer::new(Script(script));
    let serving = server.add_service(service).serve_with_incoming(TcpListenerStream::new(listener));
    (tokio::spawn(async { serving.await.unwrap() }), streams)
}

fn server_config(address: String) -> ServerConfig {
    ServerConfig {
        address,
        roots: Roots::Pem(String::new()),
        versions: TlsVersions::Only13,
        further_name: None,
        token: Some(Token::Literal("secret".into())),
        cluster_id: "Kubernetes".into(),
        headers: Vec::new(),
    }
}

fn workload(uid: &str, version: &str) -> Resource {
    workload_at(uid, version, &[10, 0, 0, 1])
}

fn workload_at(uid: &str, version: &str, address: &[u8]) -> Resource {
    let workload = Workload {
        uid: uid.into(),
        name: uid.into(),
        namespace: "shop".into(),
        addresses: vec![address.to_vec()],
        ..Default::default()
    };
    let value = Address { r#type: Some(Type::Workload(workload)) }.encode_to_vec();
    Resource {
        name: uid.into(),
        version: version.into(),
        resource: Some(Any { type_url: ADDRESS_TYPE.into(), value }),
        ..Default::default()
    }
}

#[tokio::test]
async fn the_client_introduces_itself_and_is_synced_after_both_types() {
    let mut fixture = Fixture::plaintext().await;
    let mut stream = fixture.stream().await;
    assert_eq!(stream.headers.get("authorization").unwrap(), "Bearer secret");
    assert_eq!(stream.headers.get("clusterid").unwrap(), "Kubernetes");
    let node = stream.subscriptions().await.node.unwrap();
    assert_eq!(node.id, "ztunnel~test");
    assert!(node.metadata.unwrap().fields.contains_key("NODE_NAME"));

    let ack = stream.push(ADDRESS_TYPE, vec![workload("a", "1")], &[]).await;
    assert_eq!(ack.error_detail, None);
    assert!(fixture.holds("a"));
    assert!(!fixture.status(|s| s.address.accepted_once).await.synced());
    stream.push(AUTHORIZATION_TYPE, vec![], &[]).await;
    assert!(fixture.status(XdsStatus::synced).await.connected);
}

#[tokio::test]
async fn one_bad_resource_of_three_is_nacked_by_name_and_the_rest_applies() {
    let mut fixture = Fixture::plaintext().await;
    let mut stream = fixture.stream().await;
    stream.subscriptions().await;
    let resources = vec![workload("a", "1"), workload_at("b", "1", &[10, 0]), workload("c", "1")];
    let nack = stream.push(ADDRESS_TYPE, resources, &[]).await;
    let message = nack.error_detail.unwrap().message;
    assert!(message.starts_with("b: "), "{message}");
    assert_eq!((fixture.holds("a"), fixture.holds("b"), fixture.holds("c")), (true, false, true));
    let status = fixture.status(|s| s.address.last_nack.is_some()).await;
    assert_eq!(status.address.last_nack_message, message);
}

#[tokio::test]
async fn a_removed_resource_leaves_the_store() {
    let mut fixture = Fixture::plaintext().await;
    let mut stream = fixture.stream().await;
    stream.subscriptions().await;
    stream.push(ADDRESS_TYPE, vec![workload("a", "1")], &[]).await;
    assert!(fixture.holds("a"));
    stream.push(ADDRESS_TYPE, vec![], &["a"]).await;
    assert!(!fixture.holds("a"));
}

#[tokio::test]
async fn a_new_stream_resumes_with_the_versions_that_were_accepted() {
    let mut fixture = Fixture::plaintext().await;
    let mut stream = fixture.stream().await;
    stream.subscriptions().await;
    let resources = vec![workload("a", "1"), workload("b", "2"), workload_at("bad", "3", &[])];
    stream.push(ADDRESS_TYPE, resources, &[]).await;
    stream.responses.send(Err(Status::unavailable("transport is closing"))).await.unwrap();
    drop(stream);

    let mut stream = fixture.stream().await;
    let versions = stream.subscriptions().await.initial_resource_versions;
    let versions: BTreeMap<String, String> = versions.into_iter().collect();
    let expected = [("a", "1"), ("b", "2")].map(|(name, version)| (name.into(), version.into()));
    assert_eq!(versions, BTreeMap::from(expected));
    stream.push(ADDRESS_TYPE, vec![], &["a"]).await;
    assert_eq!((fixture.holds("a"), fixture.holds("b")), (false, true));
}

#[tokio::test]
async fn what_was_known_stays_while_the_server_is_away() {
    let mut fixture = Fixture::plaintext().await;
    let mut stream = fixture.stream().await;
    stream.subscriptions().await;
    stream.push(ADDRESS_TYPE, vec![workload("a", "1")], &[]).await;

    fixture.server.abort();
    let _ = (&mut fixture.server).await;
    drop(stream);
    let status = fixture.status(|s| !s.connected && !s.last_error.is_empty()).await;
    assert!(status.address.accepted_once, "what was applied stays applied");
    assert!(fixture.holds("a"));

    let listener = TcpListener::bind(fixture.address).await.unwrap();
    (fixture.server, fixture.streams) = serve(listener, None);
    let mut stream = fixture.stream().await;
    assert_eq!(stream.subscriptions().await.initial_resource_versions.len(), 1);
    fixture.status(|s| s.connected).await;
}

/// A server certificate for `name` and the root that signed it.
fn certificate(name: &str) -> (ServerTlsConfig, String) {
    let signed = rcgen::generate_simple_self_signed([name.to_owned()]).unwrap();
    let (certificate, key) = (signed.cert.pem(), signed.signing_key.serialize_pem());
    let identity = Identity::from_pem(&certificate, key);
    (ServerTlsConfig::new().identity(identity), certificate)
}

#[tokio::test]
async fn a_server_that_bears_the_expected_name_is_trusted() {
    let (tls, root) = certificate("istiod.istio-system.svc");
    let mut fixture = Fixture::start(Some(tls), |address| ServerConfig {
        roots: Roots::Pem(root),
        versions: TlsVersions::Only13,
        further_name: Some("istiod.istio-system.svc".into()),
        ..server_config(address.to_string())
    })
    .await;
    fixture.stream().await.subscriptions().await;
}

#[tokio::test]
async fn a_server_of_another_name_or_root_is_refused() {
    let (tls, root) = certificate("other.example");
    let (_, other_root) = certificate("istiod.istio-system.svc");
    for root in [root, other_root] {
        let mut fixture = Fixture::start(Some(tls.clone()), |address| ServerConfig {
            roots: Roots::Pem(root),
            versions: TlsVersions::Only13,
            further_name: Some("istiod.istio-system.svc".into()),
            ..server_config(format!("https://{address}"))
        })
        .await;
        let status = fixture.status(|s| !s.last_error.is_empty()).await;
        assert!(status.last_error.contains("certificate"), "{}", status.last_error);
        assert!(!status.connected);
    }
}

#[tokio::test]
async fn a_missing_token_is_named() {
    let mut fixture = Fixture::start(None, |address| ServerConfig {
        token: Some(Token::File("/nonexistent/token".into())),
        ..server_config(format!("http://{address}"))
    })
    .await;
    let status = fixture.status(|s| !s.last_error.is_empty()).await;
    assert!(
        status.last_error.starts_with("reading the token in /nonexistent/token: "),
        "{}",
        status.last_error
    );
}
