//! Decodes the kinds that are no part of Kubernetes itself: all have `metadata`, `spec` and `status`.

use std::sync::Arc;

use serde::de::DeserializeOwned;

use super::{
    Kind, Object, Resource, attachment_check, decode, destination_rule_check,
    document::{self, Report, Source},
    envoy_filter_check,
    gateway_api::{Gateway, GatewayStatus},
    networking::{ServiceEntry, ServiceEntryStatus},
    route_check,
    security::Document,
    virtual_service_check,
};

/// A spec that may take something of its object's status.
pub(super) trait Spec: DeserializeOwned + Default {
    /// What of the status is read; `Value` if nothing is.
    type Status: DeserializeOwned + Default;

    /// Takes what of the status matters.
    fn with_status(self, _: Self::Status) -> Self {
        self
    }

    /// Reports what the schema does not forbid and no proxy can use.
    fn check(&self, _: &mut Report<'_>) {}
}

macro_rules! without_status {
    ($($spec:path,)+) => {
        $(impl Spec for $spec {
            type Status = serde_json::Value;
        })+
    };
}

without_status! {
    super::extensions::TrafficExtension,
    super::extensions::WasmPlugin,
    super::gateway_api::BackendTlsPolicy,
    super::gateway_api::GatewayClass,
    super::gateway_api::ReferenceGrant,
    super::networking::Gateway,
    super::networking::ProxyConfig,
    super::networking::Sidecar,
    super::networking::WorkloadEntry,
    super::networking::WorkloadGroup,
}

macro_rules! checked {
    ($($spec:path: $check:path,)+) => {
        $(impl Spec for $spec {
            type Status = serde_json::Value;

            fn check(&self, report: &mut Report<'_>) {
                $check(self, report);
            }
        })+
    };
}

checked! {
    super::extensions::EnvoyFilter: envoy_filter_check::envoy_filter,
    super::gateway_api::GrpcRoute: route_check::grpc_route,
    super::gateway_api::HttpRoute: route_check::http_route,
    super::gateway_api::TcpRoute: route_check::tcp_route,
    super::gateway_api::TlsRoute: route_check::tls_route,
    super::networking::DestinationRule: destination_rule_check::destination_rule,
    super::networking::VirtualService: virtual_service_check::virtual_service,
    super::security::RequestAuthentication: attachment_check::request_authentication,
    super::telemetry::Telemetry: attachment_check::telemetry,
}

impl Spec for Gateway {
    type Status = GatewayStatus;

    fn with_status(self, status: GatewayStatus) -> Self {
        Self { status, ..self }
    }
}

impl Spec for ServiceEntry {
    type Status = ServiceEntryStatus;

    fn with_status(self, status: ServiceEntryStatus) -> Self {
        Self { status, ..self }
    }
}

/// Decodes an object of such a kind; of any other, nothing.
pub(super) fn read(kind: Kind, source: Source<'_>, report: &mut Report<'_>) -> Option<Resource> {
    Some(match kind {
        Kind::GatewayClass => Resource::GatewayClass(read_as(kind, source, report)?),
        Kind::Gateway => Resource::Gateway(read_as(kind, source, report)?),
        Kind::HttpRoute => Resource::HttpRoute(read_as(kind, source, report)?),
        Kind::GrpcRoute => Resource::GrpcRoute(read_as(kind, source, report)?),
        Kind::TcpRoute => Resource::TcpRoute(read_as(kind, source, report)?),
        Kind::TlsRoute => Resource::TlsRoute(read_as(kind, source, report)?),
        Kind::ReferenceGrant => Resource::ReferenceGrant(read_as(kind, source, report)?),
        Kind::BackendTlsPolicy => Resource::BackendTlsPolicy(read_as(kind, source, report)?),
        Kind::VirtualService => Resource::VirtualService(read_as(kind, source, report)?),
        Kind::DestinationRule => Resource::DestinationRule(read_as(kind, source, report)?),
        Kind::ServiceEntry => Resource::ServiceEntry(read_as(kind, source, report)?),
        Kind::WorkloadEntry => Resource::WorkloadEntry(read_as(kind, source, report)?),
        Kind::WorkloadGroup => Resource::WorkloadGroup(read_as(kind, source, report)?),
        Kind::IstioGateway => Resource::IstioGateway(read_as(kind, source, report)?),
        Kind::Sidecar => Resource::Sidecar(read_as(kind, source, report)?),
        Kind::ProxyConfig => Resource::ProxyConfig(read_as(kind, source, report)?),
        Kind::EnvoyFilter => Resource::EnvoyFilter(read_as(kind, source, report)?),
        Kind::RequestAuthentication => {
            Resource::RequestAuthentication(read_as(kind, source, report)?)
        }
        Kind::Telemetry => Resource::Telemetry(read_as(kind, source, report)?),
        Kind::WasmPlugin => Resource::WasmPlugin(read_as(kind, source, report)?),
        Kind::TrafficExtension => Resource::TrafficExtension(read_as(kind, source, report)?),
        Kind::Namespace
        | Kind::Node
        | Kind::Pod
        | Kind::Service
        | Kind::ServiceAccount
        | Kind::ConfigMap
        | Kind::Secret
        | Kind::EndpointSlice
        | Kind::AuthorizationPolicy
        | Kind::PeerAuthentication => return None,
    })
}

fn read_as<T: Spec>(
    kind: Kind,
    source: Source<'_>,
    report: &mut Report<'_>,
) -> Option<Arc<Object<T>>> {
    let raw: Document<T, T::Status> = decode::decode(source, report)?;
    let meta = if kind.is_namespaced() {
        document::meta(kind.name(), &raw.metadata, report)?
    } else {
        document::cluster_meta(kind.name(), &raw.metadata, report)?
    };
    raw.spec.check(report);
    Some(document::object(meta, raw.spec.with_status(raw.status)))
}
