//! Istio's certificate service: a node asks for a certificate in the name of one of its pods.
//!
//! In: a request and the caller's token. Out: a chain, if a pod of that name runs on the caller's node. A node that is
//! broken into can then take the names of its own pods, and of no others.

use std::{sync::Arc, time::Duration};

use mesh::identity::Spiffe;
use metrics::counter;
use proto::ca::{
    IstioCertificateRequest, IstioCertificateResponse,
    istio_certificate_service_server::IstioCertificateService,
};
use tokio::sync::watch;
use tonic::{Request, Response, Status};
use tracing::{info, warn};

use super::{state::State, tokens::NodeTokens};
use crate::ca::CertificateAuthority;

/// The service.
#[derive(Clone)]
pub(crate) struct Certificates {
    pub authority: CertificateAuthority,
    pub tokens: NodeTokens,
    pub state: watch::Receiver<Option<Arc<State>>>,
    pub trust_domain: String,
}

#[tonic::async_trait]
impl IstioCertificateService for Certificates {
    async fn create_certificate(
        &self,
        request: Request<IstioCertificateRequest>,
    ) -> Result<Response<IstioCertificateResponse>, Status> {
        counter!("citadel_server_csr_count").increment(1);
        let node = self.tokens.authenticate(request.metadata()).inspect_err(|status| {
            warn!(address = ?request.remote_addr(), reason = status.message(), "certificate refused");
        })?;
        let request = request.into_inner();
        let who = self.identity(&node, &request).inspect_err(|status| {
            warn!(node, reason = status.message(), "certificate refused");
        })?;
        let seconds = u64::try_from(request.validity_duration).unwrap_or_default();
        let chain = self.authority.sign(&request.csr, &who, Duration::from_secs(seconds));
        let cert_chain = chain.map_err(|error| {
            counter!("citadel_server_csr_sign_error_count").increment(1);
            warn!(node, identity = %who, %error, "certificate refused");
            Status::invalid_argument(format!("the certificate request for {who}: {error}"))
        })?;
        counter!("citadel_server_success_cert_issuance_count").increment(1);
        info!(node, identity = %who, "certificate issued");
        Ok(Response::new(IstioCertificateResponse { cert_chain }))
    }
}

impl Certificates {
    /// Whose certificate is asked for, if the node may have it.
    fn identity(&self, node: &str, request: &IstioCertificateRequest) -> Result<Spiffe, Status> {
        let state = self.state.borrow().clone();
        let state =
            state.ok_or_else(|| Status::unavailable("the manifests have not been loaded yet"))?;
        let identities = &state.compiled.identities;
        let who = match impersonated(request) {
            Some(named) => {
                Spiffe::parse(named).map_err(|error| Status::invalid_argument(error.to_string()))?
            }
            // The caller's own: a daemon in dedicated mode, whose host is the one workload of its node.
            None => identities
                .only(node)
                .and_then(|(namespace, account)| {
                    Spiffe::new(&self.trust_domain, namespace, account).ok()
                })
                .ok_or_else(|| {
                    Status::invalid_argument(
                        "metadata has no ImpersonatedIdentity, and the node is not one workload",
                    )
                })?,
        };
        if who.trust_domain() != self.trust_domain {
            return Err(Status::permission_denied(format!(
                "{who} is not of trust domain {}",
                self.trust_domain
            )));
        }
        if !identities.has(node, who.namespace(), who.service_account()) {
            return Err(Status::permission_denied(format!(
                "no running pod on node {node} has the service account {}/{}",
                who.namespace(),
                who.service_account()
            )));
        }
        Ok(who)
    }
}

fn impersonated(request: &IstioCertificateRequest) -> Option<&str> {
    use prost_types::value::Kind;
    let fields = &request.metadata.as_ref()?.fields;
    match fields.get("ImpersonatedIdentity")?.kind.as_ref()? {
        Kind::StringValue(identity) => Some(identity),
        Kind::NullValue(_)
        | Kind::NumberValue(_)
        | Kind::BoolValue(_)
        | Kind::StructValue(_)
        | Kind::ListValue(_) => None,
    }
}
