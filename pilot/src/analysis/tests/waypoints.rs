//! Who has a waypoint, and who has none.

use super::{Case, check};
use crate::analysis::Code::{
    BadCanary, IdleWaypoint, NoTunnelListener, PolicyWithoutWaypoint, RouteWithoutWaypoint,
    RuleWithoutWaypoint, UnknownValue, WaypointDenied, WaypointElsewhere, WaypointForOthers,
    WaypointNotReady,
};

#[test]
fn waypoints() {
    check(CASES);
}

pub(super) const CASES: &[Case] = &[
    (
        PolicyWithoutWaypoint,
        "spec.targetRefs[0]",
        "AuthorizationPolicy plain/a | {targetRefs: [{kind: Service, name: api}], rules: [{}]}",
        "AuthorizationPolicy shop/a | {targetRefs: [{kind: Service, name: web}], rules: [{}]}",
    ),
    (
        RouteWithoutWaypoint,
        "spec.hosts",
        "VirtualService plain/v | {hosts: [api], http: [{directResponse: {status: 200}}]}",
        "VirtualService shop/v | {hosts: [web], http: [{directResponse: {status: 200}}]}",
    ),
    (
        RouteWithoutWaypoint,
        "spec.parentRefs[0]",
        "HTTPRoute plain/r | {parentRefs: [{group: '', kind: Service, name: api}], rules: [{backendRefs: [{name: api, port: 80}]}]}",
        "HTTPRoute shop/r | {parentRefs: [{group: '', kind: Service, name: web}], rules: [{backendRefs: [{name: web, port: 80}]}]}",
    ),
    (
        RuleWithoutWaypoint,
        "spec.host",
        "Service plain/db | {clusterIP: 10.1.0.4, selector: {app: api}, ports: [{name: http, port: 80}]}
DestinationRule plain/d | {host: db, trafficPolicy: {loadBalancer: {simple: RANDOM}}}",
        "Service plain/db | {clusterIP: 10.1.0.4, selector: {app: api}, ports: [{name: http, port: 80}]}
DestinationRule plain/d | {host: db, trafficPolicy: {loadBalancer: {simple: RANDOM}}}
HTTPRoute shop/r | {parentRefs: [{group: '', kind: Service, name: web}], rules: [{backendRefs: [{name: db, namespace: plain, port: 80}]}]}",
    ),
    (
        WaypointNotReady,
        "metadata.labels",
        "Gateway shop/wp | {gatewayClassName: istio-waypoint, listeners: [{name: mesh, port: 15008, protocol: HBONE}]}",
        "Gateway shop/wp | {gatewayClassName: istio-waypoint, listeners: [{name: mesh, port: 15008, protocol: HBONE}]}
Service shop/wp | {clusterIP: 10.1.0.5, selector: {gateway.networking.k8s.io/gateway-name: wp}, ports: [{name: mesh, port: 15008}]}
Pod shop/wp-1 {gateway.networking.k8s.io/gateway-name: wp} | {containers: []} || {podIP: 10.0.0.5}",
    ),
    (
        WaypointDenied,
        "metadata.labels",
        "Namespace plain {istio.io/dataplane-mode: ambient, istio.io/use-waypoint: wp, istio.io/use-waypoint-namespace: shop}",
        "Namespace plain {istio.io/dataplane-mode: ambient, istio.io/use-waypoint: wp, istio.io/use-waypoint-namespace: shop}
Gateway shop/wp | {gatewayClassName: istio-waypoint, listeners: [{name: mesh, port: 15008, protocol: HBONE, allowedRoutes: {namespaces: {from: All}}}]} || {addresses: [{type: IPAddress, value: 10.9.0.1}]}",
    ),
    (
        WaypointForOthers,
        "metadata.labels",
        "Gateway shop/wp {istio.io/waypoint-for: workload} | {gatewayClassName: istio-waypoint, listeners: [{name: mesh, port: 15008, protocol: HBONE}]} || {addresses: [{type: IPAddress, value: 10.9.0.1}]}",
        "Gateway shop/wp {istio.io/waypoint-for: all} | {gatewayClassName: istio-waypoint, listeners: [{name: mesh, port: 15008, protocol: HBONE}]} || {addresses: [{type: IPAddress, value: 10.9.0.1}]}",
    ),
    (
        WaypointForOthers,
        "metadata.labels",
        "Pod shop/web-1 {app: web, istio.io/use-waypoint: wp} | {serviceAccountName: web, containers: []} || {podIP: 10.0.0.1}",
        "Pod shop/web-1 {app: web} | {serviceAccountName: web, containers: []} || {podIP: 10.0.0.1}",
    ),
    (
        WaypointElsewhere,
        "metadata.labels",
        "ServiceEntry plain/e {istio.io/use-waypoint: wp, istio.io/use-waypoint-namespace: shop} | {hosts: [a.example.com], exportTo: ['.'], ports: [{number: 80, name: http, protocol: HTTP}], resolution: DNS}",
        "ServiceEntry shop/e | {hosts: [a.example.com], exportTo: ['.'], ports: [{number: 80, name: http, protocol: HTTP}], resolution: DNS}",
    ),
    (
        BadCanary,
        "metadata.labels",
        "Service shop/web {istio.io/use-waypoint-canary: wp} | {clusterIP: 10.1.0.1, selector: {app: web}, ports: [{name: http, port: 80}]}",
        "Service shop/web {istio.io/use-waypoint-canary: wq} @ {istio.io/use-waypoint-canary-weight: '5'} | {clusterIP: 10.1.0.1, selector: {app: web}, ports: [{name: http, port: 80}]}
Gateway shop/wq | {gatewayClassName: istio-waypoint, listeners: [{name: mesh, port: 15008, protocol: HBONE}]} || {addresses: [{type: IPAddress, value: 10.9.0.2}]}",
    ),
    (
        IdleWaypoint,
        "metadata.name",
        "Gateway plain/wp | {gatewayClassName: istio-waypoint, listeners: [{name: mesh, port: 15008, protocol: HBONE}]} || {addresses: [{type: IPAddress, value: 10.9.0.2}]}",
        "Gateway plain/in | {gatewayClassName: istio, listeners: [{name: http, port: 80, protocol: HTTP}]}",
    ),
    (
        NoTunnelListener,
        "spec.listeners",
        "Gateway shop/wp | {gatewayClassName: istio-waypoint, listeners: [{name: http, port: 80, protocol: HTTP}]} || {addresses: [{type: IPAddress, value: 10.9.0.1}]}",
        "Gateway shop/wp | {gatewayClassName: istio-waypoint, listeners: [{name: mesh, port: 15008, protocol: HBONE}]} || {addresses: [{type: IPAddress, value: 10.9.0.1}]}",
    ),
    (
        UnknownValue,
        "metadata.labels",
        "Gateway shop/wp {istio.io/waypoint-for: services} | {gatewayClassName: istio-waypoint, listeners: [{name: mesh, port: 15008, protocol: HBONE}]} || {addresses: [{type: IPAddress, value: 10.9.0.1}]}",
        "Gateway shop/wp {istio.io/waypoint-for: service} | {gatewayClassName: istio-waypoint, listeners: [{name: mesh, port: 15008, protocol: HBONE}]} || {addresses: [{type: IPAddress, value: 10.9.0.1}]}",
    ),
];
