//! The statuses of GatewayClasses and Gateways.
//!
//! In: the classes we serve, the Gateways of these, and the Services before their proxies. Out: whether a Gateway is
//! taken, whether it works, and where it is reached. A waypoint whose status has no address is used by nobody.

use serde_json::{Value, json};

use super::{
    Statuses,
    condition::{Condition, list},
    put,
};
use crate::{
    compile::{
        MeshConfig,
        registry::{Health, Host, Registry},
    },
    manifests::{
        Kind, Manifests, Meta, Object,
        gateway_api::{Gateway, GatewayAddress, Listener},
    },
};

/// What a class is, by the name of who serves it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Class {
    Waypoint,
    EastWest,
    /// Another mesh's: we only know where it is.
    Remote,
}

impl Class {
    /// By `controllerName`.
    fn of_controller(name: &str) -> Option<Self> {
        Some(match name {
            "istio.io/mesh-controller" => Self::Waypoint,
            "istio.io/eastwest-controller" => Self::EastWest,
            "istio.io/unmanaged-gateway" => Self::Remote,
            _ => return None,
        })
    }

    /// By the class's name: an object of that name may say otherwise.
    pub(crate) fn of(name: &str, manifests: &Manifests) -> Option<Self> {
        let mut classes = manifests.gateway_classes.iter();
        if let Some(class) = classes.find(|class| *class.meta.name == *name) {
            return Self::of_controller(&class.spec.controller_name);
        }
        Some(match name {
            "istio-waypoint" => Self::Waypoint,
            "istio-east-west" => Self::EastWest,
            "istio-remote" => Self::Remote,
            _ => return None,
        })
    }
}

pub(super) fn add(
    manifests: &Manifests,
    config: &MeshConfig,
    registry: &Registry,
    statuses: &mut Statuses,
) {
    for class in &manifests.gateway_classes {
        if Class::of_controller(&class.spec.controller_name).is_some() {
            let accepted = Condition::yes("Accepted", "Accepted", "Handled by Istio controller");
            let status = json!({ "conditions": list(&[accepted], &class.meta) });
            put(statuses, Kind::GatewayClass, &class.meta, status);
        }
    }
    for gateway in &manifests.gateways {
        if let Some(class) = Class::of(&gateway.spec.gateway_class_name, manifests) {
            let status = match class {
                Class::Remote => remote(gateway),
                Class::Waypoint | Class::EastWest => managed(gateway, class, config, registry),
            };
            put(statuses, Kind::Gateway, &gateway.meta, status);
        }
    }
}

fn accepted() -> Condition {
    Condition::yes("Accepted", "Accepted", "Resource accepted")
}

/// A Gateway of another network says itself where it is.
fn remote(gateway: &Object<Gateway>) -> Value {
    let Object { meta, spec } = gateway;
    let message = "This Gateway is remote; Istio will not program it";
    let conditions = [accepted(), Condition::yes("Programmed", "Programmed", message)];
    let address = |address: &GatewayAddress| {
        let kind = address.r#type.as_deref().unwrap_or("IPAddress");
        json!({ "type": kind, "value": address.value })
    };
    let addresses: Vec<_> = spec.addresses.iter().map(address).collect();
    json!({ "addresses": addresses, "conditions": list(&conditions, meta) })
}

/// A Gateway whose proxies are pods behind a Service of its name.
fn managed(
    gateway: &Object<Gateway>,
    class: Class,
    config: &MeshConfig,
    registry: &Registry,
) -> Value {
    let Object { meta, spec } = gateway;
    let hostname = format!("{}.{}.svc.{}", meta.name, meta.namespace, config.cluster_domain);
    let host = registry.find(&meta.namespace, &hostname);
    let (programmed, addresses) = programmed(spec, class, &hostname, host, registry);
    let resolved = Condition::yes("ResolvedRefs", "ResolvedRefs", "All references resolved");
    let listeners: Vec<_> = spec.listeners.iter().map(|one| listener(one, class, meta)).collect();
    let mut status = json!({
        "conditions": list(&[accepted(), programmed, resolved], meta),
        "listeners": listeners,
    });
    if !addresses.is_empty() {
        status["addresses"] = addresses.into();
    }
    status
}

/// Whether there is a proxy, and where.
fn programmed(
    spec: &Gateway,
    class: Class,
    hostname: &str,
    host: Option<&std::sync::Arc<Host>>,
    registry: &Registry,
) -> (Condition, Vec<Value>) {
    let no = |message| (Condition::no("Programmed", "AddressNotAssigned", message), Vec::new());
    let failed = "Failed to assign to any requested addresses";
    let Some(host) = host else {
        return no(format!("{failed}: hostname \"{hostname}\" not found"));
    };
    let endpoints = registry.endpoints(host);
    if !endpoints.iter().any(|endpoint| endpoint.health == Health::Healthy) {
        return no(format!("{failed}: no instances found for hostname \"{hostname}\""));
    }
    let mut addresses: Vec<_> =
        host.ips().map(|ip| json!({ "type": "IPAddress", "value": ip.to_string() })).collect();
    let ports: Vec<_> =
        spec.listeners.iter().map(|listener| format!("{hostname}:{}", listener.port)).collect();
    let ports = ports.join(" and ");
    let condition = match class {
        // Clients of other networks need an address from outside, which a Service of a folder does not have.
        Class::EastWest => Condition::no(
            "Programmed",
            "AddressNotAssigned",
            format!(
                "Assigned to service(s) {ports}, but failed to assign to all requested addresses: \
                 address pending for hostname \"{hostname}\""
            ),
        ),
        Class::Waypoint | Class::Remote => {
            addresses.push(json!({ "type": "Hostname", "value": hostname }));
            let message = format!("Resource programmed, assigned to service(s) {ports}");
            Condition::yes("Programmed", "Programmed", message)
        }
    };
    (condition, addresses)
}

/// What a proxy of the mesh listens for: tunnels, perhaps from a node daemon that says whose.
fn is_for_tunnels(listener: &Listener) -> bool {
    matches!(listener.protocol.as_str(), "HBONE" | "istio.io/PROXY")
}

fn listener(of: &Listener, class: Class, meta: &Meta) -> Value {
    const FINE: &str = "No errors found";
    let tunnels = class == Class::EastWest || is_for_tunnels(of);
    let (accepted, programmed) = if tunnels {
        (
            Condition::yes("Accepted", "Accepted", FINE),
            Condition::yes("Programmed", "Programmed", FINE),
        )
    } else {
        let message = format!("protocol \"{}\" is unsupported", of.protocol);
        (
            Condition::no("Accepted", "UnsupportedProtocol", message.clone()),
            Condition::no("Programmed", "Invalid", message),
        )
    };
    let conditions = [
        accepted,
        Condition::no("Conflicted", "NoConflicts", FINE),
        programmed,
        Condition::yes("ResolvedRefs", "ResolvedRefs", FINE),
    ];
    // Routes are attached to services: none has a waypoint as its parent.
    json!({
        "name": of.name,
        "attachedRoutes": 0,
        "supportedKinds": [],
        "conditions": list(&conditions, meta),
    })
}

#[cfg(test)]
mod tests {
    use std::{path::Path, sync::Arc};

    use super::*;
    use crate::manifests::read_text;

    fn status(text: &str, kind: Kind, name: &str) -> Option<Value> {
        let mut problems = Vec::new();
        let resources = read_text(&Arc::from(Path::new("f.yaml")), text, &mut problems);
        assert!(problems.is_empty(), "{problems:?}");
        let statuses = super::super::all(&Manifests::gather(&resources).0, &MeshConfig::default());
        let mut statuses = statuses.into_iter();
        statuses
            .find(|((of, _, found), _)| *of == kind && **found == *name)
            .map(|(_, status)| status)
    }

    #[test]
    fn classes_are_accepted_by_who_serves_them() {
        for (controller, accepted) in [
            ("istio.io/mesh-controller", true),
            ("istio.io/eastwest-controller", true),
            ("istio.io/unmanaged-gateway", true),
            ("istio.io/gateway-controller", false),
            ("example.com/other", false),
        ] {
            let text = format!(
                "apiVersion: gateway.networking.k8s.io/v1\nkind: GatewayClass\nmetadata: {{name: c, \
                 generation: 7}}\nspec: {{controllerName: {controller}}}\n"
            );
            let status = status(&text, Kind::GatewayClass, "c");
            let expected = json!({ "conditions": [{
                "type": "Accepted",
                "status": "True",
                "reason": "Accepted",
                "message": "Handled by Istio controller",
                "observedGeneration": 7,
            }]});
            assert_eq!(status, accepted.then_some(expected), "{controller}");
        }
    }

    #[test]
    fn a_listener_for_anything_but_tunnels_is_refused() {
        let text = "\
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: g, namespace: n}
spec:
  gatewayClassName: istio-waypoint
  listeners: [{name: mesh, port: 15008, protocol: HBONE}, {name: web, port: 80, protocol: HTTP}]
";
        let status = status(text, Kind::Gateway, "g").unwrap();
        assert_eq!(status.get("addresses"), None);
        assert_eq!(status["conditions"][1]["reason"], "AddressNotAssigned");
        let accepted = |i: usize| status["listeners"][i]["conditions"][0]["reason"].clone();
        assert_eq!([accepted(0), accepted(1)], ["Accepted", "UnsupportedProtocol"]);
    }

    #[test]
    fn a_gateway_of_another_class_is_not_ours() {
        let text = "\
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: g, namespace: n}
spec: {gatewayClassName: nginx, listeners: [{name: web, port: 80, protocol: HTTP}]}
";
        assert_eq!(status(text, Kind::Gateway, "g"), None);
    }
}
