//! Who calls, and which names a caller may have.
//!
//! In: what a call shows: a node's token, a service account's token, or a certificate of ours. Out: a [`Caller`], once
//! that is proven; [`entitled`] says whose certificate it may have. A token that an API server must review is sent
//! there and nowhere else.

mod entitled;
mod review;
mod verdicts;

use std::{
    fmt,
    sync::Arc,
    time::{Duration, SystemTime},
};

use mesh::identity::{PeerChain, Spiffe, peer_identity};
use rustls::pki_types::CertificateDer;
use tonic::{Status, metadata::MetadataMap};

pub(crate) use entitled::{Entitlement, entitled};
pub(crate) use review::TokenReviewer;

use crate::serve::{NodeTokens, Refused, ShownToken};

/// Somebody who has proven who it is.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) enum Caller {
    /// The daemon of a node, by the token that we made for the node.
    Node(String),
    /// A pod, by the token of its service account.
    Pod(Pod),
    /// A workload, by its certificate.
    Certified(Spiffe),
}

/// What a service account's token says of its pod.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Pod {
    pub namespace: Box<str>,
    pub service_account: Box<str>,
    /// The pod's name. Nothing if the token is bound to none.
    pub name: Option<Box<str>>,
    /// The node that the pod is bound to.
    pub node: Option<Box<str>>,
}

impl Caller {
    /// The node that it speaks for or is on, if that is proven.
    pub(crate) fn node(&self) -> Option<&str> {
        match self {
            Self::Node(node) => Some(node),
            Self::Pod(pod) => pod.node.as_deref(),
            Self::Certified(_) => None,
        }
    }

    /// The namespace that it is of. A node's daemon is of none.
    pub(crate) fn namespace(&self) -> Option<&str> {
        match self {
            Self::Node(_) => None,
            Self::Pod(pod) => Some(&pod.namespace),
            Self::Certified(who) => Some(who.namespace()),
        }
    }
}

impl fmt::Display for Caller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Node(node) => write!(f, "node {node}"),
            Self::Pod(Pod { namespace, service_account, name, node }) => {
                write!(f, "service account {namespace}/{service_account}")?;
                if let Some(name) = name {
                    write!(f, ", pod {name}")?;
                }
                node.as_ref().map_or(Ok(()), |node| write!(f, " on node {node}"))
            }
            Self::Certified(who) => write!(f, "{who}"),
        }
    }
}

/// Why a service account's token is not believed, or cannot be reviewed now.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub(crate) enum ReviewError {
    /// The API server says no.
    #[error("the API server does not accept the token: {reason}")]
    Refused { reason: String },
    /// It belongs to somebody who is no service account.
    #[error("the token is {user}'s, who is no service account")]
    NoServiceAccount { user: String },
    /// Nobody can say at present.
    #[error("the token cannot be reviewed now: {reason}")]
    Away { reason: String },
}

impl From<ReviewError> for Status {
    fn from(error: ReviewError) -> Self {
        metrics::counter!("citadel_server_authentication_failure_count").increment(1);
        match error {
            ReviewError::Refused { .. } | ReviewError::NoServiceAccount { .. } => {
                Self::unauthenticated(error.to_string())
            }
            // The caller is to ask again.
            ReviewError::Away { .. } => Self::unavailable(error.to_string()),
        }
    }
}

/// Proves who calls.
#[derive(Clone, Debug)]
pub(crate) struct Callers {
    tokens: NodeTokens,
    /// Without Kubernetes nobody reviews tokens.
    reviewer: Option<Arc<TokenReviewer>>,
}

/// What a caller has proven itself by, to be looked at as often as it matters.
pub(crate) struct Proof {
    caller: Caller,
    by: By,
}

enum By {
    /// Its file may be removed at any time.
    NodeToken(ShownToken),
    /// Reviewed when the call began: a token that ends later has begun what goes on, as with Istio.
    Review,
    /// Ends.
    Certificate(SystemTime),
}

impl Proof {
    /// Who it is.
    pub(crate) fn caller(&self) -> &Caller {
        &self.caller
    }

    /// Says whether it would still be believed.
    ///
    /// # Errors
    /// What the caller is told.
    pub(crate) fn holds(&self, now: SystemTime) -> Result<(), Status> {
        match &self.by {
            By::NodeToken(shown) => shown.node().map(drop),
            By::Review => Ok(()),
            By::Certificate(not_after) if now <= *not_after => Ok(()),
            By::Certificate(_) => Err(Status::unauthenticated("the certificate has expired")),
        }
    }
}

impl Callers {
    pub(crate) fn new(tokens: NodeTokens, reviewer: Option<TokenReviewer>) -> Self {
        Self { tokens, reviewer: reviewer.map(Arc::new) }
    }

    /// Who makes a call, by its token, or else by the certificates that TLS has verified.
    ///
    /// # Errors
    /// What the caller is told.
    pub(crate) async fn prove(
        &self,
        headers: &MetadataMap,
        certificates: Option<&[CertificateDer<'static>]>,
    ) -> Result<Proof, Status> {
        match (self.tokens.shown(headers), certificates) {
            (Ok(shown), _) => match &self.reviewer {
                Some(reviewer) if !shown.is_of_node() => {
                    let pod = reviewer.review(shown.text()).await?;
                    Ok(Proof { caller: Caller::Pod(pod), by: By::Review })
                }
                Some(_) | None => {
                    let node = shown.node()?;
                    Ok(Proof { caller: Caller::Node(node), by: By::NodeToken(shown) })
                }
            },
            (Err(Refused::Missing), Some(certificates)) => certified(certificates),
            (Err(refused), _) => Err(refused.into()),
        }
    }
}

fn certified(certificates: &[CertificateDer<'static>]) -> Result<Proof, Status> {
    let refused = |error: &dyn fmt::Display| {
        metrics::counter!("citadel_server_authentication_failure_count").increment(1);
        Status::unauthenticated(format!("the certificate shown proves nothing: {error}"))
    };
    let who = peer_identity(certificates).map_err(|error| refused(&error))?;
    let chain = PeerChain::of(certificates).map_err(|error| refused(&error))?;
    Ok(Proof { caller: Caller::Certified(who), by: By::Certificate(chain.not_after()) })
}

/// Whether a stream may say of itself what it says.
///
/// # Errors
/// What is wrong with it. `id` is `node.id` of xDS: `<kind>~<address>~<pod>.<namespace>~<domain>`.
pub(crate) fn may_call_itself(caller: &Caller, id: &str) -> Result<(), String> {
    let Some(namespace) = caller.namespace() else { return Ok(()) };
    let name = id.split('~').nth(2).unwrap_or_default();
    // Names of pods may have dots, namespaces have none.
    let (pod, said) = name.rsplit_once('.').unwrap_or((name, ""));
    if said != namespace {
        return Err(format!("node.id `{id}` is not of namespace {namespace}, as the caller is"));
    }
    match caller {
        Caller::Pod(Pod { name: Some(name), .. }) if **name != *pod => {
            Err(format!("node.id `{id}` is not of pod {name}, as the caller is"))
        }
        Caller::Node(_) | Caller::Pod(_) | Caller::Certified(_) => Ok(()),
    }
}

/// How long to wait for an API server that reviews a token: a node's request for a certificate waits too.
const PATIENCE: Duration = Duration::from_secs(5);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stream_calls_itself_what_its_caller_is() {
        let pod = Caller::Pod(Pod {
            namespace: "shop".into(),
            service_account: "waypoint".into(),
            name: Some("waypoint-1".into()),
            node: Some("node-a".into()),
        });
        let certified =
            Caller::Certified(Spiffe::new("cluster.local", "shop", "waypoint").unwrap());
        let node = Caller::Node("node-a".into());
        let is = |caller: &Caller, id: &str| may_call_itself(caller, id).is_ok();
        for (id, by_pod, by_certificate) in [
            ("waypoint~10.0.0.1~waypoint-1.shop~shop.svc.cluster.local", true, true),
            ("waypoint~10.0.0.1~waypoint-2.shop~shop.svc.cluster.local", false, true),
            ("waypoint~10.0.0.1~waypoint-1.bank~bank.svc.cluster.local", false, false),
            ("waypoint~10.0.0.1~waypoint-1~shop.svc.cluster.local", false, false),
            ("shop", false, false),
            ("", false, false),
        ] {
            assert_eq!(is(&pod, id), by_pod, "{id}");
            assert_eq!(is(&certified, id), by_certificate, "{id}");
            assert!(is(&node, id), "{id}");
        }
    }
}
