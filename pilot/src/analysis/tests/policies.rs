//! Policies that do less or more than they seem to.

use super::{Case, check};
use crate::analysis::Code::{
    ActionWithoutWaypoint, AllowsNothing, CustomBeforeToken, DeniesMore, DeniesNothing,
    DisableIsPermissive, HostWithoutPort, NeverMatches, NoTokenChecked, NobodyHasIt,
    OtherSidesPort, PlainButStrict, PlainClients, RequestRuleOnTcp, SeveralModes, StrictOutside,
    TokenNotNeeded, WithoutTarget,
};

#[test]
fn policies() {
    check(CASES);
}

pub(super) const CASES: &[Case] = &[
    (
        AllowsNothing,
        "spec.rules[1]",
        "AuthorizationPolicy shop/a | {rules: [{to: [{operation: {ports: ['8080']}}]}, {to: [{operation: {ports: ['8080'], methods: [GET]}}]}]}",
        "AuthorizationPolicy shop/a | {targetRefs: [{kind: Service, name: web}], rules: [{to: [{operation: {ports: ['80'], methods: [GET]}}]}]}",
    ),
    (
        DeniesNothing,
        "spec.rules[0]",
        "AuthorizationPolicy shop/a | {action: DENY, rules: [{from: [{source: {namespaces: [plain]}}], to: [{operation: {methods: [GET]}}]}]}",
        "AuthorizationPolicy shop/a | {action: DENY, rules: [{from: [{source: {namespaces: [plain]}}]}]}",
    ),
    (
        DeniesMore,
        "spec.rules[0]",
        "AuthorizationPolicy shop/a | {action: DENY, rules: [{to: [{operation: {ports: ['8080'], methods: [GET]}}]}]}",
        "AuthorizationPolicy shop/a | {action: DENY, rules: [{to: [{operation: {methods: [GET]}}]}]}",
    ),
    (
        ActionWithoutWaypoint,
        "spec.action",
        "AuthorizationPolicy shop/a | {action: CUSTOM, provider: {name: opa}, rules: [{}]}",
        "AuthorizationPolicy shop/a | {action: CUSTOM, provider: {name: opa}, targetRefs: [{kind: Service, name: web}], rules: [{}]}",
    ),
    (
        RequestRuleOnTcp,
        "spec.rules[0]",
        "AuthorizationPolicy shop/a | {action: DENY, targetRefs: [{kind: Service, name: web}], rules: [{to: [{operation: {methods: [GET]}}]}]}",
        "AuthorizationPolicy shop/a | {action: DENY, targetRefs: [{kind: Service, name: web}], rules: [{to: [{operation: {ports: ['80'], methods: [GET]}}]}]}",
    ),
    (
        TokenNotNeeded,
        "spec.jwtRules",
        "RequestAuthentication shop/r | {targetRefs: [{kind: Service, name: web}], jwtRules: [{issuer: 'https://i.example.com'}]}",
        "RequestAuthentication shop/r | {targetRefs: [{kind: Service, name: web}], jwtRules: [{issuer: 'https://i.example.com'}]}
AuthorizationPolicy shop/a | {targetRefs: [{group: gateway.networking.k8s.io, kind: Gateway, name: wp}], rules: [{from: [{source: {requestPrincipals: ['*']}}]}]}",
    ),
    (
        WithoutTarget,
        "spec.targetRefs",
        "RequestAuthentication shop/r | {selector: {matchLabels: {app: web}}, jwtRules: [{issuer: 'https://i.example.com'}]}",
        "RequestAuthentication shop/r | {targetRefs: [{kind: Service, name: web}], jwtRules: [{issuer: 'https://i.example.com'}]}",
    ),
    (
        WithoutTarget,
        "spec.selector",
        "Telemetry shop/t | {selector: {matchLabels: {app: web}}, accessLogging: [{disabled: true}]}",
        "Telemetry shop/t | {accessLogging: [{disabled: true}]}",
    ),
    (
        NeverMatches,
        "spec.rules",
        "AuthorizationPolicy shop/a | {action: DENY}",
        "AuthorizationPolicy shop/a | {action: ALLOW}",
    ),
    (
        NobodyHasIt,
        "spec.rules[0].from[0].source.principals[0]",
        "AuthorizationPolicy shop/a | {rules: [{from: [{source: {principals: [cluster.local/ns/plain/sa/web]}}]}]}",
        "AuthorizationPolicy shop/a | {rules: [{from: [{source: {principals: [cluster.local/ns/plain/sa/api, other.mesh/ns/a/sa/b, '*/sa/x']}}]}]}",
    ),
    (
        NobodyHasIt,
        "spec.rules[0].from[0].source.serviceAccounts[0]",
        "AuthorizationPolicy shop/a | {rules: [{from: [{source: {serviceAccounts: [api]}}]}]}",
        "AuthorizationPolicy shop/a | {rules: [{from: [{source: {serviceAccounts: [plain/api]}}]}]}",
    ),
    (
        NoTokenChecked,
        "spec.rules[0].when[0].key",
        "AuthorizationPolicy shop/a | {targetRefs: [{kind: Service, name: web}], rules: [{when: [{key: 'request.auth.claims[iss]', values: [a]}]}]}",
        "AuthorizationPolicy shop/a | {targetRefs: [{kind: Service, name: web}], rules: [{when: [{key: 'request.auth.claims[iss]', values: [a]}]}]}
RequestAuthentication shop/r | {targetRefs: [{group: gateway.networking.k8s.io, kind: Gateway, name: wp}], jwtRules: [{issuer: 'https://i.example.com'}]}",
    ),
    (
        NoTokenChecked,
        "spec.http[0].match[0].headers",
        "VirtualService shop/v | {hosts: [web], http: [{match: [{headers: {'@request.auth.claims.iss': {exact: a}}}], directResponse: {status: 200}}]}",
        "VirtualService shop/v | {hosts: [web], http: [{match: [{headers: {'@request.auth.claims.iss': {exact: a}}}], directResponse: {status: 200}}]}
RequestAuthentication shop/r | {targetRefs: [{kind: Service, name: web}], jwtRules: [{issuer: 'https://i.example.com'}]}",
    ),
    (
        HostWithoutPort,
        "spec.rules[0].to[0].operation.hosts",
        "Service shop/cart | {clusterIP: 10.1.0.3, selector: {app: web}, ports: [{name: http, port: 8000}]}
AuthorizationPolicy shop/a | {targetRefs: [{kind: Service, name: cart}], rules: [{to: [{operation: {hosts: [cart.shop]}}]}]}",
        "Service shop/cart | {clusterIP: 10.1.0.3, selector: {app: web}, ports: [{name: http, port: 8000}]}
AuthorizationPolicy shop/a | {targetRefs: [{kind: Service, name: cart}], rules: [{to: [{operation: {hosts: [cart.shop, 'cart.shop:*']}}]}]}",
    ),
    (
        CustomBeforeToken,
        "spec.rules[0].from[0].source",
        "AuthorizationPolicy shop/a | {action: CUSTOM, provider: {name: opa}, targetRefs: [{kind: Service, name: web}], rules: [{from: [{source: {requestPrincipals: ['*']}}]}]}",
        "AuthorizationPolicy shop/a | {action: CUSTOM, provider: {name: opa}, targetRefs: [{kind: Service, name: web}], rules: [{from: [{source: {namespaces: [plain]}}]}]}",
    ),
    (
        OtherSidesPort,
        "spec.rules[0].to[0].operation.ports",
        "AuthorizationPolicy shop/a | {selector: {matchLabels: {app: web}}, rules: [{to: [{operation: {ports: ['80']}}]}]}",
        "AuthorizationPolicy shop/a | {selector: {matchLabels: {app: web}}, rules: [{to: [{operation: {ports: ['8080']}}]}]}",
    ),
    (
        OtherSidesPort,
        "spec.rules[0].to[0].operation.ports",
        "AuthorizationPolicy shop/a | {targetRefs: [{kind: Service, name: web}], rules: [{to: [{operation: {ports: ['8080']}}]}]}",
        "AuthorizationPolicy shop/a | {targetRefs: [{kind: Service, name: web}], rules: [{to: [{operation: {ports: ['80']}}]}]}",
    ),
    (
        OtherSidesPort,
        "spec.portLevelMtls.80",
        "PeerAuthentication shop/p | {selector: {matchLabels: {app: web}}, mtls: {mode: STRICT}, portLevelMtls: {80: {mode: PERMISSIVE}}}",
        "PeerAuthentication shop/p | {selector: {matchLabels: {app: web}}, mtls: {mode: STRICT}, portLevelMtls: {8080: {mode: PERMISSIVE}}}",
    ),
    (
        StrictOutside,
        "spec.mtls",
        "Namespace plain
PeerAuthentication plain/p | {mtls: {mode: STRICT}}",
        "PeerAuthentication plain/p | {mtls: {mode: STRICT}}",
    ),
    (
        PlainClients,
        "spec",
        "PeerAuthentication shop/p | {mtls: {mode: STRICT}}
Pod shop/old {istio.io/dataplane-mode: none} | {containers: []} || {podIP: 10.0.0.8}",
        "PeerAuthentication shop/p | {mtls: {mode: STRICT}}
Pod shop/old | {containers: []} || {podIP: 10.0.0.8}",
    ),
    (
        PlainButStrict,
        "spec.trafficPolicy.tls.mode",
        "PeerAuthentication shop/p | {mtls: {mode: STRICT}}
DestinationRule shop/d | {host: web, trafficPolicy: {tls: {mode: DISABLE}}}",
        "PeerAuthentication shop/p | {mtls: {mode: PERMISSIVE}}
DestinationRule shop/d | {host: web, trafficPolicy: {tls: {mode: DISABLE}}}",
    ),
    (
        SeveralModes,
        "spec",
        "PeerAuthentication shop/p | {mtls: {mode: STRICT}}
PeerAuthentication shop/q | {mtls: {mode: PERMISSIVE}}",
        "PeerAuthentication shop/p | {mtls: {mode: STRICT}}
PeerAuthentication plain/q | {mtls: {mode: PERMISSIVE}}",
    ),
    (
        DisableIsPermissive,
        "spec.mtls",
        "PeerAuthentication shop/p | {mtls: {mode: DISABLE}}",
        "PeerAuthentication shop/p | {mtls: {mode: PERMISSIVE}}",
    ),
];
