//! Routes and DestinationRules that are not followed as they read.

use super::{Case, check};
use crate::analysis::Code::{
    AnswersError, FieldNotFollowed, ForeignRoute, MatchNeverMet, MixedRoutes, NoBackends,
    NoDefaultRule, NotExported, NothingInSubset, OtherProtocol, PortReplaces, SecondPolicy,
    SeveralVirtualServices, Shadowed,
};

#[test]
fn routes() {
    check(CASES);
}

pub(super) const CASES: &[Case] = &[
    (
        Shadowed,
        "spec.http[1].match[0]",
        "VirtualService shop/v | {hosts: [web], http: [{match: [{uri: {prefix: /a}}], directResponse: {status: 200}}, {match: [{uri: {prefix: /ab}}], directResponse: {status: 201}}, {directResponse: {status: 202}}]}",
        "VirtualService shop/v | {hosts: [web], http: [{match: [{uri: {prefix: /ab}}], directResponse: {status: 201}}, {match: [{uri: {prefix: /a}}], directResponse: {status: 200}}, {directResponse: {status: 202}}]}",
    ),
    (
        Shadowed,
        "spec.rules[1].matches[0]",
        "HTTPRoute shop/r | {parentRefs: [{group: '', kind: Service, name: web}], rules: [{backendRefs: [{name: web, port: 80}]}, {matches: [{path: {value: /}}], backendRefs: [{name: web, port: 80}]}]}",
        "HTTPRoute shop/r | {parentRefs: [{group: '', kind: Service, name: web}], rules: [{backendRefs: [{name: web, port: 80}]}, {matches: [{path: {value: /a}}], backendRefs: [{name: web, port: 80}]}]}",
    ),
    (
        Shadowed,
        "spec.rules[0]",
        "HTTPRoute shop/r | {parentRefs: [{group: '', kind: Service, name: web}], rules: [{backendRefs: [{name: web, port: 80}]}]}
HTTPRoute shop/s | {parentRefs: [{group: '', kind: Service, name: web}], rules: [{backendRefs: [{name: web, port: 80}]}]}",
        "HTTPRoute shop/r | {parentRefs: [{group: '', kind: Service, name: web}], rules: [{backendRefs: [{name: web, port: 80}]}]}
HTTPRoute plain/s | {parentRefs: [{group: '', kind: Service, name: web, namespace: shop}], rules: [{backendRefs: [{name: api, port: 80}]}]}",
    ),
    (
        SeveralVirtualServices,
        "spec.hosts",
        "VirtualService shop/v | {hosts: [web], http: [{directResponse: {status: 200}}]}
VirtualService shop/w | {hosts: [web.shop.svc.cluster.local], http: [{directResponse: {status: 200}}]}",
        "VirtualService shop/v | {hosts: [web], http: [{directResponse: {status: 200}}]}
VirtualService shop/w | {hosts: [web], gateways: [ingress], http: [{directResponse: {status: 200}}]}",
    ),
    (
        MixedRoutes,
        "spec.hosts",
        "VirtualService shop/v | {hosts: [web], http: [{directResponse: {status: 200}}]}
TCPRoute shop/r | {parentRefs: [{group: '', kind: Service, name: web}], rules: [{backendRefs: [{name: web, port: 5432}]}]}",
        "VirtualService shop/v | {hosts: [web], http: [{directResponse: {status: 200}}]}
TCPRoute plain/r | {parentRefs: [{group: '', kind: Service, name: api}], rules: [{backendRefs: [{name: api, port: 80}]}]}",
    ),
    (
        SecondPolicy,
        "spec.trafficPolicy",
        "DestinationRule shop/d | {host: web, trafficPolicy: {loadBalancer: {simple: RANDOM}}}
DestinationRule shop/e | {host: web.shop.svc.cluster.local, trafficPolicy: {connectionPool: {tcp: {maxConnections: 1}}}}",
        "DestinationRule shop/d | {host: web, trafficPolicy: {loadBalancer: {simple: RANDOM}}}
DestinationRule shop/e | {host: web, subsets: [{name: v1, labels: {version: v1}}]}",
    ),
    (
        SecondPolicy,
        "spec.subsets[0].name",
        "DestinationRule shop/d | {host: web, subsets: [{name: v1, labels: {version: v1}}]}
DestinationRule shop/e | {host: web, subsets: [{name: v1, labels: {app: web}}]}",
        "DestinationRule shop/d | {host: web, subsets: [{name: v1, labels: {version: v1}}]}
DestinationRule plain/e | {host: api, subsets: [{name: v1, labels: {app: api}}]}",
    ),
    (
        PortReplaces,
        "spec.trafficPolicy.portLevelSettings[0]",
        "DestinationRule shop/d | {host: web, trafficPolicy: {loadBalancer: {simple: RANDOM}, portLevelSettings: [{port: {number: 80}, connectionPool: {tcp: {maxConnections: 1}}}]}}",
        "DestinationRule shop/d | {host: web, trafficPolicy: {loadBalancer: {simple: RANDOM}, portLevelSettings: [{port: {number: 80}, loadBalancer: {simple: ROUND_ROBIN}}]}}",
    ),
    (
        NoDefaultRule,
        "spec.http",
        "VirtualService shop/v | {hosts: [web], http: [{match: [{uri: {prefix: /a}}], directResponse: {status: 200}}]}",
        "VirtualService shop/v | {hosts: [web], http: [{match: [{uri: {prefix: /a}}, {uri: {prefix: /}}], directResponse: {status: 200}}]}",
    ),
    (
        ForeignRoute,
        "spec.hosts",
        "VirtualService plain/v | {hosts: [web.shop.svc.cluster.local], http: [{directResponse: {status: 200}}]}",
        "VirtualService shop/v | {hosts: [web.shop.svc.cluster.local], http: [{directResponse: {status: 200}}]}",
    ),
    (
        ForeignRoute,
        "spec.parentRefs[0]",
        "HTTPRoute plain/r | {parentRefs: [{group: '', kind: Service, name: web, namespace: shop}], rules: [{backendRefs: [{name: api, port: 80}]}]}",
        "HTTPRoute shop/r | {parentRefs: [{group: '', kind: Service, name: web, namespace: shop}], rules: [{backendRefs: [{name: web, port: 80}]}]}",
    ),
    (
        NotExported,
        "spec.exportTo",
        "VirtualService shop/v | {hosts: [web], exportTo: [plain], http: [{directResponse: {status: 200}}]}",
        "VirtualService shop/v | {hosts: [web], exportTo: ['.'], http: [{directResponse: {status: 200}}]}",
    ),
    (
        NotExported,
        "spec.exportTo",
        "DestinationRule plain/d | {host: web.shop.svc.cluster.local, exportTo: ['.']}",
        "DestinationRule shop/d | {host: web.shop.svc.cluster.local, exportTo: ['.']}",
    ),
    (
        AnswersError,
        "spec.rules[0].filters[0]",
        "HTTPRoute shop/r | {parentRefs: [{group: '', kind: Service, name: web}], rules: [{filters: [{type: ExtensionRef, extensionRef: {group: g, kind: k, name: n}}], backendRefs: [{name: web, port: 80}]}]}",
        "HTTPRoute shop/r | {parentRefs: [{group: '', kind: Service, name: web}], rules: [{filters: [{type: RequestHeaderModifier, requestHeaderModifier: {remove: [x]}}], backendRefs: [{name: web, port: 80}]}]}",
    ),
    (
        NoBackends,
        "spec.rules[0].backendRefs",
        "HTTPRoute shop/r | {parentRefs: [{group: '', kind: Service, name: web}], rules: [{backendRefs: [{name: web, port: 80, weight: 0}]}]}",
        "HTTPRoute shop/r | {parentRefs: [{group: '', kind: Service, name: web}], rules: [{filters: [{type: RequestRedirect, requestRedirect: {hostname: a.example.com}}]}]}",
    ),
    (
        OtherProtocol,
        "spec.http",
        "Service shop/web | {clusterIP: 10.1.0.1, selector: {app: web}, ports: [{name: tcp-db, port: 5432}]}
VirtualService shop/v | {hosts: [web], http: [{directResponse: {status: 200}}]}",
        "Service shop/web | {clusterIP: 10.1.0.1, selector: {app: web}, ports: [{name: db, port: 5432}]}
VirtualService shop/v | {hosts: [web], http: [{directResponse: {status: 200}}]}",
    ),
    (
        OtherProtocol,
        "spec.parentRefs[0]",
        "TCPRoute shop/r | {parentRefs: [{group: '', kind: Service, name: web, port: 80}], rules: [{backendRefs: [{name: web, port: 5432}]}]}",
        "TCPRoute shop/r | {parentRefs: [{group: '', kind: Service, name: web, port: 5432}], rules: [{backendRefs: [{name: web, port: 5432}]}]}",
    ),
    (
        MatchNeverMet,
        "spec.http[0].match[0].port",
        "VirtualService shop/v | {hosts: [web], http: [{match: [{port: 8080}], directResponse: {status: 200}}]}",
        "VirtualService shop/v | {hosts: [web], http: [{match: [{port: 80}], directResponse: {status: 200}}]}",
    ),
    (
        MatchNeverMet,
        "spec.tls[0].match[0].sniHosts",
        "VirtualService shop/v | {hosts: [web], tls: [{match: [{sniHosts: [web]}], route: [{destination: {host: web, port: {number: 5432}}}]}]}",
        "VirtualService shop/v | {hosts: [web], tls: [{match: [{sniHosts: [web.shop.svc.cluster.local]}], route: [{destination: {host: web, port: {number: 5432}}}]}]}",
    ),
    (
        NothingInSubset,
        "spec.subsets[0].labels",
        "DestinationRule shop/d | {host: web, subsets: [{name: v2, labels: {version: v2}}]}",
        "DestinationRule shop/d | {host: web, subsets: [{name: v1, labels: {version: v1}}]}",
    ),
    (
        FieldNotFollowed,
        "spec.parentRefs[0].sectionName",
        "HTTPRoute shop/r | {parentRefs: [{group: '', kind: Service, name: web, sectionName: http}], rules: [{backendRefs: [{name: web, port: 80}]}]}",
        "HTTPRoute shop/r | {parentRefs: [{group: '', kind: Service, name: web, port: 80}], rules: [{backendRefs: [{name: web, port: 80}]}]}",
    ),
    (
        FieldNotFollowed,
        "spec.rules[0].sessionPersistence",
        "HTTPRoute shop/r | {parentRefs: [{group: '', kind: Service, name: web}], rules: [{sessionPersistence: {type: Cookie}, backendRefs: [{name: web, port: 80}]}]}",
        "HTTPRoute shop/r | {parentRefs: [{group: '', kind: Service, name: web}], rules: [{backendRefs: [{name: web, port: 80}]}]}",
    ),
];
