//! Which waypoint an object asks for.
//!
//! In: its labels. Out: a [`UseWaypoint`]. Whether the waypoint exists is not asked: a daemon refuses what it cannot
//! send to its waypoint, and an object that asks for one must not be reached around it.

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
    /// Nothing: a Service has its Namespace's.
    Inherit,
    /// It has none: `none`, or it is part of a waypoint itself.
    Never,
    /// All its traffic goes through this one.
    Named {
        /// The waypoint's namespace.
        namespace: Box<str>,
        /// The name of its Gateway and Service.
        name: Box<str>,
    },
}

/// Reads the labels of an object that lives in, or is, `namespace`; `guarded` says what they are about.
pub(crate) fn use_waypoint(
    metadata: &ObjectMeta,
    namespace: &str,
    guarded: &str,
    report: &mut Report<'_>,
) -> UseWaypoint {
    let Some(labels) = &metadata.labels else { return UseWaypoint::Inherit };
    if is_waypoint(labels) {
        return UseWaypoint::Never;
    }
    let Some(name) = labels.get(USE_WAYPOINT) else { return UseWaypoint::Inherit };
    if name == "none" {
        return UseWaypoint::Never;
    }
    let namespace = labels.get(NAMESPACE).map_or(namespace, String::as_str);
    for (label, value) in [(USE_WAYPOINT, name.as_str()), (NAMESPACE, namespace)] {
        if !is_dns_name(value) {
            report.error("metadata.labels", format!("{label}: `{value}` is no DNS name"));
        }
    }
    report.warning(
        "metadata.labels",
        format!(
            "{USE_WAYPOINT}: this version runs no waypoints: traffic to {guarded} is refused unless \
             {namespace}/{name} is there as pods and a service"
        ),
    );
    UseWaypoint::Named { namespace: namespace.into(), name: name.as_str().into() }
}

/// A waypoint that was guarded by another would never end. An ingress gateway is no waypoint, though both are made of
/// a Gateway.
fn is_waypoint(labels: &Labels) -> bool {
    let class = labels.get("gateway.networking.k8s.io/gateway-class-name").map(String::as_str);
    labels.contains_key("istio.io/waypoint-for")
        || match class {
            Some(class) => matches!(class, "istio-waypoint" | "istio-east-west"),
            None => labels.contains_key("gateway.networking.k8s.io/gateway-name"),
        }
}
