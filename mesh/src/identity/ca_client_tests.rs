//! The client against a real gRPC server on loopback that answers as the test says.

use std::{net::SocketAddr, sync::Arc};

use proto::ca::{
    IstioCertificateResponse,
    istio_certificate_service_server::{IstioCertificateService, IstioCertificateServiceServer},
};
use tokio::{net::TcpListener, sync::Notify, task::JoinHandle};
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{
    Response,
    transport::{Identity, Server, ServerTlsConfig},
};

use super::*;
use crate::identity::{Identities, IdentityConfig, LocalCa, Roots, TlsVersions, Token};

const HOUR: Duration = Duration::from_secs(3600);

/// What the server does with a request.
#[derive(Clone)]
enum Behaviour {
    Issue,
    /// Knows who calls, and is not told.
    IssueToCaller,
    Refuse(Code),
    /// Says so, then never answers.
    Hang(Arc<Notify>),
}

/// Issues, if the request is as it should be.
struct Service {
    ca: LocalCa,
    behaviour: Behaviour,
}

#[tonic::async_trait]
impl IstioCertificateService for Service {
    async fn create_certificate(
        &self,
        request: Request<IstioCertificateRequest>,
    ) -> Result<Response<IstioCertificateResponse>, Status> {
        match self.behaviour {
            Behaviour::Issue | Behaviour::IssueToCaller => {}
            Behaviour::Refuse(code) => return Err(Status::new(code, "says the server")),
            Behaviour::Hang(ref asked) => {
                asked.notify_one();
                std::future::pending().await
            }
        }
        let header = |name| request.metadata().get(name).map(|value| value.to_str().unwrap());
        assert_eq!(header("authorization"), Some("Bearer secret"));
        assert_eq!(header("clusterid"), Some("Kubernetes"));
        let request = request.get_ref();
        if matches!(self.behaviour, Behaviour::IssueToCaller) {
            assert_eq!(request.metadata, None, "nobody is named");
            let lifetime = Duration::from_secs(request.validity_duration.unsigned_abs());
            let cert_chain = self.ca.issue(request.csr.clone(), &web(), lifetime).await.unwrap();
            return Ok(Response::new(IstioCertificateResponse { cert_chain }));
        }
        let Some(Kind::StringValue(who)) =
            request.metadata.as_ref().and_then(|m| m.fields[IMPERSONATED].kind.clone())
        else {
            panic!("{IMPERSONATED} is a string");
        };
        let lifetime = Duration::from_secs(request.validity_duration.unsigned_abs());
        let who = Spiffe::parse(&who).unwrap();
        let cert_chain = self.ca.issue(request.csr.clone(), &who, lifetime).await.unwrap();
        Ok(Response::new(IstioCertificateResponse { cert_chain }))
    }
}

/// A server that stops with the test.
struct Running {
    address: SocketAddr,
    task: JoinHandle<()>,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// A server's certificate, which is its own root.
struct ServerIdentity {
    certificate_pem: String,
    key_pem: String,
}

impl ServerIdentity {
    fn new(name: &str) -> Self {
        let made = rcgen::generate_simple_self_signed([name.to_owned()]).unwrap();
        Self { certificate_pem: made.cert.pem(), key_pem: made.signing_key.serialize_pem() }
    }
}

async fn serve(behaviour: Behaviour, tls: Option<&ServerIdentity>) -> Running {
    let listener = TcpListener::bind(ANYWHERE).await.unwrap();
    let address = listener.local_addr().unwrap();
    let mut server = Server::builder();
    if let Some(tls) = tls {
        let identity = Identity::from_pem(&tls.certificate_pem, &tls.key_pem);
        server = server.tls_config(ServerTlsConfig::new().identity(identity)).unwrap();
    }
    let service = Service { ca: LocalCa::new("cluster.local").unwrap(), behaviour };
    let serving = server
        .add_service(IstioCertificateServiceServer::new(service))
        .serve_with_incoming(TcpListenerStream::new(listener));
    Running { address, task: tokio::spawn(async { serving.await.unwrap() }) }
}

const NAME: &str = "istiod.istio-system.svc";
const ANYWHERE: &str = "127.0.0.1:0";

fn config(address: String, roots: Roots) -> ServerConfig {
    ServerConfig {
        address,
        roots,
        further_name: Some(NAME.into()),
        versions: TlsVersions::Only13,
        token: Some(Token::Literal("secret".into())),
        cluster_id: "Kubernetes".into(),
        headers: Vec::new(),
    }
}

fn plaintext(server: &Running) -> ServerConfig {
    config(format!("http://{}", server.address), Roots::Pem(String::new()))
}

fn web() -> Spiffe {
    Spiffe::new("cluster.local", "shop", "web").unwrap()
}

/// Asks once and says what came, with all causes; ports are written as `PORT`.
async fn ask(client: &CaClient) -> String {
    let csr = crate::identity::key::RequestedKey::generate(&web()).unwrap().csr_pem();
    match client.issue(csr, &web(), HOUR).await {
        Ok(chain) => format!("a chain of {}", chain.len()),
        Err(error) => {
            let causes = std::iter::successors(Some(&error as &dyn Error), |&e| e.source());
            let text = causes.map(ToString::to_string).collect::<Vec<_>>().join(": ");
            let port = client.server.address.rsplit(':').next().unwrap();
            text.replace(port, "PORT")
        }
    }
}

#[tokio::test]
async fn an_identity_gets_its_certificate_over_the_wire() {
    let server = serve(Behaviour::Issue, None).await;
    let source = Arc::new(CaClient::new(plaintext(&server)));
    let config = IdentityConfig { lifetime: HOUR, ..IdentityConfig::default() };
    let credential = Identities::start(source, config).credential(&web()).await.unwrap();
    assert_eq!(*credential.spiffe(), web());
    assert_eq!(credential.not_after().duration_since(credential.not_before()).unwrap(), HOUR);
}

#[tokio::test]
async fn who_asks_for_itself_names_nobody() {
    let server = serve(Behaviour::IssueToCaller, None).await;
    let source = Arc::new(CaClient::of_caller(plaintext(&server)));
    let config = IdentityConfig { lifetime: HOUR, ..IdentityConfig::default() };
    let credential = Identities::start(source, config).credential(&web()).await.unwrap();
    assert_eq!(*credential.spiffe(), web());
    assert_eq!(credential.not_after().duration_since(credential.not_before()).unwrap(), HOUR);
}

#[tokio::test]
async fn the_server_is_known_by_root_and_name() {
    let tls = ServerIdentity::new(NAME);
    let server = serve(Behaviour::Issue, Some(&tls)).await;
    let roots = Roots::Pem(tls.certificate_pem.clone());
    let client = CaClient::new(config(server.address.to_string(), roots));
    assert_eq!(ask(&client).await, "a chain of 2");
}

#[tokio::test]
async fn a_server_of_an_unknown_authority_is_refused() {
    let (tls, other) = (ServerIdentity::new(NAME), ServerIdentity::new("other"));
    let server = serve(Behaviour::Issue, Some(&tls)).await;
    let roots = Roots::Pem(other.certificate_pem);
    let client = CaClient::new(config(server.address.to_string(), roots));
    assert_eq!(
        ask(&client).await,
        "the TLS handshake with the certificate authority at 127.0.0.1:PORT failed: the peer's \
         certificate is signed by an unknown authority"
    );
}

#[tokio::test]
async fn a_server_of_another_name_is_refused() {
    let tls = ServerIdentity::new("other.example");
    let server = serve(Behaviour::Issue, Some(&tls)).await;
    let roots = Roots::Pem(tls.certificate_pem.clone());
    let client = CaClient::new(config(server.address.to_string(), roots));
    let refusal = ask(&client).await;
    assert!(
        refusal.contains("failed: the peer's certificate is invalid: ")
            && refusal.contains("other.example"),
        "{refusal}"
    );
}

#[tokio::test]
async fn new_roots_in_the_file_are_used_from_the_next_request_on() {
    let (old, new) = (ServerIdentity::new(NAME), ServerIdentity::new(NAME));
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), &old.certificate_pem).unwrap();
    let server = serve(Behaviour::Issue, Some(&new)).await;
    let roots = Roots::File(file.path().into());
    let client = CaClient::new(config(server.address.to_string(), roots));
    assert!(ask(&client).await.contains("unknown authority"));
    std::fs::write(file.path(), &new.certificate_pem).unwrap();
    assert_eq!(ask(&client).await, "a chain of 2");
}

#[tokio::test]
async fn nobody_at_the_address_is_a_matter_of_the_network() {
    let free = std::net::TcpListener::bind(ANYWHERE).unwrap().local_addr().unwrap();
    let client = CaClient::new(config(format!("http://{free}"), Roots::Pem(String::new())));
    assert_eq!(
        ask(&client).await,
        "cannot connect to the certificate authority at http://127.0.0.1:PORT: Connection refused \
         (os error 111)"
    );
}

#[tokio::test]
async fn each_answer_says_whose_fault_it_is() {
    let at = "the certificate authority at http://127.0.0.1:PORT";
    let table = [
        (
            Code::Unauthenticated,
            format!(
                "the certificate authority does not let this node act for {}: says the server",
                web()
            ),
        ),
        (
            Code::PermissionDenied,
            format!(
                "the certificate authority does not let this node act for {}: says the server",
                web()
            ),
        ),
        (
            Code::InvalidArgument,
            format!(
                "the certificate authority refused the request for {} (InvalidArgument): says the \
                 server",
                web()
            ),
        ),
        (Code::Unavailable, format!("{at} failed (Unavailable): says the server")),
        (Code::Internal, format!("{at} failed (Internal): says the server")),
    ];
    for (code, expected) in table {
        let server = serve(Behaviour::Refuse(code), None).await;
        assert_eq!(ask(&CaClient::new(plaintext(&server))).await, expected, "{code:?}");
    }
}

#[tokio::test]
async fn a_silent_server_is_given_up() {
    let asked = Arc::new(Notify::new());
    let server = serve(Behaviour::Hang(asked.clone()), None).await;
    let client = CaClient::new(plaintext(&server));
    // The connection is there before the clock is paused: paused time runs on while a socket is awaited.
    let asking = tokio::spawn(async move { ask(&client).await });
    asked.notified().await;
    tokio::time::pause();
    assert_eq!(
        asking.await.unwrap(),
        "no answer from the certificate authority at http://127.0.0.1:PORT within 10s"
    );
}

#[tokio::test]
async fn a_token_that_cannot_be_read_is_our_configuration() {
    let server = serve(Behaviour::Issue, None).await;
    let token = Some(Token::File("/nonexistent/token".into()));
    let client = CaClient::new(ServerConfig { token, ..plaintext(&server) });
    assert_eq!(
        ask(&client).await,
        "reading the token in /nonexistent/token: No such file or directory (os error 2)"
    );
}

#[tokio::test]
async fn the_token_is_read_for_each_request() {
    let server = serve(Behaviour::Issue, None).await;
    let file = tempfile::NamedTempFile::new().unwrap();
    let token = Some(Token::File(file.path().into()));
    let client = CaClient::new(ServerConfig { token, ..plaintext(&server) });
    assert!(ask(&client).await.ends_with("is empty"));
    std::fs::write(file.path(), "secret\n").unwrap();
    assert_eq!(ask(&client).await, "a chain of 2");
}
