//! Whom pilot believes, by the API server's review of tokens, and by certificates of its own.

use kube::api::DeleteParams;
use proto::{
    ADDRESS_TYPE,
    ca::{
        IstioCertificateRequest, istio_certificate_service_client::IstioCertificateServiceClient,
    },
    discovery::{
        DeltaDiscoveryRequest,
        aggregated_discovery_service_client::AggregatedDiscoveryServiceClient,
    },
    envoy::envoy::config::core::v3::Node,
};
use rcgen::{CertificateParams, KeyPair};
use serde_json::json;
use tonic::{
    Code, Request, Status,
    transport::{Certificate, Channel, ClientTlsConfig, Identity},
};

use crate::{create_pod, create_shop, pilot::Pilot, server::Server};

async fn create_account(server: &Server, namespace: &str, name: &str) {
    let metadata = json!({"name": name, "namespace": namespace});
    let account = json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": metadata});
    server.apply(account).await;
}

/// The daemon of a node, and the accounts of the pods.
async fn create_mesh(server: &Server) {
    create_shop(server).await;
    create_pod(server, "cart", "10.1.0.2").await;
    server
        .apply(
            json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "istio-system"}}),
        )
        .await;
    for (namespace, name) in [("shop", "web"), ("shop", "cart"), ("istio-system", "ztunnel")] {
        create_account(server, namespace, name).await;
    }
    for (name, node) in [("ztunnel-a", "node-a"), ("ztunnel-b", "node-b")] {
        server
            .apply(json!({
                "apiVersion": "v1",
                "kind": "Pod",
                "metadata": {"name": name, "namespace": "istio-system"},
                "spec": {
                    "nodeName": node,
                    "serviceAccountName": "ztunnel",
                    "containers": [{"name": "ztunnel", "image": "ztunnel"}],
                },
            }))
            .await;
    }
}

/// What a caller shows.
enum Shown<'a> {
    Token(&'a str),
    Certificate(&'a Issued),
}

struct Issued {
    chain: Vec<String>,
    key: String,
}

async fn channel(pilot: &Pilot, shown: &Shown<'_>) -> Channel {
    let mut tls = ClientTlsConfig::new()
        .ca_certificate(Certificate::from_pem(pilot.root()))
        .domain_name("localhost");
    if let Shown::Certificate(Issued { chain, key }) = shown {
        tls = tls.identity(Identity::from_pem(chain[..chain.len() - 1].concat(), key));
    }
    let channel = Channel::from_shared(format!("https://{}", pilot.address("tls"))).unwrap();
    channel.tls_config(tls).unwrap().connect().await.unwrap()
}

fn request<T>(message: T, shown: &Shown<'_>) -> Request<T> {
    let mut request = Request::new(message);
    if let Shown::Token(token) = shown {
        let value = format!("Bearer {token}").parse().unwrap();
        request.metadata_mut().insert("authorization", value);
    }
    request
}

/// Asks for a certificate, in the name of `who` or in its own.
async fn ask(pilot: &Pilot, shown: &Shown<'_>, who: Option<&str>) -> Result<Issued, Status> {
    use prost_types::{Struct, Value, value::Kind};
    let key = KeyPair::generate().unwrap();
    let csr = CertificateParams::default().serialize_request(&key).unwrap().pem().unwrap();
    let metadata = who.map(|who| Struct {
        fields: [(
            "ImpersonatedIdentity".to_owned(),
            Value { kind: Some(Kind::StringValue(who.to_owned())) },
        )]
        .into(),
    });
    let message = IstioCertificateRequest { csr, validity_duration: 3600, metadata };
    let mut client = IstioCertificateServiceClient::new(channel(pilot, shown).await);
    let answer = client.create_certificate(request(message, shown)).await?;
    Ok(Issued { chain: answer.into_inner().cert_chain, key: key.serialize_pem() })
}

/// The name in a certificate that was issued, or why none was.
async fn issued(pilot: &Pilot, shown: &Shown<'_>, who: Option<&str>) -> Result<String, String> {
    use rustls::pki_types::{CertificateDer, pem::PemObject};
    let issued = ask(pilot, shown, who).await.map_err(|status| status.message().to_owned())?;
    let leaf = CertificateDer::from_pem_slice(issued.chain[0].as_bytes()).unwrap();
    Ok(mesh::identity::peer_identity(&[leaf]).unwrap().to_string())
}

/// Opens a stream of discovery as `id`, and waits for its first answer.
async fn discover(pilot: &Pilot, shown: &Shown<'_>, id: &str) -> Result<usize, Status> {
    let mut client = AggregatedDiscoveryServiceClient::new(channel(pilot, shown).await);
    let first = DeltaDiscoveryRequest {
        node: Some(Node { id: id.into(), ..Node::default() }),
        type_url: ADDRESS_TYPE.into(),
        ..DeltaDiscoveryRequest::default()
    };
    let (requests, outgoing) = tokio::sync::mpsc::channel(1);
    requests.send(first).await.unwrap();
    let outgoing = tokio_stream::wrappers::ReceiverStream::new(outgoing);
    let mut responses =
        client.delta_aggregated_resources(request(outgoing, shown)).await?.into_inner();
    let response = responses.message().await?.expect("an answer");
    Ok(response.resources.len())
}

const WEB: &str = "spiffe://cluster.local/ns/shop/sa/web";
const ZTUNNEL: &str = "spiffe://cluster.local/ns/istio-system/sa/ztunnel";

#[tokio::test]
async fn tokens_are_reviewed_and_give_what_their_pod_may_have() {
    let Some(mut server) = Server::start().await else { return };
    create_mesh(&server).await;
    let pilot = Pilot::start(&server.kubeconfig_of_pilot().await);
    pilot.debug_has("/ready", "200 OK").await;

    let of = |namespace, account, pod| server.token(namespace, account, pod, "istio-ca");
    let node_a = of("istio-system", "ztunnel", Some("ztunnel-a")).await;
    let node_b = of("istio-system", "ztunnel", Some("ztunnel-b")).await;
    let web = of("shop", "web", Some("web")).await;
    let cart = of("shop", "cart", Some("cart")).await;
    let unbound = of("istio-system", "ztunnel", None).await;
    let for_others = server.token("shop", "web", Some("web"), "somebody-else").await;

    let no_pod = "no running pod on node node-b has the service account shop/web";
    let own_only = format!(
        "service account shop/cart, pod cart on node node-a may ask for no other name than \
         spiffe://cluster.local/ns/shop/sa/cart, and asks for {WEB}"
    );
    let bound_to_none =
        "the token of service account istio-system/ztunnel is bound to no pod on a node";
    for (shown, who, expected) in [
        (&node_a, Some(WEB), Ok(WEB)),
        (&node_b, Some(WEB), Err(no_pod)),
        (&node_a, None, Ok(ZTUNNEL)),
        (&web, None, Ok(WEB)),
        (&web, Some(WEB), Ok(WEB)),
        (&cart, Some(WEB), Err(&*own_only)),
        (&unbound, Some(WEB), Err(bound_to_none)),
    ] {
        let found = issued(&pilot, &Shown::Token(shown), who).await;
        assert_eq!(found, expected.map(str::to_owned).map_err(str::to_owned));
    }
    for bad in [&for_others, "a.b.c", "nonsense"] {
        let refusal = issued(&pilot, &Shown::Token(bad), None).await.unwrap_err();
        let expected = "the API server does not accept the token: ";
        assert!(refusal.starts_with(expected), "{refusal}");
        assert!(!refusal.contains(bad), "{refusal}");
    }

    // Discovery asks the same, and whether the stream is who it says.
    let ztunnel = |pod: &str| format!("ztunnel~10.0.0.9~{pod}.istio-system~istio-system.svc");
    let found = discover(&pilot, &Shown::Token(&node_a), &ztunnel("ztunnel-a")).await.unwrap();
    assert!(found >= 2, "{found}");
    let refusal = discover(&pilot, &Shown::Token(&web), &ztunnel("ztunnel-a")).await.unwrap_err();
    assert_eq!(refusal.code(), Code::PermissionDenied, "{refusal}");
    let refusal = discover(&pilot, &Shown::Token(&for_others), "").await.unwrap_err();
    assert_eq!(refusal.code(), Code::Unauthenticated, "{refusal}");

    // A certificate renews itself, for itself.
    let held = ask(&pilot, &Shown::Token(&web), None).await.unwrap();
    let shown = Shown::Certificate(&held);
    assert_eq!(issued(&pilot, &shown, None).await.as_deref(), Ok(WEB));
    let refusal = issued(&pilot, &shown, Some(ZTUNNEL)).await.unwrap_err();
    assert!(refusal.contains("may ask for no other name"), "{refusal}");
    let id = "ztunnel~10.1.0.1~web.shop~shop.svc.cluster.local";
    assert!(discover(&pilot, &shown, id).await.unwrap() >= 2);

    // With the server away, what was reviewed a moment ago still counts; a token of which nothing is known is to be
    // shown again.
    let fresh = of("shop", "web", Some("web")).await;
    server.stop();
    let refusal = ask(&pilot, &Shown::Token(&fresh), None).await.err().expect("nobody reviews it");
    assert_eq!(refusal.code(), Code::Unavailable, "{refusal}");
    let expected = "the token cannot be reviewed now: ";
    assert!(refusal.message().starts_with(expected), "{refusal}");
    assert_eq!(issued(&pilot, &shown, None).await.as_deref(), Ok(WEB));
}

#[tokio::test]
async fn the_token_of_a_pod_that_is_gone_proves_nothing_soon() {
    let Some(server) = Server::start().await else { return };
    create_mesh(&server).await;
    let pilot = Pilot::start(&server.kubeconfig());
    pilot.debug_has("/ready", "200 OK").await;
    let web = server.token("shop", "web", Some("web"), "istio-ca").await;
    let shown = Shown::Token(&web);
    assert_eq!(issued(&pilot, &shown, None).await.as_deref(), Ok(WEB));
    let now = DeleteParams::default().grace_period(0);
    server.delete("v1", "Pod", "pods", "shop", "web", &now).await;
    // Both pilot and the API server hold on to a review for ten seconds.
    let begun = std::time::Instant::now();
    loop {
        let found = issued(&pilot, &shown, None).await;
        if found.as_ref().is_err_and(|why| why.starts_with("the API server does not accept")) {
            break;
        }
        assert!(begun.elapsed() < std::time::Duration::from_secs(60), "{found:?}");
        tokio::time::sleep(std::time::Duration::from_millis(200)).await;
    }
}
