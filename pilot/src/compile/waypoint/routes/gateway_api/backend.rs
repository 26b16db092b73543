//! Where backends of the Gateway API's routes are.
//!
//! In: references. Out: destinations by host name. Whether a backend exists is not asked: one that does not has a
//! cluster that nobody makes, and requests for it are answered with an error.

use super::NETWORKING_GROUP;
use crate::manifests::{
    Meta,
    gateway_api::{BackendObjectReference, BackendRef},
    networking::{Destination, PortSelector, RouteDestination},
};

/// What a backend is.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum BackendKind {
    Service,
    /// A host by its name.
    Hostname,
    Other,
}

/// What kind of backend is referred to.
pub(crate) fn backend_kind(of: &BackendObjectReference) -> BackendKind {
    match (of.group(), of.kind()) {
        ("", "Service") => BackendKind::Service,
        (NETWORKING_GROUP, "Hostname") => BackendKind::Hostname,
        _ => BackendKind::Other,
    }
}

/// The host of a backend, as seen from the route's namespace; nothing if it is of no kind we know.
pub(crate) fn backend_host(
    of: &BackendObjectReference,
    route: &Meta,
    cluster_domain: &str,
) -> Option<String> {
    let namespace = of.namespace.as_deref().unwrap_or(&route.namespace);
    match backend_kind(of) {
        BackendKind::Service => Some(format!("{}.{namespace}.svc.{cluster_domain}", of.name)),
        BackendKind::Hostname => Some(of.name.clone()),
        BackendKind::Other => None,
    }
}

/// A backend that cannot be followed has no host.
pub(super) fn destination(
    of: &BackendObjectReference,
    route: &Meta,
    cluster_domain: &str,
) -> Destination {
    let Some(host) = backend_host(of, route, cluster_domain).filter(|_| of.port.is_some()) else {
        return Destination::default();
    };
    let port = of.port.map(|port| PortSelector { number: port.into() });
    Destination { host, subset: String::new(), port }
}

/// 1 if it says nothing.
pub(super) fn weight(of: Option<u32>) -> i32 {
    of.map_or(1, |weight| weight.try_into().unwrap_or(i32::MAX))
}

/// Backends of connections. Without any that may have traffic, connections lead to nowhere.
pub(super) fn connections(
    of: &[BackendRef],
    route: &Meta,
    cluster_domain: &str,
) -> Vec<RouteDestination> {
    let backends = of.iter().filter(|backend| backend.weight != Some(0));
    let routes: Vec<_> = backends
        .map(|backend| RouteDestination {
            destination: destination(&backend.reference(), route, cluster_domain),
            weight: weight(backend.weight),
        })
        .collect();
    if routes.is_empty() { vec![RouteDestination::default()] } else { routes }
}
