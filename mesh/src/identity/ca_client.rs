//! The certificate authority of the control plane, over gRPC.
//!
//! In: signing requests. Out: what it answers, or a [`CaError`] that says whose fault it is. One connection is kept
//! and used by all requests; when the file with the roots changes, the next request opens another.

use std::{
    collections::BTreeMap,
    error::Error,
    io,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use prost_types::{Struct, Value, value::Kind};
use proto::ca::{
    IstioCertificateRequest, istio_certificate_service_client::IstioCertificateServiceClient,
};
use tonic::{Code, Request, Status, transport::Channel};

use super::{
    BoxFuture, CaError, CertificateSource, HandshakeError, ServerConfig, Spiffe,
    verifier::unknown_issuer,
};

/// From the request to the answer, with the connection if there is none yet.
const ANSWER_LIMIT: Duration = Duration::from_secs(10);
/// Under this key the authority finds the name asked for, where it is not the caller's own.
const IMPERSONATED: &str = "ImpersonatedIdentity";

/// A certificate authority that speaks `istio.v1.auth.IstioCertificateService`: istiod or pilot.
pub struct CaClient {
    server: ServerConfig,
    naming: Naming,
    open: Mutex<Option<Open>>,
}

/// Whose certificates are asked for.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Naming {
    /// Others': the request names each (Istio's `ImpersonatedIdentity`).
    Others,
    /// The caller's own: the authority knows it by its token.
    Caller,
}

struct Open {
    roots_pem: String,
    channel: Channel,
}

impl CaClient {
    /// A client of `server`. Nothing is read or dialed before the first request.
    pub fn new(server: ServerConfig) -> Self {
        Self { server, naming: Naming::Others, open: Mutex::new(None) }
    }

    /// A client that asks for certificates of the caller alone, which its requests do not name.
    pub fn of_caller(server: ServerConfig) -> Self {
        Self { server, naming: Naming::Caller, open: Mutex::new(None) }
    }

    /// The connection, which dials when it is first used and again when it breaks.
    fn channel(&self) -> Result<Channel, CaError> {
        // Read before the endpoint reads them: if they change in between, the next request notices.
        let roots_pem =
            if self.server.is_plaintext() { String::new() } else { self.server.roots_pem()? };
        let endpoint = self.server.endpoint()?;
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        match &*open {
            Some(open) if open.roots_pem == roots_pem => Ok(open.channel.clone()),
            Some(_) | None => {
                let channel = endpoint.connect_lazy();
                *open = Some(Open { roots_pem, channel: channel.clone() });
                Ok(channel)
            }
        }
    }

    async fn ask(
        &self,
        csr: String,
        who: &Spiffe,
        lifetime: Duration,
    ) -> Result<Vec<String>, CaError> {
        let named = || {
            let identity = Value { kind: Some(Kind::StringValue(who.to_string())) };
            Struct { fields: BTreeMap::from([(IMPERSONATED.to_owned(), identity)]) }
        };
        let mut request = Request::new(IstioCertificateRequest {
            csr,
            validity_duration: i64::try_from(lifetime.as_secs()).unwrap_or(i64::MAX),
            metadata: (self.naming == Naming::Others).then(named),
        });
        for (name, value) in self.server.headers()? {
            request.metadata_mut().insert(name, value);
        }
        let mut client = IstioCertificateServiceClient::new(self.channel()?);
        let answer = tokio::time::timeout(ANSWER_LIMIT, client.create_certificate(request)).await;
        match answer {
            Ok(Ok(response)) => Ok(response.into_inner().cert_chain),
            Ok(Err(status)) => Err(self.explain(who, &status)),
            Err(_elapsed) => {
                Err(CaError::Timeout { address: self.server.address.clone(), limit: ANSWER_LIMIT })
            }
        }
    }

    /// Says whose fault a failed call is.
    fn explain(&self, who: &Spiffe, status: &Status) -> CaError {
        let (who, address) = (who.clone(), self.server.address.clone());
        let (code, message) = (status.code(), status.message().to_owned());
        if let Some(source) = tls_failure(status) {
            return CaError::Tls { address, source };
        }
        match code {
            Code::Unauthenticated | Code::PermissionDenied => CaError::Denied { who, message },
            Code::InvalidArgument
            | Code::NotFound
            | Code::AlreadyExists
            | Code::FailedPrecondition
            | Code::OutOfRange
            | Code::Unimplemented => CaError::Rejected { who, code, message },
            Code::Ok
            | Code::Cancelled
            | Code::Unknown
            | Code::DeadlineExceeded
            | Code::ResourceExhausted
            | Code::Aborted
            | Code::Internal
            | Code::Unavailable
            | Code::DataLoss => match innermost(status) {
                Some(reason) => CaError::Connect { address, reason },
                None => CaError::Unavailable { address, code, message },
            },
        }
    }
}

impl CertificateSource for CaClient {
    fn issue<'a>(
        &'a self,
        csr_pem: String,
        who: &'a Spiffe,
        lifetime: Duration,
    ) -> BoxFuture<'a, Result<Vec<String>, CaError>> {
        Box::pin(self.ask(csr_pem, who, lifetime))
    }
}

/// What TLS says about a failed connection: it sits inside an `io::Error`, which does not give it as its source.
fn tls_failure(status: &Status) -> Option<HandshakeError> {
    causes(status)
        .filter_map(|cause| cause.downcast_ref::<io::Error>()?.get_ref())
        .find_map(|inner| inner.downcast_ref::<rustls::Error>())
        .map(|error| unknown_issuer(error.clone()).into())
}

/// A status that came over the wire has no source; one that was made here says last what happened.
fn innermost(status: &Status) -> Option<String> {
    causes(status).last().map(ToString::to_string)
}

fn causes(status: &Status) -> impl Iterator<Item = &(dyn Error + 'static)> {
    std::iter::successors(status.source(), |&cause| cause.source())
}

#[cfg(test)]
#[path = "ca_client_tests.rs"]
mod tests;
