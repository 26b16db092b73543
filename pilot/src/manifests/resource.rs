//! The kinds that are served: one table, from which everything that treats all of them alike is made.

use std::sync::Arc;

use super::{
    Meta, Object,
    core::{ConfigMap, EndpointSlice, Namespace, Node, Pod, Secret, Service},
    extensions::{EnvoyFilter, TrafficExtension, WasmPlugin},
    gateway_api::{
        BackendTlsPolicy, Gateway, GatewayClass, GrpcRoute, HttpRoute, ReferenceGrant, TcpRoute,
        TlsRoute,
    },
    networking::{
        self, DestinationRule, ProxyConfig, ServiceEntry, Sidecar, VirtualService, WorkloadEntry,
        WorkloadGroup,
    },
    security::{AuthorizationPolicy, PeerAuthentication, RequestAuthentication},
    telemetry::Telemetry,
};

/// What a ServiceAccount says that matters here: that it is there.
pub type ServiceAccount = ();

macro_rules! kinds {
    ($($kind:ident($spec:ty) $field:ident: $scope:ident $name:literal of $($version:literal)|+;)+) => {
        /// A kind that is served.
        #[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
        #[expect(missing_docs, reason = "each is the kind it is named for")]
        pub enum Kind {
            $($kind,)+
        }

        impl Kind {
            /// All of them.
            pub const ALL: &[Self] = &[$(Self::$kind,)+];

            /// As `kind` has it.
            pub fn name(self) -> &'static str {
                match self {
                    $(Self::$kind => $name,)+
                }
            }

            /// What `apiVersion` may be; the first is the current one.
            pub fn versions(self) -> &'static [&'static str] {
                match self {
                    $(Self::$kind => &[$($version,)+],)+
                }
            }

            /// Whether its objects live in namespaces.
            pub fn is_namespaced(self) -> bool {
                match self {
                    $(Self::$kind => kinds!(@$scope),)+
                }
            }
        }

        /// One resource of any kind that is served.
        #[derive(Clone, Debug)]
        #[expect(missing_docs, reason = "each is the kind it is named for")]
        pub enum Resource {
            $($kind(Arc<Object<$spec>>),)+
        }

        impl Resource {
            /// Who it is.
            pub fn meta(&self) -> &Meta {
                match self {
                    $(Self::$kind(object) => &object.meta,)+
                }
            }

            /// What kind it is.
            pub fn kind(&self) -> Kind {
                match self {
                    $(Self::$kind(_) => Kind::$kind,)+
                }
            }
        }

        /// Every resource that is served, by kind.
        #[derive(Clone, Debug, Default)]
        #[expect(missing_docs, reason = "each field is the kind it is named for")]
        pub struct Manifests {
            $(pub $field: Vec<Arc<Object<$spec>>>,)+
        }

        impl Manifests {
            /// Puts a resource beside those of its kind.
            pub(super) fn push(&mut self, resource: &Resource) {
                match resource {
                    $(Resource::$kind(object) => self.$field.push(Arc::clone(object)),)+
                }
            }

            /// The kinds of which the other has other objects, or the same in another order.
            pub(crate) fn differing(&self, other: &Self) -> Vec<Kind> {
                let mut kinds = Vec::new();
                $(
                    let (own, others) = (&self.$field, &other.$field);
                    let same = |(a, b): (&Arc<_>, &Arc<_>)| Arc::ptr_eq(a, b);
                    if own.len() != others.len() || !own.iter().zip(others).all(same) {
                        kinds.push(Kind::$kind);
                    }
                )+
                kinds
            }
        }
    };
    (@namespaced) => { true };
    (@cluster) => { false };
}

kinds! {
    Namespace(Namespace) namespaces: cluster "Namespace" of "v1";
    Node(Node) nodes: cluster "Node" of "v1";
    Pod(Pod) pods: namespaced "Pod" of "v1";
    Service(Service) services: namespaced "Service" of "v1";
    ServiceAccount(ServiceAccount) service_accounts: namespaced "ServiceAccount" of "v1";
    ConfigMap(ConfigMap) config_maps: namespaced "ConfigMap" of "v1";
    Secret(Secret) secrets: namespaced "Secret" of "v1";
    EndpointSlice(EndpointSlice) endpoint_slices: namespaced "EndpointSlice" of "discovery.k8s.io/v1";
    GatewayClass(GatewayClass) gateway_classes: cluster "GatewayClass"
        of "gateway.networking.k8s.io/v1" | "gateway.networking.k8s.io/v1beta1";
    Gateway(Gateway) gateways: namespaced "Gateway"
        of "gateway.networking.k8s.io/v1" | "gateway.networking.k8s.io/v1beta1";
    HttpRoute(HttpRoute) http_routes: namespaced "HTTPRoute"
        of "gateway.networking.k8s.io/v1" | "gateway.networking.k8s.io/v1beta1";
    GrpcRoute(GrpcRoute) grpc_routes: namespaced "GRPCRoute" of "gateway.networking.k8s.io/v1";
    TcpRoute(TcpRoute) tcp_routes: namespaced "TCPRoute"
        of "gateway.networking.k8s.io/v1" | "gateway.networking.k8s.io/v1alpha2";
    TlsRoute(TlsRoute) tls_routes: namespaced "TLSRoute"
        of "gateway.networking.k8s.io/v1" | "gateway.networking.k8s.io/v1alpha3" | "gateway.networking.k8s.io/v1alpha2";
    ReferenceGrant(ReferenceGrant) reference_grants: namespaced "ReferenceGrant"
        of "gateway.networking.k8s.io/v1" | "gateway.networking.k8s.io/v1beta1";
    BackendTlsPolicy(BackendTlsPolicy) backend_tls_policies: namespaced "BackendTLSPolicy"
        of "gateway.networking.k8s.io/v1" | "gateway.networking.k8s.io/v1alpha3";
    VirtualService(VirtualService) virtual_services: namespaced "VirtualService"
        of "networking.istio.io/v1" | "networking.istio.io/v1beta1" | "networking.istio.io/v1alpha3";
    DestinationRule(DestinationRule) destination_rules: namespaced "DestinationRule"
        of "networking.istio.io/v1" | "networking.istio.io/v1beta1" | "networking.istio.io/v1alpha3";
    ServiceEntry(ServiceEntry) service_entries: namespaced "ServiceEntry"
        of "networking.istio.io/v1" | "networking.istio.io/v1beta1" | "networking.istio.io/v1alpha3";
    WorkloadEntry(WorkloadEntry) workload_entries: namespaced "WorkloadEntry"
        of "networking.istio.io/v1" | "networking.istio.io/v1beta1" | "networking.istio.io/v1alpha3";
    WorkloadGroup(WorkloadGroup) workload_groups: namespaced "WorkloadGroup"
        of "networking.istio.io/v1" | "networking.istio.io/v1beta1" | "networking.istio.io/v1alpha3";
    IstioGateway(networking::Gateway) istio_gateways: namespaced "Gateway"
        of "networking.istio.io/v1" | "networking.istio.io/v1beta1" | "networking.istio.io/v1alpha3";
    Sidecar(Sidecar) sidecars: namespaced "Sidecar"
        of "networking.istio.io/v1" | "networking.istio.io/v1beta1" | "networking.istio.io/v1alpha3";
    ProxyConfig(ProxyConfig) proxy_configs: namespaced "ProxyConfig"
        of "networking.istio.io/v1beta1" | "networking.istio.io/v1";
    EnvoyFilter(EnvoyFilter) envoy_filters: namespaced "EnvoyFilter" of "networking.istio.io/v1alpha3";
    AuthorizationPolicy(AuthorizationPolicy) authorization_policies: namespaced "AuthorizationPolicy"
        of "security.istio.io/v1" | "security.istio.io/v1beta1";
    PeerAuthentication(PeerAuthentication) peer_authentications: namespaced "PeerAuthentication"
        of "security.istio.io/v1" | "security.istio.io/v1beta1";
    RequestAuthentication(RequestAuthentication) request_authentications: namespaced "RequestAuthentication"
        of "security.istio.io/v1" | "security.istio.io/v1beta1";
    Telemetry(Telemetry) telemetries: namespaced "Telemetry"
        of "telemetry.istio.io/v1" | "telemetry.istio.io/v1alpha1";
    WasmPlugin(WasmPlugin) wasm_plugins: namespaced "WasmPlugin" of "extensions.istio.io/v1alpha1";
    TrafficExtension(TrafficExtension) traffic_extensions: namespaced "TrafficExtension"
        of "extensions.istio.io/v1alpha1";
}
