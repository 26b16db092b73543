//! Which waypoint guards a service or a workload.
//!
//! In: what objects' labels ask for, and the Gateways that are there. Out: the reference a daemon resolves, or why
//! there is none ([`Refusal`], which becomes the object's status). As with Istio, what is refused a waypoint is
//! reached without one: to have traffic only through a waypoint, a policy must allow nobody else.

use std::collections::HashMap;

use proto::workload::{
    ApplicationTunnel, GatewayAddress, NamespacedHostname, NetworkAddress, WeightedWaypoint,
    application_tunnel, gateway_address::Destination,
};

use super::{
    MeshConfig,
    registry::{Host, Member, Registry, Visibility},
    workload::octets,
};
use crate::manifests::{
    Labels, Manifests, Meta, Object, PodState, UseWaypoint,
    gateway_api::{self, Gateway, GatewayClass, LabelSelector},
};

/// The port for tunnels: a waypoint's Service always has it.
pub(crate) const HBONE_PORT: u32 = 15008;

const WAYPOINT_FOR: &str = "istio.io/waypoint-for";
const INBOUND_BINDING: &str = "ambient.istio.io/waypoint-inbound-binding";
const INGRESS: &str = "istio.io/ingress-use-waypoint";
const CANARY_WEIGHT: &str = "istio.io/use-waypoint-canary-weight";
const GATEWAY_NAME: &str = "gateway.networking.k8s.io/gateway-name";

/// The Gateways that may be waypoints, and what namespaces ask for.
#[derive(Debug, PartialEq)]
pub(crate) struct Waypoints {
    /// By `namespace/name`.
    gateways: HashMap<String, Waypoint>,
    /// By namespace.
    namespaces: HashMap<Box<str>, Labels>,
}

#[derive(Debug, PartialEq)]
struct Waypoint {
    /// Where it is, once it can take traffic.
    reference: Option<GatewayAddress>,
    for_services: bool,
    for_workloads: bool,
    admits: Admits,
    /// How a daemon hands traffic to its pods.
    tunnel: Option<ApplicationTunnel>,
}

/// Of which namespaces objects may use it.
#[derive(Debug, PartialEq)]
enum Admits {
    Own,
    All,
    Selected(LabelSelector),
    Nobody,
}

/// A waypoint that guards something.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Attachment {
    /// `namespace/name` of its Gateway.
    pub gateway: String,
    pub reference: GatewayAddress,
    /// Whether what comes from outside goes through it as well.
    pub ingress: bool,
    /// With another that takes a part of the traffic: all of them.
    pub weighted: Vec<WeightedWaypoint>,
    /// Why the other takes none.
    pub canary: Option<Refusal>,
}

/// Why an object has not the waypoint that it asks for.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) enum Refusal {
    /// There is no such Gateway, or no pod of it is ready.
    NotReady { gateway: String },
    /// It does not admit the object's namespace.
    Denied { gateway: String },
    /// It is for other traffic.
    Unsupported { gateway: String },
    /// The object is seen in its own namespace only.
    CrossNamespace { gateway: String },
    /// The part of a second waypoint is no percentage.
    CanaryWeight { value: String },
    /// The second waypoint is the first.
    CanarySame { gateway: String },
}

impl Refusal {
    /// The reason of the condition.
    pub(crate) fn reason(&self) -> &'static str {
        match self {
            Self::NotReady { .. } => "WaypointIsNotReady",
            Self::Denied { .. } => "AttachmentDenied",
            Self::Unsupported { .. } => "UnsupportedTrafficType",
            Self::CrossNamespace { .. } => "CrossNamespaceWaypointForbidden",
            Self::CanaryWeight { .. } => "CanaryInvalidWeight",
            Self::CanarySame { .. } => "CanarySameAsPrimary",
        }
    }

    /// The message of the condition, in Istio's words.
    pub(crate) fn message(&self) -> String {
        match self {
            Self::NotReady { gateway } => format!("waypoint \"{gateway}\" is not ready"),
            Self::Denied { gateway } => format!(
                "we are not permitted to attach to waypoint \"{gateway}\" (missing allowedRoutes?)"
            ),
            Self::Unsupported { gateway } => format!(
                "attempting to bind to traffic type \"service\" which the waypoint \"{gateway}\" does not support"
            ),
            Self::CrossNamespace { gateway } => format!(
                "waypoint \"{gateway}\" is of another namespace than the only one that sees this"
            ),
            Self::CanaryWeight { value } => {
                format!("{CANARY_WEIGHT}: \"{value}\" is no number from 0 to 100")
            }
            Self::CanarySame { gateway } => {
                format!("waypoint \"{gateway}\" is both the first and the canary")
            }
        }
    }
}

impl Waypoints {
    pub(crate) fn of(manifests: &Manifests, registry: &Registry, config: &MeshConfig) -> Self {
        let classes = manifests.gateway_classes.iter();
        let classes: HashMap<&str, &Object<GatewayClass>> =
            classes.map(|class| (&*class.meta.name, &**class)).collect();
        let gateways = manifests.gateways.iter().map(|gateway| {
            let class = classes.get(gateway.spec.gateway_class_name.as_str()).copied();
            let waypoint = waypoint(gateway, class, registry, config);
            (format!("{}/{}", gateway.meta.namespace, gateway.meta.name), waypoint)
        });
        let namespaces = manifests.namespaces.iter();
        let namespaces = namespaces
            .map(|namespace| ((&*namespace.meta.name).into(), namespace.meta.labels.clone()));
        Self { gateways: gateways.collect(), namespaces: namespaces.collect() }
    }

    /// The waypoint of a service's addresses.
    pub(crate) fn of_host(&self, host: &Host) -> Result<Option<Attachment>, Refusal> {
        let meta = &host.meta;
        let Some((gateway, waypoint)) = self.asked(&meta.labels, &meta.namespace)? else {
            return Ok(None);
        };
        if host.visibility == Visibility::Namespace && !is_of(&gateway, &meta.namespace) {
            return Err(Refusal::CrossNamespace { gateway });
        }
        let reference = self.usable(&gateway, waypoint, &meta.namespace)?;
        if !waypoint.for_services {
            return Err(Refusal::Unsupported { gateway });
        }
        let own = meta.labels.get(INGRESS);
        let inherited = || self.namespaces.get(&*meta.namespace)?.get(INGRESS);
        let (weighted, canary) = match self.canary(meta, &gateway, reference) {
            Ok(weighted) => (weighted, None),
            Err(refusal) => (Vec::new(), Some(refusal)),
        };
        Ok(Some(Attachment {
            reference: reference.clone(),
            ingress: own.or_else(inherited).is_some_and(|value| value == "true"),
            gateway,
            weighted,
            canary,
        }))
    }

    /// The waypoint of a workload's own addresses. One that a namespace asks for may be for services only.
    pub(crate) fn of_workload(&self, namespace: &str, labels: &Labels) -> Option<GatewayAddress> {
        let (gateway, waypoint) = self.asked(labels, namespace).ok()??;
        let reference = self.usable(&gateway, waypoint, namespace).ok()?;
        waypoint.for_workloads.then(|| reference.clone())
    }

    /// How a daemon hands traffic to a pod that is a waypoint behind it.
    pub(crate) fn tunnel_of(&self, meta: &Meta) -> Option<ApplicationTunnel> {
        let name = meta.labels.get(GATEWAY_NAME)?;
        self.gateways.get(&format!("{}/{name}", meta.namespace))?.tunnel
    }

    /// The waypoint that the labels ask for, or else the namespace's.
    fn asked(
        &self,
        labels: &Labels,
        namespace: &str,
    ) -> Result<Option<(String, &Waypoint)>, Refusal> {
        let wish = match UseWaypoint::of(labels, namespace) {
            UseWaypoint::Inherit => match self.namespaces.get(namespace) {
                Some(labels) => UseWaypoint::of(labels, namespace),
                None => UseWaypoint::Inherit,
            },
            own @ (UseWaypoint::Never | UseWaypoint::Named { .. }) => own,
        };
        let UseWaypoint::Named { namespace, name } = wish else { return Ok(None) };
        let gateway = format!("{namespace}/{name}");
        match self.gateways.get(&gateway) {
            Some(waypoint) => Ok(Some((gateway, waypoint))),
            None => Err(Refusal::NotReady { gateway }),
        }
    }

    fn usable<'a>(
        &self,
        gateway: &str,
        waypoint: &'a Waypoint,
        namespace: &str,
    ) -> Result<&'a GatewayAddress, Refusal> {
        let Some(reference) = &waypoint.reference else {
            return Err(Refusal::NotReady { gateway: gateway.to_owned() });
        };
        let admitted = match &waypoint.admits {
            Admits::All => true,
            Admits::Own => is_of(gateway, namespace),
            Admits::Selected(selector) => {
                self.namespaces.get(namespace).is_some_and(|labels| selector.matches(labels))
            }
            Admits::Nobody => false,
        };
        if admitted { Ok(reference) } else { Err(Refusal::Denied { gateway: gateway.to_owned() }) }
    }

    /// A second waypoint that takes a percentage.
    fn canary(
        &self,
        meta: &Meta,
        primary: &str,
        reference: &GatewayAddress,
    ) -> Result<Vec<WeightedWaypoint>, Refusal> {
        let label = |key: &str| meta.labels.get(key).map(String::as_str);
        let Some(name) = label("istio.io/use-waypoint-canary") else { return Ok(Vec::new()) };
        let namespace = label("istio.io/use-waypoint-canary-namespace").unwrap_or(&meta.namespace);
        let gateway = format!("{namespace}/{name}");
        if gateway == primary {
            return Err(Refusal::CanarySame { gateway });
        }
        let weight = meta.annotations.get(CANARY_WEIGHT).map_or("0", String::as_str);
        let weight = match weight.parse::<u32>() {
            Ok(weight @ 0..=100) => weight,
            Ok(_) | Err(_) => return Err(Refusal::CanaryWeight { value: weight.to_owned() }),
        };
        let Some(waypoint) = self.gateways.get(&gateway) else {
            return Err(Refusal::NotReady { gateway });
        };
        let canary = self.usable(&gateway, waypoint, &meta.namespace)?;
        if !waypoint.for_services {
            return Err(Refusal::Unsupported { gateway });
        }
        let share = |reference: &GatewayAddress, weight| WeightedWaypoint {
            destination: Some(reference.clone()),
            weight,
        };
        Ok(vec![share(reference, 100 - weight), share(canary, weight)])
    }
}

fn is_of(gateway: &str, namespace: &str) -> bool {
    gateway.split_once('/').is_some_and(|(own, _)| own == namespace)
}

fn waypoint(
    gateway: &Object<Gateway>,
    class: Option<&Object<GatewayClass>>,
    registry: &Registry,
    config: &MeshConfig,
) -> Waypoint {
    let of_class = class.and_then(|class| class.meta.labels.get(WAYPOINT_FOR));
    let types =
        gateway.meta.labels.get(WAYPOINT_FOR).or(of_class).map_or("service", |t| t.as_str());
    let of_class = class.and_then(|class| class.meta.annotations.get(INBOUND_BINDING));
    let binding = gateway.meta.annotations.get(INBOUND_BINDING).or(of_class);
    let tunnel = binding.and_then(|binding| application_tunnel(binding));
    Waypoint {
        reference: reference(gateway, registry, config),
        for_services: matches!(types, "service" | "all"),
        for_workloads: matches!(types, "workload" | "all"),
        admits: admits(&gateway.spec, tunnel.as_ref()),
        tunnel,
    }
}

/// `PROXY` or `NONE`, with `/` and a port.
fn application_tunnel(binding: &str) -> Option<ApplicationTunnel> {
    let (protocol, port) = binding.split_once('/').unwrap_or((binding, ""));
    let port = port.parse::<u16>().ok().map_or(0, u32::from);
    let protocol = match protocol {
        "PROXY" => application_tunnel::Protocol::Proxy,
        "NONE" if port != 0 => application_tunnel::Protocol::None,
        _ => return None,
    };
    Some(ApplicationTunnel { protocol: protocol.into(), port })
}

/// The listener for tunnels says whose objects it takes; behind a daemon, the one for what the daemon hands over.
fn admits(gateway: &Gateway, tunnel: Option<&ApplicationTunnel>) -> Admits {
    let mut listeners = gateway.listeners.iter();
    let listener = listeners.find(|listener| match tunnel {
        Some(tunnel) => u32::from(listener.port) == tunnel.port,
        None => listener.protocol == "HBONE",
    });
    let allowed = listener.and_then(|listener| listener.allowed_routes.as_ref());
    let Some(namespaces) = allowed.and_then(|allowed| allowed.namespaces.as_ref()) else {
        return Admits::Own;
    };
    match (namespaces.from.as_deref(), &namespaces.selector) {
        (Some("All"), _) => Admits::All,
        (Some("Selector"), Some(selector)) => Admits::Selected(selector.clone()),
        (Some("None" | "Selector"), _) => Admits::Nobody,
        _ => Admits::Own,
    }
}

/// Where a Gateway is: what its status says, or its spec. Where neither does, its Service, once a pod is ready: that
/// is when its status will say so.
fn reference(
    gateway: &Object<Gateway>,
    registry: &Registry,
    config: &MeshConfig,
) -> Option<GatewayAddress> {
    let Object { meta, spec } = gateway;
    let told =
        if spec.status.addresses.is_empty() { &spec.addresses } else { &spec.status.addresses };
    let hostname = |hostname: &str| {
        let namespace = meta.namespace.to_string();
        Destination::Hostname(NamespacedHostname { namespace, hostname: hostname.to_owned() })
    };
    let is_name =
        |address: &&gateway_api::GatewayAddress| address.r#type.as_deref() == Some("Hostname");
    let destination = if let Some(named) = told.iter().find(is_name) {
        hostname(&named.value)
    } else if let Some(ip) = told.iter().find_map(|address| address.value.parse().ok()) {
        let network = registry.network().to_owned();
        Destination::Address(NetworkAddress { network, address: octets(ip), length: None })
    } else {
        hostname(&ready_service(meta, spec, registry, config)?.hostname)
    };
    Some(GatewayAddress { destination: Some(destination), hbone_mtls_port: HBONE_PORT })
}

/// The Service that was made for a Gateway, if a pod behind it is ready.
fn ready_service<'a>(
    meta: &Meta,
    gateway: &Gateway,
    registry: &'a Registry,
    config: &MeshConfig,
) -> Option<&'a Host> {
    let overridden = meta.annotations.get("gateway.istio.io/name-override").cloned();
    let usual = || meta.name.to_string();
    let names =
        [overridden.unwrap_or_else(usual), format!("{}-{}", meta.name, gateway.gateway_class_name)];
    let hosts = names.iter().filter_map(|name| {
        let hostname = format!("{name}.{}.svc.{}", meta.namespace, config.cluster_domain);
        registry.find(&meta.namespace, &hostname)
    });
    let mut hosts = hosts.map(|host| &**host);
    hosts.find(|host| {
        registry.members(host).iter().any(|member| match member {
            Member::Pod(pod) | Member::Listed(pod, ..) => pod.spec.state == PodState::Ready,
            Member::Foreign(slice, i) => slice.spec.endpoints[*i].ready,
            Member::Entry(_) | Member::Inline(..) | Member::Name(_) => false,
        })
    })
}
