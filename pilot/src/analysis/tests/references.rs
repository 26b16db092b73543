//! What is referred to and not there.

use super::{Case, check};
use crate::analysis::Code::{
    NoBackend, NoBackendPort, NoDelegate, NoGrant, NoParent, NoProvider, NoRoots, NoSecret,
    NoServiceAccount, NoSubset, NoTarget, NoWaypoint,
};

#[test]
fn references() {
    check(CASES);
}

pub(super) const CASES: &[Case] = &[
    (
        NoWaypoint,
        "metadata.labels",
        "Namespace plain {istio.io/dataplane-mode: ambient, istio.io/use-waypoint: other}",
        "Namespace plain {istio.io/use-waypoint: wp, istio.io/use-waypoint-namespace: shop}",
    ),
    (
        NoBackend,
        "spec.rules[0].backendRefs[0]",
        "HTTPRoute shop/r | {parentRefs: [{group: '', kind: Service, name: web}], rules: [{backendRefs: [{name: api, port: 80}]}]}",
        "HTTPRoute shop/r | {parentRefs: [{group: '', kind: Service, name: web}], rules: [{backendRefs: [{name: api, namespace: plain, port: 80}]}]}",
    ),
    (
        NoBackend,
        "spec.http[0].route[0].destination.host",
        "VirtualService shop/v | {hosts: [web], http: [{route: [{destination: {host: api}}]}]}",
        "VirtualService shop/v | {hosts: [web], http: [{route: [{destination: {host: api.plain.svc.cluster.local}}]}]}",
    ),
    (
        NoBackend,
        "spec.http[0].mirror.host",
        "VirtualService shop/v | {hosts: [web], http: [{route: [{destination: {host: web, port: {number: 80}}}], mirror: {host: api}}]}",
        "VirtualService shop/v | {hosts: [web], http: [{route: [{destination: {host: web, port: {number: 80}}}], mirror: {host: web}}]}",
    ),
    (
        NoBackendPort,
        "spec.rules[0].backendRefs[0].port",
        "HTTPRoute shop/r | {parentRefs: [{group: '', kind: Service, name: web}], rules: [{backendRefs: [{name: web, port: 8080}]}]}",
        "HTTPRoute shop/r | {parentRefs: [{group: '', kind: Service, name: web}], rules: [{backendRefs: [{name: web, port: 80}]}]}",
    ),
    (
        NoBackendPort,
        "spec.tcp[0].route[0].destination.port.number",
        "VirtualService shop/v | {hosts: [web], tcp: [{route: [{destination: {host: web, port: {number: 5433}}}]}]}",
        "VirtualService shop/v | {hosts: [web], tcp: [{route: [{destination: {host: web, port: {number: 5432}}}]}]}",
    ),
    (
        NoParent,
        "spec.parentRefs[0]",
        "GRPCRoute shop/r | {parentRefs: [{group: '', kind: Service, name: wob}], rules: [{backendRefs: [{name: web, port: 80}]}]}",
        "GRPCRoute shop/r | {parentRefs: [{group: '', kind: Service, name: web}], rules: [{backendRefs: [{name: web, port: 80}]}]}",
    ),
    (
        NoParent,
        "spec.parentRefs[0].port",
        "TCPRoute shop/r | {parentRefs: [{group: '', kind: Service, name: web, port: 5433}], rules: [{backendRefs: [{name: web, port: 5432}]}]}",
        "TCPRoute shop/r | {parentRefs: [{group: '', kind: Service, name: web, port: 5432}], rules: [{backendRefs: [{name: web, port: 5432}]}]}",
    ),
    (
        NoParent,
        "spec.parentRefs[0]",
        "HTTPRoute shop/r | {parentRefs: [{name: ingress}], rules: [{backendRefs: [{name: web, port: 80}]}]}",
        "HTTPRoute shop/r | {parentRefs: [{name: wp}], rules: [{backendRefs: [{name: web, port: 80}]}]}",
    ),
    (
        NoDelegate,
        "spec.http[0].delegate",
        "VirtualService shop/v | {hosts: [web], http: [{delegate: {name: d}}]}
VirtualService shop/d | {hosts: [web.plain], http: [{directResponse: {status: 200}}]}",
        "VirtualService shop/v | {hosts: [web], http: [{delegate: {name: d}}]}
VirtualService shop/d | {http: [{directResponse: {status: 200}}]}",
    ),
    (
        NoDelegate,
        "spec.http[0].delegate",
        "VirtualService shop/v | {hosts: [web], http: [{delegate: {name: d, namespace: plain}}]}
VirtualService plain/d | {exportTo: ['.'], http: [{directResponse: {status: 200}}]}",
        "VirtualService shop/v | {hosts: [web], http: [{delegate: {name: d, namespace: plain}}]}
VirtualService plain/d | {exportTo: [shop], http: [{directResponse: {status: 200}}]}",
    ),
    (
        NoSubset,
        "spec.http[0].route[0].destination.subset",
        "VirtualService shop/v | {hosts: [web], http: [{route: [{destination: {host: web, subset: v1}}]}]}
DestinationRule shop/d | {host: web, subsets: [{name: v2, labels: {version: v1}}]}",
        "VirtualService shop/v | {hosts: [web], http: [{route: [{destination: {host: web, subset: v1}}]}]}
DestinationRule shop/d | {host: web, subsets: [{name: v1, labels: {version: v1}}]}",
    ),
    (
        NoSubset,
        "spec.http[0].route[0].destination.subset",
        "VirtualService shop/v | {hosts: [web], http: [{route: [{destination: {host: api.plain.svc.cluster.local, subset: v1}}]}]}
DestinationRule plain/d | {host: api, exportTo: ['.'], subsets: [{name: v1, labels: {app: api}}]}",
        "VirtualService shop/v | {hosts: [web], http: [{route: [{destination: {host: api.plain.svc.cluster.local, subset: v1}}]}]}
DestinationRule plain/d | {host: api, subsets: [{name: v1, labels: {app: api}}]}",
    ),
    (
        NoProvider,
        "spec.provider.name",
        "AuthorizationPolicy shop/a | {action: CUSTOM, provider: {name: opaque}, targetRefs: [{kind: Service, name: web}], rules: [{}]}",
        "AuthorizationPolicy shop/a | {action: CUSTOM, provider: {name: opa}, targetRefs: [{kind: Service, name: web}], rules: [{}]}",
    ),
    (
        NoProvider,
        "spec.accessLogging",
        "Telemetry shop/t | {accessLogging: [{providers: [{name: loki}]}]}",
        "Telemetry shop/t | {accessLogging: [{providers: [{name: envoy}]}]}",
    ),
    (
        NoProvider,
        "spec.provider.name",
        "AuthorizationPolicy shop/a | {action: CUSTOM, provider: {name: opa}, targetRefs: [{kind: Service, name: web}], rules: [{}]}
ConfigMap istio-system/istio | {mesh: '{extensionProviders: [{name: opa, envoyExtAuthzGrpc: {service: opa.plain.svc.cluster.local, port: 80}}]}'}",
        "AuthorizationPolicy shop/a | {action: CUSTOM, provider: {name: opa}, targetRefs: [{kind: Service, name: web}], rules: [{}]}",
    ),
    (
        NoSecret,
        "spec.trafficPolicy.tls",
        "DestinationRule shop/d | {host: web, trafficPolicy: {tls: {mode: SIMPLE, credentialName: roots}}}
Secret shop/root | {}",
        "DestinationRule shop/d | {host: web, trafficPolicy: {tls: {mode: SIMPLE, credentialName: roots}}}
Secret shop/roots | {}",
    ),
    (
        NoTarget,
        "spec.targetRefs[0]",
        "AuthorizationPolicy shop/a | {targetRefs: [{kind: Service, name: wob}], rules: [{}]}",
        "AuthorizationPolicy shop/a | {targetRefs: [{kind: Service, name: web}], rules: [{}]}",
    ),
    (
        NoTarget,
        "spec.targetRefs[0].sectionName",
        "BackendTLSPolicy shop/b | {targetRefs: [{group: '', kind: Service, name: web, sectionName: https}], validation: {hostname: a.b, wellKnownCACertificates: System}}",
        "BackendTLSPolicy shop/b | {targetRefs: [{group: '', kind: Service, name: web, sectionName: http}], validation: {hostname: a.b, wellKnownCACertificates: System}}",
    ),
    (
        NoServiceAccount,
        "spec.serviceAccountName",
        "Pod shop/web-1 {app: web} | {serviceAccountName: wob, containers: []} || {podIP: 10.0.0.1}",
        "Pod shop/web-1 {app: web} | {containers: []} || {podIP: 10.0.0.1}",
    ),
    (
        NoGrant,
        "spec.rules[0].backendRefs[0]",
        "HTTPRoute shop/r | {parentRefs: [{name: wp}], rules: [{backendRefs: [{name: api, namespace: plain, port: 80}]}]}
ReferenceGrant plain/g | {from: [{group: gateway.networking.k8s.io, kind: HTTPRoute, namespace: plain}], to: [{group: '', kind: Service}]}",
        "HTTPRoute shop/r | {parentRefs: [{name: wp}], rules: [{backendRefs: [{name: api, namespace: plain, port: 80}]}]}
ReferenceGrant plain/g | {from: [{group: gateway.networking.k8s.io, kind: HTTPRoute, namespace: shop}], to: [{group: '', kind: Service}]}",
    ),
    (
        NoRoots,
        "spec.validation.caCertificateRefs[0]",
        "BackendTLSPolicy shop/b | {targetRefs: [{group: '', kind: Service, name: web}], validation: {hostname: a.b, caCertificateRefs: [{group: '', kind: ConfigMap, name: roots}]}}
ConfigMap shop/roots | {ca.pem: x}",
        "BackendTLSPolicy shop/b | {targetRefs: [{group: '', kind: Service, name: web}], validation: {hostname: a.b, caCertificateRefs: [{group: '', kind: ConfigMap, name: roots}]}}
ConfigMap shop/roots | {ca.crt: x}",
    ),
];
