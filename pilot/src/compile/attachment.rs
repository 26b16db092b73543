//! Which waypoint guards a Service or a pod.
//!
//! In: what the objects' labels ask for. Out: the reference a daemon resolves, to the waypoint's Service by its host
//! name. A waypoint that is not there is referred to as well: what it guards is then refused, not served around it.

use std::collections::HashMap;

use proto::workload::{GatewayAddress, NamespacedHostname, gateway_address::Destination};

use super::MeshConfig;
use crate::manifests::{Manifests, Meta, Service, UseWaypoint};

/// The port for tunnels: a waypoint's Service always has it.
const HBONE_PORT: u32 = 15008;

/// What the namespaces ask for.
pub(crate) struct Waypoints<'a> {
    config: &'a MeshConfig,
    namespaces: HashMap<&'a str, &'a UseWaypoint>,
}

impl<'a> Waypoints<'a> {
    pub(crate) fn of(manifests: &'a Manifests, config: &'a MeshConfig) -> Self {
        let namespaces = manifests.namespaces.iter();
        let namespaces =
            namespaces.map(|namespace| (&*namespace.meta.name, &namespace.spec.waypoint));
        Self { config, namespaces: namespaces.collect() }
    }

    /// A Service's waypoint: its own, or else its Namespace's.
    pub(crate) fn of_service(&self, meta: &Meta, service: &Service) -> Option<GatewayAddress> {
        match &service.waypoint {
            UseWaypoint::Inherit => {
                self.namespaces.get(&*meta.namespace).and_then(|waypoint| self.reference(waypoint))
            }
            own @ (UseWaypoint::Never | UseWaypoint::Named { .. }) => self.reference(own),
        }
    }

    /// A pod's waypoint: its own only, because a Namespace's is for Services unless the waypoint says otherwise.
    pub(crate) fn of_pod(&self, own: &UseWaypoint) -> Option<GatewayAddress> {
        self.reference(own)
    }

    fn reference(&self, waypoint: &UseWaypoint) -> Option<GatewayAddress> {
        let UseWaypoint::Named { namespace, name } = waypoint else { return None };
        let hostname = format!("{name}.{namespace}.svc.{}", self.config.cluster_domain);
        let destination = NamespacedHostname { namespace: namespace.to_string(), hostname };
        Some(GatewayAddress {
            destination: Some(Destination::Hostname(destination)),
            hbone_mtls_port: HBONE_PORT,
        })
    }
}
