//! Istio's certificate service: a node asks for a certificate in the name of one of its pods, anybody else in its own.
//!
//! In: a request, and what the caller shows. Out: a chain, if the caller may have that name.

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

use super::state::State;
use crate::{
    ca::CertificateAuthority,
    callers::{Caller, Callers, Entitlement, entitled},
};

/// The service.
#[derive(Clone)]
pub(crate) struct Certificates {
    pub authority: CertificateAuthority,
    pub callers: Callers,
    /// Service accounts of node daemons, as `namespace/name`.
    pub node_accounts: Vec<String>,
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
        let certificates = request.peer_certs();
        let shown = certificates.as_ref().map(|all| all.as_slice());
        let proof = self.callers.prove(request.metadata(), shown).await;
        let proof = proof.inspect_err(|status| {
            warn!(address = ?request.remote_addr(), reason = status.message(), "certificate refused");
        })?;
        let caller = proof.caller();
        let request = request.into_inner();
        let who = self.identity(caller, &request).inspect_err(|status| {
            warn!(%caller, reason = status.message(), "certificate refused");
        })?;
        let seconds = u64::try_from(request.validity_duration).unwrap_or_default();
        let chain = self.authority.sign(&request.csr, &who, Duration::from_secs(seconds));
        let cert_chain = chain.map_err(|error| {
            counter!("citadel_server_csr_sign_error_count").increment(1);
            warn!(%caller, identity = %who, %error, "certificate refused");
            Status::invalid_argument(format!("the certificate request for {who}: {error}"))
        })?;
        counter!("citadel_server_success_cert_issuance_count").increment(1);
        info!(%caller, identity = %who, "certificate issued");
        Ok(Response::new(IstioCertificateResponse { cert_chain }))
    }
}

impl Certificates {
    /// Whose certificate is asked for, if the caller may have it.
    fn identity(
        &self,
        caller: &Caller,
        request: &IstioCertificateRequest,
    ) -> Result<Spiffe, Status> {
        let state = self.state.borrow().clone();
        let state =
            state.ok_or_else(|| Status::unavailable("the manifests have not been loaded yet"))?;
        let asked = impersonated(request).map(Spiffe::parse).transpose();
        let asked = asked.map_err(|error| Status::invalid_argument(error.to_string()))?;
        let by = Entitlement {
            identities: &state.compiled.identities,
            trust_domain: &self.trust_domain,
            node_accounts: &self.node_accounts,
        };
        Ok(entitled(caller, asked, &by)?)
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
