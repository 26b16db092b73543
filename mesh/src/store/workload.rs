//! A workload: something that has addresses and an identity, such as a pod.
//!
//! In: `istio.workload.Workload`. Out: a [`Workload`] with Istio's defaults filled in. A value of an enum that this version
//! does not know is refused where it decides how traffic is carried, and ignored where it only describes.

use std::{net::IpAddr, num::NonZeroU16, sync::Arc};

use proto::workload as wire_workload;

use super::{DecodeError, GatewayAddress, Limits, gateway};
use crate::{
    identity::Spiffe,
    policy,
    wire::{self, Fault},
};

const DEFAULT_TRUST_DOMAIN: &str = "cluster.local";
const DEFAULT_SERVICE_ACCOUNT: &str = "default";
const DEFAULT_CLUSTER: &str = "Kubernetes";

/// Something that has addresses and an identity. A text that the control plane left out is empty.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Workload {
    /// Its name in xDS, unique in the mesh.
    pub uid: Arc<str>,
    /// Its name, such as the pod's.
    pub name: Arc<str>,
    /// Its Kubernetes namespace.
    pub namespace: Arc<str>,
    /// Its addresses; none if it has only a host name or is behind a network gateway.
    pub addresses: Box<[IpAddr]>,
    /// A DNS name that stands for addresses.
    pub hostname: Arc<str>,
    /// The network its addresses belong to.
    pub network: Arc<str>,
    /// Whether its addresses are its own.
    pub network_mode: NetworkMode,
    /// How it accepts connections.
    pub tunnel_protocol: TunnelProtocol,
    /// Whether it makes its own tunnels.
    pub native_tunnel: bool,
    /// Where its own application takes what a tunnel brings, if not at the port asked for.
    pub application_tunnel: Option<ApplicationTunnel>,
    /// Its trust domain, `cluster.local` by default.
    pub trust_domain: Arc<str>,
    /// Its service account, `default` by default.
    pub service_account: Arc<str>,
    /// Its identity, as the list of whom a client must find there; empty if its parts make no SPIFFE name, so that
    /// nobody is found.
    pub identities: Arc<[Spiffe]>,
    /// The waypoint that guards its addresses.
    pub waypoint: Option<GatewayAddress>,
    /// The gateway it is reached through from other networks.
    pub network_gateway: Option<GatewayAddress>,
    /// The Kubernetes node it runs on.
    pub node: Arc<str>,
    /// The cluster it belongs to, `Kubernetes` by default.
    pub cluster: Arc<str>,
    /// Where it runs.
    pub locality: Locality,
    /// Name for telemetry, the same for all versions.
    pub canonical_name: Arc<str>,
    /// Version for telemetry.
    pub canonical_revision: Arc<str>,
    /// What kind of thing made it.
    pub workload_type: WorkloadType,
    /// The name of what made it.
    pub workload_name: Arc<str>,
    /// The services it is an endpoint of, in the order of their keys.
    pub services: Arc<[Membership]>,
    /// The policies that select it, as `<namespace>/<name>`.
    pub policies: Arc<[Arc<str>]>,
    /// Whether it should get traffic.
    pub health: Health,
    /// Its share of a service's connections, relative to the other endpoints'. Default 1; 0 gets none.
    pub capacity: u32,
    /// Limits for connections to it and from it.
    pub limits: Limits,
}

/// That a workload is an endpoint of a service.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub struct Membership {
    /// The service, as `<namespace>/<hostname>`.
    pub service: Arc<str>,
    /// The ports this endpoint serves.
    pub ports: Box<[Port]>,
}

/// A port of a service.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub struct Port {
    /// The port clients dial.
    pub service: u16,
    /// The port the application listens on; none if it is named and each endpoint says which it is.
    pub target: Option<NonZeroU16>,
    /// What is spoken on it.
    pub app_protocol: AppProtocol,
}

/// Where a workload runs, from coarse to fine.
#[derive(Clone, Debug, Default, Eq, Hash, PartialEq)]
pub struct Locality {
    /// Such as `eu-central`.
    pub region: Arc<str>,
    /// Such as `eu-central-1a`.
    pub zone: Arc<str>,
    /// A part of a zone.
    pub subzone: Arc<str>,
}

/// Whether a workload's addresses are its own.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum NetworkMode {
    /// They are.
    Standard,
    /// They are the node's, so that an address does not tell which workload it is.
    HostNetwork,
}

/// How a workload accepts connections.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum TunnelProtocol {
    /// Plain TCP. Sidecars of the older mutual TLS accept that too, and are not told apart.
    None,
    /// HBONE on port 15008.
    Hbone,
}

/// Where the application itself takes what a tunnel brings.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub struct ApplicationTunnel {
    /// What is put before the bytes.
    pub protocol: AppTunnelProtocol,
    /// The port; none if it is the one asked for.
    pub port: Option<NonZeroU16>,
}

/// What is put before the bytes that a tunnel brings to an application.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum AppTunnelProtocol {
    /// Nothing.
    None,
    /// A PROXY protocol header, version 2.
    Proxy,
}

/// Whether a workload should get traffic.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum Health {
    /// It is ready.
    Healthy,
    /// It is not.
    Unhealthy,
}

/// What kind of thing made a workload.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum WorkloadType {
    /// A Deployment.
    Deployment,
    /// A CronJob.
    CronJob,
    /// A bare Pod, or anything newer.
    Pod,
    /// A Job.
    Job,
}

/// What is spoken on a port.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum AppProtocol {
    /// Not known, or newer.
    Unknown,
    /// HTTP/1.1.
    Http11,
    /// HTTP/2.
    Http2,
    /// gRPC.
    Grpc,
    /// Anything on TCP.
    Tcp,
    /// TLS.
    Tls,
}

impl Workload {
    /// Its identity; none if its parts make no SPIFFE name.
    pub fn identity(&self) -> Option<&Spiffe> {
        self.identities.first()
    }

    /// What decides which policies apply to it.
    pub fn policy_destination(&self) -> policy::Destination<'_> {
        policy::Destination { namespace: &self.namespace, policies: &self.policies }
    }

    /// The ports it serves of a service `<namespace>/<hostname>`; none if it is no endpoint of it.
    pub fn membership(&self, service: &str) -> Option<&Membership> {
        self.services.iter().find(|membership| *membership.service == *service)
    }
}

impl Membership {
    /// The port the application listens on for a service's port, if this endpoint says.
    pub fn target_port(&self, service_port: u16) -> Option<NonZeroU16> {
        self.ports.iter().find(|port| port.service == service_port)?.target
    }
}

impl TryFrom<wire_workload::Workload> for Workload {
    type Error = DecodeError;

    fn try_from(wire: wire_workload::Workload) -> Result<Self, DecodeError> {
        let uid = wire::required(&wire.uid).map_err(|fault| DecodeError::new("uid", fault))?;
        let trust_domain = or_default(&wire.trust_domain, DEFAULT_TRUST_DOMAIN);
        let service_account = or_default(&wire.service_account, DEFAULT_SERVICE_ACCOUNT);
        let identity = Spiffe::new(trust_domain, &wire.namespace, service_account);
        let tunnel_protocol = tunnel_protocol(wire.tunnel_protocol)?;
        if let (Err(error), TunnelProtocol::Hbone) = (&identity, tunnel_protocol) {
            // Nobody could connect to it: better told here than at each connection.
            return Err(DecodeError::new("identity", error.clone().into()));
        }
        let locality = wire.locality.unwrap_or_default();
        Ok(Self {
            uid: uid.into(),
            name: wire.name.into(),
            namespace: wire.namespace.into(),
            addresses: wire::each("addresses", &wire.addresses, |bytes| wire::ip(bytes))?,
            hostname: wire.hostname.into(),
            network: wire.network.into(),
            network_mode: network_mode(wire.network_mode)?,
            tunnel_protocol,
            native_tunnel: wire.native_tunnel,
            application_tunnel: wire.application_tunnel.map(application_tunnel).transpose()?,
            trust_domain: trust_domain.into(),
            service_account: service_account.into(),
            identities: identity.into_iter().collect(),
            waypoint: gateway::optional("waypoint", wire.waypoint.as_ref())?,
            network_gateway: gateway::optional("network_gateway", wire.network_gateway.as_ref())?,
            node: wire.node.into(),
            cluster: or_default(&wire.cluster_id, DEFAULT_CLUSTER).into(),
            locality: Locality {
                region: locality.region.into(),
                zone: locality.zone.into(),
                subzone: locality.subzone.into(),
            },
            canonical_name: wire.canonical_name.into(),
            canonical_revision: wire.canonical_revision.into(),
            workload_type: workload_type(wire.workload_type),
            workload_name: wire.workload_name.into(),
            services: wire.services.iter().map(membership).collect::<Result<_, _>>()?,
            policies: wire.authorization_policies.iter().map(|key| key.as_str().into()).collect(),
            health: health(wire.status)?,
            capacity: wire.capacity.unwrap_or(1),
            limits: Limits::of(&wire.extensions)?,
        })
    }
}

impl TryFrom<&wire_workload::Port> for Port {
    type Error = Fault;

    fn try_from(wire: &wire_workload::Port) -> Result<Self, Fault> {
        Ok(Self {
            service: wire::port(wire.service_port)?,
            target: NonZeroU16::new(wire::port(wire.target_port)?),
            app_protocol: app_protocol(wire.app_protocol),
        })
    }
}

fn or_default<'a>(text: &'a str, default: &'a str) -> &'a str {
    if text.is_empty() { default } else { text }
}

fn membership(
    (service, list): (&String, &wire_workload::PortList),
) -> Result<Membership, DecodeError> {
    let ports = wire::each("ports", &list.ports, Port::try_from)
        .map_err(|error| error.within(format_args!("services[{service}]")))?;
    Ok(Membership { service: service.as_str().into(), ports })
}

fn application_tunnel(
    wire: wire_workload::ApplicationTunnel,
) -> Result<ApplicationTunnel, DecodeError> {
    use wire_workload::application_tunnel::Protocol;
    let protocol = match Protocol::try_from(wire.protocol) {
        Ok(Protocol::None) => AppTunnelProtocol::None,
        Ok(Protocol::Proxy) => AppTunnelProtocol::Proxy,
        Err(_) => return Err(unknown("application_tunnel.protocol", wire.protocol)),
    };
    let port = wire::port(wire.port)
        .map_err(|fault| DecodeError::new("application_tunnel.port", fault))?;
    Ok(ApplicationTunnel { protocol, port: NonZeroU16::new(port) })
}

fn tunnel_protocol(wire: i32) -> Result<TunnelProtocol, DecodeError> {
    match wire_workload::TunnelProtocol::try_from(wire) {
        Ok(wire_workload::TunnelProtocol::Hbone) => Ok(TunnelProtocol::Hbone),
        Ok(
            wire_workload::TunnelProtocol::None | wire_workload::TunnelProtocol::LegacyIstioMtls,
        ) => Ok(TunnelProtocol::None),
        Err(_) => Err(unknown("tunnel_protocol", wire)),
    }
}

fn network_mode(wire: i32) -> Result<NetworkMode, DecodeError> {
    match wire_workload::NetworkMode::try_from(wire) {
        Ok(wire_workload::NetworkMode::Standard) => Ok(NetworkMode::Standard),
        Ok(wire_workload::NetworkMode::HostNetwork) => Ok(NetworkMode::HostNetwork),
        Err(_) => Err(unknown("network_mode", wire)),
    }
}

fn health(wire: i32) -> Result<Health, DecodeError> {
    match wire_workload::WorkloadStatus::try_from(wire) {
        Ok(wire_workload::WorkloadStatus::Healthy) => Ok(Health::Healthy),
        Ok(wire_workload::WorkloadStatus::Unhealthy) => Ok(Health::Unhealthy),
        Err(_) => Err(unknown("status", wire)),
    }
}

fn workload_type(wire: i32) -> WorkloadType {
    match wire_workload::WorkloadType::try_from(wire) {
        Ok(wire_workload::WorkloadType::Deployment) => WorkloadType::Deployment,
        Ok(wire_workload::WorkloadType::Cronjob) => WorkloadType::CronJob,
        Ok(wire_workload::WorkloadType::Job) => WorkloadType::Job,
        Ok(wire_workload::WorkloadType::Pod) | Err(_) => WorkloadType::Pod,
    }
}

fn app_protocol(wire: i32) -> AppProtocol {
    match wire_workload::AppProtocol::try_from(wire) {
        Ok(wire_workload::AppProtocol::Http11) => AppProtocol::Http11,
        Ok(wire_workload::AppProtocol::Http2) => AppProtocol::Http2,
        Ok(wire_workload::AppProtocol::Grpc) => AppProtocol::Grpc,
        Ok(wire_workload::AppProtocol::Tcp) => AppProtocol::Tcp,
        Ok(wire_workload::AppProtocol::Tls) => AppProtocol::Tls,
        Ok(wire_workload::AppProtocol::Unknown) | Err(_) => AppProtocol::Unknown,
    }
}

fn unknown(field: &str, found: i32) -> DecodeError {
    DecodeError::new(field, Fault::EnumValue { found })
}
