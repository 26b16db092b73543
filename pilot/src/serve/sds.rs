//! The secrets that a proxy's own agent would have: its certificate, the mesh's roots, and files where the proxy is.
//!
//! For an Envoy that has no agent. In: names of secrets, and who asks. Out: the secrets, and each anew before it ends.
//! The key is made for whoever may have the certificate, is sent to nobody else, and is kept nowhere. Asks for proof on
//! loopback, too: what it gives is worth more than configuration.

use std::{
    collections::BTreeSet,
    pin::Pin,
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use mesh::identity::Spiffe;
use prost::Message;
use proto::{
    discovery::{
        DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse,
    },
    envoy::envoy::{
        config::core::v3::{DataSource, Node, data_source::Specifier},
        extensions::transport_sockets::tls::v3::{
            CertificateValidationContext, Secret, TlsCertificate, secret,
        },
        service::secret::v3::secret_discovery_service_server::SecretDiscoveryService,
    },
    google::Any,
};
use rcgen::{CertificateParams, DistinguishedName, KeyPair};
use tokio::sync::{mpsc, watch};
use tokio_stream::{Stream, wrappers::ReceiverStream};
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, Streaming};
use tracing::{info, warn};

use super::{follow, state::State};
use crate::{
    ca::CertificateAuthority,
    callers::{Callers, Entitlement, Proof, entitled},
    compile::waypoint::SECRET_TYPE,
};

/// The proxy's own certificate.
const OWN: &str = "default";
/// The mesh's roots.
const ROOTS: &str = "ROOTCA";
/// What the system where the proxy is trusts, as Debian and most others have it.
const SYSTEM_ROOTS: &str = "/etc/ssl/certs/ca-certificates.crt";
/// How long a certificate lasts.
const LIFETIME: Duration = Duration::from_secs(24 * 3600);
/// How often the roots are looked at.
const LOOK: Duration = Duration::from_secs(10);

/// The service.
#[derive(Clone)]
pub(crate) struct Secrets {
    pub authority: CertificateAuthority,
    pub callers: Callers,
    pub state: watch::Receiver<Option<Arc<State>>>,
    pub trust_domain: String,
    pub stop: CancellationToken,
}

type Responses<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl SecretDiscoveryService for Secrets {
    type DeltaSecretsStream = Responses<DeltaDiscoveryResponse>;
    type StreamSecretsStream = Responses<DiscoveryResponse>;

    async fn delta_secrets(
        &self,
        _: Request<Streaming<DeltaDiscoveryRequest>>,
    ) -> Result<Response<Self::DeltaSecretsStream>, Status> {
        Err(Status::unimplemented("secrets are served by StreamSecrets"))
    }

    async fn stream_secrets(
        &self,
        request: Request<Streaming<DiscoveryRequest>>,
    ) -> Result<Response<Self::StreamSecretsStream>, Status> {
        let certificates = request.peer_certs();
        let shown = certificates.as_ref().map(|all| all.as_slice());
        let proof = self.callers.prove(request.metadata(), shown).await?;
        // A response is made when there is room for it.
        let (responses, receiver) = mpsc::channel(1);
        let service = self.clone();
        tokio::spawn(async move {
            let mut requests = request.into_inner();
            let ended = tokio::select! {
                ended = service.stream(&proof, &mut requests, &responses) => ended,
                () = service.stop.cancelled() => Err(Status::unavailable("pilot is stopping")),
            };
            if let Err(status) = ended {
                warn!(caller = %proof.caller(), reason = status.message(), "a stream of secrets ended");
                // Nobody is there to be told if this fails.
                responses.try_send(Err(status)).ok();
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }

    async fn fetch_secrets(
        &self,
        _: Request<DiscoveryRequest>,
    ) -> Result<Response<DiscoveryResponse>, Status> {
        Err(Status::unimplemented("secrets are served by StreamSecrets"))
    }
}

/// What a stream has asked for, and what it has.
#[derive(Debug, Default)]
struct Asked {
    names: BTreeSet<String>,
    nonce: u64,
    /// What has been sent: the roots it was made with, and when it is to be made again.
    sent: Option<(String, Instant)>,
}

impl Asked {
    /// Takes a request. Gives why the last response was refused, if it was.
    fn handle(&mut self, request: DiscoveryRequest) -> Option<String> {
        let is_stale = self.nonce > 0 && request.response_nonce != self.nonce.to_string();
        if is_stale {
            return None;
        }
        let names = request.resource_names.into_iter().collect();
        if names != self.names {
            self.names = names;
            self.sent = None;
        }
        request.error_detail.map(|error| error.message)
    }

    /// Whether a response is due.
    fn is_due(&self, roots: &str, now: Instant) -> bool {
        let is_current =
            self.sent.as_ref().is_some_and(|(with, until)| with == roots && now < *until);
        !self.names.is_empty() && !is_current
    }
}

impl Secrets {
    async fn stream(
        &self,
        proof: &Proof,
        requests: &mut Streaming<DiscoveryRequest>,
        responses: &mpsc::Sender<Result<DiscoveryResponse, Status>>,
    ) -> Result<(), Status> {
        let Some(first) = requests.message().await? else { return Ok(()) };
        let node = first.node.clone().unwrap_or_default();
        let mut asked = Asked::default();
        asked.handle(first);
        loop {
            let roots = self.authority.root_pem();
            if asked.is_due(&roots, Instant::now()) {
                let Ok(room) = responses.reserve().await else { return Ok(()) };
                proof.holds(SystemTime::now())?;
                let who = self.identity(proof, &node)?;
                asked.nonce += 1;
                let nonce = asked.nonce.to_string();
                room.send(Ok(self.response(&asked.names, &who, &roots, nonce)?));
                info!(identity = %who, names = ?asked.names, "secrets sent");
                asked.sent = Some((roots, Instant::now() + LIFETIME / 2));
            }
            tokio::select! {
                request = requests.message() => match request? {
                    Some(request) => if let Some(reason) = asked.handle(request) {
                        warn!(id = node.id, reason, "secrets refused by client");
                    },
                    None => return Ok(()),
                },
                () = tokio::time::sleep(LOOK) => {}
            }
        }
    }

    /// Who the proxy is, if the caller may have that name.
    fn identity(&self, proof: &Proof, node: &Node) -> Result<Spiffe, Status> {
        let state = self.state.borrow().clone();
        let state =
            state.ok_or_else(|| Status::unavailable("the manifests have not been loaded yet"))?;
        let account = follow::account(proof.caller(), node, &state);
        let (namespace, account) = account.map_err(|reason| Status::from(&reason))?;
        let asked = Spiffe::new(&self.trust_domain, &namespace, &account)
            .map_err(|error| Status::invalid_argument(error.to_string()))?;
        let by = Entitlement {
            identities: &state.compiled.identities,
            trust_domain: &self.trust_domain,
            node_accounts: &[],
        };
        Ok(entitled(proof.caller(), Some(asked), &by)?)
    }

    fn response(
        &self,
        names: &BTreeSet<String>,
        who: &Spiffe,
        roots: &str,
        nonce: String,
    ) -> Result<DiscoveryResponse, Status> {
        let mut resources = Vec::new();
        for name in names {
            let Some(of) = self.secret(name, who, roots)? else { continue };
            let secret = Secret { name: name.clone(), r#type: Some(of) };
            resources.push(Any { type_url: SECRET_TYPE.to_owned(), value: secret.encode_to_vec() });
        }
        Ok(DiscoveryResponse {
            version_info: nonce.clone(),
            resources,
            type_url: SECRET_TYPE.to_owned(),
            nonce,
            ..DiscoveryResponse::default()
        })
    }

    /// The secret of a name; nothing if an agent has none such.
    fn secret(
        &self,
        name: &str,
        who: &Spiffe,
        roots: &str,
    ) -> Result<Option<secret::Type>, Status> {
        Ok(match name {
            OWN => Some(self.certificate(who)?),
            ROOTS => Some(trusted(Specifier::InlineBytes(roots.into()))),
            "file-root:system" => Some(trusted(Specifier::Filename(SYSTEM_ROOTS.into()))),
            name => of_files(name),
        })
    }

    /// A new key with its certificate.
    fn certificate(&self, who: &Spiffe) -> Result<secret::Type, Status> {
        let failed = |error: &dyn std::fmt::Display| {
            Status::internal(format!("making a certificate for {who}: {error}"))
        };
        let key = KeyPair::generate().map_err(|error| failed(&error))?;
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        let request = params.serialize_request(&key).and_then(|request| request.pem());
        let request = request.map_err(|error| failed(&error))?;
        let chain = self.authority.sign(&request, who, LIFETIME);
        let mut chain = chain.map_err(|error| failed(&error))?;
        // Those at the end are the roots, which a peer has itself.
        chain.pop();
        Ok(secret::Type::TlsCertificate(TlsCertificate {
            certificate_chain: Some(source(Specifier::InlineBytes(chain.concat().into_bytes()))),
            private_key: Some(source(Specifier::InlineBytes(key.serialize_pem().into_bytes()))),
            ..TlsCertificate::default()
        }))
    }
}

/// Files that a rule names, which lie where the proxy is: it reads them itself.
fn of_files(name: &str) -> Option<secret::Type> {
    if let Some(path) = name.strip_prefix("file-root:") {
        return Some(trusted(Specifier::Filename(path.to_owned())));
    }
    let (chain, key) = name.strip_prefix("file-cert:")?.split_once('~')?;
    Some(secret::Type::TlsCertificate(TlsCertificate {
        certificate_chain: Some(source(Specifier::Filename(chain.to_owned()))),
        private_key: Some(source(Specifier::Filename(key.to_owned()))),
        ..TlsCertificate::default()
    }))
}

fn trusted(roots: Specifier) -> secret::Type {
    secret::Type::ValidationContext(CertificateValidationContext {
        trusted_ca: Some(source(roots)),
        ..CertificateValidationContext::default()
    })
}

fn source(specifier: Specifier) -> DataSource {
    DataSource { specifier: Some(specifier), ..DataSource::default() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(names: &[&str], nonce: &str) -> DiscoveryRequest {
        DiscoveryRequest {
            resource_names: names.iter().map(|name| (*name).to_owned()).collect(),
            response_nonce: nonce.to_owned(),
            ..DiscoveryRequest::default()
        }
    }

    #[test]
    fn a_secret_is_sent_once_and_again_before_it_ends_or_with_other_roots() {
        let now = Instant::now();
        let mut asked = Asked::default();
        assert!(!asked.is_due("roots", now), "nothing was asked for");
        asked.handle(request(&[OWN], ""));
        assert!(asked.is_due("roots", now));
        asked.nonce = 1;
        asked.sent = Some(("roots".into(), now + LIFETIME / 2));
        asked.handle(request(&[OWN], "1"));
        assert!(!asked.is_due("roots", now));
        assert!(asked.is_due("other roots", now));
        assert!(asked.is_due("roots", now + LIFETIME / 2));
    }

    #[test]
    fn only_the_answer_to_the_last_response_counts() {
        let now = Instant::now();
        let mut asked = Asked::default();
        asked.handle(request(&[OWN], ""));
        asked.nonce = 2;
        asked.sent = Some(("roots".into(), now + LIFETIME));
        asked.handle(request(&[OWN, ROOTS], "1"));
        assert!(!asked.is_due("roots", now));
        asked.handle(request(&[OWN, ROOTS], "2"));
        assert!(asked.is_due("roots", now));
    }

    #[test]
    fn files_are_those_of_the_proxy() {
        let file = |specifier: Option<DataSource>| match specifier.and_then(|one| one.specifier) {
            Some(Specifier::Filename(path)) => path,
            other => panic!("{other:?}"),
        };
        match of_files("file-root:/etc/certs/ca.crt") {
            Some(secret::Type::ValidationContext(context)) => {
                assert_eq!(file(context.trusted_ca), "/etc/certs/ca.crt");
            }
            other => panic!("{other:?}"),
        }
        match of_files("file-cert:/a.crt~/a.key") {
            Some(secret::Type::TlsCertificate(pair)) => {
                assert_eq!(file(pair.certificate_chain), "/a.crt");
                assert_eq!(file(pair.private_key), "/a.key");
            }
            other => panic!("{other:?}"),
        }
        for name in ["kubernetes://x", "file-cert:/a.crt", "x"] {
            assert!(of_files(name).is_none(), "{name}");
        }
    }
}
