//! Hosts that cannot be reached, and objects that are nobody's.

use super::{Case, check};
use crate::analysis::Code::{
    HostTaken, NoEffect, NoEndpoints, NoIdentity, NoSuchHost, NoTargetPort, NotVisible,
    PartialExport, SelectsNothing, SharedAddress, UnknownValue, WildcardTcp,
    WildcardWithoutWaypoint,
};

#[test]
fn hosts_and_objects() {
    check(CASES);
}

pub(super) const CASES: &[Case] = &[
    (
        NoEndpoints,
        "spec.selector",
        "Service shop/cart | {clusterIP: 10.1.0.3, selector: {app: cart}, ports: [{name: http, port: 80}]}",
        "Service shop/cart | {clusterIP: 10.1.0.3, selector: {app: web}, ports: [{name: http, port: 80}]}",
    ),
    (
        NoEndpoints,
        "spec.selector",
        "Service shop/cart | {clusterIP: 10.1.0.3, ports: [{name: http, port: 80}]}",
        "Service shop/cart | {clusterIP: 10.1.0.3, ports: [{name: http, port: 80}]}
EndpointSlice shop/cart {kubernetes.io/service-name: cart} | [{addresses: [10.0.9.9]}] || [{name: http, port: 80}]",
    ),
    (
        NoEndpoints,
        "spec.endpoints",
        "ServiceEntry shop/e | {hosts: [a.example.com], ports: [{number: 80, name: http, protocol: HTTP}], resolution: STATIC}",
        "ServiceEntry shop/e | {hosts: [a.example.com], ports: [{number: 80, name: http, protocol: HTTP}], resolution: DNS}",
    ),
    (
        NoTargetPort,
        "spec.ports[0].targetPort",
        "Service shop/cart | {clusterIP: 10.1.0.3, selector: {app: web}, ports: [{name: http, port: 80, targetPort: web}]}",
        "Service shop/cart | {clusterIP: 10.1.0.3, selector: {app: web}, ports: [{name: http, port: 80, targetPort: main}]}",
    ),
    (
        NoSuchHost,
        "spec.hosts[0]",
        "VirtualService shop/v | {hosts: [wob], http: [{directResponse: {status: 200}}]}",
        "VirtualService shop/v | {hosts: ['*.shop.svc.cluster.local'], http: [{directResponse: {status: 200}}]}",
    ),
    (
        NoSuchHost,
        "spec.host",
        "DestinationRule shop/d | {host: api}",
        "DestinationRule shop/d | {host: api.plain.svc.cluster.local}",
    ),
    (
        WildcardWithoutWaypoint,
        "spec.hosts",
        "ServiceEntry plain/e | {hosts: ['*.example.com'], ports: [{number: 80, name: http, protocol: HTTP}], resolution: DYNAMIC_DNS}",
        "ServiceEntry shop/e | {hosts: ['*.example.com'], ports: [{number: 80, name: http, protocol: HTTP}], resolution: DYNAMIC_DNS}",
    ),
    (
        HostTaken,
        "spec.hosts[0]",
        "ServiceEntry shop/e | {hosts: [web.shop.svc.cluster.local], ports: [{number: 80, name: http, protocol: HTTP}], resolution: DNS}",
        "ServiceEntry plain/e | {hosts: [web.shop.svc.cluster.local], ports: [{number: 80, name: http, protocol: HTTP}], resolution: DNS}",
    ),
    (
        WildcardTcp,
        "spec.ports[0].protocol",
        "ServiceEntry shop/e | {hosts: ['*.example.com'], ports: [{number: 9000, name: a, protocol: TCP}], resolution: DYNAMIC_DNS}",
        "ServiceEntry shop/e | {hosts: ['*.example.com'], ports: [{number: 9000, name: a, protocol: TLS}], resolution: DYNAMIC_DNS}",
    ),
    (
        SharedAddress,
        "spec.addresses",
        "ServiceEntry shop/e | {hosts: [a.example.com], addresses: [10.1.0.2], ports: [{number: 80, name: http, protocol: HTTP}], resolution: DNS}",
        "ServiceEntry shop/e | {hosts: [a.example.com, b.example.com], addresses: [10.1.0.9], ports: [{number: 80, name: http, protocol: HTTP}], resolution: DNS}",
    ),
    (
        SharedAddress,
        "spec.address",
        "WorkloadEntry shop/vm | {address: 10.0.0.1, serviceAccount: web}",
        "WorkloadEntry shop/vm | {address: 10.0.0.1, network: elsewhere, serviceAccount: web}",
    ),
    (
        NotVisible,
        "spec.rules[0].backendRefs[0]",
        "ServiceEntry plain/e | {hosts: [a.example.com], exportTo: ['.'], ports: [{number: 80, name: http, protocol: HTTP}], resolution: DNS}
HTTPRoute shop/r | {parentRefs: [{group: '', kind: Service, name: web}], rules: [{backendRefs: [{group: networking.istio.io, kind: Hostname, name: a.example.com, port: 80}]}]}",
        "ServiceEntry plain/e | {hosts: [a.example.com], ports: [{number: 80, name: http, protocol: HTTP}], resolution: DNS}
HTTPRoute shop/r | {parentRefs: [{group: '', kind: Service, name: web}], rules: [{backendRefs: [{group: networking.istio.io, kind: Hostname, name: a.example.com, port: 80}]}]}",
    ),
    (
        PartialExport,
        "spec.exportTo",
        "ServiceEntry shop/e | {hosts: [a.example.com], exportTo: [plain], ports: [{number: 80, name: http, protocol: HTTP}], resolution: DNS}",
        "ServiceEntry shop/e | {hosts: [a.example.com], exportTo: ['.'], ports: [{number: 80, name: http, protocol: HTTP}], resolution: DNS}",
    ),
    (
        NoEffect,
        "",
        "Sidecar shop/s | {egress: [{hosts: ['./*']}]}",
        "",
    ),
    (
        NoEffect,
        "",
        "IstioGateway shop/g | {selector: {app: web}, servers: []}",
        "",
    ),
    (
        NoEffect,
        "spec.targetRefs",
        "EnvoyFilter shop/f | {configPatches: []}",
        "EnvoyFilter shop/f | {targetRefs: [{group: gateway.networking.k8s.io, kind: Gateway, name: wp}], configPatches: []}",
    ),
    (
        SelectsNothing,
        "spec.selector.matchLabels",
        "PeerAuthentication shop/p | {selector: {matchLabels: {app: wob}}, mtls: {mode: PERMISSIVE}}",
        "PeerAuthentication shop/p | {selector: {matchLabels: {app: web}}, mtls: {mode: PERMISSIVE}}",
    ),
    (
        SelectsNothing,
        "spec.selector.matchLabels",
        "AuthorizationPolicy shop/p | {selector: {matchLabels: {app: vm}}, rules: [{}]}",
        "AuthorizationPolicy shop/p | {selector: {matchLabels: {app: vm}}, rules: [{}]}
WorkloadEntry shop/vm {app: vm} | {address: 10.0.0.7, serviceAccount: web}",
    ),
    (
        NoIdentity,
        "spec.serviceAccount",
        "WorkloadEntry shop/vm | {address: 10.0.0.7}",
        "WorkloadEntry shop/vm | {address: 10.0.0.7, serviceAccount: web}",
    ),
    (
        UnknownValue,
        "metadata.labels",
        "Namespace plain {istio.io/dataplane-mode: Ambient}",
        "Namespace plain {istio.io/dataplane-mode: none}",
    ),
];
