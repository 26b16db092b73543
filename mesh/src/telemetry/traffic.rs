//! What Istio's traffic metrics say of a connection: who, to whom, by which service, under which security.
//!
//! In: what the store and the TLS handshake know. Out: the labels of `istio_tcp_*`, in Istio's order.

use std::sync::Arc;

use metrics::{Label, SharedString};

use super::ResponseFlag;
use crate::identity::Spiffe;

/// Stands for every value that is not known.
const UNKNOWN: SharedString = SharedString::const_str("unknown");
/// The value of labels past the cap.
const OTHER: &str = "other";

/// Which end of the connection reports: the node of its source, or the node of its destination.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum Reporter {
    /// The connection leaves a pod of this node.
    Source,
    /// The connection enters a pod of this node.
    Destination,
}

/// What protects the connection between the two nodes.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum Security {
    /// Mutual TLS: principals are proven.
    MutualTls,
    /// Nothing the mesh knows of.
    Plaintext,
}

/// One end of a connection. A value that is not known is `None`, never empty.
#[derive(Clone, Debug, Default, Eq, Hash, PartialEq)]
pub struct Party {
    /// Name of the workload's owner, such as its Deployment.
    pub workload: Option<Arc<str>>,
    /// Kubernetes namespace.
    pub namespace: Option<Arc<str>>,
    /// Canonical service name, also reported as the app.
    pub canonical_name: Option<Arc<str>>,
    /// Canonical revision, also reported as the version.
    pub canonical_revision: Option<Arc<str>>,
    /// Cluster the workload runs in.
    pub cluster: Option<Arc<str>>,
    /// Region of its node.
    pub region: Option<Arc<str>>,
    /// Zone of its node.
    pub zone: Option<Arc<str>>,
    /// Its proven identity: reported with mutual TLS only.
    pub principal: Option<Spiffe>,
}

/// The service a connection was addressed to.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub struct ServiceName {
    /// Full host name, such as `cart.shop.svc.cluster.local`.
    pub hostname: Arc<str>,
    /// Kubernetes namespace.
    pub namespace: Arc<str>,
    /// Kubernetes name.
    pub name: Arc<str>,
}

/// Everything that tells one traffic time series from another, except how connections ended.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub struct Traffic {
    /// Which end reports.
    pub reporter: Reporter,
    /// Who connected.
    pub source: Party,
    /// The next hop: a workload, or the waypoint before it.
    pub destination: Party,
    /// What the application dialed, if it is a service.
    pub service: Option<ServiceName>,
    /// What protects the connection.
    pub security: Security,
}

impl Reporter {
    /// Istio's word for it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Source => "source",
            Self::Destination => "destination",
        }
    }

    /// The direction of the connection as the node sees it, as the access log names it.
    pub const fn direction(self) -> &'static str {
        match self {
            Self::Source => "outbound",
            Self::Destination => "inbound",
        }
    }
}

impl Security {
    const fn as_str(self) -> &'static str {
        match self {
            Self::MutualTls => "mutual_tls",
            Self::Plaintext => "unknown",
        }
    }
}

impl Traffic {
    /// Istio's labels, in Istio's order. Region and zone appear as soon as one of them is known.
    pub(super) fn labels(&self, flag: ResponseFlag) -> Vec<Label> {
        let mut labels = Vec::with_capacity(28);
        let mut push = |key: &'static str, value| labels.push(Label::new(key, value));
        let (source, destination) = (&self.source, &self.destination);
        push("reporter", self.reporter.as_str().into());
        push("source_workload", known(&source.workload));
        push("source_canonical_service", known(&source.canonical_name));
        push("source_canonical_revision", known(&source.canonical_revision));
        push("source_workload_namespace", known(&source.namespace));
        push("source_principal", self.principal(source));
        push("source_app", known(&source.canonical_name));
        push("source_version", known(&source.canonical_revision));
        push("source_cluster", known(&source.cluster));
        let service = self.service.as_ref();
        push("destination_service", service.map_or(UNKNOWN, |s| s.hostname.clone().into()));
        push(
            "destination_service_namespace",
            service.map_or(UNKNOWN, |s| s.namespace.clone().into()),
        );
        push("destination_service_name", service.map_or(UNKNOWN, |s| s.name.clone().into()));
        push("destination_workload", known(&destination.workload));
        push("destination_canonical_service", known(&destination.canonical_name));
        push("destination_canonical_revision", known(&destination.canonical_revision));
        push("destination_workload_namespace", known(&destination.namespace));
        push("destination_principal", self.principal(destination));
        push("destination_app", known(&destination.canonical_name));
        push("destination_version", known(&destination.canonical_revision));
        push("destination_cluster", known(&destination.cluster));
        push("request_protocol", "tcp".into());
        push("response_flags", flag.as_str().into());
        push("connection_security_policy", self.security.as_str().into());
        if source.has_locality() || destination.has_locality() {
            push("source_region", known(&source.region));
            push("source_zone", known(&source.zone));
            push("destination_region", known(&destination.region));
            push("destination_zone", known(&destination.zone));
        }
        labels
    }

    /// What stands for it when there are too many label sets: all that names an end is `other`.
    pub(super) fn capped(&self) -> Self {
        let other = || Some(OTHER.into());
        let party = || Party {
            workload: other(),
            namespace: other(),
            canonical_name: other(),
            canonical_revision: other(),
            cluster: other(),
            ..Party::default()
        };
        let service = self.service.as_ref().map(|_| ServiceName {
            hostname: OTHER.into(),
            namespace: OTHER.into(),
            name: OTHER.into(),
        });
        let Self { reporter, security, .. } = *self;
        Self { reporter, source: party(), destination: party(), service, security }
    }

    /// The identity of `party` if this connection proves it.
    pub(super) fn proven<'a>(&self, party: &'a Party) -> Option<&'a Spiffe> {
        match self.security {
            Security::MutualTls => party.principal.as_ref(),
            Security::Plaintext => None,
        }
    }

    fn principal(&self, party: &Party) -> SharedString {
        self.proven(party).map_or(UNKNOWN, |principal| principal.to_string().into())
    }
}

impl Party {
    fn has_locality(&self) -> bool {
        self.region.is_some() || self.zone.is_some()
    }
}

fn known(value: &Option<Arc<str>>) -> SharedString {
    value.clone().map_or(UNKNOWN, SharedString::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn party(name: &str) -> Party {
        Party {
            workload: Some(name.into()),
            namespace: Some("shop".into()),
            canonical_name: Some(format!("{name}-app").into()),
            canonical_revision: Some("v1".into()),
            cluster: Some("Kubernetes".into()),
            principal: Some(Spiffe::new("cluster.local", "shop", name).unwrap()),
            ..Party::default()
        }
    }

    fn traffic(security: Security) -> Traffic {
        let service = ServiceName {
            hostname: "cart.shop.svc.cluster.local".into(),
            namespace: "shop".into(),
            name: "cart".into(),
        };
        Traffic {
            reporter: Reporter::Source,
            source: party("web"),
            destination: party("cart"),
            service: Some(service),
            security,
        }
    }

    fn text(traffic: &Traffic, flag: ResponseFlag) -> String {
        let labels = traffic.labels(flag);
        labels.iter().map(|l| format!("{}={}\n", l.key(), l.value())).collect()
    }

    #[test]
    fn labels_have_istios_names_and_order() {
        let expected = "\
reporter=source
source_workload=web
source_canonical_service=web-app
source_canonical_revision=v1
source_workload_namespace=shop
source_principal=spiffe://cluster.local/ns/shop/sa/web
source_app=web-app
source_version=v1
source_cluster=Kubernetes
destination_service=cart.shop.svc.cluster.local
destination_service_namespace=shop
destination_service_name=cart
destination_workload=cart
destination_canonical_service=cart-app
destination_canonical_revision=v1
destination_workload_namespace=shop
destination_principal=spiffe://cluster.local/ns/shop/sa/cart
destination_app=cart-app
destination_version=v1
destination_cluster=Kubernetes
request_protocol=tcp
response_flags=DENY
connection_security_policy=mutual_tls
";
        assert_eq!(text(&traffic(Security::MutualTls), ResponseFlag::Deny), expected);
    }

    #[test]
    fn capped_labels_name_nobody() {
        let text = text(&traffic(Security::MutualTls).capped(), ResponseFlag::Connect);
        assert!(!text.contains("web") && !text.contains("cart"), "{text}");
        assert!(text.contains("source_workload=other\n"), "{text}");
        assert!(text.contains("destination_service=other\n"), "{text}");
        assert!(text.contains("reporter=source\n"), "{text}");
    }

    #[test]
    fn a_principal_is_not_claimed_without_mutual_tls() {
        let text = text(&traffic(Security::Plaintext), ResponseFlag::None);
        assert!(text.contains("source_principal=unknown\n"), "{text}");
        assert!(text.contains("connection_security_policy=unknown\n"), "{text}");
    }

    #[test]
    fn one_known_zone_brings_all_four_locality_labels() {
        let mut traffic = traffic(Security::MutualTls);
        traffic.destination.zone = Some("z1".into());
        let text = text(&traffic, ResponseFlag::None);
        let locality = "source_region=unknown\nsource_zone=unknown\ndestination_region=unknown\ndestination_zone=z1\n";
        assert!(text.ends_with(locality), "{text}");
    }
}
