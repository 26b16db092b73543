//! Whose certificate a caller may have.
//!
//! In: the caller, the name asked for, and which pods run where. Out: the name, or why not. A node that is broken into
//! can take the names of its own pods, and of no others; anybody else only its own.

use mesh::identity::Spiffe;
use tonic::Status;

use super::{Caller, Pod};
use crate::compile::NodeIdentities;

/// What decides.
pub(crate) struct Entitlement<'a> {
    /// Which pods run where.
    pub identities: &'a NodeIdentities,
    /// The mesh's.
    pub trust_domain: &'a str,
    /// Service accounts of node daemons, as `namespace/name`: they ask in the names of their node's pods.
    pub node_accounts: &'a [String],
}

/// Why a caller gets no certificate.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub(crate) enum NotEntitled {
    #[error("{found} is not of trust domain {expected}")]
    TrustDomain { found: Spiffe, expected: String },
    #[error("no running pod on node {node} has the service account {account}")]
    NoPod { node: String, account: String },
    #[error("no running pod has the service account {account}")]
    Nowhere { account: String },
    #[error("{caller} may ask for no other name than {own}, and asks for {asked}")]
    OwnOnly { caller: String, own: Spiffe, asked: Spiffe },
    #[error("the token of {caller} is bound to no pod on a node")]
    Unbound { caller: String },
    #[error("metadata has no ImpersonatedIdentity, and the node is not one workload")]
    Unnamed,
    #[error("{0}")]
    Name(String),
}

impl From<NotEntitled> for Status {
    fn from(why: NotEntitled) -> Self {
        match why {
            NotEntitled::Unnamed | NotEntitled::Name(_) => Self::invalid_argument(why.to_string()),
            NotEntitled::TrustDomain { .. }
            | NotEntitled::NoPod { .. }
            | NotEntitled::Nowhere { .. }
            | NotEntitled::OwnOnly { .. }
            | NotEntitled::Unbound { .. } => Self::permission_denied(why.to_string()),
        }
    }
}

/// The name that the caller gets a certificate for.
///
/// # Errors
/// [`NotEntitled`] says why it gets none.
pub(crate) fn entitled(
    caller: &Caller,
    asked: Option<Spiffe>,
    by: &Entitlement<'_>,
) -> Result<Spiffe, NotEntitled> {
    if let Some(found) = asked.as_ref().filter(|asked| asked.trust_domain() != by.trust_domain) {
        let expected = by.trust_domain.to_owned();
        return Err(NotEntitled::TrustDomain { found: found.clone(), expected });
    }
    match (caller, asked) {
        (Caller::Node(node), Some(asked)) => by.on_node(node, asked),
        // The caller's own: a daemon in dedicated mode, whose host is the one workload of its node.
        (Caller::Node(node), None) => {
            let only = by.identities.only(node).ok_or(NotEntitled::Unnamed)?;
            by.name(only.0, only.1)
        }
        (Caller::Pod(pod), Some(asked)) if by.is_node_daemon(pod) => match &pod.node {
            Some(node) if pod.name.is_some() => by.on_node(node, asked),
            Some(_) | None => Err(NotEntitled::Unbound { caller: caller.to_string() }),
        },
        (Caller::Pod(pod), asked) => {
            own(caller, by.name(&pod.namespace, &pod.service_account)?, asked)
        }
        (Caller::Certified(who), asked) => {
            let who = own(caller, by.name(who.namespace(), who.service_account())?, asked)?;
            // Else whoever got hold of a key could renew its certificate for ever.
            if by.identities.anywhere(who.namespace(), who.service_account()) {
                Ok(who)
            } else {
                Err(NotEntitled::Nowhere { account: account(&who) })
            }
        }
    }
}

impl Entitlement<'_> {
    fn on_node(&self, node: &str, asked: Spiffe) -> Result<Spiffe, NotEntitled> {
        if self.identities.has(node, asked.namespace(), asked.service_account()) {
            return Ok(asked);
        }
        Err(NotEntitled::NoPod { node: node.to_owned(), account: account(&asked) })
    }

    fn name(&self, namespace: &str, service_account: &str) -> Result<Spiffe, NotEntitled> {
        Spiffe::new(self.trust_domain, namespace, service_account)
            .map_err(|error| NotEntitled::Name(error.to_string()))
    }

    fn is_node_daemon(&self, pod: &Pod) -> bool {
        self.node_accounts
            .iter()
            .any(|one| one.split_once('/') == Some((&*pod.namespace, &*pod.service_account)))
    }
}

fn own(caller: &Caller, own: Spiffe, asked: Option<Spiffe>) -> Result<Spiffe, NotEntitled> {
    match asked {
        Some(asked) if asked != own => {
            Err(NotEntitled::OwnOnly { caller: caller.to_string(), own, asked })
        }
        Some(_) | None => Ok(own),
    }
}

fn account(who: &Spiffe) -> String {
    format!("{}/{}", who.namespace(), who.service_account())
}

#[cfg(test)]
mod tests {
    use std::{path::Path, sync::Arc};

    use super::*;
    use crate::{
        compile::{MeshConfig, compile},
        manifests::{Manifests, read_text},
    };

    const PODS: &str = "
apiVersion: v1
kind: Pod
metadata: {name: web, namespace: shop}
spec: {nodeName: node-a, serviceAccountName: web, containers: []}
status: {phase: Running, podIP: 10.0.0.1}
---
apiVersion: v1
kind: Pod
metadata: {name: cart, namespace: shop}
spec: {nodeName: node-b, serviceAccountName: cart, containers: []}
status: {phase: Running, podIP: 10.0.0.2}
";

    fn pod(namespace: &str, service_account: &str, node: Option<&str>) -> Caller {
        Caller::Pod(Pod {
            namespace: namespace.into(),
            service_account: service_account.into(),
            name: node.map(|_| "a-pod".into()),
            node: node.map(Into::into),
        })
    }

    fn check(caller: &Caller, asked: Option<&str>, expected: &str) {
        let mut problems = Vec::new();
        let resources = read_text(&Arc::from(Path::new("f.yaml")), PODS, &mut problems);
        let compiled = compile(&Manifests::gather(&resources).0, &MeshConfig::default());
        let by = Entitlement {
            identities: &compiled.identities,
            trust_domain: "cluster.local",
            node_accounts: &["istio-system/ztunnel".into()],
        };
        let asked = asked.map(|name| Spiffe::parse(name).unwrap());
        let found = match entitled(caller, asked.clone(), &by) {
            Ok(who) => who.to_string(),
            Err(why) => why.to_string(),
        };
        assert_eq!(found, expected, "{caller} asks for {asked:?}");
    }

    const WEB: &str = "spiffe://cluster.local/ns/shop/sa/web";
    const CART: &str = "spiffe://cluster.local/ns/shop/sa/cart";
    const GONE: &str = "spiffe://cluster.local/ns/shop/sa/gone";

    #[test]
    fn a_node_has_the_names_of_its_own_pods() {
        let ztunnel = pod("istio-system", "ztunnel", Some("node-a"));
        for caller in [&Caller::Node("node-a".into()), &ztunnel] {
            check(caller, Some(WEB), WEB);
            let refusal = "no running pod on node node-a has the service account shop/cart";
            check(caller, Some(CART), refusal);
            let other = "spiffe://example.com/ns/shop/sa/web";
            check(caller, Some(other), &format!("{other} is not of trust domain cluster.local"));
        }
        check(&Caller::Node("node-a".into()), None, WEB);
        let unnamed = "metadata has no ImpersonatedIdentity, and the node is not one workload";
        check(&Caller::Node("node-c".into()), None, unnamed);
        check(&ztunnel, None, "spiffe://cluster.local/ns/istio-system/sa/ztunnel");
    }

    #[test]
    fn a_daemons_token_that_is_bound_to_no_pod_is_of_no_node() {
        let unbound =
            "the token of service account istio-system/ztunnel is bound to no pod on a node";
        check(&pod("istio-system", "ztunnel", None), Some(WEB), unbound);
    }

    #[test]
    fn anybody_else_has_its_own_name_only() {
        let web = pod("shop", "web", Some("node-a"));
        check(&web, None, WEB);
        check(&web, Some(WEB), WEB);
        check(
            &web,
            Some(CART),
            &format!(
                "service account shop/web, pod a-pod on node node-a may ask for no other name than {WEB}, and asks for {CART}"
            ),
        );
        // A namespace of another name has another ztunnel.
        let impostor = pod("shop", "ztunnel", Some("node-a"));
        let own = "spiffe://cluster.local/ns/shop/sa/ztunnel";
        check(
            &impostor,
            Some(WEB),
            &format!(
                "service account shop/ztunnel, pod a-pod on node node-a may ask for no other name than {own}, and asks for {WEB}"
            ),
        );
    }

    #[test]
    fn a_certificate_renews_itself_while_a_pod_runs() {
        let certified = |name: &str| Caller::Certified(Spiffe::parse(name).unwrap());
        check(&certified(WEB), None, WEB);
        check(&certified(WEB), Some(WEB), WEB);
        let own_only = format!("{WEB} may ask for no other name than {WEB}, and asks for {CART}");
        check(&certified(WEB), Some(CART), &own_only);
        check(&certified(GONE), None, "no running pod has the service account shop/gone");
    }
}
