//! Which waypoint an object asks for.
//!
//! In: its labels. Out: a [`UseWaypoint`]. Whether the waypoint exists is not asked here.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use super::{
    Labels,
    document::{Report, is_dns_name},
};

const USE_WAYPOINT: &str = "istio.io/use-waypoint";
const NAMESPACE: &str = "istio.io/use-waypoint-namespace";

/// What an object's labels say of its waypoint.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum UseWaypoint {
    /// Nothing: it has its Namespace's.
    Inherit,
    /// It has none: `none`, or it is part of a waypoint itself.
    Never,
    /// All its traffic goes through this one.
    Named {
        /// The waypoint's namespace.
        namespace: Box<str>,
        /// The name of its Gateway.
        name: Box<str>,
    },
}

impl UseWaypoint {
    /// What the labels of an object say that lives in, or is, `namespace`.
    pub fn of(labels: &Labels, namespace: &str) -> Self {
        if is_waypoint(labels) {
            return Self::Never;
        }
        match labels.get(USE_WAYPOINT).map(String::as_str) {
            None => Self::Inherit,
            Some("none") => Self::Never,
            Some(name) => {
                let namespace = labels.get(NAMESPACE).map_or(namespace, String::as_str);
                Self::Named { namespace: namespace.into(), name: name.into() }
            }
        }
    }
}

/// Reports labels that name nothing.
pub(crate) fn check_use_waypoint(metadata: &ObjectMeta, report: &mut Report<'_>) {
    let labels = metadata.labels.iter().flatten();
    for (label, value) in
        labels.filter(|(label, _)| [USE_WAYPOINT, NAMESPACE].contains(&label.as_str()))
    {
        if !is_dns_name(value) {
            report.error("metadata.labels", format!("{label}: `{value}` is no DNS name"));
        }
    }
}

/// A waypoint that was guarded by another would never end. An ingress gateway is no waypoint, though both are made of
/// a Gateway.
fn is_waypoint(labels: &Labels) -> bool {
    let label = |key: &str| labels.get(key).map(String::as_str);
    let managed = label("gateway.istio.io/managed");
    let class = label("gateway.networking.k8s.io/gateway-class-name");
    labels.contains_key("istio.io/waypoint-for")
        || matches!(managed, Some("istio.io-mesh-controller" | "istio.io-eastwest-controller"))
        || match class {
            Some(class) => matches!(class, "istio-waypoint" | "istio-east-west"),
            None => labels.contains_key("gateway.networking.k8s.io/gateway-name"),
        }
}
